"""What libvirt says when, as recorded of libvirt 9.0 with QEMU 7.2, and what becomes of it.

An event is written `KIND@n`, n being the number of its hypervisor process; libvirt does not say
it with every stop.
"""

from __future__ import annotations

from datetime import timedelta

import pytest

from tests.unit.lifecycle.story import (
    FORCED_REBOOT,
    FORCED_STOP,
    PAUSE,
    REBOOT,
    RESUME,
    START,
    STOP,
    Story,
    told,
)
from vmagentd.lifecycle.events import REBOOT_ECHO
from vmagentd.model import (
    EventKind,
    Initiator,
    InitiatorKind,
    OperationFailure,
    OperationId,
    OperationPhase,
    Parameters,
    Source,
    StopParameters,
    TransitionKind,
    VmState,
)

UP = ["DEFINED", "RESUMED_UNPAUSED@1", "STARTED_BOOTED@1"]
UP_TOLD = ["STOPPED/DEFINED off #0", "RUNNING/BOOTED on #1"]
ECHO = timedelta(milliseconds=40)

SEQUENCES = {
    "start": ([], []),
    "start, as the test driver says it": (
        ["SHUTDOWN_GUEST@1", "STOPPED_SHUTDOWN@1", "STARTED_RUNNING@2"],
        [
            "STOPPING/GUEST_SHUTDOWN on #1",
            "STOPPED/CLEAN_SHUTDOWN off #1",
            "RUNNING/BOOTED on #2",
        ],
    ),
    "orderly shutdown": (
        ["SHUTDOWN_GUEST@1", "STOPPED_SHUTDOWN@1"],
        ["STOPPING/GUEST_SHUTDOWN on #1", "STOPPED/CLEAN_SHUTDOWN off #1"],
    ),
    "shutdown unheard, as across a restart of libvirtd": (
        ["STOPPED_SHUTDOWN@1"],
        ["STOPPED/CLEAN_SHUTDOWN off #1"],
    ),
    "destroy": (
        ["SHUTDOWN_HOST@1", "STOPPED_DESTROYED"],
        ["STOPPING/HOST_TERMINATION on #1", "STOPPED/FORCED off #1"],
    ),
    "the end of a VM that an earlier answer found at its end": (
        ["STOPPED_SHUTDOWN@1", "STOPPED_SHUTDOWN@1"],
        ["STOPPED/CLEAN_SHUTDOWN off #1"],
    ),
    "SIGTERM to QEMU": (
        ["SHUTDOWN_HOST@1", "STOPPED_SHUTDOWN@1"],
        ["STOPPING/HOST_TERMINATION on #1", "STOPPED/KILLED_BY_HOST_SIGNAL off #1"],
    ),
    "SIGKILL to QEMU": (["STOPPED_FAILED@1"], ["CRASHED/PROCESS_DIED off #1 crashes=1"]),
    "guest panics, on_crash=destroy": (
        ["CRASHED_PANICKED@1", "STOPPED_CRASHED"],
        ["CRASHED/GUEST_PANIC on #1 crashes=1", "CRASHED/GUEST_PANIC off #1 crashes=1"],
    ),
    "Linux panics: QEMU stops its CPUs first": (
        ["SUSPENDED_PAUSED@1", "CRASHED_PANICKED@1", "STOPPED_CRASHED"],
        [
            "PAUSED/PAUSED_BY_USER on #1",
            "CRASHED/GUEST_PANIC on #1 crashes=1",
            "CRASHED/GUEST_PANIC off #1 crashes=1",
        ],
    ),
    "guest panics, on_crash=preserve, then is resumed": (
        ["CRASHED_PANICKED@1", "RESUMED_UNPAUSED@1"],
        ["CRASHED/GUEST_PANIC on #1 crashes=1", "RUNNING/UNPAUSED on #1 crashes=1"],
    ),
    "guest panics, on_crash=preserve, then is destroyed": (
        ["CRASHED_PANICKED@1", "SHUTDOWN_HOST@1", "STOPPED_DESTROYED"],
        [
            "CRASHED/GUEST_PANIC on #1 crashes=1",
            "STOPPING/HOST_TERMINATION on #1 crashes=1",
            "STOPPED/FORCED off #1 crashes=1",
        ],
    ),
    "guest panics, on_crash=restart": (
        ["CRASHED_PANICKED@1", "REBOOT@1", "RESUMED_UNPAUSED@1"],
        ["CRASHED/GUEST_PANIC on #1 crashes=1", "RUNNING/RESTARTED_AFTER_PANIC on #1 crashes=1"],
    ),
    "suspend and resume": (
        ["SUSPENDED_PAUSED@1", "RESUMED_UNPAUSED@1"],
        ["PAUSED/PAUSED_BY_USER on #1", "RUNNING/UNPAUSED on #1"],
    ),
    "suspended twice": (
        ["SUSPENDED_PAUSED@1", "SUSPENDED_PAUSED@1"],
        ["PAUSED/PAUSED_BY_USER on #1"],
    ),
    "disk full: paused again for a deeper reason": (
        ["SUSPENDED_PAUSED@1", "SUSPENDED_IOERROR@1"],
        ["PAUSED/PAUSED_BY_USER on #1", "PAUSED/IO_ERROR on #1"],
    ),
    "managed save and restore": (
        [
            "SUSPENDED_PAUSED@1",
            "STOPPED_SAVED",
            "STARTED_RESTORED@2",
            "RESUMED_FROM_SNAPSHOT@2",
        ],
        [
            "PAUSED/PAUSED_BY_USER on #1",
            "SAVED/SAVED off #1",
            "STARTING/RESTORED on #2",
            "RUNNING/RESTORED on #2",
        ],
    ),
    "revert of a running VM to a snapshot": (
        [
            "STOPPED_FROM_SNAPSHOT",
            "STARTED_FROM_SNAPSHOT@2",
            "RESUMED_UNPAUSED@2",
            "DEFINED@2",
        ],
        ["STOPPED/REVERTED off #1", "STARTING/REVERTED on #2", "RUNNING/REVERTED on #2"],
    ),
    "undefined while it runs, then destroyed": (
        ["UNDEFINED@1", "SHUTDOWN_HOST@1", "STOPPED_DESTROYED"],
        [
            "DEFINITION: RUNNING/BOOTED on #1",
            "STOPPING/HOST_TERMINATION on #1",
            "STOPPED/FORCED off #1",
        ],
    ),
    "migrated away": (
        ["SUSPENDED_MIGRATED@1", "STOPPED_MIGRATED@1"],
        ["PAUSED/MIGRATING on #1", "MIGRATED_AWAY/MIGRATED_AWAY off #1"],
    ),
    "migration failed": (
        ["SUSPENDED_MIGRATED@1", "RESUMED_MIGRATED@1"],
        ["PAUSED/MIGRATING on #1", "RUNNING/MIGRATION_CANCELED on #1"],
    ),
    "away and back again": (
        [
            "SUSPENDED_MIGRATED@1",
            "STOPPED_MIGRATED@1",
            "STARTED_MIGRATED@2",
            "RESUMED_MIGRATED@2",
        ],
        [
            "PAUSED/MIGRATING on #1",
            "MIGRATED_AWAY/MIGRATED_AWAY off #1",
            "MIGRATING_IN/MIGRATED_IN on #2",
            "RUNNING/MIGRATED_IN on #2",
        ],
    ),
    "guest sleeps and wakes": (
        ["PMSUSPENDED_MEMORY@1", "STARTED_WAKEUP@1"],
        ["SLEEPING/SUSPENDED_TO_RAM on #1", "RUNNING/WOKE_UP on #1"],
    ),
    "started paused, resumed": (
        [
            "STOPPED_DESTROYED",
            "STARTED_BOOTED@2",
            "SUSPENDED_PAUSED@2",
            "RESUMED_UNPAUSED@2",
        ],
        [
            "STOPPED/FORCED off #1",
            "STARTING/STARTING_UP on #2",
            "PAUSED/PAUSED_BY_USER on #2",
            "RUNNING/UNPAUSED on #2",
        ],
    ),
    "a start that never got to its guest": (
        ["STOPPED_DESTROYED", "STARTED_BOOTED@2", "STOPPED_FAILED@2"],
        ["STOPPED/FORCED off #1", "STARTING/STARTING_UP on #2", "STOPPED/START_FAILED off #2"],
    ),
    "STARTED repeats what RESUMED told": (["STARTED_BOOTED@1", "STARTED_BOOTED@1"], []),
    "the end of an earlier process does not end this one": (
        ["STOPPED_DESTROYED", "RESUMED_UNPAUSED@2", "STOPPED_FAILED@1", "SHUTDOWN_GUEST@1"],
        ["STOPPED/FORCED off #1", "RUNNING/BOOTED on #2"],
    ),
    "a stop unheard: the next process is another boot": (
        ["RESUMED_UNPAUSED@2", "STARTED_BOOTED@2"],
        ["RUNNING/BOOTED on #2"],
    ),
    "SHUTDOWN of a VM that is off already": (
        ["STOPPED_DESTROYED", "SHUTDOWN_HOST@1"],
        ["STOPPED/FORCED off #1"],
    ),
    "renamed": (
        ["STOPPED_DESTROYED", "UNDEFINED_RENAMED", "DEFINED_RENAMED"],
        ["STOPPED/FORCED off #1"],  # the same name here; see below
    ),
}


