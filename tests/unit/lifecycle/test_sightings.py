"""What a query changes, and what it must leave alone."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tests.unit.lifecycle.story import FORCED_STOP, SECOND, START, STOP, Story, told
from vmagentd.lifecycle.steps import is_outlived
from vmagentd.model import (
    InitiatorKind,
    OperationFailure,
    Source,
    Survey,
    TransitionKind,
    VmState,
    VmUuid,
)

OTHER = VmUuid("99999999-2222-4333-8444-555555555555")


def told_by(*facts: str) -> Story:
    """Return the story of a VM that was seen once, so that its definition is known."""
    story = Story()
    story.see("STOPPED", "UNKNOWN")
    for fact in facts:
        kind, _, run_id = fact.partition("@")
        story.hear(kind, int(run_id) if run_id else None)
    return story


def running() -> Story:
    return told_by("RESUMED_UNPAUSED@1", "STARTED_BOOTED@1")


class TestForgotten:
    """libvirtd forgets reasons when it restarts: UNKNOWN is no news."""

    @pytest.mark.parametrize(
        "end",
        [
            ["SHUTDOWN_GUEST@1", "STOPPED_SHUTDOWN@1"],
            ["SHUTDOWN_HOST@1", "STOPPED_SHUTDOWN@1"],
            ["STOPPED_DESTROYED"],
            ["STOPPED_FAILED@1"],
            ["CRASHED_PANICKED@1", "STOPPED_CRASHED"],
            ["STOPPED_MIGRATED"],
            ["STOPPED_FROM_SNAPSHOT"],
        ],
    )
    def test_of_a_vm_that_is_off(self, end: list[str]) -> None:
        story = told_by("RESUMED_UNPAUSED@1", *end)
        assert not story.see("STOPPED", "UNKNOWN")
        assert story.vm.verify_time == story.now

    @pytest.mark.parametrize("facts", [[], ["SUSPENDED_IOERROR@1"], ["CRASHED_PANICKED@1"]])
    def test_of_a_vm_that_is_on(self, facts: list[str]) -> None:
        story = told_by("RESUMED_UNPAUSED@1", *facts)
        assert not story.see(story.vm.state, "UNKNOWN", 1)

    def test_it_is_news_that_a_vm_thought_to_run_is_off(self) -> None:
        story = running()
        assert told(story.see("STOPPED", "UNKNOWN")) == ["STOPPED/UNKNOWN off #1"]
        assert story.vm.initiator.kind is InitiatorKind.UNKNOWN

    def test_it_is_news_that_a_saved_image_is_gone(self) -> None:
        story = told_by("RESUMED_UNPAUSED@1", "STOPPED_SAVED")
        assert not story.see("SAVED", "SAVED")
        assert told(story.see("STOPPED", "UNKNOWN")) == ["STOPPED/UNKNOWN off #1"]

    def test_a_reason_that_is_remembered_after_all_is_news(self) -> None:
        story = Story()
        story.see("STOPPED", "UNKNOWN")
        assert told(story.see("STOPPED", "FORCED")) == ["STOPPED/FORCED off #0"]


class TestFasterThanItsEvents:
    """A query's answer can be there before the events of what it saw: they are old then."""

    @pytest.mark.parametrize(
        ("state", "reason", "events", "end"),
        [
            (
                "CRASHED",
                "PROCESS_DIED",
                ["SUSPENDED_PAUSED@1", "CRASHED_PANICKED@1", "STOPPED_CRASHED"],
                ["CRASHED/GUEST_PANIC off #1 crashes=1"],
            ),
            ("SAVED", "SAVED", ["SUSPENDED_PAUSED@1", "STOPPED_SAVED"], []),
            ("STOPPED", "FORCED", ["RESUMED_UNPAUSED@1", "STOPPED_DESTROYED"], []),
            ("STOPPED", "CLEAN_SHUTDOWN", ["SHUTDOWN_GUEST@1", "STOPPED_SHUTDOWN@1"], []),
        ],
    )
    def test_they_raise_nobody_from_the_dead(
        self, state: str, reason: str, events: list[str], end: list[str]
    ) -> None:
        story = running()
        story.see(state, reason)
        seen = len(story.transitions)
        for event in events:
            kind, _, run_id = event.partition("@")
            story.hear(kind, int(run_id) if run_id else None)
        assert told(story.transitions[seen:]) == end
        assert not story.vm.active

    def test_they_do_not_end_the_next_process(self) -> None:
        story = running()
        story.see("RUNNING", "BOOTED", 2)
        assert not story.hear("SUSPENDED_PAUSED", 1)
        assert story.doubts == {story.uuid}
        assert told(story.hear("SUSPENDED_PAUSED", 2)) == ["PAUSED/PAUSED_BY_USER on #2"]

    def test_nor_do_they_tell_who_ends_it(self) -> None:
        story = Story()
        story.survey(story.sighting("RUNNING", "BOOTED", 1), monitored=True)
        story.see("RUNNING", "BOOTED", 2)
        story.hear("POWER_BUTTON", 1)
        story.hear("SHUTDOWN_GUEST", 2)
        assert story.vm.initiator.kind is InitiatorKind.GUEST


