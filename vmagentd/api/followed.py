"""Files that may change at any time: seen by their marks, read anew, told of once if no good.

Runs on the loop; they are looked at and read in threads, for they may be long, and where there is
a pipe, or a file system that does not answer, it has no end.
"""

from __future__ import annotations

import asyncio
import logging
import time
from datetime import timedelta
from typing import TYPE_CHECKING, Final, Generic, TypeAlias, TypeVar

from vmagentd import messages
from vmagentd.errors import TlsUnusable
from vmagentd.pool import NotRun, Occupied, Pool

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable, Iterable
    from pathlib import Path

log = logging.getLogger(__name__)

# How soon what is no good is looked at again though nobody has touched it: a certificate may only
# begin later, since the clock of its CA is ahead, or a folder above it not be open to us yet.
_AGAIN_S: Final = 2.0
# How long a file may take, until it is told of as one whose reading does not end.
_PATIENCE: Final = timedelta(seconds=5)
# So many files may have no end, one in the place of the other, until none is read any more.
_THREADS: Final = 16

# of each file what changes when it is written or replaced
_Marks: TypeAlias = tuple[tuple[int, ...] | None, ...]
# of files whose marks are not told either
_UNTOLD: Final[_Marks] = ()

_Files = TypeVar("_Files")
_Content = TypeVar("_Content")
_T = TypeVar("_T")


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
        patience: timedelta = _PATIENCE,
    ) -> None:
        """Read them, here and now.

        Args:
            files: which ones.
            paths: where they are.
            read: returns what is in them; raises TlsUnusable if they are no good. Later on it is
                called in a thread.
            flaw: what is wrong with some of it, though the rest is used.
            meanwhile: what holds while something is wrong, for the log.
            patience: how long a thread may take, later on; what takes longer is no good.

        Raises:
            TlsUnusable: they are no good.
        """
        self._paths = paths
        self._read = read
        self._flaw = flaw
        self._meanwhile = meanwhile
        self._patience = patience
        self._pool = Pool("files", _THREADS)
        # one reads at a time
        self._turn = asyncio.Lock()
        # of files that are no good, seen once
        self._doubted: _Marks | None = None
        # of files that are no good, seen twice; why, and when they are looked at again
        self._refused: _Marks | None = None
        self._why = ""
        self._again = 0.0
        # of those that are in use; None once some were no good: those before may come back
        self._marks: _Marks | None = _marks(tuple(paths(files)))
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
            changed = await self._use(files, await self._present_marks(files))
        self.tell_flaw()
        return changed

    async def look(self) -> bool:
        """Read them if they have changed; return whether something else is in use now."""
        async with self._turn:
            marks = _UNTOLD
            try:
                marks = await self._present_marks(self.files)
                if self._refused == _UNTOLD:  # it is told of again, should it come again
                    self._doubted = self._refused = None
                if marks == self._marks or (
                    marks == self._refused and time.monotonic() < self._again
                ):
                    return False
                changed = await self._use(self.files, marks)
            except TlsUnusable as error:
                self._refuse(marks, str(error))
                return False
            if self.flaw is not None:
                self._refuse(marks, str(self.flaw))
                if marks != self._refused:  # not told of yet
                    self._marks = None
            return changed

    def close(self) -> None:
        """Let the threads end."""
        self._pool.close()

    async def _use(self, files: _Files, marks: _Marks) -> bool:
        """Read them; *marks* were theirs before: what changes meanwhile is read again."""
        self._marks = None
        # One thread at most reads the same files, however often that is tried.
        same = tuple(mark and mark[:2] for mark in marks)
        content = await self._in_thread(lambda: self._read(files), files, lane=same)
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

    async def _present_marks(self, files: _Files) -> _Marks:
        paths = tuple(self._paths(files))
        return await self._in_thread(lambda: _marks(paths), files, lane=paths)

    async def _in_thread(self, call: Callable[[], _T], files: _Files, lane: Hashable) -> _T:
        paths = tuple(self._paths(files))
        if not paths:
            return call()
        try:
            return await self._pool.run(lambda _: call(), deadline=self._patience, lane=lane)
        except (TimeoutError, NotRun, Occupied):
            first, *others = paths
            beside = f", or that of {' or '.join(map(str, others))}," if others else ""
            raise TlsUnusable(first, f"cannot be used: its reading{beside} does not end") from None


def _marks(paths: Iterable[Path]) -> _Marks:
    return tuple(map(_mark, paths))


def _mark(path: Path) -> tuple[int, ...] | None:
    try:
        there = path.stat()
    except OSError:
        return None
    return there.st_dev, there.st_ino, there.st_size, there.st_mtime_ns, there.st_ctime_ns
