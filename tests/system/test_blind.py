"""libvirtd goes away and comes back: what the daemon says meanwhile, and what it makes of it.

All guests live through one absence of libvirtd; each test looks at what became of one of them.
"""

import signal
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pytest
from vmagent.v1 import vm_agent_service_pb2 as pb

from tests.system.conftest import SETTINGS
from tests.system.daemon import Daemon
from tests.system.deadline import until
from tests.system.domains import Guest, Guests, Spec, Then
from tests.system.guests import Behaviour, Roms
from tests.system.history import check_history, state
from tests.system.libvirtd import PrivateLibvirtd
from tests.system.vms import Vms
from tests.system.watcher import Watcher

if TYPE_CHECKING:
    from google.protobuf.timestamp_pb2 import Timestamp
    from vmagent.v1.host_pb2 import Host


BOOTED = "RUNNING/BOOTED by OUT_OF_BAND"
# Longer than anything here takes: what comes before was sent at once.
NEVER_S = 3600.0


@dataclass(frozen=True, slots=True)
class Absence:
    """What was seen while libvirtd was away, and after."""

    vms: Vms
    watcher: Watcher
    daemon: Daemon
    guests: dict[str, Guest]
    stories_before: dict[str, list[str]]
    head_before: int
    # while libvirtd was away
    host: "Host"
    records: dict[str, pb.GetVmResponse]
    refused: str
    stopping_refused: str


@pytest.fixture(scope="module")
def absence(libvirtd: PrivateLibvirtd, roms: Roms) -> Iterator[Absence]:
    with (
        PrivateLibvirtd(libvirtd.cache) as private,
        Daemon(private.uri, private.directory, settings=SETTINGS) as daemon,
        Watcher(daemon.target, heartbeat_s=NEVER_S) as watcher,
    ):
        vms = Vms(Guests(private, roms), daemon, watcher)
        yield go_through(private, daemon, watcher, vms)
        check_history(daemon.stub, watcher)


def go_through(private: PrivateLibvirtd, daemon: Daemon, watcher: Watcher, vms: Vms) -> Absence:
    guests = {
        "never started": vms.off(),
        "untouched": vms.up(),
        "paused": vms.up(),
        "destroyed before": vms.up(),
        "saved before": vms.up(),
        "killed": vms.up(),
        "transient, killed": vms.transient(),
        "panicked": vms.up(Spec(Behaviour.PANIC, 3.0, on_crash=Then.PRESERVE)),
    }
    guests["panicked"].signal(signal.SIGSTOP)  # it goes on when libvirtd has gone
    guests["powered off"] = vms.up(Spec(Behaviour.POWEROFF, 3.0))
    guests["powered off"].signal(signal.SIGSTOP)
    guests["paused"].domain.suspend()
    guests["destroyed before"].domain.destroy()
    guests["saved before"].domain.managedSave()
    vms.until(guests["destroyed before"], "STOPPED/FORCED")
    vms.until(guests["saved before"], "SAVED/SAVED")
    vms.settle()
    stories_before = {name: vms.story(guest) for name, guest in guests.items()}
    head_before = watcher.revision

    private.kill()
    watcher.until(lambda: not watcher.heartbeats[-1].libvirt_connected, "blind")
    for name in ("killed", "transient, killed"):
        guests[name].signal(signal.SIGKILL)
    for name in ("panicked", "powered off"):
        guests[name].signal(signal.SIGCONT)
    host = daemon.host()
    records = {
        name: daemon.stub.GetVm(pb.GetVmRequest(vm=guest.uuid)) for name, guest in guests.items()
    }
    refused = vms.start(guests["never started"]).result
    stopping_refused = vms.stop(guests["untouched"]).result
    for name, status in (("powered off", "shutdown"), ("panicked", "guest-panicked")):
        until(lambda n=name, s=status: private.qemu_status(guests[n].name) == s, name)  # type: ignore[misc]

    private.start()
    watcher.until(lambda: watcher.heartbeats[-1].libvirt_connected, "sighted again")
    vms.until(guests["powered off"], "STOPPED/CLEAN_SHUTDOWN")
    vms.settle()
    return Absence(
        vms=vms,
        watcher=watcher,
        daemon=daemon,
        guests=guests,
        stories_before=stories_before,
        head_before=head_before,
        host=host,
        records=records,
        refused=refused,
        stopping_refused=stopping_refused,
    )


def seconds(time: "Timestamp") -> float:
    return time.ToNanoseconds() / 1e9


def test_heartbeats_tell_at_once_that_it_is_blind_and_since_when(absence: Absence) -> None:
    sighted, blind, sighted_again = absence.watcher.heartbeats
    assert sighted.libvirt_connected
    assert not sighted.HasField("blind_since")
    assert not blind.libvirt_connected
    assert seconds(blind.blind_since) > seconds(sighted.last_survey_time)
    assert blind.last_survey_time == sighted.last_survey_time
    assert sighted_again.libvirt_connected
    assert not sighted_again.HasField("blind_since")
    assert seconds(sighted_again.last_survey_time) > seconds(blind.blind_since)


def test_while_blind_nothing_changes_and_every_answer_says_so(absence: Absence) -> None:
    assert absence.host.head_revision == absence.head_before
    assert not absence.host.link.libvirt_connected
    blind_since = absence.watcher.heartbeats[1].blind_since
    assert absence.host.link.blind_since == blind_since
    (interval,) = absence.host.blind_intervals[:1]
    assert interval.begin_time == blind_since
    assert not interval.HasField("end_time")
    for name, answer in absence.records.items():
        assert not answer.link.libvirt_connected
        assert answer.link.blind_since == blind_since
        before = absence.stories_before[name]
        assert not before or before[-1].partition(" by ")[0].endswith(state(answer.vm))


