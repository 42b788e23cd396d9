"""Whatever a client sends, it is told which field is wrong, and others notice nothing."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import grpc
import pytest
from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp
from vmagent.v1 import vm_agent_service_pb2 as pb
from vmagent.v1.transition_pb2 import Cursor

from . import wire
from .conftest import refusal, sighting, uuid

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from google.protobuf.message import Message

    from .conftest import Served

SERVICE = "/vmagent.v1.VmAgentService/"
METHODS = [method.name for method in pb.DESCRIPTOR.services_by_name["VmAgentService"].methods]
STREAMING = {"Start", "Stop", "WatchStatus"}


@pytest.fixture(autouse=True)
async def goes_on_serving(served: Served) -> AsyncIterator[None]:
    """After each test here: a watch that was there before goes on, and new calls are answered."""
    await served.survey(sighting(1, "web"))
    watch = served.stub.WatchStatus(pb.WatchStatusRequest()).__aiter__()
    while not (await anext(watch)).HasField("snapshot_end"):
        pass
    yield
    await served.survey(sighting(1, "web"), sighting(2, "afterwards"))
    while not (await anext(watch)).transitions:
        pass
    assert (await served.stub.GetVm(pb.GetVmRequest(vm="afterwards"))).vm.uuid == uuid(2)


def raw_call(served: Served, method: str, raw: bytes) -> Any:  # noqa: ANN401  # any kind of call
    """Call *method* with bytes in place of a request."""
    channel: Any = served.channel
    make = channel.unary_stream if method in STREAMING else channel.unary_unary
    return make(SERVICE + method)(raw)


@pytest.mark.parametrize(
    ("field", "method", "request_"),
    [
        ("vm", "Start", pb.StartRequest()),
        ("vm", "Start", pb.StartRequest(vm="a" * 256)),
        ("vm", "Stop", pb.StopRequest(vm="ä" * 128)),
        ("vm", "GetVm", pb.GetVmRequest(vm="a\0")),
        ("vm", "ListTransitions", pb.ListTransitionsRequest(vm="a\n")),
        ("vms[2]", "WatchStatus", pb.WatchStatusRequest(vms=["a", "b", ""])),
        ("vms", "WatchStatus", pb.WatchStatusRequest(vms=["a"] * 1001)),
        ("name_glob", "ListVms", pb.ListVmsRequest(name_glob="*" * 256)),
        ("request_id", "Start", pb.StartRequest(vm="web", request_id="ä")),
        ("timeout", "Start", pb.StartRequest(vm="web", timeout=Duration(seconds=-1))),
        ("timeout", "Start", pb.StartRequest(vm="web", timeout=Duration())),
        ("timeout", "Start", pb.StartRequest(vm="web", timeout=Duration(seconds=2**62))),
        ("timeout", "Start", pb.StartRequest(vm="web", timeout=Duration(seconds=9, nanos=-1))),
        ("grace_period", "Stop", pb.StopRequest(vm="web", grace_period=Duration(nanos=-5))),
        ("grace_period", "Stop", pb.StopRequest(vm="web", grace_period=Duration(seconds=3601))),
        (
            "heartbeat_interval",
            "WatchStatus",
            pb.WatchStatusRequest(heartbeat_interval=Duration(nanos=1)),
        ),
        ("mode", "Stop", pb.StopRequest(vm="web", mode=99)),  # type: ignore[arg-type]
        (
            "on_grace_expired",
            "Stop",
            pb.StopRequest(vm="web", on_grace_expired=-1),  # type: ignore[arg-type]
        ),
        ("states[0]", "ListVms", pb.ListVmsRequest(states=[99])),  # type: ignore[list-item]
        ("resume.journal_id", "WatchStatus", pb.WatchStatusRequest(resume=Cursor(revision=1))),
        ("resume.journal_id", "WatchStatus", pb.WatchStatusRequest(resume=Cursor())),
        (
            "resume.revision",
            "WatchStatus",
            pb.WatchStatusRequest(resume=Cursor(journal_id=uuid(1), revision=-1)),
        ),
        ("page_size", "ListVms", pb.ListVmsRequest(page_size=-1)),
        ("page_size", "ListTransitions", pb.ListTransitionsRequest(page_size=1001)),
        ("page_token", "ListVms", pb.ListVmsRequest(page_token="garbage")),
        ("page_token", "ListTransitions", pb.ListTransitionsRequest(page_token="Z" * 9999)),
        (
            "min_revision",
            "ListTransitions",
            pb.ListTransitionsRequest(min_revision=2, max_revision=1),
        ),
        ("operation_id", "GetOperation", pb.GetOperationRequest()),
        ("operation_id", "GetOperation", pb.GetOperationRequest(operation_id="0123abcd")),
        ("vm", "ListOperations", pb.ListOperationsRequest(vm="a\n")),
        ("actor", "ListOperations", pb.ListOperationsRequest(actor="a" * 256)),
        (
            "phases[1]",
            "ListOperations",
            pb.ListOperationsRequest(phases=[1, 99]),  # type: ignore[list-item]
        ),
        ("verbs[0]", "ListOperations", pb.ListOperationsRequest(verbs=[0])),  # type: ignore[list-item]
        (
            "outcomes[0]",
            "ListOperations",
            pb.ListOperationsRequest(outcomes=[-1]),  # type: ignore[list-item]
        ),
        (
            "min_accept_time",
            "ListOperations",
            pb.ListOperationsRequest(
                min_accept_time=Timestamp(seconds=2), max_accept_time=Timestamp(seconds=1)
            ),
        ),
        (
            "max_accept_time",
            "ListOperations",
            pb.ListOperationsRequest(max_accept_time=Timestamp(nanos=-1)),
        ),
        ("page_size", "ListOperations", pb.ListOperationsRequest(page_size=-1)),
        ("page_token", "ListOperations", pb.ListOperationsRequest(page_token="garbage")),
    ],
)
async def test_the_field_is_named(
    served: Served, field: str, method: str, request_: Message
) -> None:
    refused = await refusal(getattr(served.stub, method)(request_))
    assert refused.code is grpc.StatusCode.INVALID_ARGUMENT
    assert (refused.reason, refused.fields) == ("INVALID_FIELD", [field])
    assert refused.facts == {"field": field}
    assert refused.message.startswith(f"{field}: ")
    assert not served.operations.asked


@pytest.mark.parametrize(
    ("field", "method", "raw"),
    [
        ("vm", "Start", b"\x0a\x02\xff\xfe"),
        ("request_id", "Stop", b"\x0a\x03web\x12\x01\xff"),
        ("vms[1]", "WatchStatus", b"\x0a\x01a\x0a\x01\xff"),
        ("resume.journal_id", "WatchStatus", b"\x12\x03\x0a\x01\xff"),
        ("vm", "GetVm", b"\x0a\x01\x80"),
        ("operation_id", "GetOperation", b"\x0a\x01\x80"),
    ],
)
async def test_a_text_that_is_not_utf8_is_named(
    served: Served, field: str, method: str, raw: bytes
) -> None:
    refused = await refusal(raw_call(served, method, raw))
    assert (refused.reason, refused.fields) == ("INVALID_FIELD", [field])


@pytest.mark.parametrize("method", METHODS)
async def test_bytes_that_are_no_message(served: Served, method: str) -> None:
    refused = await refusal(raw_call(served, method, b"\xff\xff\xff"))
    assert refused.code is grpc.StatusCode.INVALID_ARGUMENT
    assert refused.reason == "MALFORMED_REQUEST"
    assert refused.facts == {"expected": f"vmagent.v1.{method}Request"}


@pytest.mark.parametrize("method", METHODS)
async def test_a_call_without_a_message(served: Served, method: str) -> None:
    channel: Any = served.channel
    call = channel.stream_stream(SERVICE + method)()
    await call.done_writing()
    refused = await refusal(call)
    assert refused.reason == "MALFORMED_REQUEST"


@pytest.mark.parametrize("method", METHODS)
async def test_a_hundred_megabytes(served: Served, method: str) -> None:
    # gRPC itself answers, before it is all there; only that its status has no reason.
    call = raw_call(served, method, bytes(100_000_000))
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await (anext(call.__aiter__()) if method in STREAMING else call)
    assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert "larger than max" in (caught.value.details() or "")


async def test_the_longest_request_that_makes_sense_is_taken(served: Served) -> None:
    vms = [f"{n:0>255}" for n in range(1000)]
    watch = served.stub.WatchStatus(pb.WatchStatusRequest(vms=vms)).__aiter__()
    assert (await anext(watch)).HasField("snapshot_end")


@pytest.mark.parametrize(
    "method",
    [
        SERVICE + "Nonsense",
        SERVICE,
        "/vmagent.v1.Nonsense/Start",
        "/",
        "/" + "x" * 5000,
    ],
)
async def test_what_is_not_served(served: Served, method: str) -> None:
    channel: Any = served.channel
    for make in (channel.unary_unary, channel.unary_stream):
        refused = await refusal(make(method)(b""))
        assert (refused.code, refused.reason) == (
            grpc.StatusCode.UNIMPLEMENTED,
            "NOT_SERVED",
        )


@pytest.mark.parametrize(
    "garbage",
    [
        b"",
        b"\n",
        b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
        b"\x00" * 10_000,
        wire.PREFACE + b"\xff" * 1000,
        wire.PREFACE + wire.settings() + wire.frame(wire.DATA, 0, 1, b"x"),
        wire.PREFACE + wire.settings() + wire.frame(wire.HEADERS, 4, 1, b"\xff" * 100),
        wire.PREFACE + wire.settings() + wire.call(b"/x")[:-5],
    ],
)
async def test_garbage_on_the_socket(served: Served, garbage: bytes) -> None:
    reader, writer = await asyncio.open_unix_connection(served.path)
    writer.write(garbage)
    writer.write_eof()
    async with asyncio.timeout(10):
        with suppress(ConnectionResetError):
            while await reader.read(65536):
                pass
    writer.close()


async def test_a_client_that_vanishes_while_it_watches(
    served: Served, caplog: pytest.LogCaptureFixture
) -> None:
    for _ in range(20):
        reader, writer = await asyncio.open_unix_connection(served.path)
        writer.write(
            wire.PREFACE
            + wire.settings()
            + wire.call(SERVICE.encode() + b"WatchStatus")
            + wire.message(b"")
        )
        while b"web" not in await reader.read(65536):
            pass
        writer.transport.abort()
    await served.survey(sighting(1, "web"), sighting(2, "afterwards"), sighting(3, "more"))
    ours = [record for record in caplog.records if record.name.startswith("vmagentd")]
    assert not [record for record in ours if record.levelname in {"ERROR", "WARNING"}]
