"""What all errors have in common, and those of the daemon as a whole."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from datetime import datetime


def utc(time: datetime) -> str:
    """Return *time* as people and programs read it: `2026-01-31T23:59:59.123Z`."""
    return f"{time:%FT%T}.{time.microsecond // 1000:03d}Z"


class VmagentdError(Exception):
    """Any error that the daemon can tell of."""

    def __init__(self, message: str, **facts: object) -> None:
        super().__init__(message)
        self.facts = {name: str(fact) for name, fact in facts.items() if fact is not None}


class JournalUnwritable(VmagentdError):
    """The journal cannot be written, so nothing new can be promised."""

    def __init__(self, cause: str) -> None:
        super().__init__(
            f"the journal cannot be written ({cause}); make room on its disk and try again",
            cause=cause,
        )


class ShuttingDown(VmagentdError):
    """The daemon ends. Nothing is lost: resume elsewhere or later."""

    def __init__(self) -> None:
        super().__init__("vmagentd is shutting down; connect again and resume, nothing is lost")
