"""Whoever is refused is told of, once, however often he comes."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest
from vmagent.v1 import vm_agent_service_pb2 as pb

from vmagentd.api import rights
from vmagentd.api.refusals import OF_ALL, OF_ONE, SEVERAL, Refusals
from vmagentd.errors import (
    CallerUnknown,
    InvalidField,
    JournalUnwritable,
    LibvirtUnreachable,
    LimitReached,
    RoleDenied,
    ShuttingDown,
    VmagentdError,
    VmNotFound,
)
from vmagentd.model import AuditFilter, Caller, CallerOrigin, Refusal, Role

from .conftest import refusal, sighting, uuid
from .users import NOBODY, needs_root, visit

if TYPE_CHECKING:
    from .conftest import Served

STOP = "/vmagent.v1.VmAgentService/Stop"


def caller(number: int = 1000, pid: int = 7) -> Caller:
    return Caller(
        actor=f"user:u{number}", origin=CallerOrigin.LOCAL, peer=f"uid {number}, pid {pid}"
    )


def denied(who: Caller, vm_name: str | None = "web") -> RoleDenied:
    return RoleDenied(who, Role.OPERATOR, vm_name=vm_name)


def note(refusals: Refusals, who: Caller, vm_name: str | None = "web") -> None:
    refusals.note(who, who.peer, STOP, denied(who, vm_name))


def counts(told: list[Refusal]) -> dict[tuple[str, str, str], int]:
    """Return the last count of each, by actor, method and VM."""
    return {(one.actor, one.method, one.vm_name): one.count for one in told}


async def test_one_tells_who_from_where_what_on_which_vm_and_why(
    served: Served, caplog: pytest.LogCaptureFixture
) -> None:
    await served.survey(sighting(1, "web"))
    async with Refusals(served.journal.record, find=served.journal.find) as refusals:
        note(refusals, caller())
        refusals.note(None, "uid 7, pid 8", "", LimitReached("uid:7", "connections", 3))
    await served.written()
    connection, call = (await served.stub.ListAuditRecords(pb.ListAuditRecordsRequest())).records
    assert (call.actor, call.peer, call.method) == ("user:u1000", "uid 1000, pid 7", "Stop")
    assert (call.vm_uuid, call.vm_name, call.count) == (uuid(1), "web", 1)
    assert (call.code, call.reason) == (7, "ROLE_DENIED")
    assert "needs the role OPERATOR for VM 'web'" in call.message
    assert (connection.actor, connection.peer, connection.method) == ("", "uid 7, pid 8", "")
    logged = vars(next(each for each in caplog.records if "u1000" in each.getMessage()))
    assert {name: logged[name] for name in ("ACTOR", "PEER", "METHOD", "VM_UUID", "REASON")} == {
        "ACTOR": "user:u1000",
        "PEER": "uid 1000, pid 7",
        "METHOD": "Stop",
        "VM_UUID": uuid(1),
        "REASON": "ROLE_DENIED",
    }


async def test_ten_thousand_of_the_same_are_one_record_and_one_line(
    served: Served, caplog: pytest.LogCaptureFixture
) -> None:
    handed_over: list[Refusal] = []

    def record(one: Refusal) -> None:
        handed_over.append(one)
        served.journal.record(one)

    async with Refusals(record, find=served.journal.find) as refusals:
        for pid in range(10_000):
            note(refusals, caller(pid=pid))
    await served.written()
    (told,) = await served.journal.audit_records(AuditFilter(), limit=10)
    assert told.count == 10_000
    assert told.end_time is not None
    assert told.end_time > told.time
    assert len(handed_over) < 20
    assert len([each for each in caplog.records if "refused" in each.getMessage()]) == 1


async def test_one_caller_makes_only_so_many_records() -> None:
    told: list[Refusal] = []
    async with Refusals(told.append, find=lambda _: None) as refusals:
        for number in range(1000):
            note(refusals, caller(), f"vm{number}")
        note(refusals, caller(1001))
    of_one = {key: count for key, count in counts(told).items() if key[0] == "user:u1000"}
    assert len(of_one) == OF_ONE + 1
    assert of_one["user:u1000", SEVERAL, ""] == 1000 - OF_ONE
    assert counts(told)["user:u1001", "Stop", "web"] == 1


async def test_all_together_make_only_so_many_records(caplog: pytest.LogCaptureFixture) -> None:
    told: list[Refusal] = []
    async with Refusals(told.append, find=lambda _: None) as refusals:
        for number in range(OF_ALL + 100):
            note(refusals, caller(number))
    assert len(counts(told)) == OF_ALL
    assert "audit: 100 more refusals were not noted" in caplog.text


async def test_a_minute_later_it_is_another_record() -> None:
    told: list[Refusal] = []
    async with Refusals(told.append, find=lambda _: None, minute_s=0.01) as refusals:
        async with asyncio.timeout(10):
            while len({one.id for one in told}) < 2:
                note(refusals, caller())
                await asyncio.sleep(0)


async def test_what_is_very_long_is_cut() -> None:
    told: list[Refusal] = []
    async with Refusals(told.append, find=lambda _: None) as refusals:
        error = CallerUnknown("x" * 100_000)
        refusals.note(None, "ipv4:192.0.2.1:4711", "/" + "m" * 8000, error)
        note(refusals, caller(), "v" * 100_000)
    sizes = [len(one.method) + len(one.vm_name) + len(one.failure.message) for one in told]
    assert max(sizes) < 2000


@pytest.mark.parametrize(
    ("role", "error", "told"),
    [
        (Role.VIEWER, denied(caller()), True),
        (None, CallerUnknown("x"), True),
        (Role.VIEWER, LimitReached("x", "streams", 1), True),
        (Role.OPERATOR, VmNotFound("x"), True),
        (Role.OPERATOR, InvalidField("vm", "x"), True),
        (Role.OPERATOR, LibvirtUnreachable("x", None), True),
        (Role.VIEWER, VmNotFound("x"), False),
        (Role.OPERATOR, ShuttingDown(), False),
        (Role.OPERATOR, JournalUnwritable("x"), False),
    ],
)
def test_which(role: Role | None, error: VmagentdError, *, told: bool) -> None:
    assert rights.refuses(role, error) is told


async def test_an_operation_that_is_not_accepted_is_a_refusal(served: Served) -> None:
    served.operations.steps = [VmNotFound("nobody")]
    await refusal(served.stub.Stop(pb.StopRequest(vm="nobody")))
    await refusal(served.stub.GetVm(pb.GetVmRequest(vm="nobody")))
    ((who, peer, method, error),) = served.setting.refusals
    assert who is not None
    assert (peer, method) == (who.peer, STOP)
    assert isinstance(error, VmNotFound)


@needs_root
async def test_nobody_who_stops_a_vm_is_told_of_with_its_name(served: Served) -> None:
    await served.survey(sighting(1, "web"))
    (said,) = await visit(served.path, "stop:web")
    assert (said.code, said.reason) == ("PERMISSION_DENIED", "ROLE_DENIED")
    async with Refusals(served.journal.record, find=served.journal.find) as refusals:
        for told in served.setting.refusals:
            refusals.note(*told)
    await served.written()
    (record,) = await served.journal.audit_records(AuditFilter(), limit=10)
    assert record.peer.startswith(f"uid {NOBODY}, pid ")
    assert (record.method, record.vm, record.vm_name) == ("Stop", uuid(1), "web")
    assert record.failure is not None
    assert record.failure.error == "RoleDenied"
