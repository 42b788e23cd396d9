"""What the daemon does itself is checked: an illegal step raises and changes nothing."""

from __future__ import annotations

from itertools import product

import pytest

from tests.unit.lifecycle.story import BEGIN, SECOND, START, STOP, Story
from vmagentd.lifecycle.steps import STEPS, IllegalStep, end, step
from vmagentd.model import (
    Operation,
    OperationFailure,
    OperationOutcome,
    OperationPhase,
    TransitionKind,
)

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
        story.finish(story.accept(STOP, number=2), failure=FAILURE)
        assert story.vm.last_start_error == error
        story.hear("RESUMED_UNPAUSED", 1)
        assert story.vm.last_start_error is None
