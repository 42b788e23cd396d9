"""Who may do what: roles, the VMs they hold for, and what one caller may have at once."""

from __future__ import annotations

import asyncio
import sqlite3
import struct
from contextlib import AsyncExitStack, closing
from dataclasses import replace
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import grpc
import pytest
from google.protobuf import descriptor_pool
from google.protobuf.duration_pb2 import Duration
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from vmagent.v1 import access_pb2
from vmagent.v1 import vm_agent_service_pb2 as pb
from vmagent.v1.transition_pb2 import Cursor

from vmagentd.api import rights
from vmagentd.api.limits import CallerLimits, Usage
from vmagentd.api.pages import MAX_READ, STEP
from vmagentd.errors import LimitReached
from vmagentd.journal import reader
from vmagentd.journal.schema import OPERATION, to_column
from vmagentd.model import (
    Event,
    EventKind,
    Grant,
    OperationId,
    RawPair,
    Role,
    Rule,
    VmState,
)

from . import wire
from .conftest import START, Served, Setting, collected, refusal, serving, sighting, uuid
from .test_gate import until
from .test_operations import ACCEPTED, DONE
from .test_reads import MINUTE, done, stop_of
from .users import needs_root, visit

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

NARROW = (
    Rule(grant=Grant(role=Role.OPERATOR, vm_globs=("web*",)), users=frozenset({"nobody"})),
    Rule(grant=Grant(role=Role.VIEWER, vm_globs=("db*",)), users=frozenset({"nobody"})),
)


async def test_every_method_that_is_served_needs_a_role(served: Served) -> None:
    channel: Any = served.channel
    stub: Any = reflection_pb2_grpc.ServerReflectionStub(channel)
    request = reflection_pb2.ServerReflectionRequest(list_services="")
    (response,) = await collected(stub.ServerReflectionInfo(iter([request])))
    names = {each.name for each in response.list_services_response.service}
    assert names <= rights.NEEDED.keys()
    pool = descriptor_pool.Default()
    for name, methods in rights.NEEDED.items():
        service = pool.FindServiceByName(name)
        assert {method.name for method in service.methods} <= methods.keys()
    changing = {"Start", "Stop", "Reboot", "Pause", "Resume", "CancelOperation"}
    ours = rights.NEEDED["vmagent.v1.VmAgentService"]
    assert {name for name, role in ours.items() if role is Role.OPERATOR} == changing


# --- VMs of some names only -------------------------------------------------------------------


class Narrow:
    """The calls of one who may do everything to web*, look at db*, and knows of nothing else."""

    def __init__(self, served: Served) -> None:
        self.served = served
        self.stub = served.stub

    async def rename(self, number: int, name: str) -> None:
        await self.served.journal.append(
            Event(
                number=number,
                vm=uuid(number),
                name=name,
                kind=EventKind.DEFINED_RENAMED,
                raw=RawPair(0, 2),
                run_id=None,
                observe_time=START,
            )
        )


@pytest.fixture
async def narrow(folder: Path) -> AsyncIterator[Narrow]:
    """Serves this process as if it were nobody: root cannot be narrowed."""
    async with serving(folder, Setting(rules=NARROW)) as served:
        known = served.gate.peer

        def nobody(name: str) -> Any:  # noqa: ANN401
            peer = known(name)
            return type(peer)(uid=65534, gids=frozenset(), pid=peer.pid, user="nobody")

        served.access._local = nobody
        await served.survey(
            sighting(1, "web1"),
            sighting(2, "db1"),
            sighting(3, "secret", VmState.STOPPED),
        )
        yield Narrow(served)


async def test_it_sees_what_it_may(narrow: Narrow) -> None:
    stub = narrow.stub
    listed = await stub.ListVms(pb.ListVmsRequest(name_glob="*"))
    assert [vm.name for vm in listed.vms] == ["db1", "web1"]
    host = (await stub.GetHost(pb.GetHostRequest())).host
    assert sum(each.count for each in host.state_counts) == 2
    assert host.capacity.active_vms == 2
    history = await stub.ListTransitions(pb.ListTransitionsRequest())
    assert {each.vm.name for each in history.transitions} == {"db1", "web1"}
    for size in (1, 2):
        seen, token = [], ""
        while True:
            page = await stub.ListTransitions(
                pb.ListTransitionsRequest(page_size=size, page_token=token)
            )
            seen += [each.revision for each in page.transitions]
            token = page.next_page_token
            if not token:
                break
        assert seen == [each.revision for each in history.transitions]
    caller = (await stub.WhoAmI(pb.WhoAmIRequest())).caller
    assert (caller.role, *caller.vm_globs) == (access_pb2.ROLE_OPERATOR, "web*", "db*")
    assert [grant.role for grant in caller.grants] == [
        access_pb2.ROLE_OPERATOR,
        access_pb2.ROLE_VIEWER,
    ]


