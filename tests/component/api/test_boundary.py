"""What goes wrong inside a call stays there, and its client learns no more than it may."""

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import grpc
import pytest
from grpc import aio
from vmagent.v1 import vm_agent_service_pb2 as pb

from vmagentd.errors import ConfigError, VmNotFound

from . import wire
from .conftest import Setting, collected, refusal, serving, sighting
from .scripted import for_ever
from .test_operations import ACCEPTED, DONE

if TYPE_CHECKING:
    from pathlib import Path

    from .conftest import Served

START = pb.StartRequest(vm="web")


async def raise_cancelled() -> None:
    """Do as something does that waits for a task which somebody else cancels."""
    raise asyncio.CancelledError


async def listening(served: Served, count: int) -> None:
    """Wait until that many callers of operations are being served."""
    async with asyncio.timeout(10), served.operations.changed:
        await served.operations.changed.wait_for(lambda: served.operations.listening == count)


def _ours(caplog: pytest.LogCaptureFixture) -> list[logging.LogRecord]:
    """What the daemon logged; asyncio's debug mode also tells when the machine was slow."""
    return [record for record in caplog.records if record.name.startswith("vmagentd")]


@pytest.mark.parametrize("error", [ValueError("secret"), ConfigError("secret", []), KeyError(1)])
async def test_an_unexpected_error_is_a_fault_and_its_text_stays_here(
    served: Served, error: Exception, caplog: pytest.LogCaptureFixture
) -> None:
    served.operations.steps = [ACCEPTED, error]
    refused = await refusal(served.stub.Start(START))
    assert (refused.code, refused.reason) == (grpc.StatusCode.INTERNAL, "FAULT")
    assert "secret" not in str(refused)
    (record,) = _ours(caplog)
    assert record.levelno == logging.ERROR
    assert refused.facts["fault_id"] in record.getMessage()
    assert record.exc_info is not None
    assert record.exc_info[1] is error


async def test_an_inner_cancellation_is_a_fault_and_no_silence(served: Served) -> None:
    served.operations.steps = [ACCEPTED, raise_cancelled]
    async with asyncio.timeout(10):
        refused = await refusal(served.stub.Start(START))
    assert refused.reason == "FAULT"


async def test_an_inner_time_limit_is_a_fault_and_no_silence(served: Served) -> None:
    async def too_late() -> None:
        async with asyncio.timeout(0.01):
            await for_ever()

    served.operations.steps = [too_late]
    async with asyncio.timeout(10):
        assert (await refusal(served.stub.Start(START))).reason == "FAULT"


async def test_an_end_that_cannot_be_told_is_a_fault(
    served: Served, caplog: pytest.LogCaptureFixture
) -> None:
    served.operations.steps = [VmNotFound("j\udcf6rg")]  # no UTF-8
    async with asyncio.timeout(10):
        assert (await refusal(served.stub.Start(START))).reason == "FAULT"
    (record,) = _ours(caplog)
    assert record.levelno == logging.ERROR


