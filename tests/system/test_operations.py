"""Start and Stop of real guests, as their callers see them."""

import contextlib
import signal
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from uuid import uuid4

import grpc
import libvirt
import pytest
from vmagent.v1.operation_pb2 import StopMode

from tests.system.calls import (
    FORCE,
    GRACEFUL,
    THEN_FORCE,
    Outcome,
    finished,
    phases,
    read_until,
    start,
    stop,
)
from tests.system.daemon import Daemon
from tests.system.domains import Guests, Spec
from tests.system.guests import Behaviour, Roms
from tests.system.history import check_history, state
from tests.system.vms import Vms
from tests.system.watcher import Watcher

OFF = "STOPPED/CLEAN_SHUTDOWN"
FORCED_OFF = "STOPPED/FORCED"
UP = "RUNNING/BOOTED"
PRESS_INTERVAL_S = 5


class Clock:
    """How long something takes."""

    def __enter__(self) -> "Clock":
        self._began = time.monotonic()
        return self

    def __exit__(self, *_: object) -> None:
        self.took_s = time.monotonic() - self._began


def test_a_guest_is_stopped_in_order(vms: Vms) -> None:
    vm = vms.up()
    outcome = vms.stop(vm)
    assert outcome.result == "DONE"
    assert outcome.phases in (
        ["ACCEPTED", "SIGNALLED", "WAITING", "SUCCEEDED"],
        ["ACCEPTED", "SIGNALLED", "SUCCEEDED"],  # it was off before anybody could look
    )
    # read after the answer: the answer is committed, and so is what it is about
    assert state(vms.vm(vm)) == state(outcome.vm) == OFF
    assert outcome.vm.initiator.operation_id == outcome.operation.operation_id
    assert not vms.vm(vm).active_operation_id


def test_a_guest_is_started_and_its_caller_reads_it_running(vms: Vms) -> None:
    vm = vms.off()
    outcome = vms.start(vm)
    assert outcome.result == "DONE"
    assert outcome.phases == ["ACCEPTED", "STARTING", "SUCCEEDED"]
    assert state(vms.vm(vm)) == state(outcome.vm) == UP
    assert outcome.vm.incarnation == 1


def test_a_slow_guest_is_waited_for(vms: Vms) -> None:
    vm = vms.up(Spec(Behaviour.SLOW, 1.5))
    with Clock() as clock:
        assert vms.stop(vm, grace_s=30).result == "DONE"
    assert clock.took_s > 1.4
    assert state(vms.vm(vm)) == OFF


def test_a_deaf_guest_outlives_its_grace_period(vms: Vms) -> None:
    vm = vms.up(Spec(Behaviour.DEAF))
    with Clock() as clock:
        outcome = vms.stop(vm, grace_s=1)
    assert outcome.refusal is not None
    assert (outcome.refusal.code, outcome.result) == ("DEADLINE_EXCEEDED", "GRACE_EXPIRED")
    assert outcome.refusal.facts["vm"] == vm.uuid
    assert outcome.refusal.facts["state"] == "RUNNING"
    assert 1.0 <= clock.took_s < 20  # and not as long as if none were given
    assert outcome.phases[-1] == "FAILED"
    assert state(vms.vm(vm)) == state(outcome.vm) == UP
    assert vm.state == (libvirt.VIR_DOMAIN_RUNNING, libvirt.VIR_DOMAIN_RUNNING_BOOTED)


def test_a_deaf_guest_is_forced_off_when_its_grace_period_ends(vms: Vms) -> None:
    vm = vms.up(Spec(Behaviour.DEAF))
    outcome = vms.stop(vm, grace_s=1, on_grace_expired=THEN_FORCE)
    assert outcome.result == "DONE"
    assert outcome.phases[-2:] == ["FORCING", "SUCCEEDED"]
    forcing = outcome.operation.steps[-2].time.ToNanoseconds()
    after_ns = forcing - outcome.operation.deadline_time.ToNanoseconds()
    # the wall clock may have been corrected a little; it does not wait for the next press
    assert -0.05 < after_ns / 1e9 < PRESS_INTERVAL_S - 1
    assert state(vms.vm(vm)) == FORCED_OFF


