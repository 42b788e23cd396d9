"""Client certificates that are not accepted: those of the settings, and those of a file.

Nothing else can keep a denial from being obeyed: it waits for no certificate that is renewed, and
in a file with a line that is no good for no other line. Runs on the loop, but for what reads.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING

from vmagentd.api.followed import Followed
from vmagentd.errors import TlsUnusable
from vmagentd.model import Denied

if TYPE_CHECKING:
    from pathlib import Path

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class _List:
    """What is in a file."""

    file: Path | None
    denied: Denied
    # of a line that is no good
    wrong: str | None = None
    # of one that may be meant for something else
    remark: str | None = None

    @property
    def flaw(self) -> TlsUnusable | None:
        """What is wrong with it."""
        if self.file is None or self.wrong is None:
            return None
        return TlsUnusable(self.file, self.wrong)


class Denials:
    """Who is denied now."""

    def __init__(self, denied: Denied, file: Path | None, *, strict: bool = False) -> None:
        """Read the file.

        Args:
            denied: those of the settings.
            file: more of them, one a line; it is followed.
            strict: refuse a file with a line that is no good, too; else it is told of, and the
                other lines hold.

        Raises:
            TlsUnusable: it cannot be read.
        """
        self._set = denied
        self._listed = Denied()
        self._used = denied
        self._followed = Followed(
            file,
            paths=lambda file: () if file is None else (file,),
            read=_read,
            flaw=lambda found: found.flaw,
            meanwhile="whoever was denied before still is, and so is whom a good line in it names",
        )
        if strict and self._followed.flaw is not None:
            raise self._followed.flaw
        self._followed.tell_flaw()
        self._take()

    def has(self, serial: int, fingerprint: str) -> bool:
        """Return whether a certificate is denied."""
        return self._used.has(serial, fingerprint)

    def deny(self, denied: Denied, *, beside: bool = False) -> None:
        """Deny these from now on, and those of the file.

        Args:
            denied: those of the settings.
            beside: all who are denied now still are, until this is called again.
        """
        self._set = denied | self._used if beside else denied
        self._use()

    async def follow(self, file: Path | None) -> None:
        """Read this file now, and follow it from now on.

        Raises:
            TlsUnusable: it cannot be read; the one before is followed still.
        """
        if await self._followed.load(file):
            self._take()

    async def look(self) -> bool:
        """Read the file if it has changed; return whether others are denied now."""
        before = self._used
        if await self._followed.look():
            self._take()
        return self._used != before

    def close(self) -> None:
        """Follow nothing any more."""
        self._followed.close()

    def _take(self) -> None:
        found = self._followed.content
        if found.remark is not None:
            log.warning("%s %s", found.file, found.remark)
        # A mistake in it lets nobody in again.
        self._listed = found.denied if found.flaw is None else self._listed | found.denied
        self._use()

    def _use(self) -> None:
        denied = self._set | self._listed
        if denied != self._used:
            log.info("%d client certificates are denied", len(denied.entries))
            self._used = denied


def _read(file: Path | None) -> _List:
    """Return what is in *file*.

    Raises:
        TlsUnusable: it cannot be read.
    """
    if file is None:
        return _List(None, Denied())
    try:
        # What is no text is no entry either: it makes its line a bad one.
        text = file.read_text(encoding="utf-8", errors="replace")
    except OSError as error:
        # Not "nobody is denied": whoever names a list wants it obeyed.
        raise TlsUnusable(file, f"cannot be read: {error.strerror}") from error
    return _List(file, *Denied.parse(text))
