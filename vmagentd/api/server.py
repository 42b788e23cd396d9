"""The gRPC servers, behind the gate and on the network: start, keep serving, drain.

Runs on the loop.
"""

from __future__ import annotations

import asyncio
import logging
import resource
from contextlib import AsyncExitStack
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Final, Never, Self

from grpc_channelz.v1 import channelz, channelz_pb2
from grpc_reflection.v1alpha import reflection, reflection_pb2

from vmagentd.api import chatter, health, requests
from vmagentd.api.boundary import Boundary
from vmagentd.api.endpoint import Endpoint
from vmagentd.api.handlers import handlers
from vmagentd.api.health import Health
from vmagentd.api.pace import Paces
from vmagentd.api.servicer import SERVICE
from vmagentd.errors import SocketInUse

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from types import TracebackType

    from grpc import aio

    from vmagentd.api.access import Access
    from vmagentd.api.boundary import OnRefusal
    from vmagentd.api.gate import Gate
    from vmagentd.api.limits import CallerLimits
    from vmagentd.api.network import Network
    from vmagentd.api.servicer import Servicer
    from vmagentd.api.socketfile import SocketFile

log = logging.getLogger(__name__)

_REFLECTION: Any = reflection_pb2.DESCRIPTOR.services_by_name["ServerReflection"]
_CHANNELZ: Any = channelz_pb2.DESCRIPTOR.services_by_name["Channelz"]
_SERVICES = tuple(
    service.full_name for service in (SERVICE, health.SERVICE, _REFLECTION, _CHANNELZ)
)

# The names that the health service knows. The first two are what load balancers ask for: both
# serve while calls are taken, because a blind daemon, or one whose disk is full, still answers.
_CALLS = ("", SERVICE.full_name)
HEALTH_NAMES = (*_CALLS, "libvirt", "journal")

# A watch of 1,000 VMs, each named at full length, is the longest request there is.
_MAX_REQUEST_BYTES = requests.MAX_WATCHED_VMS * (requests.MAX_NAME_BYTES + 3) + 64 * 1024
_MAX_CONNECTIONS = 4096
_TIDY_S = 1.0
# In how many rounds of the loop a call arrives here that gRPC has taken.
_ARRIVES_IN = 5


