"""The list of denied certificates, as people write it."""

from __future__ import annotations

import pytest

from vmagentd.model import Denied, parse_denied, parse_fingerprint, parse_serial

FINGERPRINT = "ab" * 32
# of `openssl x509 -fingerprint`, which prints SHA-1 unless it is told otherwise
SHA_1 = ":".join(["AB"] * 20)
# as most are: random, of 20 bytes
SERIAL = "7A" * 20


@pytest.mark.parametrize(
    ("text", "entry"),
    [
        ("1A2B", 0x1A2B),
        ("1a:2b", 0x1A2B),
        ("serial=0F", 0x0F),
        ("Serial = 0F", 0x0F),
        ("7", 7),
        (SERIAL, int(SERIAL, 16)),
        # whoever says what it is gets it, be it odd
        ("serial=" + "f" * 40, (1 << 160) - 1),
        (FINGERPRINT, FINGERPRINT),
        ("sha256 Fingerprint=" + ":".join(["AB"] * 32), FINGERPRINT),
        ("SHA256 Fingerprint=" + FINGERPRINT, FINGERPRINT),
        ("fingerprint=" + FINGERPRINT, FINGERPRINT),
    ],
)
def test_as_openssl_prints_it(text: str, entry: int | str) -> None:
    assert parse_denied(text) == entry


@pytest.mark.parametrize(
    "text",
    ["", "x", "f" * 41, FINGERPRINT + "00", "0x1f", "-1", "1 2", "serial=", "name=1f", "a=b=1f"],
)
def test_what_is_neither(text: str) -> None:
    with pytest.raises(ValueError, match="neither a serial number nor"):
        parse_denied(text)


@pytest.mark.parametrize(
    "text",
    [
        "SHA1 Fingerprint=" + SHA_1,
        "sha1 Fingerprint=" + SERIAL,
        "Fingerprint=" + SERIAL,
        "MD5 Fingerprint=" + "1a" * 16,
        "SHA512/256 Fingerprint=" + FINGERPRINT,
        "fingerprint=" + "ab" * 31,
        # no serial number: those are positive
        SHA_1,
        "8" + "0" * 39,
    ],
)
def test_a_fingerprint_that_is_none_of_sha_256_is_not_taken_for_a_serial_number(text: str) -> None:
    with pytest.raises(ValueError, match="openssl x509 -noout -fingerprint -sha256"):
        parse_denied(text)


def test_each_key_of_the_settings_takes_its_own() -> None:
    assert parse_serial(SERIAL) == int(SERIAL, 16)
    assert parse_serial("serial=1f") == 0x1F
    assert parse_fingerprint(FINGERPRINT) == FINGERPRINT
    for text in (FINGERPRINT, "fingerprint=" + FINGERPRINT, SHA_1, "SHA1 Fingerprint=" + SERIAL):
        with pytest.raises(ValueError, match="is no serial number"):
            parse_serial(text)
    for text in ("1f", SERIAL, SHA_1, "serial=" + SERIAL, "serial=" + FINGERPRINT):
        with pytest.raises(ValueError, match="is no SHA-256 fingerprint"):
            parse_fingerprint(text)


def test_a_file_has_comments_and_its_first_bad_line_is_told() -> None:
    denied, wrong, _ = Denied.parse(f"# lost\n\n1f  # a laptop\n{FINGERPRINT}\n")
    assert denied.has(0x1F, "")
    assert denied.has(1, FINGERPRINT)
    assert not denied.has(1, "cd" * 32)
    assert wrong is None
    denied, wrong, _ = Denied.parse("1f\nall\nmany\n2f\n")
    assert denied.entries == {0x1F, 0x2F}
    assert wrong is not None
    assert wrong.startswith("line 2: 'all' is neither")


def test_a_line_that_might_be_a_sha_1_fingerprint_is_told() -> None:
    """It is taken for a serial number, and denies nobody if it is not."""
    text = f"{SERIAL}\nserial={SERIAL}\n{SERIAL[2:]}\n{FINGERPRINT}\n"
    denied, wrong, remark = Denied.parse(text)
    assert denied.has(int(SERIAL, 16), "")
    assert wrong is None
    assert remark is not None
    assert remark.startswith(f"line 1: {SERIAL!r} is taken for a serial number")
    assert "serial=" in remark
