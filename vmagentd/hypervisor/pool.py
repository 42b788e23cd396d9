"""Threads for calls that block.

Owns the threads of one kind, named `NAME-0`, `NAME-1`, …, started as they are needed, up to a
limit. Never retries, never touches what a call returns. All methods run on the event loop.
"""

from __future__ import annotations

import asyncio
import logging
from concurrent.futures import Future
from contextlib import contextmanager
from queue import SimpleQueue
from time import monotonic
from typing import TYPE_CHECKING, Any, TypeAlias, TypeVar

from vmagentd import threads

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from datetime import timedelta

    from vmagentd.threads import Calls

log = logging.getLogger(__name__)

_HURRY_S = 1.0

T = TypeVar("T")
# told of a call: its name, `ok` or the name of its error, its seconds
OnCall: TypeAlias = "Callable[[str, str, float], object]"


class NotRun(Exception):
    """The call did not begin, and will not."""


class Leave:
    """Leave to go ahead: taken once, by whichever thread comes first."""

    def __init__(self) -> None:
        self._left = [True]

    def take(self) -> bool:
        """Take it, unless somebody has; return whether that was so."""
        try:
            return self._left.pop()
        except IndexError:
            return False


class Pool:
    """Runs blocking calls in at most `limit` threads; at most `backlog` more calls wait."""

    def __init__(self, name: str, limit: int, *, backlog: int = 256) -> None:
        self.name = name
        self._limit = limit
        self._backlog = backlog
        self._jobs: Calls = SimpleQueue()
        self._threads = 0
        self._unfinished: list[Future[Any]] = []
        self._closed = False

    async def run(
        self,
        call: Callable[[int], T],
        *,
        deadline: timedelta | None = None,
        hurry: asyncio.Future[None] | None = None,
    ) -> T:
        """Run `call(n)` in thread number n, from 0, and return what it returns.

        Once *hurry* is done, the call has 1 s left. Cancelling the await, or the deadline, does
        not stop a call that has begun: it goes on in its thread and its result is dropped. One
        that has not begun never begins.

        Raises:
            NotRun: no thread was free in time, or too many calls wait. Nothing was done.
            TimeoutError: the call has begun and is not over at the deadline.
        """
        future = self._submit(call)
        # asyncio's end of the future: filled through call_soon_threadsafe
        result = asyncio.wrap_future(future)
        timeout = None if deadline is None else deadline.total_seconds()
        hurries = () if hurry is None else (hurry,)
        try:
            await asyncio.wait(
                (result, *hurries), timeout=timeout, return_when=asyncio.FIRST_COMPLETED
            )
            if hurry is not None and hurry.done():
                await asyncio.wait((result,), timeout=_HURRY_S)
        finally:
            if not result.done():
                self._abandon(future, result)
        if result.cancelled():
            if future.cancelled():
                raise NotRun(f"all {self._limit} {self.name} threads are busy")
            raise TimeoutError(f"{self.name}: no answer within {deadline}")
        return result.result()

    def close(self) -> None:
        """Let each thread end with the call that it has; calls that wait never begin."""
        self._closed = True
        for future in self._unfinished:
            future.cancel()
        for _ in range(self._threads):
            self._jobs.put(None)

    def _submit(self, call: Callable[[int], T]) -> Future[T]:
        self._unfinished = [future for future in self._unfinished if not future.done()]
        if self._closed or len(self._unfinished) >= self._limit + self._backlog:
            raise NotRun(f"{len(self._unfinished)} calls wait for {self.name} threads")
        future: Future[T] = Future()
        self._unfinished.append(future)
        self._jobs.put((future, call))
        if self._threads < min(self._limit, len(self._unfinished)):
            number = self._threads
            self._threads += 1
            threads.start(f"{self.name}-{number}", self._jobs, number)
        return future

    def _abandon(self, future: Future[Any], result: asyncio.Future[Any]) -> None:
        if not future.cancel():
            future.add_done_callback(self._late)
        result.cancel()

    def _late(self, future: Future[Any]) -> None:
        log.debug("%s: late: %r", self.name, future.exception() or "done")


@contextmanager
def measured(name: str, tell: OnCall) -> Iterator[None]:
    """Tell *name*, how the body ended (`ok` or the name of its error), and its seconds."""
    begin, result = monotonic(), "ok"
    try:
        yield
    except BaseException as error:
        result = type(error).__name__
        raise
    finally:
        tell(name, result, monotonic() - begin)
