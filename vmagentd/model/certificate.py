"""Which client certificates are not accepted although they were issued."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, NewType

if TYPE_CHECKING:
    from collections.abc import Iterable

Serial = NewType("Serial", int)
# SHA-256, in lower-case hexadecimal digits
Fingerprint = NewType("Fingerprint", str)

_HEX: Final = re.compile(r"(?:[0-9A-Fa-f]{2}:?)*[0-9A-Fa-f]{1,2}")
_FINGERPRINT_DIGITS: Final = 64
# A serial number has 20 bytes at most, so it is never taken for a fingerprint.
_SERIAL_DIGITS: Final = 40


@dataclass(frozen=True, slots=True)
class Denied:
    """Certificates that are not accepted, each by its serial number or its fingerprint."""

    entries: frozenset[Serial | Fingerprint] = frozenset()

    @classmethod
    def parse(cls, text: str) -> tuple[Denied, str | None]:
        """Return those of a list with one a line; `#` begins a comment.

        Of lines that are neither, the first is told too.
        """
        entries = set[Serial | Fingerprint]()
        wrong: str | None = None
        for number, line in enumerate(text.splitlines(), start=1):
            entry = line.partition("#")[0].strip()
            if not entry:
                continue
            try:
                entries.add(parse_denied(entry))
            except ValueError as error:
                wrong = wrong or f"line {number}: {error}"
        return cls(frozenset(entries)), wrong

    @classmethod
    def of(cls, entries: Iterable[str]) -> Denied:
        """Return those of entries that `parse_denied` takes."""
        return cls(frozenset(map(parse_denied, entries)))

    def __or__(self, other: Denied) -> Denied:
        """Return what either denies."""
        return Denied(self.entries | other.entries)

    def has(self, serial: int, fingerprint: str) -> bool:
        """Return whether a certificate is denied."""
        return serial in self.entries or fingerprint in self.entries


def parse_denied(text: str) -> Serial | Fingerprint:
    """Return what names a certificate, also as `openssl x509` prints it.

    Raises:
        ValueError: it is neither a serial number nor a fingerprint.
    """
    digits = text.rpartition("=")[2].strip()  # serial=1A2B, sha256 Fingerprint=AB:CD:…
    if _HEX.fullmatch(digits):
        digits = digits.replace(":", "").lower()
        if len(digits) == _FINGERPRINT_DIGITS:
            return Fingerprint(digits)
        if len(digits) <= _SERIAL_DIGITS:
            return Serial(int(digits, 16))
    raise ValueError(
        f"{text!r} is neither a serial number nor a SHA-256 fingerprint, in hexadecimal digits"
    )
