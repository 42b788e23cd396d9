"""`vmagentctl pki`: a CA, and certificates of hosts and of their callers, to try TLS with.

Nothing is written over. Keys are of elliptic curves, without a password, in files that only
their owner can open.
"""

from __future__ import annotations

import ipaddress
import os
import re
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from vmagent.ctl.failures import ExitCode, Failure
from vmagent.ctl.screen import Screen
from vmagent.ctl.targets import is_host

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey
    from cryptography.x509 import AuthorityKeyIdentifier, Certificate, GeneralName, KeyUsage

# Clocks differ: what was made a moment ago holds on a host that is behind, too.
_BEFORE: Final = timedelta(minutes=5)
_CA_DAYS: Final = 3650


_Folder = Annotated[
    Path, typer.Argument(metavar="FOLDER", help="Where the files are; made if need be.")
]


def pki(
    folder: _Folder,
    *,
    server: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME|IP", help="A name of the host that is certified. Repeatable."),
    ] = None,
    client: Annotated[
        list[str] | None,
        typer.Option(metavar="URI", help="Who calls, like spiffe://site/ops. Repeatable."),
    ] = None,
    days: Annotated[
        int, typer.Option(min=1, max=_CA_DAYS, metavar="N", help="How many days they hold.")
    ] = 365,
) -> ExitCode:
    """Make a CA and certificates, to try remote access with; nothing is written over.

    The CA in FOLDER is used if there is one. A real site has a PKI of its own.
    """
    names, uris = [_name(text) for text in server or ()], [_uri(text) for text in client or ()]
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        ca = _ca(folder)
        if names:
            _Issue(ca, days).server(folder, names)
        stems = [_Issue(ca, days).client(folder, uri) for uri in uris]
    except FileExistsError as error:
        problem = (
            f"{error.filename} is there already, and nothing is written over; take it away, or "
            "name another folder"
        )
        raise Failure(problem, ExitCode.FAILED) from error
    except OSError as error:
        problem = f"{error.filename or folder}: {error.strerror}"
        raise Failure(problem, ExitCode.FAILED) from error
    _tell(folder.absolute(), names, uris, stems)
    return ExitCode.DONE


def _name(text: str) -> str:
    if not is_host(text.removeprefix("*.")):
        problem = f"{text!r} is no name of a host as DNS knows it, and no address"
        raise typer.BadParameter(problem, param_hint="--server")
    return text


def _uri(text: str) -> str:
    if not re.fullmatch(r"[A-Za-z][A-Za-z0-9+.-]*:[!#-;=?-\[\]_a-z~]+", text):
        problem = f"{text!r} is no URI; write for example spiffe://example.org/ops"
        raise typer.BadParameter(problem, param_hint="--client")
    if re.match(r"(user|uid|dns):", text, re.IGNORECASE):
        problem = f"{text!r} would be taken for a caller of another kind, and daemons refuse it"
        raise typer.BadParameter(problem, param_hint="--client")
    return text


@dataclass(frozen=True, slots=True)
class _Ca:
    certificate: Certificate
    key: EllipticCurvePrivateKey


def _ca(folder: Path) -> _Ca:
    """Return the folder's CA, a new one if there is none."""
    try:
        from cryptography import x509  # noqa: PLC0415  # optional, see the message
        from cryptography.hazmat.primitives.asymmetric import ec  # noqa: PLC0415
        from cryptography.hazmat.primitives.serialization import (  # noqa: PLC0415
            load_pem_private_key,
        )
    except ImportError as error:
        problem = "this needs Python's cryptography: pip install cryptography"
        raise Failure(problem, ExitCode.FAILED) from error
    if not (folder / "ca.pem").exists():
        key = ec.generate_private_key(ec.SECP256R1())
        certificate = _signed("vmagentd test CA", key, _CA_DAYS, None, ())
        _write(folder, "ca", certificate, key)
        return _Ca(certificate, key)
    try:
        certificate = x509.load_pem_x509_certificate((folder / "ca.pem").read_bytes())
        loaded = load_pem_private_key((folder / "ca.key").read_bytes(), None)
    except (ValueError, TypeError) as error:
        problem = f"{folder}: ca.pem and ca.key are no CA that can be used here"
        raise Failure(problem, ExitCode.FAILED) from error
    if not isinstance(loaded, ec.EllipticCurvePrivateKey):
        raise Failure(f"{folder / 'ca.key'} is not an EC key", ExitCode.FAILED)
    return _Ca(certificate, loaded)


