"""What one caller may have: calls per second, streams, time. Runs on the loop."""

from __future__ import annotations

import asyncio
from contextvars import ContextVar
from dataclasses import dataclass
from datetime import timedelta

from vmagentd.errors import LimitReached

# In seconds of the rate: how many calls may come at once.
_BURST_S = 2.0
# For each stream of a caller, time that his streams leave between two messages that nothing but
# the clock asks for: all together send no more of them than some hundred streams could.
_PAUSE_EACH = timedelta(milliseconds=1)


@dataclass(frozen=True, slots=True, kw_only=True)
class CallerLimits:
    """What one caller may have."""

    calls_per_second: float = 1000
    streams: int = 2048
    # a call that is no stream, and what a stream asks for
    call_timeout: timedelta = timedelta(seconds=60)
    # how long a watcher may leave unread what it was sent
    stall_timeout: timedelta = timedelta(seconds=30)


@dataclass(slots=True)
class _Caller:
    # calls that it may make at once, as of `time`
    left: float
    time: float
    streams: int = 0


class Usage:
    """What each caller has; nothing is kept of one that is idle."""

    def __init__(self, limits: CallerLimits) -> None:
        self.limits = limits
        self.pause_each = _PAUSE_EACH
        self._callers: dict[str, _Caller] = {}

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

    def begin_stream(self, actor: str) -> None:
        """Count a stream, of a caller whose call was counted just now.

        Raises:
            LimitReached: it is one too many.
        """
        known = self._callers[actor]
        if known.streams >= self.limits.streams:
            raise LimitReached(actor, "streams at a time", self.limits.streams)
        known.streams += 1

    def pause(self, actor: str) -> timedelta:
        """Return how long each stream is to wait before it sends what only the clock asks for."""
        return self._callers[actor].streams * self.pause_each

    def end_stream(self, actor: str) -> None:
        """Count a stream no more."""
        self._callers[actor].streams -= 1

    def forget_idle(self, now: float) -> None:
        """Forget everybody who has no stream and may make as many calls as ever."""
        idle = [
            actor
            for actor, known in self._callers.items()
            if not known.streams and now - known.time >= _BURST_S
        ]
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
