"""What was heard of a VM beside its states: who began what libvirt tells only the end of.

A trail belongs to one hypervisor process. It is *whole* if QEMU's own events were heard from that
process's start on: only then does a thing that is not in it prove that it did not happen.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import timedelta
from typing import TYPE_CHECKING, Final

from vmagentd.errors import (
    ForceTimedOut,
    LibvirtUnreachable,
    OperationInterrupted,
    OperationTimedOut,
    OutcomeUnknown,
    StartTimedOut,
)
from vmagentd.model import (
    UNKNOWN_INITIATOR,
    EventKind,
    Initiator,
    InitiatorKind,
    OperationPhase,
    OperationVerb,
)

if TYPE_CHECKING:
    from datetime import datetime

    from vmagentd.model import Event, Operation, Reason

# A guest that shuts down this long after its power button was pressed may have done so for any
# reason. The slowest orderly shutdowns, those that install updates, are about this long.
PRESS_COUNTS: Final = timedelta(minutes=10)

# As long for what an operation that was given up had asked libvirt for.
CALL_COUNTS: Final = timedelta(minutes=10)

# Phases in which libvirt was not asked for anything yet.
NOT_ASKED: Final = frozenset({OperationPhase.ACCEPTED, OperationPhase.QUEUED})

# How an operation fails before libvirt has answered.
_UNANSWERED: Final = frozenset(
    error.__name__
    for error in (
        ForceTimedOut,
        LibvirtUnreachable,
        OperationInterrupted,  # the daemon that asked has ended, libvirt goes on
        OperationTimedOut,
        OutcomeUnknown,
        StartTimedOut,
    )
)  # fmt: skip

# Events that leave a trail and change no state.
TRACES: Final = frozenset({
    EventKind.AGENT_CONNECTED,
    EventKind.POWER_BUTTON,
    EventKind.GUEST_FINISHED,
    EventKind.RESET_BY_GUEST,
    EventKind.RESET_BY_HOST,
})  # fmt: skip

_GUEST = Initiator(kind=InitiatorKind.GUEST)
_OUT_OF_BAND = Initiator(kind=InitiatorKind.OUT_OF_BAND)


@dataclass(frozen=True, slots=True, kw_only=True)
class GivenUp:
    """An operation of ours that ended too early to know what comes of it."""

    # what it may bring yet
    reasons: frozenset[Reason]
    time: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class Trail:
    """What was heard of one hypervisor process."""

    whole: bool = False
    # a guest agent was connected: through it a shutdown can be asked for without a trace
    agent: bool = False
    # who pressed the power button last, and when
    pressed_by: Initiator | None = None
    press_time: datetime | None = None
    # when an operation of ours that asks the guest ended without it: its press may still count
    press_end_time: datetime | None = None
    # the guest finished a shutdown, and its process has not ended or been reset since
    finished: bool = False
    # who reset the guest last
    reset_by: Initiator | None = None
    # libvirt's number of it, if an event told it
    run_id: int | None = None
    # the number of the process before this one: what is still heard of that is old
    ended_run_id: int | None = None
    # whether the host is going down: then it, or what it runs for that, stops its VMs
    host_going_down: bool = False
    # not of one process: a Start that was given up may bring up the next one
    given_up: tuple[GivenUp, ...] = ()


NO_TRAIL: Final = Trail()


def is_of_ended_run(event: Event, trail: Trail) -> bool:
    """Whether *event* is of a process that has ended, which a faster query has seen."""
    return event.run_id is not None and event.run_id == trail.ended_run_id


def follow(trail: Trail, event: Event, operation: Operation | None) -> Trail:
    """Return *trail* after *event*, which is one of TRACES, while *operation* is under way."""
    if is_of_ended_run(event, trail):
        return trail
    match event.kind:
        case EventKind.AGENT_CONNECTED:
            trail = replace(trail, agent=True)
        case EventKind.POWER_BUTTON:
            by = _presser(trail, event, operation)
            trail = replace(trail, pressed_by=by, press_time=event.observe_time)
        case EventKind.GUEST_FINISHED:
            trail = replace(trail, finished=True)
        case EventKind.RESET_BY_GUEST:
            trail = replace(trail, reset_by=_GUEST)
        case EventKind.RESET_BY_HOST if trail.finished:
            # what libvirt does after an orderly reboot: whoever began that began this
            by = who_shut_down(trail, time=event.observe_time)
            trail = replace(trail, reset_by=by, finished=False)
        case EventKind.RESET_BY_HOST:
            trail = replace(trail, reset_by=_OUT_OF_BAND)
        case _:
            pass
    return trail


def after_operation(trail: Trail, operation: Operation, *, time: datetime) -> Trail:
    """Return *trail* after *operation* ended at *time* and left the VM up."""
    succeeded = operation.phase is OperationPhase.SUCCEEDED
    may_count = _has_pressed(operation) and not succeeded
    return replace(trail, press_end_time=time) if may_count else trail


def left_open(operation: Operation, *, boot_id: str | None) -> bool:
    """Whether *operation*, which has ended, may have asked libvirt for what is yet to come.

    One that was accepted before the host's present boot, *boot_id*, and is interrupted in that,
    has ended with the boot before: libvirt has forgotten what it was asked for.
    """
    failure, boot = operation.failure, operation.deadline_boot
    earlier_boot = boot is not None and boot_id not in {None, boot.boot_id}
    if earlier_boot and operation.phase is OperationPhase.INTERRUPTED:
        return False
    cancelled = operation.phase is OperationPhase.CANCELLED
    return cancelled or (failure is not None and failure.error in _UNANSWERED)


def who_shut_down(trail: Trail, *, time: datetime) -> Initiator:
    """Return who made the guest shut down in order at *time*."""
    if trail.pressed_by is not None and trail.press_time is not None:
        recent = abs(time - trail.press_time) <= PRESS_COUNTS
        return trail.pressed_by if recent else UNKNOWN_INITIATOR
    return _GUEST if trail.whole and not trail.agent else UNKNOWN_INITIATOR


def who_reset(trail: Trail, operation: Operation | None) -> Initiator:
    """Return who reset the guest last, while *operation* is under way."""
    rebooting = operation is not None and operation.verb is OperationVerb.REBOOT
    if operation is not None and rebooting and operation.phase not in NOT_ASKED:
        # an agent resets its guest from inside: it looks like the guest's own wish
        return _client(operation)
    return trail.reset_by or UNKNOWN_INITIATOR


def _client(operation: Operation) -> Initiator:
    return Initiator(kind=InitiatorKind.CLIENT, actor=operation.actor, operation_id=operation.id)


def _has_pressed(operation: Operation) -> bool:
    """Whether *operation* has asked the guest: that is committed before the button is pressed."""
    return any(step.phase is OperationPhase.SIGNALLED for step in operation.steps)


def _presser(trail: Trail, event: Event, operation: Operation | None) -> Initiator:
    if operation is not None and _has_pressed(operation):
        return _client(operation)
    ended = trail.press_end_time
    if ended is not None and abs(event.observe_time - ended) <= PRESS_COUNTS:
        return UNKNOWN_INITIATOR
    return _OUT_OF_BAND
