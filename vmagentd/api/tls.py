"""TLS: what the daemon shows to those who come over the network, and whom it lets in.

A client must show a certificate of one of the client CAs; gRPC verifies that. All that gRPC cannot
do is done here for each call: no TLS before 1.3, a name for the client, certificates that are
denied or have ended. New files are looked into before they are offered.

Runs on the loop, except for the one function that gRPC calls from a thread of its own.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
from collections import OrderedDict, deque
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Final, Never
from urllib.parse import unquote

import grpc

from vmagentd import messages
from vmagentd.api import certificates
from vmagentd.errors import CallerUnknown, TlsUnusable, utc
from vmagentd.model import Denied, RemotePeer

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from vmagentd.api.access import Auth
    from vmagentd.api.certificates import Certified, ClientCertificate
    from vmagentd.model import TlsSettings

log = logging.getLogger(__name__)

# How soon files that have changed are seen: a denied certificate is out within a second.
_LOOK_S: Final = 0.4
# Certificates that need not be read again at their next call.
_CERTIFICATES: Final = 1024
_FOR_EVER: Final = datetime.max.replace(tzinfo=UTC)

# of each file what changes when it is written or replaced
_Marks = tuple[tuple[int, ...] | None, ...]


class Tls:
    """The daemon's side of TLS."""

    def __init__(self, settings: TlsSettings) -> None:
        """Read the files.

        Raises:
            TlsUnusable: they cannot be used.
        """
        self._settings = settings
        self._certified = certificates.read(settings.files, datetime.now(UTC))
        self._denied = _denied(settings)
        self._marks = self._present_marks()
        # marks of a set of files that is no good, seen once; and of the last one that was told
        self._doubted: _Marks | None = None
        self._offers: deque[grpc.ServerCertificateConfiguration] = deque(maxlen=1)
        self._known: OrderedDict[bytes, ClientCertificate] = OrderedDict()
        # when the first of those who were let in has to leave
        self._next_end = _FOR_EVER
        self._tell()

    def credentials(self) -> grpc.ServerCredentials:
        """Return the credentials of one new server, which follow all changes from now on."""
        # One newer offer at most waits; gRPC fetches it before the next handshake.
        offers: deque[grpc.ServerCertificateConfiguration] = deque(maxlen=1)
        self._offers = offers

        def fetch() -> grpc.ServerCertificateConfiguration | None:
            # Called by threads of gRPC's, and holds up a handshake: it takes what is there.
            try:
                return offers.popleft()
            except IndexError:
                return None

        # Its type has no None, which gRPC takes for "as before".
        return grpc.dynamic_ssl_server_credentials(
            _configuration(self._certified),
            fetch,  # type: ignore[arg-type]
            require_client_authentication=True,
        )

    def peer(self, connection: str, auth: Auth) -> RemotePeer:
        """Return who is at the other end of a connection, by what gRPC tells of it.

        Raises:
            CallerUnknown: nobody whom a role could be given, or not by TLS 1.3.
        """
        version = b"".join(auth.get("ssl_tls_version", ())).decode(errors="replace")
        if version != "TLSv1.3":
            raise CallerUnknown(f"it came by {version or 'no TLS'}, and only TLS 1.3 is taken")
        certificate = self._certificate(b"".join(auth.get("x509_pem_cert", ())))
        return RemotePeer(
            subject=certificate.subject,
            # gRPC writes `ipv6:%5B::1%5D:52364`
            address=unquote(connection.partition(":")[2]),
            serial=certificate.serial,
            fingerprint=certificate.fingerprint,
            end_time=certificate.end_time,
        )

    def admit(self, peer: RemotePeer) -> None:
        """Let somebody in whose certificate is neither denied nor has ended.

        Raises:
            CallerUnknown: it is.
        """
        which = f"the certificate of {peer.subject} (SHA-256 {peer.fingerprint})"
        if self._denied.has(peer.serial, peer.fingerprint):
            raise CallerUnknown(f"{which} is denied on this host")
        # TLS looks at it as a connection begins, and not again while it lasts.
        if peer.end_time <= datetime.now(UTC):
            raise CallerUnknown(f"{which} ended at {utc(peer.end_time)}")
        self._next_end = min(self._next_end, peer.end_time)

    def apply(self, settings: TlsSettings) -> None:
        """Go by these settings from now on, and read the files again.

        Raises:
            TlsUnusable: the files cannot be used; everything stays as it was.
        """
        before, self._settings = self._settings, settings
        try:
            self._load()
        except TlsUnusable:
            self._settings = before
            raise

    async def keep(self, recheck: Callable[[], None]) -> Never:
        """Follow changes of the files for ever.

        Args:
            recheck: called when some of those who were let in may have to leave.
        """
        while True:
            if self._look() or self._next_end <= datetime.now(UTC):
                # grows again by all who are still let in
                self._next_end = _FOR_EVER
                recheck()
            await asyncio.sleep(_LOOK_S)

    def _look(self) -> bool:
        """Read files that have changed; return whether they are in use now."""
        marks = self._present_marks()
        if marks == self._marks:
            return False
        try:
            self._load()
        except TlsUnusable as error:
            # Files are replaced one after the other, so a set that is no good gets a second
            # look before it is told of.
            if marks == self._doubted:
                self._marks = marks
                log.error(  # noqa: TRY400 - the sentence says it all
                    "%s; going on with what was there before",
                    error,
                    extra={"MESSAGE_ID": messages.TLS_FILES_REFUSED},
                )
            self._doubted = marks
            return False
        return True

    def _load(self) -> None:
        marks = self._present_marks()  # before: what changes meanwhile is read again
        certified = certificates.read(self._settings.files, datetime.now(UTC))
        denied = _denied(self._settings)
        self._marks, self._doubted = marks, None
        if certified != self._certified:
            self._certified = certified
            self._offers.append(_configuration(certified))
            self._tell()
        if denied != self._denied:
            log.info("%d client certificates are denied", len(denied.entries))
            self._denied = denied

    def _tell(self) -> None:
        for remark in self._certified.remarks:
            log.warning("%s", remark)
        end = utc(self._certified.end_time)
        log.info("offering %s, which ends at %s", self._settings.files.certificate, end)

    def _certificate(self, pem: bytes) -> ClientCertificate:
        """Return what *pem* tells; read once, not at each call."""
        key = hashlib.sha256(pem).digest()
        known = self._known.get(key)
        if known is None:
            known = self._known[key] = certificates.client_certificate(pem)
            if len(self._known) > _CERTIFICATES:
                self._known.popitem(last=False)
        return known

    def _present_marks(self) -> _Marks:
        files = self._settings.files
        paths = (files.certificate, files.key, files.client_ca, self._settings.deny_file)
        return tuple(None if path is None else _mark(path) for path in paths)


def _configuration(certified: Certified) -> grpc.ServerCertificateConfiguration:
    return grpc.ssl_server_certificate_configuration(
        [(certified.key, certified.certificate)], certified.client_ca
    )


def _denied(settings: TlsSettings) -> Denied:
    file = settings.deny_file
    if file is None:
        return settings.denied
    try:
        return settings.denied | Denied.parse(file.read_text(encoding="utf-8"))
    except OSError as error:
        # Not "nobody is denied": whoever names a list wants it obeyed.
        raise TlsUnusable(file, f"cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise TlsUnusable(file, str(error)) from error


def _mark(path: Path) -> tuple[int, ...] | None:
    try:
        there = path.stat()
    except OSError:
        return None
    return there.st_dev, there.st_ino, there.st_size, there.st_mtime_ns, there.st_ctime_ns
