from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING

import grpc
import pytest
from google.protobuf import json_format
from google.protobuf.duration_pb2 import Duration
from vmagent.v1.operation_pb2 import (
    OperationPhase,
    OperationVerb,
    RebootMode,
    RebootOnGraceExpired,
    StopMode,
    StopOnGraceExpired,
)
from vmagent.v1.vm_agent_service_pb2 import (
    PauseRequest,
    PauseResponse,
    RebootRequest,
    RebootResponse,
    ResumeRequest,
    StartRequest,
    StartResponse,
    StopRequest,
    StopResponse,
)

from tests.component.ctl.scripted import UP, operation, refuse, serving, stop_responses, vm
from tests.component.ctl.terminal import DEADLINE_S, vmagentctl

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from tests.component.ctl.scripted import Context

ACCEPTED = OperationPhase.OPERATION_PHASE_ACCEPTED
SIGNALLED = OperationPhase.OPERATION_PHASE_SIGNALLED
SUCCEEDED = OperationPhase.OPERATION_PHASE_SUCCEEDED
FAILED = OperationPhase.OPERATION_PHASE_FAILED
QUEUED = OperationPhase.OPERATION_PHASE_QUEUED
STARTING = OperationPhase.OPERATION_PHASE_STARTING
APPLYING = OperationPhase.OPERATION_PHASE_APPLYING
WAITING = OperationPhase.OPERATION_PHASE_WAITING
FORCING = OperationPhase.OPERATION_PHASE_FORCING
START = OperationVerb.OPERATION_VERB_START
REBOOT = OperationVerb.OPERATION_VERB_REBOOT
PAUSE = OperationVerb.OPERATION_VERB_PAUSE


async def stop(request: StopRequest, context: Context) -> AsyncIterator[StopResponse]:
    """Stops any VM but those that are called by how they fail."""
    match request.vm:
        case "nope":
            await refuse(context, grpc.StatusCode.NOT_FOUND, "VM_NOT_FOUND", "no VM 'nope'")
        case "paused":
            for response in stop_responses(request.vm, ACCEPTED, FAILED):
                yield response
            await refuse(
                context, grpc.StatusCode.FAILED_PRECONDITION, "VM_PAUSED", "VM paused is paused"
            )
        case "busy1" | "busy2":
            for response in stop_responses(request.vm, ACCEPTED, FAILED):
                yield response
            await refuse(context, grpc.StatusCode.ABORTED, "LIBVIRT_BUSY", "another job runs")
        case "web":
            for response in stop_responses(request.vm, ACCEPTED, FAILED):
                yield response
            said = "web-2, old.web, web.old and the-web use its disk"
            await refuse(context, grpc.StatusCode.ABORTED, "LIBVIRT_BUSY", said)
        case "db":
            for response in stop_responses(request.vm, ACCEPTED, FAILED):
                yield response
            await refuse(context, grpc.StatusCode.ABORTED, "LIBVIRT_BUSY", "no power for db.")
        case _:
            for response in stop_responses(request.vm, ACCEPTED, SIGNALLED, SUCCEEDED):
                yield response


async def test_each_step_is_a_line_and_the_result_is_the_last(target: Path) -> None:
    async with serving(target, Stop=stop):
        done = await vmagentctl(target, "stop", "a")
    assert done.out.splitlines() == [
        "a: stop accepted, operation op-of-a",
        "a: guest asked to shut down",
        "a: RUNNING (booted)",
    ]
    assert (done.code, done.err) == (0, "")


async def test_of_several_vms_the_worst_decides(target: Path) -> None:
    async with serving(target, Stop=stop):
        done = await vmagentctl(target, "stop", "a", "paused", "nope", "b")
    assert done.code == 3
    assert sorted(done.err.splitlines()) == [
        "vmagentctl: VM paused is paused [VM_PAUSED]",
        "vmagentctl: no VM 'nope' [VM_NOT_FOUND]",
    ]
    assert {"a: RUNNING (booted)", "b: RUNNING (booted)"} < set(done.out.splitlines())


