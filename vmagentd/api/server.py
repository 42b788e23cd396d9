"""The gRPC server on its Unix socket: starts, keeps serving, drains.

Runs on the loop.
"""

from __future__ import annotations

import asyncio
import logging
import resource
from contextlib import AsyncExitStack
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Self

from grpc import aio
from grpc_reflection.v1alpha import reflection, reflection_pb2

from vmagentd.api import health, requests
from vmagentd.api.boundary import Boundary, handlers
from vmagentd.api.health import Health
from vmagentd.api.servicer import SERVICE

if TYPE_CHECKING:
    from types import TracebackType

    from vmagentd.api.servicer import Servicer
    from vmagentd.api.socketfile import SocketFile

log = logging.getLogger(__name__)

_REFLECTION: Any = reflection_pb2.DESCRIPTOR.services_by_name["ServerReflection"]
_SERVICES = (SERVICE.full_name, health.SERVICE.full_name, _REFLECTION.full_name)

# The names that the health service knows. The first two are what load balancers ask for: both
# serve while calls are taken, because a blind daemon, or one whose disk is full, still answers.
_CALLS = ("", SERVICE.full_name)
HEALTH_NAMES = (*_CALLS, "libvirt", "journal")

# A watch of 1,000 VMs, each named at full length, is the longest request there is.
_MAX_REQUEST_BYTES = requests.MAX_WATCHED_VMS * (requests.MAX_NAME_BYTES + 3) + 64 * 1024
_MAX_CONNECTIONS = 4096


def _options() -> list[tuple[str, int]]:
    """Return the options of the gRPC core. It ignores names that it does not know in silence."""
    descriptors, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return [
        # Refused by the core before it is buffered as a whole.
        ("grpc.max_receive_message_length", _MAX_REQUEST_BYTES),
        # gRPC's own defaults, named because a status must fit into them on the client's side:
        # see status.py.
        ("grpc.max_metadata_size", 8 * 1024),
        ("grpc.absolute_max_metadata_size", 16 * 1024),
        # Half of what there is: the journal and libvirt need descriptors too.
        (
            "grpc.max_allowed_incoming_connections",
            min(max(descriptors // 2, 16), _MAX_CONNECTIONS),
        ),
        # Per connection; further calls on it wait in the client. About 30 KiB each.
        ("grpc.max_concurrent_streams", 2048),
        # Whoever connects and says nothing gives its place up.
        ("grpc.server_handshake_timeout_ms", 5_000),
        # A frozen client is found out within 40 s. Its socket stays open, so nothing else tells;
        # without the last option the core waits 60 s longer.
        ("grpc.keepalive_time_ms", 30_000),
        ("grpc.keepalive_timeout_ms", 10_000),
        ("grpc.http2.ping_timeout_ms", 10_000),
        # Clients may ping every second, also between their calls; more is an attack.
        ("grpc.http2.min_ping_interval_without_data_ms", 1_000),
        ("grpc.keepalive_permit_without_calls", 1),
        # A second process must not be able to bind the same port unseen.
        ("grpc.so_reuseport", 0),
    ]


class Server:
    """Serves on a Unix socket while it is entered.

    Leaving drains first, so whoever serves the calls from within may be taken down afterwards.
    """

    def __init__(
        self,
        servicer: Servicer,
        *,
        socket: SocketFile,
        grace: timedelta = timedelta(seconds=5),
        tasks: asyncio.TaskGroup,
    ) -> None:
        """Prepare to serve.

        Args:
            servicer: answers for the contract.
            socket: the place to serve on; entered, so that nobody else has it.
            grace: what short calls are given when draining.
            tasks: holds the server's own task, which ends with the server.
        """
        self._servicer = servicer
        self._socket = socket
        self._grace = grace
        self._tasks = tasks
        self._boundary = Boundary()
        self._health = Health(HEALTH_NAMES)
        self._stack = AsyncExitStack()
        self._grpc: aio.Server | None = None
        self._crashed = asyncio.Event()
        self._draining = False

    async def __aenter__(self) -> Self:
        """Serve. Durable facts must be there before: calls come in at once.

        Raises:
            SocketInUse: it cannot be bound; nothing was changed.
        """
        async with AsyncExitStack() as stack:
            stack.push_async_callback(self.drain)
            await self._start()
            for name in _CALLS:
                self._health.set(name, serving=True)
            keeper = self._tasks.create_task(self._keep_serving(), name="api-keeper")
            stack.callback(keeper.cancel)
            self._stack = stack.pop_all()
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Drain."""
        await self._stack.__aexit__(exc_type, exc, traceback)

    def set_health(self, name: str, *, serving: bool) -> None:
        """Set what the health service says of `libvirt` or `journal`."""
        self._health.set(name, serving=serving)

    async def drain(self) -> None:
        """Refuse new calls and end the present ones; they get SHUTTING_DOWN.

        Returns when no call is left and all code of ours that served one has ended; a little
        after the grace at the latest.
        """
        if self._draining:
            return
        self._draining = True
        self._health.close()
        if self._grpc is not None:
            # First they are told, then gRPC is stopped: it closes connections as soon as the
            # last call is over, and a client that happens to write just then finds out before
            # it has read the status.
            await self._boundary.drain(self._grace)
            await self._grpc.stop(None)
            await self._boundary.ended()

    async def _start(self) -> None:
        server = aio.server(interceptors=[self._boundary], options=_options())
        # All of them generic: with a method that is registered by its name, the core holds
        # memory of a loop that has crashed, and writes to it (see `_keep_serving`).
        server.add_generic_rpc_handlers(
            [
                handlers(SERVICE, self._servicer),
                handlers(health.SERVICE, self._health),
                handlers(_REFLECTION, reflection.aio.ReflectionServicer(_SERVICES)),
            ]
        )
        self._crashed.clear()
        self._socket.bind(server.add_insecure_port)
        before = asyncio.all_tasks()
        await server.start()
        self._grpc = server
        # One of these is the loop in which gRPC takes calls; it cannot be had in another way.
        for task in asyncio.all_tasks() - before:
            task.add_done_callback(self._core_task_ended)

    def _core_task_ended(self, task: asyncio.Task[Any]) -> None:
        if not task.cancelled() and task.exception() is not None and not self._draining:
            self._crashed.set()

    async def _keep_serving(self) -> None:
        """Start a new gRPC server whenever the present one has ended by itself.

        A method name that is not UTF-8 ends gRPC's loop that takes calls (seen with grpcio
        1.85.1): calls go on, and no new one is answered any more. Whoever may connect can send
        one, so it must not be the end of the daemon. Streams break and resume.
        """
        while True:
            await self._crashed.wait()
            log.warning("gRPC has stopped taking calls; serving anew")
            if self._grpc is not None:
                await self._grpc.stop(None)
            await self._start()