def play(story: Story, events: list[str]) -> None:
    for event in events:
        kind, _, run_id = event.partition("@")
        story.hear(kind, int(run_id) if run_id else None)


def up() -> Story:
    story = Story()
    play(story, UP)
    return story


@pytest.mark.parametrize(("events", "expected"), SEQUENCES.values(), ids=SEQUENCES)
def test_sequence(events: list[str], expected: list[str]) -> None:
    story = up()
    play(story, events)
    assert told(story.transitions) == UP_TOLD + expected


def test_a_pause_that_is_told_after_the_panic_that_followed_it() -> None:
    story = up()
    story.hear("CRASHED_PANICKED", 1)
    assert not story.hear("SUSPENDED_PAUSED", 1)
    assert (story.vm.state, story.vm.active) == (VmState.CRASHED, True)
    assert story.doubts


def test_a_transient_vm_is_born_running_and_ends_gone() -> None:
    story = Story()
    play(story, ["RESUMED_UNPAUSED@1", "STARTED_BOOTED@1", "SHUTDOWN_HOST@1", "STOPPED_DESTROYED"])
    assert story.doubts  # nothing but a look-up can tell that it is gone
    story.miss()
    assert told(story.transitions) == [
        "RUNNING/BOOTED on #1",
        "STOPPING/HOST_TERMINATION on #1",
        "STOPPED/FORCED off #1",
        "GONE/UNDEFINED off #1",
    ]
    assert story.transitions[0].previous_state is None
    assert story.transitions[-1].earliest_time is None  # it was expected, so it is not late


