"""How fast calls of local users come through to gRPC.

What a caller may have is counted where its calls arrive, and told there: see `limits`. By then a
call has cost nearly all that one costs, refused or not; and of calls that come faster than they
are taken gRPC keeps 1,000, and ends anybody's beyond with a bare CANCELLED. So what is more than a
caller may have waits before it gets there, in its own connection, and so does what comes while
many of his have not arrived yet.

Whoever has a role has a pace of his own, above what he may have. All who have none share one:
what they may do is to be told so, and one user can be many. A connection costs as much as a call.
Runs on the loop.
"""

from __future__ import annotations

import asyncio
from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from vmagentd.api.http2 import CALL, Follower

if TYPE_CHECKING:
    from collections.abc import Callable, Container

    from vmagentd.model import LocalPeer

# To what a caller may have a second: with a role, and all those without one together.
_WITH_ROLE: Final = 1.25
_WITHOUT_ROLE: Final = 0.1
# Whatever a caller may have, in calls a second: for clients that come in peace.
_LEAST: Final = 100.0
_LEAST_WITHOUT_ROLE: Final = 10.0
# In seconds of the rate: what may come at once.
_BURST_S: Final = 2.0
_BURST_WITHOUT_ROLE_S: Final = 1.0
# Calls of one pace that have not arrived yet.
_UNDER_WAY: Final = 200
# How often whoever waits is looked after; and after how often without one that arrives, or how
# long without one that comes, those that have not arrived are taken for such as never will: their
# clients have cancelled them, or they were no calls.
_TICK_S: Final = 0.02
_QUIET_TICKS: Final = 5
_QUIET_S: Final = 1.0
# How long ago a call can have gone on that gRPC has just been about to take.
_RECENT_S: Final = 5.0


@dataclass(frozen=True, slots=True)
class _Rate:
    """So much a second, and so much at once, in the unit of `http2`."""

    per_second: float
    at_once: float


class Paces:
    """Who goes at which pace."""

    def __init__(self, calls_per_second: float, *, has_role: Callable[[LocalPeer], bool]) -> None:
        """Prepare.

        Args:
            calls_per_second: what one caller may have.
            has_role: by the rules that hold now.
        """
        self.has_role = has_role
        self._set(calls_per_second)
        # by user
        self._paces: dict[int, _Pace] = {}
        self._without_role = _Pace(self._less)

    def limit(self, calls_per_second: float) -> None:
        """Go by that from now on."""
        self._set(calls_per_second)
        self._without_role.rate = self._less
        for pace in self._paces.values():
            pace.rate = self._more

    def forget_idle(self, present: Container[int]) -> None:
        """Forget users who are not *present* and would come back as if they were new."""
        idle = [uid for uid, pace in self._paces.items() if uid not in present and pace.rested()]
        for uid in idle:
            del self._paces[uid]

    def of(self, peer: LocalPeer) -> _Pace:
        """Return the pace of somebody, who may have got a role meanwhile, or lost it."""
        if not self.has_role(peer):
            return self._without_role
        pace = self._paces.get(peer.uid)
        if pace is None:
            pace = self._paces[peer.uid] = _Pace(self._more)
        return pace

    def _set(self, calls_per_second: float) -> None:
        more = max(calls_per_second * _WITH_ROLE, _LEAST) * CALL
        less = max(calls_per_second * _WITHOUT_ROLE, _LEAST_WITHOUT_ROLE) * CALL
        self._more = _Rate(more, more * _BURST_S)
        self._less = _Rate(less, less * _BURST_WITHOUT_ROLE_S)


