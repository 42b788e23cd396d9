"""What can still be told of a VM some of whose events could not be kept."""

from __future__ import annotations

import pytest

from tests.unit.lifecycle.story import Story, told
from vmagentd.model import InitiatorKind


@pytest.fixture
def story() -> Story:
    """A VM that was heard from its start on."""
    story = Story()
    story.survey(story.sighting("STOPPED", "UNKNOWN"), monitored=True)
    start(story, 1)
    return story


def start(story: Story, run_id: int) -> None:
    for kind in ("RESUMED_UNPAUSED", "STARTED_BOOTED"):
        story.hear(kind, run_id)
    story.see("RUNNING", "BOOTED", run_id)


def who_ends_it(story: Story) -> InitiatorKind:
    story.hear("SHUTDOWN_GUEST", story.vm.run_id)
    return story.vm.initiator.kind


def test_its_power_button_may_have_been_pressed(story: Story) -> None:
    story.lose_events()
    assert story.doubts == {story.uuid}
    story.see("RUNNING", "BOOTED", 1)
    assert who_ends_it(story) is InitiatorKind.UNKNOWN


def test_whoever_pressed_it_before_was_perhaps_not_the_last(story: Story) -> None:
    story.hear("POWER_BUTTON", 1)
    story.lose_events()
    assert who_ends_it(story) is InitiatorKind.UNKNOWN


@pytest.mark.parametrize("looks", [0, 1])
def test_a_process_that_came_up_meanwhile_was_not_heard_from_its_start_on(
    story: Story, looks: int
) -> None:
    story.lose_events(5)
    for _ in range(looks):
        assert not story.see("STOPPED", "FORCED", since_event=story.events - 1)
        assert story.doubts == {story.uuid}  # it began before the last of them
    assert told(story.see("RUNNING", "BOOTED", 2)) == ["RUNNING/BOOTED on #2"]
    assert who_ends_it(story) is InitiatorKind.UNKNOWN


def test_the_first_thing_heard_may_be_the_end_of_a_start(story: Story) -> None:
    story.lose_events()
    story.hear("STARTED_BOOTED", 2)
    assert who_ends_it(story) is InitiatorKind.UNKNOWN


def test_the_next_one_is_heard(story: Story) -> None:
    story.lose_events()
    story.see("STOPPED", "FORCED")
    start(story, 2)
    assert who_ends_it(story) is InitiatorKind.GUEST


def test_it_may_have_been_defined_again(story: Story) -> None:
    """So it went because it ended, as far as anybody knows: whoever ended it did this."""
    story.hear("UNDEFINED", 1)
    story.hear("STOPPED_FAILED", 1)
    story.lose_events()
    story.miss()
    assert story.vm.initiator.kind is InitiatorKind.UNKNOWN


def test_a_vm_that_nobody_knew(story: Story) -> None:
    new = Story()
    new.survey(monitored=True)
    new.lose_events()
    new.see("RUNNING", "BOOTED", 1)
    assert who_ends_it(new) is InitiatorKind.UNKNOWN
    assert who_ends_it(story) is InitiatorKind.GUEST  # of another one nothing was lost
