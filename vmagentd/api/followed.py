"""Files that may change at any time: seen by their marks, read anew, told of once if no good.

Runs on the loop; they are read in a thread, for they may be long.
"""

from __future__ import annotations

import asyncio
import logging
import time
from typing import TYPE_CHECKING, Final, Generic, TypeAlias, TypeVar

from vmagentd import messages
from vmagentd.errors import TlsUnusable
from vmagentd.hypervisor.pool import Pool

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from pathlib import Path

log = logging.getLogger(__name__)

# How soon what is no good is looked at again though nobody has touched it: a certificate may only
# begin later, since the clock of its CA is ahead, or a folder above it not be open to us yet.
_AGAIN_S: Final = 2.0

# of each file what changes when it is written or replaced
_Marks: TypeAlias = tuple[tuple[int, ...] | None, ...]

_Files = TypeVar("_Files")
_Content = TypeVar("_Content")


class Followed(Generic[_Files, _Content]):
    """Files that are used together."""

    def __init__(
        self,
        files: _Files,
        *,
        paths: Callable[[_Files], Iterable[Path]],
        read: Callable[[_Files], _Content],
        flaw: Callable[[_Content], TlsUnusable | None] = lambda _: None,
        meanwhile: str,
    ) -> None:
        """Read them, here and now.

        Args:
            files: which ones.
            paths: where they are.
            read: returns what is in them; raises TlsUnusable if they are no good. Later on it is
                called in a thread.
            flaw: what is wrong with some of it, though the rest is used.
            meanwhile: what holds while something is wrong, for the log.

        Raises:
            TlsUnusable: they are no good.
        """
        self._paths = paths
        self._read = read
        self._flaw = flaw
        self._meanwhile = meanwhile
        # one reads at a time
        self._turn = asyncio.Lock()
        # of files that are no good, seen once
        self._doubted: _Marks | None = None
        # of files that are no good, seen twice; why, and when they are looked at again
        self._refused: _Marks | None = None
        self._why = ""
        self._again = 0.0
        # of those that are in use; None once some were no good: those before may come back
        self._marks: _Marks | None = self._present_marks(files)
        # which are in use, and what is in them
        self.files = files
        self.content = read(files)

    @property
    def flaw(self) -> TlsUnusable | None:
        """What is wrong with some of what is in use."""
        return self._flaw(self.content)

    def tell_flaw(self) -> None:
        """Tell of it now, if there is one."""
        if self.flaw is not None:
            self._tell(str(self.flaw))

    async def load(self, files: _Files) -> bool:
        """Read these now, and follow them; return whether something else is in them.

        Raises:
            TlsUnusable: they are no good, and those before are followed still.
        """
        async with self._turn:
            changed = await self._use(files)
        self.tell_flaw()
        return changed

    async def look(self) -> bool:
        """Read them if they have changed; return whether something else is in use now."""
        async with self._turn:
            marks = self._present_marks(self.files)
            if marks == self._marks or (marks == self._refused and time.monotonic() < self._again):
                return False
            try:
                changed = await self._use(self.files)
            except TlsUnusable as error:
                self._refuse(marks, str(error))
                return False
            if self.flaw is not None:
                self._refuse(marks, str(self.flaw))
                if marks != self._refused:  # not told of yet
                    self._marks = None
            return changed

    async def _use(self, files: _Files) -> bool:
        marks = self._present_marks(files)  # before: what changes meanwhile is read again
        self._marks = None
        pool = Pool("files", 1)
        try:
            content = await pool.run(lambda _: self._read(files))
        finally:
            pool.close()
        before, self.files, self.content = self.content, files, content
        self._marks = marks
        if self.flaw is None:
            self._doubted = self._refused = None
        return content != before

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
            self._tell(why)

    def _tell(self, why: str) -> None:
        log.error("%s; %s", why, self._meanwhile, extra={"MESSAGE_ID": messages.TLS_FILES_REFUSED})

    def _present_marks(self, files: _Files) -> _Marks:
        return tuple(_mark(path) for path in self._paths(files))


def _mark(path: Path) -> tuple[int, ...] | None:
    try:
        there = path.stat()
    except OSError:
        return None
    return there.st_dev, there.st_ino, there.st_size, there.st_mtime_ns, there.st_ctime_ns