@dataclass(frozen=True, slots=True)
class _Issue:
    """Certificates of one CA."""

    ca: _Ca
    days: int

    def server(self, folder: Path, names: list[str]) -> None:
        from cryptography import x509  # noqa: PLC0415

        def general(name: str) -> GeneralName:
            try:
                return x509.IPAddress(ipaddress.ip_address(name))
            except ValueError:
                return x509.DNSName(name)

        self._issue(folder, "server", names[0], list(map(general, names)), for_server=True)

    def client(self, folder: Path, uri: str) -> str:
        from cryptography import x509  # noqa: PLC0415

        stem = re.sub(r"[^A-Za-z0-9._-]+", "-", uri.partition(":")[2]).strip("-") or "client"
        names = [x509.UniformResourceIdentifier(uri)]
        self._issue(folder, stem, stem, names, for_server=False)
        return stem

    def _issue(
        self, folder: Path, stem: str, name: str, names: list[Any], *, for_server: bool
    ) -> None:
        from cryptography import x509  # noqa: PLC0415
        from cryptography.hazmat.primitives.asymmetric import ec  # noqa: PLC0415
        from cryptography.x509.oid import ExtendedKeyUsageOID  # noqa: PLC0415

        usage = ExtendedKeyUsageOID
        purpose = usage.SERVER_AUTH if for_server else usage.CLIENT_AUTH
        extensions = (x509.SubjectAlternativeName(names), x509.ExtendedKeyUsage([purpose]))
        key = ec.generate_private_key(ec.SECP256R1())
        _write(folder, stem, _signed(name, key, self.days, self.ca, extensions), key)


def _signed(
    name: str,
    key: EllipticCurvePrivateKey,
    days: int,
    ca: _Ca | None,
    extensions: tuple[Any, ...],
) -> Certificate:
    """Return a certificate of *key*; without a CA it is one."""
    from cryptography import x509  # noqa: PLC0415
    from cryptography.hazmat.primitives import hashes  # noqa: PLC0415
    from cryptography.x509.oid import NameOID  # noqa: PLC0415

    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name[:64])])
    now = datetime.now(UTC)
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject if ca is None else ca.certificate.subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - _BEFORE)
        .not_valid_after(now + timedelta(days=days))
        .add_extension(x509.BasicConstraints(ca=ca is None, path_length=None), critical=True)
        .add_extension(_key_usage(for_ca=ca is None), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
    )
    if ca is not None:
        builder = builder.add_extension(_issuer(ca), critical=False)
    for extension in extensions:
        builder = builder.add_extension(extension, critical=False)
    return builder.sign(key if ca is None else ca.key, hashes.SHA256())


def _key_usage(*, for_ca: bool) -> KeyUsage:
    from cryptography import x509  # noqa: PLC0415

    return x509.KeyUsage(
        digital_signature=not for_ca,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=for_ca,
        crl_sign=for_ca,
        encipher_only=False,
        decipher_only=False,
    )


def _issuer(ca: _Ca) -> AuthorityKeyIdentifier:
    """Return whose key signs, as that CA names it: it may be of somebody else's making."""
    from cryptography import x509  # noqa: PLC0415

    try:
        own = ca.certificate.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value
    except x509.ExtensionNotFound:
        return x509.AuthorityKeyIdentifier.from_issuer_public_key(ca.key.public_key())
    return x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(own)


def _write(
    folder: Path, stem: str, certificate: Certificate, key: EllipticCurvePrivateKey
) -> None:
    """Write both, or neither if one of them is there.

    Raises:
        FileExistsError: it is.
    """
    from cryptography.hazmat.primitives import serialization as form  # noqa: PLC0415

    private = key.private_bytes(form.Encoding.PEM, form.PrivateFormat.PKCS8, form.NoEncryption())
    _create(folder / f"{stem}.key", private)
    try:
        _create(folder / f"{stem}.pem", certificate.public_bytes(form.Encoding.PEM))
    except OSError:
        (folder / f"{stem}.key").unlink()
        raise


def _create(path: Path, text: bytes) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(text)


def _tell(folder: Path, names: list[str], uris: list[str], stems: list[str]) -> None:
    """Say what to do with the files."""
    screen = Screen()
    if not names and not stems:
        made = "--server and --client make certificates of it"
        screen.line(f"# {folder / 'ca.pem'} and ca.key are a CA; {made}")
    if names:
        screen.line("# for the daemon's settings, /etc/vmagentd/vmagentd.toml")
        screen.line("[remote]")
        screen.line('listen = "0.0.0.0:7443"')
        for key, file in (("certificate", "server.pem"), ("key", "server.key")):
            screen.line(f'{key} = "{folder / file}"')
        screen.line(f'client_ca = "{folder / "ca.pem"}"')
        needed = (folder, folder / "server.pem", folder / "server.key", folder / "ca.pem")
        screen.line("# which a service that runs as vmagentd can read after this, as root")
        screen.line(f"# chown vmagentd {' '.join(map(str, needed))}")
    for uri in uris:
        screen.line("[[access.grants]]")
        screen.line('role = "operator"')
        screen.line(f'subjects = ["{uri}"]')
    for stem in stems:
        host = names[0] if names else "HOST"
        address = f"[{host}]" if ":" in host else host
        screen.line("# and to try it, with these three files, from any host")
        files = f"--cert {folder / stem}.pem --key {folder / stem}.key --ca {folder / 'ca.pem'}"
        screen.line(f"vmagentctl --target {address}:7443 {files} whoami")
