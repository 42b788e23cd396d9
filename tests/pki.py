"""Certificates as tests need them: good ones, and those that nobody should make."""

from __future__ import annotations

import base64
import ipaddress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, TypeAlias

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

if TYPE_CHECKING:
    from pathlib import Path

    from cryptography.x509 import ObjectIdentifier

PrivateKey: TypeAlias = ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey

DAY = timedelta(days=1)
FOR_SERVERS, FOR_CLIENTS = ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH


@dataclass(frozen=True)
class Pair:
    """A certificate and its key."""

    certificate: x509.Certificate
    private_key: PrivateKey

    @property
    def pem(self) -> bytes:
        return self.certificate.public_bytes(serialization.Encoding.PEM)

    @property
    def key(self) -> bytes:
        return self.private_key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )

    @property
    def fingerprint(self) -> str:
        return self.certificate.fingerprint(hashes.SHA256()).hex()

    @property
    def serial(self) -> str:
        return f"{self.certificate.serial_number:x}"

    def write(self, folder: Path, name: str) -> tuple[Path, Path]:
        """Write both; return the paths of the certificate and the key."""
        certificate, key = folder / f"{name}.pem", folder / f"{name}.key"
        certificate.write_bytes(self.pem)
        key.touch(mode=0o600)
        key.write_bytes(self.key)
        return certificate, key


def issue(
    issuer: Pair | None,
    name: str,
    *sans: str,
    begin: timedelta = -DAY,
    end: timedelta = 30 * DAY,
    usage: ObjectIdentifier | None = None,
    ca: bool = False,
    key: PrivateKey | None = None,
    odd: x509.ObjectIdentifier | None = None,
) -> Pair:
    """Return a new certificate.

    Args:
        issuer: None: it is its own.
        name: its common name.
        sans: URIs, addresses, or else DNS names.
        begin: from now.
        end: from now.
        usage: its extended key usage.
        ca: whether it may issue others.
        key: None: a new one on P-256.
        odd: an extension that it has, and whose content makes no sense.
    """
    key = key or ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    now = datetime.now(UTC)
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject if issuer is None else issuer.certificate.subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now + begin)
        .not_valid_after(now + end)
        .add_extension(x509.BasicConstraints(ca=ca, path_length=None), critical=True)
    )
    if sans:
        names = x509.SubjectAlternativeName(map(_name, sans))
        builder = builder.add_extension(names, critical=False)
    if usage is not None:
        builder = builder.add_extension(x509.ExtendedKeyUsage([usage]), critical=False)
    if odd is not None:
        nonsense = x509.UnrecognizedExtension(odd, b"\x01\x02")
        builder = builder.add_extension(nonsense, critical=False)
    signer = key if issuer is None else issuer.private_key
    return Pair(builder.sign(signer, hashes.SHA256()), key)


def key_of_no_known_curve() -> bytes:
    """Return a key, in PEM, of which its curve cannot be told."""
    encoding, plain = serialization.Encoding.DER, serialization.NoEncryption()
    key = ec.generate_private_key(ec.SECP256R1())
    der = key.private_bytes(encoding, serialization.PrivateFormat.PKCS8, plain)
    curve = bytes.fromhex("06082a8648ce3d030107")  # prime256v1, the last of seven
    text = base64.encodebytes(der.replace(curve, curve[:-1] + b"\x06")).decode()
    return f"-----BEGIN PRIVATE KEY-----\n{text}-----END PRIVATE KEY-----\n".encode()


def _name(text: str) -> x509.GeneralName:
    if ":" in text:
        return x509.UniformResourceIdentifier(text)
    try:
        return x509.IPAddress(ipaddress.ip_address(text))
    except ValueError:
        return x509.DNSName(text)