@pytest.mark.parametrize("known", ["secret", uuid(3), uuid(3).upper()])
async def test_a_vm_it_may_not_see_is_one_that_nobody_ever_heard_of(
    narrow: Narrow, known: str
) -> None:
    """The answers differ in the reference and in nothing else."""
    unknown = "nosuch" if known == "secret" else uuid(9)
    stub = narrow.stub
    for call in (
        lambda vm: stub.GetVm(pb.GetVmRequest(vm=vm)),
        lambda vm: stub.ListTransitions(pb.ListTransitionsRequest(vm=vm)),
        lambda vm: stub.ListOperations(pb.ListOperationsRequest(vm=vm)),
        lambda vm: stub.Start(pb.StartRequest(vm=vm)),
        lambda vm: stub.Stop(pb.StopRequest(vm=vm, request_id="r")),
        lambda vm: stub.Reboot(pb.RebootRequest(vm=vm)),
        lambda vm: stub.Pause(pb.PauseRequest(vm=vm)),
        lambda vm: stub.Resume(pb.ResumeRequest(vm=vm)),
    ):
        hidden, strange = await refusal(call(known)), await refusal(call(unknown))
        assert hidden.reason == "VM_NOT_FOUND"
        assert repr(hidden).replace(known, unknown) == repr(strange)
    assert not narrow.served.operations.asked


async def test_operations_of_others_are_not_read_to_their_end(
    folder: Path, narrow: Narrow
) -> None:
    await done(narrow.served, stop_of(1))
    hidden = [await done(narrow.served, stop_of(2, vm=3))]
    hidden += [
        replace(hidden[0], id=OperationId(uuid(number)), accept_time=START + number * MINUTE)
        for number in range(3, MAX_READ + STEP)
    ]
    with closing(sqlite3.connect(folder / "state/journal.db", timeout=5.0)) as db, db:
        db.executemany(
            "INSERT INTO operation SELECT ?, vm, actor, NULL, verb, phase, outcome, ?, end_time, ?"
            f" FROM operation WHERE id = '{hidden[0].id}'",
            (
                (each.id, to_column(each.accept_time), OPERATION.dump_json(each).decode())
                for each in hidden[1:]
            ),
        )
    request = pb.ListOperationsRequest(page_size=1)
    page = await narrow.stub.ListOperations(request)
    assert [*page.operations] == []
    request.page_token = page.next_page_token
    page = await narrow.stub.ListOperations(request)
    assert [each.operation_id for each in page.operations] == [uuid(1)]
    assert not page.next_page_token
    # that there are some of a VM which it does not see is not told either
    refused = await refusal(narrow.stub.ListOperations(pb.ListOperationsRequest(vm=uuid(3))))
    assert refused.reason == "VM_NOT_FOUND"


async def test_it_does_what_it_may(narrow: Narrow) -> None:
    narrow.served.operations.steps = [ACCEPTED, DONE]
    assert await collected(narrow.stub.Start(pb.StartRequest(vm="web1")))
    assert await collected(narrow.stub.Start(pb.StartRequest(vm=uuid(1))))
    # libvirt may know it; by a name that is its own it may be asked
    assert await collected(narrow.stub.Start(pb.StartRequest(vm="web-new")))
    asked = [(ref, actor) for ref, _, actor, _ in narrow.served.operations.asked]
    assert asked == [(ref, "user:nobody") for ref in ("web1", uuid(1), "web-new")]
    for vm in ("db1", "db-new"):
        refused = await refusal(narrow.stub.Start(pb.StartRequest(vm=vm)))
        assert (refused.code, refused.facts["vm"]) == (grpc.StatusCode.PERMISSION_DENIED, vm)
    for admins in (narrow.stub.ListAuditRecords(pb.ListAuditRecordsRequest()),):
        assert (await refusal(admins)).reason == "ROLE_DENIED"


