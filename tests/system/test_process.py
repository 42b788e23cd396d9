"""The daemon as a process: how it starts, ends, refuses to start, and survives being killed."""

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from vmagent.v1 import vm_agent_service_pb2 as pb

from tests.system.calls import finished, read_until
from tests.system.conftest import SETTINGS
from tests.system.daemon import Daemon, Ended
from tests.system.deadline import until
from tests.system.domains import Guest, Guests, Spec
from tests.system.guests import Behaviour, Roms
from tests.system.history import check_history, journal, state, tell
from tests.system.libvirtd import PrivateLibvirtd
from tests.system.vms import Vms
from tests.system.watcher import Watcher

CANNOT_RUN = 1
WRONG_SETTINGS = 78
ENDS_WITHIN_S = 5.0

BOOTED = "RUNNING/BOOTED by OUT_OF_BAND"


@pytest.fixture
def other(libvirtd: PrivateLibvirtd) -> Iterator[Daemon]:
    """A daemon that was not started yet."""
    another = Daemon(libvirtd.uri, libvirtd.directory)
    another.prepare()
    yield another
    another.close()


def vmagentd(config: Path, *arguments: str) -> Ended:
    """Run the command to its end; it gets nowhere near the machine's own daemon."""
    nowhere = os.fspath(config.with_name("nowhere"))
    done = subprocess.run(
        [
            *(sys.executable, "-m", "vmagentd", "--config", os.fspath(config), *arguments),
            *("--socket", nowhere, "--state-dir", nowhere, "--libvirt-uri", "test:///default"),
        ],
        capture_output=True,
        text=True,
        check=False,
        timeout=20,
    )
    return Ended(done.returncode, 0, done.stderr or done.stdout)


