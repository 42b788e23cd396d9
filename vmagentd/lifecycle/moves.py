"""A VM's move from one state to another, and all that follows from it.

Shared by `events` and `sightings`: whatever told of a move, incarnation, crash count, initiator
and times follow by the same rules.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import TYPE_CHECKING

from vmagentd.lifecycle.trails import NO_TRAIL, Trail, who_shut_down
from vmagentd.model import (
    Initiator,
    InitiatorKind,
    Operation,
    OperationPhase,
    Reason,
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
        initiator=_initiator(vm, to, operation, trail, time),
        source=source,
        state_time=time,
        earliest_time=earliest_time,
        active=active,
        incarnation=vm.incarnation + boot,
        crash_count=vm.crash_count + crash,
        run_id=(run_id or (None if boot else vm.run_id)) if active else None,
        unresponsive=vm.unresponsive if active and not boot else None,
        last_start_error=None if boot else vm.last_start_error,
        raw_state=None,
    )


def _initiator(
    vm: Vm, to: To, operation: Operation | None, trail: Trail, time: datetime
) -> Initiator:
    if operation is not None and _explains(operation, to.reason):
        return Initiator(
            kind=InitiatorKind.CLIENT, actor=operation.actor, operation_id=operation.id
        )
    if vm.state is VmState.STOPPING and to.state is VmState.STOPPED and to.reason in _BY_STOP:
        return vm.initiator  # the end of what began then
    if trail.host_going_down and to.reason in _BY_HOST:
        return Initiator(kind=InitiatorKind.HOST_SHUTDOWN)
    if to.reason in _BY_STOP:
        return who_shut_down(trail, time=time)
    return Initiator(kind=INITIATORS[to.reason])


def _explains(operation: Operation, reason: Reason) -> bool:
    """Whether *operation* is why a VM gets into a state for *reason*.

    A guest that obeys our power button and one that shuts down by itself look the same in
    libvirt; what tells them apart is the operation, which was committed before the press.
    """
    match operation.parameters:
        case StartParameters():
            return reason in _BY_START
        case StopParameters(mode=mode):
            forcing = mode is StopMode.FORCE or operation.phase is OperationPhase.FORCING
            return reason in _BY_STOP or (forcing and reason in _BY_FORCE)
