"""The daemon is killed at each place of an operation's life: the next one ends it, once."""

import os
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import TypeAlias
from uuid import uuid4

import pytest
from vmagent.v1 import vm_agent_service_pb2 as pb
from vmagent.v1.access_pb2 import AuditKind
from vmagent.v1.operation_pb2 import OPERATION_PHASE_FORCING as FORCING
from vmagent.v1.operation_pb2 import REBOOT_MODE_FORCE as RESET
from vmagent.v1.operation_pb2 import Operation
from vmagent.v1.transition_pb2 import TransitionKind

from tests.system.calls import (
    FORCE,
    THEN_FORCE,
    Outcome,
    Steps,
    finished,
    pause,
    phases,
    read_until,
    reboot,
    resume,
    start,
    stop,
)
from tests.system.chaos.rest import differences, truths
from tests.system.conftest import SETTINGS
from tests.system.daemon import Daemon
from tests.system.deadline import until
from tests.system.domains import Guest, Guests, Spec
from tests.system.guests import Behaviour, Roms
from tests.system.history import check_history, journal, state
from tests.system.libvirtd import PrivateLibvirtd
from tests.system.vms import Vms
from tests.system.watcher import Watcher

KILLED = -9
# How long it is gone where it must not begin to count anew, and what it may be late with on a
# busy machine: less.
GONE_S = 5.0
PUNCTUAL_S = 4.0

Ask: TypeAlias = Callable[[Vms, Guest, str], Steps]


@dataclass(frozen=True, slots=True)
class Ended:
    """How the request ended that the daemon died over, for a client that repeated it."""

    before: Outcome
    outcome: Outcome
    operation: Operation
    state: str
    active: bool
    incarnation: int
    # when the next daemon served
    serve_time: float

    @property
    def result(self) -> str:
        return self.outcome.result


class Trial:
    """A daemon that dies at a failpoint, then another one on its state."""

    def __init__(self, daemon: Daemon, guests: Guests) -> None:
        self._daemon = daemon
        self._guests = guests

    def run(
        self, failpoint: str, make: Callable[[Vms], Guest], ask: Ask, *, gone_s: float = 0.0
    ) -> Ended:
        """Make a guest, ask for an operation, and ask again when the daemon has died over it.

        Whatever became of it, checks that it is one operation that ended once, with nothing
        left open, that no watcher missed anything, and that the journal has what libvirt says.
        """
        request_id = str(uuid4())
        self._daemon.start(failpoint=failpoint)
        with Watcher(self._daemon.target) as first:
            vms = Vms(self._guests, self._daemon, first)
            guest = make(vms)
            before = finished(ask(vms, guest, request_id))
            died = self._daemon.wait()
            first.until_ended()
        assert died.code == KILLED, died.said
        back = time.monotonic() + gone_s
        until(lambda: time.monotonic() >= back, "it has been gone for long enough")
        self._daemon.start()
        serve_time = time.time()
        with Watcher(self._daemon.target, resume=first.cursor) as second:
            vms = Vms(self._guests, self._daemon, second)
            outcome = finished(ask(vms, guest, request_id))
            vms.settle()
            self._check_once(guest, before, outcome)
            again = finished(ask(vms, guest, request_id))
            assert again.operation == outcome.operation
            until(lambda: not self._differences(guest), "the journal has what libvirt says")
            check_history(self._daemon.stub, first, second)
            vm = vms.vm(guest)
        return Ended(
            before,
            outcome,
            outcome.operation,
            state(vm),
            vm.active,
            vm.incarnation,
            serve_time,
        )

    def _check_once(self, guest: Guest, before: Outcome, outcome: Outcome) -> None:
        told = {response.operation.operation_id for response in before.responses}
        assert told <= {outcome.operation.operation_id}
        for response in before.responses:
            assert response.operation.deadline_time == outcome.operation.deadline_time
            assert phases(outcome.operation)[: len(response.operation.steps)] == phases(
                response.operation
            )
        course = [
            (transition.operation_id, transition.operation_phase)
            for transition in journal(self._daemon.stub, guest.uuid)
            if transition.kind == TransitionKind.TRANSITION_KIND_OPERATION
        ]
        operation = outcome.operation
        assert course == [
            (operation.operation_id, operation.steps[0].phase),
            (operation.operation_id, operation.phase),
        ]
        self._check_audit(guest, operation)

    def _check_audit(self, guest: Guest, operation: Operation) -> None:
        """Whenever it died: there is one record of who asked, and it ends as the operation."""
        request = pb.ListAuditRecordsRequest(vm=guest.uuid, kinds=[AuditKind.AUDIT_KIND_OPERATION])
        (record,) = self._daemon.stub.ListAuditRecords(request, timeout=10).records
        assert (record.operation_id, record.actor) == (operation.operation_id, operation.actor)
        assert (record.phase, record.end_time) == (operation.phase, operation.end_time)
        assert record.peer.startswith("uid ")

    def _differences(self, guest: Guest) -> object:
        there = {
            uuid: truth
            for uuid, truth in truths(guest.libvirtd.connection).items()
            if uuid == guest.uuid
        }
        listed = self._daemon.stub.ListVms(pb.ListVmsRequest(), timeout=10).vms
        return differences(
            there, [vm for vm in listed if vm.uuid == guest.uuid], surveyed=True
        ) or any(vm.active_operation_id for vm in listed)


