"""Threads for calls that block.

Owns the threads of one kind, named `NAME-0`, `NAME-1`, …, started as they are needed, up to a
limit. Never retries, never touches what a call returns. All methods run on the event loop.
"""

from __future__ import annotations

import asyncio
import logging
from concurrent.futures import Future
from contextlib import contextmanager, suppress
from queue import SimpleQueue
from time import monotonic
from typing import TYPE_CHECKING, Any, TypeAlias, TypeVar

from vmagentd import threads

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable, Iterator
    from datetime import timedelta

    from vmagentd.threads import Calls

log = logging.getLogger(__name__)

_HURRY_S = 1.0

T = TypeVar("T")
# told how a call ended, `ok` or the name of its error, and its seconds
OnEnd: TypeAlias = "Callable[[str, float], object]"


class NotRun(Exception):
    """The call did not begin, and will not."""


class Occupied(Exception):
    """A call before it in its lane goes on; this one did not begin, and will not."""


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
        # done once the call that has the lane is over, or never begins
        self._lanes: dict[Hashable, asyncio.Future[None]] = {}
        self._closed = False

    async def run(
        self,
        call: Callable[[int], T],
        *,
        deadline: timedelta | None = None,
        hurry: asyncio.Future[None] | None = None,
        lane: Hashable = None,
        on_end: OnEnd = lambda *_: None,
    ) -> T:
        """Run `call(n)` in thread number n, from 0, and return what it returns.

        Once *hurry* is done, the call has 1 s left. Cancelling the await, or the deadline, does
        not stop a call that has begun: it goes on in its thread and its result is dropped. One
        that has not begun never begins. Of the calls in one *lane* a thread has one at a time,
        also after that was given up; the others wait here. *on_end* is told how it ended.

        Raises:
            Occupied: the lane was not free in time. Nothing was done.
            NotRun: no thread was free in time, or too many calls wait. Nothing was done.
            TimeoutError: the call has begun and is not over at the deadline.
        """
        loop = asyncio.get_running_loop()
        give_up = None if deadline is None else loop.time() + deadline.total_seconds()
        future: Future[T] = Future()
        with _measured(future, on_end):
            if lane is not None:
                await self._until_free(lane, give_up, hurry)
            self._submit(future, call, lane)
            # asyncio's end of the future: filled through call_soon_threadsafe
            result = asyncio.wrap_future(future)
            try:
                await _first((result, hurry), give_up)
                if hurry is not None and hurry.done():
                    await asyncio.wait((result,), timeout=_HURRY_S)
            finally:
                if not result.done():
                    self._abandon(future, result)
            if result.cancelled():
                if future.cancelled():
                    raise NotRun(f"no {self.name} thread was free in time")
                raise TimeoutError(f"{self.name}: no answer within {deadline}")
            return result.result()

    def has(self, lane: Hashable) -> bool:
        """Whether a call in that lane goes on, or waits for a thread."""
        return lane in self._lanes

    def close(self) -> None:
        """Let each thread end with the call that it has; calls that wait never begin."""
        self._closed = True
        for future in self._unfinished:
            future.cancel()
        for _ in range(self._threads):
            self._jobs.put(None)

    async def _until_free(
        self, lane: Hashable, give_up: float | None, hurry: asyncio.Future[None] | None
    ) -> None:
        while (before := self._lanes.get(lane)) is not None:
            await _first((before, hurry), give_up)
            if not before.done():
                raise Occupied(f"{self.name}: a call before it has not returned")

    def _submit(self, future: Future[T], call: Callable[[int], T], lane: Hashable) -> None:
        self._unfinished = [future for future in self._unfinished if not future.done()]
        # those that were given up are in the queue until a thread comes to them
        waiting = max(len(self._unfinished), self._jobs.qsize())
        if self._closed or waiting >= self._limit + self._backlog:
            raise NotRun(f"{waiting} calls wait for {self.name} threads")
        if lane is not None:
            self._occupy(lane, future)
        self._unfinished.append(future)
        self._jobs.put((future, call))
        if self._threads < min(self._limit, len(self._unfinished)):
            number = self._threads
            self._threads += 1
            threads.start(f"{self.name}-{number}", self._jobs, number)

    def _occupy(self, lane: Hashable, future: Future[Any]) -> None:
        loop = asyncio.get_running_loop()
        over = self._lanes[lane] = loop.create_future()

        def free() -> None:
            del self._lanes[lane]
            over.set_result(None)

        def ended(_: Future[Any]) -> None:
            with suppress(RuntimeError):  # the loop is closed, and nobody waits
                loop.call_soon_threadsafe(free)

        future.add_done_callback(ended)

    def _abandon(self, future: Future[Any], result: asyncio.Future[Any]) -> None:
        if not future.cancel():
            future.add_done_callback(self._late)
        result.cancel()

    def _late(self, future: Future[Any]) -> None:
        log.debug("%s: late: %r", self.name, future.exception() or "done")


async def _first(awaited: tuple[asyncio.Future[Any] | None, ...], give_up: float | None) -> None:
    """Wait until one of them is done, or that time (the loop's)."""
    timeout = None if give_up is None else give_up - asyncio.get_running_loop().time()
    futures = [each for each in awaited if each is not None]
    await asyncio.wait(futures, timeout=timeout, return_when=asyncio.FIRST_COMPLETED)


@contextmanager
def _measured(call: Future[Any], tell: OnEnd) -> Iterator[None]:
    """Tell how the body ended, which waits for *call*, and its seconds.

    Cancelled when the call was over, it ended as that did: what libvirt has done may be heard
    before its answer, and ends the wait for that.
    """
    begin, ended = monotonic(), None
    try:
        yield
    except BaseException as error:
        cancelled = isinstance(error, asyncio.CancelledError)
        over = cancelled and call.done() and not call.cancelled()
        ended = call.exception() if over else error
        raise
    finally:
        tell("ok" if ended is None else type(ended).__name__, monotonic() - begin)
