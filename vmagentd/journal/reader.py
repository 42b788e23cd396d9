"""Reads older pages of the journal.

Owns the two `journal-read` threads. Each read opens a read-only connection of its own and closes
it: that costs a fifth of a millisecond and leaves nothing to tidy up. What is committed is there:
readers see the journal as of their own start, and never wait for the writer (WAL).
"""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Concatenate, ParamSpec, TypeVar

from peewee import SqliteDatabase

from vmagentd.journal.schema import READER_PRAGMAS

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

P = ParamSpec("P")
T = TypeVar("T")


class Reader:
    """The `journal-read` threads."""

    def __init__(self, path: Path) -> None:
        self._db = SqliteDatabase(str(path), pragmas=READER_PRAGMAS)
        self._threads = ThreadPoolExecutor(2, thread_name_prefix="journal-read")

    async def read(
        self,
        load: Callable[Concatenate[SqliteDatabase, P], T],
        *args: P.args,
        **kwargs: P.kwargs,
    ) -> T:
        """Return what *load* reads, called with a connection in one of the threads.

        Cancelling the await does not stop a read that has begun.
        """

        def run() -> T:
            with self._db.connection_context():
                return load(self._db, *args, **kwargs)

        return await asyncio.get_running_loop().run_in_executor(self._threads, run)

    def close(self) -> None:
        """End the threads; waits for reads that have begun."""
        self._threads.shutdown(cancel_futures=True)
