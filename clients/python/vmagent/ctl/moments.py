"""Places in history as people type them: a revision, a time, or how long ago."""

from __future__ import annotations

import re
from datetime import datetime, time

from vmagent.ctl.durations import parse_duration

_REVISION = re.compile(r"[0-9]{1,18}")
_AGO = re.compile(r"[0-9.]+(?:ms|[dhms])[0-9.dhms]*")


def parse_moment(text: str, now: datetime) -> int | datetime:
    """Return the revision or the time that *text* means.

    A plain number is a revision; `2h30m` is that long before *now*; `2026-01-31`,
    `2026-01-31T23:59` (with or without a zone) and `23:59` (today) are times, in the zone of
    *now* unless they name their own.

    Raises:
        ValueError: with one sentence that says what is wrong.
    """
    if _REVISION.fullmatch(text):
        return int(text)
    if _AGO.fullmatch(text):
        return now - parse_duration(text)
    try:
        if "-" not in text:
            return datetime.combine(now.date(), time.fromisoformat(text), now.tzinfo)
        moment = datetime.fromisoformat(text)
    except ValueError:
        raise ValueError(
            f"{text!r} is neither a revision nor a time; write for example 1200, 2h30m (ago), "
            "23:59 or 2026-01-31T23:59"
        ) from None
    return moment if moment.tzinfo else moment.replace(tzinfo=now.tzinfo)
