"""A socket at which the daemon is heard as systemd would hear it."""

from __future__ import annotations

import asyncio
import select
import socket
from typing import TYPE_CHECKING

from tests.component.process import DEADLINE_S

if TYPE_CHECKING:
    from pathlib import Path

WATCHDOG_S = 1.0
# So long, three times what systemd would allow, is no mere delay of a busy machine.
_SILENCE_S = 3.0


class Systemd:
    """The end of the socket at which systemd listens."""

    def __init__(self, folder: Path) -> None:
        self.address = str(folder / "notify")
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
        self._socket.bind(self.address)
        self.heard: list[str] = []
        # what a daemon is to have in its environment
        self.environment = {
            "NOTIFY_SOCKET": self.address,
            "WATCHDOG_USEC": str(int(WATCHDOG_S * 1e6)),
        }

    def close(self) -> None:
        self._socket.close()

    def is_full(self) -> bool:
        """Whether nothing more can be told until something is heard."""
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK) as other:
            other.connect(self.address)
            writable = select.select([], [other], [], 0)[1]
        return not writable

    async def next(self) -> str:
        """Return the next line that comes."""
        message = await asyncio.get_running_loop().sock_recv(self._socket, 4096)
        self.heard += (lines := message.decode().splitlines())
        return lines[0]

    async def until(self, word: str) -> str:
        """Return the next line that has *word* in it."""
        async with asyncio.timeout(DEADLINE_S):
            while word not in (line := await self.next()):
                pass
        return line

    async def silence(self) -> None:
        """Wait until nothing was heard for long."""
        async with asyncio.timeout(DEADLINE_S):
            while True:
                try:
                    async with asyncio.timeout(_SILENCE_S):
                        while await self.next() != "WATCHDOG=1":
                            pass
                except TimeoutError:
                    return
