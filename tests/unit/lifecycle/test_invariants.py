"""Whatever comes in whatever order: what must hold of every transition, and does."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from tests.unit.lifecycle.story import FORCED_STOP, OFF, PAUSE, REBOOT, START, STOP, Story
from vmagentd.hypervisor.translate import STATES
from vmagentd.lifecycle.steps import STEPS
from vmagentd.lifecycle.trails import NOT_ASKED, TRACES
from vmagentd.model import (
    EventKind,
    InitiatorKind,
    Operation,
    OperationFailure,
    OperationPhase,
    Parameters,
    Reason,
    Source,
    StartParameters,
    Transition,
    TransitionKind,
    Vm,
    VmState,
)

KINDS = st.sampled_from(EventKind)
# Few processes, so that the same one often comes again; None is what libvirt says of some stops.
RUNS = st.sampled_from([None, 1, 2, 3])
# Every state that libvirt can answer with, and its reasons.
SIGHTINGS = st.sampled_from(sorted({pair for reasons in STATES.values() for pair in reasons}))
# What an operation may have brought about, or what tells who did.
CLAIMED = TRACES | {
    EventKind.REBOOT,
    EventKind.SHUTDOWN_GUEST,
    EventKind.STOPPED_SHUTDOWN,
    EventKind.STOPPED_DESTROYED,
    EventKind.SUSPENDED_PAUSED,
    EventKind.RESUMED_UNPAUSED,
}
NAMES = st.sampled_from(["a", "b"])
FAILURE = OperationFailure(error="GraceExpired", message="it did not")
# Fields that a transition of a kind may change, beside its revision.
MAY_CHANGE = {
    TransitionKind.DEFINITION: {"name", "persistent", "vcpus", "memory_bytes"},
    TransitionKind.OPERATION: {"active_operation_id", "last_start_error"},
    TransitionKind.REBOOT: {"reason", "initiator", "source", "state_time", "earliest_time"},
}


def differences(before: Vm, after: Vm) -> set[str]:
    names = set(Vm.__slots__) - {
        "revision",
        "verify_time",
        "run_id",
        "cpu_time",
    }  # told by no transition
    return {name for name in names if getattr(before, name) != getattr(after, name)}


def check(before: Vm | None, transition: Transition) -> None:
    """Check one transition against the VM as it was right before."""
    vm = transition.vm
    assert vm.revision == transition.revision
    assert transition.previous_state == (before.state if before else None)
    # state and activity
    assert not (vm.active and vm.state in OFF)
    assert not (vm.state is VmState.GONE and vm.persistent)
    assert vm.active or vm.run_id is None
    if not vm.active:
        assert vm.state in OFF | {VmState.CRASHED, VmState.UNRECOGNIZED}
    assert (vm.raw_state is not None) == (vm.state is VmState.UNRECOGNIZED)
    # counters
    incarnation = before.incarnation if before else 0
    crashes = before.crash_count if before else 0
    was_active = before is not None and before.active
    was_crashed = before is not None and before.state is VmState.CRASHED
    run_id = before.run_id if before else None
    another = None not in {run_id, vm.run_id} and run_id != vm.run_id
    boots = vm.incarnation - incarnation
    if boots and was_active and not another:  # of the same number, and has used less of the CPUs
        assert before is not None
        assert before.cpu_time is not None
        assert (boots, vm.active, transition.source is Source.EVENT) == (1, True, False)
    else:
        assert boots == (vm.active and (not was_active or another))
    assert vm.crash_count - crashes == (vm.state is VmState.CRASHED and not was_crashed)
    # who and when
    known = vm.initiator.actor is not None, vm.initiator.operation_id is not None
    assert known == (vm.initiator.kind is InitiatorKind.CLIENT,) * 2
    assert vm.state_time <= transition.time
    assert transition.earliest_time is None or transition.earliest_time <= transition.time
    if transition.source is Source.EVENT:
        assert transition.earliest_time is None
    # the kind says what changed, and something did
    if transition.kind is TransitionKind.STATE:
        assert (vm.state_time, vm.source) == (transition.time, transition.source)
        assert vm.earliest_time == transition.earliest_time
    if before is None:
        assert transition.kind is TransitionKind.STATE
        return
    changed = differences(before, vm)
    if transition.kind is TransitionKind.STATE:
        assert changed & {"state", "reason", "active", "incarnation"}
        assert "active_operation_id" not in changed
    else:
        assert changed <= MAY_CHANGE[transition.kind]
        assert changed or transition.kind is TransitionKind.REBOOT


class Machine(RuleBasedStateMachine):
    """One VM that anything happens to."""

    def __init__(self) -> None:
        super().__init__()
        self.story = Story()
        self.asked: Operation | None = None
        self.before: Vm | None = None
        self.checked = 0

    @property
    def under_way(self) -> Operation | None:
        """What was asked for last, unless it is over: libvirt's answer may have ended it."""
        over = self.asked is not None and self.story.kept[self.asked.id].phase.final
        return None if over else self.asked

    @initialize(vm=st.booleans())
    def _begin(self, *, vm: bool) -> None:
        if vm:
            self.story.see("STOPPED", "UNKNOWN")

    @rule(kind=KINDS, run_id=RUNS, name=NAMES, twice=st.booleans())
    def hear(self, kind: EventKind, run_id: int | None, name: str, *, twice: bool) -> None:
        self.story.hear(kind, run_id, name=name)
        if twice and kind is not EventKind.REBOOT:  # late enough it is another reboot
            assert not self.story.hear(kind, run_id, name=name)

    @rule(
        pair=SIGHTINGS,
        run_id=RUNS,
        name=NAMES,
        cpu_s=st.none() | st.integers(0, 3),
        persistent=st.booleans(),
        mine=st.booleans(),
    )
    def see(
        self,
        pair: tuple[VmState, Reason],
        run_id: int | None,
        name: str,
        cpu_s: int | None,
        *,
        persistent: bool,
        mine: bool,
    ) -> None:
        source = Source.OPERATION if mine and self.under_way else Source.SURVEY
        before = self.story.vm if self.story.known else None
        self.story.see(*pair, run_id, name=name, persistent=persistent, cpu_s=cpu_s, source=source)
        vm = self.story.vm
        assert vm.verify_time == self.story.now
        if (
            pair[1] is Reason.UNKNOWN
            and before is not None
            and (before.state, before.active) == (vm.state, vm.active)
        ):
            same_run = before.incarnation == vm.incarnation
            assert vm.reason is before.reason or not same_run or vm.state is VmState.GONE

    @precondition(lambda self: self.story.known)
    @rule(mine=st.booleans())
    def miss(self, *, mine: bool) -> None:
        source = Source.OPERATION if mine and self.under_way else Source.SURVEY
        starting = self.under_way and isinstance(self.under_way.parameters, StartParameters)
        before = self.story.vm.state
        self.story.miss(source=source)
        kept = starting and source is Source.SURVEY
        assert self.story.vm.state is (before if kept else VmState.GONE)

    @precondition(lambda self: self.story.events > 0)
    @rule(pair=st.none() | SIGHTINGS)
    def answer_too_late(self, pair: tuple[VmState, Reason] | None) -> None:
        """A query that began before the last event."""
        seen = self.story.sighting(*pair, 1) if pair else None
        since, source = self.story.events, Source.SURVEY
        self.story.hear(EventKind.DEFINED)
        assert not self.story.ask(seen, since_event=since, source=source)
        assert self.story.uuid in self.story.doubts

    @rule(pair=st.none() | SIGHTINGS)
    def answer_in_the_wrong_order(self, pair: tuple[VmState, Reason] | None) -> None:
        """A query that began before the last one that was believed."""
        first = self.story.begin_query()
        self.story.see("RUNNING", "BOOTED", 1)
        assert not self.story.ask(self.story.sighting(*pair, 1) if pair else None, number=first)
        assert self.story.uuid in self.story.doubts

    @rule()
    def lose_link(self) -> None:
        revision = self.story.head
        self.story.lose_link()
        assert self.story.head == revision  # blindness is no change of a VM

    @rule(count=st.integers(1, 3))
    def lose_events(self, count: int) -> None:
        revision = self.story.head
        self.story.lose_events(count)
        assert self.story.head == revision
        assert self.story.uuid in self.story.doubts

    @precondition(lambda self: self.story.known and self.under_way is None)
    @rule(parameters=st.sampled_from([START, STOP, FORCED_STOP, REBOOT, PAUSE]))
    def accept(self, parameters: Parameters) -> None:
        self.asked = self.story.accept(parameters)

    @precondition(lambda self: self.under_way is not None)
    @rule(data=st.data())
    def take_step(self, data: st.DataObject) -> None:
        assert self.under_way is not None
        following = sorted(p for p in STEPS[self.under_way.phase] if not p.final)
        phase: OperationPhase = data.draw(st.sampled_from(following))
        self.asked = self.story.take_step(self.under_way, phase)

    @precondition(lambda self: self.under_way is not None)
    @rule()
    def answer(self) -> None:
        assert self.under_way is not None
        self.story.answer(self.under_way)

    @precondition(lambda self: self.under_way is not None)
    @rule(failed=st.booleans())
    def finish(self, *, failed: bool) -> None:
        assert self.under_way is not None
        self.story.finish(self.under_way, failure=FAILURE if failed else None)

    @invariant()
    def every_transition_is_sound(self) -> None:
        for transition in self.story.transitions[self.checked :]:
            check(self.before, transition)
            self.before = transition.vm
        if self.before is not None:
            assert not differences(self.before, self.story.vm)  # they tell all
            self.before = self.story.vm
        self.checked = len(self.story.transitions)

    @invariant()
    def revisions_have_no_hole(self) -> None:
        revisions = [transition.revision for transition in self.story.transitions]
        assert revisions == list(range(1, self.story.head + 1))

    @invariant()
    def the_vm_bears_the_operation_that_is_under_way(self) -> None:
        if self.story.known:
            expected = self.under_way.id if self.under_way else None
            assert self.story.vm.active_operation_id == expected

    @invariant()
    def a_client_is_blamed_only_for_what_its_own_operations_asked_for(self) -> None:
        if self.story.known and self.story.vm.initiator.kind is InitiatorKind.CLIENT:
            assert self.story.vm.initiator.operation_id is not None
            blamed = self.story.kept[self.story.vm.initiator.operation_id]
            assert any(s.phase not in NOT_ASKED and not s.phase.final for s in blamed.steps)