def test_a_save_that_broke_off_unheard_may_have_left_its_image() -> None:
    story = up()
    story.lose_link()
    story.see("RUNNING", "SAVE_CANCELED", 1)
    story.hear("STOPPED_DESTROYED")
    assert story.doubts
    story.see("SAVED", "SAVED")
    assert told(story.transitions[-2:]) == ["STOPPED/FORCED off #1", "SAVED/SAVED off #1"]


def test_the_end_of_a_process_that_was_heard_from_its_start_on_leaves_no_doubt() -> None:
    story = Story()
    story.survey(story.sighting("STOPPED", "DEFINED"), monitored=True)
    play(story, UP)
    story.see("RUNNING", "BOOTED", 1)
    story.hear("STOPPED_DESTROYED")
    assert told(story.transitions[-1:]) == ["STOPPED/FORCED off #1"]
    assert not story.doubts


def test_an_incoming_migration_starts_a_vm_that_nobody_knew() -> None:
    story = Story()
    story.hear("STARTED_MIGRATED", 1)
    story.see("PAUSED", "MIGRATING", 1, persistent=False)  # it waits for its memory
    story.hear("RESUMED_MIGRATED", 1)
    states = [t for t in story.transitions if t.kind is TransitionKind.STATE]
    assert told(states) == ["MIGRATING_IN/MIGRATED_IN on #1", "RUNNING/MIGRATED_IN on #1"]


def test_a_rename_is_no_change_of_state() -> None:
    story = up()
    story.hear("UNDEFINED_RENAMED", name="a")
    story.hear("DEFINED_RENAMED", name="b")
    assert [t.kind for t in story.transitions[2:]] == [TransitionKind.DEFINITION]
    assert (story.vm.name, story.vm.persistent, story.vm.state) == ("b", True, VmState.RUNNING)


