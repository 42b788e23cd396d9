"""Places in history as people type them: a revision, a time, or how long ago."""

from __future__ import annotations

import re
from datetime import UTC, datetime, time

from vmagent.ctl.durations import parse_duration

_REVISION = re.compile(r"[0-9]{1,18}")
_AGO = re.compile(r"[0-9.]+(?:ms|[dhms])[0-9.dhms]*")


def parse_moment(text: str, now: datetime) -> int | datetime:
    """Return the revision or the time that *text* means.

    A plain number is a revision; `2h30m` is that long before *now*; `2026-01-31`,
    `2026-01-31T23:59` (with or without a zone) and `23:59` (today) are times. Without a zone
    they are what clocks here showed then, which may differ by an hour from what they show now.

    Raises:
        ValueError: with one sentence that says what is wrong.
    """
    if _REVISION.fullmatch(text):
        return int(text)
    if _AGO.fullmatch(text):
        return now - parse_duration(text)
    try:
        if "-" in text:
            moment = datetime.fromisoformat(text)
        else:
            clock = time.fromisoformat(text)
            moment = datetime.combine(now.astimezone(clock.tzinfo).date(), clock)
    except ValueError:
        raise ValueError(
            f"{text!r} is neither a revision nor a time; write for example 1200, 2h30m (ago), "
            "23:59 or 2026-01-31T23:59"
        ) from None
    try:
        return moment.astimezone(UTC)
    except (ValueError, OverflowError):
        raise ValueError(f"{text!r} is not within the years 1 to 9999 of UTC") from None


def parse_time(text: str, now: datetime) -> datetime:
    """Return the time that *text* means, where a revision makes no sense.

    Raises:
        ValueError: with one sentence that says what is wrong.
    """
    moment = parse_moment(text, now)
    if isinstance(moment, int):
        problem = f"{text!r} is no time; write for example 2h30m (ago) or 2026-01-31"
        raise ValueError(problem)  # noqa: TRY004 - a value as others that are wrong
    return moment
