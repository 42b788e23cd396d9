"""`vmagentctl audit`."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from google.protobuf import json_format
from vmagent.v1.access_pb2 import AuditKind, AuditRecord
from vmagent.v1.operation_pb2 import OperationPhase
from vmagent.v1.vm_agent_service_pb2 import ListAuditRecordsRequest, ListAuditRecordsResponse

from tests.component.ctl.scripted import serving
from tests.component.ctl.terminal import vmagentctl

if TYPE_CHECKING:
    from pathlib import Path

    from tests.component.ctl.scripted import Context


def record(sequence: int, **fields: object) -> AuditRecord:
    made = AuditRecord(sequence=sequence, actor="user:eve", peer="uid 7, pid 8", **fields)  # type: ignore[arg-type]
    made.time.FromJsonString("2026-01-31T12:00:00Z")
    made.end_time.FromJsonString("2026-01-31T12:00:30Z")
    return made


RECORDS = [
    record(
        3,
        kind=AuditKind.AUDIT_KIND_REFUSAL,
        method="Stop",
        vm_name="web\n1",
        code=7,
        reason="ROLE_DENIED",
        count=12,
    ),
    record(
        2,
        kind=AuditKind.AUDIT_KIND_JOINED,
        method="Stop",
        vm_name="web",
        operation_id="12345678-9",
        phase=OperationPhase.OPERATION_PHASE_WAITING,
        count=1,
    ),
    record(1, kind=AuditKind.AUDIT_KIND_REFUSAL, count=1, reason="UNAUTHENTICATED"),
]


async def by_ones(request: ListAuditRecordsRequest, _context: Context) -> ListAuditRecordsResponse:
    at = int(request.page_token or 0)
    token = str(at + 1) if at + 1 < len(RECORDS) else ""
    return ListAuditRecordsResponse(records=RECORDS[at : at + 1], next_page_token=token)


async def test_people_see_a_line_for_each(target: Path) -> None:
    async with serving(target, ListAuditRecords=by_ones):
        done = await vmagentctl(target, "audit", "--limit", "2")
    lines = done.out.splitlines()
    assert lines[0].split() == ["SEQUENCE", "TIME", "ACTOR", "FROM", "WHAT", "VM", "HOW"]
    assert lines[1].startswith("3         2026-01-31 12:00:00  user:eve  uid 7, pid 8  Stop  ")
    assert "web\\n1" in lines[1]
    assert lines[1].endswith("refused: ROLE_DENIED, 12 times until 2026-01-31 12:00:30")
    assert lines[2].endswith("joined operation 12345678 waiting")
    assert len(lines) == 3
    assert "--limit 0 shows all" in done.err
    assert done.code == 0


async def test_programs_get_all_of_it(target: Path) -> None:
    async with serving(target, ListAuditRecords=by_ones):
        done = await vmagentctl(target, "audit", "--limit", "0", "-o", "json")
        lines = await vmagentctl(target, "audit", "--limit", "0", "-o", "jsonl")
    answer = json_format.Parse(done.out, ListAuditRecordsResponse())
    assert list(answer.records) == RECORDS
    assert [json.loads(line)["records"][0]["sequence"] for line in lines.out.splitlines()] == [
        "3",
        "2",
        "1",
    ]


async def test_it_asks_for_what_was_wanted(target: Path) -> None:
    asked = []

    async def none(
        request: ListAuditRecordsRequest, _context: Context
    ) -> ListAuditRecordsResponse:
        asked.append(request)
        return ListAuditRecordsResponse()

    arguments = ("--vm", "web", "--actor", "user:eve", "--kind", "refusal", "--kind", "joined")
    times = ("--since", "2026-01-31T12:00", "--until", "2026-02-01")
    async with serving(target, ListAuditRecords=none):
        done = await vmagentctl(target, "audit", *arguments, *times)
    expected = ListAuditRecordsRequest(vm="web", actor="user:eve", page_size=100)
    expected.kinds.extend([AuditKind.AUDIT_KIND_REFUSAL, AuditKind.AUDIT_KIND_JOINED])
    expected.min_time.FromJsonString("2026-01-31T12:00:00Z")
    expected.max_time.FromJsonString("2026-02-01T00:00:00Z")
    assert asked == [expected]
    assert (done.out, done.code) == ("no audit records\n", 0)


async def test_a_revision_is_no_time(target: Path) -> None:
    done = await vmagentctl(target, "audit", "--since", "12")
    assert done.code == 2
    assert "is no time" in done.err
