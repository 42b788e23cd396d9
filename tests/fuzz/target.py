"""The daemon under fire, and what must hold of it whatever was sent."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Final, Self

import grpc
from vmagent.v1 import vm_agent_service_pb2 as pb

from tests.fuzz.messages import VMS
from tests.system.daemon import Daemon
from tests.system.deadline import until

_MIB: Final = 1 << 20
# At rest it has 70 MiB; each limit that holds it, taken by itself, is far below the rest.
MAX_RSS: Final = 300 * _MIB
_MAX_DESCRIPTORS: Final = 100
_ANSWERS_WITHIN_S: Final = 20.0

_DOMAIN = """<domain type='test'><name>{name}</name>
<uuid>0000000{number}-0000-4000-8000-000000000000</uuid><memory>65536</memory><vcpu>1</vcpu>
<os><type>hvm</type></os></domain>"""

# What may stand in the log beside lines of the life of a daemon. Each has its reason.
_UNDERSTOOD: Final = re.compile(
    # a method's name that is not UTF-8 ends gRPC's own loop: see `api/server.py`
    r"gRPC has stopped taking calls(, \d+ times by now)?; serving anew"
)
_BAD: Final = re.compile(r"\b(ERROR|CRITICAL)\b|Traceback")


class Target:
    """A daemon with a few VMs of libvirt's test driver. A context manager."""

    def __init__(self, within: Path) -> None:
        host = within / "host.xml"
        domains = (_DOMAIN.format(name=name, number=number) for number, name in enumerate(VMS))
        host.write_text(f"<node>{''.join(domains)}</node>")
        self.daemon = Daemon(f"test://{host}", within, settings='log_level = "info"\n')
        # how far the log and the history were checked
        self._log_checked = 0
        self._revision = 0
        self.rss = 0

    def __enter__(self) -> Self:
        self.daemon.__enter__()
        self._pid = self.daemon.pid
        return self

    def __exit__(self, *_: object) -> None:
        self.daemon.close()

    @property
    def path(self) -> Path:
        return self.daemon.socket

    def check(self) -> None:
        """Check that it is the same process, that it serves, and that nothing has grown."""
        if not self.daemon.running:
            raise AssertionError(f"the daemon has ended, saying:\n{self.daemon.log_tail()}")
        until(self._answers, "it serves", within_s=_ANSWERS_WITHIN_S)
        self._check_log()
        self._check_history()
        until(self._is_small, "it lets go of what clients left", within_s=_ANSWERS_WITHIN_S)

    def end(self) -> None:
        """Check that it ends as it should."""
        code = self.daemon.stop().code
        if code != 0:
            raise AssertionError(f"it ended with {code}, saying:\n{self.daemon.log_tail()}")
        self._check_log()

    def _answers(self) -> bool:
        try:
            self.daemon.host()
        except grpc.RpcError as error:
            # a new connection: the old one may have been one that gRPC gave up
            self.daemon._let_go()
            if error.code() is not grpc.StatusCode.UNAVAILABLE:
                raise
            return False
        return True

    def _check_log(self) -> None:
        log = self.daemon.log()
        fresh, self._log_checked = log[self._log_checked :], len(log)
        bad = [
            line
            for line in fresh.splitlines()
            if _BAD.search(line) and not _UNDERSTOOD.search(line)
        ]
        if bad:
            raise AssertionError(f"the log says {bad[0]!r}; all of it:\n{fresh[-8000:]}")

    def _check_history(self) -> None:
        """Read on from where the last check ended: each revision is there, once."""
        while True:
            request = pb.ListTransitionsRequest(
                min_revision=self._revision + 1, oldest_first=True, page_size=1000
            )
            page = self.daemon.stub.ListTransitions(request, timeout=20)
            for transition in page.transitions:
                if transition.revision != self._revision + 1:
                    raise AssertionError(
                        f"revision {transition.revision} comes after {self._revision}"
                    )
                self._revision = transition.revision
            if not page.next_page_token:
                return

    def _is_small(self) -> bool:
        process = Path("/proc") / str(self.daemon.pid)
        status = (process / "status").read_text()
        found = re.search(r"VmRSS:\s+(\d+) kB", status)
        assert found
        self.rss = int(found[1]) * 1024
        if self.rss > MAX_RSS:
            raise AssertionError(f"it has grown to {self.rss // _MIB} MiB")
        return len(list((process / "fd").iterdir())) < _MAX_DESCRIPTORS
