"""The daemon as a process of its own, the way an operator runs it."""

import itertools
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Self

import grpc
from vmagent.v1 import vm_agent_service_pb2 as pb
from vmagent.v1.vm_agent_service_pb2_grpc import VmAgentServiceStub

from tests.system.deadline import until

if TYPE_CHECKING:
    from vmagent.v1.host_pb2 import Host

# Long enough for a loaded machine; what takes longer hangs.
STARTS_WITHIN_S = 40.0
ENDS_WITHIN_S = 20.0

_LOG_LINES_SHOWN = 60
# Channels to one place share their connection, and how long they wait before the next attempt;
# a client of a daemon that was restarted is a new one.
_CHANNEL = [("grpc.use_local_subchannel_pool", 1)]

_count = itertools.count(1)


@dataclass(frozen=True, slots=True)
class Ended:
    """How a process ended."""

    code: int
    took_s: float
    said: str  # on standard error, from its start


class Daemon:
    """One vmagentd, with a socket and a state directory of its own.

    A context manager: entered, it serves; left, its process and its directory are gone. In
    between it may be stopped, killed and started again on the same state.

    Args:
        libvirt_uri: of the libvirt that it connects to.
        within: directory to make its own in; its name must be short, for a socket lies in there.
        settings: its configuration file.
    """

    def __init__(self, libvirt_uri: str, within: Path, *, settings: str = "") -> None:
        self.libvirt_uri = libvirt_uri
        self.directory = within / f"d{next(_count)}"
        self.socket = self.directory / "socket"
        self.state_dir = self.directory / "state"
        self.config = self.directory / "vmagentd.toml"
        self._settings = settings
        self._log = self.directory / "log"
        self._said_before = 0  # bytes in the log when the present process started
        self._process: subprocess.Popen[bytes] | None = None
        self._channel: grpc.Channel | None = None

    def __enter__(self) -> Self:
        self.prepare()
        try:
            self.start()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def prepare(self) -> None:
        """Make the directory and what belongs in there before the first start."""
        self.directory.mkdir(mode=0o700)
        self.config.write_text(self._settings)

    def close(self) -> None:
        """Kill the process if it is there, remove the directory. Harmless when repeated."""
        if self.running:
            self.kill()
        self._let_go()
        shutil.rmtree(self.directory, ignore_errors=True)

    @property
    def target(self) -> str:
        """Where clients find it."""
        return f"unix:{self.socket}"

    @property
    def running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    @property
    def pid(self) -> int:
        return self._present().pid

    @property
    def stub(self) -> VmAgentServiceStub:
        """A client of the present process."""
        if self._channel is None:
            self._channel = channel(self.target)
        return VmAgentServiceStub(self._channel)

    def host(self) -> "Host":
        return self.stub.GetHost(pb.GetHostRequest(), timeout=10).host

    def start(self, *, waits: bool = True, failpoint: str | None = None) -> None:
        """Start it, and return when it answers; at once if told not to wait.

        It dies at the *failpoint*, if it comes there.
        """
        if self._process is not None:
            raise RuntimeError("it runs already")
        # not when it ended: a call that was under way would be told that its client gave it up
        self._let_go()
        with self._log.open("ab") as log:
            self._said_before = log.tell()
            self._process = subprocess.Popen(
                self.command(),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env={**os.environ, "VMAGENTD_FAILPOINT": failpoint or ""},
            )
        if waits:
            self.wait_until_serving()

    def wait_until_serving(self) -> None:
        until(self._serves, f"vmagentd serves at {self.socket}", within_s=STARTS_WITHIN_S)

    def stop(self, with_signal: signal.Signals = signal.SIGTERM) -> Ended:
        """Ask it to end, and wait until it has."""
        began = time.monotonic()
        self._present().send_signal(with_signal)
        return self._ended(began)

    def kill(self) -> Ended:
        """Kill it (SIGKILL)."""
        return self.stop(signal.SIGKILL)

    def wait(self) -> Ended:
        """Wait until it ends by itself."""
        return self._ended(time.monotonic())

    def restart(self) -> None:
        """Stop it, and start it again on the same state."""
        self.stop()
        self.start()

    def log(self) -> str:
        """Return what the present process, or the last one, has said."""
        try:
            said = self._log.read_bytes()[self._said_before :]
        except FileNotFoundError:
            return ""
        return said.decode(errors="replace")

    def log_tail(self) -> str:
        """Return as much of the log as a person would read."""
        return "\n".join(self.log().splitlines()[-_LOG_LINES_SHOWN:])

    def command(self) -> list[str]:
        """Return the command that runs it; it does not outlive the test run."""
        setpriv = shutil.which("setpriv")
        return [
            *([setpriv, "--pdeathsig", "KILL", "--"] if setpriv else []),
            *(sys.executable, "-m", "vmagentd"),
            *("--config", os.fspath(self.config)),
            *("--libvirt-uri", self.libvirt_uri),
            *("--socket", os.fspath(self.socket)),
            *("--state-dir", os.fspath(self.state_dir)),
        ]

    def _present(self) -> subprocess.Popen[bytes]:
        if self._process is None:
            raise ProcessLookupError("vmagentd does not run")
        return self._process

    def _serves(self) -> bool:
        code = self._present().poll()
        if code is not None:
            raise AssertionError(f"vmagentd ended with {code}, saying:\n{self.log()}")
        if not self.socket.is_socket():
            return False
        try:
            self.host()
        except grpc.RpcError:  # a socket left behind by a process that was killed
            self._let_go()
            return False
        return True

    def _ended(self, began: float) -> Ended:
        process = self._present()
        try:
            code = process.wait(ENDS_WITHIN_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            raise AssertionError(f"vmagentd did not end, saying:\n{self.log()}") from None
        took_s = time.monotonic() - began
        self._process = None
        return Ended(code, took_s, self.log())

    def _let_go(self) -> None:
        if self._channel is not None:
            self._channel.close()
            self._channel = None


def channel(target: str) -> grpc.Channel:
    """Open a connection of one's own; close it."""
    return grpc.insecure_channel(target, options=_CHANNEL)