def test_while_blind_nothing_can_be_started_or_stopped(absence: Absence) -> None:
    assert absence.refused == "LIBVIRT_UNREACHABLE"
    assert absence.stopping_refused == "LIBVIRT_UNREACHABLE"


def test_the_blind_interval_is_kept_with_its_cause(absence: Absence) -> None:
    began = absence.watcher.heartbeats[1].blind_since
    host = absence.daemon.host()
    history = absence.daemon.stub.ListTransitions(pb.ListTransitionsRequest())
    for intervals in (host.blind_intervals, history.blind_intervals):
        interval = intervals[0]
        assert interval.begin_time == began
        assert seconds(interval.end_time) > seconds(began)
        assert "end of file" in interval.cause
    assert host.link.libvirt_connected


@pytest.mark.parametrize(
    "name", ["never started", "untouched", "paused", "destroyed before", "saved before"]
)
def test_what_did_not_change_is_told_nothing_of(name: str, absence: Absence) -> None:
    """Not even the reason: libvirtd forgets why a VM is off when it restarts."""
    assert absence.vms.story(absence.guests[name]) == absence.stories_before[name]


@pytest.mark.parametrize(
    ("name", "late"),
    [
        ("killed", "CRASHED/PROCESS_DIED by UNKNOWN, per SURVEY, late"),
        ("transient, killed", "GONE/MISSING by UNKNOWN, per SURVEY, transient, late"),
        ("panicked", "CRASHED/GUEST_PANIC by GUEST, per SURVEY, late, active"),
    ],
)
def test_what_changed_is_told_late(name: str, late: str, absence: Absence) -> None:
    guest = absence.guests[name]
    assert absence.vms.story(guest) == [*absence.stories_before[name], late]
    transition = absence.watcher.of(guest.uuid)[-1]
    earliest, found = seconds(transition.earliest_time), seconds(transition.time)
    began = seconds(absence.watcher.heartbeats[1].blind_since)
    assert earliest < began < found
    assert transition.vm.earliest_time == transition.earliest_time


def test_a_guest_that_powered_off_is_told_of_by_libvirtd_or_found(absence: Absence) -> None:
    """QEMU waits for libvirtd, which tells of the end alone; a survey may be faster."""
    guest = absence.guests["powered off"]
    off = "STOPPED/CLEAN_SHUTDOWN by UNKNOWN"
    *before, last = absence.vms.story(guest)
    assert before == absence.stories_before["powered off"]
    assert last in {off, f"{off}, per SURVEY, late"}


def test_after_it_events_are_heard_again(absence: Absence) -> None:
    guest = absence.guests["untouched"]
    guest.domain.suspend()
    absence.vms.until(guest, "PAUSED/PAUSED_BY_USER")
    assert absence.vms.force_off(guest).result == "DONE"
    absence.vms.until(guest, "STOPPED/FORCED")


def test_a_process_that_bears_the_number_of_one_before_is_heard(
    own_libvirtd: PrivateLibvirtd, own_guest: Guests
) -> None:
    """Where no guest runs as libvirtd starts, it counts processes from 1 again."""
    with Daemon(own_libvirtd.uri, own_libvirtd.directory, settings=SETTINGS) as daemon:
        with Watcher(daemon.target) as watcher:
            guest = Vms(own_guest, daemon, watcher).up()
        daemon.kill()
        number = guest.domain.ID()
        guest.domain.destroy()
        own_libvirtd.stop()
        own_libvirtd.start()
        daemon.start()
        with Watcher(daemon.target) as watcher:
            vms = Vms(own_guest, daemon, watcher)
            vms.until(guest, "STOPPED/UNKNOWN")
            guest.domain.create()
            assert guest.domain.ID() == number
            vms.until(guest, "RUNNING/BOOTED")
            guest.domain.reset()
            vms.until(guest, "RUNNING/REBOOTED")
            check_history(daemon.stub, watcher)


def test_another_process_of_the_same_number_is_another_boot(
    own_libvirtd: PrivateLibvirtd, own_guest: Guests
) -> None:
    """It came up while no daemon was there: what it has used of the CPUs gives it away."""
    with Daemon(own_libvirtd.uri, own_libvirtd.directory, settings=SETTINGS) as daemon:
        with Watcher(daemon.target) as watcher:
            guest = Vms(own_guest, daemon, watcher).up()
        daemon.stop()
        until(lambda: reset(guest) > 1.5, "it has used more than a start takes")
        daemon.start()
        until(lambda: daemon.host().link.libvirt_connected, "it has looked")
        daemon.stop()
        number = guest.domain.ID()
        guest.domain.destroy()
        own_libvirtd.stop()
        own_libvirtd.start()
        guest.domain.create()
        assert guest.domain.ID() == number
        daemon.start()
        with Watcher(daemon.target) as watcher:
            vms = Vms(own_guest, daemon, watcher)
            vms.until_true(guest, lambda vm: vm.incarnation == 2, "another boot")
            assert vms.story(guest)[-1] == f"{BOOTED}, per SURVEY, #2, late"
            check_history(daemon.stub, watcher)


def reset(guest: Guest) -> float:
    """Reset a guest many times; return how many seconds of CPU its process has used so far."""
    domain = guest.domain
    for _ in range(50):
        domain.reset()
    nanoseconds: int = domain.info()[-1]
    return nanoseconds / 1e9
