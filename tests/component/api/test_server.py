"""The server as a whole: its limits hold, and it serves on whatever happens to gRPC."""

from __future__ import annotations

import asyncio
import logging
import resource
import stat
from contextlib import AsyncExitStack, suppress
from typing import TYPE_CHECKING, Any

import grpc
import pytest
from grpc import aio
from vmagent.v1 import vm_agent_service_pb2 as pb
from vmagent.v1.transition_pb2 import Cursor
from vmagent.v1.vm_agent_service_pb2_grpc import VmAgentServiceStub

from . import wire
from .conftest import collected, serving, sighting

if TYPE_CHECKING:
    from pathlib import Path

    from .conftest import Served

_OWN = [("grpc.use_local_subchannel_pool", 1)]


async def served_again(served: Served) -> None:
    """Call until it answers: whoever calls while the server begins anew is to ask again."""
    while True:
        try:
            await served.stub.GetHost(pb.GetHostRequest(), wait_for_ready=True)
        except aio.AioRpcError as error:
            if error.code() is not grpc.StatusCode.UNAVAILABLE:
                raise
        else:
            return


async def test_a_method_name_that_is_not_utf8_does_not_end_the_service(
    served: Served, caplog: pytest.LogCaptureFixture
) -> None:
    """It ends the loop in which gRPC takes calls; a new server takes over on the same path."""
    await served.survey(sighting(1, "web"))
    for _ in range(3):
        watch = served.stub.WatchStatus(
            pb.WatchStatusRequest(resume=Cursor(journal_id=served.journal.id, revision=0)),
            wait_for_ready=True,
        )
        await anext(watch.__aiter__())
        async with asyncio.timeout(10):
            bad = wire.call(b"/a/\xff\xfe") + wire.message(b"")
            await wire.answer(served.path, wire.PREFACE + wire.settings() + bad)
            # The stream breaks, so its client knows that it must resume; nothing hangs.
            with pytest.raises(aio.AioRpcError) as broken:
                await collected(watch)
            assert broken.value.code() is grpc.StatusCode.UNAVAILABLE
            await served_again(served)
            request = pb.GetVmRequest(vm="web")
            answer = await served.stub.GetVm(request, wait_for_ready=True)
        assert answer.vm.name == "web"
        assert stat.S_IMODE(served.path.lstat().st_mode) == 0o666
        ours = [each for each in caplog.records if each.name.startswith("vmagentd")]
        assert [each.levelno for each in ours] == [logging.WARNING]  # at most one a minute
    assert not [each for each in caplog.records if each.levelno > logging.WARNING]


async def test_who_calls_meanwhile_is_told_to_ask_again(served: Served) -> None:
    """A call that has reached gRPC, and not yet us, is lost with its loop; nobody cancelled it."""
    over = asyncio.Event()
    codes: set[grpc.StatusCode] = set()

    async def call() -> None:
        async with aio.insecure_channel(f"unix:{served.path}", options=_OWN) as channel:
            stub = VmAgentServiceStub(channel)
            while not over.is_set():
                try:
                    await stub.GetHost(pb.GetHostRequest(), wait_for_ready=True)
                except aio.AioRpcError as error:
                    codes.add(error.code())

    bad = wire.PREFACE + wire.settings() + wire.call(b"/\xff") + wire.message(b"")
    async with asyncio.timeout(30), asyncio.TaskGroup() as tasks:
        for _ in range(10):
            tasks.create_task(call())
        for _ in range(10):
            with suppress(OSError):  # between two servers nobody listens
                await wire.answer(served.path, bad)
            await served_again(served)
        over.set()
    assert codes <= {grpc.StatusCode.UNAVAILABLE}


async def test_no_error_is_logged_of_text_that_is_not_utf8(
    served: Served, caplog: pytest.LogCaptureFixture
) -> None:
    """Nobody must act on what any client may send as often as it likes."""
    bad = wire.call(b"/vmagent.v1.VmAgentService/GetHost", extra=b"\xc0\xd0")
    sent = wire.PREFACE + wire.settings() + bad + wire.message(b"")
    async with asyncio.timeout(10):
        assert b"grpc-status" in await wire.answer(served.path, sent, until=b"grpc-status")
    assert not [each for each in caplog.records if each.levelno > logging.WARNING]


async def test_many_such_names_at_once_do_no_more_harm(served: Served) -> None:
    """With methods registered by name the process died here: the core wrote to freed memory."""
    bad = wire.PREFACE + wire.settings() + wire.call(b"/\xff") + wire.message(b"")

    async def attack() -> None:
        for _ in range(25):
            with suppress(OSError):  # between two servers nobody listens
                await wire.answer(served.path, bad)

    async with asyncio.timeout(30):
        await asyncio.gather(*(attack() for _ in range(8)))
        await served_again(served)


async def silence(served: Served) -> None:
    """Connect and say nothing, until one is shown out."""
    reader, writer = await asyncio.open_unix_connection(served.path)
    while await reader.read(65536):
        pass
    writer.close()


async def pings(served: Served, *, seconds: float) -> None:
    """Ping once a second, which gRPC's server by default takes for an attack at the third."""
    options = [
        ("grpc.keepalive_time_ms", 1000),
        ("grpc.keepalive_permit_without_calls", 1),
        ("grpc.http2.max_pings_without_data", 0),
    ]
    async with aio.insecure_channel(f"unix:{served.path}", options) as channel:
        untyped: Any = channel
        watch = untyped.unary_stream("/grpc.health.v1.Health/Watch")(b"").__aiter__()
        await anext(watch)
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(seconds):
                await anext(watch)


async def test_silent_clients_are_shown_out_and_those_that_ping_are_not(served: Served) -> None:
    async with asyncio.timeout(60), asyncio.TaskGroup() as tasks:
        tasks.create_task(silence(served))
        tasks.create_task(pings(served, seconds=6))


async def test_connections_leave_descriptors_for_the_journal(folder: Path) -> None:
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (200, limits[1]))
    async with AsyncExitStack() as stack:
        try:
            served = await stack.enter_async_context(serving(folder))
        finally:
            # The clients are in this process too, and need their own.
            resource.setrlimit(resource.RLIMIT_NOFILE, limits)
        refused = 0
        for _ in range(120):
            reader, writer = await asyncio.open_unix_connection(served.path)
            stack.callback(writer.close)
            refused += not await reader.read(1)
        assert refused == 20
        await served.survey(sighting(1, "web"))


async def test_a_header_that_is_too_long_is_refused(served: Served) -> None:
    call = served.stub.GetHost(pb.GetHostRequest(), metadata=(("x", "y" * 20_000),))
    with pytest.raises(aio.AioRpcError):
        await call
    await served.stub.GetHost(pb.GetHostRequest())