async def test_an_operation_ends_for_it_with_the_name_that_it_may_see(narrow: Narrow) -> None:
    """The operation goes on, and a repeated request id is no way to look at its VM."""
    renamed = asyncio.Event()
    narrow.served.operations.steps = [ACCEPTED, renamed.wait, DONE]
    start = narrow.stub.Start(pb.StartRequest(vm="web1", request_id="r"))
    steps = start.__aiter__()
    assert (await anext(steps)).vm.name == "web1"
    await narrow.rename(1, "secret-new")
    renamed.set()
    assert (await refusal(start)).reason == "VM_NOT_FOUND"
    again = await refusal(narrow.stub.Start(pb.StartRequest(vm="web1", request_id="r")))
    strange = await refusal(narrow.stub.GetVm(pb.GetVmRequest(vm="web1")))
    assert again == strange
    await narrow.rename(1, "web1")
    assert await collected(narrow.stub.Start(pb.StartRequest(vm="web1", request_id="r")))


async def test_a_watch_shows_its_vms_and_the_end_of_those_that_leave(narrow: Narrow) -> None:
    """Whoever keeps a mirror has exactly its VMs, also when it resumes."""
    journal = narrow.served.journal
    begin = Cursor(journal_id=journal.id, revision=journal.head)

    async def mirrored(request: pb.WatchStatusRequest, names: dict[str, str]) -> list[int]:
        revisions: list[int] = []
        async with asyncio.timeout(20):
            async for response in narrow.stub.WatchStatus(request):
                names.update({vm.uuid: vm.name for vm in response.vms})
                for each in response.transitions:
                    revisions.append(each.revision)
                    names[each.vm.uuid] = each.vm.name
                if response.HasField("heartbeat") and response.heartbeat.revision >= last:
                    return revisions
        return revisions

    last = 1 << 60
    names: dict[str, str] = {}
    interval = Duration(nanos=200_000_000)
    live = asyncio.create_task(mirrored(pb.WatchStatusRequest(heartbeat_interval=interval), names))
    await until(lambda: len(names) == 2)
    await narrow.rename(1, "gone-elsewhere")  # out: the last that is told of it
    await narrow.rename(3, "web3")  # in
    await narrow.served.survey(
        sighting(1, "gone-elsewhere", VmState.STOPPED),
        sighting(2, "db1"),
        sighting(3, "web3", VmState.STOPPED),
    )
    last = journal.head
    revisions = await live
    assert names == {uuid(1): "gone-elsewhere", uuid(2): "db1", uuid(3): "web3"}
    out = [each for each in revisions if each == begin.revision + 1]
    assert out
    resumed: dict[str, str] = {}
    request = pb.WatchStatusRequest(resume=begin, heartbeat_interval=interval)
    assert await mirrored(request, resumed) == revisions
    assert resumed == {uuid(1): "gone-elsewhere", uuid(3): "web3"}
    hidden = await refusal(narrow.stub.GetVm(pb.GetVmRequest(vm="gone-elsewhere")))
    assert hidden.reason == "VM_NOT_FOUND"


# --- Changes while it runs --------------------------------------------------------------------


async def test_streams_of_those_who_may_no_longer_end(narrow: Narrow) -> None:
    served = narrow.served
    served.operations.steps = [ACCEPTED, asyncio.Event().wait]
    watch, start = (
        narrow.stub.WatchStatus(pb.WatchStatusRequest()),
        narrow.stub.Start(pb.StartRequest(vm="web1")),
    )
    for call in (watch, start):
        await anext(call.__aiter__())
    await served.access.apply(NARROW[::-1])  # nothing is different
    served.server.recheck()
    assert (await narrow.stub.WhoAmI(pb.WhoAmIRequest())).caller.grants
    assert not watch.done()
    only = Rule(
        grant=Grant(role=Role.VIEWER, vm_globs=("web*", "db*")), users=frozenset({"nobody"})
    )
    await served.access.apply((only,))
    served.server.recheck()
    async with asyncio.timeout(20):
        assert (await refusal(start)).reason == "ROLE_DENIED"
    assert not watch.done()
    await served.access.apply((Rule(grant=Grant(role=Role.VIEWER), users=frozenset({"nobody"})),))
    served.server.recheck()
    async with asyncio.timeout(20):
        assert (await refusal(watch)).reason == "ACCESS_CHANGED"
    watch = narrow.stub.WatchStatus(pb.WatchStatusRequest())
    await anext(watch.__aiter__())
    await served.access.apply(())
    served.server.recheck()
    async with asyncio.timeout(20):
        refused = await refusal(watch)
    assert (refused.code, refused.reason) == (grpc.StatusCode.PERMISSION_DENIED, "ROLE_DENIED")


