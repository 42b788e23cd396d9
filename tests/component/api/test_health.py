"""The standard services: health, reflection and channelz."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import grpc
import pytest
from grpc import aio
from grpc_channelz.v1 import channelz_pb2, channelz_pb2_grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from . import wire
from .conftest import refusal

if TYPE_CHECKING:
    from .conftest import Served

SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING
SERVICE_UNKNOWN = health_pb2.HealthCheckResponse.SERVICE_UNKNOWN


def health(served: Served) -> Any:  # noqa: ANN401  # its stubs know no asynchronous one
    return health_pb2_grpc.HealthStub(served.channel)


@pytest.mark.parametrize("name", ["", "vmagent.v1.VmAgentService"])
async def test_calls_are_served_while_the_server_is_there(served: Served, name: str) -> None:
    request = health_pb2.HealthCheckRequest(service=name)
    assert (await health(served).Check(request)).status == SERVING


@pytest.mark.parametrize("name", ["libvirt", "journal"])
async def test_what_is_below_is_not_healthy_until_somebody_says_so(
    served: Served, name: str
) -> None:
    request = health_pb2.HealthCheckRequest(service=name)
    for serving in (False, True, False):
        served.server.set_health(name, serving=serving)
        expected = SERVING if serving else NOT_SERVING
        assert (await health(served).Check(request)).status == expected


async def test_an_unknown_name(served: Served) -> None:
    request = health_pb2.HealthCheckRequest(service="nonsense")
    with pytest.raises(aio.AioRpcError) as caught:
        await health(served).Check(request)
    assert caught.value.code() is grpc.StatusCode.NOT_FOUND
    watch = health(served).Watch(request).__aiter__()
    assert (await anext(watch)).status == SERVICE_UNKNOWN
    with pytest.raises(KeyError):
        served.server.set_health("nonsense", serving=True)


async def test_watchers_do_not_depend_on_each_other(served: Served) -> None:
    request = health_pb2.HealthCheckRequest(service="libvirt")
    calls = [health(served).Watch(request) for _ in range(3)]
    watches = [call.__aiter__() for call in calls]
    for watch in watches:
        assert (await anext(watch)).status == NOT_SERVING
    calls[0].cancel()
    with pytest.raises(asyncio.CancelledError):
        await anext(watches[0])
    served.server.set_health("libvirt", serving=True)
    for watch in watches[1:]:
        assert (await anext(watch)).status == SERVING


async def test_a_watcher_that_takes_nothing_blocks_nobody(served: Served) -> None:
    reader, writer = await asyncio.open_unix_connection(served.path)
    # A window of 0: not one byte may be sent to it.
    writer.write(
        wire.PREFACE
        + wire.settings((wire.INITIAL_WINDOW_SIZE, 0))
        + wire.call(b"/grpc.health.v1.Health/Watch")
        + wire.message(health_pb2.HealthCheckRequest(service="libvirt").SerializeToString())
    )
    await reader.read(65536)
    request = health_pb2.HealthCheckRequest(service="libvirt")
    watch = health(served).Watch(request).__aiter__()
    assert (await anext(watch)).status == NOT_SERVING
    served.server.set_health("libvirt", serving=True)
    assert (await anext(watch)).status == SERVING
    writer.close()


async def test_the_end_ends_watchers_of_health_too(served: Served) -> None:
    watch = health(served).Watch(health_pb2.HealthCheckRequest())
    assert (await anext(watch.__aiter__())).status == SERVING
    await served.server.drain()
    assert (await refusal(watch)).reason == "SHUTTING_DOWN"


async def test_reflection_lists_what_is_served(served: Served) -> None:
    channel: Any = served.channel
    stub: Any = reflection_pb2_grpc.ServerReflectionStub(channel)
    call = stub.ServerReflectionInfo()
    await call.write(reflection_pb2.ServerReflectionRequest(list_services=""))
    answer = await call.read()
    assert {each.name for each in answer.list_services_response.service} == {
        "vmagent.v1.VmAgentService",
        "grpc.health.v1.Health",
        "grpc.reflection.v1alpha.ServerReflection",
        "grpc.channelz.v1.Channelz",
    }
    await call.write(
        reflection_pb2.ServerReflectionRequest(file_containing_symbol="vmagent.v1.VmAgentService")
    )
    assert (await call.read()).file_descriptor_response.file_descriptor_proto
    await call.done_writing()


async def test_reflection_refuses_garbage_like_all_else(served: Served) -> None:
    method = "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo"
    channel: Any = served.channel
    call = channel.stream_stream(method)()
    await call.write(b"\xff\xff")
    refused = await refusal(call.read())
    assert refused.reason == "MALFORMED_REQUEST"


def channelz(served: Served) -> Any:  # noqa: ANN401  # its stubs know no asynchronous one
    return channelz_pb2_grpc.ChannelzStub(served.channel)  # type: ignore[arg-type]


async def test_channelz_knows_the_server_and_its_connections(served: Served) -> None:
    servers = (await channelz(served).GetServers(channelz_pb2.GetServersRequest())).server
    (ours,) = [server for server in servers if server.data.calls_started]
    sockets = await channelz(served).GetServerSockets(
        channelz_pb2.GetServerSocketsRequest(server_id=ours.ref.server_id)
    )
    assert sockets.socket_ref


async def test_channelz_of_what_is_not_there(served: Served) -> None:
    with pytest.raises(aio.AioRpcError) as caught:
        await channelz(served).GetServer(channelz_pb2.GetServerRequest(server_id=1 << 40))
    assert caught.value.code() is grpc.StatusCode.NOT_FOUND
    await channelz(served).GetServers(channelz_pb2.GetServersRequest())