@contextmanager
def trying(libvirtd: PrivateLibvirtd, guest: Guests, *, settings: str) -> Iterator[Trial]:
    daemon = Daemon(libvirtd.uri, libvirtd.directory, settings=settings)
    daemon.prepare()
    try:
        yield Trial(daemon, guest)
    finally:
        daemon.close()


@pytest.fixture
def trial(libvirtd: PrivateLibvirtd, guest: Guests) -> Iterator[Trial]:
    with trying(libvirtd, guest, settings=SETTINGS) as trial:
        yield trial


@pytest.fixture
def queueing(libvirtd: PrivateLibvirtd, guest: Guests) -> Iterator[Trial]:
    """A trial of a daemon that gives libvirt one start at a time."""
    one = SETTINGS + "[host_limits]\nstarts_at_once = 1\n"
    with trying(libvirtd, guest, settings=one) as trial:
        yield trial


@pytest.fixture
def impatient(libvirtd: PrivateLibvirtd, guest: Guests) -> Iterator[Trial]:
    """A trial of a daemon that soon gives up on what it forces."""
    soon = SETTINGS + 'force_timeout = "5s"\n'  # [stop] is its last table
    with trying(libvirtd, guest, settings=soon) as trial:
        yield trial


def starts(vms: Vms, guest: Guest, request_id: str) -> Steps:
    return start(vms.stub, guest.uuid, request_id=request_id)


def stops(vms: Vms, guest: Guest, request_id: str) -> Steps:
    return stop(vms.stub, guest.uuid, request_id=request_id, grace_s=30)


def stops_soon(vms: Vms, guest: Guest, request_id: str) -> Steps:
    return stop(vms.stub, guest.uuid, request_id=request_id, grace_s=3)


def stops_or_forces(vms: Vms, guest: Guest, request_id: str) -> Steps:
    return stop(
        vms.stub, guest.uuid, request_id=request_id, grace_s=8, on_grace_expired=THEN_FORCE
    )


def forces_off(vms: Vms, guest: Guest, request_id: str) -> Steps:
    return stop(vms.stub, guest.uuid, request_id=request_id, mode=FORCE)


@pytest.mark.parametrize("failpoint", ["after ACCEPTED", "after STARTING", "before start"])
def test_a_start_that_libvirt_was_not_asked_for_is_never_made(
    failpoint: str, trial: Trial
) -> None:
    ended = trial.run(failpoint, lambda vms: vms.off(), starts)
    assert ended.result == "OPERATION_INTERRUPTED"
    assert ended.outcome.phases[-1] == "INTERRUPTED"
    assert (ended.active, ended.incarnation) == (False, 0)


