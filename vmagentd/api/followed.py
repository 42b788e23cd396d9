"""Files that may change at any time: seen by their marks, read anew, told of once if no good.

Runs on the loop.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Generic, TypeAlias, TypeVar

from vmagentd import messages
from vmagentd.errors import TlsUnusable

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from pathlib import Path

log = logging.getLogger(__name__)

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
        self._marks = self._present_marks()
        # what is in use
        self.content = read()

    def load(self) -> bool:
        """Read them now; return whether something else is in them.

        Raises:
            TlsUnusable: they are no good.
        """
        marks = self._present_marks()  # before: what changes meanwhile is read again
        before, self.content = self.content, self._read()
        self._marks, self._doubted = marks, None
        return self.content != before

    def look(self) -> bool:
        """Read them if they have changed; return whether something else is in use now."""
        marks = self._present_marks()
        if marks == self._marks:
            return False
        try:
            return self.load()
        except TlsUnusable as error:
            # Files are replaced one after the other, or written in parts, so what is no good gets
            # a second look before it is told of.
            if marks == self._doubted:
                self._marks = marks
                log.error(  # noqa: TRY400 - the sentence says it all
                    "%s; %s",
                    error,
                    self._meanwhile,
                    extra={"MESSAGE_ID": messages.TLS_FILES_REFUSED},
                )
            self._doubted = marks
            return False

    def _present_marks(self) -> _Marks:
        return tuple(_mark(path) for path in self._paths())


def _mark(path: Path) -> tuple[int, ...] | None:
    try:
        there = path.stat()
    except OSError:
        return None
    return there.st_dev, there.st_ino, there.st_size, there.st_mtime_ns, there.st_ctime_ns
