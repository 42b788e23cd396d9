"""Client certificates that are not accepted: those of the settings, and those of a file.

Nothing else can keep a denial from being obeyed: it waits for no certificate that is renewed, and
in a file with a line that is no good for no other line. Runs on the loop.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from vmagentd.api.followed import Followed
from vmagentd.errors import TlsUnusable
from vmagentd.model import Denied

if TYPE_CHECKING:
    from pathlib import Path

log = logging.getLogger(__name__)


class Denials:
    """Who is denied now."""

    def __init__(self, denied: Denied, file: Path | None) -> None:
        """Read the file.

        Args:
            denied: those of the settings.
            file: more of them, one a line; it is followed.

        Raises:
            TlsUnusable: it cannot be read, or a line in it is no good.
        """
        self._set, self._file = denied, file
        self._listed = Denied()
        self._used = denied
        self._followed = Followed[None](
            lambda: () if self._file is None else (self._file,),
            self._read,
            meanwhile="whoever was denied before still is, and so is whom a good line in it names",
        )

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

    def follow(self, file: Path | None) -> None:
        """Read this file now, and follow it from now on.

        Raises:
            TlsUnusable: it is no good; if it is another one, the one before is followed still.
        """
        before, listed = self._file, self._listed
        self._file = file
        try:
            self._followed.load()
        except TlsUnusable:
            if file != before:
                self._file, self._listed = before, listed
                self._use()
            raise

    def look(self) -> bool:
        """Read the file if it has changed; return whether others are denied now."""
        before = self._used
        self._followed.look()
        return self._used != before

    def _read(self) -> None:
        if self._file is None:
            self._listed, wrong = Denied(), None
        else:
            listed, wrong = _content(self._file)
            # A mistake in it lets nobody in again.
            self._listed = listed if wrong is None else self._listed | listed
        self._use()
        if wrong is not None:
            raise wrong

    def _use(self) -> None:
        denied = self._set | self._listed
        if denied != self._used:
            log.info("%d client certificates are denied", len(denied.entries))
            self._used = denied


def _content(file: Path) -> tuple[Denied, TlsUnusable | None]:
    """Return whom a file denies, and what is wrong with it."""
    try:
        denied, wrong, remark = Denied.parse(file.read_text(encoding="utf-8"))
    except OSError as error:
        # Not "nobody is denied": whoever names a list wants it obeyed.
        return Denied(), TlsUnusable(file, f"cannot be read: {error.strerror}")
    except ValueError as error:
        return Denied(), TlsUnusable(file, f"is not text in UTF-8: {error}")
    if remark is not None:
        log.warning("%s %s", file, remark)
    return denied, TlsUnusable(file, wrong) if wrong else None
