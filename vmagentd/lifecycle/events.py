"""What an event makes of a VM.

A VM's *standing* sorts its states by what can follow. `EVENTS` says for each event and standing
what the VM becomes; no entry means that the event tells nothing new there: it repeats what is
known, as STARTED does after RESUMED. Where an event does not tell all, the verdict carries
*doubt*, and libvirt is asked about that VM.

What does not fit the table stands below it: a resume ends a start for the start's own reason, a
reboot does not change the state, a definition is not a state, and the end of an earlier
hypervisor process is not applied to the one that runs now.
"""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from enum import Enum, auto
from types import MappingProxyType
from typing import TYPE_CHECKING

from vmagentd.lifecycle.moves import COARSER, Change, To, Verdict, move
from vmagentd.lifecycle.trails import NO_TRAIL, TRACES, Trail, is_of_ended_run, who_reset
from vmagentd.model import (
    UNKNOWN_INITIATOR,
    Event,
    EventKind,
    Operation,
    OperationPhase,
    Reason,
    Source,
    TransitionKind,
    Vm,
    VmState,
)

if TYPE_CHECKING:
    from collections.abc import Mapping

# One guest reboot makes two or three REBOOT events within 25 to 45 ms (measured, QEMU 7.2); no
# guest boots and reboots again within this time.
REBOOT_ECHO = timedelta(seconds=0.5)


class Standing(Enum):
    """Where a VM stands, as far as the next event cares."""

    OFF = auto()  # no hypervisor process, or never heard of
    COMING = auto()  # a process, the guest does not run yet
    UP = auto()  # the guest runs
    HELD = auto()  # the guest could run on
    ENDING = auto()  # going down, the process is still there
    DEAD = auto()  # crashed, the process was preserved


STANDINGS: Mapping[VmState, Standing] = MappingProxyType({
    VmState.STARTING: Standing.COMING,
    VmState.RUNNING: Standing.UP,
    VmState.PAUSED: Standing.HELD,
    VmState.SLEEPING: Standing.HELD,
    VmState.STOPPING: Standing.ENDING,
    VmState.STOPPED: Standing.OFF,
    VmState.SAVED: Standing.OFF,
    VmState.CRASHED: Standing.DEAD,
    VmState.MIGRATING_IN: Standing.COMING,
    VmState.MIGRATED_AWAY: Standing.OFF,
    VmState.GONE: Standing.OFF,
    VmState.UNRECOGNIZED: Standing.UP,
})  # fmt: skip

_OFF, _COMING, _UP = Standing.OFF, Standing.COMING, Standing.UP
_HELD, _ENDING, _DEAD = Standing.HELD, Standing.ENDING, Standing.DEAD
_ON = (_COMING, _UP, _HELD, _ENDING, _DEAD)


def _row(state: VmState, reason: Reason, *standings: Standing) -> dict[Standing, To]:
    return dict.fromkeys(standings or tuple(Standing), To(state, reason))


def _paused(reason: Reason) -> dict[Standing, To]:
    return _row(VmState.PAUSED, reason)


def _runs_on(reason: Reason, *, from_off: Reason) -> dict[Standing, To]:
    """The guest runs on; one that was COMING arrives instead, see `_ARRIVALS`."""
    return {
        **_row(VmState.RUNNING, reason, _HELD, _ENDING, _DEAD),
        **_row(VmState.RUNNING, from_off, _OFF),
    }


_NOTHING: Mapping[Standing, To] = MappingProxyType({})

