"""What the daemon does itself is checked: an illegal step raises and changes nothing."""

from __future__ import annotations

from dataclasses import replace
from itertools import product
from typing import TYPE_CHECKING

import pytest

from tests.unit.lifecycle.story import (
    BEGIN,
    FORCED_STOP,
    PAUSE,
    REBOOT,
    SECOND,
    START,
    STOP,
    Story,
    told,
)
from vmagentd.lifecycle.steps import STEPS, IllegalStep, end, step
from vmagentd.model import (
    Operation,
    OperationFailure,
    OperationOutcome,
    OperationPhase,
    Parameters,
    TransitionKind,
)

if TYPE_CHECKING:
    from collections.abc import Callable

LATER = BEGIN + 3600 * SECOND
FAILURE = OperationFailure(error="GraceExpired", message="it did not")
ENDS = [phase for phase in OperationPhase if phase.final]
GOING_ON = [phase for phase in OperationPhase if not phase.final]
# a way to each phase
WAYS = {
    OperationPhase.ACCEPTED: [],
    OperationPhase.QUEUED: [OperationPhase.QUEUED],
    OperationPhase.APPLYING: [OperationPhase.APPLYING],
    OperationPhase.STARTING: [OperationPhase.STARTING],
    OperationPhase.SIGNALLED: [OperationPhase.SIGNALLED],
    OperationPhase.WAITING: [OperationPhase.WAITING],
    OperationPhase.FORCING: [OperationPhase.SIGNALLED, OperationPhase.FORCING],
}


def accepted() -> Operation:
    story = Story()
    story.see("STOPPED", "UNKNOWN")
    return story.accept(STOP)


def at(phase: OperationPhase) -> Operation:
    operation = accepted()
    if phase.final:
        return ended(operation, phase)
    for passed in WAYS[phase]:
        operation = step(operation, passed, time=BEGIN)
    return operation


def ended(operation: Operation, phase: OperationPhase) -> Operation:
    if phase is OperationPhase.SUCCEEDED:
        return end(operation, phase, time=LATER, outcome=OperationOutcome.DONE)
    return end(operation, phase, time=LATER, failure=FAILURE)


@pytest.mark.parametrize(("before", "after"), [*product(OperationPhase, GOING_ON)])
def test_a_step_is_legal_or_raises(before: OperationPhase, after: OperationPhase) -> None:
    operation = at(before)
    if after in STEPS[before]:
        taken = step(operation, after, time=LATER)
        assert (taken.phase, taken.steps[-1].phase, taken.steps[-1].time) == (after, after, LATER)
        assert taken.steps[:-1] == operation.steps
    else:
        with pytest.raises(IllegalStep):
            step(operation, after, time=LATER)


@pytest.mark.parametrize(("before", "after"), [*product(OperationPhase, ENDS)])
def test_every_phase_but_an_end_can_be_the_last_but_one(
    before: OperationPhase, after: OperationPhase
) -> None:
    if before.final:
        with pytest.raises(IllegalStep):
            ended(at(before), after)
    else:
        operation = ended(at(before), after)
        assert (operation.phase, operation.end_time) == (after, LATER)


@pytest.mark.parametrize("phase", ENDS)
def test_a_step_is_no_end(phase: OperationPhase) -> None:
    with pytest.raises(IllegalStep):
        step(accepted(), phase, time=LATER)


@pytest.mark.parametrize("phase", GOING_ON)
def test_an_end_is_no_step(phase: OperationPhase) -> None:
    with pytest.raises(IllegalStep):
        end(accepted(), phase, time=LATER, failure=FAILURE)


@pytest.mark.parametrize("phase", ENDS)
def test_success_has_an_outcome_and_everything_else_a_failure(phase: OperationPhase) -> None:
    succeeded = phase is OperationPhase.SUCCEEDED
    for outcome, failure in product((None, OperationOutcome.DONE), (None, FAILURE)):
        if succeeded == (outcome is not None) and succeeded == (failure is None):
            end(accepted(), phase, time=LATER, outcome=outcome, failure=failure)
        else:
            with pytest.raises(IllegalStep):
                end(accepted(), phase, time=LATER, outcome=outcome, failure=failure)


def test_attempts_of_a_phase_are_counted() -> None:
    operation = accepted()
    for phase in (OperationPhase.SIGNALLED,) * 3 + (OperationPhase.WAITING,):
        operation = step(operation, phase, time=LATER)
    assert [taken.attempt for taken in operation.steps] == [1, 1, 2, 3, 1]


