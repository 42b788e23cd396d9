"""A hypervisor host: systemd as PID 1, journald, D-Bus, logind, polkit, libvirtd and QEMU.

It runs in namespaces (systemd-nspawn), on a layer over the tree of `tree.py`, without a network.
Root only. When the process that made it dies, the kernel kills all of it.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import tempfile
from functools import partial
from pathlib import Path
from typing import IO, TYPE_CHECKING, Self

from tests.host.tree import tree
from tests.system.deadline import until
from tests.system.keeper import descendants
from tests.system.machine import SEARCH_PATH, CannotRunError, is_root, program, unshare

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

# Long enough for a machine with other things to do.
BOOTS_WITHIN_S = 120.0
# What it starts is killed when this process has died of whatever cause.
_DIES_WITH_US = ("setpriv", "--pdeathsig", "KILL")
_REBOOT = 133  # how systemd-nspawn ends when what runs in it wants to be booted again

# $0: the host's directory, $1: the tree, $2: the host's name. Cgroups of its own in each hierarchy
# that there is, so that two hosts do not meet, and the machine's own are left alone.
_BOOT = f"""
for hierarchy in /sys/fs/cgroup/unified /sys/fs/cgroup/systemd /sys/fs/cgroup; do
    [ -e "$hierarchy/cgroup.procs" ] || continue
    mkdir -p "$hierarchy/$2" && echo $$ >"$hierarchy/$2/cgroup.procs" || :
done
mount -t tmpfs -o mode=755 tmpfs "$0/layer"
mkdir "$0/layer/upper" "$0/layer/work" "$0/root"
mount -t overlay overlay "$0/root" \
    -o "lowerdir=$1,upperdir=$0/layer/upper,workdir=$0/layer/work"
echo "$2" >"$0/root/etc/hostname"
printf '127.0.0.1 localhost %s\\n' "$2" >"$0/root/etc/hosts"
tr -d - </proc/sys/kernel/random/uuid >"$0/root/etc/machine-id"
mkdir -p "$0/root/var/log/journal"
while :; do
    code=0
    systemd-nspawn --quiet --directory="$0/root" --machine="$2" --boot --register=no --keep-unit \
        --private-network --capability=all --link-journal=no --console=pipe || code=$?
    [ $code = {_REBOOT} ] || exit $code