@pytest.mark.parametrize("with_signal", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_it_whoever_is_there(
    with_signal: signal.Signals, own_daemon: Daemon, guest: Guests
) -> None:
    with ExitStack() as stack:
        watchers = [stack.enter_context(Watcher(own_daemon.target)) for _ in range(3)]
        vms = Vms(guest, own_daemon, watchers[0])
        vm = vms.up(Spec(Behaviour.DEAF))
        stopping = vms.stopping(vm, grace_s=60)
        asked = read_until(stopping, "SIGNALLED")

        ended = own_daemon.stop(with_signal)
        assert ended.code == 0
        assert ended.took_s < ENDS_WITHIN_S
        assert not own_daemon.socket.exists()
        for watcher in watchers:
            why = watcher.until_ended()
            assert (why.code, why.reason) == ("UNAVAILABLE", "SHUTTING_DOWN")
        cut_off = finished(stopping, asked)
        assert cut_off.refusal is not None
        assert cut_off.refusal.code == "UNAVAILABLE"
        assert cut_off.refusal.reason == "SHUTTING_DOWN"

    # VM and operation were left alone: the next daemon goes on with both
    assert vm.domain.isActive()
    own_daemon.start()
    assert vms.vm(vm).active_operation_id == asked.operation.operation_id
    forced = vms.force_off(vm)
    assert forced.operation.operation_id == asked.operation.operation_id
    assert forced.result == "DONE"


def test_it_ends_in_time_though_libvirtd_hangs(own_libvirtd: PrivateLibvirtd) -> None:
    with Daemon(own_libvirtd.uri, own_libvirtd.directory) as daemon:
        own_libvirtd.freeze()
        ended = daemon.stop()
        assert (ended.code, ended.took_s < ENDS_WITHIN_S) == (0, True)
    asking = Daemon(own_libvirtd.uri, own_libvirtd.directory)
    asking.prepare()
    try:  # before it has ever been answered
        asking.start(waits=False)
        until((asking.state_dir / "journal.db").exists, "the journal is open")
        ended = asking.stop()
        assert (ended.code, ended.took_s < ENDS_WITHIN_S) == (0, True)
    finally:
        asking.close()


def test_a_socket_that_another_daemon_serves_is_refused(daemon: Daemon, other: Daemon) -> None:
    other.socket = daemon.socket
    other.start(waits=False)
    assert_refused(other.wait(), CANNOT_RUN, str(daemon.socket), "another vmagentd", "--socket")
    assert daemon.host().journal_id


def test_a_state_directory_that_another_daemon_holds_is_refused(
    daemon: Daemon, other: Daemon
) -> None:
    other.state_dir = daemon.state_dir
    other.start(waits=False)
    said = [str(daemon.state_dir), "another vmagentd", "--state-dir"]
    assert_refused(other.wait(), CANNOT_RUN, *said)
    assert daemon.host().journal_writable


def test_a_file_in_the_sockets_place_is_refused_and_left_alone(other: Daemon) -> None:
    other.socket.write_text("precious")
    other.start(waits=False)
    assert_refused(other.wait(), CANNOT_RUN, str(other.socket), "no socket")
    assert other.socket.read_text() == "precious"


@pytest.mark.parametrize("check", [[], ["--check-config"]], ids=["start", "check"])
def test_every_wrong_setting_is_named(check: list[str], tmp_path: Path) -> None:
    config = tmp_path / "vmagentd.toml"
    config.write_text("""
        libvirt_ury = "qemu:///system"
        survey_interval = 60
        socket_mode = "rw"
        [stop]
        press_interval = "1 fortnight"
    """)
    ended = vmagentd(config, *check)
    assert ended.code == WRONG_SETTINGS
    assert [line.split(": ")[1:3] for line in ended.said.splitlines()] == [
        [f"{config}:2", "libvirt_ury"],
        [f"{config}:3", "survey_interval"],
        [f"{config}:4", "socket_mode"],
        [f"{config}:6", "stop.press_interval"],
    ]


@pytest.mark.parametrize(
    ("spoil", "why"),
    [
        (lambda file: None, "no such file"),
        (lambda file: file.mkdir(), "directory"),
        (lambda file: file.write_text("socket = "), "not TOML"),
        (lambda file: file.write_bytes(b"\xff\xfe"), "not TOML"),
        (lambda file: file.touch(mode=0), "denied"),
    ],
    ids=["missing", "a directory", "not TOML", "not text", "not ours"],
)
def test_settings_that_cannot_be_read(
    spoil: Callable[[Path], object], why: str, tmp_path: Path
) -> None:
    config = tmp_path / "vmagentd.toml"
    spoil(config)
    if why == "denied" and os.access(config, os.R_OK):
        pytest.skip("this user may read everything")
    ended = vmagentd(config)
    assert_refused(ended, WRONG_SETTINGS, str(config))
    assert why in ended.said.lower() or why in ended.said


def test_settings_without_a_problem_are_said_to_have_none(daemon: Daemon) -> None:
    checked = vmagentd(daemon.config, "--check-config")
    assert (checked.code, checked.said) == (0, f"{daemon.config}: no problem found\n")


def assert_refused(ended: Ended, code: int, *words: str) -> None:
    """Check that a daemon refused to start in one line with all these words."""
    assert ended.code == code
    said = [line for line in ended.said.splitlines() if " INFO " not in line]
    assert len(said) == 1, ended.said
    assert [word for word in words if word not in said[0]] == [], said[0]


def test_it_starts_before_libvirtd(own_libvirtd: PrivateLibvirtd, own_guest: Guests) -> None:
    vm = own_guest()
    own_libvirtd.stop()
    with Daemon(own_libvirtd.uri, own_libvirtd.directory, settings=SETTINGS) as daemon:
        host = daemon.host()
        assert not host.link.libvirt_connected
        assert host.link.HasField("blind_since")
        assert not daemon.stub.ListVms(pb.ListVmsRequest()).vms
        with Watcher(daemon.target) as watcher:
            assert not watcher.heartbeats[-1].libvirt_connected
            own_libvirtd.start()
            watcher.until(lambda: watcher.heartbeats[-1].libvirt_connected, "connected")
            assert [tell(t) for t in watcher.of(vm.uuid)] == [f"{BOOTED}, per SURVEY"]
            check_history(daemon.stub, watcher)

        # the next one knows the VM from the journal, and says that this is old news
        daemon.stop()
        own_libvirtd.stop()
        daemon.start()
        answer = daemon.stub.GetVm(pb.GetVmRequest(vm=vm.uuid))
        assert state(answer.vm) == "RUNNING/BOOTED"
        assert not answer.link.libvirt_connected
        assert answer.vm.verify_time.ToNanoseconds() < answer.link.blind_since.ToNanoseconds()


def test_what_happened_while_it_was_away_is_told_late(own_daemon: Daemon, guest: Guests) -> None:
    with Watcher(own_daemon.target) as watcher:
        vms = Vms(guest, own_daemon, watcher)
        untouched, destroyed, rebooted = vms.up(), vms.up(), vms.up()
        undefined, transient, started = vms.off(), vms.transient(), vms.off()
        vms.settle()
        cursor, journal_id = watcher.cursor, own_daemon.host().journal_id
        own_daemon.stop()
    destroyed.domain.destroy()
    rebooted.domain.destroy()
    rebooted.domain.create()
    undefined.domain.undefine()
    transient.domain.destroy()
    started.domain.create()
    new = guest()
    own_daemon.start()
    assert own_daemon.host().journal_id == journal_id

    def told(vm: Guest) -> list[str]:
        return [tell(t) for t in journal(own_daemon.stub, vm.uuid, after=cursor.revision)]

    by_survey = ", per SURVEY"
    assert told(untouched) == []
    assert told(destroyed) == [f"STOPPED/FORCED by OUT_OF_BAND{by_survey}, late"]
    assert told(rebooted) == [f"{BOOTED}{by_survey}, #2, late"]
    assert told(undefined) == [f"GONE/MISSING by UNKNOWN{by_survey}, #0, transient, late"]
    assert told(transient) == [f"GONE/MISSING by UNKNOWN{by_survey}, transient, late"]
    assert told(started) == [f"{BOOTED}{by_survey}, late"]
    assert told(new) == [f"{BOOTED}{by_survey}"]
    away = own_daemon.host().blind_intervals[0]
    assert "stopped" in away.cause
    assert away.end_time.ToNanoseconds() > away.begin_time.ToNanoseconds()
    with Watcher(own_daemon.target, resume=cursor) as resumed:
        resumed.until(lambda: resumed.revision == own_daemon.host().head_revision, "all is told")
        check_history(own_daemon.stub, watcher, resumed)


def test_killed_while_writing_it_loses_nothing_that_anybody_saw(
    own_daemon: Daemon, guest: Guests
) -> None:
    watchers: list[Watcher] = []
    enough = threading.Event()
    with Watcher(own_daemon.target) as first:
        vms = Vms(guest, own_daemon, first)
        busy = [vms.up(Spec(Behaviour.DEAF)), vms.up(Spec(Behaviour.DEAF))]
        vms.settle()
    watchers.append(first)

    burst = threading.Thread(target=flicker, args=(busy, enough))
    burst.start()
    try:
        for _ in range(4):
            with Watcher(own_daemon.target, resume=watchers[-1].cursor) as watcher:
                watcher.until(lambda w=watcher: len(w.transitions) > 100, "a burst")  # type: ignore[misc]
                own_daemon.kill()
                watcher.until_ended()
            watchers.append(watcher)
            assert own_daemon.socket.is_socket()  # left behind, and no obstacle
            own_daemon.start()
    finally:
        enough.set()
        burst.join()
    with Watcher(own_daemon.target, resume=watchers[-1].cursor) as last:
        vms = Vms(guest, own_daemon, last)
        for vm in busy:
            vm.domain.suspend()
            vms.until(vm, "PAUSED/PAUSED_BY_USER")
        vms.settle()
        check_history(own_daemon.stub, *watchers, last)


def flicker(guests: list[Guest], enough: threading.Event) -> None:
    """Pause guests and let them go on, as fast as libvirt can."""
    domains = [guest.domain for guest in guests]
    while not enough.is_set():
        for domain in domains:
            domain.suspend()
            domain.resume()


def test_settings_on_the_command_line_win(other: Daemon, roms: Roms) -> None:
    other.config.write_text(f'socket = "{roms.directory}/elsewhere"\n')
    other.start()
    assert other.host().libvirt_uri == other.libvirt_uri


def test_the_installed_command_is_the_same() -> None:
    script = Path(sys.executable).with_name("vmagentd")
    if not script.exists():
        pytest.skip("vmagentd is not installed beside this Python")
    done = subprocess.run([script, "--version"], capture_output=True, check=False, timeout=20)
    assert done.returncode == 0
    assert done.stdout.startswith(b"vmagentd ")
