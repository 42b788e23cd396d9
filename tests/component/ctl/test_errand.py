"""The daemon goes away while something is done to a VM: its end is told by the next one."""

from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING

import grpc
import pytest
from vmagent.v1.operation_pb2 import OperationPhase, OperationVerb
from vmagent.v1.vm_agent_service_pb2 import RebootResponse

from tests.component.ctl.scripted import (
    UP,
    get_operation,
    listening,
    operation,
    refuse,
    serving,
    stop_responses,
    vm,
)
from tests.component.ctl.terminal import ended, line, started, vmagentctl

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable
    from pathlib import Path

    from vmagent.v1.vm_agent_service_pb2 import (
        RebootRequest,
        StopRequest,
        StopResponse,
    )

    from tests.component.ctl.scripted import Context

ACCEPTED = OperationPhase.OPERATION_PHASE_ACCEPTED
SIGNALLED = OperationPhase.OPERATION_PHASE_SIGNALLED
FORCING = OperationPhase.OPERATION_PHASE_FORCING
SUCCEEDED = OperationPhase.OPERATION_PHASE_SUCCEEDED
FAILED = OperationPhase.OPERATION_PHASE_FAILED


class Daemons:
    """Daemons at one socket, one after another: how each carries out a stop."""

    def __init__(self, target: Path) -> None:
        self.target = target
        self.asked: list[StopRequest] = []
        self.came = asyncio.Event()

    def stops(
        self, *phases: OperationPhase.ValueType, stays: bool = False
    ) -> dict[str, Callable[..., object]]:
        """Return the methods of one that goes through these phases, and perhaps stays there."""

        async def stop(request: StopRequest, _context: Context) -> AsyncIterator[StopResponse]:
            self.asked.append(request)
            self.came.set()
            for response in stop_responses(request.vm, *phases):
                yield response
            if stays:
                await asyncio.sleep(60)

        return {"Stop": stop, "GetOperation": get_operation}


@pytest.fixture
def daemons(target: Path) -> Daemons:
    return Daemons(target)


async def test_the_next_daemon_is_asked_the_same_and_tells_the_end(daemons: Daemons) -> None:
    async with (
        serving(daemons.target, **daemons.stops(ACCEPTED, SIGNALLED, stays=True)) as server,
        started(daemons.target, "stop", "a") as process,
    ):
        told = [await line(process.stdout), await line(process.stdout)]
        await server.stop(None)
        assert await line(process.stderr) == (
            f"vmagentctl: lost vmagentd at unix:{daemons.target}; waiting for it up to 1m"
        )
        phases = (ACCEPTED, SIGNALLED, FORCING, SUCCEEDED)
        async with serving(daemons.target, **daemons.stops(*phases)):
            done = await ended(process)
    assert [*told, *done.out.splitlines()] == [
        "a: stop accepted, operation op-of-a",
        "a: guest asked to shut down",
        "a: forcing it off",
        "a: RUNNING (booted)",
    ]
    assert (done.code, done.err) == (0, "")
    first, second = daemons.asked
    assert first == second
    assert first.request_id


async def test_json_is_the_last_answer_only(daemons: Daemons) -> None:
    async with (
        serving(daemons.target, **daemons.stops(ACCEPTED, stays=True)) as server,
        started(daemons.target, "stop", "a", "-o", "json") as process,
    ):
        await daemons.came.wait()
        await server.stop(None)
        await line(process.stderr)
        async with serving(daemons.target, **daemons.stops(ACCEPTED, FAILED)):
            done = await ended(process)
    assert json.loads(done.out)["operation"]["phase"] == "OPERATION_PHASE_FAILED"
    assert done.code == 1


async def test_one_that_ends_as_it_is_asked_is_waited_for_too(daemons: Daemons) -> None:
    async def refuses(_request: StopRequest, context: Context) -> None:
        await refuse(context, grpc.StatusCode.UNAVAILABLE, "SHUTTING_DOWN", "it ends")

    async with (
        serving(daemons.target, Stop=refuses) as server,
        started(daemons.target, "stop", "a") as process,
    ):
        assert "waiting for it" in await line(process.stderr)
        await server.stop(None)
        async with serving(daemons.target, **daemons.stops(ACCEPTED, SUCCEEDED)):
            done = await ended(process)
    assert (done.code, done.err) == (0, "")


async def test_one_that_goes_away_before_it_said_a_word(daemons: Daemons) -> None:
    async with (
        serving(daemons.target, **daemons.stops(stays=True)) as server,
        started(daemons.target, "stop", "a") as process,
    ):
        await daemons.came.wait()
        await server.stop(None)
        assert "waiting for it" in await line(process.stderr)
        async with serving(daemons.target, **daemons.stops(ACCEPTED, SUCCEEDED)):
            done = await ended(process)
    assert (done.code, done.err) == (0, "")