def test_a_guest_that_needs_a_second_press_gets_it(vms: Vms) -> None:
    vm = vms.up(Spec(Behaviour.SECOND_PRESS))
    outcome = vms.stop(vm, grace_s=30)
    assert outcome.result == "DONE"
    presses = [step.attempt for step in outcome.operation.steps]
    assert outcome.phases[1:3] == ["SIGNALLED", "SIGNALLED"]
    assert presses[1:3] == [1, 2]
    assert outcome.phases.count("SIGNALLED") == 2


def test_a_guest_is_forced_off(vms: Vms) -> None:
    vm = vms.up(Spec(Behaviour.DEAF))
    outcome = vms.force_off(vm)
    assert outcome.result == "DONE"
    assert outcome.phases == ["ACCEPTED", "FORCING", "SUCCEEDED"]
    assert state(vms.vm(vm)) == state(outcome.vm) == FORCED_OFF


def test_a_forced_stop_escalates_a_graceful_one(vms: Vms) -> None:
    vm = vms.up(Spec(Behaviour.DEAF))
    graceful = vms.stopping(vm, grace_s=60)
    asked = read_until(graceful, "SIGNALLED")
    forced = vms.force_off(vm)
    first = finished(graceful, asked)
    assert (first.result, forced.result) == ("DONE", "DONE")
    assert first.operation == forced.operation
    assert forced.phases[-2:] == ["FORCING", "SUCCEEDED"]
    assert state(first.vm) == state(forced.vm) == FORCED_OFF


def test_two_stops_at_once_are_one(vms: Vms, watcher: Watcher) -> None:
    vm = vms.up(Spec(Behaviour.SLOW, 3.0))
    with ThreadPoolExecutor(4) as callers:
        outcomes = [*callers.map(lambda _: vms.stop(vm), range(4))]
    assert [outcome.result for outcome in outcomes] == ["DONE"] * 4
    assert len({outcome.operation.operation_id for outcome in outcomes}) == 1
    operations = [t for t in watcher.of(vm.uuid) if t.operation_id]
    assert len(operations) == 2  # accepted, ended


@pytest.mark.parametrize("mode", [GRACEFUL, FORCE], ids=["graceful", "forced"])
def test_a_stop_cancels_a_start(mode: StopMode.ValueType, vms: Vms) -> None:
    vm = vms.off()
    starting = start(vms.stub, vm.uuid)
    begun = read_until(starting, "STARTING")
    stopped = vms.stop(vm, mode=mode)
    started = finished(starting, begun)
    assert started.result == "CANCELLED_BY_STOP"
    assert started.phases[-1] == "CANCELLED"
    assert started.refusal is not None
    assert started.refusal.facts["operation_id"] == stopped.operation.operation_id
    assert stopped.refusal is None
    vms.settle()
    assert state(vms.vm(vm)).startswith("STOPPED/")
    assert vm.domain.isActive() == 0


def test_a_start_during_a_stop_is_told_of_it(vms: Vms) -> None:
    vm = vms.up(Spec(Behaviour.SLOW, 3.0))
    stopping = vms.stopping(vm)
    asked = read_until(stopping, "SIGNALLED")
    refused = vms.start(vm)
    assert refused.refusal is not None
    assert (refused.refusal.code, refused.result) == ("ABORTED", "OPERATION_IN_PROGRESS")
    assert refused.refusal.facts["operation_id"] == asked.operation.operation_id
    assert finished(stopping, asked).result == "DONE"


def test_a_paused_guest_can_only_be_forced_off(vms: Vms) -> None:
    vm = vms.up()
    vm.domain.suspend()
    vms.until(vm, "PAUSED/PAUSED_BY_USER")
    for refused in (vms.stop(vm), vms.start(vm)):
        assert refused.refusal is not None
        assert (refused.refusal.code, refused.result) == ("FAILED_PRECONDITION", "VM_PAUSED")
    assert state(vms.vm(vm)) == "PAUSED/PAUSED_BY_USER"
    assert vms.force_off(vm).result == "DONE"
    assert state(vms.vm(vm)) == FORCED_OFF


def test_a_guest_that_nothing_can_ask_is_said_so(vms: Vms) -> None:
    vm = vms.up(Spec(acpi=False))
    refused = vms.stop(vm, grace_s=10)
    assert refused.result == "NO_SHUTDOWN_METHOD"
    assert state(vms.vm(vm)) == UP


