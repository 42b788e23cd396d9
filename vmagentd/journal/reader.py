"""Reads older pages of the journal.

Owns the `journal-read` threads. Each read opens a read-only connection of its own and closes
it: that costs a fifth of a millisecond and leaves nothing to tidy up. What is committed is there:
readers see the journal as of their own start, and never wait for the writer (WAL).
"""

from __future__ import annotations

import asyncio
from concurrent.futures import Future
from contextlib import nullcontext
from contextvars import ContextVar
from enum import Enum
from queue import SimpleQueue
from threading import Event
from typing import TYPE_CHECKING, Any, Concatenate, Final, ParamSpec, TypeVar
from urllib.parse import quote
from weakref import WeakValueDictionary

from peewee import SqliteDatabase

from vmagentd import threads
from vmagentd.errors import JournalUnusable, JournalUnwritable, ShuttingDown
from vmagentd.journal.disk import DATABASE_ERRORS, Fault, cause, fault
from vmagentd.journal.schema import READER_PRAGMAS

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextlib import AbstractAsyncContextManager
    from pathlib import Path
    from sqlite3 import Connection

    from vmagentd.journal.file import InUse
    from vmagentd.threads import Calls

P = ParamSpec("P")
T = TypeVar("T")

# After so many of SQLite's instructions, some 0.1 ms, a read finds out that nobody waits for it.
_INSTRUCTIONS: Final = 10_000

_WHOM: ContextVar[str | None] = ContextVar("reads for", default=None)


def read_for(whom: str) -> None:
    """Have all that the present task reads, from now on, be read for somebody.

    In each lane what is read for one waits for its turn before the lane. So others wait for as
    many reads as there are of whom they are, however many each of them wants.
    """
    _WHOM.set(whom)


class Lane(Enum):
    """Who waits for a read. Each has a thread of its own, where reads wait for their turn.

    A page may take long, and many may be asked for at once: an operation goes on all the same.
    """

    OPERATIONS = "operations"  # by key alone
    WATCHERS = "watchers"
    LISTS = "lists"


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
        # of the lanes that have been used
        self._calls: dict[Lane, Calls] = {}
        self._unfinished: list[Future[Any]] = []
        # by whom something is read for; only those that are waited for
        self._turns: WeakValueDictionary[tuple[Lane, str], asyncio.Lock] = WeakValueDictionary()
        self._closed = False

    async def read(
        self,
        lane: Lane,
        load: Callable[Concatenate[SqliteDatabase, P], T],
        *args: P.args,
        **kwargs: P.kwargs,
    ) -> T:
        """Return what *load* reads, called with a connection in the thread of *lane*.

        What is read for one, see `read_for`, is in the lane one at a time. Cancelling the await
        has SQLite give up a read that has begun; it does not wait for that.

        Raises:
            ShuttingDown: they are closed.
            JournalUnwritable: the file cannot be read either, or is damaged.
        """
        given_up = Event()

        def run() -> T:
            try:
                self._in_use.check()
                with self._db.connection_context():
                    connection: Connection = self._db.connection()  # type: ignore[no-untyped-call]
                    connection.set_progress_handler(given_up.is_set, _INSTRUCTIONS)
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

        async with self._turn(lane):
            try:
                return await asyncio.wrap_future(self._submit(lane, run))
            finally:
                given_up.set()

    def close(self) -> asyncio.Future[Any]:
        """Let the threads end; reads that wait for their turn never begin.

        Returns:
            What is done once all that have begun are over.
        """
        self._closed = True
        begun = [future for future in self._unfinished if not future.cancel()]
        for calls in self._calls.values():
            calls.put(None)
        return asyncio.gather(*map(asyncio.wrap_future, begun), return_exceptions=True)

    def _turn(self, lane: Lane) -> AbstractAsyncContextManager[object]:
        """Return what a read is held by until others for the same are over."""
        whom = _WHOM.get()
        if whom is None:
            return nullcontext()
        return self._turns.setdefault((lane, whom), asyncio.Lock())

    def _submit(self, lane: Lane, call: Callable[[], T]) -> Future[T]:
        if self._closed:
            raise ShuttingDown
        self._unfinished = [future for future in self._unfinished if not future.done()]
        calls = self._calls.get(lane)
        if calls is None:
            calls = self._calls[lane] = SimpleQueue()
            name = f"journal-read-{lane.value}"
            threads.start(name, calls)
        future: Future[T] = Future()
        self._unfinished.append(future)
        calls.put((future, call))
        return future
