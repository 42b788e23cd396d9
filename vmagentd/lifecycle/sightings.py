"""What a query makes of a VM.

A query says what is now, not how it came. So it changes only what it contradicts, and it does not
replace a reason that is known by one that libvirt has forgotten: a restart of libvirtd turns the
reason of every VM that is off into UNKNOWN (measured, libvirt 9.0).
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from vmagentd.lifecycle.moves import COARSER, Change, To, Verdict, move
from vmagentd.lifecycle.trails import NO_TRAIL, Trail
from vmagentd.model import (
    UNKNOWN_INITIATOR,
    InitiatorKind,
    Operation,
    Reason,
    Sighting,
    Source,
    StartParameters,
    TransitionKind,
    Vm,
    VmState,
)

if TYPE_CHECKING:
    from datetime import datetime

# Off, for a reason that libvirt may have forgotten.
_REMEMBERED = frozenset({VmState.STOPPED, VmState.CRASHED, VmState.MIGRATED_AWAY})
# A guest that waits for its memory shows as paused for a migration, whichever way it comes.
_ARRIVING = frozenset({VmState.STARTING, VmState.MIGRATING_IN})


def on_sighting(
    vm: Vm | None,
    seen: Sighting,
    *,
    time: datetime,
    source: Source,
    operation: Operation | None,
    trail: Trail = NO_TRAIL,
    first: bool = False,
) -> Verdict:
    """Return what having *seen* a VM at *time* makes of *vm*, None if it was never heard of.

    Args:
        vm: the VM before.
        seen: what the query found.
        time: when the query began.
        source: who asked.
        operation: what is being carried out on the VM.
        trail: what else is known of it.
        first: whether it is the first query on it since the link came up.
    """
    if vm is None or vm.state is VmState.GONE:
        before = vm or _newborn(seen, time)
        return Verdict(
            changes=(
                _moved(before, seen, time=time, source=source, operation=operation, trail=trail),
            )
        )
    changes = []
    defined = _defined(vm, seen)
    if defined is not vm:
        changes.append(Change(kind=TransitionKind.DEFINITION, vm=defined))
    another_run = _is_another_run(vm, seen, first=first)
    if another_run or _contradicts(vm, seen, starting=_is_start(operation)):
        before = replace(defined, active=False) if another_run else defined  # its own has ended
        changes.append(
            _moved(before, seen, time=time, source=source, operation=operation, trail=trail)
        )
    last = changes[-1].vm if changes else vm
    if (last.unresponsive is None) != (seen.unresponsive is None):
        hung = replace(last, unresponsive=seen.unresponsive)
        changes.append(Change(kind=TransitionKind.RESPONSIVENESS, vm=hung))
    return Verdict(changes=tuple(changes))


def confirm(vm: Vm, seen: Sighting | None, *, time: datetime) -> Vm:
    """Return *vm* with what a query confirms and no transition tells: it was true at *time*."""
    if seen is None or not (seen.active and vm.active):
        return replace(vm, verify_time=time)
    return replace(
        vm,
        verify_time=time,
        run_id=seen.run_id or vm.run_id,
        cpu_time=vm.cpu_time if seen.cpu_time is None else seen.cpu_time,
    )


def on_absence(
    vm: Vm,
    *,
    time: datetime,
    source: Source,
    operation: Operation | None,
    undefined: bool = False,
) -> Verdict | None:
    """Return what a successful query that did not find *vm* makes of it; None: it is not believed.

    It is not while a Start is in flight, unless the Start itself did not find it: between two
    calls of whoever starts a VM, libvirt may not know it.

    Args:
        vm: the VM before.
        time: when the query began.
        source: who asked.
        operation: what is being carried out on the VM.
        undefined: whether an event told that its definition was removed.
    """
    if vm.state is VmState.GONE:
        return Verdict()
    if _is_start(operation) and source is not Source.OPERATION:
        return None
    expected = not vm.active and not vm.persistent
    earliest = None if expected else _last_certain(vm, time)
    gone = move(
        replace(vm, persistent=False),
        To(VmState.GONE, Reason.UNDEFINED if expected else Reason.MISSING),
        active=False,
        run_id=None,
        time=time,
        source=source,
        operation=None,
        earliest_time=earliest,
    )
    if expected and not undefined:  # it went because it ended: whoever ended it did this
        gone = replace(gone, initiator=vm.initiator)
    return Verdict(changes=(Change(kind=TransitionKind.STATE, vm=gone, earliest_time=earliest),))


def on_host_boot(vm: Vm, *, time: datetime) -> Verdict:
    """Return what a boot of the host since the last daemon makes of *vm*.

    A process does not outlive its host. Whether the VM was started again since is for the first
    survey to find.
    """
    if not vm.active:
        return Verdict()
    earliest = _last_certain(vm, time)
    after = move(
        vm,
        To(VmState.STOPPED, Reason.HOST_REBOOTED),
        active=False,
        run_id=None,
        time=time,
        source=Source.SURVEY,
        operation=None,
        earliest_time=earliest,
    )
    return Verdict(changes=(Change(kind=TransitionKind.STATE, vm=after, earliest_time=earliest),))


def _newborn(seen: Sighting, time: datetime) -> Vm:
    """Return the record that a VM's first sighting is applied to. It is never shown."""
    return Vm(
        uuid=seen.vm,
        name=seen.name,
        state=VmState.GONE,
        reason=Reason.UNKNOWN,
        initiator=UNKNOWN_INITIATOR,
        source=Source.SURVEY,
        state_time=time,
    )