EVENTS: Mapping[EventKind, Mapping[Standing, To]] = MappingProxyType({
    EventKind.STARTED_BOOTED: _row(VmState.STARTING, Reason.STARTING_UP, _OFF),
    EventKind.STARTED_RUNNING: _row(VmState.RUNNING, Reason.BOOTED, _OFF, _COMING),
    EventKind.STARTED_MIGRATED: _row(VmState.MIGRATING_IN, Reason.MIGRATED_IN, _OFF),
    # a query that was faster saw it coming, or waiting for its memory, and not from where
    EventKind.STARTED_RESTORED: _row(VmState.STARTING, Reason.RESTORED, _OFF, _COMING, _HELD),
    EventKind.STARTED_FROM_SNAPSHOT: _row(
        VmState.STARTING, Reason.REVERTED, _OFF, _COMING, _HELD
    ),
    EventKind.STARTED_WAKEUP: _row(VmState.RUNNING, Reason.WOKE_UP, _OFF, _HELD),
    # not of a guest that is dead: libvirt can tell the pause after the panic that came after it
    EventKind.SUSPENDED_PAUSED: _row(
        VmState.PAUSED, Reason.PAUSED_BY_USER, _OFF, _COMING, _UP, _HELD, _ENDING
    ),
    EventKind.SUSPENDED_MIGRATED: _paused(Reason.MIGRATING),
    EventKind.SUSPENDED_IOERROR: _paused(Reason.IO_ERROR),
    EventKind.SUSPENDED_WATCHDOG: _paused(Reason.WATCHDOG),
    EventKind.SUSPENDED_RESTORED: _paused(Reason.RESTORED),
    EventKind.SUSPENDED_FROM_SNAPSHOT: _paused(Reason.REVERTED),
    EventKind.SUSPENDED_API_ERROR: _paused(Reason.API_ERROR),
    EventKind.SUSPENDED_POSTCOPY: _paused(Reason.POSTCOPY),
    EventKind.SUSPENDED_POSTCOPY_FAILED: _paused(Reason.POSTCOPY_FAILED),
    EventKind.RESUMED_UNPAUSED: _runs_on(Reason.UNPAUSED, from_off=Reason.BOOTED),
    # held and not coming: the source host, where the migration failed and the guest goes on
    EventKind.RESUMED_MIGRATED: _runs_on(Reason.MIGRATION_CANCELED, from_off=Reason.MIGRATED_IN),
    EventKind.RESUMED_FROM_SNAPSHOT: _runs_on(Reason.REVERTED, from_off=Reason.REVERTED),
    EventKind.RESUMED_POSTCOPY: _row(VmState.RUNNING, Reason.POSTCOPY),
    EventKind.RESUMED_POSTCOPY_FAILED: _row(VmState.RUNNING, Reason.POSTCOPY_FAILED),
    EventKind.SHUTDOWN_GUEST: _row(VmState.STOPPING, Reason.GUEST_SHUTDOWN, *_ON),
    # destroy() says this after the VM is off already: nothing new if a query was faster
    EventKind.SHUTDOWN_HOST: _row(VmState.STOPPING, Reason.HOST_TERMINATION, *_ON),
    EventKind.STOPPED_SHUTDOWN: {
        **_row(VmState.STOPPED, Reason.CLEAN_SHUTDOWN),
        # SIGTERM to QEMU: only SHUTDOWN_HOST before it tells it from a guest's own shutdown
        _ENDING: To(VmState.STOPPED, Reason.KILLED_BY_HOST_SIGNAL),
    },
    EventKind.STOPPED_DESTROYED: _row(VmState.STOPPED, Reason.FORCED),
    EventKind.STOPPED_CRASHED: _row(VmState.CRASHED, Reason.GUEST_PANIC),
    EventKind.STOPPED_MIGRATED: _row(VmState.MIGRATED_AWAY, Reason.MIGRATED_AWAY),
    EventKind.STOPPED_SAVED: _row(VmState.SAVED, Reason.SAVED),
    # FAILED does not mean "failed to start", unless the guest never ran
    EventKind.STOPPED_FAILED: {
        **_row(VmState.CRASHED, Reason.PROCESS_DIED),
        _COMING: To(VmState.STOPPED, Reason.START_FAILED),
    },
    EventKind.STOPPED_FROM_SNAPSHOT: _row(VmState.STOPPED, Reason.REVERTED),
    EventKind.PMSUSPENDED_MEMORY: _row(VmState.SLEEPING, Reason.SUSPENDED_TO_RAM),
    EventKind.PMSUSPENDED_DISK: _row(VmState.SLEEPING, Reason.SUSPENDED_TO_DISK),
    EventKind.CRASHED_PANICKED: _row(VmState.CRASHED, Reason.GUEST_PANIC),
    EventKind.CRASHED_CRASHLOADED: _row(VmState.RUNNING, Reason.GUEST_CRASHLOADED),
    # a guest that panicked is restarted in its process; for any other see `_on_reboot`
    EventKind.REBOOT: _row(VmState.RUNNING, Reason.RESTARTED_AFTER_PANIC, _DEAD),
    EventKind.UNRECOGNIZED: _row(VmState.UNRECOGNIZED, Reason.UNKNOWN),
    # a definition is not a state, see `_on_definition_event`
    EventKind.DEFINED: _NOTHING,
    EventKind.DEFINED_RENAMED: _NOTHING,
    EventKind.UNDEFINED: _NOTHING,
    EventKind.UNDEFINED_RENAMED: _NOTHING,
    EventKind.CONTROL_ERROR: _NOTHING,
    # traces tell who, not what, see `trails`
    **dict.fromkeys(TRACES, _NOTHING),
})  # fmt: skip

