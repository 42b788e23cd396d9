"""Which client certificates are not accepted although they were issued."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final, NewType

Serial = NewType("Serial", int)
# SHA-256, in lower-case hexadecimal digits
Fingerprint = NewType("Fingerprint", str)

# What openssl prints: serial=1A2B, sha256 Fingerprint=AB:CD:…
_SERIAL: Final = {"", "serial"}
_SHA_256: Final = {"", "fingerprint", "sha256 fingerprint", "sha-256 fingerprint"}
_HEX: Final = re.compile(r"(?:[0-9A-Fa-f]{2}:?)*[0-9A-Fa-f]{1,2}")
_FINGERPRINT_DIGITS: Final = 64
# A serial number has 20 bytes at most, so it is never taken for a fingerprint; but a fingerprint
# of SHA-1 has as many, and openssl prints that one unless it is told otherwise.
_SERIAL_DIGITS: Final = 40
_HOW: Final = "openssl x509 -noout -fingerprint -sha256"


@dataclass(frozen=True, slots=True)
class Denied:
    """Certificates that are not accepted, each by its serial number or its fingerprint."""

    entries: frozenset[Serial | Fingerprint] = frozenset()

    @classmethod
    def parse(cls, text: str) -> tuple[Denied, str | None, str | None]:
        """Return those of a list with one a line; `#` begins a comment.

        Of lines that are neither, the first is told too, and then of those that may be meant for
        something else.
        """
        entries = set[Serial | Fingerprint]()
        wrong: str | None = None
        remark: str | None = None
        for number, line in enumerate(text.splitlines(), start=1):
            entry = line.partition("#")[0].strip()
            if not entry:
                continue
            try:
                entries.add(parse_denied(entry))
            except ValueError as error:
                wrong = wrong or f"line {number}: {error}"
            else:
                if remark is None and _is_doubtful(entry):
                    remark = (
                        f"line {number}: {entry!r} is taken for a serial number; write serial= "
                        "before it if it is one. If it is a SHA-1 fingerprint it denies nobody: "
                        f"give the one of {_HOW}"
                    )
        return cls(frozenset(entries)), wrong, remark

    def __or__(self, other: Denied) -> Denied:
        """Return what either denies."""
        return Denied(self.entries | other.entries)

    def has(self, serial: int, fingerprint: str) -> bool:
        """Return whether a certificate is denied."""
        return serial in self.entries or fingerprint in self.entries


def parse_denied(text: str) -> Serial | Fingerprint:
    """Return what names a certificate, also as `openssl x509` prints it.

    Raises:
        ValueError: it is neither a serial number nor a SHA-256 fingerprint.
    """
    label, digits = _parts(text)
    if "fingerprint" in label or (not label and len(digits) == _FINGERPRINT_DIGITS):
        return parse_fingerprint(text)
    if label in _SERIAL and 0 < len(digits) <= _SERIAL_DIGITS:
        return parse_serial(text)
    raise ValueError(
        f"{text!r} is neither a serial number nor a SHA-256 fingerprint, in hexadecimal digits"
    )


def parse_serial(text: str) -> Serial:
    """Return a serial number, also as `openssl x509 -serial` prints it.

    Raises:
        ValueError: it is none.
    """
    label, digits = _parts(text)
    # It is positive, so with all its bytes it has no higher first digit; whoever says that it is
    # one nevertheless has seen a certificate that should not have been made.
    sha_1 = not label and len(digits) == _SERIAL_DIGITS and digits[0] > "7"
    if label in _SERIAL and 0 < len(digits) <= _SERIAL_DIGITS and not sha_1:
        return Serial(int(digits, 16))
    raise ValueError(
        f"{text!r} is no serial number: that has at most {_SERIAL_DIGITS} hexadecimal digits, and "
        f"begins with 0 to 7 then; a fingerprint must be that of {_HOW}"
    )


def parse_fingerprint(text: str) -> Fingerprint:
    """Return a SHA-256 fingerprint, also as `openssl x509 -fingerprint -sha256` prints it.

    Raises:
        ValueError: it is none.
    """
    label, digits = _parts(text)
    if label in _SHA_256 and len(digits) == _FINGERPRINT_DIGITS:
        return Fingerprint(digits)
    raise ValueError(
        f"{text!r} is no SHA-256 fingerprint: that has {_FINGERPRINT_DIGITS} hexadecimal digits, "
        f"see {_HOW}"
    )


def _is_doubtful(entry: str) -> bool:
    """Return whether a serial number could as well be a fingerprint of SHA-1."""
    label, digits = _parts(entry)
    return not label and len(digits) == _SERIAL_DIGITS


def _parts(text: str) -> tuple[str, str]:
    """Return what is before the `=`, and the digits; none if there is anything else."""
    label, labelled, digits = text.partition("=")
    if not labelled:
        label, digits = "", text
    digits = digits.strip()
    if not _HEX.fullmatch(digits):
        digits = ""
    return label.strip().lower(), digits.replace(":", "").lower()
