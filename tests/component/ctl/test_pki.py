"""What `vmagentctl pki` makes, and that the daemon takes it."""

from __future__ import annotations

import ssl
import stat
from contextlib import suppress
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import pytest
from cryptography import x509
from vmagent.ctl.app import run

from vmagentd import config
from vmagentd.api.tls import Tls

if TYPE_CHECKING:
    from pathlib import Path

URI = "spiffe://example.org/ops"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "pki"


def test_it_makes_what_the_daemon_takes_and_the_settings_to_paste(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    hosts = ["--server", "h1", "--server", "*.example.org", "--server", "::1"]
    assert run(["pki", str(folder), *hosts, "--client", URI]) == 0
    said = capsys.readouterr().out
    (tmp_path / "vmagentd.toml").write_text(
        "\n".join(line for line in said.splitlines() if not line.startswith("vmagentctl"))
    )
    needed = [folder, folder / "server.pem", folder / "server.key", folder / "ca.pem"]
    assert f"chown vmagentd {' '.join(map(str, needed))}\n" in said
    settings = config.load(tmp_path / "vmagentd.toml", {})
    assert settings.remote.network is not None
    Tls(settings.remote.network.tls)
    assert settings.access.grants[0].subjects == (URI,)
    client = x509.load_pem_x509_certificate((folder / "example.org-ops.pem").read_bytes())
    names = client.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.UniformResourceIdentifier) == [URI]
    assert client.not_valid_before_utc < datetime.now(UTC) < client.not_valid_after_utc
    assert {stat.S_IMODE(file.stat().st_mode) for file in folder.iterdir()} == {0o600}


def strict(folder: Path, purpose: ssl.Purpose, stem: str) -> ssl.SSLContext:
    """Return a context that asks of certificates all that the standard does."""
    context = ssl.create_default_context(purpose, cafile=folder / "ca.pem")
    context.load_cert_chain(folder / f"{stem}.pem", folder / f"{stem}.key")
    context.verify_mode = ssl.CERT_REQUIRED
    context.verify_flags |= ssl.VERIFY_X509_STRICT  # as Python does from 3.13 on
    return context


def test_who_is_strict_takes_them_too(folder: Path) -> None:
    assert run(["pki", str(folder), "--server", "h1", "--client", URI]) == 0
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    server = strict(folder, ssl.Purpose.CLIENT_AUTH, "server").wrap_bio(
        to_server, to_client, server_side=True
    )
    client = strict(folder, ssl.Purpose.SERVER_AUTH, "example.org-ops").wrap_bio(
        to_client, to_server, server_hostname="h1"
    )
    for step in (client.do_handshake, server.do_handshake, client.do_handshake):
        with suppress(ssl.SSLWantReadError):
            step()
    server.do_handshake()
    assert server.getpeercert()


def test_a_ca_alone_is_told_with_what_it_is_for(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for _ in ("made", "kept"):
        assert run(["pki", str(folder)]) == 0
        assert capsys.readouterr().out == (
            f"# {folder}/ca.pem and ca.key are a CA; --server and --client make certificates "
            "of it\n"
        )


def test_more_clients_are_of_the_same_ca(folder: Path) -> None:
    assert run(["pki", str(folder), "--client", URI]) == 0
    ca = (folder / "ca.pem").read_bytes()
    assert run(["pki", str(folder), "--client", "spiffe://example.org/other"]) == 0
    assert (folder / "ca.pem").read_bytes() == ca
    other = x509.load_pem_x509_certificate((folder / "example.org-other.pem").read_bytes())
    other.verify_directly_issued_by(x509.load_pem_x509_certificate(ca))


@pytest.mark.parametrize("present", ["server.pem", "server.key"])
def test_nothing_is_written_over(
    folder: Path, present: str, capsys: pytest.CaptureFixture[str]
) -> None:
    folder.mkdir()
    (folder / present).write_text("mine")
    assert run(["pki", str(folder), "--server", "h1"]) == 1
    assert capsys.readouterr().err == (
        f"vmagentctl: {folder / present} is there already, and nothing is written over; "
        "take it away, or name another folder\n"
    )
    assert (folder / present).read_text() == "mine"
    assert {file.name for file in folder.iterdir()} == {"ca.pem", "ca.key", present}


def test_a_client_is_named_by_a_uri(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["pki", str(folder), "--client", "me"]) == 2
    assert "--client: 'me' is no URI" in capsys.readouterr().err
    assert run(["pki", str(folder), "--client", 'spiffe://example.org/"me"']) == 2
    assert "is no URI" in capsys.readouterr().err
    assert run(["pki", str(folder), "--client", "User:root"]) == 2
    assert "--client: 'User:root' would be taken for" in capsys.readouterr().err
    assert not folder.exists()


@pytest.mark.parametrize("name", ["", "bücher", "a b", "a..b", "h1:7443", "a" * 64])
def test_a_server_is_named_as_certificates_name_hosts(
    folder: Path, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["pki", str(folder), "--server", "h1", "--server", name]) == 2
    assert f"--server: {name!r} is no name of a host" in capsys.readouterr().err
    assert not folder.exists()
