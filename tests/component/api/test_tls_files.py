"""The files for TLS: what is no good is told of with its path, and never offered."""

from __future__ import annotations

import logging
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, rsa

from tests.pki import DAY, FOR_CLIENTS, PrivateKey, issue, key_of_no_known_curve
from vmagentd.api.certificates import read
from vmagentd.api.tls import Tls
from vmagentd.errors import TlsUnusable
from vmagentd.model import Denied, TlsFiles, TlsSettings

from .test_tls import ODD, SUBJECT, site

if TYPE_CHECKING:
    from cryptography.x509 import ObjectIdentifier


@pytest.fixture
def tls(tmp_path: Path) -> TlsSettings:
    ca = issue(None, "the CA", ca=True)
    certificate, key = issue(ca, "server", "localhost").write(tmp_path, "server")
    (tmp_path / "ca.pem").write_bytes(ca.pem)
    files = TlsFiles(certificate=certificate, key=key, client_ca=tmp_path / "ca.pem")
    return TlsSettings(files=files, denied=Denied(frozenset()))


def refused(tls: TlsSettings) -> str:
    with pytest.raises(TlsUnusable) as caught:
        Tls(tls)
    return str(caught.value)


def test_good_ones_are_taken(tls: TlsSettings) -> None:
    Tls(tls)


def test_an_address_is_told_as_people_write_it(tls: TlsSettings) -> None:
    client = issue(None, "client", SUBJECT)
    auth = {"ssl_tls_version": [b"TLSv1.3"], "x509_pem_cert": [client.pem]}
    peer = Tls(tls).peer("ipv6:%5Bfe80::1%25eth0%5D:52364", auth)
    assert str(peer) == "[fe80::1%eth0]:52364"


def test_a_missing_one_is_named(tls: TlsSettings) -> None:
    tls.files.client_ca.unlink()
    assert f"{tls.files.client_ca} cannot be read: No such file" in refused(tls)


def test_a_list_of_the_denied_that_is_missing_is_named(tls: TlsSettings, tmp_path: Path) -> None:
    tls = replace(tls, deny_file=tmp_path / "denied")
    assert f"{tls.deny_file} cannot be read: No such file" in refused(tls)


@pytest.mark.parametrize(
    ("how", "why"),
    [
        ({"end": -DAY / 2}, "ended at"),
        ({"begin": DAY}, "begins at"),
        ({"usage": FOR_CLIENTS}, "is not made for servers"),
    ],
)
def test_the_daemons_own_must_hold(
    tls: TlsSettings, tmp_path: Path, how: dict[str, Any], why: str
) -> None:
    ca = issue(None, "the CA", ca=True)
    issue(ca, "server", "localhost", **how).write(tmp_path, "server")
    assert why in refused(tls)


def test_it_must_have_names(tls: TlsSettings, tmp_path: Path) -> None:
    issue(None, "server").write(tmp_path, "server")
    assert "has no subject alternative name" in refused(tls)


def test_the_key_must_be_its_own(tls: TlsSettings) -> None:
    tls.files.key.write_bytes(issue(None, "x").key)
    assert f"is not the key of {tls.files.certificate}" in refused(tls)


@pytest.mark.parametrize(
    "key",
    [
        ec.generate_private_key(ec.SECP384R1()),
        rsa.generate_private_key(65537, 2048),
    ],
)
async def test_keys_that_grpc_takes(folder: Path, key: PrivateKey) -> None:
    async with site(folder, key=key) as here:
        assert await here.is_let_in(here.client())


@pytest.mark.parametrize("curve", [ec.SECP192R1(), ec.SECP224R1(), ec.SECP256K1(), ec.SECP521R1()])
def test_keys_that_grpc_or_its_clients_do_not_take(
    tls: TlsSettings, tmp_path: Path, curve: ec.EllipticCurve
) -> None:
    """It says so itself only as it listens; afterwards it goes on with the one before."""
    key = ec.generate_private_key(curve)
    issue(None, "server", "localhost", key=key).write(tmp_path, "server")
    assert "one on the curve P-256 or P-384" in refused(tls)


def test_a_key_of_another_kind(tls: TlsSettings) -> None:
    tls.files.key.write_bytes(key_of_no_known_curve())
    assert f"{tls.files.key} is neither an RSA key nor" in refused(tls)


@pytest.mark.parametrize("odd", ODD)
def test_what_is_not_understood_is_told(
    tls: TlsSettings, tmp_path: Path, odd: ObjectIdentifier
) -> None:
    issue(None, "server", odd=odd).write(tmp_path, "server")
    assert f"{tls.files.certificate} holds something that" in refused(tls)


@pytest.mark.parametrize("odd", ODD)
def test_what_is_not_understood_of_a_ca_is_told(tls: TlsSettings, odd: ObjectIdentifier) -> None:
    tls.files.client_ca.write_bytes(issue(None, "x", ca=True, odd=odd).pem)
    assert f"{tls.files.client_ca} holds something that" in refused(tls)


@pytest.mark.parametrize("which", ["certificate", "key", "client_ca"])
def test_each_is_read_once(tls: TlsSettings, which: str) -> None:
    """What is replaced meanwhile is not offered without a look, and need not be there."""

    class Removed(type(Path())):  # type: ignore[misc]
        def open(self, *args: Any, **kwargs: Any) -> Any:  # noqa: ANN401
            file = super().open(*args, **kwargs)
            self.unlink()
            return file

    path = Removed(getattr(tls.files, which))
    files = replace(tls.files, **{which: path})
    read(files, datetime.now(UTC))
    assert not path.exists()


def test_a_ca_must_be_one(tls: TlsSettings) -> None:
    tls.files.client_ca.write_bytes(issue(None, "x").pem)
    assert "'CN=x' in it is not a CA" in refused(tls)


def test_a_ca_must_hold(tls: TlsSettings) -> None:
    ended = issue(None, "x", ca=True, begin=-2 * DAY, end=-DAY)
    tls.files.client_ca.write_bytes(ended.pem)
    assert "all CAs in it have ended" in refused(tls)


def test_a_key_that_others_may_open_is_remarked(
    tls: TlsSettings, caplog: pytest.LogCaptureFixture
) -> None:
    tls.files.key.chmod(0o644)
    Tls(tls)
    (remark,) = [each for each in caplog.records if each.levelno == logging.WARNING]
    assert "give it mode 0600" in remark.getMessage()