@pytest.mark.parametrize("failpoint", ["after start", "before SUCCEEDED", "after SUCCEEDED"])
def test_a_start_that_has_taken_effect_has_succeeded(failpoint: str, trial: Trial) -> None:
    ended = trial.run(failpoint, lambda vms: vms.off(), starts)
    assert ended.result == "DONE"
    assert (ended.active, ended.incarnation) == (True, 1)


@pytest.mark.parametrize("ask", [starts, stops, forces_off])
def test_what_was_not_accepted_is_done_when_it_is_repeated(ask: Ask, trial: Trial) -> None:
    make = Vms.off if ask is starts else Vms.up
    ended = trial.run("before ACCEPTED", make, ask)
    assert not ended.before.responses
    assert ended.result == "DONE"
    assert (ended.active, ended.incarnation) == (ask is starts, 1)


@pytest.mark.parametrize(
    ("failpoint", "result"),
    [("before FAILED", "OPERATION_INTERRUPTED"), ("after FAILED", "START_FAILED")],
)
def test_a_start_that_failed_is_not_made_again(
    failpoint: str, result: str, trial: Trial, roms: Roms
) -> None:
    missing = Spec(rom=roms.directory / f"missing-{uuid4().hex[:8]}.rom")
    ended = trial.run(failpoint, lambda vms: vms.off(missing), starts)
    assert ended.result == result
    assert (ended.active, ended.incarnation) == (False, 0)


@pytest.mark.parametrize(
    "failpoint",
    [
        *("after ACCEPTED", "before shutdown", "after shutdown", "after SIGNALLED"),
        *("before SUCCEEDED", "after SUCCEEDED"),
    ],
)
def test_a_graceful_stop_goes_on(failpoint: str, trial: Trial) -> None:
    ended = trial.run(failpoint, Vms.up, stops)
    # off by itself while nobody looked: then that is what the next daemon finds
    assert ended.result in {"DONE", "ALREADY_DONE"}
    assert not ended.active


def test_a_guest_is_forced_off_at_the_time_that_was_promised(trial: Trial) -> None:
    ended = trial.run("after SIGNALLED", deaf, stops_or_forces, gone_s=GONE_S)
    assert ended.result == "DONE"
    assert not ended.active
    assert late_s(ended) > -0.05
    assert late_s(ended, since=ended.serve_time) < PUNCTUAL_S


@pytest.mark.parametrize("failpoint", ["before FORCING", "after FORCING", "before destroy"])
def test_a_guest_whose_time_is_over_is_forced_off_by_the_next_daemon(
    failpoint: str, trial: Trial
) -> None:
    ended = trial.run(failpoint, deaf, stops_or_forces)
    assert ended.result == "DONE"
    assert not ended.active
    assert late_s(ended) > -0.05


@pytest.mark.parametrize("failpoint", ["before FAILED", "after FAILED"])
def test_a_guest_that_is_deaf_is_left_alone_after_its_time(failpoint: str, trial: Trial) -> None:
    ended = trial.run(failpoint, deaf, stops_soon)
    assert ended.result == "GRACE_EXPIRED"
    assert (ended.active, ended.incarnation) == (True, 1)


@pytest.mark.parametrize(
    "failpoint",
    ["after ACCEPTED", "after FORCING", "before destroy", "after destroy", "after SUCCEEDED"],
)
def test_a_forced_stop_goes_on(failpoint: str, trial: Trial) -> None:
    ended = trial.run(failpoint, deaf, forces_off)
    assert ended.result == "DONE"
    assert not ended.active


def pauses(vms: Vms, guest: Guest, request_id: str) -> Steps:
    return pause(vms.stub, guest.uuid, request_id=request_id)


def resumes(vms: Vms, guest: Guest, request_id: str) -> Steps:
    return resume(vms.stub, guest.uuid, request_id=request_id)


