"""What one caller may have: calls per second and at a time, streams, time. Runs on the loop."""

from __future__ import annotations

import asyncio
from collections import Counter
from contextvars import ContextVar
from dataclasses import dataclass
from datetime import timedelta
from enum import Enum
from functools import partial
from typing import TYPE_CHECKING

from vmagentd.errors import LimitReached

if TYPE_CHECKING:
    from collections.abc import Callable

    from vmagentd.model import Caller

# In seconds of the rate: how many calls may come at once.
_BURST_S = 2.0
# For each stream of a caller, time that his streams leave between two messages that nothing but
# the clock asks for: all together send no more of them than some hundred streams could.
_PAUSE_EACH = timedelta(milliseconds=1)
# Of the calls that one caller may have at a time: what all without a role have together, those of
# this host and those of others each, and one of them. The least is for clients that come in peace,
# and no more than one with a role has; one leaves half to the others. What they may do is to be
# told so, and one user can be many.
_WITHOUT_ROLE = 0.1
_ONE_WITHOUT_ROLE = 0.01
_LEAST_WITHOUT_ROLE = 10
_MIB = 1 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class CallerLimits:
    """What one caller may have."""

    calls_per_second: float = 1000
    streams: int = 2048
    # others, until their clients have taken the answers
    calls_at_once: int = 2048
    # of these answers
    untaken_bytes: int = 64 * _MIB
    # a call that is no stream, and what a stream asks for
    call_timeout: timedelta = timedelta(seconds=60)
    # how long a watcher may leave unread what it was sent
    stall_timeout: timedelta = timedelta(seconds=30)


@dataclass(slots=True)
class _Caller:
    # calls that it may make at once, as of `time`
    left: float
    time: float


class _Of(Enum):
    """What is counted while it is under way; the value says what of."""

    STREAMS = "streams at a time"
    CALLS = "calls at a time"
    BYTES = "MiB of answers that are not taken"


class Usage:
    """What each caller has; nothing is kept of one that is idle."""

    def __init__(self, limits: CallerLimits) -> None:
        self.limits = limits
        self.pause_each = _PAUSE_EACH
        self._callers: dict[str, _Caller] = {}
        # by whose and which
        self._under_way: Counter[tuple[str, _Of]] = Counter()

    def __len__(self) -> int:
        """Return of how many callers something is kept."""
        return len(self._callers)

    def count_call(self, actor: str, now: float) -> None:
        """Count a call that begins *now*, in seconds of any clock that only goes forward.

        Raises:
            LimitReached: it is one too many.
        """
        rate = self.limits.calls_per_second
        most = max(rate * _BURST_S, 1)
        known = self._callers.get(actor)
        if known is None:
            known = self._callers[actor] = _Caller(most, now)
        known.left = min(most, known.left + (now - known.time) * rate)
        known.time = now
        if known.left < 1:
            raise LimitReached(actor, "calls per second", rate)
        known.left -= 1

    def begin(self, caller: Caller, *, streams: bool) -> Callable[[], None]:
        """Count a call among those under way, until what this returns is called.

        Raises:
            LimitReached: it is one too many.
        """
        counted = self._counted(caller, streams=streams)
        for (whose, which), allowed in counted.items():
            if self._under_way[whose, which] >= allowed:
                raise LimitReached(whose, which.value, allowed)
        return self._begin(dict.fromkeys(counted, 1))

    def answer(self, actor: str, size: int, *, refusable: bool) -> Callable[[], None]:
        """Count the bytes of an answer until what this returns is called: once it is taken.

        Args:
            actor: whose it is.
            size: how many they are.
            refusable: whether it may be refused: what it tells of was only read, and not done.

        Raises:
            LimitReached: they are too many.
        """
        most = self.limits.untaken_bytes
        if refusable and self._under_way[actor, _Of.BYTES] + size > most:
            raise LimitReached(actor, _Of.BYTES.value, most / _MIB)
        return self._begin({(actor, _Of.BYTES): size})

    def pause(self, actor: str) -> timedelta:
        """Return how long each stream is to wait before it sends what only the clock asks for."""
        return self._under_way[actor, _Of.STREAMS] * self.pause_each

    def _counted(self, caller: Caller, *, streams: bool) -> dict[tuple[str, _Of], int]:
        """Return as what a call counts, and how many of it there may be."""
        if not caller.grants:
            most = self.limits.calls_at_once
            together = min(most, max(int(most * _WITHOUT_ROLE), _LEAST_WITHOUT_ROLE))
            each = max(int(most * _ONE_WITHOUT_ROLE), _LEAST_WITHOUT_ROLE)
            all_of_them = f"everybody without a role ({caller.origin.lower()})"
            return {
                (caller.actor, _Of.CALLS): min(each, max(together // 2, 1)),
                (all_of_them, _Of.CALLS): together,
            }
        if streams:
            return {(caller.actor, _Of.STREAMS): self.limits.streams}
        return {(caller.actor, _Of.CALLS): self.limits.calls_at_once}

    def _begin(self, counted: dict[tuple[str, _Of], int]) -> Callable[[], None]:
        self._under_way.update(counted)
        return partial(self._end, counted)

    def _end(self, counted: dict[tuple[str, _Of], int]) -> None:
        self._under_way.subtract(counted)
        for each in counted:
            if not self._under_way[each]:
                del self._under_way[each]

    def forget_idle(self, now: float) -> None:
        """Forget everybody who may make as many calls as ever."""
        idle = [actor for actor, known in self._callers.items() if now - known.time >= _BURST_S]
        for actor in idle:
            del self._callers[actor]


@dataclass(frozen=True, slots=True)
class OfCaller:
    """What the present call's caller has."""

    usage: Usage
    actor: str

    def count_call(self) -> None:
        """Count what is as much as a call.

        Raises:
            LimitReached: it is one too many.
        """
        self.usage.count_call(self.actor, asyncio.get_running_loop().time())

    def answer(self, size: int, *, refusable: bool) -> Callable[[], None]:
        """Count the bytes of an answer; see `Usage.answer`."""
        return self.usage.answer(self.actor, size, refusable=refusable)

    def pause(self) -> timedelta:
        """Return how long a stream is to wait before it sends what only the clock asks for."""
        return self.usage.pause(self.actor)


_OF_CALLER: ContextVar[OfCaller] = ContextVar("usage")


def usage() -> OfCaller:
    """Return what the present call's caller has."""
    return _OF_CALLER.get()


def keep(usage: Usage, actor: str) -> OfCaller:
    """Have `usage` return that for the rest of the present call."""
    kept = OfCaller(usage, actor)
    _OF_CALLER.set(kept)
    return kept
