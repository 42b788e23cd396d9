"""Waiting for a fact, with a deadline: the only place where a test sleeps."""

import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")

_GLANCE_S = 0.01


class NeverHappenedError(AssertionError):
    """A fact did not come true in time."""

    def __init__(self, what: str, within_s: float) -> None:
        super().__init__(f"{what}: not within {within_s:g} s")
        self.what = what
        self.within_s = within_s


def until(fact: Callable[[], T | None], what: str, *, within_s: float = 30.0) -> T:
    """Look at a fact every 10 ms until it is true, and return it.

    Args:
        fact: returns something true once it has come about.
        what: names the fact in the failure.
        within_s: the deadline.

    Raises:
        NeverHappenedError: the deadline passed; the fact was looked at once after it.
    """
    deadline = time.monotonic() + within_s
    while True:
        late = time.monotonic() > deadline
        if seen := fact():
            return seen
        if late:
            raise NeverHappenedError(what, within_s)
        time.sleep(_GLANCE_S)