class TestTheVm:
    def test_it_bears_an_operation_from_acceptance_to_end_and_not_its_steps(self) -> None:
        story = Story()
        story.see("STOPPED", "UNKNOWN")
        operation = story.accept(START)
        assert story.vm.active_operation_id == operation.id
        operation = story.take_step(operation, OperationPhase.STARTING)
        (ended,) = story.finish(operation)
        assert ended.vm.active_operation_id is None
        told = [t for t in story.transitions if t.kind is TransitionKind.OPERATION]
        assert [(t.operation_id, t.operation_phase) for t in told] == [
            ("op-1", OperationPhase.ACCEPTED),
            ("op-1", OperationPhase.SUCCEEDED),
        ]

    def test_it_remembers_why_libvirt_could_not_start_it_until_it_starts(self) -> None:
        story = Story()
        story.see("STOPPED", "UNKNOWN")
        facts = {"libvirt_code": "1", "libvirt_message": "no such disk"}
        failure = OperationFailure(error="StartFailed", message="it could not", facts=facts)
        story.finish(story.accept(START), failure=failure)
        error = story.vm.last_start_error
        assert error is not None
        assert (error.libvirt_code, error.message) == (1, "no such disk")
        story.finish(story.accept(STOP), failure=FAILURE)
        assert story.vm.last_start_error == error
        story.hear("RESUMED_UNPAUSED", 1)
        assert story.vm.last_start_error is None


def up(*, persistent: bool = True) -> Story:
    story = Story()
    if persistent:
        story.hear("DEFINED")
    story.hear("RESUMED_UNPAUSED", 1)
    return story


def off() -> Story:
    story = up()
    story.hear("STOPPED_DESTROYED", 1)
    return story


class TestConclusion:
    """The end of an operation is one commit with what it brought about."""

    @pytest.mark.parametrize("answered_first", [True, False])
    @pytest.mark.parametrize(
        ("before", "parameters", "event", "end"),
        [
            (up, STOP, "STOPPED_SHUTDOWN@1", "STOPPED/CLEAN_SHUTDOWN off #1"),
            (up, FORCED_STOP, "STOPPED_DESTROYED@1", "STOPPED/FORCED off #1"),
            (off, START, "RESUMED_UNPAUSED@2", "RUNNING/BOOTED on #2"),
            (off, replace(START, paused=True), "RESUMED_UNPAUSED@2", "RUNNING/BOOTED on #2"),
        ],
    )
    def test_it_comes_with_the_later_of_answer_and_event(
        self,
        before: Callable[[], Story],
        parameters: Parameters,
        event: str,
        end: str,
        *,
        answered_first: bool,
    ) -> None:
        story = before()
        operation = story.begin(parameters)
        kind, _, run_id = event.partition("@")
        if answered_first:
            assert not story.answer(operation)
            last = story.hear(kind, int(run_id))
            assert told(last) == [end, f"OPERATION: {end}"]
        else:
            assert told(story.hear(kind, int(run_id))) == [end]
            last = story.answer(operation)
            assert told(last) == [f"OPERATION: {end}"]
        assert last[-1].operation_phase is OperationPhase.SUCCEEDED
        ended = story.kept[operation.id]
        assert (ended.phase, ended.outcome) == (OperationPhase.SUCCEEDED, OperationOutcome.DONE)
        assert story.vm.active_operation_id is None
        assert story.vm.initiator.operation_id == operation.id

    def test_a_step_that_was_on_its_way_is_none(self) -> None:
        story = up()
        operation = story.begin(STOP)
        story.answer(operation)
        story.hear("STOPPED_SHUTDOWN", 1)
        ended, head = story.kept[operation.id], story.head
        story.take_step(operation, OperationPhase.WAITING)
        story.finish(operation, failure=FAILURE)
        assert (story.kept[operation.id], story.head) == (ended, head)

    def test_a_transient_vm_is_gone_before_it(self) -> None:
        story = up(persistent=False)
        operation = story.begin(FORCED_STOP)
        story.answer(operation)
        story.hear("STOPPED_DESTROYED", 1)
        assert not story.kept[operation.id].phase.final

    def test_the_answer_of_a_guest_says_nothing_of_force(self) -> None:
        story = up()
        operation = story.begin(STOP)
        story.answer(operation)
        operation = story.take_step(operation, OperationPhase.FORCING)
        story.hear("STOPPED_DESTROYED", 1)
        assert not story.kept[operation.id].phase.final
        story.answer(operation)
        assert story.kept[operation.id].phase.final

    def test_the_answer_to_one_that_is_over_says_nothing_of_the_next(self) -> None:
        story = up()
        earlier = story.begin(FORCED_STOP)
        story.finish(earlier, failure=FAILURE)
        operation = story.begin(FORCED_STOP)
        story.answer(earlier)
        story.hear("STOPPED_DESTROYED", 1)
        assert not story.kept[operation.id].phase.final

    @pytest.mark.parametrize(
        ("parameters", "event"), [(REBOOT, "REBOOT"), (PAUSE, "SUSPENDED_PAUSED")]
    )
    def test_of_other_verbs_the_state_does_not_tell(
        self, parameters: Parameters, event: str
    ) -> None:
        story = up()
        operation = story.begin(parameters)
        story.answer(operation)
        story.hear(event, 1)
        assert not story.kept[operation.id].phase.final

    def test_its_time_is_not_before_its_last_step(self) -> None:
        """Though an event is timed as it comes, and a step as it is taken."""
        story = up()
        operation = story.begin(FORCED_STOP)
        story.answer(operation)
        story.hear("STOPPED_DESTROYED", 1, after=-10 * SECOND)
        assert story.kept[operation.id].end_time == operation.steps[-1].time
