"""Files that may change at any time: seen by their marks, read anew, told of once if no good.

Runs on the loop.
"""

from __future__ import annotations

import logging
import time
from typing import TYPE_CHECKING, Final, Generic, TypeAlias, TypeVar

from vmagentd import messages
from vmagentd.errors import TlsUnusable

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from pathlib import Path

log = logging.getLogger(__name__)

# How soon what is no good is looked at again though nobody has touched it: a certificate may only
# begin later, since the clock of its CA is ahead, or a folder above it not be open to us yet.
_AGAIN_S: Final = 2.0

# of each file what changes when it is written or replaced
_Marks: TypeAlias = tuple[tuple[int, ...] | None, ...]

_T = TypeVar("_T")


class Followed(Generic[_T]):
    """A set of files that are used together."""

    def __init__(
        self, paths: Callable[[], Iterable[Path]], read: Callable[[], _T], *, meanwhile: str
    ) -> None:
        """Read them.

        Args:
            paths: where they are now.
            read: returns what is in them; raises TlsUnusable if they are no good.
            meanwhile: what holds then, for the log.

        Raises:
            TlsUnusable: they are no good.
        """
        self._paths = paths
        self._read = read
        self._meanwhile = meanwhile
        # of a set that is no good, seen once
        self._doubted: _Marks | None = None
        # of one that is no good, seen twice; why, and when it is looked at again
        self._refused: _Marks | None = None
        self._why = ""
        self._again = 0.0
        # of those that are in use; None after one was no good: the one before may come back
        self._marks: _Marks | None = self._present_marks()
        # what is in use
        self.content = read()

    def load(self) -> bool:
        """Read them now; return whether something else is in them.

        Raises:
            TlsUnusable: they are no good.
        """
        marks = self._present_marks()  # before: what changes meanwhile is read again
        self._marks = None
        before, self.content = self.content, self._read()
        self._marks, self._doubted, self._refused = marks, None, None
        return self.content != before

    def look(self) -> bool:
        """Read them if they have changed; return whether something else is in use now."""
        marks = self._present_marks()
        if marks == self._marks or (marks == self._refused and time.monotonic() < self._again):
            return False
        try:
            return self.load()
        except TlsUnusable as error:
            self._refuse(marks, str(error))
            return False

    def _refuse(self, marks: _Marks, why: str) -> None:
        """Tell of what is no good, once: at the second look.

        Files are replaced one after the other, or written in parts.
        """
        if marks != self._refused:
            if marks != self._doubted:
                self._doubted = marks
                return
            self._refused, self._why = marks, ""
        self._again = time.monotonic() + _AGAIN_S
        if why != self._why:
            self._why = why
            log.error(
                "%s; %s", why, self._meanwhile, extra={"MESSAGE_ID": messages.TLS_FILES_REFUSED}
            )

    def _present_marks(self) -> _Marks:
        return tuple(_mark(path) for path in self._paths())


def _mark(path: Path) -> tuple[int, ...] | None:
    try:
        there = path.stat()
    except OSError:
        return None
    return there.st_dev, there.st_ino, there.st_size, there.st_mtime_ns, there.st_ctime_ns
