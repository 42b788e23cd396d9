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
    Parameters,
    RebootMode,
    RebootParameters,
    StartError,
    StartParameters,
    StopMode,
    StopParameters,
    TransitionKind,
    Vm,
    VmState,
)

if TYPE_CHECKING:
    from collections.abc import Mapping
    from datetime import datetime

_ENDS = frozenset(phase for phase in OperationPhase if phase.final)

STEPS: Mapping[OperationPhase, frozenset[OperationPhase]] = MappingProxyType({
    OperationPhase.ACCEPTED: _ENDS
    | {
        OperationPhase.QUEUED,
        OperationPhase.APPLYING,
        OperationPhase.STARTING,
        OperationPhase.SIGNALLED,
        OperationPhase.WAITING,
        OperationPhase.FORCING,
    },
    OperationPhase.QUEUED: _ENDS | {OperationPhase.STARTING},
    # it goes on in the next daemon
    OperationPhase.APPLYING: _ENDS | {OperationPhase.APPLYING, OperationPhase.WAITING},
    OperationPhase.STARTING: _ENDS | {OperationPhase.WAITING},
    OperationPhase.SIGNALLED: _ENDS
    | {OperationPhase.SIGNALLED, OperationPhase.WAITING, OperationPhase.FORCING},
    # what waited, in a daemon that ended, goes on in the next one
    OperationPhase.WAITING: _ENDS
    | {OperationPhase.SIGNALLED, OperationPhase.APPLYING, OperationPhase.FORCING},
    OperationPhase.FORCING: _ENDS | {OperationPhase.FORCING, OperationPhase.WAITING},
    **dict.fromkeys(_ENDS, frozenset()),
})  # fmt: skip


class Meeting(Enum):
    """What becomes of an operation that is asked for while another one is under way."""

    JOIN = auto()  # it is the other one
    ESCALATE = auto()  # it is the other one, which uses force from now on
    CANCEL = auto()  # it takes place after the other one was cancelled
    REFUSE = auto()


class Kind(Enum):
    """Operations as far as it matters whom they meet."""

    START = auto()
    STOP = auto()
    FORCED_STOP = auto()
    REBOOT = auto()
    FORCED_REBOOT = auto()
    PAUSE = auto()
    RESUME = auto()


def _by_stops(**others: Meeting) -> dict[Kind, Meeting]:
    """What comes of others while a thing is under way that any Stop ends, and all else waits for.

    A wish that is taken back is no wish: who stops a VM need not wait for it to start, reboot,
    pause or run on.
    """
    return {
        **dict.fromkeys(Kind, Meeting.REFUSE),
        Kind.STOP: Meeting.CANCEL,
        Kind.FORCED_STOP: Meeting.CANCEL,
        **{Kind[name]: meeting for name, meeting in others.items()},
    }


# Under way, then asked for. A Stop is never given up for something else: whoever asked for that
# would be told of a VM that goes off the next moment.
MEETINGS: Mapping[Kind, Mapping[Kind, Meeting]] = MappingProxyType({
    Kind.START: _by_stops(START=Meeting.JOIN),
    Kind.STOP: {
        **dict.fromkeys(Kind, Meeting.REFUSE),
        Kind.STOP: Meeting.JOIN,
        Kind.FORCED_STOP: Meeting.ESCALATE,
    },
    Kind.FORCED_STOP: {
        **dict.fromkeys(Kind, Meeting.REFUSE),
        Kind.STOP: Meeting.JOIN,
        Kind.FORCED_STOP: Meeting.JOIN,
    },
    Kind.REBOOT: _by_stops(REBOOT=Meeting.JOIN, FORCED_REBOOT=Meeting.ESCALATE),
    # an earlier daemon's is not forced again, but by who wants that anew
    Kind.FORCED_REBOOT: _by_stops(REBOOT=Meeting.JOIN, FORCED_REBOOT=Meeting.ESCALATE),
    Kind.PAUSE: _by_stops(PAUSE=Meeting.JOIN),
    Kind.RESUME: _by_stops(RESUME=Meeting.JOIN),
})  # fmt: skip


class IllegalStep(AssertionError):
    """The daemon wanted to take a step that cannot be: a fault of its own."""


def meeting(under_way: Operation, asked: Parameters) -> Meeting:
    """Return what becomes of what is *asked* for while an operation is *under_way*."""
    return MEETINGS[kind(under_way.parameters)][kind(asked)]


def kind(parameters: Parameters) -> Kind:
    """Return what kind of operation these are the parameters of."""
    return Kind[f"FORCED_{parameters.verb}" if is_forced(parameters) else parameters.verb]


def is_forced(parameters: Parameters) -> bool:
    """Whether the guest is not to be asked."""
    match parameters:
        case StopParameters(mode=StopMode.FORCE) | RebootParameters(mode=RebootMode.FORCE):
            return True
        case _:
            return False


def meant_for(operation: Operation, vm: Vm) -> Operation:
    """Return *operation*, from now on for the boot of its VM that *vm* tells of, if it is up."""
    return replace(operation, incarnation=vm.incarnation) if vm.active else operation


def joined(operation: Operation, vm: Vm, asked: Parameters) -> Operation:
    """Return *operation* as it is once somebody has *asked* for the same of *vm* as it is now."""
    escalated = operation.escalated or is_forced(asked)
    return replace(meant_for(operation, vm), escalated=escalated)


def still_joined(before: Operation, after: Operation) -> Operation:
    """Return *after*, a later step of *before*, with all that was made of that by who joined it.

    The step may have been on its way already, and know nothing of them.
    """
    boots = [boot for boot in (before.incarnation, after.incarnation) if boot is not None]
    escalated = before.escalated or after.escalated
    return replace(after, incarnation=max(boots, default=None), escalated=escalated)


def is_outlived(operation: Operation, vm: Vm) -> bool:
    """Whether its VM has had another boot since: one that nobody asked for *operation* on."""
    return operation.incarnation not in {None, vm.incarnation}


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


def is_up(vm: Vm, parameters: StartParameters) -> bool:
    """Whether *vm* is as a Start wants it."""
    return vm.state is VmState.RUNNING or (parameters.paused and vm.state is VmState.PAUSED)


def concluded(operation: Operation, vm: Vm, *, time: datetime) -> Operation | None:
    """Return *operation* as it ends with a change of *vm*, now that libvirt has answered it.

    None: the VM is not as it wants it, or its state does not tell all that there is to know.
    """
    match operation.parameters:
        case StartParameters() as parameters if is_up(vm, parameters):
            pass
        case StopParameters() if vm.persistent and not vm.active:
            pass  # one that is not is gone with its process, and that is looked for before
        case _:
            return None
    return end(
        operation,
        OperationPhase.SUCCEEDED,
        time=max(time, operation.steps[-1].time),
        outcome=OperationOutcome.DONE,
    )


def on_operation(vm: Vm, operation: Operation, *, time: datetime) -> Change | None:
    """Return what *operation*, as it stands, changes in *vm*: its acceptance and its end do.

    It may be accepted together with its first step.
    """
    if operation.phase.final:
        changed = replace(
            vm, active_operation_id=None, last_start_error=_start_error(vm, operation, time)
        )
    elif vm.active_operation_id != operation.id:
        changed = replace(vm, active_operation_id=operation.id)
    else:
        return None
    return Change(kind=TransitionKind.OPERATION, vm=changed)


def told_phase(operation: Operation) -> OperationPhase:
    """Return the phase by which the transition that *operation* makes is told."""
    return operation.phase if operation.phase.final else OperationPhase.ACCEPTED


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