class TestNumbersBeginAnew:
    """libvirtd counts processes from 1 again where none ran as it started: so does each host.

    What is heard of the next process is not taken for old news of one of the same number.
    """

    def hear_all(self, story: Story) -> None:
        before = len(story.transitions)
        for kind in ("RESUMED_UNPAUSED", "STARTED_BOOTED", "REBOOT", "SUSPENDED_PAUSED"):
            story.hear(kind, 1)
        assert told(story.transitions[before:]) == [
            "RUNNING/BOOTED on #2",
            "REBOOT: RUNNING/REBOOTED on #2",
            "PAUSED/PAUSED_BY_USER on #2",
        ]

    def test_after_an_end_that_was_heard(self) -> None:
        story = running()
        story.hear("STOPPED_DESTROYED", 1)
        story.lose_link()
        story.survey(story.sighting("STOPPED", "UNKNOWN"))
        self.hear_all(story)

    @pytest.mark.parametrize("looks", [0, 1])
    def test_after_one_that_came_while_libvirtd_was_away(self, looks: int) -> None:
        story = running()
        for _ in range(looks):
            story.see("RUNNING", "BOOTED", 1)
        story.lose_link()
        story.survey(story.sighting("STOPPED", "UNKNOWN"))
        self.hear_all(story)

    def test_after_one_that_came_while_no_daemon_was_there(self) -> None:
        story = Story((running().vm,))
        story.survey(story.sighting("STOPPED", "UNKNOWN"))
        self.hear_all(story)

    def test_after_a_boot_of_the_host(self) -> None:
        story = Story((running().vm,), boot_id="one")
        story.boot_host("two")
        assert told(story.transitions[-1:]) == ["STOPPED/HOST_REBOOTED off #1"]
        story.survey(story.sighting("STOPPED", "UNKNOWN"))
        self.hear_all(story)

    def test_even_if_nobody_saw_that_they_do(self) -> None:
        """An answer that came through the old link a moment after that was lost, say."""
        story = running()
        story.lose_link()
        story.see("RUNNING", "BOOTED", 1)
        story.survey(story.sighting("STOPPED", "UNKNOWN"))
        assert not story.hear("RESUMED_UNPAUSED", 1)
        assert story.doubts
        story.see("RUNNING", "BOOTED", 1)
        assert told(story.hear("REBOOT", 1)) == ["REBOOT: RUNNING/REBOOTED on #2"]

    @pytest.mark.parametrize("heard", [False, True])
    def test_but_what_was_told_since_then_is_old(self, heard: bool) -> None:  # noqa: FBT001
        story = running()
        story.lose_link()
        if heard:
            story.hear("SUSPENDED_PAUSED", 1)
        else:
            story.see("RUNNING", "BOOTED", 1)
        story.see("STOPPED", "FORCED")
        assert not story.hear("RESUMED_UNPAUSED", 1)
        assert not story.vm.active