def test_an_undefined_vm_is_gone_only_when_a_look_up_says_so() -> None:
    story = up()
    story.hear("STOPPED_DESTROYED")
    story.hear("UNDEFINED")
    assert (story.vm.state, story.vm.persistent) == (VmState.STOPPED, False)
    assert story.doubts
    story.miss()
    assert story.vm.state is VmState.GONE
    story.hear("DEFINED")
    assert told(story.transitions[-1:]) == ["STOPPED/DEFINED off #1"]  # it counts on


@pytest.mark.parametrize(
    ("parameters", "event"),
    [
        (PAUSE, "SUSPENDED_PAUSED"),
        (RESUME, "RESUMED_UNPAUSED"),
        (RESUME, "STARTED_WAKEUP"),
    ],
)
def test_a_pause_or_resume_by_an_operation_is_the_clients(
    parameters: Parameters, event: str
) -> None:
    story = up()
    if parameters is RESUME:
        story.hear("PMSUSPENDED_MEMORY" if "WAKEUP" in event else "SUSPENDED_PAUSED", 1)
        assert story.vm.initiator.kind is not InitiatorKind.CLIENT
    operation = story.begin(parameters)
    story.hear(event, 1)
    assert (story.vm.initiator.actor, story.vm.initiator.operation_id) == (
        "tester",
        operation.id,
    )


class TestReboot:
    def test_the_two_or_three_events_of_one_reboot_are_one(self) -> None:
        story = up()
        for _ in range(3):
            story.hear("REBOOT", 1, after=ECHO)
        assert told(story.transitions[2:]) == ["REBOOT: RUNNING/REBOOTED on #1"]

    def test_two_reboots_are_two(self) -> None:
        story = up()
        for _ in range(2):
            story.hear("REBOOT", 1, after=REBOOT_ECHO)
            story.hear("REBOOT", 1, after=ECHO)
        assert told(story.transitions[2:]) == ["REBOOT: RUNNING/REBOOTED on #1"] * 2

    def test_of_a_vm_that_does_not_run_it_changes_no_state(self) -> None:
        story = up()
        story.hear("SUSPENDED_PAUSED", 1)
        story.hear("REBOOT", 1)
        assert told(story.transitions[3:]) == ["REBOOT: PAUSED/PAUSED_BY_USER on #1"]

    @pytest.mark.parametrize(
        "events",
        [
            ["REBOOT"],  # nothing else is heard
            ["POWER_BUTTON", "GUEST_FINISHED", "RESET_BY_HOST", "REBOOT", "REBOOT"],
            ["RESET_BY_GUEST", "REBOOT", "REBOOT"],  # through the agent
        ],
    )
    def test_one_by_an_operation_is_the_clients(self, events: list[str]) -> None:
        story = up()
        operation = story.begin(REBOOT)
        for event in events:
            story.hear(event, 1, after=ECHO)
        assert told(story.transitions[3:]) == ["REBOOT: RUNNING/REBOOTED on #1"]
        assert story.vm.initiator.operation_id == operation.id

    def test_one_that_was_asked_for_is_no_echo(self) -> None:
        story = up()
        story.hear("RESET_BY_GUEST", 1)
        story.hear("REBOOT", 1)
        operation = story.begin(FORCED_REBOOT)
        story.now = story.vm.state_time
        for _ in range(3):
            story.hear("REBOOT", 1, after=ECHO)
        assert story.vm.initiator.operation_id == operation.id
        reboots = [t for t in story.transitions if t.kind is TransitionKind.REBOOT]
        assert len(reboots) == 2

    def test_a_guest_that_goes_off_instead_obeyed_the_client(self) -> None:
        story = up()
        operation = story.begin(REBOOT)
        story.hear("SHUTDOWN_GUEST", 1)
        assert story.vm.initiator.operation_id == operation.id

    def test_of_a_vm_that_is_off_it_is_a_riddle(self) -> None:
        story = up()
        story.hear("STOPPED_DESTROYED")
        assert not story.hear("REBOOT")
        assert story.doubts