# Phases of an operation in which the guest has been asked, or is being reset.
_ASKED = frozenset({OperationPhase.SIGNALLED, OperationPhase.FORCING})

# RUNNING for what reason, once a guest that was COMING for that reason runs.
_ARRIVALS: Mapping[Reason, Reason] = MappingProxyType({
    Reason.STARTING_UP: Reason.BOOTED,
    Reason.RESTORED: Reason.RESTORED,
    Reason.REVERTED: Reason.REVERTED,
    Reason.MIGRATED_IN: Reason.MIGRATED_IN,
})  # fmt: skip

_DEFINITION = frozenset({
    EventKind.DEFINED,
    EventKind.DEFINED_RENAMED,
    EventKind.UNDEFINED,
    EventKind.UNDEFINED_RENAMED,
})  # fmt: skip
_RESUMED = frozenset({
    EventKind.RESUMED_UNPAUSED,
    EventKind.RESUMED_MIGRATED,
    EventKind.RESUMED_FROM_SNAPSHOT,
})  # fmt: skip
_STOPPED = frozenset(kind for kind in EventKind if kind.startswith("STOPPED_"))
_ENDS = _STOPPED | {EventKind.SHUTDOWN_GUEST, EventKind.SHUTDOWN_HOST}
# Events after which libvirt knows more than the event told.
_DOUBTFUL = frozenset({
    EventKind.STARTED_BOOTED,
    EventKind.STARTED_RESTORED,
    EventKind.STARTED_FROM_SNAPSHOT,
    EventKind.SUSPENDED_MIGRATED,
    EventKind.STOPPED_SAVED,
    EventKind.CRASHED_CRASHLOADED,
    EventKind.UNRECOGNIZED,
})  # fmt: skip


def on_event(
    vm: Vm | None, event: Event, operation: Operation | None, trail: Trail = NO_TRAIL
) -> Verdict:
    """Return what *event* makes of *vm*.

    Args:
        vm: the VM before it, None if it was never heard of.
        event: what libvirt said.
        operation: what is being carried out on the VM.
        trail: what else was heard of its hypervisor process.
    """
    if event.kind in TRACES or event.kind is EventKind.CONTROL_ERROR:
        # an operation that fails looks by itself
        return Verdict(doubt=event.kind not in TRACES and operation is None)
    if event.kind in _DEFINITION:
        return _on_definition_event(vm, event)
    another_run = vm is not None and _is_another_run(vm, event)
    # of a process that has ended the end is told all the same: its reason may be the better one
    old = event.kind not in _STOPPED and is_of_ended_run(event, trail)
    if old or (another_run and event.kind in _ENDS):
        return Verdict(doubt=True)
    standing = _OFF if vm is None or another_run or not vm.active else STANDINGS[vm.state]
    if vm is not None and event.kind is EventKind.REBOOT and standing not in {_OFF, _DEAD}:
        return _on_reboot(vm, event, operation, trail)
    to = _target(vm, event, standing)
    if to is None:  # nothing new, or, on a VM that is off or dead, what cannot be: look
        return Verdict(doubt=standing in {_OFF, _DEAD})
    before = vm or _newborn(event)
    unrecognized = event.kind is EventKind.UNRECOGNIZED
    after = move(
        before,
        to,
        active=before.active if unrecognized else event.kind not in _STOPPED,
        run_id=event.run_id,
        time=event.observe_time,
        source=Source.EVENT,
        operation=operation,
        trail=trail,
    )
    if unrecognized:
        after = replace(after, raw_state=event.raw)
    changed = vm is None or another_run or _differ(before, after)
    return Verdict(
        changes=(Change(kind=TransitionKind.STATE, vm=after),) if changed else (),
        doubt=(
            event.kind in _DOUBTFUL
            or after.vcpus == 0  # its size was never told
            or before.state is VmState.GONE  # it may have come back with another size
            or after.name != event.name
            or not (after.active or after.persistent)  # gone, unless a look-up finds it
            # a save that broke off while nobody listened may have left its image
            or (event.kind in _STOPPED and not trail.whole)
        ),
    )