async def test_of_several_vms_each_failure_names_its_own(target: Path) -> None:
    async with serving(target, Stop=stop):
        several = await vmagentctl(target, "stop", "busy1", "busy2", "a")
        one = await vmagentctl(target, "stop", "busy1")
    assert sorted(several.err.splitlines()) == [
        "vmagentctl: busy1: another job runs [LIBVIRT_BUSY]",
        "vmagentctl: busy2: another job runs [LIBVIRT_BUSY]",
    ]
    assert one.err == "vmagentctl: another job runs [LIBVIRT_BUSY]\n"


async def test_a_name_in_another_name_is_not_the_vm_s_own(target: Path) -> None:
    async with serving(target, Stop=stop):
        done = await vmagentctl(target, "stop", "web", "db")
    assert sorted(done.err.splitlines()) == [
        "vmagentctl: no power for db. [LIBVIRT_BUSY]",
        "vmagentctl: web: web-2, old.web, web.old and the-web use its disk [LIBVIRT_BUSY]",
    ]


async def test_several_vms_go_side_by_side(target: Path) -> None:
    under_way: set[str] = set()
    both = asyncio.Event()

    async def wait_for_both(
        request: StopRequest, _context: Context
    ) -> AsyncIterator[StopResponse]:
        accepted, ended_ = stop_responses(request.vm, ACCEPTED, SUCCEEDED)
        yield accepted
        under_way.add(request.vm)
        if len(under_way) == 2:
            both.set()
        await asyncio.wait_for(both.wait(), DEADLINE_S)
        yield ended_

    async with serving(target, Stop=wait_for_both):
        done = await vmagentctl(target, "stop", "a", "b", "a")
    assert (done.code, done.err, len(done.out.splitlines())) == (0, "", 4)


async def test_json_lines_are_the_responses_and_json_is_the_last_one(target: Path) -> None:
    async with serving(target, Stop=stop):
        lines = await vmagentctl(target, "stop", "paused", "-o", "jsonl")
        last = await vmagentctl(target, "-o", "json", "stop", "paused")
    expected = stop_responses("paused", ACCEPTED, FAILED)
    assert [json_format.Parse(text, StopResponse()) for text in lines.out.splitlines()] == expected
    assert json_format.Parse(last.out, StopResponse()) == expected[-1]
    assert lines.code == last.code == 1


async def test_stop_asks_for_what_was_wanted(target: Path) -> None:
    asked: list[StopRequest] = []

    async def note(request: StopRequest, context: Context) -> AsyncIterator[StopResponse]:
        asked.append(request)
        async for response in stop(request, context):
            yield response

    async with serving(target, Stop=note):
        await vmagentctl(target, "stop", "a")
        await vmagentctl(
            target, "stop", "a", "--force", "--grace", "1m30s", "--on-grace-expired", "force"
        )
    plain, full = asked
    assert not plain.HasField("grace_period")
    assert (full.mode, full.on_grace_expired, full.grace_period.seconds) == (
        StopMode.STOP_MODE_FORCE,
        StopOnGraceExpired.STOP_ON_GRACE_EXPIRED_FORCE,
        90,
    )
    assert plain.request_id != full.request_id


async def test_start_asks_for_what_was_wanted(target: Path) -> None:
    asked: list[StartRequest] = []

    async def start(request: StartRequest, context: Context) -> None:
        asked.append(request)
        await refuse(context, grpc.StatusCode.RESOURCE_EXHAUSTED, "HOST_EXHAUSTED", "no memory")

    options = ("--paused", "--discard-saved-state", "--force", "--timeout", "5")
    async with serving(target, Start=start):
        done = await vmagentctl(target, "start", "a", *options)
    (request,) = asked
    assert (request.vm, request.paused, request.discard_saved_state, request.force) == (
        "a",
        True,
        True,
        True,
    )
    assert request.timeout.seconds == 5
    assert (done.code, done.err) == (1, "vmagentctl: no memory [HOST_EXHAUSTED]\n")


@pytest.mark.parametrize("phases", [(), (ACCEPTED,)])
async def test_an_end_without_an_outcome_is_no_success(
    target: Path, phases: tuple[OperationPhase.ValueType, ...]
) -> None:
    async def end_early(request: StopRequest, _context: Context) -> AsyncIterator[StopResponse]:
        for response in stop_responses(request.vm, *phases):
            yield response

    async with serving(target, Stop=end_early):
        done = await vmagentctl(target, "stop", "a", "-o", "json")
    assert done.code == 1
    assert "without saying how it went" in done.err
    assert bool(phases) == bool(done.out and json.loads(done.out))


