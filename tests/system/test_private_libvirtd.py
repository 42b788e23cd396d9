"""The private libvirtd's own tests: guests outlive its end, nothing outlives its closing."""

import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path

import libvirt
import pytest

from tests.system.deadline import until
from tests.system.domains import Guests, Spec
from tests.system.guests import Behaviour, Roms
from tests.system.libvirtd import PrivateLibvirtd
from tests.system.recorder import Recorder

REPOSITORY = Path(__file__).parents[2]
NOBODY = 65534
RUNNING = (libvirt.VIR_DOMAIN_RUNNING, libvirt.VIR_DOMAIN_RUNNING_BOOTED)


@pytest.mark.parametrize("end", [PrivateLibvirtd.stop, PrivateLibvirtd.kill])
def test_guests_outlive_libvirtd(
    end: Callable[[PrivateLibvirtd], None],
    own_libvirtd: PrivateLibvirtd,
    own_guest: Guests,
    tmp_path: Path,
) -> None:
    vms = [own_guest(), own_guest(persistent=False)]
    pids = [own_libvirtd.qemu_pid(vm.name) for vm in vms]
    with Recorder(own_libvirtd.uri, tmp_path / "events.jsonl") as recorder:
        end(own_libvirtd)
        recorder.until("", "CLOSED/EOF")
    with pytest.raises(libvirt.libvirtError, match="Failed to connect socket"):
        libvirt.open(own_libvirtd.uri)  # and nobody starts another one behind our back

    own_libvirtd.start()
    assert [own_libvirtd.qemu_pid(vm.name) for vm in vms] == pids
    assert [vm.state for vm in vms] == [RUNNING, RUNNING]


def test_what_guests_do_while_libvirtd_is_away(
    own_libvirtd: PrivateLibvirtd, own_guest: Guests
) -> None:
    killed, transient, destroyed = own_guest(), own_guest(persistent=False), own_guest()
    destroyed.domain.destroy()
    off = own_guest(Spec(Behaviour.POWEROFF, 1.0))
    off.signal(signal.SIGSTOP)  # it goes on when libvirtd has gone
    panicked = own_guest(Spec(Behaviour.PANIC, 1.0))
    panicked.signal(signal.SIGSTOP)
    own_libvirtd.stop()
    off.signal(signal.SIGCONT)
    panicked.signal(signal.SIGCONT)
    killed.signal(signal.SIGKILL)
    transient.signal(signal.SIGKILL)
    until(lambda: own_libvirtd.qemu_status(off.name) == "shutdown", "guest off")
    until(lambda: own_libvirtd.qemu_status(panicked.name) == "guest-panicked", "guest panicked")
    own_libvirtd.start()
    off.until_state(libvirt.VIR_DOMAIN_SHUTOFF)
    panicked.until_state(libvirt.VIR_DOMAIN_CRASHED)
    assert killed.state == (libvirt.VIR_DOMAIN_SHUTOFF, libvirt.VIR_DOMAIN_SHUTOFF_CRASHED)
    assert transient.state is None
    assert destroyed.state == (libvirt.VIR_DOMAIN_SHUTOFF, libvirt.VIR_DOMAIN_SHUTOFF_UNKNOWN)


def test_a_frozen_libvirtd_tells_later(
    own_libvirtd: PrivateLibvirtd, own_guest: Guests, tmp_path: Path
) -> None:
    vm = own_guest()
    with Recorder(own_libvirtd.uri, tmp_path / "events.jsonl") as recorder:
        own_libvirtd.freeze()
        pid = own_libvirtd.qemu_pid(vm.name)
        vm.signal(signal.SIGKILL)
        until(lambda: not Path(f"/proc/{pid}").exists(), "QEMU is gone")
        assert recorder.of(vm.uuid) == []
        own_libvirtd.thaw()
        assert recorder.until(vm.uuid, "STOPPED/FAILED") == ["STOPPED/FAILED"]


def test_a_frozen_libvirtd_can_be_killed_and_closed() -> None:
    with PrivateLibvirtd() as private:
        assert private.connection.isAlive()
        private.freeze()
        private.kill()
        private.start()
        assert private.connection.isAlive()
        private.freeze()


def test_closing_leaves_nothing_behind() -> None:
    with PrivateLibvirtd() as private:
        vm = Guests(private, Roms(private.directory))(persistent=False)
        pids = [private.pid, private.qemu_pid(vm.name)]
    assert _left_behind(private.directory, pids) == []
    private.close()


@pytest.mark.parametrize("end", [signal.SIGKILL, signal.SIGINT])
def test_an_interrupted_run_leaves_nothing_behind(end: signal.Signals) -> None:
    run = subprocess.Popen(
        [sys.executable, "-c", INTERRUPTED],
        cwd=REPOSITORY,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,  # KeyboardInterrupt's traceback
        text=True,
    )
    assert run.stdout is not None
    with run.stdout:
        directory, *pids = run.stdout.readline().split()
        assert len(pids) == 2
        run.send_signal(end)
        run.wait()
    until(lambda: not _left_behind(Path(directory), map(int, pids)), "nothing is left")


INTERRUPTED = """
import signal
import time
from tests.system.domains import Guests
from tests.system.guests import Roms
from tests.system.libvirtd import PrivateLibvirtd

signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored below a shell's `&`
with PrivateLibvirtd() as private:
    vm = Guests(private, Roms(private.directory))()
    print(private.directory, private.pid, private.qemu_pid(vm.name), flush=True)
    while True:
        time.sleep(1)  # not pause(), which a signal of just before it does not end
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="not root: all tests here run as an ordinary user")
def test_it_works_for_an_ordinary_user_too() -> None:
    """Runs the other tests here as nobody.

    With one capability that nobody lacks: to read, for our Python may lie in root's home.
    """
    setpriv = shutil.which("setpriv")
    if setpriv is None:
        pytest.skip("setpriv is not installed (Debian package: util-linux)")
    with tempfile.TemporaryDirectory(prefix="vm-") as scratch:
        os.chown(scratch, NOBODY, NOBODY)
        run = subprocess.run(
            [
                *(setpriv, f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups"),
                *("--inh-caps=+dac_read_search", "--ambient-caps=+dac_read_search"),
                *(sys.executable, "-B", "-m", "pytest", "-p", "no:cacheprovider"),
                *("--basetemp", f"{scratch}/t", __file__),
            ],
            cwd=REPOSITORY,
            env={"PATH": os.environ["PATH"], "HOME": scratch},
            capture_output=True,
            text=True,
            check=False,
            timeout=150,
        )
    assert run.returncode == 0, run.stdout + run.stderr
    assert "8 passed, 1 skipped" in run.stdout


def _left_behind(directory: Path, pids: Iterable[int]) -> list[str]:
    places = [directory, *(Path(f"/proc/{pid}") for pid in pids)]
    mounts = Path("/proc/self/mounts").read_text().splitlines()
    return [
        *(str(place) for place in places if place.exists()),
        *(mount for mount in mounts if str(directory) in mount),
    ]