def _newborn(event: Event) -> Vm:
    """Return the record that a VM's first event is applied to. It is never shown."""
    return Vm(
        uuid=event.vm,
        name=event.name,
        state=VmState.GONE,
        reason=Reason.UNKNOWN,
        initiator=UNKNOWN_INITIATOR,
        source=Source.EVENT,
        state_time=event.observe_time,
    )


def _is_another_run(vm: Vm, event: Event) -> bool:
    return vm.active and None not in {event.run_id, vm.run_id} and event.run_id != vm.run_id


def _differ(before: Vm, after: Vm) -> bool:
    return (before.state, before.reason, before.active) != (
        after.state,
        after.reason,
        after.active,
    )


def _target(vm: Vm | None, event: Event, standing: Standing) -> To | None:
    """Return the table's answer, corrected by why the VM stands where it stands."""
    to = EVENTS[event.kind].get(standing)
    if vm is None:
        return to
    if standing is _OFF and to is not None and vm.reason in COARSER.get(to.reason, ()):
        return None  # a query was faster
    if standing is _COMING and event.kind in _RESUMED:
        return To(VmState.RUNNING, _ARRIVALS.get(vm.reason, Reason.BOOTED))
    if event.kind is EventKind.STOPPED_SHUTDOWN and vm.reason is not Reason.HOST_TERMINATION:
        return To(VmState.STOPPED, Reason.CLEAN_SHUTDOWN)
    if event.kind is EventKind.REBOOT and standing is _OFF:
        return None
    return to


def _on_reboot(vm: Vm, event: Event, operation: Operation | None, trail: Trail) -> Verdict:
    """A reboot leaves the state as it is; a running guest's reason tells of it."""
    since = abs(event.observe_time - vm.state_time)
    by = who_reset(trail, operation)
    if vm.reason is Reason.REBOOTED and since < REBOOT_ECHO:
        # one that was just asked for is no echo of the one before
        asked = by == trail.reset_by or (operation and operation.phase in _ASKED)
        if by.operation_id in {None, vm.initiator.operation_id} or not asked:
            return Verdict()
    running = vm.state is VmState.RUNNING
    after = replace(
        vm,
        reason=Reason.REBOOTED if running else vm.reason,
        initiator=by if running else vm.initiator,
        source=Source.EVENT,
        state_time=event.observe_time if running else vm.state_time,
        earliest_time=None,
    )
    return Verdict(changes=(Change(kind=TransitionKind.REBOOT, vm=after),))


def _on_definition_event(vm: Vm | None, event: Event) -> Verdict:
    """Name and persistence follow from the event, the size from the query after it."""
    if event.kind is EventKind.UNDEFINED_RENAMED:
        return Verdict()  # DEFINED_RENAMED follows and tells the new name
    if event.kind is EventKind.UNDEFINED:
        # gone only once a look-up says so
        return _defined(vm, persistent=False, name=event.name) if vm else Verdict()
    if vm is not None and vm.state is not VmState.GONE:
        return _defined(vm, persistent=True, name=event.name)
    if event.run_id is not None:
        return Verdict(doubt=True)  # it is active and we never knew: only a query tells how
    born = move(
        replace(vm or _newborn(event), name=event.name, persistent=True),
        To(VmState.STOPPED, Reason.DEFINED),
        active=False,
        run_id=None,
        time=event.observe_time,
        source=Source.EVENT,
        operation=None,
    )
    return Verdict(changes=(Change(kind=TransitionKind.STATE, vm=born),), doubt=True)


def _defined(vm: Vm, *, persistent: bool, name: str) -> Verdict:
    after = replace(vm, persistent=persistent, name=name)
    changes = (Change(kind=TransitionKind.DEFINITION, vm=after),) if after != vm else ()
    return Verdict(changes=changes, doubt=True)