def _defined(vm: Vm, seen: Sighting) -> Vm:
    known = (vm.name, vm.persistent, vm.vcpus, vm.memory_bytes)
    if known == (seen.name, seen.persistent, seen.vcpus, seen.memory_bytes):
        return vm  # as nearly always: a copy for each VM is a third of what a survey costs
    return replace(
        vm,
        name=seen.name,
        persistent=seen.persistent,
        vcpus=seen.vcpus,
        memory_bytes=seen.memory_bytes,
    )


def _moved(
    before: Vm,
    seen: Sighting,
    *,
    time: datetime,
    source: Source,
    operation: Operation | None,
    trail: Trail,
) -> Change:
    """Return the move to the state *seen*.

    It is late, unless it is the first sighting ever, the operation's own doing, or STARTING, which
    libvirt has no event for.
    """
    known = before.revision and seen.state is not VmState.STARTING
    earliest = _last_certain(before, time) if known else None
    after = move(
        _defined(before, seen),
        To(seen.state, _reason(before, seen)),
        active=seen.active,
        run_id=seen.run_id,
        time=time,
        source=source,
        operation=operation,
        trail=trail,
        earliest_time=earliest,
    )
    if after.initiator.kind is InitiatorKind.CLIENT:
        after, earliest = replace(after, earliest_time=None), None
    if after.state is VmState.UNRECOGNIZED:
        after = replace(after, raw_state=seen.raw)
    return Change(kind=TransitionKind.STATE, vm=after, earliest_time=earliest)


def _reason(before: Vm, seen: Sighting) -> Reason:
    """Return why it is in the state *seen*, with what was known of its end before it ended."""
    if before.active and not seen.active:
        if before.state is seen.state and before.reason in COARSER.get(seen.reason, ()):
            return before.reason
        if (before.reason, seen.reason) == (Reason.HOST_TERMINATION, Reason.CLEAN_SHUTDOWN):
            return Reason.KILLED_BY_HOST_SIGNAL
    return seen.reason


def _is_another_run(vm: Vm, seen: Sighting, *, first: bool) -> bool:
    if not (vm.active and seen.active):
        return False
    if None not in {vm.run_id, seen.run_id} and vm.run_id != seen.run_id:
        return True
    # libvirtd may have begun to count anew before the link came up: it may be another one all the
    # same. While the link holds it cannot, and of two queries at once either may look first.
    if not first or vm.cpu_time is None or seen.cpu_time is None:
        return False
    return seen.cpu_time < vm.cpu_time


def _last_certain(vm: Vm, time: datetime) -> datetime:
    """Return the last time before *time* at which the record certainly was true.

    That is *time* itself if the host's clock was set back since.
    """
    return min(max(vm.state_time, vm.verify_time or vm.state_time), time)


def _is_start(operation: Operation | None) -> bool:
    return operation is not None and isinstance(operation.parameters, StartParameters)


# Reasons to be paused while libvirt does something. A query that finds another one was later than
# that; an event says one of these for longer.
_JOBS = frozenset({
    Reason.MIGRATING,
    Reason.SAVING,
    Reason.DUMPING,
    Reason.SNAPSHOTTING,
})  # fmt: skip


def _contradicts(vm: Vm, seen: Sighting, *, starting: bool) -> bool:
    if seen.state is VmState.PAUSED and seen.reason is Reason.MIGRATING and vm.state in _ARRIVING:
        # Where no event told that it arrives and nobody of ours waits for it, it may have
        # arrived unseen: a VM that was saved paused shows like this for as long as it is paused.
        return vm.reason is Reason.STARTING_UP and not starting
    if seen.reason is Reason.UNKNOWN and not seen.active:
        forgotten = seen.state is VmState.STOPPED and vm.state in _REMEMBERED
        return vm.active or not (forgotten or seen.state is vm.state)
    if (seen.state, seen.active) != (vm.state, vm.active):
        return True
    if Reason.UNKNOWN in {seen.reason, vm.reason}:
        return vm.reason is Reason.UNKNOWN and seen.reason is not Reason.UNKNOWN
    if seen.active:
        # Among reasons to run the event's is the better one; a pause may have a deeper reason. But
        # MIGRATING is no such: an event tells of a guest that is paused for that, and without one
        # it is what a VM shows that was saved paused, for as long as it is paused.
        passing = vm.reason in _JOBS and vm.source is not Source.EVENT
        deeper = vm.reason is Reason.PAUSED_BY_USER and seen.reason is not Reason.MIGRATING
        return (passing or deeper) and seen.reason is not vm.reason
    # off for another reason than the one we know: it was up in between
    return seen.reason is not vm.reason and vm.reason not in COARSER.get(seen.reason, ())