done
"""
_NSPAWN = {
    "SYSTEMD_NSPAWN_UNIFIED_HIERARCHY": "1",
    "SYSTEMD_NSPAWN_API_VFS_WRITABLE": "network",
    # the host's own systemd has its system call filters; nspawn's would stand in its way
    "SYSTEMD_SECCOMP": "0",
    "PATH": SEARCH_PATH,
}
_INSIDE = {
    "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
    "HOME": "/root",
    "LANG": "C.UTF-8",
    "LIBVIRT_DEFAULT_URI": "qemu:///system",
    "SYSTEMD_PAGER": "",
    "SYSTEMD_COLORS": "0",
    "DEBIAN_FRONTEND": "noninteractive",
}


class CommandFailedError(AssertionError):
    """A command in the host ended with another code than 0."""

    def __init__(self, command: str, code: int, said: str) -> None:
        super().__init__(f"{command}: exit code {code}\n{said}")


class Host:
    """One host. A context manager: entered, it has booted; left, nothing of it is there."""

    def __init__(self, name: str = "host") -> None:
        self.name = f"{name}-{os.getpid()}"
        self._boots: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        check_machine()
        self.directory = Path(tempfile.mkdtemp(prefix="vmagentd-host-", dir="/var/tmp"))
        (self.directory / "layer").mkdir()
        try:
            with (self.directory / "console").open("wb") as console:
                self._boots = subprocess.Popen(
                    [
                        *_DIES_WITH_US,
                        *unshare(),
                        "sh",
                        "-ec",
                        _BOOT,
                        self.directory,
                        tree(),
                        self.name,
                    ],
                    stdin=subprocess.DEVNULL,
                    stdout=console,
                    stderr=console,
                    env=_NSPAWN,
                    cwd="/",
                    start_new_session=True,
                )
            self.until_up()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Kill all of it, remove the directory. Harmless when repeated."""
        if self._boots is not None:
            # unshare's child is PID 1 of the namespace that all of it is in
            for process in descendants(self._boots.pid):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(process, signal.SIGKILL)
            self._boots.kill()
            self._boots.wait()
            self._boots = None
        for cgroup in Path("/sys/fs/cgroup").glob(f"**/{self.name}"):
            until(partial(_removed, cgroup), f"{cgroup} is empty")
        shutil.rmtree(self.directory, ignore_errors=True)

    # ------------------------------------------------------------------ from outside

    @property
    def leader(self) -> int:
        """The pid of the host's systemd, as this process sees it.

        Raises:
            ProcessLookupError: there is none.
        """
        if self._boots is None or self._boots.poll() is not None:
            raise CannotRunError(f"the host has ended, saying: {self.console()}")
        for process in descendants(self._boots.pid):
            # ours, unshare's and nspawn's namespace: the first of the last one
            with contextlib.suppress(FileNotFoundError, ProcessLookupError):
                status = Path(f"/proc/{process}/status").read_text()
                numbers = status.partition("NSpid:")[2].partition("\n")[0].split()
                if len(numbers) == 1 + _depth() + 1 and numbers[-1] == "1":
                    return process
        raise ProcessLookupError("no systemd runs in the host")

    def path(self, path: str) -> Path:
        """Return where this process finds a file of the host."""
        return Path(f"/proc/{self.leader}/root{path}")

    def console(self) -> str:
        """Return what was said on the host's console."""
        return (self.directory / "console").read_text(errors="replace")

    def until_up(self) -> None:
        """Wait until systemd has nothing more to start."""
        until(self._is_up, f"{self.name} has booted", within_s=BOOTS_WITHIN_S)

    def reboot(self) -> None:
        """Reboot as an administrator does, and wait until it is up again."""
        before = self.leader
        self.try_run("systemctl reboot")
        until(lambda: self._leads_another(before), "the host went down", within_s=BOOTS_WITHIN_S)
        self.until_up()

    # ------------------------------------------------------------------ in the host

    def run(self, command: str, *, user: str = "root", timeout_s: float = 120) -> str:
        """Run a shell command and return what it said on both outputs.

        Raises:
            CommandFailedError: its exit code is not 0.
        """
        code, said = self.try_run(command, user=user, timeout_s=timeout_s)
        if code:
            raise CommandFailedError(command, code, said)
        return said

    def try_run(
        self, command: str, *, user: str = "root", timeout_s: float = 120
    ) -> tuple[int, str]:
        """Run a shell command and return its exit code and what it said."""
        done = subprocess.run(
            self.words(command, user=user),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
            timeout=timeout_s,
        )
        return done.returncode, done.stdout.rstrip("\n")

    @contextlib.contextmanager
    def running(
        self, command: str, *, stdout: IO[bytes] | None = None
    ) -> Iterator[subprocess.Popen[bytes]]:
        """Run a shell command beside what goes on; left, nothing of it runs."""
        process = subprocess.Popen(
            self.words(command),
            stdin=subprocess.DEVNULL,
            stdout=stdout or subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        try:
            yield process
        finally:
            # nsenter's child is another process, and would go on in the host
            for pid in [*descendants(process.pid), process.pid]:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            process.wait()

    def words(self, command: str, *, user: str = "root") -> list[str]:
        """Return the words that run a shell command in the host."""
        enter = [program("nsenter"), f"--target={self.leader}", "--all"]
        clean = ["env", "--ignore-environment", "--chdir=/", *_assignments(_INSIDE)]
        if user == "root":
            return [*enter, *clean, "sh", "-c", command]
        # a login, with the groups that the user has by now
        return [*enter, *clean, "runuser", "-u", user, "--", "sh", "-c", command]

    def _is_up(self) -> bool:
        try:
            _, state = self.try_run("systemctl is-system-running")
        except ProcessLookupError:
            return False
        return state in {"running", "degraded"}

    def _leads_another(self, before: int) -> bool:
        try:
            return self.leader != before
        except ProcessLookupError:
            return False


def check_machine() -> None:
    """Check that hosts can run here.

    Raises:
        CannotRunError: they cannot; the message says why.
    """
    if not is_root():
        raise CannotRunError("a host of one's own needs root")
    for name, package in (("systemd-nspawn", "systemd-container"), ("mmdebstrap", "mmdebstrap")):
        if shutil.which(name, path=SEARCH_PATH) is None:
            raise CannotRunError(f"{name} is missing; scripts/setup host installs {package}")
    trial = subprocess.run(
        [*unshare(), "sh", "-c", "mount -t tmpfs tmpfs /mnt"],
        capture_output=True,
        text=True,
        check=False,
        timeout=30,
    )
    if trial.returncode:
        raise CannotRunError(
            "root may not make namespaces or mount here (a container without privileges?): "
            + trial.stderr.strip()
        )


def _depth() -> int:
    """Return how many PID namespaces this process is in."""
    status = Path("/proc/self/status").read_text()
    return len(status.partition("NSpid:")[2].partition("\n")[0].split())


def _removed(cgroup: Path) -> bool:
    """Remove a cgroup with all below it; False while a process is still in one of them."""
    below = sorted(cgroup.glob("**/"), key=lambda path: len(path.parts), reverse=True)
    try:
        for directory in [*below, cgroup]:
            if directory.exists():
                directory.rmdir()
    except OSError:
        return False
    return True


def _assignments(environment: Mapping[str, str]) -> list[str]:
    return [f"{key}={value}" for key, value in environment.items()]