OTHERWISE = (
    Rule(grant=Grant(role=Role.VIEWER, vm_globs=("web*",)), users=frozenset({"nobody"})),
    Rule(grant=Grant(role=Role.OPERATOR, vm_globs=("db*",)), users=frozenset({"nobody"})),
)


@pytest.mark.parametrize(("rules", "reason"), [((), "ROLE_DENIED"), (OTHERWISE, "ACCESS_CHANGED")])
@pytest.mark.parametrize("method", ["CancelOperation", "Start"])
async def test_a_call_that_says_later_what_it_is_about_gains_nothing(
    narrow: Narrow, method: str, rules: tuple[Rule, ...], reason: str
) -> None:
    """It is carried out by the roles that hold then, or not at all."""
    served = narrow.served
    channel: Any = served.channel
    call = channel.stream_stream(f"/vmagent.v1.VmAgentService/{method}")()
    calls = served.server._boundary.calls
    await until(lambda: [*calls])
    (begun,) = calls
    await served.access.apply(NARROW[::-1])  # nothing is different
    served.server.recheck()
    assert begun.dismissed is None
    await served.access.apply(rules)
    served.server.recheck()
    async with asyncio.timeout(20):
        assert (await refusal(call)).reason == reason
    assert not served.operations.asked


# --- Limits -----------------------------------------------------------------------------------


async def test_so_many_calls_a_second_and_no_more(folder: Path) -> None:
    # so few that the next is far off, however long this takes
    async with serving(folder, Setting(limits=CallerLimits(calls_per_second=0.01))) as served:
        await served.stub.WhoAmI(pb.WhoAmIRequest())
        told = await refusal(served.stub.WhoAmI(pb.WhoAmIRequest()))
        assert (told.code, told.reason) == (
            grpc.StatusCode.RESOURCE_EXHAUSTED,
            "LIMIT_REACHED",
        )
        assert {"QuotaFailure", "RetryInfo"} <= set(told.details)
        assert told.facts["limit"] == "calls per second"


def test_calls_may_come_in_a_burst_and_then_at_their_rate() -> None:
    usage = Usage(CallerLimits(calls_per_second=5))

    def allowed(now: float) -> int:
        for count in range(100):
            try:
                usage.count_call("uid:1", now)
            except LimitReached:
                return count
        return 100

    assert [allowed(now) for now in (0.0, 0.1, 0.25, 1.25, 100.0)] == [10, 0, 1, 5, 10]


async def test_so_many_streams_and_no_more(folder: Path) -> None:
    async with serving(folder, Setting(limits=CallerLimits(streams=3))) as served:
        calls = [served.stub.WatchStatus(pb.WatchStatusRequest()) for _ in range(3)]
        for call in calls:
            await anext(call.__aiter__())
        told = await refusal(served.stub.WatchStatus(pb.WatchStatusRequest()))
        assert told.facts["limit"] == "streams at a time"
        assert told.facts["allowed"] == "3"
        await served.stub.WhoAmI(pb.WhoAmIRequest())
        calls[0].cancel()
        await until(lambda: len(served.server._boundary.calls) == 2)
        await anext(served.stub.WatchStatus(pb.WatchStatusRequest()).__aiter__())


async def test_what_is_read_is_read_for_its_caller(served: Served) -> None:
    """So that each has his turn: see `TestLanes`."""
    whom: list[str | None] = []

    async def transitions(*_: object, **__: object) -> tuple[()]:
        whom.append(reader._WHOM.get())
        return ()

    served.journal.transitions = transitions  # type: ignore[method-assign]
    await served.stub.ListTransitions(pb.ListTransitionsRequest())
    assert whom == [(await served.stub.WhoAmI(pb.WhoAmIRequest())).caller.actor]


async def test_each_message_of_a_stream_of_requests_is_as_much_as_a_call(folder: Path) -> None:
    # so few that the next is far off, however long this takes
    async with serving(folder, Setting(limits=CallerLimits(calls_per_second=0.01))) as served:
        channel: Any = served.channel
        stub: Any = reflection_pb2_grpc.ServerReflectionStub(channel)
        request = reflection_pb2.ServerReflectionRequest(list_services="")
        call = stub.ServerReflectionInfo()
        await call.write(request)
        await call.read()
        await call.write(request)
        told = await refusal(call.read())
        assert told.facts["limit"] == "calls per second"


