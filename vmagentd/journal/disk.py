"""The disk under the journal: which of SQLite's errors are its doing, and a reserve on it."""

from __future__ import annotations

import logging
import os
import sqlite3
from contextlib import suppress
from enum import Enum, auto
from typing import TYPE_CHECKING, Final

import peewee

from vmagentd import messages

if TYPE_CHECKING:
    from pathlib import Path

log = logging.getLogger(__name__)

# peewee wraps what SQLite raises, but not what it raises while rows are fetched.
DATABASE_ERRORS: Final = (peewee.DatabaseError, sqlite3.DatabaseError)

_DISK: Final = frozenset({
    sqlite3.SQLITE_FULL,
    sqlite3.SQLITE_IOERR,
    sqlite3.SQLITE_READONLY,
    sqlite3.SQLITE_CANTOPEN,
    sqlite3.SQLITE_PERM,
    sqlite3.SQLITE_PROTOCOL,  # locks in the shared memory could not be had
    sqlite3.SQLITE_BUSY,  # somebody else writes, for longer than the busy_timeout
    sqlite3.SQLITE_LOCKED,
})  # fmt: skip
_ROOM: Final = frozenset({sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR})
_DAMAGE: Final = frozenset({sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB})

BALLAST_BYTES: Final = 8 << 20


class Fault(Enum):
    """Whose doing an error of SQLite is."""

    DISK = auto()  # it cannot be written for now
    ROOM = auto()  # likewise, and room may help
    DAMAGE = auto()  # the file is no sound journal
    OURS = auto()  # none of these: a fault in the program


class Damaged(sqlite3.DatabaseError):
    """A check found damage that SQLite would not have stumbled over yet."""

    sqlite_errorcode = sqlite3.SQLITE_CORRUPT


def fault(error: Exception) -> Fault:
    """Tell whose doing one of DATABASE_ERRORS is: by SQLite's code, never by its text."""
    code = _code(error) & 0xFF  # without its detail
    if code in _DAMAGE:
        return Fault.DAMAGE
    if code in _ROOM:
        return Fault.ROOM
    return Fault.DISK if code in _DISK else Fault.OURS


def may_be_whole(error: Exception) -> bool:
    """Whether all that a commit was to write may be in the log though it failed with *error*.

    It was written, perhaps, and not synced. SQLite goes on as if it were not there; but whoever
    reads the log anew, after a kill, takes it for committed (measured).
    """
    code = _code(error)
    return code & 0xFF == sqlite3.SQLITE_IOERR and code != sqlite3.SQLITE_IOERR_WRITE


def was_written(error: Exception) -> bool:
    """Whether a commit that failed with *error* has written to the log: it was not synced."""
    return _code(error) == sqlite3.SQLITE_IOERR_FSYNC


def cause(error: Exception) -> str:
    """Return what SQLite says of one of DATABASE_ERRORS, with the name of its code."""
    raw = getattr(error, "orig", error)
    name = getattr(raw, "sqlite_errorname", None)
    return f"{raw}, {name}" if name else str(raw)


def _code(error: Exception) -> int:
    raw = getattr(error, "orig", error)  # what peewee has wrapped
    return int(getattr(raw, "sqlite_errorcode", sqlite3.SQLITE_ERROR))


class Ballast:
    """A file that is given up when the disk is full.

    Then some thousand commits more find room: operators can still stop VMs while they make room,
    and what they do is on record.
    """

    def __init__(self, path: Path, *, size: int = BALLAST_BYTES) -> None:
        self._path = path
        self._size = size

    def make(self) -> bool:
        """Make it, if there is room for it and as much again; return whether it is there."""
        try:
            if self._path.exists():
                return True
            disk = os.statvfs(self._path.parent)
            if disk.f_bavail * disk.f_frsize < 2 * self._size:
                return False
            # under another name until it is whole: a part of it is no reserve
            part = self._path.with_suffix(".part")
            with part.open("wb") as file:
                os.posix_fallocate(file.fileno(), 0, self._size)
            part.rename(self._path)
        except OSError:
            with suppress(OSError):
                self._path.with_suffix(".part").unlink()
            return False
        return True

    def release(self, journal: Path, error: Exception) -> bool:
        """Give it up if that may help against *error*, and say so; return whether it was there."""
        if fault(error) is not Fault.ROOM:
            return False
        try:
            self._path.unlink()
        except OSError:
            return False
        log.error(
            "journal %s: %s; its ballast was released: make room on the disk",
            journal,
            cause(error),
            extra={"MESSAGE_ID": messages.BALLAST_RELEASED},
        )
        return True
