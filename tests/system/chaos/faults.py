"""The daemon is ended and started again, and so is libvirtd, which also hangs at times."""

import time
from random import Random
from threading import Event
from typing import Final

from tests.system.chaos.record import Record
from tests.system.daemon import Daemon
from tests.system.deadline import NeverHappenedError, until
from tests.system.libvirtd import PrivateLibvirtd

# One time in so many the daemon is asked to end.
_ORDERLY: Final = 8
# One that was blind before, and finds no libvirtd, writes nothing until that is back.
_WRITES_WITHIN_S: Final = 30.0


class DaemonFaults:
    """Ends the daemon again and again, and starts it on the same state.

    For one thread, which must live as long as the daemon: a daemon that is started dies with the
    thread that started it.
    """

    def __init__(self, daemon: Daemon, random: Random) -> None:
        self._daemon = daemon
        self._random = random

    def now_and_then(self, record: Record, seconds: float) -> None:
        """End it at random moments, after it has served for a while."""
        end = time.monotonic() + seconds
        while (left := end - time.monotonic()) > 0:
            lives_s, gone_s = self._random.expovariate(0.7), self._random.expovariate(5)
            orderly = self._random.randrange(_ORDERLY) == 0
            time.sleep(min(lives_s, left))  # the plan's
            if time.monotonic() < end:
                self._end(record, orderly=orderly)
                time.sleep(gone_s)  # the plan's
                with record.act("daemon", "start daemon", "daemon"):
                    self._daemon.start()

    def in_a_burst(self, record: Record, seconds: float) -> None:
        """Kill it as soon as it writes: while it starts, surveys, recovers and serves."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            serves, lives_s = self._random.random() < 0.4, self._random.uniform(0, 0.3)
            self._end(record)
            written = self._written_ns()
            with record.act("daemon", "start daemon", "daemon"):
                self._daemon.start(waits=serves)
                until(
                    lambda w=written: self._written_ns() != w,  # type: ignore[misc]
                    "it writes",
                    within_s=_WRITES_WITHIN_S,
                )
            time.sleep(lives_s)  # the plan's
        self._end(record)
        self._daemon.start()

    def _written_ns(self) -> int:
        """Return when the journal was written to last."""
        try:
            return (self._daemon.state_dir / "journal.db-wal").stat().st_mtime_ns
        except FileNotFoundError:
            return 0

    def _end(self, record: Record, *, orderly: bool = False) -> None:
        if not self._daemon.running:
            ended = self._daemon.wait()
            raise AssertionError(f"vmagentd ended by itself, {ended.code}:\n{ended.said}")
        what = "ask daemon to end" if orderly else "kill daemon"
        with record.act("daemon", what, "daemon"):
            if orderly:
                self._daemon.stop()
            else:
                self._daemon.kill()


def trouble_libvirtd(
    libvirtd: PrivateLibvirtd, random: Random, record: Record, over: Event
) -> None:
    """Let libvirtd end, or hang, and come back, until the round is *over*; it is up then."""
    while True:
        steady_s, gone_s = random.uniform(0.5, 5), random.expovariate(3)
        what = random.choice(("kill", "kill", "stop", "freeze"))
        if over.wait(steady_s):
            return
        if what == "freeze":
            with record.act("libvirtd", "freeze libvirtd", "libvirtd"):
                libvirtd.freeze()
                time.sleep(min(gone_s, 1.5))  # the plan's
                libvirtd.thaw()
            continue
        with record.act("libvirtd", f"{what} libvirtd", "libvirtd"):
            _stop(libvirtd) if what == "stop" else libvirtd.kill()
        time.sleep(min(gone_s, 1.5))  # the plan's
        with record.act("libvirtd", "start libvirtd", "libvirtd"):
            libvirtd.start()


def _stop(libvirtd: PrivateLibvirtd) -> None:
    """Ask libvirtd to end; one that waits for a guest that hangs is killed, as systemd would."""
    try:
        libvirtd.stop()
    except NeverHappenedError:
        libvirtd.kill()