def spare_descriptors() -> int:
    """Return how many descriptors clients may take: half, others need some too."""
    descriptors, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return max(descriptors // 2, 16)


def _options() -> list[tuple[str, int]]:
    """Return the options of the gRPC core. It ignores names that it does not know in silence."""
    return [
        # Refused by the core before it is buffered as a whole.
        ("grpc.max_receive_message_length", _MAX_REQUEST_BYTES),
        # gRPC's own defaults, named because a status must fit into them on the client's side:
        # see status.py.
        ("grpc.max_metadata_size", 8 * 1024),
        ("grpc.absolute_max_metadata_size", 16 * 1024),
        ("grpc.max_allowed_incoming_connections", min(spare_descriptors(), _MAX_CONNECTIONS)),
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
        # What admins see by channelz: counts of calls, and when; no trace of each connection.
        ("grpc.enable_channelz", 1),
        ("grpc.max_channel_trace_event_memory_per_node", 0),
        # A second process must not be able to bind the same port unseen.
        ("grpc.so_reuseport", 0),
    ]


# gRPC does not tell when it has handed over all the calls that have reached it: when none came for
# so long, twice, as after a pause of the whole process the first time tells nothing.
_HAND_OVER_S: Final = 0.025
# Clients of other hosts do not pass the gate. Those that call again without waiting for an answer
# do not hold up the end.
_HAND_OVERS: Final = 40


class Server:
    """Serves on a Unix socket, and on the network if it has one, while it is entered.

    Leaving drains first, so whoever serves the calls from within may be taken down afterwards.
    """

    def __init__(
        self,
        servicer: Servicer,
        *,
        access: Access,
        limits: CallerLimits,
        on_refusal: OnRefusal,
        gate: Gate,
        socket: SocketFile,
        network: Network | None = None,
        grace: timedelta = timedelta(seconds=5),
        tasks: asyncio.TaskGroup,
    ) -> None:
        """Prepare to serve.

        Args:
            servicer: answers for the contract.
            access: tells who calls, and what he may do.
            limits: what one caller may have.
            on_refusal: told of everybody who may not do what he asked for.
            gate: lets local clients in.
            socket: the place to serve on; entered, so that nobody else has it.
            network: where those from other hosts come in, if they may.
            grace: what short calls are given when draining.
            tasks: holds the server's own task, which ends with the server.
        """
        self._servicer = servicer
        self._gate = gate
        self._socket = socket
        # of the next drain
        self.grace = grace
        self._tasks = tasks
        self._boundary = Boundary(access, limits=limits, on_refusal=on_refusal)
        self._paces = Paces(limits.calls_per_second, has_role=access.has_role)
        self._health = Health(HEALTH_NAMES)
        self._stack = AsyncExitStack()
        self._crashed = asyncio.Event()
        self._draining = False
        self._local = self._endpoint(self._bind_local, on_crash=self._on_local_crash)
        self._endpoints = [self._local]
        self._remote: Endpoint | None = None
        if network is not None and network.on:
            # Strangers may connect there, and must not take the descriptors of those at the gate.
            most = ("grpc.max_allowed_incoming_connections", max(spare_descriptors() // 4, 16))
            self._remote = self._endpoint(network.bind, [*network.options, most])
            self._endpoints.append(self._remote)

    async def __aenter__(self) -> Self:
        """Serve. Durable facts must be there before: calls come in at once.

        Raises:
            SocketInUse: it cannot be bound; nothing was changed.
            ListenFailed: the same of the TCP port.
        """
        async with AsyncExitStack() as stack:
            stack.push_async_callback(self.drain)
            chatter.keep_out()
            for endpoint in self._endpoints:
                await endpoint.start()
            self._gate.open(self._socket.listen(), self._socket.private, self._paces)
            for name in _CALLS:
                self._health.set(name, serving=True)
            keeper = self._tasks.create_task(self._keep_serving(), name="api-keeper")
            stack.callback(keeper.cancel)
            tidier = self._tasks.create_task(self._keep_tidy(), name="api-tidier")
            stack.callback(tidier.cancel)
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

    def limit(self, limits: CallerLimits) -> None:
        """Go by these limits from now on."""
        self._boundary.limit(limits)
        self._paces.limit(limits.calls_per_second)

    def recheck(self) -> None:
        """End the calls of whoever may not make them any more; see `Boundary.recheck`."""
        self._boundary.recheck()

    async def drain(self) -> None:
        """Refuse new calls and end the present ones; they get SHUTTING_DOWN.

        Returns when no call is left and all code of ours that served one has ended; a little
        after the grace at the latest.
        """
        if self._draining:
            return
        self._draining = True
        self._health.close()
        self._gate.shut()
        # First they are told, then gRPC is stopped: it closes connections as soon as the last call
        # is over, and a client that happens to write just then finds out before it has read the
        # status.
        await self._boundary.drain(self.grace)
        # A call that has reached gRPC and not yet us ends as CANCELLED when gRPC takes no more,
        # and nobody tries that again. So no more are let through the gate; and whoever comes over
        # the network is left waiting, which most do before they call again, until it is so far.
        self._gate.hush()
        self._boundary.hold()
        await self._handed_over()
        if self._remote is not None:
            await self._remote.shut()
        await self._boundary.drain(timedelta(0))
        for endpoint in self._endpoints:
            await endpoint.stop()
        await self._boundary.ended()
        await self._gate.close()

    async def _handed_over(self) -> None:
        """Wait until gRPC has handed over what has reached it, as far as one can tell."""
        quiet = 0
        for _ in range(_HAND_OVERS):
            before = self._boundary.calls.begun
            await asyncio.sleep(_HAND_OVER_S)
            quiet = quiet + 1 if self._boundary.calls.begun == before else 0
            if quiet > 1:
                return

    def _on_local_crash(self) -> None:
        self._gate.lost()
        self._crashed.set()

    def _endpoint(
        self,
        bind: Callable[[aio.Server], None],
        options: Iterable[tuple[str, int]] = (),
        *,
        on_crash: Callable[[], None] | None = None,
    ) -> Endpoint:
        return Endpoint(
            bind,
            interceptor=self._boundary,
            services=[
                handlers(SERVICE, *self._servicer.parts),
                handlers(health.SERVICE, self._health),
                handlers(_REFLECTION, reflection.aio.ReflectionServicer(_SERVICES)),
                handlers(_CHANNELZ, channelz.aio.ChannelzServicer()),
            ],
            options=list((dict(_options()) | dict(options)).items()),
            on_crash=on_crash or self._crashed.set,
        )

    def _bind_local(self, server: aio.Server) -> None:
        try:
            server.add_insecure_port(f"unix:{self._socket.private}")
        except RuntimeError as error:  # gRPC's for any failed bind
            raise SocketInUse(str(self._socket.private), f"cannot be served: {error}") from error

    async def _keep_serving(self) -> Never:
        """Start whichever endpoint has ended by itself again."""
        while True:
            await self._crashed.wait()
            self._crashed.clear()
            for endpoint in self._endpoints:
                if endpoint.crashed and not self._draining:
                    if endpoint is self._local:
                        for _ in range(_ARRIVES_IN):
                            await asyncio.sleep(0)
                        self._gate.accuse()
                    await endpoint.start_again()

    async def _keep_tidy(self) -> Never:
        """Close connections of local clients that have left too much untaken, or for too long."""
        while True:
            await asyncio.sleep(_TIDY_S)
            self._gate.tidy()
            count = sum(map(self._gate.cut, self._boundary.tidy(self._gate.flowed)))
            if count:
                log.warning("connections closed whose clients do not read: %d", count)