def test_what_holds_already_is_a_success(vms: Vms) -> None:
    vm = vms.off()
    assert vms.stop(vm).result == "ALREADY_DONE"
    assert vms.force_off(vm).result == "ALREADY_DONE"
    assert vms.start(vm).result == "DONE"
    assert vms.start(vm).result == "ALREADY_DONE"
    assert vms.vm(vm).incarnation == 1


@pytest.mark.parametrize("at_once", [True, False], ids=["at once", "later"])
def test_start_of_a_vm_that_was_undefined(vms: Vms, watcher: Watcher, *, at_once: bool) -> None:
    vm = vms.off()
    vm.domain.undefine()
    if not at_once:
        vms.until(vm, "GONE/UNDEFINED")
    refused = vms.start(vm)
    assert refused.refusal is not None
    assert (refused.refusal.code, refused.result) == ("NOT_FOUND", "VM_NOT_FOUND")
    assert refused.refusal.facts["vm"] == vm.uuid
    assert "recreate" in refused.refusal.message
    assert state(vms.vm(vm)).startswith("GONE/")
    watcher.until(lambda: state(watcher.vms[vm.uuid]).startswith("GONE/"), "watchers know")


def test_stop_of_a_vm_that_was_undefined(vms: Vms) -> None:
    vm = vms.transient()
    vm.domain.destroy()
    assert vms.stop(vm).result == "ALREADY_DONE"
    assert state(vms.vm(vm)).startswith("GONE/")


@pytest.mark.parametrize("ask", [start, stop])
def test_a_vm_nobody_ever_heard_of(ask: Callable[..., object], vms: Vms) -> None:
    for stranger in (str(uuid4()), "no-such-vm"):
        outcome = finished(ask(vms.stub, stranger))  # type: ignore[arg-type]
        assert outcome.result == "VM_NOT_FOUND"
        assert not outcome.responses


def test_a_start_that_fails(vms: Vms, roms: Roms) -> None:
    rom = roms.directory / f"late-{uuid4().hex[:8]}.rom"
    vm = vms.off(Spec(rom=rom))
    outcome = vms.start(vm)
    assert outcome.refusal is not None
    assert (outcome.refusal.code, outcome.result) == ("FAILED_PRECONDITION", "START_FAILED")
    assert outcome.refusal.facts["libvirt_code"] == str(libvirt.VIR_ERR_INTERNAL_ERROR)
    assert "could not load PC BIOS" in outcome.refusal.facts["libvirt_message"]
    assert outcome.operation.error.reason == "START_FAILED"
    error = vms.vm(vm).last_start_error
    assert (error.libvirt_code, error.message) == (
        libvirt.VIR_ERR_INTERNAL_ERROR,
        outcome.operation.error.metadata["libvirt_message"],
    )
    assert state(vms.vm(vm)) == "STOPPED/START_FAILED"

    rom.symlink_to(roms.rom(Behaviour.ACPI))
    assert vms.start(vm).result == "DONE"
    assert not vms.vm(vm).HasField("last_start_error")


def test_an_operation_outlives_its_caller(vms: Vms, watcher: Watcher) -> None:
    vm = vms.up(Spec(Behaviour.SLOW, 3.0))
    leaving = vms.stopping(vm)
    asked = read_until(leaving, "SIGNALLED")
    leaving.cancel()  # type: ignore[union-attr]  # a call is more than an iterator
    with contextlib.suppress(grpc.RpcError):
        next(leaving)
    vms.until(vm, OFF)
    watcher.until(lambda: not watcher.vms[vm.uuid].active_operation_id, "the operation is over")
    assert watcher.of(vm.uuid)[-1].operation_id == asked.operation.operation_id
    assert vms.vm(vm).initiator.operation_id == asked.operation.operation_id