class TestAnotherProcessOfTheSameNumber:
    """It came up while nobody looked: what it has used of the CPUs gives it away."""

    def known(self) -> Story:
        story = running()
        story.see("RUNNING", "BOOTED", 1, cpu_s=100)
        story.see("RUNNING", "BOOTED", 1, cpu_s=200)
        return story

    def test_it_has_used_less(self) -> None:
        story = self.known()
        story.lose_link()
        certain = story.vm.verify_time
        (boot,) = story.see("RUNNING", "BOOTED", 1, cpu_s=199.9)
        assert told([boot]) == ["RUNNING/BOOTED on #2"]
        assert boot.earliest_time == certain
        assert not story.see("RUNNING", "BOOTED", 1, cpu_s=200)

    def test_nor_does_the_next_daemon_miss_it(self) -> None:
        story = Story((self.known().vm,))
        seen = story.sighting("PAUSED", "PAUSED_BY_USER", 1, cpu_s=1)
        assert told(story.survey(seen)) == ["PAUSED/PAUSED_BY_USER on #2"]

    def test_what_was_asked_for_the_one_before_is_not_for_it(self) -> None:
        story = self.known()
        operation = story.begin(STOP)
        story.lose_link()
        story.see("RUNNING", "BOOTED", 1, cpu_s=1)
        assert is_outlived(replace(operation, incarnation=1), story.vm)

    def test_one_that_has_used_more_is_the_same_as_far_as_anybody_knows(self) -> None:
        story = self.known()
        story.lose_link()
        assert not story.see("RUNNING", "BOOTED", 1, cpu_s=200)

    def test_a_boot_that_was_heard_begins_from_nothing(self) -> None:
        story = self.known()
        story.hear("STOPPED_DESTROYED")
        story.hear("RESUMED_UNPAUSED", 2)
        story.lose_link()
        assert not story.see("RUNNING", "BOOTED", 2, cpu_s=1)

    def test_while_the_link_holds_numbers_are_certain(self) -> None:
        """Of two queries at once the later one may have looked first."""
        story = self.known()
        assert not story.see("RUNNING", "BOOTED", 1, cpu_s=150)

    def test_where_nothing_is_told_of_it_nothing_is_concluded(self) -> None:
        story = self.known()
        story.lose_link()
        assert not story.see("RUNNING", "BOOTED", 1)
        story.lose_link()
        assert told(story.see("RUNNING", "BOOTED", 1, cpu_s=1)) == ["RUNNING/BOOTED on #2"]


class TestLeftAlone:
    """What a query says of a thing in other words is no contradiction."""

    @pytest.mark.parametrize(
        ("facts", "state", "reason", "run_id"),
        [
            ([], "RUNNING", "BOOTED", 1),
            ([], "RUNNING", "UNPAUSED", 1),
            (["REBOOT@1"], "RUNNING", "BOOTED", 1),
            (["CRASHED_PANICKED@1", "REBOOT@1"], "RUNNING", "RESTARTED_AFTER_PANIC", 1),
            (["SUSPENDED_MIGRATED@1"], "PAUSED", "PAUSED_BY_USER", 1),
            # saved while it was paused, and restored: libvirt's reason is that of its coming
            (
                ["STOPPED_SAVED", "STARTED_RESTORED@2", "SUSPENDED_PAUSED@2"],
                "PAUSED",
                "MIGRATING",
                2,
            ),
            (["SHUTDOWN_HOST@1"], "STOPPING", "UNKNOWN", 1),
            (["SHUTDOWN_HOST@1", "STOPPED_SHUTDOWN@1"], "STOPPED", "CLEAN_SHUTDOWN", None),
            (["CRASHED_PANICKED@1", "STOPPED_CRASHED"], "CRASHED", "PROCESS_DIED", None),
            (["STOPPED_DESTROYED", "STARTED_MIGRATED@2"], "PAUSED", "MIGRATING", 2),
            (["STOPPED_SAVED", "STARTED_RESTORED@2"], "PAUSED", "MIGRATING", 2),
        ],
    )
    def test_the_same_in_other_words(
        self, facts: list[str], state: str, reason: str, run_id: int | None
    ) -> None:
        story = told_by("RESUMED_UNPAUSED@1", *facts)
        before = story.vm
        assert not story.see(state, reason, run_id)
        assert (story.vm.state, story.vm.reason) == (before.state, before.reason)
        assert story.vm.verify_time == story.now
        assert story.vm.revision == before.revision

    def test_a_pause_may_have_a_deeper_reason(self) -> None:
        story = told_by("RESUMED_UNPAUSED@1", "SUSPENDED_PAUSED@1")
        assert told(story.see("PAUSED", "SNAPSHOTTING", 1)) == ["PAUSED/SNAPSHOTTING on #1"]

    def test_a_pause_that_a_query_found_may_have_been_for_a_job_that_is_over(self) -> None:
        story = told_by("RESUMED_UNPAUSED@1")
        story.see("PAUSED", "MIGRATING", 1)
        assert told(story.see("PAUSED", "PAUSED_BY_USER", 1)) == ["PAUSED/PAUSED_BY_USER on #1"]

    def test_an_end_that_a_query_found_is_not_told_again_by_its_events(self) -> None:
        story = running()
        story.see("STOPPED", "FORCED")
        story.hear("SHUTDOWN_HOST", 1)
        story.hear("STOPPED_DESTROYED")
        assert told(story.transitions[-1:]) == ["STOPPED/FORCED off #1"]

    def test_a_failed_start_that_a_query_found_is_no_crash(self) -> None:
        story = told_by("STARTED_BOOTED@1")
        story.see("STOPPED", "START_FAILED")
        story.hear("STOPPED_FAILED", 1)
        assert told(story.transitions[-1:]) == ["STOPPED/START_FAILED off #1"]

    def test_a_query_that_finds_a_panicked_vm_off_keeps_the_panic(self) -> None:
        """SHUTOFF/CRASHED alone cannot tell a panic from a killed process."""
        story = told_by("RESUMED_UNPAUSED@1", "CRASHED_PANICKED@1")
        assert told(story.see("CRASHED", "PROCESS_DIED")) == [
            "CRASHED/GUEST_PANIC off #1 crashes=1"
        ]
        assert not story.hear("STOPPED_CRASHED")

    def test_a_query_that_finds_a_terminated_vm_off_keeps_the_signal(self) -> None:
        story = told_by("RESUMED_UNPAUSED@1", "SHUTDOWN_HOST@1")
        assert told(story.see("STOPPED", "CLEAN_SHUTDOWN")) == [
            "STOPPED/KILLED_BY_HOST_SIGNAL off #1"
        ]
        assert not story.hear("STOPPED_SHUTDOWN", 1)


