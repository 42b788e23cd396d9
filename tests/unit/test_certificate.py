"""The list of denied certificates, as people write it."""

from __future__ import annotations

import pytest

from vmagentd.model import Denied, parse_denied

FINGERPRINT = "ab" * 32


@pytest.mark.parametrize(
    ("text", "entry"),
    [
        ("1A2B", 0x1A2B),
        ("1a:2b", 0x1A2B),
        ("serial=0F", 0x0F),
        ("7", 7),
        ("f" * 40, (1 << 160) - 1),
        (FINGERPRINT, FINGERPRINT),
        ("sha256 Fingerprint=" + ":".join(["AB"] * 32), FINGERPRINT),
    ],
)
def test_as_openssl_prints_it(text: str, entry: int | str) -> None:
    assert parse_denied(text) == entry


@pytest.mark.parametrize("text", ["", "x", "f" * 41, FINGERPRINT + "00", "0x1f", "-1", "1 2"])
def test_what_is_neither(text: str) -> None:
    with pytest.raises(ValueError, match="neither a serial number nor"):
        parse_denied(text)


def test_a_file_has_comments_and_its_first_bad_line_is_told() -> None:
    denied, wrong = Denied.parse(f"# lost\n\n1f  # a laptop\n{FINGERPRINT}\n")
    assert denied.has(0x1F, "")
    assert denied.has(1, FINGERPRINT)
    assert not denied.has(1, "cd" * 32)
    assert wrong is None
    denied, wrong = Denied.parse("1f\nall\nmany\n2f\n")
    assert denied == Denied.of(["1f", "2f"])
    assert wrong is not None
    assert wrong.startswith("line 2: 'all' is neither")