@pytest.mark.parametrize(
    ("parameters", "events", "by_client"),
    [
        (STOP, ["SHUTDOWN_GUEST@1", "STOPPED_SHUTDOWN@1"], [True, True]),
        (FORCED_STOP, ["SHUTDOWN_HOST@1", "STOPPED_DESTROYED"], [True, True]),
        # destroyed by somebody else while our graceful Stop waited
        (STOP, ["SHUTDOWN_HOST@1", "STOPPED_DESTROYED"], [False, False]),
        # a Stop explains no crash, no pause
        (FORCED_STOP, ["STOPPED_FAILED@1"], [False]),
        (STOP, ["SUSPENDED_PAUSED@1"], [False]),
        (STOP, ["CRASHED_PANICKED@1"], [False]),
    ],
)
def test_an_operation_explains_what_it_can_cause_and_no_more(
    parameters: StopParameters, events: list[str], by_client: list[bool]
) -> None:
    story = up()
    operation = story.begin(parameters)
    before = len(story.transitions)
    play(story, events)
    initiators = [t.vm.initiator for t in story.transitions[before:]]
    assert [who.kind is InitiatorKind.CLIENT for who in initiators] == by_client
    for who in initiators:
        if who.kind is InitiatorKind.CLIENT:
            assert (who.actor, who.operation_id) == (operation.actor, operation.id)
        else:
            assert (who.actor, who.operation_id) == (None, None)


def test_a_graceful_stop_that_came_to_force_explains_the_force() -> None:
    story = up()
    operation = story.accept(STOP)
    story.take_step(operation, OperationPhase.FORCING)
    story.hear("STOPPED_DESTROYED")
    assert story.vm.initiator.operation_id == operation.id


def test_a_start_is_its_clients() -> None:
    story = up()
    story.hear("STOPPED_DESTROYED")
    operation = story.begin(START)
    story.hear("RESUMED_UNPAUSED", 2)
    assert story.vm.initiator == Initiator(
        kind=InitiatorKind.CLIENT, actor="tester", operation_id=operation.id
    )
    story.finish(operation)
    story.hear("STOPPED_FAILED", 2)
    assert story.vm.initiator.kind is not InitiatorKind.CLIENT


@pytest.mark.parametrize(
    ("parameters", "event"),
    [(STOP, "SHUTDOWN_GUEST"), (FORCED_STOP, "STOPPED_DESTROYED"), (PAUSE, "SUSPENDED_PAUSED")],
)
def test_what_comes_before_libvirt_is_asked_is_not_the_clients(
    parameters: Parameters, event: str
) -> None:
    story = up()
    story.accept(parameters)
    story.hear(event, 1)
    assert story.vm.initiator.kind is not InitiatorKind.CLIENT


@pytest.mark.parametrize(
    ("parameters", "events", "who"),
    [
        (REBOOT, ["RESET_BY_GUEST", "REBOOT"], InitiatorKind.GUEST),
        (FORCED_REBOOT, ["RESET_BY_HOST", "REBOOT"], InitiatorKind.OUT_OF_BAND),
        (
            REBOOT,
            ["POWER_BUTTON", "GUEST_FINISHED", "RESET_BY_HOST", "REBOOT"],
            InitiatorKind.OUT_OF_BAND,
        ),
        (STOP, ["POWER_BUTTON", "SHUTDOWN_GUEST"], InitiatorKind.OUT_OF_BAND),
    ],
)
def test_nor_is_what_began_before_it(
    parameters: Parameters, events: list[str], who: InitiatorKind
) -> None:
    story = up()
    story.accept(parameters)
    for event in events:
        story.hear(event, 1)
    assert story.vm.initiator.kind is who


def test_a_press_is_not_that_of_force() -> None:
    story = up()
    story.begin(FORCED_REBOOT)
    story.hear("POWER_BUTTON", 1)
    reboot = story.kept[OperationId("op-1")]
    story.finish(reboot, failure=OperationFailure(error="LibvirtRefused", message=""))
    story.hear("SHUTDOWN_GUEST", 1)
    assert story.vm.initiator.kind is InitiatorKind.OUT_OF_BAND


@pytest.mark.parametrize("parameters", [STOP, REBOOT, FORCED_STOP])
def test_nor_is_one_that_comes_after_an_operation_that_never_pressed(
    parameters: Parameters,
) -> None:
    story = up()
    operation = story.begin(parameters) if parameters is FORCED_STOP else story.accept(parameters)
    story.finish(operation, failure=OperationFailure(error="LibvirtRefused", message=""))
    story.hear("POWER_BUTTON", 1)
    story.hear("SHUTDOWN_GUEST", 1)
    assert story.vm.initiator.kind is InitiatorKind.OUT_OF_BAND


