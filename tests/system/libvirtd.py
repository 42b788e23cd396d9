"""A libvirtd of the tests' own, to stop, kill and freeze at will.

Beside the machine's own libvirtd and without touching it: another directory for everything, and
for root its own mount, PID and network namespaces with an empty /run (no D-Bus, so no polkit and
no systemd-machined) and without cgroups. Its processes belong to a keeper (`keeper.py`), which
outlives the test run just long enough to clean up after it.

Works as root (`qemu:///system`) and as an ordinary user (`qemu:///session`).
"""

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Self

import libvirt

from tests.system.deadline import until
from tests.system.keeper import descendants
from tests.system.machine import (
    SEARCH_PATH,
    CannotRunError,
    check_machine,
    is_root,
    program,
    unshare,
)

KEEPER = Path(__file__).with_name("keeper.py")
# A guest's monitor socket lies up to 70 characters below the directory, of the 107 there may be.
_LONGEST_TMPDIR = 20

# Runs in the namespaces, before the keeper. A cgroup file system that is not there cannot be
# shared with the machine's libvirtd. A /dev/kvm that only root may open would make libvirt, which
# probes QEMU as root and runs it as another user, distrust what it found and probe anew (2 s) at
# every look: hence a node for all.
_FURNISH = """
for place in etc:/etc/libvirt lib:/var/lib/libvirt cache:/var/cache/libvirt log:/var/log/libvirt \
             run:/run
do mount --bind "$0/${place%%:*}" "${place#*:}"
done
umount --recursive --lazy /sys/fs/cgroup 2>/dev/null || :
if [ -e /dev/kvm ]; then
    mount -t tmpfs tmpfs "$0/dev"
    mknod -m 666 "$0/dev/kvm" c 10 232
    mount --bind "$0/dev/kvm" /dev/kvm
    umount "$0/dev"
fi
exec "$@"
"""
# QEMU's output to plain files: no virtlogd, which would be one more daemon to keep. No AppArmor
# profiles and /dev of its own per guest. No core size beyond ours, which may be the hard limit.
_QEMU_CONF = """
stdio_handler = "file"
security_driver = "none"
namespaces = []
max_core = 0
"""
_LIBVIRTD_CONF = """
auth_unix_rw = "none"
auth_unix_ro = "none"
log_outputs = "3:stderr"
"""


