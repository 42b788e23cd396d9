"""What was asked of VMs, looked at and cancelled with vmagentctl."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import grpc
import pytest
from google.protobuf import json_format
from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp
from vmagent.v1.operation_pb2 import (
    OperationError,
    OperationOutcome,
    OperationPhase,
    OperationVerb,
    StopMode,
    StopParameters,
)
from vmagent.v1.vm_agent_service_pb2 import (
    CancelOperationRequest,
    CancelOperationResponse,
    GetOperationRequest,
    GetOperationResponse,
    ListOperationsRequest,
    ListOperationsResponse,
)

from tests.component.ctl.scripted import operation, refuse, serving
from tests.component.ctl.terminal import vmagentctl

if TYPE_CHECKING:
    from pathlib import Path

    from vmagent.v1.operation_pb2 import Operation

    from tests.component.ctl.scripted import Context

ACCEPTED = OperationPhase.OPERATION_PHASE_ACCEPTED
SIGNALLED = OperationPhase.OPERATION_PHASE_SIGNALLED
SUCCEEDED = OperationPhase.OPERATION_PHASE_SUCCEEDED
FAILED = OperationPhase.OPERATION_PHASE_FAILED
CANCELLED = OperationPhase.OPERATION_PHASE_CANCELLED
NOON = 1_769_860_800  # 2026-01-31 12:00:00 UTC

IDS = {
    "a": "0a1b2c3d-0000-4000-8000-000000000001",
    "b": "0a1b2c3d-0000-4000-8000-000000000002",
    "c": "ffffffff-0000-4000-8000-000000000003",
}


def asked(
    name: str,
    *phases: OperationPhase.ValueType,
    **more: Any,  # noqa: ANN401  # any field of the message
) -> Operation:
    return operation(
        name,
        *phases,
        operation_id=IDS[name],
        vm_uuid=f"uuid-of-{name}",
        actor="user:ann",
        accept_time=Timestamp(seconds=NOON),
        **more,
    )


STOPPED = asked("a", ACCEPTED, SIGNALLED, SUCCEEDED, end_time=Timestamp(seconds=NOON + 2))
REFUSED = asked(
    "b",
    ACCEPTED,
    FAILED,
    verb=OperationVerb.OPERATION_VERB_START,
    end_time=Timestamp(seconds=NOON),
    error=OperationError(code=9, reason="START_FAILED", message="no disk"),
)
UNDER_WAY = asked(
    "c",
    ACCEPTED,
    SIGNALLED,
    request_id="mine",
    deadline_time=Timestamp(seconds=NOON + 90),
    stop=StopParameters(mode=StopMode.STOP_MODE_GRACEFUL, grace_period=Duration(seconds=90)),
)


async def list_operations(
    request: ListOperationsRequest, _context: Context
) -> ListOperationsResponse:
    """Has three of them, on two pages."""
    if request.page_token:
        return ListOperationsResponse(operations=[STOPPED])
    return ListOperationsResponse(operations=[UNDER_WAY, REFUSED], next_page_token="2")


async def get_operation(request: GetOperationRequest, context: Context) -> GetOperationResponse:
    known = {each.operation_id.replace("-", ""): each for each in (STOPPED, REFUSED, UNDER_WAY)}
    found = known.get(request.operation_id.replace("-", ""))
    if found is None:
        await refuse(context, grpc.StatusCode.NOT_FOUND, "OPERATION_NOT_FOUND", "no operation")
    return GetOperationResponse(operation=found)


async def test_operations_are_a_table(target: Path) -> None:
    async with serving(target, ListOperations=list_operations):
        done = await vmagentctl(target, "operations")
    assert [line.split() for line in done.out.splitlines()] == [
        ["OPERATION", "VERB", "VM", "ACTOR", "ACCEPTED", "PHASE", "TOOK", "NOTE"],
        ["ffffffff", "stop", "c", "user:ann", "2026-01-31", "12:00:00", "signalled", "-"],
        [
            *("0a1b2c3d", "start", "b", "user:ann", "2026-01-31", "12:00:00"),
            *("failed", "0.000", "s", "START_FAILED"),
        ],
        ["0a1b2c3d", "stop", "a", "user:ann", "2026-01-31", "12:00:00", "succeeded", "2.000", "s"],
    ]
    assert (done.code, done.err) == (0, "")


async def test_what_waits_for_its_turn_has_a_place(target: Path) -> None:
    phases = (ACCEPTED, OperationPhase.OPERATION_PHASE_QUEUED)
    waiting = asked("a", *phases, verb=OperationVerb.OPERATION_VERB_START, queue_place=2)

    async def waits(_request: ListOperationsRequest, _context: Context) -> ListOperationsResponse:
        return ListOperationsResponse(operations=[waiting])

    async def get(_request: GetOperationRequest, _context: Context) -> GetOperationResponse:
        return GetOperationResponse(operation=waiting)

    async with serving(target, ListOperations=waits, GetOperation=get):
        table = await vmagentctl(target, "operations")
        page = await vmagentctl(target, "operation", IDS["a"])
    assert table.out.splitlines()[-1].split()[-4:] == ["queued", "-", "place", "2"]
    assert page.out.endswith("waits for its turn, place 2\n")


async def test_json_is_one_answer_and_json_lines_are_the_pages(target: Path) -> None:
    async with serving(target, ListOperations=list_operations):
        whole = await vmagentctl(target, "operations", "-o", "json")
        pages = await vmagentctl(target, "operations", "-o", "jsonl")
    answer = json_format.Parse(whole.out, ListOperationsResponse())
    assert list(answer.operations) == [UNDER_WAY, REFUSED, STOPPED]
    assert len(pages.out.splitlines()) == 2


async def test_a_filter_goes_to_the_daemon(target: Path) -> None:
    requests = []

    async def note(request: ListOperationsRequest, _context: Context) -> ListOperationsResponse:
        requests.append(request)
        return ListOperationsResponse(next_page_token="more" if request.page_size == 7 else "")

    filter_ = ["--vm", "web", "--actor", "user:ann", "--phase", "failed", "--phase", "QUEUED"]
    filter_ += ["--verb", "reboot", "--outcome", "already-done"]
    times = ("--since", "2026-01-31T12:00", "--until", "2026-01-31T12:01", "--limit", "0")
    async with serving(target, ListOperations=note):
        done = await vmagentctl(target, "operations", *filter_, *times)
    assert requests == [
        ListOperationsRequest(
            vm="web",
            actor="user:ann",
            phases=[FAILED, OperationPhase.OPERATION_PHASE_QUEUED],
            verbs=[OperationVerb.OPERATION_VERB_REBOOT],
            outcomes=[OperationOutcome.OPERATION_OUTCOME_ALREADY_DONE],
            min_accept_time=Timestamp(seconds=NOON),
            max_accept_time=Timestamp(seconds=NOON + 60),
            page_size=1000,
        )
    ]
    assert (done.code, done.out) == (0, "no operations\n")


async def test_a_limit_that_cuts_says_so(target: Path) -> None:
    async with serving(target, ListOperations=list_operations):
        done = await vmagentctl(target, "operations", "--limit", "2")
    assert len(done.out.splitlines()) == 3
    assert "there are older ones" in done.err


@pytest.mark.parametrize("said", ["ffffffff", IDS["c"], IDS["c"].upper(), "FFFFFFFF-0000"])
async def test_an_operation_is_a_page(target: Path, said: str) -> None:
    async with serving(target, ListOperations=list_operations, GetOperation=get_operation):
        done = await vmagentctl(target, "operation", said)
    assert done.err == ""
    lines = [line for line in done.out.splitlines() if not line.startswith("Accepted")]
    assert [line.split(maxsplit=1) for line in lines if "Grace" not in line] == [
        ["Operation:", IDS["c"]],
        ["Verb:", "stop"],
        ["VM:", "c (uuid-of-c)"],
        ["Asked", "by:         user:ann"],
        ["Request:", "mine"],
        ["Mode:", "graceful"],
        ["Phase:", "signalled"],
        ["Deadline:", "2026-01-31 12:01:30"],
        ["Step:", "1970-01-01 00:00:00.000  stop accepted, operation " + IDS["c"]],
        ["Step:", "1970-01-01 00:00:00.000  guest asked to shut down"],
    ]
    assert "Grace period:     1m30s" in done.out


async def test_one_that_failed_says_why(target: Path) -> None:
    async with serving(target, GetOperation=get_operation):
        done = await vmagentctl(target, "operation", IDS["b"])
        whole = await vmagentctl(target, "operation", IDS["b"], "-o", "json")
    assert "no disk [START_FAILED]" in done.out
    assert json_format.Parse(whole.out, GetOperationResponse()).operation == REFUSED


@pytest.mark.parametrize(
    ("said", "code", "sentence"),
    [
        ("0a1b2c3d", 2, "0a1b2c3d can be any of 0a1b2c3d-0000-4000-8000-000000000002, "),
        ("12345678", 3, "no operation 12345678; operations are kept for days"),
        ("0000000000004000800000000000000a", 3, "no operation [OPERATION_NOT_FOUND]"),
        ("0a1b2c3", 2, "'0a1b2c3' is not an operation; write its first 8 characters"),
        ("web-server", 2, "'web-server' is not an operation"),
    ],
)
async def test_no_operation_is_guessed(target: Path, said: str, code: int, sentence: str) -> None:
    async with serving(target, ListOperations=list_operations, GetOperation=get_operation):
        for command in ("operation", "cancel"):
            done = await vmagentctl(target, command, said)
            if command == "operation" or "NOT_FOUND" not in sentence:
                assert done.code == code
                assert sentence in done.err
            assert done.out == ""


async def test_cancel_waits_for_the_end(target: Path) -> None:
    async def cancel(
        request: CancelOperationRequest, _context: Context
    ) -> CancelOperationResponse:
        assert request.operation_id == IDS["c"]
        return CancelOperationResponse(operation=asked("c", ACCEPTED, SIGNALLED, CANCELLED))

    async with serving(target, ListOperations=list_operations, CancelOperation=cancel):
        done = await vmagentctl(target, "cancel", "ffffffff")
    assert (done.code, done.err) == (0, "")
    assert done.out == f"c: stop operation {IDS['c']} is cancelled\n"


async def test_what_was_over_before_is_not_cancelled(target: Path) -> None:
    async def cancel(
        _request: CancelOperationRequest, _context: Context
    ) -> CancelOperationResponse:
        return CancelOperationResponse(operation=STOPPED)

    async with serving(target, CancelOperation=cancel):
        done = await vmagentctl(target, "cancel", IDS["a"])
        whole = await vmagentctl(target, "cancel", IDS["a"], "-o", "json")
    assert (done.code, done.out) == (whole.code, "") == (1, "")
    assert done.err == f"vmagentctl: a: stop operation {IDS['a']} was over before: succeeded\n"
    assert json_format.Parse(whole.out, CancelOperationResponse()).operation == STOPPED