def test_a_start_that_somebody_else_began_is_not_the_clients() -> None:
    story = up()
    story.hear("STOPPED_DESTROYED")
    story.see("STARTING", "STARTING_UP", 2)
    operation = story.begin(START)
    story.hear("RESUMED_UNPAUSED", 2)
    assert story.vm.initiator == Initiator(kind=InitiatorKind.OUT_OF_BAND)
    story.finish(operation)


@pytest.mark.parametrize(
    ("parameters", "event"),
    [(START, "STARTED_BOOTED"), (FORCED_STOP, "STOPPED_DESTROYED"), (PAUSE, "SUSPENDED_PAUSED")],
)
class TestGivenUp:
    """libvirt may still do what nobody waits for any more; so may anybody else meanwhile."""

    def given_up(self, parameters: Parameters, error: str) -> Story:
        story = up()
        if parameters is START:
            story.hear("STOPPED_DESTROYED", 1)
        operation = story.begin(parameters)
        story.finish(operation, failure=OperationFailure(error=error, message=""))
        return story

    @pytest.mark.parametrize(
        "error", ["OperationCancelled", "OutcomeUnknown", "OperationInterrupted"]
    )
    def test_nobody_knows_who_did_it(self, parameters: Parameters, event: str, error: str) -> None:
        story = self.given_up(parameters, error)
        story.lose_link()
        story.survey()
        story.hear(event, 2 if parameters is START else 1)
        assert story.vm.initiator.kind is InitiatorKind.UNKNOWN

    def test_a_query_that_finds_it_does_not_know_either(
        self, parameters: Parameters, event: str
    ) -> None:
        story = self.given_up(parameters, "OperationCancelled")
        state, reason, run = {
            START: ("STARTING", "STARTING_UP", 2),
            FORCED_STOP: ("STOPPED", "FORCED", None),
            PAUSE: ("PAUSED", "PAUSED_BY_USER", 1),
        }[parameters]
        story.see(state, reason, run)
        assert story.vm.initiator.kind is InitiatorKind.UNKNOWN
        story.hear(event, run or 1)
        assert story.vm.initiator.kind is InitiatorKind.UNKNOWN

    @pytest.mark.parametrize("error", ["LibvirtRefused", "VmInState"])
    def test_what_libvirt_refused_does_not_come(
        self, parameters: Parameters, event: str, error: str
    ) -> None:
        story = self.given_up(parameters, error)
        story.hear(event, 2 if parameters is START else 1)
        assert story.vm.initiator.kind is InitiatorKind.OUT_OF_BAND

    def test_it_comes_once(self, parameters: Parameters, event: str) -> None:
        story = self.given_up(parameters, "OperationCancelled")
        run = 2 if parameters is START else 1
        story.hear(event, run)
        story.hear("STOPPED_DESTROYED" if parameters is START else "RESUMED_UNPAUSED", run)
        story.hear("STARTED_BOOTED", 3)
        story.hear(event, 3)
        assert story.vm.initiator.kind is InitiatorKind.OUT_OF_BAND

    def test_it_comes_soon_or_not_at_all(self, parameters: Parameters, event: str) -> None:
        story = self.given_up(parameters, "OperationCancelled")
        story.hear(event, 2 if parameters is START else 1, after=timedelta(minutes=11))
        assert story.vm.initiator.kind is InitiatorKind.OUT_OF_BAND