async def test_several_vms_wait_together(daemons: Daemons) -> None:
    async with (
        serving(daemons.target, **daemons.stops(ACCEPTED, stays=True)) as server,
        started(daemons.target, "stop", "a", "b") as process,
    ):
        await line(process.stdout)
        await line(process.stdout)
        await server.stop(None)
        await line(process.stderr)
        async with serving(daemons.target, **daemons.stops(ACCEPTED, SUCCEEDED)):
            done = await ended(process)
    assert (done.code, done.err, len(done.out.splitlines())) == (0, "", 2)
    assert len({request.request_id for request in daemons.asked}) == 2


async def test_when_patience_is_over_it_tells_how_to_go_on(daemons: Daemons) -> None:
    options = ("--reconnect-timeout", "1s", "--request-id", "mine")
    async with (
        serving(daemons.target, **daemons.stops(ACCEPTED, SIGNALLED, stays=True)) as server,
        started(daemons.target, "stop", "a", *options) as process,
    ):
        await line(process.stdout)
        await line(process.stdout)
        await server.stop(None)
        done = await ended(process)
    assert done.code == 4
    waiting, sentence = done.err.splitlines()
    assert waiting.endswith("; waiting for it up to 1s")
    assert sentence == (
        f"vmagentctl: lost vmagentd at unix:{daemons.target} during stop operation op-of-a on a, "
        "which goes on when vmagentd is back: see `vmagentctl operation op-of-a`, or ask again "
        "with --request-id mine"
    )


@pytest.mark.parametrize("told", [(), (ACCEPTED,)])
async def test_a_socket_that_systemd_holds_is_no_daemon_yet(
    daemons: Daemons, told: tuple[OperationPhase.ValueType, ...]
) -> None:
    async with (
        serving(daemons.target, **daemons.stops(*told, stays=True)) as server,
        started(daemons.target, "stop", "a", "--reconnect-timeout", "2s") as process,
    ):
        await daemons.came.wait()
        for _ in told:
            await line(process.stdout)
        await server.stop(None)
        daemons.target.unlink(missing_ok=True)
        with listening(daemons.target):
            done = await ended(process)
    assert done.code == 4
    what = "during stop operation op-of-a on a" if told else "before it told what becomes of a"
    assert what in done.err.splitlines()[1]


async def test_nobody_waits_who_does_not_want_to(daemons: Daemons) -> None:
    async with (
        serving(daemons.target, **daemons.stops(ACCEPTED, stays=True)) as server,
        started(daemons.target, "stop", "a", "--reconnect-timeout", "0s") as process,
    ):
        await line(process.stdout)
        await server.stop(None)
        done = await ended(process)
    assert done.code == 4
    assert "during stop operation op-of-a on a" in done.err
    assert done.err.count("\n") == 1


async def test_those_whose_turn_had_not_come_do_not_wait_anew(daemons: Daemons) -> None:
    names = [f"a{number}" for number in range(66)]
    async with (
        serving(daemons.target, **daemons.stops(ACCEPTED, stays=True)) as server,
        started(daemons.target, "stop", *names, "--reconnect-timeout", "0s") as process,
    ):
        for _ in range(64):
            await line(process.stdout)
        await server.stop(None)
        done = await ended(process)
    told = done.err.splitlines()
    assert (done.code, len(told), len(daemons.asked)) == (4, 65, 64)
    assert sum(each.endswith("; it was not asked for other VMs") for each in told) == 1


async def test_a_reboot_is_not_promised_to_go_on(target: Path) -> None:
    async def reboot(_request: RebootRequest, _context: Context) -> AsyncIterator[RebootResponse]:
        under_way = operation("a", ACCEPTED, verb=OperationVerb.OPERATION_VERB_REBOOT)
        yield RebootResponse(operation=under_way, vm=vm("a"), link=UP)
        await asyncio.sleep(60)

    async with (
        serving(target, Reboot=reboot) as server,
        started(target, "reboot", "a", "--reconnect-timeout", "0s") as process,
    ):
        await line(process.stdout)
        await server.stop(None)
        done = await ended(process)
    assert done.code == 4
    assert "reboot operation op-of-a on a, which is settled when vmagentd is back" in done.err


@pytest.mark.parametrize(("phase", "code"), [(SUCCEEDED, 0), (FAILED, 1)])
async def test_an_end_that_was_told_is_the_end(
    daemons: Daemons, phase: OperationPhase.ValueType, code: int
) -> None:
    async with (
        serving(daemons.target, **daemons.stops(ACCEPTED, phase, stays=True)) as server,
        started(daemons.target, "stop", "a", "-o", "jsonl") as process,
    ):
        await line(process.stdout)
        await line(process.stdout)
        await server.stop(None)
        done = await ended(process)
    assert done.code == code
    assert "lost" not in done.err


async def test_where_nobody_ever_was_nobody_is_waited_for(target: Path) -> None:
    done = await vmagentctl(target, "stop", "a", "b")
    assert done.code == 4
    assert done.err.count("\n") == 1
    assert "there is no such socket; start vmagentd" in done.err