class TestNews:
    def test_the_first_sighting_of_a_vm_is_not_late(self) -> None:
        story = Story()
        story.see("RUNNING", "BOOTED", 1)
        assert told(story.transitions) == ["RUNNING/BOOTED on #1"]
        assert story.transitions[0].previous_state is None
        assert story.vm.earliest_time is story.transitions[0].earliest_time is None
        assert (story.vm.vcpus, story.vm.memory_bytes, story.vm.persistent) == (2, 1 << 30, True)

    def test_a_change_that_nobody_heard_is_late(self) -> None:
        story = running()
        began = story.now - SECOND  # RESUMED; STARTED said nothing new
        (late,) = story.see("CRASHED", "PROCESS_DIED")
        assert (late.source, late.time) == (Source.SURVEY, story.now)
        assert late.earliest_time == late.vm.earliest_time == began
        assert late.vm.state_time == story.now

    def test_it_happened_after_the_last_query_that_saw_nothing(self) -> None:
        story = running()
        story.see("RUNNING", "BOOTED", 1)
        confirmed = story.now
        (late,) = story.see("STOPPED", "FORCED")
        assert late.earliest_time == confirmed

    def test_the_next_event_is_on_time_again(self) -> None:
        story = running()
        story.see("STOPPED", "FORCED")
        (started,) = story.hear("RESUMED_UNPAUSED", 2)
        assert started.earliest_time is started.vm.earliest_time is None

    def test_another_process_is_a_boot_that_nobody_heard(self) -> None:
        story = running()
        assert told(story.see("RUNNING", "BOOTED", 2)) == ["RUNNING/BOOTED on #2"]
        assert story.vm.earliest_time is not None
        assert not story.hear("STOPPED_FAILED", 1)  # the one before, heard late

    def test_another_reason_to_be_off_means_it_was_up_in_between(self) -> None:
        story = told_by("RESUMED_UNPAUSED@1", "STOPPED_DESTROYED")
        assert told(story.see("STOPPED", "CLEAN_SHUTDOWN")) == ["STOPPED/CLEAN_SHUTDOWN off #1"]
        assert story.vm.earliest_time is not None

    def test_a_definition_that_changed_is_no_change_of_state(self) -> None:
        story = running()
        (changed,) = story.see("RUNNING", "BOOTED", 1, name="b", persistent=False)
        assert (changed.kind, changed.vm.name) == (TransitionKind.DEFINITION, "b")
        assert not changed.vm.persistent

    def test_definition_and_state_are_two_transitions(self) -> None:
        story = running()
        both = story.see("STOPPED", "FORCED", name="b")
        assert told(both) == ["DEFINITION: RUNNING/BOOTED on #1", "STOPPED/FORCED off #1"]
        assert [t.vm.name for t in both] == ["b", "b"]

    def test_a_vm_that_is_back_counts_on(self) -> None:
        story = running()
        story.miss()
        story.see("RUNNING", "BOOTED", 5)
        assert told(story.transitions[-2:]) == ["GONE/MISSING off #1", "RUNNING/BOOTED on #2"]

    def test_what_an_operation_found_of_its_own_doing_is_not_late(self) -> None:
        story = running()
        operation = story.begin(FORCED_STOP)
        (off,) = story.see("STOPPED", "FORCED", source=Source.OPERATION)
        assert (off.source, off.earliest_time) == (Source.OPERATION, None)
        assert off.vm.initiator.operation_id == operation.id


