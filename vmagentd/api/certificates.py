"""Certificates: looks into the daemon's own before they are offered, and into its clients'.

gRPC takes a bad set of files without a word to us, and goes on with the one before.
"""

from __future__ import annotations

import os
import stat
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import load_pem_private_key
from cryptography.x509.oid import ExtendedKeyUsageOID

from vmagentd.errors import CallerUnknown, TlsUnusable, utc

if TYPE_CHECKING:
    from collections.abc import Iterator
    from datetime import datetime
    from pathlib import Path

    from cryptography.hazmat.primitives.asymmetric.types import PrivateKeyTypes

    from vmagentd.model import TlsFiles

_LONGEST_SUBJECT: Final = 2048
# How actors of other kinds are named: the holder of such a URI would be taken for one of them.
_RESERVED: Final = {"user", "uid", "dns"}

# What cryptography raises of a certificate or key that it does not understand: at once, or when a
# part is looked at. They have nothing in common.
_NOT_UNDERSTOOD: Final = (
    ValueError,
    TypeError,
    UnsupportedAlgorithm,
    x509.InvalidVersion,
    x509.DuplicateExtension,
    x509.UnsupportedGeneralNameType,
)


class _Nobody(Exception):
    """A certificate names nobody whom a role could be given; what it has instead."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Certified:
    """The contents of such files, good to be offered."""

    certificate: bytes
    key: bytes
    client_ca: bytes
    end_time: datetime
    # odd, but no reason not to go on
    remarks: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class ClientCertificate:
    """What is told by a client's certificate."""

    # a URI, or `dns:NAME`
    subject: str
    serial: int
    # SHA-256, in lower-case hexadecimal digits
    fingerprint: str
    end_time: datetime


def read(files: TlsFiles, now: datetime) -> Certified:
    """Return the contents of *files*.

    Raises:
        TlsUnusable: one of them cannot be read or used; its path and what is wrong are told.
    """
    # Each is read once: what is offered is what was looked into, whatever is replaced meanwhile.
    certificate, _ = _content(files.certificate)
    key, mode = _content(files.key)
    client_ca, _ = _content(files.client_ca)
    with _understood(files.certificate):
        own = _certificates(files.certificate, certificate)[0]
        _check_own(files.certificate, own, now)
        public = own.public_key()
    with _understood(files.key):
        if _private_key(files.key, key).public_key() != public:
            raise TlsUnusable(files.key, f"is not the key of {files.certificate}")
    with _understood(files.client_ca):
        remarks = _check_cas(files.client_ca, _certificates(files.client_ca, client_ca), now)
    if mode & stat.S_IRWXO:
        remarks.insert(0, f"anybody may open the key {files.key}; give it mode 0600")
    return Certified(
        certificate=certificate,
        key=key,
        client_ca=client_ca,
        end_time=own.not_valid_after_utc,
        remarks=tuple(remarks),
    )


def client_certificate(pem: bytes) -> ClientCertificate:
    """Return what a client's certificate, whose issuer was verified, tells of it.

    Raises:
        CallerUnknown: it names nobody whom a role could be given.
    """
    fingerprint: str | None = None
    try:
        certificate = x509.load_pem_x509_certificate(pem)
        fingerprint = certificate.fingerprint(SHA256()).hex()
        return ClientCertificate(
            subject=_subject(certificate),
            serial=certificate.serial_number,
            fingerprint=fingerprint,
            end_time=certificate.not_valid_after_utc,
        )
    except _Nobody as error:
        raise CallerUnknown(f"its certificate {error}", fingerprint=fingerprint) from None
    except _NOT_UNDERSTOOD as error:
        raise CallerUnknown(
            "its certificate cannot be understood", fingerprint=fingerprint
        ) from error


