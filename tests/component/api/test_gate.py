"""Whoever connects is known, and nobody gets in beside the gate."""

from __future__ import annotations

import array
import asyncio
import os
import re
import resource
import secrets
import socket
import subprocess
import sys
from contextlib import AsyncExitStack, asynccontextmanager, closing, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import grpc
import pytest
from grpc import aio
from vmagent.v1 import access_pb2
from vmagent.v1 import vm_agent_service_pb2 as pb
from vmagent.v1.vm_agent_service_pb2_grpc import VmAgentServiceStub

from vmagentd.api.gate import Connections
from vmagentd.errors import LimitReached, RoleDenied
from vmagentd.model import Grant, Role, Rule

from . import wire
from .conftest import Served, Setting, refusal, serving, sighting
from .users import needs_root, visit, visitor

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

WHO = b"/vmagent.v1.VmAgentService/WhoAmI"
HELLO = wire.PREFACE + wire.settings()


async def until(true: Callable[[], object]) -> None:
    """Wait for a fact of this process, which nothing tells."""
    async with asyncio.timeout(20):
        while not true():  # noqa: ASYNC110 - no event tells
            await asyncio.sleep(0.01)


@asynccontextmanager
async def private_channel(served: Served, name: str | None = None) -> AsyncIterator[aio.Channel]:
    """A client straight at gRPC's own socket; with a name it goes through a relay of its own."""
    private = served.path.parent / "s.d" / "grpc"
    if name is None:
        async with aio.insecure_channel(f"unix:{private}") as channel:
            yield channel
        return

    made = socket.socket(socket.AF_UNIX)
    async with asyncio.timeout(10):
        while True:  # the name is free a moment after its entry is gone
            try:
                made.bind(f"\0{name}")
                break
            except OSError:
                await asyncio.sleep(0.01)
    made.connect(str(private))
    inner_reader, inner_writer = await asyncio.open_unix_connection(sock=made)
    own = served.path.with_name(name)

    async def pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(OSError):
            while part := await reader.read(65536):
                writer.write(part)
        writer.close()

    async def relay(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await asyncio.gather(pump(reader, inner_writer), pump(inner_reader, writer))

    async with await asyncio.start_unix_server(relay, own):
        async with aio.insecure_channel(f"unix:{own}") as channel:
            yield channel
        inner_writer.transport.abort()


def names_bound() -> set[str]:
    """Names of the gate's ends of all relays on this machine, as everybody can read them."""
    return set(re.findall(r"@(vmagentd-\w+)", Path("/proc/net/unix").read_text()))


# --- Who is there -----------------------------------------------------------------------------


async def test_the_daemons_own_user_is_admin(served: Served) -> None:
    caller = (await served.stub.WhoAmI(pb.WhoAmIRequest())).caller
    assert caller.role == access_pb2.ROLE_ADMIN
    assert not caller.vm_globs
    assert caller.origin == access_pb2.CALLER_ORIGIN_LOCAL
    assert caller.peer == f"uid {os.getuid()}, pid {os.getpid()}"
    if os.getuid() == 0:
        assert caller.actor == "user:root"


@needs_root
async def test_nobody_is_known_and_may_nothing_but_ask_who_he_is(served: Served) -> None:
    said = await visit(served.path, "whoami", "list", "stop:web", "health", gid=33, groups=(44,))
    assert said[0].answer["actor"] == "user:nobody"
    assert "role" not in said[0].answer
    for refused in said[1:]:
        assert (refused.code, refused.reason) == ("PERMISSION_DENIED", "ROLE_DENIED")
        assert "user:nobody may not do this" in refused.message
        assert "has no role" in refused.message
    assert not served.operations.asked
    who, where, what, why = served.setting.refusals[0]
    assert who is not None
    assert (who.actor, what) == ("user:nobody", "/vmagent.v1.VmAgentService/ListVms")
    assert re.fullmatch(r"uid 65534, pid \d+", where)
    assert isinstance(why, RoleDenied)
    assert len(served.setting.refusals) == 3


@needs_root
@pytest.mark.parametrize("groups", [(100,), tuple(range(90, 1200))])
async def test_a_member_of_a_group_has_its_role(folder: Path, groups: tuple[int, ...]) -> None:
    """Also one of very many groups, of which the call that Python has tells only the first."""
    rules = (Rule(grant=Grant(role=Role.VIEWER), groups=frozenset({"users"})),)
    async with serving(folder, Setting(rules=rules)) as served:
        await served.survey(sighting(1, "web"))
        who, listed, stopped = await visit(
            served.path, "whoami", "list", "stop:web", groups=groups
        )
        assert who.answer["role"] == "ROLE_VIEWER"
        assert listed.answer == ["web"]
        assert (stopped.code, stopped.reason) == ("PERMISSION_DENIED", "ROLE_DENIED")
        assert "needs the role OPERATOR for VM 'web' and has VIEWER" in stopped.message


@needs_root
async def test_a_user_without_a_name_is_his_number(folder: Path) -> None:
    rules = (Rule(grant=Grant(role=Role.OPERATOR), users=frozenset({"uid:54321"})),)
    async with serving(folder, Setting(rules=rules)) as served:
        (who,) = await visit(served.path, "whoami", uid=54321)
        assert (who.answer["actor"], who.answer["role"]) == ("uid:54321", "ROLE_OPERATOR")


# --- Beside the gate --------------------------------------------------------------------------


@needs_root
async def test_nobody_else_can_reach_grpcs_own_socket(served: Served) -> None:
    private = served.path.parent / "s.d" / "grpc"
    process = await visitor(served.path, "connect")
    assert (await process.communicate())[0].startswith(b'["OK"')
    # the path's own folder, which `visitor` opens to all, is the one that must stay closed
    code = f"import socket, os; os.setuid(65534); socket.socket(1).connect({str(private)!r})"
    done = await asyncio.create_subprocess_exec(
        sys.executable, "-c", code, stderr=asyncio.subprocess.PIPE
    )
    assert b"PermissionError" in (await done.communicate())[1]


async def test_whoever_comes_to_it_directly_is_unknown(served: Served) -> None:
    async with private_channel(served) as channel:
        stub = VmAgentServiceStub(channel)
        for call in (
            stub.WhoAmI(pb.WhoAmIRequest()),
            stub.WatchStatus(pb.WatchStatusRequest()),
            stub.Start(pb.StartRequest(vm="web")),
        ):
            refused = await refusal(call)
            assert (refused.code, refused.reason) == (
                grpc.StatusCode.UNAUTHENTICATED,
                "CALLER_UNKNOWN",
            )
    assert [who for who, _, _, _ in served.setting.refusals] == [None] * 3


async def test_a_name_is_no_secret_and_nobody_can_take_it_over(served: Served) -> None:
    await served.stub.WhoAmI(pb.WhoAmIRequest())
    (name,) = (peer.removeprefix("unix-abstract:") for peer in served.gate._connections)
    assert name in names_bound()
    assert re.fullmatch(r"vmagentd-[0-9a-f]{32}", name)  # none of the kernel's 2^20
    with socket.socket(socket.AF_UNIX) as thief, pytest.raises(OSError, match="in use"):
        thief.bind(f"\0{name}")
    await served.channel.close()
    await until(lambda: not len(served.gate))
    async with private_channel(served, name) as channel:
        # free again, and nobody's: root alone can try, and it gets no answer to call its own
        with pytest.raises(aio.AioRpcError) as caught:
            await VmAgentServiceStub(channel).WhoAmI(pb.WhoAmIRequest(), timeout=1)
        assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    async with private_channel(served, f"vmagentd-{secrets.token_hex(16)}") as channel:
        refused = await refusal(VmAgentServiceStub(channel).WhoAmI(pb.WhoAmIRequest()))
        assert refused.reason == "CALLER_UNKNOWN"


@needs_root
async def test_a_connection_that_is_passed_on_is_its_makers(served: Served) -> None:
    ours, theirs = socket.socketpair(socket.AF_UNIX)
    with ours, theirs:
        number = theirs.fileno()
        process = await visitor(served.path, f"hand:{number}", pass_fds=(number,))
        await process.wait()
        _, ancillary, _, _ = ours.recvmsg(1, socket.CMSG_SPACE(4))
    (fd,) = array.array("i", ancillary[0][2])
    reader, writer = await asyncio.open_unix_connection(sock=socket.socket(fileno=fd))
    writer.write(HELLO + wire.call(WHO) + wire.message(b""))
    async with asyncio.timeout(10):
        assert b"user:nobody" in await reader.readuntil(b"user:nobody")
    writer.close()


# --- Ends -------------------------------------------------------------------------------------


@needs_root
async def test_a_client_that_is_killed_leaves_nothing(folder: Path) -> None:
    rules = (Rule(grant=Grant(role=Role.VIEWER), users=frozenset({"nobody"})),)
    async with serving(folder, Setting(rules=rules)) as served:
        process = await visitor(served.path, "follow")
        assert process.stdout is not None
        assert b"following" in await process.stdout.readline()
        assert len(served.gate) == 1
        process.kill()
        await until(lambda: not len(served.gate))
        await process.wait()
        assert not served.gate._connections


async def test_the_end_of_one_half_is_the_end_of_both(served: Served) -> None:
    reader, writer = await asyncio.open_unix_connection(served.path)
    writer.write(HELLO)
    await reader.readexactly(9)
    assert len(served.gate) == 1
    writer.write_eof()
    async with asyncio.timeout(10):
        await reader.read()
    await until(lambda: not len(served.gate))
    writer.close()
    await writer.wait_closed()


async def test_the_gate_is_empty_when_it_is_closed(folder: Path) -> None:
    async with serving(folder) as served:
        reader, writer = await asyncio.open_unix_connection(served.path)
        writer.write(HELLO)
        await reader.readexactly(9)
    assert not len(served.gate)
    await reader.read()
    writer.close()
    await writer.wait_closed()


# --- Many -------------------------------------------------------------------------------------


async def test_fifty_at_once(served: Served) -> None:
    options = [("grpc.use_local_subchannel_pool", 1)]
    async with AsyncExitStack() as stack:
        stubs = [
            VmAgentServiceStub(
                await stack.enter_async_context(
                    aio.insecure_channel(f"unix:{served.path}", options)
                )
            )
            for _ in range(50)
        ]
        answers = await asyncio.gather(*(stub.WhoAmI(pb.WhoAmIRequest()) for stub in stubs))
        assert len({answer.caller.actor for answer in answers}) == 1
        assert len(served.gate) == 50
        assert len(served.gate._connections) == 50
    await until(lambda: not len(served.gate))


async def crowd(served: Served, count: int, stack: AsyncExitStack) -> list[bytes]:
    """Connect that often, and return what each was told first, or at last."""
    told = []
    for _ in range(count):
        reader, writer = await asyncio.open_unix_connection(served.path)
        stack.callback(writer.close)
        told.append(await reader.read(500))
    return told


async def test_a_user_has_so_many_connections_and_no_more(folder: Path) -> None:
    setting = Setting(connections=Connections(each=64, total=1000))
    async with serving(folder, setting) as served, AsyncExitStack() as stack:
        told = await crowd(served, 70, stack)
        refused = [each for each in told if b"has reached the limit" in each]
        assert len(refused) == 6
        # in HTTP/2: clients show the text
        assert f"uid:{os.getuid()} has reached the limit of 64 connections".encode() in refused[0]
        assert len(served.gate) == 64
        who, where, what, why = setting.refusals[0]
        assert (who, what, len(setting.refusals)) == (None, "", 6)
        assert where == f"uid {os.getuid()}, pid {os.getpid()}"
        assert isinstance(why, LimitReached)
        with pytest.raises(aio.AioRpcError) as caught:
            await served.stub.WhoAmI(pb.WhoAmIRequest())
        assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
        await stack.aclose()
        await until(lambda: not len(served.gate))
        await served.stub.WhoAmI(pb.WhoAmIRequest(), wait_for_ready=True)


@needs_root
async def test_root_gets_in_however_many_there_are(folder: Path) -> None:
    setting = Setting(connections=Connections(each=8, total=3))
    async with serving(folder, setting) as served, AsyncExitStack() as stack:
        await crowd(served, 5, stack)
        assert len(served.gate) == 5
        (refused,) = await visit(served.path, "whoami")
        assert refused.code == "UNAVAILABLE"
        await served.stub.WhoAmI(pb.WhoAmIRequest())


async def test_it_recovers_when_descriptors_run_out(served: Served) -> None:
    await served.stub.WhoAmI(pb.WhoAmIRequest())
    code = f"""
import socket, sys
made = [socket.socket(socket.AF_UNIX) for _ in range(80)]
for each in made:
    each.connect({str(served.path)!r})
print("connected", flush=True)
sys.stdin.read()
"""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", code, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    there = len(os.listdir("/proc/self/fd"))  # noqa: PTH208 - numbers, no paths
    resource.setrlimit(resource.RLIMIT_NOFILE, (there + 60, hard))
    try:
        assert process.stdout is not None
        assert await process.stdout.readline() == b"connected\n"
        await until(lambda: served.gate._pause is not None or len(served.gate) > 20)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    await process.communicate(b"")
    async with aio.insecure_channel(f"unix:{served.path}") as last:
        # it is let in after those that waited, each of which is found gone only once it is in
        await VmAgentServiceStub(last).WhoAmI(pb.WhoAmIRequest(), wait_for_ready=True)
    await until(lambda: len(served.gate) == 1)
    await served.stub.WhoAmI(pb.WhoAmIRequest())
    await until(lambda: len(os.listdir("/proc/self/fd")) <= there + 3)  # noqa: PTH208


# --- systemd's socket -------------------------------------------------------------------------


async def test_a_socket_of_systemds_is_taken_over_with_whoever_waits_in_it(folder: Path) -> None:
    path = folder / "s"
    with closing(socket.socket(socket.AF_UNIX)) as systemds:
        systemds.bind(str(path))
        systemds.listen()
        there = path.lstat()
        for _ in range(2):  # it outlives the daemon
            # connects, and asks, before there is a daemon
            early = socket.socket(socket.AF_UNIX)
            early.connect(str(path))
            early.sendall(HELLO + wire.call(WHO) + wire.message(b""))
            async with serving(folder, Setting(adopted=systemds.dup())) as served:
                reader, writer = await asyncio.open_unix_connection(sock=early)
                async with asyncio.timeout(10):
                    await reader.readuntil(f"uid {os.getuid()}".encode())
                await served.stub.WhoAmI(pb.WhoAmIRequest())
                writer.close()
            assert (path.lstat().st_ino, path.lstat().st_mode) == (there.st_ino, there.st_mode)


# --- No call's end does harm ------------------------------------------------------------------


async def test_calls_that_end_in_every_way_while_they_begin(served: Served) -> None:
    """A context that is read after its call kills the process (seen with grpcio 1.85.1)."""
    calls: list[Callable[..., Any]] = [
        lambda stub, **how: stub.WhoAmI(pb.WhoAmIRequest(), **how),
        lambda stub, **how: stub.GetVm(pb.GetVmRequest(vm="none"), **how),
        lambda stub, **how: stub.WatchStatus(pb.WatchStatusRequest(), **how),
        lambda stub, **how: stub.Start(pb.StartRequest(vm="web"), **how),
    ]

    async def visit_and_leave(number: int) -> None:
        options = [("grpc.use_local_subchannel_pool", 1)]
        async with aio.insecure_channel(f"unix:{served.path}", options) as channel:
            stub = VmAgentServiceStub(channel)
            made = [
                call(stub, timeout=0.0005 * (number % 20 + 1), wait_for_ready=True)
                for call in calls * 3
            ]
            await asyncio.sleep(0.0007 * (number % 7))
            for call in made[:: 1 + number % 3]:
                call.cancel()
            if number % 2:  # the connection goes under them
                await channel.close()
            for call in made:
                with suppress(aio.AioRpcError, asyncio.CancelledError, StopAsyncIteration):
                    await (anext(call.__aiter__()) if hasattr(call, "__aiter__") else call)

    async def raw(number: int) -> None:
        reader, writer = await asyncio.open_unix_connection(served.path)
        writer.write(HELLO + wire.call(WHO) + wire.message(b"", end=bool(number % 2)))
        if number % 3:
            await reader.read(1 + number)
        writer.transport.abort()

    async with asyncio.timeout(50):
        for batch in range(0, 60, 10):
            await asyncio.gather(
                *(visit_and_leave(number) for number in range(batch, batch + 10)),
                *(raw(number) for number in range(batch, batch + 10)),
            )
        await until(lambda: len(served.gate) <= 1)
    await served.stub.WhoAmI(pb.WhoAmIRequest(), wait_for_ready=True)
    # whoever has gone is no stranger
    assert not served.setting.refusals
