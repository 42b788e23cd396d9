"""The daemon is there, or is back, and does not go on with what it was asked."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from typing import TYPE_CHECKING

import grpc
import pytest
from vmagent.ctl.errand import Errand, Way
from vmagent.ctl.failures import ExitCode, Failure
from vmagent.ctl.targets import Daemon
from vmagent.v1.operation_pb2 import OperationPhase
from vmagent.v1.vm_agent_service_pb2 import StopRequest

from tests.component.ctl.scripted import get_operation, refuse, serving, stop_responses
from tests.component.ctl.terminal import ended, line, started, vmagentctl

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from vmagent.v1.vm_agent_service_pb2 import GetOperationRequest, StopResponse

    from tests.component.ctl.scripted import Context

ACCEPTED = OperationPhase.OPERATION_PHASE_ACCEPTED
FAILED = OperationPhase.OPERATION_PHASE_FAILED
SUCCEEDED = OperationPhase.OPERATION_PHASE_SUCCEEDED


async def goes(request: StopRequest, _context: Context) -> AsyncIterator[StopResponse]:
    """Accept, but for silent VMs, and get no further."""
    if request.vm != "silent":
        yield stop_responses(request.vm, ACCEPTED)[0]
    await asyncio.sleep(60)


async def blind(_request: StopRequest, context: Context) -> None:
    await refuse(context, grpc.StatusCode.UNAVAILABLE, "LIBVIRT_UNREACHABLE", "no libvirt")


async def forgot(_request: GetOperationRequest, context: Context) -> None:
    await refuse(context, grpc.StatusCode.NOT_FOUND, "OPERATION_NOT_FOUND", "no such")


async def test_one_that_cannot_go_on_yet_is_given_time(target: Path) -> None:
    refusals = iter(["LIBVIRT_UNREACHABLE", "LIBVIRT_UNREACHABLE", "JOURNAL_UNWRITABLE", ""])

    async def not_at_first(request: StopRequest, context: Context) -> AsyncIterator[StopResponse]:
        if reason := next(refusals):
            await refuse(context, grpc.StatusCode.UNAVAILABLE, reason, "not yet")
        for response in stop_responses(request.vm, ACCEPTED, SUCCEEDED):
            yield response

    async with (
        serving(target, Stop=goes) as server,
        started(target, "stop", "a") as process,
    ):
        await line(process.stdout)
        await server.stop(None)
        await line(process.stderr)
        async with serving(target, GetOperation=get_operation, Stop=not_at_first):
            done = await ended(process)
    assert done.code == 0
    assert done.err.splitlines() == [  # each once
        f"vmagentctl: vmagentd at unix:{target} is back, but: not yet [LIBVIRT_UNREACHABLE]",
        f"vmagentctl: vmagentd at unix:{target} is back, but: not yet [JOURNAL_UNWRITABLE]",
    ]


@pytest.mark.parametrize(
    ("name", "told"),
    [
        (
            "a",
            "no libvirt; stop operation op-of-a on a goes on when that is over; see `vmagentctl "
            "operation op-of-a`, or ask again with --request-id mine [LIBVIRT_UNREACHABLE]",
        ),
        ("silent", "no libvirt; ask again with --request-id mine [LIBVIRT_UNREACHABLE]"),
    ],
)
async def test_one_that_is_back_and_cannot_go_on_is_not_told_to_be_lost(
    target: Path, name: str, told: str
) -> None:
    begun, lost = asyncio.Event(), asyncio.Event()

    def tell(sentence: str) -> None:
        lost.set()
        if " is back, but: no libvirt" in sentence:
            way.patience = timedelta()  # it is over now

    async def stop(request: StopRequest, context: Context) -> AsyncIterator[StopResponse]:
        if request.vm == "silent":
            begun.set()
        async for response in goes(request, context):
            yield response

    async def follow(errand: Errand) -> None:
        async for _ in errand.responses():
            begun.set()

    way = Way(Daemon(target), timedelta(minutes=1), tell)
    async with serving(target, Stop=stop) as server, way:
        following = asyncio.create_task(
            follow(Errand(way, StopRequest(vm=name, request_id="mine")))
        )
        await begun.wait()
        await server.stop(None)
        await lost.wait()
        async with serving(target, GetOperation=get_operation, Stop=blind):
            with pytest.raises(Failure) as failure:
                await following
    assert (failure.value.code, str(failure.value)) == (ExitCode.FAILED, told)


async def test_one_that_refuses_is_there_for_those_whose_turn_comes_then(target: Path) -> None:
    names = [f"a{number}" for number in range(64)]
    came = asyncio.Event()

    async def not_yours(_request: GetOperationRequest, context: Context) -> None:
        await refuse(context, grpc.StatusCode.PERMISSION_DENIED, "ROLE_DENIED", "not you")

    async def comes(request: StopRequest, context: Context) -> AsyncIterator[StopResponse]:
        came.set()
        async for response in goes(request, context):
            yield response

    async with (
        serving(target, Stop=goes) as server,
        started(target, "stop", *names, "silent") as process,
    ):
        for _ in names:
            await line(process.stdout)
        await server.stop(None)
        lost = await line(process.stderr)
        async with serving(target, Stop=comes, GetOperation=not_yours) as second:
            assert await line(process.stderr) == "vmagentctl: not you [ROLE_DENIED]"
            await came.wait()
            await second.stop(None)
            # With patience of its own: it is no longer the one that was lost.
            assert await line(process.stderr) == lost


@pytest.mark.parametrize("lost", [True, False])
async def test_what_is_not_known_there_is_not_asked_for_anew(target: Path, *, lost: bool) -> None:
    asked: list[StopRequest] = []

    async def stop(request: StopRequest, context: Context) -> AsyncIterator[StopResponse]:
        asked.append(request)
        yield stop_responses(request.vm, ACCEPTED)[0]
        if not lost:
            await refuse(context, grpc.StatusCode.ABORTED, "ACCESS_CHANGED", "it has changed")
        await asyncio.sleep(60)

    async with (
        serving(target, Stop=stop, GetOperation=forgot) as server,
        started(target, "stop", "a") as process,
    ):
        await line(process.stdout)
        if lost:
            await server.stop(None)
            await line(process.stderr)
            async with serving(target, Stop=stop, GetOperation=forgot):
                done = await ended(process)
        else:
            done = await ended(process)
    assert (done.code, len(asked)) == (1, 1)
    assert done.err == (
        f"vmagentctl: vmagentd at unix:{target} {'is back and ' if lost else ''}tells nothing of "
        "stop operation op-of-a on a: you may not see this VM any more (`vmagentctl whoami`), or "
        "it has another journal; look at the VM before you ask again\n"
    )


@pytest.mark.parametrize(
    ("end", "code", "told"),
    [(SUCCEEDED, 0, ""), (FAILED, 1, "vmagentctl: the operation failed\n")],
)
@pytest.mark.parametrize(
    "why",
    [
        (grpc.StatusCode.ABORTED, "ACCESS_CHANGED"),
        (grpc.StatusCode.PERMISSION_DENIED, "ROLE_DENIED"),
        (grpc.StatusCode.UNAUTHENTICATED, "CALLER_UNKNOWN"),
    ],
)
async def test_an_end_that_was_told_stays_so_when_the_caller_may_ask_no_more(
    target: Path,
    why: tuple[grpc.StatusCode, str],
    end: OperationPhase.ValueType,
    code: int,
    told: str,
) -> None:
    asked: list[StopRequest] = []

    async def stop(request: StopRequest, context: Context) -> AsyncIterator[StopResponse]:
        asked.append(request)
        for response in stop_responses(request.vm, ACCEPTED, end):
            yield response
        await refuse(context, *why, "it has changed")

    async with serving(target, Stop=stop, GetOperation=forgot):
        done = await vmagentctl(target, "stop", "a")
    assert (done.code, done.err, len(asked)) == (code, told, 1)


async def test_who_is_refused_from_the_first_does_not_wait(target: Path) -> None:
    async with serving(target, Stop=blind):
        done = await vmagentctl(target, "stop", "a")
    assert (done.code, done.err) == (1, "vmagentctl: no libvirt [LIBVIRT_UNREACHABLE]\n")