def test_any_story() -> None:
    run_state_machine_as_test(
        Machine,
        settings=settings(max_examples=120, stateful_step_count=30),
    )


FACTS = st.lists(st.tuples(KINDS, RUNS), max_size=15)


@given(facts=FACTS)
def test_a_client_without_operations_is_never_blamed(
    facts: list[tuple[EventKind, int | None]],
) -> None:
    story = Story()
    for kind, run_id in facts:
        story.hear(kind, run_id)
    assert all(t.vm.initiator.kind is not InitiatorKind.CLIENT for t in story.transitions)


@given(
    kinds=st.lists(st.sampled_from(sorted(CLAIMED)), min_size=1, max_size=6),
    parameters=st.sampled_from([START, STOP, FORCED_STOP, REBOOT, PAUSE]),
)
def test_nor_is_one_whose_operation_asked_for_nothing_yet(
    kinds: list[EventKind], parameters: Parameters
) -> None:
    story = Story()
    story.see("RUNNING", "BOOTED", 1)
    story.accept(parameters)
    for kind in kinds:
        story.hear(kind, 1)
    assert all(t.vm.initiator.kind is not InitiatorKind.CLIENT for t in story.transitions)


@given(facts=FACTS, cut=st.integers(0, 15))
def test_a_restart_in_between_changes_no_state(
    facts: list[tuple[EventKind, int | None]], cut: int
) -> None:
    """What the next daemon makes of the rest follows from what the journal holds."""
    whole, first = Story(), Story()
    for kind, run_id in facts[:cut]:
        whole.hear(kind, run_id)
        first.hear(kind, run_id)
    whole.lose_link()  # as a daemon does that ends: numbers of processes may begin anew after it
    second = Story((first.vm,) if first.known else ())
    second.now = whole.now
    for kind, run_id in facts[cut:]:
        whole.hear(kind, run_id)
    for kind, run_id in facts[cut:]:
        second.hear(kind, run_id)
    assert whole.known == (first.known or second.known)
    if whole.known:
        # who it was may be lost with what was heard beside; what happened is not
        alike = replace(second.vm, initiator=whole.vm.initiator, revision=whole.vm.revision)
        assert alike == whole.vm


