"""Calls that come faster than one may make them wait before gRPC, and nobody else does."""

from __future__ import annotations

import asyncio
import hashlib
import socket
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import pytest
from vmagent.v1 import vm_agent_service_pb2 as pb

from vmagentd.api.http2 import CALL
from vmagentd.api.limits import CallerLimits
from vmagentd.api.pace import Paces, Passage
from vmagentd.api.relay import Relay
from vmagentd.model import Grant, LocalPeer, Role, Rule

from . import wire
from .conftest import Setting, serving
from .test_gate import until
from .test_relay import pair
from .users import needs_root, sending, visit

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from .conftest import Served

# Connections of nobody, on each of which he says all that at once, and anew until he is stopped.
FLOOD = """
import os, select, socket, sys
path, connections, said = sys.argv[1], int(sys.argv[2]), bytes.fromhex(sys.argv[3])
os.setgroups([]); os.setgid(65534); os.setuid(65534)
while True:
    made = [socket.socket(socket.AF_UNIX) for _ in range(connections)]
    for each in made:
        each.connect(path)
        each.setblocking(False)
        try:
            each.send(said)
        except OSError:
            pass
    print("sent", flush=True)
    if select.select([sys.stdin], [], [], float(sys.argv[4]))[0]:
        break
    for each in made:
        each.close()
"""


@asynccontextmanager
async def flood(
    path: Path, connections: int, calls: int, *, every_s: float = 0.2
) -> AsyncIterator[None]:
    """A flood that has begun."""
    said = wire.PREFACE + wire.settings() + called(calls)
    async with sending(FLOOD, path, connections, said.hex(), every_s):
        yield


def called(calls: int) -> bytes:
    """Return that many calls of a method that does not exist."""
    each = (wire.call(b"/x/Y", stream=2 * number + 1, end=True) for number in range(calls))
    return b"".join(each)


@needs_root
async def test_a_flood_of_somebody_without_a_role_keeps_nobody_out(served: Served) -> None:
    """Of calls that nobody has taken yet gRPC keeps 1,000, and ends others as CANCELLED."""
    ours, loop = 0, asyncio.get_running_loop()
    began = loop.time()
    until_s = began + 3

    async def call() -> None:
        nonlocal ours
        while loop.time() < until_s:
            await served.stub.WhoAmI(pb.WhoAmIRequest())
            ours += 1

    async with flood(served.path, 8, 500):
        await asyncio.gather(*(call() for _ in range(10)))
        took = loop.time() - began
        # 100 at once, and 100 a second, and what had come before
        assert served.server._boundary.calls.begun - ours < 300 + 100 * took
    await until(lambda: len(served.gate) == 1)


async def test_as_many_calls_at_once_as_one_may_make_are_all_answered(served: Served) -> None:
    calls = [served.stub.WhoAmI(pb.WhoAmIRequest()) for _ in range(1900)]
    assert len(await asyncio.gather(*calls)) == 1900


@needs_root
async def test_a_user_without_a_role_is_answered_while_another_floods(served: Served) -> None:
    async with flood(served.path, 8, 500):
        (said,) = await visit(served.path, "whoami", uid=54321)
    assert said.answer["actor"] == "uid:54321"


@needs_root
async def test_connections_come_at_that_pace_too(folder: Path) -> None:
    limits = CallerLimits(calls_per_second=1)
    async with (
        serving(folder, Setting(limits=limits)) as served,
        flood(served.path, 200, 0, every_s=60),
    ):
        await until(lambda: len(served.gate) == 200)
        await served.stub.WhoAmI(pb.WhoAmIRequest())
        assert len(served.gate._connections) < 100


# --- One connection ---------------------------------------------------------------------------


def peer(uid: int = 1000) -> LocalPeer:
    return LocalPeer(uid=uid, gids=frozenset(), pid=7, user=None)


class Line:
    """A client, a relay, and what stands for gRPC."""

    def __init__(self, paces: Paces, uid: int = 1000) -> None:
        self.client, outer = pair()
        self.grpc, inner = pair()
        self.passage = Passage(paces, peer(uid))
        self.relay = Relay(
            memoryview(bytearray(65536)), on_inner_end=lambda: None, passage=self.passage
        )
        self.relay.join(outer, inner)

    async def come(self, size: int) -> bytes:
        """Return the next that many bytes that reach gRPC, or all until the end."""
        came, loop = b"", asyncio.get_running_loop()
        while len(came) < size:
            part = await loop.sock_recv(self.grpc, min(size - len(came), 65536))
            if not part:
                break
            came += part
        return came

    async def end(self) -> None:
        self.relay.abort()
        await self.relay.ended.wait()
        self.client.close()
        self.grpc.close()


def nobody_has_one(_: LocalPeer) -> bool:
    return False


@pytest.fixture
async def slow() -> Paces:
    """Ten calls at once, and ten a second."""
    return Paces(1, has_role=nobody_has_one)


ONE = len(called(1))


