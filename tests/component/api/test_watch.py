"""WatchStatus from the wire's end: whole, in order, in messages of bounded size."""

from __future__ import annotations

import asyncio
import functools
from typing import TYPE_CHECKING

import grpc
from google.protobuf.duration_pb2 import Duration
from vmagent.v1 import vm_agent_service_pb2 as pb
from vmagent.v1.transition_pb2 import Cursor

from vmagentd.api import convert
from vmagentd.api.frames import MAX_BYTES, MAX_SNAPSHOT_BYTES

from .conftest import refusal, sighting, uuid

if TYPE_CHECKING:
    from collections.abc import Callable

    from grpc import aio
    from vmagent.v1.transition_pb2 import Transition

    from .conftest import Served

    Call = aio.UnaryStreamCall[pb.WatchStatusRequest, pb.WatchStatusResponse]


class Reader:
    """Follows one watch, and puts its messages together as a client does."""

    def __init__(self, call: Call) -> None:
        self._messages = call.__aiter__()
        self.vms: list[str] = []
        self.end: Cursor | None = None
        self.transitions: list[Transition] = []
        self.heartbeats: list[pb.Heartbeat] = []
        self.sizes: list[int] = []

    def has_heartbeats(self) -> bool:
        return bool(self.heartbeats)

    def has_transitions(self, count: int) -> bool:
        return len(self.transitions) == count

    async def until(self, seen: Callable[[], object]) -> None:
        while not seen():
            message = await anext(self._messages)
            self.sizes.append(message.ByteSize())
            self.vms += [vm.uuid for vm in message.vms]
            if message.HasField("snapshot_end"):
                self.end = message.snapshot_end
            self.transitions += message.transitions
            if message.HasField("heartbeat"):
                self.heartbeats.append(message.heartbeat)


async def test_a_snapshot_then_what_changes(served: Served) -> None:
    await served.survey(sighting(1, "web"), sighting(2, "db"))
    reader = Reader(served.stub.WatchStatus(pb.WatchStatusRequest()))
    await reader.until(lambda: reader.end)
    assert reader.vms == [uuid(2), uuid(1)]
    assert reader.end == Cursor(journal_id=served.journal.id, revision=2)
    await served.survey(sighting(1, "web"))
    await reader.until(lambda: reader.transitions)
    assert [each.revision for each in reader.transitions] == [3]
    # What a query confirmed meanwhile is the one thing that no transition tells.
    present = convert.vm(served.journal.vms[uuid(2)])
    present.verify_time.CopyFrom(reader.transitions[0].vm.verify_time)
    assert reader.transitions[0].vm == present


async def test_a_watch_resumes_where_it_was(served: Served) -> None:
    await served.survey(*(sighting(n, f"vm{n}") for n in range(1, 51)))
    for revision in (0, 17, 49, 50):
        resume = Cursor(journal_id=served.journal.id.upper(), revision=revision)
        reader = Reader(served.stub.WatchStatus(pb.WatchStatusRequest(resume=resume)))
        await reader.until(reader.has_heartbeats)
        assert [each.revision for each in reader.transitions] == list(range(revision + 1, 51))
        assert (reader.vms, reader.end) == ([], None)


async def test_many_watchers_get_the_same(served: Served) -> None:
    readers = [Reader(served.stub.WatchStatus(pb.WatchStatusRequest())) for _ in range(100)]
    await asyncio.gather(*(reader.until(reader.has_heartbeats) for reader in readers))
    for n in range(1, 21):
        await served.survey(*(sighting(m, f"vm{m}") for m in range(1, n + 1)))
    for reader in readers:
        await reader.until(functools.partial(reader.has_transitions, 20))
        assert [each.revision for each in reader.transitions] == list(range(1, 21))
        assert reader.transitions == readers[0].transitions


async def test_a_watch_can_be_of_some_vms(served: Served) -> None:
    await served.survey(sighting(1, "web"), sighting(2, "db"), sighting(3, "mail"))
    request = pb.WatchStatusRequest(
        vms=["web", uuid(3).upper().replace("-", "")],
        heartbeat_interval=Duration(nanos=100_000_000),
    )
    reader = Reader(served.stub.WatchStatus(request))
    await reader.until(lambda: reader.end)
    assert reader.vms == [uuid(3), uuid(1)]
    await served.survey(sighting(3, "mail"))
    # All that happened was sent or filtered out, and is said to be.
    await reader.until(lambda: reader.heartbeats and reader.heartbeats[-1].revision == 5)
    assert [each.vm.name for each in reader.transitions] == ["web"]


async def test_a_large_snapshot_comes_in_parts(served: Served) -> None:
    # With names as long as can be, more than a client would take in one message.
    count = 12_000
    await served.survey(*(sighting(n, f"{n:0>255}") for n in range(1, count + 1)))
    reader = Reader(served.stub.WatchStatus(pb.WatchStatusRequest()))
    await reader.until(lambda: reader.end)
    assert len(reader.vms) == len(set(reader.vms)) == count
    assert sum(reader.sizes) > 4 * 1024 * 1024
    assert max(reader.sizes) <= MAX_SNAPSHOT_BYTES


async def test_a_long_history_comes_in_parts(served: Served) -> None:
    await served.survey(*(sighting(n, f"{n:0>255}") for n in range(1, 3001)))
    resume = Cursor(journal_id=served.journal.id, revision=0)
    reader = Reader(served.stub.WatchStatus(pb.WatchStatusRequest(resume=resume)))
    await reader.until(lambda: len(reader.transitions) == 3000)
    assert [each.revision for each in reader.transitions] == list(range(1, 3001))
    assert max(reader.sizes) <= MAX_BYTES
    assert len(reader.sizes) < 100


async def test_heartbeats_come_at_the_interval_asked_for(served: Served) -> None:
    request = pb.WatchStatusRequest(heartbeat_interval=Duration(nanos=100_000_000))
    reader = Reader(served.stub.WatchStatus(request))
    async with asyncio.timeout(5):
        await reader.until(lambda: len(reader.heartbeats) == 4)
    assert {beat.revision for beat in reader.heartbeats} == {0}


async def test_a_lost_link_is_told_at_once(served: Served) -> None:
    await served.survey(sighting(1, "web"))
    reader = Reader(served.stub.WatchStatus(pb.WatchStatusRequest()))
    await reader.until(lambda: reader.heartbeats)
    assert reader.heartbeats[-1].libvirt_connected
    await served.lose_link()
    await reader.until(lambda: not reader.heartbeats[-1].libvirt_connected)
    assert reader.heartbeats[-1].HasField("blind_since")


async def test_no_place_in_this_journal(served: Served) -> None:
    await served.survey(sighting(1, "web"))
    for resume in (
        Cursor(journal_id=served.journal.id, revision=2),
        Cursor(journal_id=served.journal.id, revision=2**63 - 1),
        Cursor(journal_id=uuid(9), revision=0),
        Cursor(journal_id=uuid(9), revision=1),
    ):
        refused = await refusal(served.stub.WatchStatus(pb.WatchStatusRequest(resume=resume)))
        assert (refused.code, refused.reason) == (
            grpc.StatusCode.FAILED_PRECONDITION,
            "JOURNAL_REPLACED",
        )
        assert refused.facts == {"journal_id": served.journal.id, "head_revision": "1"}
