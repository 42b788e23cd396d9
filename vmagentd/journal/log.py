"""SQLite's write-ahead log, which grows for as long as somebody reads at one place of it."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Final

from vmagentd.journal.schema import LOG_BYTES, sql

if TYPE_CHECKING:
    from pathlib import Path

    from peewee import SqliteDatabase

log = logging.getLogger(__name__)

_MIB: Final = 1 << 20


class WriteAheadLog:
    """The log of the journal at *path*. Belongs to the writer's thread."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file = path.with_name(f"{path.name}-wal")
        # somebody was told of it, and it has not ended yet
        self._held = False

    def check(self, db: SqliteDatabase) -> None:
        """Say, once, that another process keeps the log from being used again.

        Our own readers cannot: a page of history is read in milliseconds.

        Raises:
            DatabaseError: the disk does not let us look.
        """
        try:
            size = self._file.stat().st_size
        except OSError:
            return  # what the disk has, SQLite says: it may pass
        if size <= LOG_BYTES:
            self._held = False
            return
        # One that is large may just be: after many changes at once, until the next commit.
        _, frames, copied = sql(db, "PRAGMA wal_checkpoint(PASSIVE)").fetchone()
        if copied < frames and not self._held:
            self._held = True
            log.warning(
                "journal %s: its log has grown to %d MiB and goes on growing, since another "
                "process has been reading the journal all the time; end it: `fuser %s` tells "
                "which one it is",
                self._path,
                size // _MIB,
                self._path,
            )
