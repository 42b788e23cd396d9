"""Durations as people type them: `30s`, `1m30s`, `500ms`, `2h`, or a plain number of seconds."""

from __future__ import annotations

import re
from datetime import timedelta
from decimal import Decimal

_UNITS_US = {
    "d": 86_400_000_000,
    "h": 3_600_000_000,
    "m": 60_000_000,
    "s": 1_000_000,
    "ms": 1_000,
}
_PART = re.compile(r"([0-9]+(?:\.[0-9]+)?)(ms|[dhms])")
_PLAIN = re.compile(r"[0-9]+(?:\.[0-9]+)?")
_LONGEST = timedelta(days=36_500)  # far beyond any limit of the daemon, far below any overflow


def parse_duration(text: str) -> timedelta:
    """Return the duration that *text* means.

    Raises:
        ValueError: with one sentence that says what is wrong.
    """
    if _PLAIN.fullmatch(text):
        microseconds = Decimal(text) * _UNITS_US["s"]
    elif text and _PART.sub("", text) == "":
        microseconds = sum(
            (Decimal(number) * _UNITS_US[unit] for number, unit in _PART.findall(text)),
            Decimal(0),
        )
    else:
        raise ValueError(f"{text!r} is not a duration; write for example 30s, 1m30s, 500ms or 2h")
    # Compared before it is converted: neither int() of a huge number nor timedelta() then fails.
    if microseconds > _LONGEST // timedelta(microseconds=1):
        raise ValueError(f"{text!r} is longer than {_LONGEST.days} days")
    return timedelta(microseconds=int(microseconds))