class Passage:
    """Lets through what the client of one connection says."""

    def __init__(self, paces: Paces, peer: LocalPeer) -> None:
        self.uid = peer.uid
        self._paces = paces
        self._peer = peer
        self._pace = paces.of(peer)
        self._follower = Follower()
        self._go_on: Callable[[], None] = _nothing
        # calls that have not arrived, and when the last went on
        self._under_way = 0
        self._time = 0.0

    async def begin(self) -> None:
        """Wait until there may be one more connection."""
        begun = asyncio.get_running_loop().create_future()

        def begin() -> None:
            if not begun.done():
                self._pace.spend(CALL)
                begun.set_result(None)

        if self._pace.room(self) >= CALL:
            begin()
        else:
            self.wait(begin)
        await begun

    def through(self, data: memoryview) -> int:
        """Return how many bytes of *data* may go on now; the rest comes next again."""
        pace, before = self._pace, self._follower.calls
        passed, cost = self._follower.within(data, pace.room(self))
        calls = self._follower.calls - before
        pace.spend(cost, calls=calls)
        if calls:
            now = asyncio.get_running_loop().time()
            if now - self._time > _QUIET_S:
                self._under_way = 0
            self._under_way += calls
            self._time = now
        return passed

    def arrived(self) -> None:
        """Count a call that has come through gRPC."""
        self._under_way = max(self._under_way - 1, 0)
        self._pace.arrived()

    def lacks(self) -> bool:
        """Return whether a call that has gone on of late has not arrived."""
        return self._under_way > 0 and self._time > asyncio.get_running_loop().time() - _RECENT_S

    def wait(self, go_on: Callable[[], None]) -> None:
        """Have *go_on* called when more may go on, if only one frame."""
        self._go_on = go_on
        self._pace = self._paces.of(self._peer)
        self._pace.wait(self)

    def take_turn(self) -> None:
        """Go on, as far as there is room."""
        self._go_on()


def _nothing() -> None:
    """Nobody waits."""


class _Pace:
    """A rate that connections take turns at: first each user, then each of his."""

    def __init__(self, rate: _Rate) -> None:
        self._loop = asyncio.get_running_loop()
        self.rate = rate
        # of what may go at once, as of `time`
        self._left = rate.at_once
        self._time = self._loop.time()
        # calls that have not arrived, and for how many ticks none has
        self._under_way = 0
        self._quiet = 0
        # by user, in the order of their turns
        self._waiting: dict[int, deque[Passage]] = {}
        self._timer: asyncio.TimerHandle | None = None
        # whose turn it is, and how much of it is his
        self._turn: Passage | None = None
        self._share = 0.0

    def room(self, passage: Passage) -> int:
        """Return how much may go on; nothing while others wait."""
        if passage is self._turn:
            return int(self._share)
        if self._waiting:
            return 0
        self._fill()
        return int(self._room())

    def spend(self, cost: int, *, calls: int = 0) -> None:
        """Count what has gone on, no more than there was room for."""
        self._left -= cost
        self._under_way += calls

    def arrived(self) -> None:
        """Count a call that has arrived."""
        self._under_way = max(self._under_way - 1, 0)
        self._quiet = 0

    def wait(self, passage: Passage) -> None:
        """Give *passage* a turn, once."""
        self._waiting.setdefault(passage.uid, deque()).append(passage)
        if self._timer is None:
            self._timer = self._loop.call_later(_TICK_S, self._serve)

    def rested(self) -> bool:
        """Return whether it is as it was at first."""
        self._fill()
        return not self._waiting and self._left >= self.rate.at_once

    def _fill(self) -> None:
        now = self._loop.time()
        since = now - self._time
        self._left = min(self._left + since * self.rate.per_second, self.rate.at_once)
        self._time = now
        if since > _QUIET_S:
            self._under_way = 0

    def _room(self) -> float:
        return min(self._left, (_UNDER_WAY - self._under_way) * CALL)

    def _serve(self) -> None:
        self._timer = None
        self._fill()
        self._quiet += 1
        if self._quiet > _QUIET_TICKS:
            self._quiet = self._under_way = 0
        while self._waiting and (room := self._room()) >= CALL:
            self._share = max(room // len(self._waiting), CALL)
            uid, passages = next(iter(self._waiting.items()))
            del self._waiting[uid]
            self._turn = passages.popleft()
            if passages:
                self._waiting[uid] = passages  # behind all others
            self._turn.take_turn()
        self._turn = None
        if self._waiting and self._timer is None:
            self._timer = self._loop.call_later(_TICK_S, self._serve)
