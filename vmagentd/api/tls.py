"""TLS: what the daemon shows to those who come over the network, and whom it lets in.

A client must show a certificate of one of the client CAs; gRPC verifies that. All that gRPC cannot
do is done here for each call: no TLS before 1.3, a name for the client, certificates that are
denied or have ended. New files are looked into before they are offered.

Runs on the loop, except for what reads files, and the one function that gRPC calls from a thread
of its own.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
from collections import OrderedDict, deque
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Final, Never

import grpc

from vmagentd.api import certificates
from vmagentd.api.access import place
from vmagentd.api.denials import Denials
from vmagentd.api.followed import Followed
from vmagentd.errors import CallerUnknown, utc
from vmagentd.model import RemotePeer

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from vmagentd.api.access import Auth
    from vmagentd.api.certificates import Certified, ClientCertificate
    from vmagentd.model import Denied, TlsFiles, TlsSettings

log = logging.getLogger(__name__)

# How soon files that have changed are seen: a denied certificate is out within a second.
_LOOK_S: Final = 0.4
# Certificates that need not be read again at their next call.
_CERTIFICATES: Final = 1024
_FOR_EVER: Final = datetime.max.replace(tzinfo=UTC)


class Tls:
    """The daemon's side of TLS."""

    def __init__(self, settings: TlsSettings, *, strict: bool = False) -> None:
        """Read the files.

        Args:
            settings: which ones.
            strict: refuse whatever is wrong with them; see `Denials`.

        Raises:
            TlsUnusable: they cannot be used.
        """
        self._denials = Denials(settings.denied, settings.deny_file, strict=strict)
        self._own = Followed(
            settings.files,
            paths=lambda files: (files.certificate, files.key, files.client_ca),
            read=lambda files: certificates.read(files, datetime.now(UTC)),
            meanwhile="the files before them stay in use",
        )
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
            _configuration(self._own.content),
            fetch,  # type: ignore[arg-type]
            require_client_authentication=True,
        )

    def peer(self, connection: str, auth: Auth) -> RemotePeer:
        """Return who is at the other end of a connection, by what gRPC tells of it.

        Raises:
            CallerUnknown: nobody whom a role could be given, or not by TLS 1.3.
        """
        certificate = self._certificate(b"".join(auth.get("x509_pem_cert", ())))
        version = b"".join(auth.get("ssl_tls_version", ())).decode(errors="replace")
        if version != "TLSv1.3":
            raise CallerUnknown(
                f"it came by {version or 'no TLS'}, and only TLS 1.3 is taken",
                fingerprint=certificate.fingerprint,
            )
        return RemotePeer(
            subject=certificate.subject,
            address=place(connection),
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
        if self._denials.has(peer.serial, peer.fingerprint):
            raise CallerUnknown(f"{which} is denied on this host")
        # TLS looks at it as a connection begins, and not again while it lasts.
        if peer.end_time <= datetime.now(UTC):
            raise CallerUnknown(f"{which} ended at {utc(peer.end_time)}")
        self._next_end = min(self._next_end, peer.end_time)

    def deny(self, denied: Denied, *, beside: bool = False) -> None:
        """Deny these from now on; see `Denials.deny`."""
        self._denials.deny(denied, beside=beside)

    async def deny_by(self, file: Path | None) -> None:
        """Deny by this file from now on; it is read again.

        Raises:
            TlsUnusable: it cannot be read; see `Denials.follow`.
        """
        await self._denials.follow(file)

    async def show(self, files: TlsFiles) -> None:
        """Show what is in these files from now on; they are read again.

        Raises:
            TlsUnusable: they cannot be used; everything stays as it was.
        """
        if await self._own.load(files):
            self._offer()

    async def keep(self, recheck: Callable[[], None]) -> None:
        """Follow changes of the files for ever, and the ends of certificates.

        None of the three waits for another: a file may take long, or have no end.

        Args:
            recheck: called when some of those who were let in may have to leave.
        """
        try:
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(self._keep_denials(recheck), name="tls-denials")
                tasks.create_task(self._keep_ends(recheck), name="tls-ends")
                tasks.create_task(self._keep_own(), name="tls-own")
        finally:
            self._denials.close()
            self._own.close()

    async def _keep_denials(self, recheck: Callable[[], None]) -> Never:
        while True:
            if await self._denials.look():
                recheck()
            await asyncio.sleep(_LOOK_S)

    async def _keep_ends(self, recheck: Callable[[], None]) -> Never:
        while True:
            if self._next_end <= datetime.now(UTC):
                # grows again by all who are still let in
                self._next_end = _FOR_EVER
                recheck()
            await asyncio.sleep(_LOOK_S)

    async def _keep_own(self) -> Never:
        while True:
            if await self._own.look():
                self._offer()
            await asyncio.sleep(_LOOK_S)

    def _offer(self) -> None:
        self._offers.append(_configuration(self._own.content))
        self._tell()

    def _tell(self) -> None:
        for remark in self._own.content.remarks:
            log.warning("%s", remark)
        end = utc(self._own.content.end_time)
        log.info("offering %s, which ends at %s", self._own.files.certificate, end)

    def _certificate(self, pem: bytes) -> ClientCertificate:
        """Return what *pem* tells; read once, not at each call."""
        key = hashlib.sha256(pem).digest()
        known = self._known.get(key)
        if known is None:
            known = self._known[key] = certificates.client_certificate(pem)
            if len(self._known) > _CERTIFICATES:
                self._known.popitem(last=False)
        return known


def _configuration(certified: Certified) -> grpc.ServerCertificateConfiguration:
    return grpc.ssl_server_certificate_configuration(
        [(certified.key, certified.certificate)], certified.client_ca
    )
