"""Log records as journald and a person get them."""

from __future__ import annotations

import logging
import signal
import socket
import struct
import subprocess
import sys
from contextlib import closing, suppress
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.component.hypervisor.host import until
from tests.component.journal_faults import disks
from tests.component.process import DEADLINE_S, daemon
from vmagentd import logs, messages

if TYPE_CHECKING:
    from collections.abc import Iterator


class TheirJournald:
    """A socket like journald's; reads its protocol back."""

    def __init__(self, path: Path) -> None:
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.settimeout(DEADLINE_S)
        self._socket.bind(str(path))

    def close(self) -> None:
        self._socket.close()

    def waiting(self) -> list[dict[str, str]]:
        """Return all that has come so far."""
        self._socket.settimeout(0)
        found: list[dict[str, str]] = []
        with suppress(BlockingIOError):
            while True:
                found.append(self.next())
        return found

    def next(self) -> dict[str, str]:
        rest = self._socket.recv(1 << 20)
        fields: dict[str, str] = {}
        while rest:
            line, _, rest = rest.partition(b"\n")
            name, is_short, value = line.partition(b"=")
            if not is_short:
                (size,) = struct.unpack("<Q", rest[:8])
                value, rest = rest[8 : 8 + size], rest[8 + size + 1 :]
            fields[name.decode()] = value.decode()
        return fields

    def until(self, message_id: str) -> dict[str, str]:
        """Return the next message with that id."""
        while (fields := self.next()).get("MESSAGE_ID") != message_id:
            pass
        return fields


@pytest.fixture
def journald(folder: Path) -> Iterator[TheirJournald]:
    with closing(TheirJournald(folder / "journal")) as listening:
        yield listening


@pytest.fixture
def log(folder: Path) -> Iterator[logging.Logger]:
    """Logs to `journald`."""
    logger = logging.getLogger("vmagentd.some.part")
    handler = logs.Journald(folder / "journal")
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    yield logger
    logger.removeHandler(handler)
    handler.close()


def test_a_record_has_its_fields(log: logging.Logger, journald: TheirJournald) -> None:
    log.error(
        "VM %s\nis odd", "web1", extra={"VM_NAME": "web1", "REVISION": 5, "ACTOR": None, "x": 1}
    )
    fields = journald.next()
    assert fields.pop("CODE_FILE").endswith("test_logs.py")
    assert fields.pop("CODE_LINE").isdecimal()
    assert fields == {
        "MESSAGE": "VM web1\nis odd",
        "PRIORITY": "3",
        "SYSLOG_IDENTIFIER": "vmagentd",
        "LOGGER": "vmagentd.some.part",
        "THREAD_NAME": "MainThread",
        "CODE_FUNC": "test_a_record_has_its_fields",
        "VM_NAME": "web1",
        "REVISION": "5",
    }


def test_an_exception_is_told_whole(log: logging.Logger, journald: TheirJournald) -> None:
    try:
        int("1\n2")
    except ValueError:
        log.exception("it broke")
    assert journald.next()["MESSAGE"].startswith("it broke\nTraceback ")


def test_what_is_too_long_is_cut(log: logging.Logger, journald: TheirJournald) -> None:
    log.info("%s", "ü" * (1 << 20))
    message = journald.next()["MESSAGE"]
    assert message.startswith("üü")
    assert message.endswith("[…]")


def test_a_journald_that_hangs_holds_nobody_up(
    log: logging.Logger, journald: TheirJournald
) -> None:
    sent = 10_000
    for number in range(sent):
        log.info("%d", number)
    heard = [fields["MESSAGE"] for fields in journald.waiting()]
    assert heard == [str(number) for number in range(len(heard))]
    log.info("there is room")
    assert [fields["MESSAGE"] for fields in journald.waiting()] == [
        f"{sent - len(heard)} log lines found no room and were dropped",
        "there is room",
    ]


def test_without_journald_nobody_is_held_up(log: logging.Logger) -> None:
    log.error("to nobody")


def test_a_pipe_that_nobody_reads_holds_nobody_up() -> None:
    code = (
        "import logging; from vmagentd import logs; logs.set_up('info')\n"
        "for n in range(50_000): logging.info('line %d', n)\n"
        "print('done', flush=True)"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert process.stdout.readline() == b"done\n"
        said = process.stderr.read().decode()
    assert "line 0\n" in said


@pytest.fixture
def their_journald() -> Iterator[TheirJournald]:
    """A journald in the place of the machine's own, for processes of this test run."""
    try:
        disks.enter_namespace()
        with disks.tmpfs(Path("/run"), disks.MIB):
            logs.JOURNAL_SOCKET.parent.mkdir(parents=True)
            with closing(TheirJournald(logs.JOURNAL_SOCKET)) as there:
                yield there
    except disks.CannotMountError as why:
        pytest.skip(str(why))


async def test_the_daemon_tells_journald(folder: Path, their_journald: TheirJournald) -> None:
    log = folder / "log"
    log.touch()
    stream = log.stat()
    (folder / "vmagentd.toml").write_text('log_level = "debug"')
    env = {"JOURNAL_STREAM": f"{stream.st_dev}:{stream.st_ino}"}
    async with daemon(folder, env=env) as running:
        assert their_journald.until(messages.LIBVIRT_BACK)["PRIORITY"] == "6"
        ready = their_journald.until(messages.READY)
        assert ready["MESSAGE"].startswith("serving 2 VMs")
        running.process.send_signal(signal.SIGTERM)
        their_journald.until(messages.ENDING)
        await until(lambda: running.process.returncode is not None, "its end")
    assert log.read_text() == ""


def test_each_message_id_is_its_own() -> None:
    ids = [value for name, value in vars(messages).items() if name.isupper()]
    assert len(set(ids)) == len(ids)
    assert all(len(value) == 32 and int(value, 16) for value in ids)
