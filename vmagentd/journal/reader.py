"""Reads older pages of the journal.

Owns the two `journal-read` threads. Each read opens a read-only connection of its own and closes
it: that costs a fifth of a millisecond and leaves nothing to tidy up. What is committed is there:
readers see the journal as of their own start, and never wait for the writer (WAL).
"""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Concatenate, ParamSpec, TypeVar
from urllib.parse import quote

from peewee import SqliteDatabase

from vmagentd.errors import JournalUnusable, JournalUnwritable
from vmagentd.journal.disk import DATABASE_ERRORS, Fault, cause, fault
from vmagentd.journal.schema import READER_PRAGMAS

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from vmagentd.journal.file import InUse

P = ParamSpec("P")
T = TypeVar("T")


class Reader:
    """The `journal-read` threads."""

    def __init__(
        self, path: Path, in_use: InUse, *, damaged: Callable[[Exception], object]
    ) -> None:
        """Open nothing yet.

        Args:
            path: the journal's file.
            in_use: finds out whether that file was removed or replaced.
            damaged: called in a thread with what ends the journal, if a read comes across it.
        """
        # rw, so that nothing is made where the file was removed; ro could not map what WAL needs
        location = f"file:{quote(str(path.absolute()))}?mode=rw"
        self._db = SqliteDatabase(location, pragmas=READER_PRAGMAS, uri=True)
        self._in_use = in_use
        self._damaged = damaged
        self._threads = ThreadPoolExecutor(2, thread_name_prefix="journal-read")

    async def read(
        self,
        load: Callable[Concatenate[SqliteDatabase, P], T],
        *args: P.args,
        **kwargs: P.kwargs,
    ) -> T:
        """Return what *load* reads, called with a connection in one of the threads.

        Cancelling the await does not stop a read that has begun.

        Raises:
            JournalUnwritable: the file cannot be read either, or is damaged.
        """

        def run() -> T:
            try:
                self._in_use.check()
                with self._db.connection_context():
                    return load(self._db, *args, **kwargs)
            except JournalUnusable as error:
                self._damaged(error)
                raise JournalUnwritable(str(error)) from error
            except DATABASE_ERRORS as error:
                if fault(error) is Fault.OURS:
                    raise
                if fault(error) is Fault.DAMAGE:
                    self._damaged(error)
                raise JournalUnwritable(f"nor read: {cause(error)}") from error

        return await asyncio.get_running_loop().run_in_executor(self._threads, run)

    def close(self) -> None:
        """End the threads; waits for reads that have begun."""
        self._threads.shutdown(cancel_futures=True)