class TestSeveralGivenUp:
    """Each of them may come yet, whatever was given up after it."""

    def give_up(self, story: Story, parameters: Parameters, error: str) -> None:
        operation = story.begin(parameters)
        story.finish(operation, failure=OperationFailure(error=error, message=""))

    def test_one_that_never_asked_libvirt_changes_nothing(self) -> None:
        story = up()
        self.give_up(story, FORCED_STOP, "ForceTimedOut")
        pause = story.accept(PAUSE)
        cancelled = OperationFailure(error="OperationCancelled", message="")
        story.finish(pause, failure=cancelled)
        story.hear("STOPPED_DESTROYED", 1)
        assert story.vm.initiator.kind is InitiatorKind.UNKNOWN

    def test_a_start_and_the_stop_that_ended_it(self) -> None:
        story = up()
        story.hear("STOPPED_DESTROYED", 1)
        self.give_up(story, START, "OperationCancelled")
        self.give_up(story, FORCED_STOP, "OutcomeUnknown")
        story.hear("STARTED_BOOTED", 2)
        assert story.vm.initiator.kind is InitiatorKind.UNKNOWN
        story.hear("STOPPED_DESTROYED", 2)
        assert story.vm.initiator.kind is InitiatorKind.UNKNOWN

    @pytest.mark.parametrize("event", ["SHUTDOWN_GUEST", "SHUTDOWN_HOST"])
    def test_force_may_come_after_another_end_too(self, event: str) -> None:
        """The process went off for another reason: that is not what libvirt was asked for."""
        story = up()
        self.give_up(story, FORCED_STOP, "ForceTimedOut")
        story.hear(event, 1)
        story.hear("STOPPED_SHUTDOWN", 1)
        story.hear("STARTED_BOOTED", 2)
        story.hear("STOPPED_DESTROYED", 2)
        assert story.vm.initiator.kind is InitiatorKind.UNKNOWN

    @pytest.mark.parametrize("begin", ["SHUTDOWN_GUEST", "SHUTDOWN_HOST"])
    def test_the_end_of_force_is_as_unknown_as_its_begin(self, begin: str) -> None:
        story = up()
        self.give_up(story, FORCED_STOP, "ForceTimedOut")
        for event in (begin, "STOPPED_DESTROYED"):
            story.hear(event, 1)
            assert story.vm.initiator.kind is InitiatorKind.UNKNOWN
        story.hear("STARTED_BOOTED", 2)
        story.hear("STOPPED_DESTROYED", 2)
        assert story.vm.initiator.kind is InitiatorKind.OUT_OF_BAND

    def test_each_comes_once(self) -> None:
        story = up()
        self.give_up(story, FORCED_STOP, "ForceTimedOut")
        self.give_up(story, PAUSE, "OperationCancelled")
        for event in ("SUSPENDED_PAUSED", "STOPPED_DESTROYED"):
            story.hear(event, 1)
            assert story.vm.initiator.kind is InitiatorKind.UNKNOWN
        story.hear("RESUMED_UNPAUSED", 2)
        for event in ("SUSPENDED_PAUSED", "STOPPED_DESTROYED"):
            story.hear(event, 2)
            assert story.vm.initiator.kind is InitiatorKind.OUT_OF_BAND

    def test_the_last_one_counts_for_all_of_its_kind(self) -> None:
        story = up()
        for _ in range(20):
            self.give_up(story, PAUSE, "OperationCancelled")
            self.give_up(story, STOP, "OperationCancelled")
            self.give_up(story, FORCED_STOP, "ForceTimedOut")
        assert len(story._fold._contexts[story.uuid].given_up) == 2
        story.hear("SUSPENDED_PAUSED", 1)
        assert story.vm.initiator.kind is InitiatorKind.UNKNOWN


def test_a_start_that_its_client_gave_up_is_his_all_the_same() -> None:
    story = up()
    story.hear("STOPPED_DESTROYED")
    operation = story.begin(START)
    story.see("STARTING", "STARTING_UP", 2, source=Source.OPERATION)
    story.finish(operation, failure=OperationFailure(error="OperationCancelled", message=""))
    story.lose_link()
    story.see("RUNNING", "BOOTED", 2)
    assert (story.vm.state, story.vm.incarnation) == (VmState.RUNNING, 2)
    assert story.vm.initiator.operation_id == operation.id


@pytest.mark.parametrize(
    ("kind", "who"),
    [
        (EventKind.SUSPENDED_PAUSED, InitiatorKind.OUT_OF_BAND),
        (EventKind.SHUTDOWN_HOST, InitiatorKind.OUT_OF_BAND),
        (EventKind.CRASHED_PANICKED, InitiatorKind.GUEST),
        (EventKind.PMSUSPENDED_MEMORY, InitiatorKind.GUEST),
        (EventKind.SUSPENDED_IOERROR, InitiatorKind.UNKNOWN),
    ],
)
def test_without_an_operation_the_reason_points_at_somebody(
    kind: EventKind, who: InitiatorKind
) -> None:
    story = up()
    story.hear(kind, 1)
    assert story.vm.initiator == Initiator(kind=who)


def test_the_end_of_a_shutdown_has_the_initiator_of_its_beginning() -> None:
    story = up()
    operation = story.begin(STOP)
    story.hear("SHUTDOWN_GUEST", 1)
    story.finish(operation)
    story.hear("STOPPED_SHUTDOWN", 1)
    assert story.vm.initiator.operation_id == operation.id