def _subject(certificate: x509.Certificate) -> str:
    try:
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        uris, hosts = [], []
    else:
        uris = names.get_values_for_type(x509.UniformResourceIdentifier)
        hosts = names.get_values_for_type(x509.DNSName)
    if len(uris) > 1:
        # Which of them counts would be for the client to choose.
        raise _Nobody(f"has {len(uris)} URIs, and can have one at most")
    scheme = uris[0].partition(":")[0].lower() if uris else ""
    if scheme in _RESERVED:
        raise _Nobody(f"has a URI that begins with {scheme!r}, as none may")
    subjects = uris or [f"dns:{host}" for host in hosts]
    if not subjects:
        raise _Nobody(
            "has neither a URI nor a DNS name as subject alternative name, and the common name "
            "does not count"
        )
    if len(subjects[0]) > _LONGEST_SUBJECT or not subjects[0].isprintable():
        raise _Nobody("has a name that is too long or cannot be printed")
    return subjects[0]


def _content(path: Path) -> tuple[bytes, int]:
    """Return what is in a file, and its mode."""
    try:
        with path.open("rb") as file:
            return file.read(), os.fstat(file.fileno()).st_mode
    except OSError as error:
        raise TlsUnusable(path, f"cannot be read: {error.strerror}") from error


@contextmanager
def _understood(path: Path) -> Iterator[None]:
    """Have all that is odd about what is in *path* raised as `TlsUnusable`."""
    try:
        yield
    except _NOT_UNDERSTOOD as error:
        raise TlsUnusable(path, f"holds something that cannot be understood: {error}") from error


def _certificates(path: Path, pem: bytes) -> list[x509.Certificate]:
    try:
        return x509.load_pem_x509_certificates(pem)
    except ValueError as error:
        raise TlsUnusable(path, "holds no certificate in PEM") from error


def _check_own(path: Path, own: x509.Certificate, now: datetime) -> None:
    if own.not_valid_after_utc <= now:
        raise TlsUnusable(path, f"ended at {utc(own.not_valid_after_utc)}")
    if own.not_valid_before_utc > now:
        raise TlsUnusable(path, f"begins at {utc(own.not_valid_before_utc)} only")
    try:
        usage = own.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    except x509.ExtensionNotFound:
        pass
    else:
        if ExtendedKeyUsageOID.SERVER_AUTH not in usage:
            raise TlsUnusable(path, "is not made for servers (extended key usage)")
    try:
        own.extensions.get_extension_for_class(x509.SubjectAlternativeName)
    except x509.ExtensionNotFound:
        raise TlsUnusable(
            path, "has no subject alternative name, so no client would accept it"
        ) from None


def _private_key(path: Path, pem: bytes) -> PrivateKeyTypes:
    try:
        key = load_pem_private_key(pem, None)
    except (ValueError, TypeError) as error:  # TypeError: it needs a password
        raise TlsUnusable(path, "holds no private key in PEM without a password") from error
    except UnsupportedAlgorithm:
        key = None
    # With any other gRPC goes on with the key before, or none of its clients can connect.
    if isinstance(key, RSAPrivateKey) or (
        isinstance(key, ec.EllipticCurvePrivateKey)
        and isinstance(key.curve, (ec.SECP256R1, ec.SECP384R1))
    ):
        return key
    raise TlsUnusable(path, "is neither an RSA key nor one on the curve P-256 or P-384")


def _check_cas(path: Path, cas: list[x509.Certificate], now: datetime) -> list[str]:
    """Check the CAs; return what is odd."""
    remarks = []
    for ca in cas:
        name = ca.subject.rfc4514_string()
        try:
            is_ca = ca.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
        except x509.ExtensionNotFound:
            is_ca = False
        if not is_ca:
            raise TlsUnusable(path, f"{name!r} in it is not a CA")
        if ca.not_valid_after_utc <= now:
            remarks.append(f"the CA {name!r} in {path} ended at {utc(ca.not_valid_after_utc)}")
    if len(remarks) == len(cas):
        raise TlsUnusable(path, "all CAs in it have ended")
    return remarks
