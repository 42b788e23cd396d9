"""Where log lines go: into systemd's journal with their fields, else to standard error.

Messages are constant with arguments; facts that a program may want are passed as `extra`, in
capitals, the way journald names its fields. A log call never waits and never raises: what finds
no room is counted, and told later.

systemd-python is not used for it: its sendv() holds the interpreter while it waits for a journald
that hangs (seen with 235).
"""

from __future__ import annotations

import logging
import os
import re
import socket
import struct
import sys
import threading
from contextlib import suppress
from pathlib import Path
from queue import SimpleQueue
from typing import Final

from typing_extensions import override  # typing has it since 3.12

JOURNAL_SOCKET: Final = Path("/run/systemd/journal/socket")

_PRIORITIES: Final = {
    logging.DEBUG: 7,
    logging.INFO: 6,
    logging.WARNING: 4,
    logging.ERROR: 3,
    logging.CRITICAL: 2,
}
# Lines that wait for a terminal or a pipe.
_MAX_WAITING: Final = 10_000
_LAST_LINES_S: Final = 2.0
# Characters; a datagram holds some more bytes than that, all encoded.
_MAX_MESSAGE: Final = 32_768
_FIELD: Final = re.compile(r"[A-Z][A-Z0-9_]{0,63}")
_IDENTIFIER: Final = "vmagentd"


def set_up(level: str) -> None:
    """Send all log records of at least *level* to systemd's journal or to standard error."""
    logging.raiseExceptions = False  # it would print them, and wait for that
    handler = Journald(JOURNAL_SOCKET) if _to_journald() else Stderr()
    logging.basicConfig(handlers=[handler], force=True)
    set_level(level)
    # peewee logs each statement, asyncio and gRPC how they loop: nobody's business even at DEBUG
    for chatty in ("asyncio", "grpc", "peewee"):
        logging.getLogger(chatty).setLevel(logging.WARNING)


def set_level(level: str) -> None:
    """Log from now on what is at least *level*."""
    logging.getLogger().setLevel(level.upper())


def _to_journald() -> bool:
    """Return whether standard error ends at journald, as systemd.exec(5) has it."""
    try:
        stderr = os.fstat(sys.stderr.fileno())
    except (OSError, ValueError):
        return False
    named = os.environ.get("JOURNAL_STREAM", "")
    return named == f"{stderr.st_dev}:{stderr.st_ino}" and JOURNAL_SOCKET.is_socket()


class Journald(logging.Handler):
    """Sends records with their fields by journald's own protocol, without ever waiting."""

    def __init__(self, path: Path) -> None:
        """Send to the journald at *path*."""
        super().__init__()
        self.setFormatter(logging.Formatter("%(message)s"))
        self._path = str(path)
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
        self._lost = 0

    @override
    def emit(self, record: logging.LogRecord) -> None:
        if self._lost and self._send(_lost(self._lost)):
            self._lost = 0
        if not self._send(record):
            self._lost += 1

    def _send(self, record: logging.LogRecord) -> bool:
        """Return whether journald has it."""
        try:
            # not connected: a journald that was restarted is another one
            self._socket.sendto(encoded(record, self.format(record)), self._path)
        except Exception:  # noqa: BLE001 - a log call never raises
            return False
        return True

    @override
    def close(self) -> None:
        self._socket.close()
        super().close()


class Stderr(logging.Handler):
    """Writes lines for a person, in a thread `log`: a terminal may be held, a pipe full."""

    def __init__(self) -> None:
        super().__init__()
        form = "{asctime}.{msecs:03.0f} {levelname:<7} {message}"
        self.setFormatter(logging.Formatter(form, "%H:%M:%S", style="{"))
        self._lines: SimpleQueue[str | None] = SimpleQueue()
        self._lost = 0
        self._thread = threading.Thread(target=self._write, name="log", daemon=True)
        self._thread.start()

    @override
    def emit(self, record: logging.LogRecord) -> None:
        if self._lines.qsize() >= _MAX_WAITING:
            self._lost += 1
            return
        if self._lost:
            lost, self._lost = self._lost, 0
            self._lines.put(self.format(_lost(lost)))
        self._lines.put(self.format(record))

    @override
    def close(self) -> None:
        """Write what waits, if that does not take long. `logging` calls it at the exit."""
        self._lines.put(None)
        self._thread.join(_LAST_LINES_S)
        super().close()

    def _write(self) -> None:
        while (line := self._lines.get()) is not None:
            with suppress(OSError, ValueError):  # nobody reads
                sys.stderr.write(line + "\n")
                sys.stderr.flush()


def _lost(count: int) -> logging.LogRecord:
    text = "%d log lines found no room and were dropped"
    return logging.LogRecord(__name__, logging.WARNING, __file__, 0, text, (count,), None)


def encoded(record: logging.LogRecord, message: str) -> bytes:
    """Return *record* in journald's protocol, with all in capitals that it has as `extra`."""
    fields: dict[str, object] = {
        "MESSAGE": message if len(message) <= _MAX_MESSAGE else f"{message[:_MAX_MESSAGE]} […]",
        "PRIORITY": _PRIORITIES.get(record.levelno, 6),
        "SYSLOG_IDENTIFIER": _IDENTIFIER,
        "LOGGER": record.name,
        "THREAD_NAME": record.threadName,
        "CODE_FILE": record.pathname,
        "CODE_LINE": record.lineno,
        "CODE_FUNC": record.funcName,
    }
    fields |= {name: value for name, value in vars(record).items() if _FIELD.fullmatch(name)}
    return b"".join(
        _field(name, str(value)) for name, value in fields.items() if value is not None
    )


def _field(name: str, value: str) -> bytes:
    data = value.encode(errors="replace")
    if b"\n" in data:
        return name.encode() + b"\n" + struct.pack("<Q", len(data)) + data + b"\n"
    return name.encode() + b"=" + data + b"\n"
