"""A call is under way until its client has its answer, and nobody has more of them than he may."""

from __future__ import annotations

import asyncio
import struct
from contextlib import asynccontextmanager
from datetime import timedelta
from functools import partial
from typing import TYPE_CHECKING

import pytest
from vmagent.v1 import vm_agent_service_pb2 as pb

from vmagentd.api import convert
from vmagentd.api.limits import CallerLimits
from vmagentd.model import Grant, Role, Rule

from . import wire
from .conftest import Setting, refusal, serving, sighting
from .test_gate import until
from .test_operations import DONE
from .users import needs_root, sending, visit

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from .conftest import Served

WHOAMI = b"/vmagent.v1.VmAgentService/WhoAmI"
LIST_VMS = b"/vmagent.v1.VmAgentService/ListVms"
WATCH_STATUS = b"/vmagent.v1.VmAgentService/WatchStatus"

# What a user says on one connection, which he leaves open.
SAYS = """
import os, socket, sys
path, uid, said = sys.argv[1], int(sys.argv[2]), bytes.fromhex(sys.argv[3])
os.setgroups([]); os.setgid(65534); os.setuid(uid)
with socket.socket(socket.AF_UNIX) as made:
    made.connect(path)
    made.sendall(said)
    print("sent", flush=True)
    sys.stdin.read()
"""


def held(count: int) -> bytes:
    """Calls whose request never comes."""
    calls = (wire.call(WHOAMI, stream=2 * number + 1) for number in range(count))
    return wire.PREFACE + wire.settings() + b"".join(calls)


def unanswered(method: bytes = WHOAMI) -> bytes:
    """A call for whose answer there is no room."""
    preface = wire.PREFACE + wire.settings((wire.INITIAL_WINDOW_SIZE, 0))
    return preface + wire.call(method) + wire.message(b"")


@asynccontextmanager
async def said(served: Served, what: bytes) -> AsyncIterator[asyncio.StreamReader]:
    """A connection of ours on which that was said."""
    reader, writer = await asyncio.open_unix_connection(served.path)
    try:
        writer.write(what)
        yield reader
    finally:
        writer.transport.abort()


async def test_so_many_calls_at_a_time_and_no_more(folder: Path) -> None:
    async with serving(folder, Setting(limits=CallerLimits(calls_at_once=3, streams=1))) as served:
        async with said(served, held(3)):
            await until(lambda: len(served.server._boundary.calls) == 3)
            told = await refusal(served.stub.WhoAmI(pb.WhoAmIRequest()))
            assert (told.reason, told.facts["limit"]) == ("LIMIT_REACHED", "calls at a time")
            assert told.facts["allowed"] == "3"
            # they are counted each by itself
            watch = served.stub.WatchStatus(pb.WatchStatusRequest())
            await anext(watch.__aiter__())
        await until(lambda: len(served.server._boundary.calls) == 1)
        await served.stub.WhoAmI(pb.WhoAmIRequest())


@pytest.mark.parametrize("method", [WHOAMI, LIST_VMS])
async def test_an_answer_that_is_not_taken_counts(folder: Path, method: bytes) -> None:
    async with serving(folder, Setting(limits=CallerLimits(calls_at_once=1))) as served:
        async with said(served, unanswered(method)):
            calls = served.server._boundary.calls
            await until(lambda: calls.begun == 1 and not [*calls])  # answered
            told = await refusal(served.stub.WhoAmI(pb.WhoAmIRequest()))
            assert told.facts["limit"] == "calls at a time"
        await until(lambda: not len(calls))
        await served.stub.WhoAmI(pb.WhoAmIRequest())


async def test_answers_that_are_not_taken_are_so_long_and_no_longer(folder: Path) -> None:
    limits = CallerLimits(untaken_bytes=100_000)
    async with serving(folder, Setting(limits=limits)) as served:
        await served.survey(*(sighting(number, "x" * 200 + str(number)) for number in range(200)))
        async with said(served, unanswered(LIST_VMS)):
            calls = served.server._boundary.calls
            await until(lambda: calls.begun == 1 and not [*calls])
            told = await refusal(served.stub.ListVms(pb.ListVmsRequest()))
            assert told.facts["limit"] == "MiB of answers that are not taken"
            await served.stub.WhoAmI(pb.WhoAmIRequest())
        await until(lambda: not len(calls))
        assert len((await served.stub.ListVms(pb.ListVmsRequest())).vms) == 200


async def test_what_was_done_is_told_however_much_is_not_taken(folder: Path) -> None:
    setting = Setting(limits=CallerLimits(untaken_bytes=1))
    async with serving(folder, setting) as served:
        served.operations.cancels = DONE
        told = await refusal(served.stub.WhoAmI(pb.WhoAmIRequest()))
        assert told.facts["limit"] == "MiB of answers that are not taken"
        request = pb.CancelOperationRequest(operation_id=DONE.id)
        answer = await served.stub.CancelOperation(request)
        assert answer.operation == convert.operation(DONE)
        assert served.operations.cancelled == [DONE.id]
        assert [method for _, _, method, _ in setting.refusals] == [WHOAMI.decode()]


async def test_who_does_not_take_an_answer_loses_his_connection(folder: Path) -> None:
    limits = CallerLimits(stall_timeout=timedelta(seconds=0.1))
    async with serving(folder, Setting(limits=limits)) as served:
        async with said(served, unanswered()) as reader, asyncio.timeout(20):
            await reader.read()  # to its end
        await until(lambda: not len(served.server._boundary.calls))


