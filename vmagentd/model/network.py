"""How those from other hosts come in."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

from vmagentd.model.certificate import Denied


@dataclass(frozen=True, slots=True, kw_only=True)
class TlsFiles:
    """Files in PEM: the daemon's certificate and key, and the CAs of its clients."""

    certificate: Path
    key: Path
    client_ca: Path


@dataclass(frozen=True, slots=True, kw_only=True)
class TlsSettings:
    """What the daemon shows, and whom it lets in; may change while it runs."""

    files: TlsFiles
    denied: Denied
    # more of them, one a line
    deny_file: Path | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class NetworkSettings:
    """Where to listen, and what to show there."""

    # HOST:PORT; `0.0.0.0` and `[::]` are all addresses, of IPv4 and IPv6
    listen: str
    # A connection ends then, within a tenth: one that began before certificates were changed
    # knows nothing of that.
    max_connection_age: timedelta
    tls: TlsSettings
