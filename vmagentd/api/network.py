"""The TCP port, for those who come from other hosts: off unless it is asked for, and never plain.

Runs on the loop.
"""

from __future__ import annotations

import errno
import socket
from typing import TYPE_CHECKING, Final

from vmagentd.errors import CallerUnknown, ListenFailed

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from grpc import aio

    from vmagentd.api.access import Auth
    from vmagentd.api.tls import Tls
    from vmagentd.model import Denied, NetworkSettings, RemotePeer, TlsFiles

# For calls under way on a connection that has reached its age.
_GRACE_MS: Final = 30_000


class Network:
    """The port, and who is let in there."""

    def __init__(self, settings: NetworkSettings | None) -> None:
        """Read certificates.

        Args:
            settings: None: nobody comes in.

        Raises:
            TlsUnusable: they cannot be used.
        """
        self._settings = settings
        self._tls: Tls | None = None
        if settings is not None:
            # not before: cryptography is 7 MiB that a host without remote clients can do without
            from vmagentd.api.tls import Tls  # noqa: PLC0415

            self._tls = Tls(settings.tls)

    @property
    def on(self) -> bool:
        """Whether anybody may come in."""
        return self._settings is not None

    @property
    def options(self) -> list[tuple[str, int]]:
        """What the gRPC core has to know of it."""
        if self._settings is None:
            return []
        age_ms = int(self._settings.max_connection_age.total_seconds() * 1000)
        return [
            ("grpc.max_connection_age_ms", age_ms),
            ("grpc.max_connection_age_grace_ms", _GRACE_MS),
        ]

    def bind(self, server: aio.Server) -> None:
        """Have *server* listen.

        Raises:
            ListenFailed: it cannot.
        """
        if self._settings is None or self._tls is None:
            return
        listen = self._settings.listen
        try:
            server.add_secure_port(listen, self._tls.credentials())
        except RuntimeError as error:  # gRPC's for any failed bind; it does not say why
            raise ListenFailed(listen, _why(listen) or str(error)) from error

    def peer(self, connection: str, auth: Auth) -> RemotePeer:
        """Return who is at the other end of a connection.

        Raises:
            CallerUnknown: nobody can tell.
        """
        if self._tls is None:
            raise CallerUnknown(f"{connection} is none of the connections that are accepted")
        return self._tls.peer(connection, auth)

    def admit(self, peer: RemotePeer) -> None:
        """Let somebody in whose certificate is accepted now.

        Raises:
            CallerUnknown: it is not.
        """
        if self._tls is not None:
            self._tls.admit(peer)

    def deny(self, denied: Denied, *, beside: bool = False) -> None:
        """Deny these certificates from now on; see `Denials.deny`."""
        if self._tls is not None:
            self._tls.deny(denied, beside=beside)

    async def deny_by(self, file: Path | None) -> None:
        """Deny by this file from now on; it is read again.

        Raises:
            TlsUnusable: it cannot be read; who was denied before still is.
        """
        if self._tls is not None:
            await self._tls.deny_by(file)

    async def show(self, files: TlsFiles) -> None:
        """Show what is in these files from now on; they are read again.

        Raises:
            TlsUnusable: they cannot be used; everything stays as it was.
        """
        if self._tls is not None:
            await self._tls.show(files)

    async def keep(self, recheck: Callable[[], None]) -> None:
        """Follow changes of the files, for ever if it is on.

        Args:
            recheck: called when some of those who were let in may have to leave.
        """
        if self._tls is not None:
            await self._tls.keep(recheck)


def _why(listen: str) -> str | None:
    """Return what the kernel says of a place where gRPC could not listen."""
    host, _, port = listen.rpartition(":")
    host = host.strip("[]")
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        with socket.socket(family, socket.SOCK_STREAM) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind((host, int(port)))
            probe.listen()
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            return "another process listens there"
        return error.strerror or str(error)
    return None