@given(facts=FACTS, seen=st.booleans(), daemon=st.booleans(), run_id=st.sampled_from([1, 2, 3]))
def test_a_process_that_starts_is_heard_whatever_bore_its_number(
    facts: list[tuple[EventKind, int | None]], run_id: int, *, seen: bool, daemon: bool
) -> None:
    """Where the link broke, or the daemon ended, libvirtd may have begun to count anew."""
    story = Story()
    for kind, each in facts:
        story.hear(kind, each)
    if seen:
        story.see("RUNNING", "BOOTED", run_id)
    if daemon and story.known:
        story = Story((story.vm,))
    else:
        story.lose_link()
    story.survey(story.sighting("STOPPED", "UNKNOWN"))
    boots = story.vm.incarnation
    for kind in (EventKind.RESUMED_UNPAUSED, EventKind.STARTED_BOOTED, EventKind.REBOOT):
        story.hear(kind, run_id)
    assert (story.vm.state, story.vm.reason) == (VmState.RUNNING, Reason.REBOOTED)
    assert story.vm.incarnation == boots + 1


@given(facts=FACTS)
def test_traces_tell_who_and_never_what(facts: list[tuple[EventKind, int | None]]) -> None:
    with_traces, without = Story(), Story()
    for kind, run_id in facts:
        assert not (with_traces.hear(kind, run_id) and kind in TRACES)
        if kind not in TRACES:
            without.hear(kind, run_id)
    states = [
        [(t.kind, t.vm.state, t.vm.reason, t.vm.incarnation) for t in story.transitions]
        for story in (with_traces, without)
    ]
    assert states[0] == states[1]


@given(facts=FACTS)
def test_time_goes_on(facts: list[tuple[EventKind, int | None]]) -> None:
    story = Story()
    for kind, run_id in facts:
        story.hear(kind, run_id)
    assert all(a.time <= b.time for a, b in pairwise(story.transitions))
