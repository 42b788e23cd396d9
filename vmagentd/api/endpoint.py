"""One gRPC server at one place, which starts anew when gRPC's own loop has ended.

Runs on the loop.
"""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, Any, Final

from grpc import aio

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    import grpc

log = logging.getLogger(__name__)

# How the coroutines are called that one server of gRPC's consists of; calls are called otherwise.
_OF_GRPC: Final = "AioServer."
_UNTIL_STOPPED_S: Final = 3600.0
# How often it is told that gRPC has stopped: clients can bring it about.
_REMIND_S: Final = 60.0


class Endpoint:
    """Serves the same services as the others, at a place of its own."""

    def __init__(
        self,
        bind: Callable[[aio.Server], None],
        *,
        interceptor: aio.ServerInterceptor,
        services: Sequence[grpc.GenericRpcHandler],
        options: Sequence[tuple[str, int]],
        on_crash: Callable[[], None],
    ) -> None:
        """Prepare.

        Args:
            bind: gives a new server its place; raises a StartupError if it cannot.
            interceptor: sees every call.
            services: what is served. All of them generic: with a method that is registered by its
                name, the core holds memory of a loop that has crashed, and writes to it.
            options: of the gRPC core.
            on_crash: told when `start_again` has to be called.
        """
        self._bind = bind
        self._interceptor = interceptor
        self._services = services
        self._options = options
        self._on_crash = on_crash
        self._grpc: aio.Server | None = None
        self._shutting: asyncio.Task[None] | None = None
        self.crashed = False
        # crashes that were not told of, and when the next may be, by the loop's clock
        self._untold = 0
        self._next_warning = 0.0

    async def start(self) -> None:
        """Serve. No other endpoint may start meanwhile."""
        server = aio.server(interceptors=[self._interceptor], options=self._options)
        server.add_generic_rpc_handlers(self._services)
        self.crashed = False
        self._bind(server)
        before = asyncio.all_tasks()
        await server.start()
        self._grpc = server
        # One of these is the loop in which gRPC takes calls; it cannot be had in another way. Of
        # others that have begun meanwhile, calls to another endpoint may be some.
        for task in asyncio.all_tasks() - before:
            if getattr(task.get_coro(), "__qualname__", "").startswith(_OF_GRPC):
                task.add_done_callback(self._core_task_ended)

    async def start_again(self) -> None:
        """Serve with a new server after the present one has ended by itself.

        A method name that is not UTF-8 ends gRPC's loop that takes calls (seen with grpcio
        1.85.1): calls go on, and no new one is answered any more. Whoever may connect can send
        one, so it must not be the end of the daemon. Streams break and resume.
        """
        self._untold += 1
        now = asyncio.get_running_loop().time()
        if now >= self._next_warning:
            log.warning(
                "gRPC has stopped taking calls%s; serving anew",
                f", {self._untold} times by now" if self._untold > 1 else "",
            )
            self._untold, self._next_warning = 0, now + _REMIND_S
        await self.stop()
        await self.start()

    async def shut(self) -> None:
        """Take no more calls: clients are told to connect anew. Those under way go on."""
        if self._grpc is not None:
            self._shutting = asyncio.create_task(self._grpc.stop(_UNTIL_STOPPED_S))
            await asyncio.sleep(0)  # then the core has been told, and tells it before all else

    async def stop(self) -> None:
        """End all its connections at once."""
        if self._grpc is not None:
            await self._grpc.stop(None)
        if self._shutting is not None:
            await self._shutting

    def _core_task_ended(self, task: asyncio.Task[Any]) -> None:
        if not task.cancelled() and task.exception() is not None:
            self.crashed = True
            self._on_crash()
