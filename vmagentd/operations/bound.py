"""A wait with an end."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from types import TracebackType


class Bound:
    """A wait that ends quietly: at its time, if it has one, or when somebody ends it before.

    Its time may have come already: what is awaited inside ends where it has to wait first.
    """

    def __init__(self, time: float | None = None) -> None:
        self._timeout = asyncio.timeout_at(time)
        self._over = True  # so far

    def end(self) -> None:
        """End the wait now, if it goes on."""
        # once expired it is ending, though whoever waits has not had his turn yet
        if not self._over and not self._timeout.expired():
            self._timeout.reschedule(asyncio.get_running_loop().time())

    async def __aenter__(self) -> None:
        self._over = False
        await self._timeout.__aenter__()

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> bool:
        self._over = True
        try:
            await self._timeout.__aexit__(kind, error, traceback)
        except TimeoutError:
            return True
        return False