class TestHostGoingDown:
    """A query may be faster than the events of what the host does to its VMs."""

    ENDS = (
        ("SAVED", "SAVED", "STOPPED_SAVED"),
        ("STOPPED", "FORCED", "STOPPED_DESTROYED"),
        ("STOPPED", "CLEAN_SHUTDOWN", "STOPPED_SHUTDOWN"),
    )

    @pytest.mark.parametrize(("state", "reason", "event"), ENDS)
    def test_what_a_query_finds_is_its_doing_too(
        self, state: str, reason: str, event: str
    ) -> None:
        story = running()
        story.shut_host_down()
        story.see(state, reason)
        assert story.vm.initiator.kind is InitiatorKind.HOST_SHUTDOWN
        story.hear(event)
        assert story.vm.initiator.kind is InitiatorKind.HOST_SHUTDOWN

    @pytest.mark.parametrize(("state", "reason", "event"), ENDS)
    def test_not_if_it_was_called_off(self, state: str, reason: str, event: str) -> None:
        story = running()
        story.shut_host_down()
        story.shut_host_down(going_down=False)
        story.see(state, reason)
        story.hear(event)
        assert story.vm.initiator.kind is not InitiatorKind.HOST_SHUTDOWN

    def test_nor_of_a_process_that_died(self) -> None:
        story = running()
        story.shut_host_down()
        story.see("CRASHED", "PROCESS_DIED")
        assert story.vm.initiator.kind is InitiatorKind.UNKNOWN


class TestYoungerEvents:
    def test_a_query_that_began_before_an_event_changes_nothing_and_is_asked_again(self) -> None:
        story = running()
        began = story.events
        story.hear("SUSPENDED_PAUSED", 1)
        before = story.vm
        assert not story.see("RUNNING", "BOOTED", 1, since_event=began)
        assert story.vm == before  # verify_time too: it confirms nothing
        assert story.doubts == {story.uuid}

    def test_nor_does_it_make_a_vm_gone(self) -> None:
        story = told_by("STOPPED_DESTROYED")
        began = story.events
        story.hear("RESUMED_UNPAUSED", 2)
        assert not story.miss(since_event=began)
        assert story.vm.state is VmState.RUNNING

    def test_an_event_of_another_vm_does_not_matter(self) -> None:
        story = running()
        began = story.events
        story.uuid = OTHER
        story.hear("RESUMED_UNPAUSED", 2, name="other")
        story.uuid = running().uuid
        assert told(story.see("PAUSED", "PAUSED_BY_USER", 1, since_event=began))