async def test_who_takes_his_answer_piece_by_piece_keeps_it(folder: Path) -> None:
    piece = struct.pack(">I", 16 * 1024)
    room = b"".join(wire.frame(wire.WINDOW_UPDATE, 0, stream, piece) for stream in (0, 1))

    async with serving(folder) as served:
        await served.survey(*(sighting(number, "x" * 200 + str(number)) for number in range(600)))
        calls, now = served.server._boundary.calls, asyncio.get_running_loop().time
        reader, writer = await asyncio.open_unix_connection(served.path)
        writer.write(unanswered(LIST_VMS))
        await until(lambda: calls.begun == 1 and not [*calls])

        def takes(since: float) -> bool:
            """Return whether he would keep it if he may take nothing for no longer than that."""
            served.gate.tidy()
            present = now()
            return not calls.stuck(
                present, patience_s=present - since, most=9, flowed=served.gate.flowed
            )

        answered = now()
        writer.write(wire.frame(wire.PING, 0, 0, b"still up"))
        await reader.readuntil(b"still up")
        assert not takes(answered)
        came = b""
        while b"grpc-status" not in came:
            before = now()
            writer.write(room)
            came += await reader.read(65536)
            if len(calls):
                await until(partial(takes, before))
        writer.close()
        await until(lambda: not len(calls))


async def test_who_takes_no_refusals_loses_his_connection(folder: Path) -> None:
    """They are no calls that he may have, and as large."""
    limits = CallerLimits(streams=1, calls_at_once=1)
    async with serving(folder, Setting(limits=limits)) as served:
        _, writer = await asyncio.open_unix_connection(served.path, limit=1)  # reads once
        calls = (wire.call(b"/x/Y", stream=2 * number + 1, end=True) for number in range(2000))
        writer.write(wire.PREFACE + wire.settings() + b"".join(calls))
        await until(lambda: served.server._boundary.calls.begun)
        await until(lambda: not len(served.gate))
        await until(lambda: not len(served.server._boundary.calls))
        writer.transport.abort()


async def test_nobody_who_is_being_written_to_leaves_too_much(folder: Path) -> None:
    """He may have had more than the limits that hold now; each of them has its own time."""
    async with serving(folder) as served:
        await served.survey(*(sighting(number, "x" * 200 + str(number)) for number in range(600)))
        watches = (
            wire.call(WATCH_STATUS, stream=stream) + wire.message(b"", stream=stream)
            for stream in (1, 3, 5)
        )
        opening = wire.PREFACE + wire.settings((wire.INITIAL_WINDOW_SIZE, 0))
        async with said(served, opening + b"".join(watches)):
            boundary = served.server._boundary
            await until(lambda: sum(call.given is not None for call in boundary.calls) == 3)
            served.server.limit(CallerLimits(streams=1, calls_at_once=1))
            assert boundary.tidy(served.gate.flowed) == set()


async def test_an_answer_that_is_not_taken_does_not_hold_the_end_up(folder: Path) -> None:
    async with serving(folder, grace=timedelta(seconds=60)) as served:
        await served.survey(sighting(1, "web"))
        async with said(served, unanswered()):
            calls = served.server._boundary.calls
            await until(lambda: calls.begun == 1 and not [*calls])
            async with asyncio.timeout(20):
                await served.server.drain()
            assert not len(calls)


@needs_root
async def test_those_without_a_role_have_few(folder: Path) -> None:
    """One of them leaves room for the others; many leave room for those who have one."""
    rules = (Rule(grant=Grant(role=Role.VIEWER), users=frozenset({"uid:54321"})),)
    setting = Setting(limits=CallerLimits(calls_at_once=300), rules=rules)
    async with serving(folder, setting) as served:
        calls = served.server._boundary.calls
        async with sending(SAYS, served.path, 60001, held(20).hex()):
            await until(lambda: calls.begun == 20 and len(calls) == 10)
            (told,) = await visit(served.path, "whoami", uid=60001)
            assert (told.reason, "uid:60001" in told.message) == ("LIMIT_REACHED", True)
            async with (
                sending(SAYS, served.path, 60002, held(10).hex()),
                sending(SAYS, served.path, 60003, held(10).hex()),
            ):
                await until(lambda: len(calls) == 30)
                (told,) = await visit(served.path, "whoami", uid=60004)
                assert (told.reason, "without a role" in told.message) == ("LIMIT_REACHED", True)
                (told,) = await visit(served.path, "whoami", uid=54321)
                assert told.code == "OK"
        await until(lambda: not len(calls))
        (told,) = await visit(served.path, "whoami", uid=60001)
        assert told.code == "OK"


@needs_root
async def test_they_have_no_more_than_others_however_little_that_is(folder: Path) -> None:
    async with serving(folder, Setting(limits=CallerLimits(calls_at_once=3))) as served:
        calls = served.server._boundary.calls
        async with sending(SAYS, served.path, 60001, held(3).hex()):
            await until(lambda: calls.begun == 3 and len(calls) == 1)
            async with sending(SAYS, served.path, 60002, held(1).hex()):
                await until(lambda: len(calls) == 2)
                (told,) = await visit(served.path, "whoami", uid=60003)
                assert told.code == "OK"
