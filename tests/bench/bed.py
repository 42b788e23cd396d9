"""A private libvirtd, guests and a daemon, for as long as a measurement takes."""

from __future__ import annotations

import statistics
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from tests.system.daemon import Daemon
from tests.system.domains import Guests
from tests.system.guests import Roms
from tests.system.libvirtd import PrivateLibvirtd

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence


@dataclass(frozen=True, slots=True)
class Bed:
    """What a measurement is made on."""

    libvirtd: PrivateLibvirtd
    guests: Guests
    daemon: Daemon


@contextmanager
def bed() -> Iterator[Bed]:
    """All of it, started; nothing is left afterwards."""
    with TemporaryDirectory(prefix="roms-") as directory, PrivateLibvirtd() as libvirtd:
        Path(directory).chmod(0o755)  # QEMU runs as another user
        guests = Guests(libvirtd, Roms(Path(directory)))
        with Daemon(libvirtd.uri, Path(libvirtd.directory)) as daemon:
            yield Bed(libvirtd, guests, daemon)


def told(name: str, seconds: Sequence[float]) -> str:
    """Return a line with the median, the 99th percentile and the worst of *seconds*."""
    ordered = sorted(seconds)
    p99 = ordered[min(len(ordered) - 1, round(0.99 * len(ordered)))]
    figures = (statistics.median(ordered), p99, ordered[-1])
    in_ms = ", ".join(
        f"{what} {1000 * value:.1f} ms"
        for what, value in zip(("median", "p99", "worst"), figures, strict=True)
    )
    return f"{name}: {in_ms} of {len(ordered)}"
