"""Why the daemon ends. Runs on the loop."""

from __future__ import annotations

import asyncio
import signal


class Ending:
    """Why the daemon ends: a signal, or the fault of a thread."""

    def __init__(self) -> None:
        """Take the signals from here on."""
        loop = asyncio.get_running_loop()
        self.cause: asyncio.Future[str] = loop.create_future()
        # the first one; it may come after the signal, while everything is being closed
        self.fault: BaseException | None = None
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._signalled, number.name)

    def fatal(self, error: BaseException) -> None:
        """End with *error*; the first cause counts."""
        self.fault = self.fault or error
        if not self.cause.done():
            self.cause.set_exception(error)

    def _signalled(self, name: str) -> None:
        if not self.cause.done():
            self.cause.set_result(name)