def test_a_repeated_request_returns_the_operation_also_after_a_restart(
    own_daemon: Daemon, guest: Guests
) -> None:
    with Watcher(own_daemon.target) as first:
        vms = Vms(guest, own_daemon, first)
        vm = vms.off()
        request_id = str(uuid4())
        begun = vms.start(vm, request_id=request_id)
        assert begun.result == "DONE"
        assert vms.force_off(vm).result == "DONE"
        head = own_daemon.host().head_revision
        check_repeats(vms.start(vm, request_id=request_id), begun)
        reused = vms.stop(vm, request_id=request_id)
        assert reused.refusal is not None
        assert reused.refusal.code == "ALREADY_EXISTS"
        assert reused.result == "REQUEST_ID_REUSED"
        assert reused.refusal.facts["operation_id"] == begun.operation.operation_id
        own_daemon.restart()
        check_repeats(vms.start(vm, request_id=request_id), begun)
        assert vms.start(vm, request_id=request_id, paused=True).result == "REQUEST_ID_REUSED"
        assert own_daemon.host().head_revision == head
        check_history(own_daemon.stub, first)


def check_repeats(repeated: Outcome, first: Outcome) -> None:
    assert repeated.refusal is None
    assert repeated.operation == first.operation


def test_a_stop_goes_on_after_the_daemon_was_killed(own_daemon: Daemon, guest: Guests) -> None:
    request_id = str(uuid4())
    asked = {"grace_s": 4.0, "on_grace_expired": THEN_FORCE, "request_id": request_id}
    with Watcher(own_daemon.target) as first:
        vms = Vms(guest, own_daemon, first)
        vm = vms.up(Spec(Behaviour.DEAF))
        stopping = vms.stopping(vm, **asked)  # type: ignore[arg-type]
        begun = read_until(stopping, "SIGNALLED")
        own_daemon.kill()
        first.until_ended()
    cut_off = finished(stopping)
    assert cut_off.refusal is not None
    assert cut_off.refusal.code == "UNAVAILABLE"
    own_daemon.start()
    serves_ns = time.time_ns()
    with Watcher(own_daemon.target, resume=first.cursor) as second:
        outcome = vms.stop(vm, **asked)  # type: ignore[arg-type]
        assert outcome.result == "DONE"
        assert outcome.operation.operation_id == begun.operation.operation_id
        assert outcome.operation.deadline_time == begun.operation.deadline_time
        assert phases(outcome.operation)[-2:] == ["FORCING", "SUCCEEDED"]
        forcing = outcome.operation.steps[-2].time.ToNanoseconds()
        deadline = begun.operation.deadline_time.ToNanoseconds()
        # at its own time, or as soon as there is somebody again to do it
        assert -0.05e9 < forcing - deadline < max(serves_ns - deadline, 0) + 3e9
        assert state(vms.vm(vm)) == FORCED_OFF
        second.until(lambda: not second.vms[vm.uuid].active_operation_id, "it is over")
        check_history(own_daemon.stub, first, second)


def test_a_start_is_settled_after_the_daemon_was_killed(own_daemon: Daemon, guest: Guests) -> None:
    """A start that libvirt was asked for goes on; it is not asked again."""
    request_id = str(uuid4())
    with Watcher(own_daemon.target) as first:
        vms = Vms(guest, own_daemon, first)
        vm = vms.off()
        starting = start(vms.stub, vm.uuid, request_id=request_id)
        read_until(starting, "STARTING")
        own_daemon.kill()
    own_daemon.start()
    with Watcher(own_daemon.target, resume=first.cursor) as second:
        outcome = vms.start(vm, request_id=request_id)
        assert outcome.result in {"DONE", "OPERATION_INTERRUPTED"}
        assert (state(vms.vm(vm)) == UP) == (outcome.result == "DONE")
        second.until(lambda: not second.vms[vm.uuid].active_operation_id, "it is over")
        check_history(own_daemon.stub, first, second)


def test_a_guest_that_hangs_delays_nobody_else(vms: Vms) -> None:
    hung, healthy = vms.up(), vms.up()
    hung.signal(signal.SIGSTOP)
    graceful = vms.stopping(hung, grace_s=1)
    with Clock() as clock:
        assert vms.force_off(healthy).result == "DONE"
        assert vms.start(healthy).result == "DONE"
        assert vms.stop(healthy).result == "DONE"
    assert clock.took_s < 20  # and not until it goes on
    # its own time is kept too, though the press has not come back
    assert finished(graceful).result == "GRACE_EXPIRED"
    hung.signal(signal.SIGCONT)
    vms.until(hung, OFF)  # the press reaches it now
