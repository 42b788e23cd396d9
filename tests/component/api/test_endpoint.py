"""One gRPC server at one place: whose end is the end of its loop, and whose is not."""

from __future__ import annotations

import asyncio
from functools import partial
from typing import TYPE_CHECKING, Any

from grpc import aio
from typing_extensions import override  # typing has it since 3.12

from vmagentd.api.endpoint import Endpoint

if TYPE_CHECKING:
    from pathlib import Path


class Untouched(aio.ServerInterceptor):
    """Lets every call through."""

    @override
    async def intercept_service(self, continuation: Any, handler_call_details: Any) -> Any:
        return await continuation(handler_call_details)


def bound(folder: Path, server: aio.Server) -> None:
    server.add_insecure_port(f"unix:{folder}/s")


async def test_a_task_that_begins_as_it_starts_is_not_taken_for_its_loop(folder: Path) -> None:
    """As that of a call to the other endpoint does, and fails with its client."""
    crashes, others = list[Endpoint](), list[asyncio.Task[None]]()
    endpoint = Endpoint(
        partial(bound, folder),
        interceptor=Untouched(),
        services=[],
        options=[],
        on_crash=lambda: crashes.append(endpoint),
    )

    gone = asyncio.Event()

    async def call() -> None:
        await gone.wait()
        raise aio.UsageError("its client has gone")

    asyncio.get_running_loop().call_soon(
        lambda: others.append(asyncio.create_task(call(), name="call"))
    )
    await endpoint.start()
    try:
        (other,) = others
        gone.set()
        await asyncio.wait([other])
        await asyncio.sleep(0)  # callbacks of its end come then
        assert isinstance(other.exception(), aio.UsageError)
        assert (endpoint.crashed, crashes) == (False, [])
    finally:
        await endpoint.stop()
