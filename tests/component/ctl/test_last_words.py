"""Whoever leaves before the end is told what goes on without him."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest
from vmagent.v1.operation_pb2 import OperationPhase, OperationVerb
from vmagent.v1.vm_agent_service_pb2 import StartResponse

from tests.component.ctl.scripted import UP, operation, serving, stop_responses, vm
from tests.component.ctl.terminal import DEADLINE_S, ended, line, started

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from vmagent.v1.vm_agent_service_pb2 import StartRequest, StopRequest, StopResponse

    from tests.component.ctl.scripted import Context

ACCEPTED = OperationPhase.OPERATION_PHASE_ACCEPTED
START = OperationVerb.OPERATION_VERB_START


async def stop(request: StopRequest, _context: Context) -> AsyncIterator[StopResponse]:
    """Never ends; one of silent VMs does not even begin."""
    if not request.vm.startswith("silent"):
        yield stop_responses(request.vm, ACCEPTED)[0]
    await asyncio.sleep(60)


async def start(request: StartRequest, _context: Context) -> AsyncIterator[StartResponse]:
    accepted = operation(request.vm, ACCEPTED, verb=START)
    yield StartResponse(operation=accepted, vm=vm(request.vm), link=UP)
    await asyncio.sleep(60)


async def test_what_was_accepted_goes_on(target: Path) -> None:
    async with serving(target, Stop=stop), started(target, "stop", "a") as process:
        await line(process.stdout)
        process.send_signal(signal.SIGINT)
        done = await ended(process)
    assert done.code == 130
    assert done.err == "vmagentctl: operation op-of-a on a goes on in the daemon\n"


@pytest.mark.parametrize(
    ("verb", "future"),
    [("stop", "goes on when vmagentd is back"), ("start", "is settled when vmagentd is back")],
)
async def test_while_the_daemon_is_away_no_start_is_promised(
    target: Path, verb: str, future: str
) -> None:
    async with (
        serving(target, Stop=stop, Start=start) as server,
        started(target, verb, "a") as process,
    ):
        await line(process.stdout)
        await server.stop(None)
        await line(process.stderr)
        process.send_signal(signal.SIGINT)
        done = await ended(process)
    assert (done.code, done.err) == (130, f"vmagentctl: operation op-of-a on a {future}\n")


async def test_what_was_not_accepted_has_a_request_id(target: Path) -> None:
    arguments = ("stop", "silent", "--request-id", "mine")
    came = asyncio.Event()

    async def comes(request: StopRequest, context: Context) -> AsyncIterator[StopResponse]:
        came.set()
        async for response in stop(request, context):
            yield response

    async with serving(target, Stop=comes) as server, started(target, *arguments) as process:
        await came.wait()
        await server.stop(None)
        await line(process.stderr)
        process.send_signal(signal.SIGINT)
        done = await ended(process)
    assert (done.code, done.err) == (
        130,
        "vmagentctl: vmagentd has not told what becomes of silent; ask again with --request-id "
        "mine\n",
    )


async def test_those_whose_turn_had_not_come_are_named(target: Path) -> None:
    names = [f"a{number}" for number in range(66)]
    async with serving(target, Stop=stop), started(target, "stop", *names) as process:
        for _ in range(64):
            await line(process.stdout)
        process.send_signal(signal.SIGINT)
        done = await ended(process)
    told = done.err.splitlines()
    assert len(told) == 65
    assert told[-1] == "vmagentctl: vmagentd was not asked for a64, a65"


async def test_a_full_disk_ends_no_operation(target: Path) -> None:
    def stop_two() -> subprocess.CompletedProcess[str]:
        with open("/dev/full", "w") as full:  # noqa: PTH123
            return subprocess.run(
                [sys.executable, "-m", "vmagent.ctl", "stop", "a", "silent"],
                stdout=full,
                stderr=subprocess.PIPE,
                text=True,
                env=os.environ | {"VMAGENTD_TARGET": f"unix:{target}"},
                timeout=DEADLINE_S,
                check=False,
            )

    async with serving(target, Stop=stop):
        done = await asyncio.to_thread(stop_two)
    assert done.returncode == 1
    problem, goes_on, unknown = done.stderr.splitlines()
    assert problem == "vmagentctl: cannot write the answer: No space left on device"
    assert goes_on == "vmagentctl: operation op-of-a on a goes on in the daemon"
    assert unknown.startswith("vmagentctl: vmagentd has not told what becomes of silent; ask ")
