"""A VM's move from one state to another, and all that follows from it.

Shared by `events` and `sightings`: whatever told of a move, incarnation, crash count, initiator
and times follow by the same rules.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import TYPE_CHECKING

from vmagentd.lifecycle.trails import (
    CALL_COUNTS,
    NO_TRAIL,
    NOT_ASKED,
    GivenUp,
    Trail,
    who_shut_down,
)
from vmagentd.model import (
    UNKNOWN_INITIATOR,
    Initiator,
    InitiatorKind,
    Operation,
    OperationPhase,
    PauseParameters,
    Reason,
    RebootParameters,
    ResumeParameters,
    Source,
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

# Whom a reason points at when no operation of ours explains it.
INITIATORS: Mapping[Reason, InitiatorKind] = MappingProxyType(
    dict.fromkeys(Reason, InitiatorKind.UNKNOWN)
    | dict.fromkeys(
        (
            Reason.BOOTED,
            Reason.RESTORED,
            Reason.REVERTED,
            Reason.STARTING_UP,
            Reason.START_FAILED,
            Reason.UNPAUSED,
            Reason.PAUSED_BY_USER,
            Reason.SAVING,
            Reason.SAVED,
            Reason.SAVE_CANCELED,
            Reason.DUMPING,
            Reason.SNAPSHOTTING,
            Reason.MIGRATING,
            Reason.MIGRATED_IN,
            Reason.MIGRATED_AWAY,
            Reason.MIGRATION_CANCELED,
            Reason.POSTCOPY,
            Reason.HOST_TERMINATION,
            Reason.FORCED,
            Reason.KILLED_BY_HOST_SIGNAL,
            Reason.DEFINED,
            Reason.UNDEFINED,
        ),
        InitiatorKind.OUT_OF_BAND,
    )
    | dict.fromkeys(
        (
            Reason.GUEST_PANIC,
            Reason.GUEST_CRASHLOADED,
            Reason.WATCHDOG,
            Reason.SUSPENDED_TO_RAM,
            Reason.SUSPENDED_TO_DISK,
        ),
        InitiatorKind.GUEST,
    )
    | dict.fromkeys(
        (Reason.RESTARTED_AFTER_PANIC, Reason.API_ERROR, Reason.STOPPED_BY_LIBVIRTD),
        InitiatorKind.LIBVIRT,
    )
    | {Reason.HOST_REBOOTED: InitiatorKind.HOST_SHUTDOWN}
)

# Reasons that are said in coarser words for the same end: by a query, or by an event after one.
COARSER: Mapping[Reason, frozenset[Reason]] = MappingProxyType({
    Reason.CLEAN_SHUTDOWN: frozenset({Reason.KILLED_BY_HOST_SIGNAL}),
    Reason.PROCESS_DIED: frozenset({Reason.GUEST_PANIC, Reason.START_FAILED}),
})  # fmt: skip

_BY_START = frozenset({
    Reason.STARTING_UP,
    Reason.BOOTED,
    Reason.RESTORED,
    Reason.PAUSED_BY_USER,
    Reason.START_FAILED,
})  # fmt: skip
_BY_PAUSE = frozenset({Reason.PAUSED_BY_USER})
_BY_RESUME = frozenset({Reason.UNPAUSED, Reason.WOKE_UP})
_BY_STOP = frozenset({Reason.GUEST_SHUTDOWN, Reason.CLEAN_SHUTDOWN})
_BY_FORCE = frozenset({Reason.HOST_TERMINATION, Reason.FORCED})

# What a host that goes down does to its VMs: libvirt-guests saves them, or asks the guests; the
# service manager ends what is left.
_BY_HOST = frozenset({
    Reason.PAUSED_BY_USER,
    Reason.SAVED,
    Reason.GUEST_SHUTDOWN,
    Reason.CLEAN_SHUTDOWN,
    Reason.HOST_TERMINATION,
    Reason.FORCED,
    Reason.KILLED_BY_HOST_SIGNAL,
})  # fmt: skip


@dataclass(frozen=True, slots=True)
class To:
    """What a VM becomes."""

    state: VmState
    reason: Reason


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """A transition that has no revision yet."""

    kind: TransitionKind
    vm: Vm
    earliest_time: datetime | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """What a fact makes of a VM; with `doubt`, libvirt is to be asked about it."""

    changes: tuple[Change, ...] = ()
    doubt: bool = False


def move(
    vm: Vm,
    to: To,
    *,
    active: bool,
    run_id: int | None,
    time: datetime,
    source: Source,
    operation: Operation | None,
    trail: Trail = NO_TRAIL,
    earliest_time: datetime | None = None,
) -> Vm:
    """Return *vm* in the state *to*, with all that follows from the move.

    Args:
        vm: the record before.
        to: state and reason after.
        active: whether a hypervisor process exists after it.
        run_id: libvirt's number of that process, None if not told.
        time: when it was learned.
        source: how it was learned.
        operation: what is being carried out on the VM.
        trail: what else was heard of its hypervisor process.
        earliest_time: set if nobody was looking when it happened.
    """
    boot = active and (not vm.active or (run_id is not None and vm.run_id not in {None, run_id}))
    crash = to.state is VmState.CRASHED and vm.state is not VmState.CRASHED
    return replace(
        vm,
        state=to.state,
        reason=to.reason,
        initiator=_initiator(vm, to, operation, trail, time, boot=boot),
        source=source,
        state_time=time,
        earliest_time=earliest_time,
        active=active,
        incarnation=vm.incarnation + boot,
        crash_count=vm.crash_count + crash,
        run_id=(run_id or (None if boot else vm.run_id)) if active else None,
        cpu_time=vm.cpu_time if active and not boot else None,
        unresponsive=vm.unresponsive if active and not boot else None,
        last_start_error=None if boot else vm.last_start_error,
        raw_state=None,
    )


def _initiator(
    vm: Vm, to: To, operation: Operation | None, trail: Trail, time: datetime, *, boot: bool
) -> Initiator:
    if vm.state is VmState.STARTING and to.reason in _BY_START and not boot:
        return vm.initiator  # whoever began that, though he may have taken his wish back since
    if operation is not None and to.reason in _explained(operation):
        return Initiator(
            kind=InitiatorKind.CLIENT, actor=operation.actor, operation_id=operation.id
        )
    if vm.state is VmState.STOPPING and to.state is VmState.STOPPED and to.reason in _BY_STOP:
        return vm.initiator  # the end of what began then
    if trail.host_going_down and to.reason in _BY_HOST:
        return Initiator(kind=InitiatorKind.HOST_SHUTDOWN)
    if to.reason in _BY_STOP:
        return who_shut_down(trail, time=time)
    # ours at last, or somebody else did the same since
    open_question = any(_brings(each, to.reason, time=time) for each in trail.given_up)
    return UNKNOWN_INITIATOR if open_question else Initiator(kind=INITIATORS[to.reason])


def give_up(
    earlier: tuple[GivenUp, ...], operation: Operation, *, time: datetime
) -> tuple[GivenUp, ...]:
    """Return what may come yet once *operation*, as it was then, is given up at *time* too.

    It stands for *earlier* ones that can bring no more than it can, so there are few at a time.
    Who shut a guest down in order is told by its trail.
    """
    reasons = _explained(operation) - _BY_STOP
    if not reasons:
        return earlier
    others = (each for each in earlier if not each.reasons <= reasons)
    return (*others, GivenUp(reasons=reasons, time=time))


def to_come(given_up: tuple[GivenUp, ...], vm: Vm) -> tuple[GivenUp, ...]:
    """Return what may come yet once a VM has become *vm*: what has come does not come again.

    The end of a process that is forced off comes in two moves, of which STOPPING is the first.
    """
    if vm.state is VmState.STOPPING:
        return given_up
    return tuple(each for each in given_up if vm.reason not in each.reasons)


def _brings(given_up: GivenUp, reason: Reason, *, time: datetime) -> bool:
    """Whether what libvirt was asked for before that was *given_up* may come about at *time*."""
    return reason in given_up.reasons and abs(time - given_up.time) <= CALL_COUNTS


def _explained(operation: Operation) -> frozenset[Reason]:
    """Return the reasons of states that a VM gets into because of *operation*.

    A guest that obeys our power button and one that shuts down by itself look the same in
    libvirt; what tells them apart is the operation, whose step was committed before the press.
    """
    if operation.phase in NOT_ASKED:
        return frozenset()
    match operation.parameters:
        case StartParameters():
            return _BY_START
        case StopParameters(mode=mode):
            forcing = mode is StopMode.FORCE or operation.phase is OperationPhase.FORCING
            return _BY_STOP | _BY_FORCE if forcing else _BY_STOP
        case RebootParameters():  # a guest that goes off instead has obeyed our power button
            return _BY_STOP
        case PauseParameters():
            return _BY_PAUSE
        case ResumeParameters():
            return _BY_RESUME