class PrivateLibvirtd:
    """One libvirtd and its guests.

    A context manager: entered, libvirtd answers; left, every process, mount and file is gone.
    Not for use from several threads at once.

    Args:
        cache: the `cache` of another one, to copy; saves it from probing QEMU (1.5 s) itself.
    """

    def __init__(self, cache: Path | None = None) -> None:
        self._cache = cache
        self._keeper: subprocess.Popen[str] | None = None
        self._connection: libvirt.virConnect | None = None
        self._pid = 0  # of libvirtd, as its keeper knows it; 0: not running

    def __enter__(self) -> Self:
        check_machine()
        self.directory = Path(tempfile.mkdtemp(prefix="vm-", dir=_short_tmpdir()))
        self.directory.chmod(0o755)
        try:
            self._furnish()
            self._keeper = self._start_keeper()
            self.start()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Kill libvirtd and all guests, remove the directory. Harmless when repeated."""
        if self._keeper is not None:
            keeper, self._keeper = self._keeper, None
            stdin, stdout = _pipes(keeper)
            stdin.close()
            try:
                keeper.wait(timeout=20)
            finally:
                keeper.kill()  # only if it has not gone by itself
                keeper.wait()
                stdout.close()
        self._forget_connection()
        with contextlib.suppress(FileNotFoundError):
            shutil.rmtree(self.directory)

    @property
    def uri(self) -> str:
        kind = "system" if is_root() else "session"
        return f"qemu:///{kind}?socket={self._socket}"

    @property
    def cache(self) -> Path:
        """What libvirtd keeps about this machine's QEMU."""
        return self.directory / "cache"

    @property
    def _socket(self) -> str:
        return f"{self.directory}/run/libvirt/libvirt-sock"

    @property
    def connection(self) -> libvirt.virConnect:
        """A raw connection, opened again after libvirtd was; `virDomain`s do not survive that."""
        if self._connection is None:
            self._connection = libvirt.open(self.uri)
        return self._connection

    @property
    def pid(self) -> int:
        """The pid of libvirtd, as this process sees it."""
        return self._visible_pid(self._pid)

    def start(self) -> None:
        """Start libvirtd, and return when it answers. Guests that run are taken over."""
        if self._pid:
            raise RuntimeError("libvirtd runs already")
        config = self.directory / "libvirtd.conf"
        self._pid = self._spawn([program("libvirtd"), "--config", os.fspath(config)])
        until(self._answers, f"an answer from libvirtd at {self.uri}", within_s=30)

    def stop(self) -> None:
        """Ask libvirtd to end (SIGTERM) and wait until it has. Guests live on."""
        self._end(signal.SIGTERM)

    def kill(self) -> None:
        """Kill libvirtd (SIGKILL). Guests live on."""
        self._end(signal.SIGKILL)

    def freeze(self) -> None:
        """Let libvirtd hang (SIGSTOP): connections stay open, nothing answers."""
        pid = self.pid
        os.kill(pid, signal.SIGSTOP)
        until(lambda: _process_state(pid) == "T", "libvirtd frozen")

    def thaw(self) -> None:
        os.kill(self.pid, signal.SIGCONT)

    def qemu_pid(self, name: str) -> int:
        """Return the pid of a guest's QEMU, as this process sees it.

        Raises:
            ProcessLookupError: the guest has no process.
        """
        state = self.directory / "run/libvirt/qemu"
        file = (state if is_root() else state / "run") / f"{name}.pid"
        try:
            return self._visible_pid(int(file.read_text()))
        except FileNotFoundError:
            raise ProcessLookupError(f"no QEMU process of guest {name}") from None

    def signal_qemu(self, name: str, signal_: signal.Signals) -> None:
        os.kill(self.qemu_pid(name), signal_)

    def qemu_status(self, name: str) -> str:
        """Ask a guest's QEMU itself for its state ("running", "shutdown", "guest-panicked", ...).

        Only while libvirtd is away: QEMU talks to one at a time.
        """
        (path,) = self.directory.glob(f"**/domain-*-{name}/monitor.sock")
        with socket.socket(socket.AF_UNIX) as client:
            client.settimeout(10)
            client.connect(os.fspath(path))
            client.sendall(b'{"execute":"qmp_capabilities"}{"execute":"query-status"}')
            with client.makefile() as lines:
                answers = map(json.loads, lines)
                status = next(a["return"]["status"] for a in answers if a.get("return"))
        return str(status)

    def log(self) -> str:
        """Return what libvirtd and its like have printed: warnings and errors."""
        with contextlib.suppress(FileNotFoundError):
            return (self.directory / "output.log").read_text(errors="replace")
        return ""

    # ------------------------------------------------------------------ within

    def _furnish(self) -> None:
        for place in ("dev", "etc/libvirt", "lib", "cache", "log", "run/libvirt"):
            (self.directory / place).mkdir(mode=0o755, parents=True)
        (self.directory / "run").chmod(0o755 if is_root() else 0o700)
        if self._cache is not None:
            shutil.copytree(self._cache, self.cache, dirs_exist_ok=True)
        etc = self.directory / ("etc" if is_root() else "etc/libvirt")
        (etc / "qemu.conf").write_text(_QEMU_CONF)
        (self.directory / "libvirtd.conf").write_text(_LIBVIRTD_CONF)

    def _start_keeper(self) -> subprocess.Popen[str]:
        directory = os.fspath(self.directory)
        command = [sys.executable, "-I", os.fspath(KEEPER), directory]
        if is_root():
            command = [*unshare(), "sh", "-ec", _FURNISH, directory, *command]
        # Out of the terminal's reach: Ctrl-C ends the test run, and that ends the keeper.
        return subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=self._environment(),
            cwd="/",
            start_new_session=True,
        )

    def _environment(self) -> Mapping[str, str]:
        """Nothing of the caller's: no buses, no XDG directories, no LIBVIRT_*."""
        nowhere = f"unix:path={self.directory}/no-bus"
        places = {"XDG_RUNTIME_DIR": "run", "XDG_CONFIG_HOME": "etc", "XDG_CACHE_HOME": "cache"}
        return {
            "PATH": SEARCH_PATH,
            "LC_ALL": "C.UTF-8",
            "HOME": os.fspath(self.directory),
            "DBUS_SYSTEM_BUS_ADDRESS": nowhere,
            "DBUS_SESSION_BUS_ADDRESS": nowhere,
            **({} if is_root() else {k: f"{self.directory}/{v}" for k, v in places.items()}),
        }

    def _spawn(self, argv: list[str]) -> int:
        if self._keeper is None:
            raise RuntimeError("not entered, or closed")
        stdin, stdout = _pipes(self._keeper)
        stdin.write(json.dumps(argv) + "\n")
        stdin.flush()
        answer = stdout.readline()
        if not answer:
            raise CannotRunError("the keeper of the private libvirtd died; see standard error")
        return int(answer)

    def _answers(self) -> bool:
        try:
            self._visible_pid(self._pid)
        except ProcessLookupError:
            raise CannotRunError(f"libvirtd ended at once, saying: {self.log()}") from None
        with socket.socket(socket.AF_UNIX) as knock:  # libvirt.open() would print each failure
            if knock.connect_ex(self._socket):
                return False
        libvirt.open(self.uri).close()
        return True

    def _end(self, with_signal: signal.Signals) -> None:
        pid = self.pid
        os.kill(pid, with_signal)
        until(lambda: _process_state(pid) is None, f"end of libvirtd by {with_signal.name}")
        self._pid = 0
        self._forget_connection()

    def _forget_connection(self) -> None:
        """Close the connection to a libvirtd that has ended; a frozen one would never answer."""
        if self._connection is not None:
            connection, self._connection = self._connection, None
            with contextlib.suppress(libvirt.libvirtError):
                connection.close()

    def _visible_pid(self, pid: int) -> int:
        """Return this process's number for a process that its namespace numbers *pid*."""
        if not pid or self._keeper is None:
            raise ProcessLookupError("not running")
        for process in descendants(self._keeper.pid):
            status = _status(process)
            if status.get("NSpid", "").split()[-1:] == [str(pid)]:
                return process
        raise ProcessLookupError(f"libvirtd's process {pid} is gone")


def _short_tmpdir() -> str:
    """Return a directory with a short name, and for root one that QEMU's user can enter too."""
    ours = tempfile.gettempdir()
    return "/tmp" if is_root() or len(ours) > _LONGEST_TMPDIR else ours


def _pipes(keeper: subprocess.Popen[str]) -> tuple[IO[str], IO[str]]:
    if keeper.stdin is None or keeper.stdout is None:
        raise RuntimeError("the keeper was started without pipes")
    return keeper.stdin, keeper.stdout


def _process_state(pid: int) -> str | None:
    """Return the state letter of a process, None once it is gone.

    A zombie is not gone: it may have threads that still hold its sockets open.
    """
    return _status(pid).get("State", " ")[0].strip() or None


def _status(pid: int) -> dict[str, str]:
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except (FileNotFoundError, ProcessLookupError):
        return {}
    return {key: value.strip() for key, _, value in (line.partition(":") for line in lines)}