def resets(vms: Vms, guest: Guest, request_id: str) -> Steps:
    return reboot(vms.stub, guest.uuid, request_id=request_id, mode=RESET)


def reboots_soon(vms: Vms, guest: Guest, request_id: str) -> Steps:
    return reboot(vms.stub, guest.uuid, request_id=request_id, grace_s=3)


@pytest.mark.parametrize(
    "failpoint", ["after APPLYING", "before suspend", "after suspend", "after SUCCEEDED"]
)
def test_a_pause_goes_on(failpoint: str, trial: Trial) -> None:
    ended = trial.run(failpoint, Vms.up, pauses)
    assert ended.result == "DONE"
    assert ended.state == "PAUSED/PAUSED_BY_USER"


@pytest.mark.parametrize(
    "failpoint", ["after APPLYING", "before resume", "after resume", "after SUCCEEDED"]
)
def test_a_resume_goes_on(failpoint: str, trial: Trial) -> None:
    ended = trial.run(failpoint, paused, resumes)
    assert ended.result == "DONE"
    assert ended.state.startswith("RUNNING/")


@pytest.mark.parametrize(
    ("failpoint", "results"),
    [
        ("after ACCEPTED", {"OPERATION_INTERRUPTED"}),
        ("after reset", {"LIBVIRT_TIMED_OUT"}),  # it may have been done, and nothing tells
        ("after SUCCEEDED", {"DONE"}),
    ],
)
def test_a_reboot_is_not_made_twice(failpoint: str, results: set[str], impatient: Trial) -> None:
    ended = impatient.run(failpoint, deaf, resets)
    assert ended.result in results
    assert (ended.active, ended.incarnation) == (True, 1)


@pytest.mark.parametrize(
    ("failpoint", "result"),
    [
        *((place, "OPERATION_INTERRUPTED") for place in ("after ACCEPTED", "before SIGNALLED")),
        # it may have been asked, and nothing tells
        *((place, "LIBVIRT_TIMED_OUT") for place in ("after SIGNALLED", "before reboot")),
        ("after reboot", "LIBVIRT_TIMED_OUT"),
    ],
)
def test_a_guest_is_not_asked_twice_to_reboot(failpoint: str, result: str, trial: Trial) -> None:
    ended = trial.run(failpoint, deaf, reboots_soon)
    assert ended.result == result
    assert (ended.active, ended.incarnation) == (True, 1)


def test_a_start_that_waited_for_its_turn_is_never_made(
    queueing: Trial, libvirtd: PrivateLibvirtd
) -> None:
    rom = libvirtd.directory / f"rom-{uuid4()}"
    os.mkfifo(rom)  # QEMU waits until somebody has it open for writing

    def make(vms: Vms) -> Guest:
        first, guest = vms.off(Spec(rom=rom)), vms.off()
        read_until(start(vms.stub, first.uuid), "STARTING")
        return guest

    with ExitStack() as stack:

        def asks(vms: Vms, guest: Guest, request_id: str) -> Steps:
            try:
                yield from starts(vms, guest, request_id)
            finally:  # the daemon has died; the first start fails now
                stack.enter_context(rom.open("r+b", buffering=0))

        ended = queueing.run("after QUEUED", make, asks)
    assert ended.result == "OPERATION_INTERRUPTED"
    assert (ended.active, ended.incarnation) == (False, 0)


def paused(vms: Vms) -> Guest:
    guest = vms.up()
    guest.domain.suspend()
    vms.until(guest, "PAUSED/PAUSED_BY_USER")
    return guest


def deaf(vms: Vms) -> Guest:
    return vms.up(Spec(Behaviour.DEAF))


def late_s(ended: Ended, *, since: float = 0.0) -> float:
    """Return how long after its deadline an operation came to force for the last time.

    After *since*, if that came later.
    """
    forced = [step.time for step in ended.operation.steps if step.phase == FORCING][-1]
    due = max(ended.operation.deadline_time.ToNanoseconds() / 1e9, since)
    return forced.ToNanoseconds() / 1e9 - due
