"""The calls that are under way: from when they begin until gRPC has done with them too.

A call is in our hands until it has its answer or has been told its end. Then gRPC has that, and
waits until the client takes it, for as long as the client likes. Runs on the loop.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from datetime import timedelta

    from vmagentd.api.access import Identity
    from vmagentd.errors import VmagentdError
    from vmagentd.model import Caller, Role

log = logging.getLogger(__name__)

# How long a client that reads may take for the end of a call: many may end at once.
_TAKES_S: Final = 0.5


def _current_task() -> asyncio.Task[Any]:
    task = asyncio.current_task()
    if task is None:
        raise RuntimeError("a call runs in a task of its own")
    return task


@dataclass(slots=True, eq=False, kw_only=True)
class Call:
    """A call that is under way."""

    method: str
    role: Role | None
    # whether it is answered by a stream
    streams: bool
    # gRPC's name for its connection
    connection: str
    # where from, as far as is known
    peer: str
    identity: Identity | None = None
    caller: Caller | None = None
    # gRPC's: it lives until gRPC has done with the call
    task: asyncio.Task[Any] = field(default_factory=_current_task)
    # why it is ended, if we do so and not its client
    dismissed: VmagentdError | None = None
    # since when gRPC has something that the client is to take: a message, the answer, the end
    given: float | None = None
    # called when it is over: it counts no more among what its caller has
    releases: list[Callable[[], None]] = field(default_factory=list)


class Calls:
    """All of them."""

    def __init__(self) -> None:
        self.begun = 0  # how many there have been
        self._all: dict[asyncio.Task[Any], Call] = {}
        self._in_hand: set[Call] = set()
        self._none_in_hand = asyncio.Event()
        self._none_in_hand.set()
        # those that were waited for in vain
        self._given_up: set[Call] = set()

    def __len__(self) -> int:
        """Return how many there are."""
        return len(self._all)

    def __iter__(self) -> Iterator[Call]:
        """Go through those that are in our hands."""
        return iter([*self._in_hand])

    def begin(self, call: Call) -> None:
        """Take one in hand."""
        self.begun += 1
        self._all[call.task] = call
        self._in_hand.add(call)
        self._none_in_hand.clear()
        call.task.add_done_callback(self._end)

    def told(self, call: Call) -> None:
        """Let go of one that gets its answer, or is told its end."""
        call.given = asyncio.get_running_loop().time()
        self._in_hand.discard(call)
        if not self._in_hand:
            self._none_in_hand.set()

    def dismiss(self, calls: Iterable[Call], why: VmagentdError) -> None:
        """End some that are in our hands."""
        for call in calls:
            if call.dismissed is None:
                call.dismissed = why
                # After its first write was cancelled gRPC can send no status, and the client
                # waits for ever; so a call that writes ends by itself afterwards.
                if call.given is None:
                    call.task.cancel()

    def stuck(
        self, now: float, *, patience_s: float, most: int, flowed: Callable[[str], float]
    ) -> set[str]:
        """Return the connections whose clients have not taken something for too long.

        And those of callers who leave more ends than *most*, the calls that they may have: what
        they leave beyond that are refusals, which count nowhere else. Streams that go on count
        as such, and may be more than *most* by the limits that held when they began.

        Args:
            now: by the loop's clock.
            patience_s: how long they may leave a message. An answer, which may be long, and what
                a stream had left at its end as long as they take something at all.
            most: see above.
            flowed: when a connection's client was last seen to do so.
        """
        stuck: set[str] = set()
        left: list[tuple[str, str]] = []
        for call in self._all.values():
            if call.given is None:
                continue
            in_hand, where = call in self._in_hand, call.connection
            taken = call.given if in_hand else max(call.given, flowed(where))
            if taken < now - patience_s:
                stuck.add(where)
            if not in_hand and call.caller is not None and call.given < now - _TAKES_S:
                left.append((call.caller.actor, where))
        counts = Counter(actor for actor, _ in left)
        return stuck | {where for actor, where in left if counts[actor] > most}

    async def all_told(self, limit: timedelta) -> None:
        """Wait until none is in our hands."""
        with suppress(TimeoutError):
            async with asyncio.timeout(limit.total_seconds()):
                await self._none_in_hand.wait()

    async def all_over(self, limit: timedelta) -> None:
        """Wait until gRPC has done with all, each time with those that were not waited for yet."""
        calls = [call for call in self._all.values() if call not in self._given_up]
        if calls:
            await asyncio.wait([call.task for call in calls], timeout=limit.total_seconds())
            self._given_up.update(call for call in calls if not call.task.done())

    async def ended(self, limit: timedelta) -> None:
        """Wait until all, which gRPC has cancelled, have ended. gRPC itself does not."""
        if self._all:
            await asyncio.wait(self._all, timeout=limit.total_seconds())
        for task in self._all:
            log.error("a call does not end: %s", task.get_stack(limit=1))

    def _end(self, task: asyncio.Task[Any]) -> None:
        call = self._all.pop(task)
        self.told(call)  # if it ended before we came to that
        self._given_up.discard(call)
        for release in call.releases:
            release()