class TestYoungerQueries:
    def test_one_that_began_before_another_changes_nothing_and_is_asked_again(self) -> None:
        story = told_by("STOPPED_DESTROYED")
        survey = story.begin_query()
        start = story.begin(START)
        story.see("STOPPED", "START_FAILED", source=Source.OPERATION)
        facts = {"libvirt_code": "1", "libvirt_message": "no such disk"}
        story.finish(start, failure=OperationFailure(error="StartFailed", message="", facts=facts))
        before = story.vm
        starting = story.sighting("STARTING", "STARTING_UP", 2)
        assert not story.survey(starting, number=survey)
        assert story.vm == before
        assert before.last_start_error is not None
        assert story.doubts == {story.uuid}
        assert not story.see("STOPPED", "START_FAILED")
        assert not story.doubts

    def test_nor_does_it_make_a_vm_gone_or_bring_it_back(self) -> None:
        story = Story()
        first, second = story.begin_query(), story.begin_query()
        story.see("STOPPED", "UNKNOWN")
        assert not story.survey(number=second)
        story.miss()
        assert not story.see("STOPPED", "UNKNOWN", number=first)
        assert story.vm.state is VmState.GONE

    def test_nor_if_they_are_committed_together(self) -> None:
        story = running()
        sightings = (story.sighting("PAUSED", "PAUSED_BY_USER", 1),)
        second = Survey(
            sightings=sightings, number=2, after_event=story.events, begin_time=story.now, link=1
        )
        first = replace(second, sightings=(), number=1)
        batch = story._fold.apply([second, first])
        assert told(batch.transitions) == ["PAUSED/PAUSED_BY_USER on #1"]
        assert batch.doubts == {story.uuid}

    def test_one_of_another_vm_does_not_matter(self) -> None:
        story = running()
        first = story.begin_query()
        story.uuid = OTHER
        story.see("RUNNING", "BOOTED", 2, name="other")
        story.uuid = running().uuid
        assert told(story.see("PAUSED", "PAUSED_BY_USER", 1, number=first))

    def test_one_that_an_event_outdated_outdates_none(self) -> None:
        story = running()
        first, second, began = story.begin_query(), story.begin_query(), story.events
        story.hear("RESUMED_UNPAUSED", 1)
        assert not story.see("RUNNING", "BOOTED", 1, number=second, since_event=began)
        assert told(story.see("PAUSED", "PAUSED_BY_USER", 1, number=first))

    def test_nor_does_one_that_is_not_believed(self) -> None:
        """Else a Start that does not find its VM would not be believed either."""
        story = told_by("STOPPED_DESTROYED")
        story.accept(START)
        first, before = story.begin_query(), story.vm
        assert not story.miss()
        assert story.vm == before  # verify_time too
        assert told(story.miss(number=first, source=Source.OPERATION)) == ["GONE/MISSING off #0"]

    def test_a_survey_that_finds_nothing_new_copies_nothing(self) -> None:
        """It is of every VM of the host, and the writer does nothing else meanwhile."""
        story = running()
        sightings = (story.sighting("RUNNING", "BOOTED", 1),)
        number, time = story.begin_query(), story.now + SECOND
        survey = Survey(
            sightings=sightings, number=number, after_event=story.events, begin_time=time, link=1
        )
        batch = story._fold.apply([survey])
        assert batch.vms[story.uuid].verify_time == time
        assert not batch.contexts


class TestAbsence:
    def test_a_persistent_vm_that_is_not_there_is_missing_and_late(self) -> None:
        story = running()
        (gone,) = story.miss()
        assert told([gone]) == ["GONE/MISSING off #1"]
        assert gone.earliest_time is not None
        assert not gone.vm.persistent

    def test_a_transient_vm_that_had_ended_is_gone_as_expected(self) -> None:
        story = running()
        story.see("RUNNING", "BOOTED", 1, persistent=False)
        story.hear("STOPPED_SHUTDOWN", 1)
        (gone,) = story.miss()
        assert told([gone]) == ["GONE/UNDEFINED off #1"]
        assert gone.earliest_time is None

    def test_gone_once_is_gone(self) -> None:
        story = running()
        story.miss()
        assert not story.miss()

    def test_never_heard_of_and_not_there_is_nothing(self) -> None:
        story = Story()
        assert not story.miss()
        assert not story.known

    def test_never_while_a_start_is_in_flight(self) -> None:
        story = told_by("RESUMED_UNPAUSED@1", "STOPPED_DESTROYED")
        operation = story.accept(START)
        assert not story.miss()
        assert not story.survey()
        story.finish(operation)
        assert told(story.survey()) == ["GONE/MISSING off #1"]

    def test_unless_the_start_itself_did_not_find_it(self) -> None:
        story = told_by("STOPPED_DESTROYED")
        story.accept(START)
        assert told(story.miss(source=Source.OPERATION)) == ["GONE/MISSING off #0"]

    def test_a_stop_in_flight_does_not_keep_it(self) -> None:
        story = running()
        story.accept(STOP)
        assert told(story.miss()) == ["GONE/MISSING off #1"]


class TestSurvey:
    def test_what_is_not_listed_is_gone(self) -> None:
        story = running()
        other = Story(uuid=OTHER).sighting("RUNNING", "BOOTED", 9, name="other")
        assert told(story.survey(other)) == ["RUNNING/BOOTED on #1", "GONE/MISSING off #1"]

    def test_what_cannot_be_read_is_neither_seen_nor_gone(self) -> None:
        story = running()
        before = story.vm
        assert not story.survey(unreadable=(story.uuid,))
        assert story.vm == before
        assert story.doubts == {story.uuid}

    def test_it_ends_blindness_unless_it_went_through_a_link_that_was_lost(self) -> None:
        story = running()
        seen = story.sighting("RUNNING", "BOOTED", 1)
        story.lose_link()
        assert story.blind
        story.survey(seen, link=story.link - 1)
        assert story.blind
        story.survey(seen)
        assert not story.blind
