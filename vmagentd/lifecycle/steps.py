"""Which step of an operation may follow which, and which operation may meet which.

Here the daemon acts itself, so an illegal step raises and changes nothing.
"""

from __future__ import annotations

from dataclasses import replace
from enum import Enum, auto
from types import MappingProxyType
from typing import TYPE_CHECKING

from vmagentd.lifecycle.moves import Change
from vmagentd.model import (
    Operation,
    OperationFailure,
    OperationOutcome,
    OperationPhase,
    OperationStep,
    StartError,
    StartParameters,
    StopMode,
    StopParameters,
    TransitionKind,
    Vm,
)

if TYPE_CHECKING:
    from collections.abc import Mapping
    from datetime import datetime

_ENDS = frozenset(phase for phase in OperationPhase if phase.final)

STEPS: Mapping[OperationPhase, frozenset[OperationPhase]] = MappingProxyType({
    OperationPhase.ACCEPTED: _ENDS
    | {
        OperationPhase.STARTING,
        OperationPhase.SIGNALLED,
        OperationPhase.WAITING,
        OperationPhase.FORCING,
    },
    OperationPhase.STARTING: _ENDS | {OperationPhase.WAITING},
    OperationPhase.SIGNALLED: _ENDS
    | {OperationPhase.SIGNALLED, OperationPhase.WAITING, OperationPhase.FORCING},
    # a Stop that waited, in a daemon that ended, presses again in the next one
    OperationPhase.WAITING: _ENDS | {OperationPhase.SIGNALLED, OperationPhase.FORCING},
    OperationPhase.FORCING: _ENDS | {OperationPhase.FORCING, OperationPhase.WAITING},
    **dict.fromkeys(_ENDS, frozenset()),
})  # fmt: skip


class Meeting(Enum):
    """What becomes of an operation that is asked for while another one is under way."""

    JOIN = auto()  # it is the other one
    ESCALATE = auto()  # it is the other one, which uses force from now on
    CANCEL = auto()  # it takes place after the other one was cancelled
    REFUSE = auto()


class _Kind(Enum):
    START = auto()
    STOP = auto()
    FORCED_STOP = auto()


# (under way, asked for)
MEETINGS: Mapping[tuple[_Kind, _Kind], Meeting] = MappingProxyType({
    (_Kind.START, _Kind.START): Meeting.JOIN,
    (_Kind.START, _Kind.STOP): Meeting.CANCEL,
    (_Kind.START, _Kind.FORCED_STOP): Meeting.CANCEL,
    (_Kind.STOP, _Kind.START): Meeting.REFUSE,
    (_Kind.STOP, _Kind.STOP): Meeting.JOIN,
    (_Kind.STOP, _Kind.FORCED_STOP): Meeting.ESCALATE,
    (_Kind.FORCED_STOP, _Kind.START): Meeting.REFUSE,
    (_Kind.FORCED_STOP, _Kind.STOP): Meeting.JOIN,
    (_Kind.FORCED_STOP, _Kind.FORCED_STOP): Meeting.JOIN,
})  # fmt: skip


class IllegalStep(AssertionError):
    """The daemon wanted to take a step that cannot be: a fault of its own."""


def meeting(under_way: Operation, asked: StartParameters | StopParameters) -> Meeting:
    """Return what becomes of what is *asked* for while an operation is *under_way*."""
    return MEETINGS[_kind(under_way.parameters), _kind(asked)]


def _kind(parameters: StartParameters | StopParameters) -> _Kind:
    match parameters:
        case StartParameters():
            return _Kind.START
        case StopParameters(mode=StopMode.FORCE):
            return _Kind.FORCED_STOP
        case StopParameters():
            return _Kind.STOP


def step(operation: Operation, phase: OperationPhase, *, time: datetime) -> Operation:
    """Return *operation* after its step to *phase*, which is not a final one.

    Raises:
        IllegalStep: *phase* cannot follow.
    """
    if phase.final or phase not in STEPS[operation.phase]:
        message = f"operation {operation.id}: {phase} after {operation.phase}"
        raise IllegalStep(message)
    attempt = 1 + sum(earlier.phase is phase for earlier in operation.steps)
    taken = OperationStep(phase=phase, time=time, attempt=attempt)
    return replace(operation, phase=phase, steps=(*operation.steps, taken))


def end(
    operation: Operation,
    phase: OperationPhase,
    *,
    time: datetime,
    outcome: OperationOutcome | None = None,
    failure: OperationFailure | None = None,
) -> Operation:
    """Return *operation* after its end: with an outcome if it succeeded, else with a failure.

    Raises:
        IllegalStep: it is over already, or *phase* is not final.
    """
    succeeded = phase is OperationPhase.SUCCEEDED
    fits = succeeded == (outcome is not None) == (failure is None)
    if not phase.final or phase not in STEPS[operation.phase] or not fits:
        message = f"operation {operation.id}: {phase} with {outcome} and {failure}"
        raise IllegalStep(message)
    taken = OperationStep(phase=phase, time=time)
    return replace(
        operation,
        phase=phase,
        steps=(*operation.steps, taken),
        end_time=time,
        outcome=outcome,
        failure=failure,
    )


def on_operation(vm: Vm, operation: Operation, *, time: datetime) -> Change | None:
    """Return what *operation*, as it stands, changes in *vm*: its acceptance and its end do."""
    if operation.phase is OperationPhase.ACCEPTED:
        changed = replace(vm, active_operation_id=operation.id)
    elif operation.phase.final:
        changed = replace(
            vm, active_operation_id=None, last_start_error=_start_error(vm, operation, time)
        )
    else:
        return None
    return Change(kind=TransitionKind.OPERATION, vm=changed)


def _start_error(vm: Vm, operation: Operation, time: datetime) -> StartError | None:
    failure = operation.failure
    by_libvirt = failure is not None and "libvirt_code" in failure.facts
    if failure is None or not by_libvirt or not isinstance(operation.parameters, StartParameters):
        return vm.last_start_error
    return StartError(
        libvirt_code=int(failure.facts["libvirt_code"]),
        message=failure.facts["libvirt_message"],
        fail_time=time,
    )