async def test_a_refusal_that_nobody_takes_account_of_is_a_fault(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(*_: object) -> None:
        raise ValueError("secret")

    async with serving(folder, Setting(on_refusal=fail)) as served:
        served.operations.steps = [VmNotFound("web")]
        async with asyncio.timeout(10):
            refused = await refusal(served.stub.Start(START))
        assert refused.reason == "FAULT"
        assert "secret" not in str(refused)
    assert any(record.levelno == logging.ERROR for record in _ours(caplog))


async def test_a_client_that_cancels_ends_its_call_and_nothing_else(
    served: Served, caplog: pytest.LogCaptureFixture
) -> None:
    served.operations.steps = [ACCEPTED, for_ever]
    calls = [served.stub.Start(START) for _ in range(3)]
    first = calls[0].__aiter__()
    await anext(first)
    await listening(served, 3)
    calls[0].cancel()
    await listening(served, 2)
    served.operations.steps = [ACCEPTED, DONE]
    assert len(await collected(served.stub.Start(START))) == 2
    assert served.operations.listening == 2
    assert not _ours(caplog)


async def test_a_deadline_ends_the_call(served: Served) -> None:
    served.operations.steps = [ACCEPTED, for_ever]
    with pytest.raises(aio.AioRpcError) as caught:
        await collected(served.stub.Start(START, timeout=0.2))
    assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    await listening(served, 0)


async def test_a_client_that_vanishes_while_it_is_written_to(
    served: Served, caplog: pytest.LogCaptureFixture
) -> None:
    """Its call ends in silence: there is nobody to tell, and nothing a person should do."""
    # More than any buffer takes, so that writing blocks.
    served.operations.steps = [ACCEPTED] * 200_000
    reader, writer = await asyncio.open_unix_connection(served.path)
    writer.write(
        wire.PREFACE
        + wire.settings()
        + wire.call(b"/vmagent.v1.VmAgentService/Start")
        + wire.message(START.SerializeToString())
    )
    await reader.readexactly(5000)
    assert served.operations.listening == 1
    writer.transport.abort()
    await listening(served, 0)
    assert not _ours(caplog)


async def test_a_client_that_does_not_read_delays_nobody(served: Served) -> None:
    served.operations.steps = [ACCEPTED] * 20_000
    stuck = [served.stub.Start(START) for _ in range(5)]
    await asyncio.gather(*(call.wait_for_connection() for call in stuck))
    served.operations.steps = [ACCEPTED, DONE]
    async with asyncio.timeout(10):
        assert len(await collected(served.stub.Start(START))) == 2


# --- The end ----------------------------------------------------------------------------------


async def test_all_calls_end_with_shutting_down(folder: Path) -> None:
    async with serving(folder, grace=timedelta(seconds=5)) as served:
        await served.survey(sighting(1, "web"))
        served.operations.steps = [ACCEPTED, for_ever]
        calls: list[Any] = [
            served.stub.Start(START),
            served.stub.Stop(pb.StopRequest(vm="web")),
            served.stub.WatchStatus(pb.WatchStatusRequest()),
        ]
        # What is still on its way to us could not be told.
        for call in calls:
            await anext(call.__aiter__())
        ends = [asyncio.create_task(refusal(call)) for call in calls]
        before = asyncio.get_running_loop().time()
        await served.server.drain()
        assert asyncio.get_running_loop().time() - before < 4  # not the whole grace
        assert served.operations.listening == 0
        for end in ends:
            refused = await end
            assert (refused.code, refused.reason) == (
                grpc.StatusCode.UNAVAILABLE,
                "SHUTTING_DOWN",
            )
            assert "RetryInfo" in refused.details


async def test_what_ends_while_draining_is_no_fault(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A call may find what it waits for taken down before it is ended itself."""
    down = asyncio.Event()

    async def taken_down() -> None:
        try:
            await for_ever()
        finally:
            down.set()
            raise asyncio.CancelledError

    async with serving(folder) as served:
        served.operations.steps = [taken_down]
        end = asyncio.create_task(refusal(served.stub.Start(START)))
        await listening(served, 1)
        await served.server.drain()
        assert down.is_set()
        assert (await end).reason == "SHUTTING_DOWN"
    assert not _ours(caplog)


async def test_short_calls_are_given_their_time(folder: Path) -> None:
    @dataclass
    class Slow:
        """A journal's page that takes its time."""

        asked: asyncio.Event
        go: asyncio.Event

        async def transitions(self, *_: object, **__: object) -> tuple[()]:
            self.asked.set()
            await self.go.wait()
            return ()

    async with serving(folder) as served:
        slow = Slow(asyncio.Event(), asyncio.Event())
        served.journal.transitions = slow.transitions  # type: ignore[method-assign]
        answer = served.stub.ListTransitions(pb.ListTransitionsRequest())
        await slow.asked.wait()
        drained = asyncio.create_task(served.server.drain())
        # New calls are refused from now on, and this one goes on.
        await asyncio.sleep(0)
        refused = await refusal(served.stub.GetHost(pb.GetHostRequest()))
        assert refused.reason == "SHUTTING_DOWN"
        assert not drained.done()
        slow.go.set()
        assert not (await answer).transitions
        await drained


async def test_a_client_that_does_not_read_cannot_hold_the_end_up(folder: Path) -> None:
    async with serving(folder, grace=timedelta(seconds=0.2)) as served:
        served.operations.steps = [ACCEPTED] * 200_000
        reader, writer = await asyncio.open_unix_connection(served.path)
        writer.write(
            wire.PREFACE
            + wire.settings()
            + wire.call(b"/vmagent.v1.VmAgentService/Start")
            + wire.message(START.SerializeToString())
        )
        await reader.readexactly(5000)
        async with asyncio.timeout(5):
            await served.server.drain()
        assert served.operations.listening == 0
        writer.transport.abort()