async def test_other_verbs_ask_for_what_was_wanted(target: Path) -> None:
    asked: list[object] = []

    async def reboot(request: RebootRequest, context: Context) -> AsyncIterator[RebootResponse]:
        asked.append(request)
        phases = (ACCEPTED, SIGNALLED, WAITING, FORCING, SUCCEEDED)
        yield RebootResponse(operation=operation("a", *phases, verb=REBOOT), vm=vm("a"), link=UP)

    async def pause(request: PauseRequest, context: Context) -> AsyncIterator[PauseResponse]:
        asked.append(request)
        phases = (ACCEPTED, APPLYING, SUCCEEDED)
        yield PauseResponse(operation=operation("a", *phases, verb=PAUSE), vm=vm("a"), link=UP)

    async def resume(request: ResumeRequest, context: Context) -> None:
        asked.append(request)
        await refuse(context, grpc.StatusCode.FAILED_PRECONDITION, "VM_STATE", "VM a is off")

    options = ("--force", "--grace", "5", "--on-grace-expired", "force", "--request-id", "mine")
    async with serving(target, Reboot=reboot, Pause=pause, Resume=resume):
        rebooted = await vmagentctl(target, "reboot", "a", *options)
        paused = await vmagentctl(target, "pause", "a", "--timeout", "7s")
        resumed = await vmagentctl(target, "resume", "a")
    assert rebooted.out.splitlines() == [
        "a: reboot accepted, operation op-of-a",
        "a: guest asked to reboot",
        "a: waiting for it to come up again",
        "a: resetting it",
        "a: RUNNING (booted)",
    ]
    assert paused.out.splitlines()[1] == "a: libvirt pauses it"
    assert (resumed.code, resumed.err) == (1, "vmagentctl: VM a is off [VM_STATE]\n")
    full, brief, bare = asked
    assert full == RebootRequest(
        vm="a",
        request_id="mine",
        mode=RebootMode.REBOOT_MODE_FORCE,
        grace_period=Duration(seconds=5),
        on_grace_expired=RebootOnGraceExpired.REBOOT_ON_GRACE_EXPIRED_FORCE,
    )
    assert isinstance(brief, PauseRequest)
    assert brief.timeout == Duration(seconds=7)
    assert isinstance(bare, ResumeRequest)
    assert bare.request_id
    assert not bare.HasField("timeout")


async def test_a_request_id_goes_as_it_is(target: Path) -> None:
    asked: list[str] = []

    async def note(request: StopRequest, context: Context) -> AsyncIterator[StopResponse]:
        asked.append(request.request_id)
        async for response in stop(request, context):
            yield response

    async with serving(target, Stop=note):
        one = await vmagentctl(target, "stop", "a", "a", "--request-id", "mine")
        two = await vmagentctl(target, "stop", "a", "b", "--request-id", "mine")
    assert (one.code, asked) == (0, ["mine"])
    assert two.code == 2
    assert "--request-id: it is of one request: name one VM" in two.err


async def test_its_place_is_told_while_it_waits_for_its_turn(target: Path) -> None:
    async def start(_request: StartRequest, _context: Context) -> AsyncIterator[StartResponse]:
        for place, phases in (
            (0, (ACCEPTED,)),
            (3, (ACCEPTED, QUEUED)),
            (1, (ACCEPTED, QUEUED)),
            (0, (ACCEPTED, QUEUED, STARTING)),
            (0, (ACCEPTED, QUEUED, STARTING, SUCCEEDED)),
        ):
            made = operation("a", *phases, verb=START, queue_place=place)
            yield StartResponse(operation=made, vm=vm("a"), link=UP)

    async with serving(target, Start=start):
        done = await vmagentctl(target, "start", "a")
    assert done.out.splitlines() == [
        "a: start accepted, operation op-of-a",
        "a: waits for its turn, place 3",
        "a: waits for its turn, place 1",
        "a: libvirt starts it",
        "a: RUNNING (booted)",
    ]