async def test_what_waits_comes_whole_and_in_order() -> None:
    """Also to a side that takes its time, and with frames of which most is in other pieces."""
    line = Line(Paces(2000, has_role=nobody_has_one))
    upload = wire.frame(wire.DATA, 0, 1, b"\1" * 16384)
    said = wire.PREFACE + (called(100) + upload * 20) * 5
    loop = asyncio.get_running_loop()
    sending = asyncio.create_task(loop.sock_sendall(line.client, said))
    async with asyncio.timeout(20):
        began, got = loop.time(), b""
        while len(got) < len(said):
            got += await line.come(min(10_000, len(said) - len(got)))
        assert loop.time() - began > 1.2  # 500 calls, 200 at once and 200 a second
        await sending
    assert hashlib.sha256(got).digest() == hashlib.sha256(said).digest()
    line.client.shutdown(socket.SHUT_WR)
    async with asyncio.timeout(10):
        assert await line.come(1) == b""
        await line.relay.ended.wait()
    await line.end()


async def test_few_are_under_way_however_many_one_may_make() -> None:
    """And those that never arrive do not count for ever."""
    line = Line(Paces(1_000_000, has_role=lambda _: True))
    loop = asyncio.get_running_loop()
    await loop.sock_sendall(line.client, wire.PREFACE + called(1000))
    async with asyncio.timeout(10):
        await line.come(24 + 200 * ONE)
        for _ in range(200):
            line.passage.arrived()
        await line.come(200 * ONE)
        began = loop.time()
        await line.come(ONE)
        assert loop.time() - began > 0.08
        await line.come(599 * ONE)
    await line.end()


async def test_frames_that_begin_no_call_wait_too(slow: Paces) -> None:
    line = Line(slow)
    ping = wire.frame(6, 0, 0, b"12345678")
    loop = asyncio.get_running_loop()
    await loop.sock_sendall(line.client, wire.PREFACE + ping * 3000)
    async with asyncio.timeout(10):
        got = await line.come(24 + len(ping) * 10 * CALL)
        began = loop.time()
        got += await line.come(len(ping) * 5 * CALL)
        assert loop.time() - began > 0.25
    await line.end()


async def test_each_user_has_his_turn(slow: Paces) -> None:
    loop = asyncio.get_running_loop()
    many = [Line(slow) for _ in range(20)]
    for line in many:
        await loop.sock_sendall(line.client, wire.PREFACE + called(200))
    await until(lambda: len(slow._without_role._waiting.get(1000, ())) == 20)
    other = Line(slow, uid=1001)
    await loop.sock_sendall(other.client, wire.PREFACE + called(1))
    async with asyncio.timeout(10):
        assert len(await other.come(24 + ONE)) == 24 + ONE
    for line in (*many, other):
        await line.end()


async def test_who_has_gone_is_not_waited_for(slow: Paces) -> None:
    line = Line(slow)
    await asyncio.get_running_loop().sock_sendall(line.client, wire.PREFACE + called(1000))
    line.client.close()
    async with asyncio.timeout(10):
        got = await line.come(1 << 20)
        await line.relay.ended.wait()
    assert len(got) < 24 + 100 * ONE
    line.grpc.close()


@pytest.mark.parametrize("how", ["end", "hush", "abort", "grpc"])
async def test_what_waits_holds_no_end_up(slow: Paces, how: str) -> None:
    line = Line(slow)
    await asyncio.get_running_loop().sock_sendall(line.client, wire.PREFACE + called(1000))
    await line.come(24 + 10 * ONE)
    match how:
        case "end":
            line.relay.end()
        case "hush":
            line.relay.hush()
            line.relay.end()
        case "abort":
            line.relay.abort()
        case _:
            line.grpc.close()
    async with asyncio.timeout(3):
        await line.relay.ended.wait()
    line.client.close()
    line.grpc.close()


async def test_who_gets_a_role_waits_no_longer() -> None:
    having = set[int]()
    line = Line(Paces(1, has_role=lambda peer: peer.uid in having))
    loop = asyncio.get_running_loop()
    await loop.sock_sendall(line.client, wire.PREFACE + called(250))
    await line.come(24 + 10 * ONE)
    having.add(1000)
    async with asyncio.timeout(10):  # and not 24 s
        await line.come(240 * ONE)
    await line.end()


async def test_of_those_who_are_gone_nothing_is_kept() -> None:
    paces = Paces(1000, has_role=lambda _: True)
    for uid in range(100):
        paces.of(peer(uid))
    paces.of(peer(7)).spend(1000 * CALL)  # most of a second
    paces.forget_idle({8})
    assert paces._paces.keys() == {7, 8}
    await until(paces._paces[7].rested)
    paces.forget_idle(())
    assert not paces._paces


async def test_another_limit_holds_at_once(folder: Path) -> None:
    rules = (Rule(grant=Grant(role=Role.VIEWER), users=frozenset({"uid:1000"})),)
    async with serving(folder, Setting(rules=rules)) as served:
        paces = served.server._paces
        with_role, without = paces.of(peer(1000)), paces.of(peer(1001))
        assert with_role is not without
        assert without is paces.of(peer(1002))
        served.server.limit(CallerLimits(calls_per_second=2000))
        assert (with_role.rate.per_second, without.rate.per_second) == (2500 * CALL, 200 * CALL)
        await served.access.apply(())
        assert paces.of(peer(1000)) is without
