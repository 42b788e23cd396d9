"""The way to a daemon on another host: TLS, a certificate of our own, and what is in the way.

A server that refuses a certificate only closes the connection: TLS 1.3 lets it judge after the
client is done, and gRPC's server says no word of why. So the certificate is looked at here.
"""

from __future__ import annotations

import socket
import ssl
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Final

import grpc

from vmagent.ctl.failures import ExitCode, Failure

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from vmagent.ctl.targets import Remote

_TIMEOUT_S: Final = 3


def credentials(remote: Remote) -> grpc.ChannelCredentials:
    """Return what a channel to *remote* needs.

    Raises:
        Failure: a file cannot be read or used.
    """
    _context(remote)  # gRPC does not say what it dislikes
    return grpc.ssl_channel_credentials(
        root_certificates=_read(remote.ca, "--ca"),
        private_key=_read(remote.key, "--key"),
        certificate_chain=_read(remote.cert, "--cert"),
    )


def obstacle(remote: Remote, details: str) -> str:
    """Return what is in the way to *remote*, and what to do. Tries the way step by step."""
    try:
        return _tried(remote, details)
    except Failure as failure:  # a file that could be used a moment ago
        return str(failure)


def _tried(remote: Remote, details: str) -> str:
    name = remote.server_name or remote.host
    try:
        with (
            socket.create_connection((remote.host, remote.port), _TIMEOUT_S) as plain,
            _context(remote).wrap_socket(plain, server_hostname=name) as probe,
        ):
            heard = probe.recv(1)  # an HTTP/2 server speaks first
    except ConnectionResetError:
        heard = b""
    except OSError as error:
        return _told(remote, error)
    if heard:
        return f"it answers, but the call was lost ({details}); ask again"
    return _refused(remote)


def server_certificate_end(remote: Remote) -> datetime:
    """Return until when the server's certificate holds; it is checked, too.

    Raises:
        Failure: a file of ours cannot be used; nobody answers there, or not as we want it.
    """
    name = remote.server_name or remote.host
    try:
        with (
            socket.create_connection((remote.host, remote.port), _TIMEOUT_S) as plain,
            _context(remote).wrap_socket(plain, server_hostname=name) as probe,
        ):
            certificate = probe.getpeercert() or {}
    except OSError as error:
        raise Failure(_told(remote, error), ExitCode.UNREACHABLE) from error
    end = ssl.cert_time_to_seconds(str(certificate["notAfter"]))
    return datetime.fromtimestamp(end, UTC)


def _told(remote: Remote, error: OSError) -> str:
    """Return what the attempt that ended like this tells."""
    match error:
        case socket.gaierror():
            told = f"no host of the name {remote.host} is known; check --target"
        case TimeoutError():
            told = "nothing answers there; is it the right port, and open in the firewall?"
        case ConnectionRefusedError():
            told = "nobody listens there; is vmagentd running, with [remote] listen set?"
        case ssl.SSLCertVerificationError():
            told = (
                f"its certificate is not accepted ({error.verify_message}); --ca must hold the "
                "CA that issued it, and --server-name says which name it must have"
            )
        case ssl.SSLError():
            told = f"it does not speak TLS 1.3 ({error.reason}); is it the right port?"
        case _:
            told = error.strerror or str(error)
    return told


def _refused(remote: Remote) -> str:
    """Return why a server may have closed the connection after it saw our certificate."""
    said = "it does not accept your certificate"
    try:
        problems = "; ".join(_problems(remote))
    except ValueError:  # cryptography is stricter than what speaks TLS
        problems = ""
    if problems:
        return f"{said}: {problems} ({remote.cert})"
    return (
        f"{said} ({remote.cert}), and does not say why; the [remote] client_ca of that host "
        "must hold the CA that issued it"
    )


def _problems(remote: Remote) -> Iterator[str]:
    """Yield what can be seen to be wrong with our certificate."""
    try:
        from cryptography import x509  # noqa: PLC0415  # optional: vmagentd-client[pki]
        from cryptography.exceptions import InvalidSignature  # noqa: PLC0415
        from cryptography.x509.oid import ExtendedKeyUsageOID  # noqa: PLC0415
    except ImportError:
        return
    now = datetime.now(UTC)
    chain = x509.load_pem_x509_certificates(_read(remote.cert, "--cert"))
    mine = chain[0]
    if mine.not_valid_after_utc <= now:
        yield f"it ended at {mine.not_valid_after_utc:%FT%TZ}; get a new one"
    if mine.not_valid_before_utc > now:
        yield f"it begins at {mine.not_valid_before_utc:%FT%TZ}; is this machine's clock right?"
    try:
        usage = mine.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    except x509.ExtensionNotFound:
        pass
    else:
        if ExtendedKeyUsageOID.CLIENT_AUTH not in usage:
            yield "it is not made for clients (extended key usage); get one that is"
    issued = False
    for ca in x509.load_pem_x509_certificates(_read(remote.ca, "--ca")):
        try:
            chain[-1].verify_directly_issued_by(ca)
        except (ValueError, TypeError, InvalidSignature):
            continue
        issued = True
    if not issued:
        issuer = chain[-1].issuer.rfc4514_string()
        yield f"it was issued by {issuer!r}, not by the CA that issued the server's"


def _context(remote: Remote) -> ssl.SSLContext:
    """Return a context with the same files, from a library that says what is wrong with them."""
    for file, option in ((remote.ca, "--ca"), (remote.cert, "--cert"), (remote.key, "--key")):
        _read(file, option)
    try:
        context = ssl.create_default_context(cafile=remote.ca)
    except ssl.SSLError as error:
        raise _unusable(remote.ca, "--ca", "holds no certificates in PEM") from error
    # Python 3.13 refuses certificates that gRPC takes: who has no authority key identifier, say.
    context.verify_flags &= ~ssl.VERIFY_X509_STRICT
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.set_alpn_protocols(["h2"])
    try:
        # an empty password, or OpenSSL asks for one at the terminal
        context.load_cert_chain(remote.cert, remote.key, password=lambda: "")
    except ssl.SSLError as error:
        if error.reason == "KEY_VALUES_MISMATCH":
            problem = f"is not the key of {remote.cert}"
        else:
            problem = f"and {remote.cert} are no key without password and its certificate, in PEM"
        raise _unusable(remote.key, "--key", problem) from error
    return context


def _read(file: Path, option: str) -> bytes:
    try:
        return file.read_bytes()
    except OSError as error:
        problem = f"cannot be read: {error.strerror}"
        raise _unusable(file, option, problem) from error


def _unusable(file: Path, option: str, problem: str) -> Failure:
    return Failure(f"{option}: {file} {problem}", ExitCode.USAGE)
