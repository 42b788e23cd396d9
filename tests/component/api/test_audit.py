"""What administrators are told of who asked for what."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING

import pytest
from vmagent.v1 import vm_agent_service_pb2 as pb
from vmagent.v1.access_pb2 import AuditKind

from vmagentd.api import convert
from vmagentd.model import OperationFailure, Refusal, VmUuid

from .conftest import START, refusal, sighting, uuid

if TYPE_CHECKING:
    from .conftest import Served


def refused(number: int, *, vm: VmUuid | None = None, vm_name: str = "") -> Refusal:
    time = START + timedelta(seconds=number)
    return Refusal(
        id=str(number),
        time=time,
        end_time=time + timedelta(seconds=30),
        actor=f"uid:{number}",
        peer=f"uid {number}, pid 1",
        method="Stop",
        vm=vm,
        vm_name=vm_name,
        failure=OperationFailure(
            error="VmNotFound", message="there is none", facts={"vm": vm_name}
        ),
        count=2,
    )


@pytest.fixture(autouse=True)
async def recorded(served: Served) -> None:
    await served.survey(sighting(1, "web"))
    await served.journal.append(refused(1, vm=uuid(1), vm_name="web"))
    await served.journal.append(refused(2, vm_name="web"))
    await served.journal.append(refused(3, vm=uuid(9), vm_name="forgotten"))
    await served.journal.append(refused(4))


async def sequences(served: Served, **fields: object) -> list[int]:
    request = pb.ListAuditRecordsRequest(**fields)  # type: ignore[arg-type]
    return [each.sequence for each in (await served.stub.ListAuditRecords(request)).records]


async def test_a_record_is_told_whole(served: Served) -> None:
    answer = await served.stub.ListAuditRecords(pb.ListAuditRecordsRequest(page_size=1))
    record = answer.records[0]
    assert (record.sequence, record.actor, record.peer) == (4, "uid:4", "uid 4, pid 1")
    assert (record.code, record.reason, record.message) == (5, "VM_NOT_FOUND", "there is none")
    assert (record.count, record.method) == (2, "Stop")
    assert record.time == convert.timestamp(START + timedelta(seconds=4))


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({}, [4, 3, 2, 1]),
        ({"actor": "uid:3"}, [3]),
        ({"vm": "web"}, [2, 1]),
        ({"vm": uuid(1)}, [1]),
        ({"vm": uuid(1).upper()}, [1]),
        ({"vm": uuid(9)}, [3]),
        ({"vm": "nobody"}, []),
        ({"kinds": [AuditKind.AUDIT_KIND_REFUSAL]}, [4, 3, 2, 1]),
        ({"kinds": [AuditKind.AUDIT_KIND_OPERATION]}, []),
        ({"min_time": convert.timestamp(START + timedelta(seconds=3))}, [4, 3]),
        ({"max_time": convert.timestamp(START + timedelta(seconds=3))}, [2, 1]),
    ],
)
async def test_filters(served: Served, fields: dict[str, object], expected: list[int]) -> None:
    assert await sequences(served, **fields) == expected


async def test_pages(served: Served) -> None:
    request = pb.ListAuditRecordsRequest(page_size=3)
    first = await served.stub.ListAuditRecords(request)
    request.page_token = first.next_page_token
    second = await served.stub.ListAuditRecords(request)
    assert [record.sequence for record in (*first.records, *second.records)] == [4, 3, 2, 1]
    assert second.next_page_token == ""


@pytest.mark.parametrize(
    ("field", "fields"),
    [
        ("kinds[1]", {"kinds": [1, 9]}),
        ("page_size", {"page_size": -1}),
        ("page_token", {"page_token": "x"}),
        ("actor", {"actor": "a\n"}),
        ("vm", {"vm": "a" * 256}),
        ("min_time", {"min_time": {"seconds": 2}, "max_time": {"seconds": 1}}),
    ],
)
async def test_no_such_records(served: Served, field: str, fields: dict[str, object]) -> None:
    request = pb.ListAuditRecordsRequest(**fields)  # type: ignore[arg-type]
    told = await refusal(served.stub.ListAuditRecords(request))
    assert (told.reason, told.fields) == ("INVALID_FIELD", [field])
