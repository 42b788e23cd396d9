"""What was heard of a VM beside its states: who began what libvirt tells only the end of.

A trail belongs to one hypervisor process. It is *whole* if QEMU's own events were heard from that
process's start on: only then does a thing that is not in it prove that it did not happen.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import timedelta
from typing import TYPE_CHECKING, Final

from vmagentd.model import (
    UNKNOWN_INITIATOR,
    EventKind,
    Initiator,
    InitiatorKind,
    StopParameters,
)

if TYPE_CHECKING:
    from datetime import datetime

    from vmagentd.model import Event, Operation

# A guest that shuts down this long after its power button was pressed may have done so for any
# reason. The slowest orderly shutdowns, those that install updates, are about this long.
PRESS_COUNTS: Final = timedelta(minutes=10)

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
class Trail:
    """What was heard of one hypervisor process."""

    whole: bool = False
    # a guest agent was connected: through it a shutdown can be asked for without a trace
    agent: bool = False
    # who pressed the power button last, and when
    pressed_by: Initiator | None = None
    press_time: datetime | None = None
    # when a Stop of ours ended and left the VM up: a press of its own may still reach the guest
    stop_end_time: datetime | None = None
    # the guest finished a shutdown, and its process has not ended or been reset since
    finished: bool = False
    # who reset the guest last
    reset_by: Initiator | None = None
    # whether the host is going down: then it, or what it runs for that, stops its VMs
    host_going_down: bool = False


NO_TRAIL: Final = Trail()


def follow(trail: Trail, event: Event, operation: Operation | None) -> Trail:
    """Return *trail* after *event*, which is one of TRACES, while *operation* is under way."""
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


def after_stop(trail: Trail, *, time: datetime) -> Trail:
    """Return *trail* after a Stop of ours ended at *time* and left the VM up."""
    return replace(trail, stop_end_time=time)


def who_shut_down(trail: Trail, *, time: datetime) -> Initiator:
    """Return who made the guest shut down in order at *time*."""
    if trail.pressed_by is not None and trail.press_time is not None:
        recent = abs(time - trail.press_time) <= PRESS_COUNTS
        return trail.pressed_by if recent else UNKNOWN_INITIATOR
    return _GUEST if trail.whole and not trail.agent else UNKNOWN_INITIATOR


def who_reset(trail: Trail) -> Initiator:
    """Return who reset the guest last."""
    return trail.reset_by or UNKNOWN_INITIATOR


def _presser(trail: Trail, event: Event, operation: Operation | None) -> Initiator:
    if operation is not None and isinstance(operation.parameters, StopParameters):
        return Initiator(
            kind=InitiatorKind.CLIENT, actor=operation.actor, operation_id=operation.id
        )
    ended = trail.stop_end_time
    if ended is not None and abs(event.observe_time - ended) <= PRESS_COUNTS:
        return UNKNOWN_INITIATOR
    return _OUT_OF_BAND
