"""Start and Stop as their callers see them."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

import grpc
from google.protobuf.duration_pb2 import Duration
from vmagent.v1 import operation_pb2
from vmagent.v1 import vm_agent_service_pb2 as pb

from vmagentd.api import convert
from vmagentd.errors import GraceExpired, LibvirtUnreachable, VmNotFound
from vmagentd.model import (
    OnGraceExpired,
    Operation,
    OperationFailure,
    OperationId,
    OperationOutcome,
    OperationPhase,
    OperationStep,
    OperationVerb,
    StartParameters,
    StopMode,
    StopParameters,
)

from .conftest import collected, refusal, sighting, uuid

if TYPE_CHECKING:
    from .conftest import Served

NOW = datetime(2026, 1, 31, tzinfo=UTC)
ACCEPTED = Operation(
    id=OperationId("0a000000-0000-4000-8000-000000000000"),
    vm=uuid(1),
    vm_name="web",
    actor="user:root",
    request_id=None,
    parameters=StartParameters(timeout=timedelta(seconds=120)),
    phase=OperationPhase.ACCEPTED,
    steps=(OperationStep(phase=OperationPhase.ACCEPTED, time=NOW),),
    accept_time=NOW,
    deadline_time=NOW + timedelta(seconds=120),
)
DONE = replace(
    ACCEPTED, phase=OperationPhase.SUCCEEDED, outcome=OperationOutcome.DONE, end_time=NOW
)


async def test_a_start_is_told_step_by_step(served: Served) -> None:
    await served.survey(sighting(1, "web"))
    served.operations.steps = [ACCEPTED, DONE]
    told = await collected(served.stub.Start(pb.StartRequest(vm="web")))
    assert [each.operation for each in told] == [
        convert.operation(ACCEPTED),
        convert.operation(DONE),
    ]
    for each in told:
        assert each.vm == convert.vm(served.journal.vms[uuid(1)])
        assert each.link.libvirt_connected


async def test_what_was_asked_arrives(served: Served) -> None:
    await served.survey(sighting(1, "web"))
    start = pb.StartRequest(
        vm=uuid(1).upper(), request_id="r1", force=True, timeout=Duration(seconds=7)
    )
    await collected(served.stub.Start(start))
    stop = pb.StopRequest(
        vm="web",
        mode=operation_pb2.STOP_MODE_GRACEFUL,
        grace_period=Duration(seconds=9),
        on_grace_expired=operation_pb2.STOP_ON_GRACE_EXPIRED_FORCE,
    )
    await collected(served.stub.Stop(stop))
    assert served.operations.asked == [
        (uuid(1), StartParameters(force=True, timeout=timedelta(seconds=7)), "user:root", "r1"),
        (
            "web",
            StopParameters(
                mode=StopMode.GRACEFUL,
                grace_period=timedelta(seconds=9),
                on_grace_expired=OnGraceExpired.FORCE,
            ),
            "user:root",
            None,
        ),
    ]


async def test_a_refusal_before_acceptance(served: Served) -> None:
    served.operations.steps = [VmNotFound("web")]
    for call in (
        served.stub.Start(pb.StartRequest(vm="web")),
        served.stub.Stop(pb.StopRequest(vm="web")),
    ):
        refused = await refusal(call)
        assert (refused.code, refused.reason) == (grpc.StatusCode.NOT_FOUND, "VM_NOT_FOUND")


async def test_an_operation_that_failed_is_told_and_then_ends_the_call(served: Served) -> None:
    await served.survey(sighting(1, "web"))
    error = GraceExpired(served.journal.vms[uuid(1)], OperationVerb.STOP, timedelta(seconds=60))
    failure = OperationFailure(error="GraceExpired", message=str(error), facts=error.facts)
    failed = replace(ACCEPTED, phase=OperationPhase.FAILED, failure=failure, end_time=NOW)
    served.operations.steps = [ACCEPTED, failed]
    call = served.stub.Stop(pb.StopRequest(vm="web"))
    told: list[pb.StopResponse] = []

    async def read() -> None:
        async for message in call:
            told.append(message)  # noqa: PERF401  # what came before the error counts

    refused = await refusal(read())
    assert told[-1].operation.phase == operation_pb2.OPERATION_PHASE_FAILED
    assert told[-1].operation.error.reason == refused.reason == "GRACE_EXPIRED"
    assert told[-1].operation.error.metadata == refused.facts == error.facts
    assert told[-1].operation.error.code == refused.code.value[0]
    assert refused.code is grpc.StatusCode.DEADLINE_EXCEEDED
    assert refused.message == told[-1].operation.error.message == str(error)


async def test_an_error_where_a_retry_helps_says_when(served: Served) -> None:
    served.operations.steps = [LibvirtUnreachable("no socket", NOW)]
    refused = await refusal(served.stub.Start(pb.StartRequest(vm="web")))
    assert refused.code is grpc.StatusCode.UNAVAILABLE
    assert refused.details == ["ErrorInfo", "RetryInfo"]


async def test_a_failure_with_an_endless_text_still_arrives(served: Served) -> None:
    text = "qemu says: ü\n" * 100_000
    failure = OperationFailure(
        error="StartFailed", message=text, facts={"vm": uuid(1), "libvirt_message": text}
    )
    served.operations.steps = [replace(DONE, phase=OperationPhase.FAILED, failure=failure)]
    refused = await refusal(served.stub.Start(pb.StartRequest(vm="web")))
    assert (refused.code, refused.reason) == (
        grpc.StatusCode.FAILED_PRECONDITION,
        "START_FAILED",
    )