async def test_many_streams_of_one_caller_beat_more_slowly(served: Served) -> None:
    served.server._boundary._usage.pause_each = timedelta(seconds=0.2)
    request = pb.WatchStatusRequest(heartbeat_interval=Duration(nanos=100_000_000))
    first = served.stub.WatchStatus(request).__aiter__()
    loop = asyncio.get_running_loop()

    async def beat() -> float:
        while not (await anext(first)).HasField("heartbeat"):
            pass
        return loop.time()

    await beat()
    others = [served.stub.WatchStatus(request) for _ in range(4)]
    for each in others:
        await anext(each.__aiter__())
    async with asyncio.timeout(20):
        await beat()  # due before they came, or while they did
        begin = await beat()
        assert await beat() - begin > 0.9  # for each of five
        for each in others:
            each.cancel()
        await until(lambda: len(served.server._boundary.calls) == 1)
        begin = await beat()
        while (now := await beat()) - begin >= 0.9:
            begin = now


async def test_a_request_that_never_comes_is_not_waited_for(folder: Path) -> None:
    limits = CallerLimits(call_timeout=timedelta(seconds=0.5))
    async with serving(folder, Setting(limits=limits)) as served:
        for method in (b"WhoAmI", b"WatchStatus"):
            call = wire.call(b"/vmagent.v1.VmAgentService/" + method)
            async with asyncio.timeout(10):
                await wire.answer(
                    served.path,
                    wire.PREFACE + wire.settings() + call,
                    until=b"has reached the limit of 0.5 seconds for a call",
                )


def test_of_those_who_are_idle_nothing_is_kept() -> None:
    usage = Usage(CallerLimits(calls_per_second=2, streams=1))
    for number in range(1000):
        usage.count_call(f"uid:{number}", 0.0)
    usage.forget_idle(1.0)
    assert len(usage) == 1000
    usage.forget_idle(3.0)
    assert not len(usage)


async def test_a_watcher_that_does_not_read_is_told_where_to_go_on(folder: Path) -> None:
    async with serving(folder) as served:
        served.servicer.watching.stall_timeout = timedelta(seconds=1)
        await served.survey(
            *(sighting(number, "x" * 250 + str(number)) for number in range(1, 401))
        )
        begin = Cursor(journal_id=served.journal.id, revision=0)
        request = pb.WatchStatusRequest(resume=begin).SerializeToString()
        reader, writer = await asyncio.open_unix_connection(served.path, limit=1 << 24)
        writer.write(
            wire.PREFACE
            + wire.settings()
            + wire.call(b"/vmagent.v1.VmAgentService/WatchStatus")
            + wire.message(request)
        )
        calls = served.server._boundary.calls
        await until(lambda: [*calls])
        (call,) = calls
        loop = asyncio.get_running_loop()
        await until(lambda: call.given and loop.time() - call.given > 1.1)
        more = struct.pack(">I", 1 << 24)
        writer.write(wire.frame(8, 0, 0, more) + wire.frame(8, 0, 1, more))
        async with asyncio.timeout(10):
            told = await reader.readuntil(b"resume after revision 256")
        assert 200 < told.count(b"x" * 250) <= 256  # a few lie across two frames
        writer.close()


async def test_a_client_that_reads_nothing_at_all_loses_its_connection(folder: Path) -> None:
    limits = CallerLimits(stall_timeout=timedelta(seconds=0.5))
    async with serving(folder, Setting(limits=limits)) as served, AsyncExitStack() as stack:
        served.operations.steps = [ACCEPTED] * 100_000
        reader, writer = await asyncio.open_unix_connection(served.path)
        stack.callback(writer.close)
        writer.write(
            wire.PREFACE
            + wire.settings()
            + wire.call(b"/vmagent.v1.VmAgentService/Start")
            + wire.message(pb.StartRequest(vm="web").SerializeToString())
        )
        await reader.readexactly(5000)
        assert len(served.gate) == 1
        await until(lambda: not len(served.gate))
        await until(lambda: not served.operations.listening)
        await served.stub.WhoAmI(pb.WhoAmIRequest())


@needs_root
async def test_request_ids_are_each_callers_own(folder: Path) -> None:
    rules = (Rule(grant=Grant(role=Role.OPERATOR), users=frozenset({"nobody"})),)
    async with serving(folder, Setting(rules=rules)) as served:
        await served.survey(sighting(1, "web"))
        served.operations.steps = [ACCEPTED, DONE]
        (stopped,) = await visit(served.path, "stop:web")
        assert stopped.answer == 2
        await collected(served.stub.Stop(pb.StopRequest(vm="web")))
        assert [actor for _, _, actor, _ in served.operations.asked] == [
            "user:nobody",
            "user:root",
        ]
