"""What a journal may tell: how each transition follows from those before it.

Knows the contract and not the daemon's code. Fed with every transition in order, it holds what a
client holds that applies them all, and tells of each one that cannot be.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Final

from vmagent.v1.operation_pb2 import OperationPhase
from vmagent.v1.transition_pb2 import Transition, TransitionKind
from vmagent.v1.vm_pb2 import InitiatorKind, Source, Vm, VmReason, VmState

from tests.system.history import tell

FINAL: Final = frozenset({
    OperationPhase.OPERATION_PHASE_SUCCEEDED,
    OperationPhase.OPERATION_PHASE_FAILED,
    OperationPhase.OPERATION_PHASE_CANCELLED,
    OperationPhase.OPERATION_PHASE_INTERRUPTED,
})  # fmt: skip

# Which reasons go with which state, as the contract's comments have it.
REASONS: Mapping[str, frozenset[str]] = MappingProxyType(
    {
        state: frozenset(reasons.split()) | {"UNKNOWN"}
        for state, reasons in {
            "STARTING": "STARTING_UP RESTORED REVERTED",
            "RUNNING": "BOOTED RESTORED REVERTED UNPAUSED MIGRATED_IN MIGRATION_CANCELED"
            " SAVE_CANCELED WOKE_UP REBOOTED RESTARTED_AFTER_PANIC POSTCOPY POSTCOPY_FAILED"
            " GUEST_CRASHLOADED",
            "PAUSED": "RESTORED REVERTED POSTCOPY POSTCOPY_FAILED PAUSED_BY_USER MIGRATING SAVING"
            " DUMPING IO_ERROR WATCHDOG SNAPSHOTTING SHUTTING_DOWN API_ERROR GUEST_PANIC",
            "SLEEPING": "SUSPENDED_TO_RAM SUSPENDED_TO_DISK",
            "STOPPING": "GUEST_SHUTDOWN HOST_TERMINATION",
            # and SAVED: memory went to a file of somebody's own, or what was saved was dropped
            "STOPPED": "SAVED REVERTED CLEAN_SHUTDOWN FORCED KILLED_BY_HOST_SIGNAL START_FAILED"
            " STOPPED_BY_LIBVIRTD HOST_REBOOTED DEFINED",
            "SAVED": "SAVED",
            "CRASHED": "PROCESS_DIED GUEST_PANIC",
            "MIGRATING_IN": "MIGRATED_IN",
            "MIGRATED_AWAY": "MIGRATED_AWAY",
            "GONE": "UNDEFINED MISSING",
            "UNRECOGNIZED": "",
        }.items()
    }
)
_ACTIVE = frozenset(
    "STARTING RUNNING PAUSED SLEEPING STOPPING MIGRATING_IN".split()  # noqa: SIM905
)
_INACTIVE = frozenset("STOPPED SAVED MIGRATED_AWAY GONE".split())  # noqa: SIM905

# What each kind of transition may change in a VM that is not gone; `revision` always changes.
_MAY_CHANGE: Mapping[int, frozenset[str]] = MappingProxyType(
    {
        kind: frozenset(names.split())
        for kind, names in (
            (
                TransitionKind.TRANSITION_KIND_STATE,
                "state reason initiator source late earliest_time state_time persistent active"
                " incarnation crash_count unresponsive last_start_error raw_state",
            ),
            (
                TransitionKind.TRANSITION_KIND_REBOOT,
                "reason initiator source late earliest_time state_time",
            ),
            (TransitionKind.TRANSITION_KIND_DEFINITION, "name persistent vcpus memory_bytes"),
            (TransitionKind.TRANSITION_KIND_OPERATION, "active_operation_id last_start_error"),
            (TransitionKind.TRANSITION_KIND_RESPONSIVENESS, "unresponsive"),
        )
    }
)
_FIELDS: Final = tuple(
    name
    for name in (each.name for each in Vm.DESCRIPTOR.fields)
    if name not in {"verify_time", "revision"}
)


@dataclass(slots=True, kw_only=True)
class Course:
    """An operation, as the transitions of its VM tell it."""

    vm: str
    accepted: int
    ended: int = 0
    # an `OperationPhase`, 0 as long as it is open
    phase: int = 0
    # the states its VM was in from its acceptance to its end, with whether it was active
    states: set[tuple[str, bool]] = field(default_factory=set)
    # and its boots
    incarnations: set[int] = field(default_factory=set)
    # whether its VM's guest rebooted, and it is said that this operation had it reboot
    rebooted: bool = False


@dataclass(slots=True)
class Model:
    """What a client holds that has applied every transition so far."""

    revision: int = 0
    vms: dict[str, Vm] = field(default_factory=dict)
    courses: dict[str, Course] = field(default_factory=dict)

    def apply(self, transition: Transition) -> Iterator[str]:
        """Apply the next transition; yield in what it is wrong."""
        vm, before = transition.vm, self.vms.get(transition.vm.uuid)
        if transition.revision != self.revision + 1:
            yield f"revision {transition.revision} after {self.revision}"
        if vm.revision != transition.revision:
            yield f"its VM has revision {vm.revision}"
        yield from _check_itself(transition)
        yield from _check_change(before, transition)
        yield from self._follow_operation(before, transition)
        self.revision = transition.revision
        self.vms[vm.uuid] = vm
        open_one = self.courses.get(vm.active_operation_id)
        if open_one is not None:
            open_one.states.add((state(vm), vm.active))
            open_one.incarnations.add(vm.incarnation)
            by_it = vm.initiator.operation_id == vm.active_operation_id
            open_one.rebooted |= by_it and vm.reason == VmReason.VM_REASON_REBOOTED

    def present(self) -> dict[str, Vm]:
        """Return the VMs that are not gone."""
        return {uuid: vm for uuid, vm in self.vms.items() if state(vm) != "GONE"}

    def _follow_operation(self, before: Vm | None, transition: Transition) -> Iterator[str]:
        told, phase = transition.operation_id, transition.operation_phase
        yield from self._check_initiator(transition.vm)
        if transition.kind != TransitionKind.TRANSITION_KIND_OPERATION:
            if told or phase:
                yield "tells of an operation"
        elif before is None:
            yield "an operation on a VM that was never heard of"
        elif phase == OperationPhase.OPERATION_PHASE_ACCEPTED:
            yield from self._accept(before, transition)
        else:
            yield from self._end(before, transition)

    def _check_initiator(self, vm: Vm) -> Iterator[str]:
        initiator = vm.initiator
        if initiator.kind == InitiatorKind.INITIATOR_KIND_CLIENT:
            course = self.courses.get(initiator.operation_id)
            if course is None or course.vm != vm.uuid:
                yield f"by operation {initiator.operation_id}, which is no operation on this VM"
            if not initiator.actor:
                yield "by a client without a name"
        elif initiator.operation_id or initiator.actor:
            yield "an operation and an actor, though no client did it"

    def _accept(self, before: Vm, transition: Transition) -> Iterator[str]:
        told, vm, was_open = transition.operation_id, transition.vm, before.active_operation_id
        if told in self.courses:
            yield f"operation {told} is accepted again"
        if was_open or vm.active_operation_id != told:
            yield f"operation {told} is accepted, {was_open or 'none'} was under way"
        self.courses[told] = Course(vm=vm.uuid, accepted=transition.revision)

    def _end(self, before: Vm, transition: Transition) -> Iterator[str]:
        told, was_open = transition.operation_id, before.active_operation_id
        course, phase = self.courses.get(told), transition.operation_phase
        if phase not in FINAL:
            yield f"operation {told} ended in phase {phase}"
        if was_open != told or transition.vm.active_operation_id:
            yield f"operation {told} ended, {was_open or 'none'} was under way"
        if course is None:
            yield f"operation {told} ended and was never accepted"
            return
        if course.ended:
            yield f"operation {told} ended before, at revision {course.ended}"
        course.ended, course.phase = transition.revision, phase


def _check_itself(transition: Transition) -> Iterator[str]:
    """Yield in what a transition contradicts itself."""
    vm = transition.vm
    name, reason = state(vm), VmReason.Name(vm.reason).removeprefix("VM_REASON_")
    moves = transition.kind == TransitionKind.TRANSITION_KIND_STATE
    if moves and reason not in REASONS.get(name, ()):
        yield f"{name} for reason {reason}"
    if (name in _ACTIVE and not vm.active) or (name in _INACTIVE and vm.active):
        yield f"{name} and active={vm.active}"
    if name == "GONE" and vm.persistent:
        yield "gone and persistent"
    if transition.late != transition.HasField("earliest_time"):
        yield "late without an earliest time, or the other way round"
    if vm.late != vm.HasField("earliest_time"):
        yield "its VM is late without an earliest time, or the other way round"
    by_event = transition.source == Source.SOURCE_EVENT
    if by_event != transition.HasField("raw_event"):
        yield "an event without its numbers, or the other way round"
    if by_event and transition.late:
        yield "an event that is late"
    if transition.late and _ns(transition.earliest_time) > _ns(transition.time):
        yield "happened before the earliest time at which it can have"
    if not vm.uuid or not vm.name:
        yield "a VM without UUID or name"


def _check_change(before: Vm | None, transition: Transition) -> Iterator[str]:
    """Yield in what a transition does not follow from the record before it."""
    vm = transition.vm
    was = VmState.VM_STATE_UNSPECIFIED if before is None else before.state
    if transition.previous_state != was:
        yield f"was {VmState.Name(was)} before, it says {VmState.Name(transition.previous_state)}"
    changed = {n for n in _FIELDS if _field(before, n) != _field(vm, n)} if before else set()
    born = before is None or state(before) == "GONE"
    if not born:
        odd = changed - _MAY_CHANGE.get(transition.kind, frozenset())
        if odd:
            yield f"changes {', '.join(sorted(odd))}"
    if before is not None and not changed - {"source", "state_time", "late", "earliest_time"}:
        echo = transition.kind != TransitionKind.TRANSITION_KIND_REBOOT
        if echo:
            yield "tells nothing new"
    boots = vm.incarnation - (before.incarnation if before else 0)
    came_up = vm.active and not (before and before.active)
    if boots not in ({1} if came_up else {0, 1} if vm.active else {0}):
        yield f"{boots} boots, active {bool(before and before.active)} -> {vm.active}"
    crashes = vm.crash_count - (before.crash_count if before else 0)
    crashed = state(vm) == "CRASHED" and not (before and state(before) == "CRASHED")
    # a new process that crashed as the one before it did is another crash
    if crashes != int(crashed) and not (boots and crashes == 1):
        yield f"{crashes} crashes"
    forgot = (
        before is not None
        and not boots
        and (vm.state, vm.active) == (before.state, before.active)
        and vm.reason == VmReason.VM_REASON_UNKNOWN != before.reason
    )
    if forgot:
        yield "forgets the reason"


def state(vm: Vm) -> str:
    """Return the name of its state, short."""
    return VmState.Name(vm.state).removeprefix("VM_STATE_")


def line(transition: Transition) -> str:
    """Return a transition in one line."""
    return f"{transition.revision}: {transition.vm.name} {tell(transition)}"


def _field(vm: Vm | None, name: str) -> object:
    if vm is None:
        return None
    of = Vm.DESCRIPTOR.fields_by_name[name]
    if of.message_type is not None and not vm.HasField(name):  # type: ignore[arg-type]
        return None
    return getattr(vm, name)


def _ns(time: object) -> int:
    return int(time.ToNanoseconds())  # type: ignore[attr-defined]
