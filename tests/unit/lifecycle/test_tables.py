"""The tables are total, and say of every state what it is."""

from __future__ import annotations

import pytest

from tests.unit.lifecycle.story import (
    FORCED_REBOOT,
    FORCED_STOP,
    OFF,
    PAUSE,
    REBOOT,
    RESUME,
    START,
    STOP,
    Story,
)
from vmagentd.lifecycle.events import EVENTS, STANDINGS, Standing
from vmagentd.lifecycle.moves import INITIATORS
from vmagentd.lifecycle.steps import MEETINGS, STEPS, Kind, kind, meeting
from vmagentd.model import (
    EventKind,
    InitiatorKind,
    OperationPhase,
    Parameters,
    Reason,
    VmState,
)

# For each standing, facts that bring a VM there; run 7 where there is a process.
GETTING_THERE: dict[Standing, list[str]] = {
    Standing.OFF: ["DEFINED"],
    Standing.COMING: ["DEFINED", "STARTED_BOOTED@7"],
    Standing.UP: ["DEFINED", "RESUMED_UNPAUSED@7"],
    Standing.HELD: ["DEFINED", "RESUMED_UNPAUSED@7", "SUSPENDED_PAUSED@7"],
    Standing.ENDING: ["DEFINED", "RESUMED_UNPAUSED@7", "SHUTDOWN_GUEST@7"],
    Standing.DEAD: ["DEFINED", "RESUMED_UNPAUSED@7", "CRASHED_PANICKED@7"],
}


def story_at(standing: Standing) -> Story:
    story = Story()
    for fact in GETTING_THERE[standing]:
        kind, _, run_id = fact.partition("@")
        story.hear(kind, int(run_id) if run_id else None)
    assert STANDINGS[story.vm.state] is standing
    return story


def test_every_event_has_a_row() -> None:
    assert set(EVENTS) == set(EventKind)


def test_every_state_has_a_standing() -> None:
    assert set(STANDINGS) == set(VmState)


def test_every_reason_points_at_somebody() -> None:
    assert set(INITIATORS) == set(Reason)
    # a client is blamed for its operation, never for a reason
    assert InitiatorKind.CLIENT not in INITIATORS.values()


@pytest.mark.parametrize("standing", Standing)
@pytest.mark.parametrize("kind", EventKind)
def test_every_event_can_come_at_any_time(kind: EventKind, standing: Standing) -> None:
    story = story_at(standing)
    before, revision = story.vm, story.head
    transitions = story.hear(kind, None if kind.startswith("STOPPED_") else 7)
    assert [t.revision for t in transitions] == list(range(revision + 1, story.head + 1))
    after = story.vm
    assert not (after.active and after.state in OFF)
    if kind is not EventKind.UNRECOGNIZED:
        assert after.active or STANDINGS[after.state] in {Standing.OFF, Standing.DEAD}
    assert after.crash_count - before.crash_count in {0, 1}
    assert after.incarnation - before.incarnation == (after.active and not before.active)
    if kind.startswith("STOPPED_"):
        assert not after.active
    if kind.startswith(("RESUMED_", "STARTED_")):
        assert after.active


@pytest.mark.parametrize("standing", Standing)
def test_an_unknown_event_is_recorded_with_its_numbers_and_asked_about(standing: Standing) -> None:
    story = story_at(standing)
    was_active = story.vm.active
    transitions = story.hear(EventKind.UNRECOGNIZED, 7 if was_active else None)
    assert transitions[-1].vm.state is VmState.UNRECOGNIZED
    assert transitions[-1].raw_event == transitions[-1].vm.raw_state
    assert story.vm.active == was_active  # nobody knows, so it is what it was
    assert story.doubts


def test_what_happens_of_two_operations_is_laid_down_for_every_pair() -> None:
    assert set(MEETINGS) == set(Kind)
    assert all(set(row) == set(Kind) for row in MEETINGS.values())


KINDS = (START, STOP, FORCED_STOP, REBOOT, FORCED_REBOOT, PAUSE, RESUME)
# Under way, then what is asked for, in the order of KINDS.
MET = {
    Kind.START: "join cancel cancel refuse refuse refuse refuse",
    Kind.STOP: "refuse join escalate refuse refuse refuse refuse",
    Kind.FORCED_STOP: "refuse join join refuse refuse refuse refuse",
    Kind.REBOOT: "refuse cancel cancel join escalate refuse refuse",
    Kind.FORCED_REBOOT: "refuse cancel cancel join escalate refuse refuse",
    Kind.PAUSE: "refuse cancel cancel refuse refuse join refuse",
    Kind.RESUME: "refuse cancel cancel refuse refuse refuse join",
}


@pytest.mark.parametrize("under_way", KINDS, ids=kind)
def test_meetings(under_way: Parameters) -> None:
    operation = story_at(Standing.UP).accept(under_way)
    met = [meeting(operation, asked).name.lower() for asked in KINDS]
    assert met == MET[kind(under_way)].split()


def test_steps_are_laid_down_for_every_phase() -> None:
    assert set(STEPS) == set(OperationPhase)
    assert {phase for phase, following in STEPS.items() if not following} == {
        phase for phase in OperationPhase if phase.final
    }
