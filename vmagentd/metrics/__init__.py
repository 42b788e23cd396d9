"""Prometheus: figures of how the daemon does, and where they are read.

All of prometheus_client. It is loaded only if figures are to be served: 5 MiB that most can do
without.
"""

from __future__ import annotations

from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

from vmagentd.metrics.exposition import served
from vmagentd.metrics.observers import Observers

if TYPE_CHECKING:
    import asyncio
    from collections.abc import AsyncIterator, Callable

    from vmagentd.journal.store import Journal
    from vmagentd.watch import Watch

__all__ = ["Metrics", "Observers"]


class Metrics:
    """The figures of this daemon, if they are wanted."""

    def __init__(self, listen: str | None) -> None:
        """Prepare to serve at *listen*; see `exposition.served`. None: nothing is measured."""
        self._listen = listen
        self.observe = Observers()
        if listen is not None:
            from vmagentd.metrics.figures import Figures  # noqa: PLC0415 - see above

            self._figures = Figures()
            self.observe = self._figures.observers

    @asynccontextmanager
    async def served(
        self,
        journal: Journal,
        watch: Watch,
        tasks: asyncio.TaskGroup,
        *,
        connections: Callable[[], int],
    ) -> AsyncIterator[None]:
        """Serve while the body lasts; *connections* tells how many there are of clients.

        Raises:
            MetricsUnavailable: the place is taken, or not ours to take.
        """
        if self._listen is None:
            yield
            return
        figures = self._figures
        tasks.create_task(figures.follow(journal), name="metrics")

        def look() -> None:
            figures.look(journal, watch, connections=connections())

        async with served(self._listen, look=look, encoding=figures.encoding):
            yield
