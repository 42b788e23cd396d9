"""Whoever calls while the daemon ends gets his answer, or may call again."""

from __future__ import annotations

import asyncio
import threading
from collections import Counter
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import TYPE_CHECKING

import grpc
import pytest
from grpc import aio
from vmagent.v1 import vm_agent_service_pb2 as pb
from vmagent.v1.vm_agent_service_pb2_grpc import VmAgentServiceStub

from .conftest import Served, serving
from .test_tls import DEADLINE_S, Site, site, until

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable
    from pathlib import Path

    from vmagent.v1.vm_agent_service_pb2_grpc import VmAgentServiceAsyncStub

    # a connection of its own
    Connect = Callable[[], AbstractAsyncContextManager[VmAgentServiceAsyncStub]]
    Place = Callable[[Path], AbstractAsyncContextManager[tuple[Served, Connect]]]

CALLERS = 20
# Channels share connections unless told not to.
OWN_CONNECTION = [("grpc.use_local_subchannel_pool", 1)]


@asynccontextmanager
async def on_this_host(folder: Path) -> AsyncIterator[tuple[Served, Connect]]:
    async with serving(folder) as served:

        @asynccontextmanager
        async def connected() -> AsyncIterator[VmAgentServiceAsyncStub]:
            target = f"unix:{served.path}"
            async with aio.insecure_channel(target, options=OWN_CONNECTION) as channel:
                yield VmAgentServiceStub(channel)

        yield served, connected


@asynccontextmanager
async def on_another_host(folder: Path) -> AsyncIterator[tuple[Served, Connect]]:
    async with site(folder) as here:
        client = here.client()
        yield here.served, lambda: here.connected(client)


@pytest.mark.parametrize("place", [on_this_host, on_another_host])
async def test_calls_end_well_or_can_be_tried_again(folder: Path, place: Place) -> None:
    """Clients try UNAVAILABLE again, and nothing else."""
    codes: Counter[str] = Counter()
    busy, over = asyncio.Event(), asyncio.Event()

    async def call(connect: Connect) -> None:
        async with connect() as stub:
            while not over.is_set():
                try:
                    await stub.GetHost(pb.GetHostRequest(), timeout=10)
                    codes["OK"] += 1
                    if codes["OK"] > 5 * CALLERS:
                        busy.set()
                except aio.AioRpcError as error:
                    codes[error.code().name] += 1
                    await asyncio.sleep(0)

    async with place(folder) as (served, connect), asyncio.TaskGroup() as callers:
        for _ in range(CALLERS):
            callers.create_task(call(connect))
        await busy.wait()
        await served.server.drain()
        over.set()
    assert set(codes) <= {"OK", "UNAVAILABLE"}, codes


async def test_who_goes_on_calling_from_another_host_does_not_hold_it_up(folder: Path) -> None:
    """One that waits for no answer before it calls again."""
    over = threading.Event()

    def go_on(here: Site) -> None:
        client = here.client()
        credentials = grpc.ssl_channel_credentials(here.ca.pem, client.key, client.pem)
        with grpc.secure_channel(f"localhost:{here.port}", credentials) as channel:
            calls = []  # one that nobody holds is cancelled
            while not over.wait(0.01):
                calls.append(VmAgentServiceStub(channel).GetHost.future(pb.GetHostRequest()))

    async with site(folder) as here:
        going_on = asyncio.create_task(asyncio.to_thread(go_on, here))
        calls = here.served.server._boundary.calls
        try:
            async with asyncio.timeout(DEADLINE_S):
                await until(lambda: calls.begun > 0)
                await here.served.server.drain()
        finally:
            over.set()
            await going_on
