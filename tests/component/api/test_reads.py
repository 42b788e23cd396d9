"""What clients can ask, and what they are told."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import grpc
import pytest
from vmagent.v1 import host_pb2
from vmagent.v1 import vm_agent_service_pb2 as pb
from vmagent.v1.operation_pb2 import OperationOutcome as OperationOutcomeNumber
from vmagent.v1.operation_pb2 import OperationPhase as OperationPhaseNumber
from vmagent.v1.operation_pb2 import OperationVerb as OperationVerbNumber
from vmagent.v1.transition_pb2 import Cursor
from vmagent.v1.vm_pb2 import VM_STATE_GONE, VM_STATE_RUNNING, VM_STATE_STOPPED

from vmagentd.api import convert
from vmagentd.api.servicer.reading import edges_of
from vmagentd.lifecycle.steps import end, step
from vmagentd.model import (
    HistoryFilter,
    OnGraceExpired,
    Operation,
    OperationId,
    OperationOutcome,
    OperationPhase,
    OperationStep,
    Revision,
    StartParameters,
    StopMode,
    StopParameters,
    VmState,
)
from vmagentd.operations.starts import HostLimits

from .conftest import START, refusal, serving, sighting, uuid

if TYPE_CHECKING:
    from pathlib import Path

    from .conftest import Served

MINUTE = timedelta(minutes=1)


async def test_a_vm_is_found_by_uuid_and_by_name(served: Served) -> None:
    await served.survey(sighting(1, "web"), sighting(2, "db"))
    for ref in ("web", uuid(1), uuid(1).upper(), uuid(1).replace("-", "")):
        answer = await served.stub.GetVm(pb.GetVmRequest(vm=ref))
        assert answer.vm == convert.vm(served.journal.vms[uuid(1)])
        assert answer.link.libvirt_connected


async def test_a_name_may_look_like_a_uuid(served: Served) -> None:
    name = uuid(7).upper().replace("-", "")
    await served.survey(sighting(1, name))
    assert (await served.stub.GetVm(pb.GetVmRequest(vm=name))).vm.uuid == uuid(1)


async def test_a_vm_that_is_gone_is_still_told(served: Served) -> None:
    await served.survey(sighting(1, "web"))
    await served.survey()
    assert (await served.stub.GetVm(pb.GetVmRequest(vm="web"))).vm.state == VM_STATE_GONE


async def test_a_vm_nobody_knows_is_not_found(served: Served) -> None:
    refused = await refusal(served.stub.GetVm(pb.GetVmRequest(vm="nobody")))
    assert (refused.code, refused.reason) == (grpc.StatusCode.NOT_FOUND, "VM_NOT_FOUND")
    assert refused.facts == {"vm": "nobody"}


# --- ListVms ----------------------------------------------------------------------------------


async def names(served: Served, **fields: object) -> list[str]:
    answer = await served.stub.ListVms(pb.ListVmsRequest(**fields))  # type: ignore[arg-type]
    return [vm.name for vm in answer.vms]


async def test_vms_are_listed_by_name_and_can_be_filtered(served: Served) -> None:
    await served.survey(sighting(4, "gone"))
    await served.survey(
        sighting(1, "web-2"), sighting(2, "db", VmState.STOPPED), sighting(3, "web-1")
    )
    assert await names(served) == ["db", "web-1", "web-2"]
    assert await names(served, states=[VM_STATE_RUNNING]) == ["web-1", "web-2"]
    assert await names(served, states=[VM_STATE_STOPPED, VM_STATE_GONE]) == ["db", "gone"]
    assert await names(served, name_glob="web-*") == ["web-1", "web-2"]
    assert await names(served, name_glob="*1", states=[VM_STATE_STOPPED]) == []


async def test_pages_of_vms_make_the_whole_list(served: Served) -> None:
    # Ten of the same name, so that the name alone cannot be where a page goes on.
    vms = [sighting(n, "same" if n % 2 else f"vm{n}") for n in range(1, 21)]
    await served.survey(*vms)
    got: list[str] = []
    request = pb.ListVmsRequest(page_size=3)
    while True:
        page = await served.stub.ListVms(request)
        assert len(page.vms) <= 3
        assert page.cursor == Cursor(journal_id=served.journal.id, revision=served.journal.head)
        got += [vm.uuid for vm in page.vms]
        if not page.next_page_token:
            break
        request.page_token = page.next_page_token
    assert got == [vm.vm for vm in sorted(vms, key=lambda vm: (vm.name, vm.vm))]


async def test_a_page_that_ends_with_the_list_is_the_last(served: Served) -> None:
    await served.survey(sighting(1, "a"), sighting(2, "b"))
    page = await served.stub.ListVms(pb.ListVmsRequest(page_size=2))
    assert (len(page.vms), page.next_page_token) == (2, "")


# --- ListTransitions --------------------------------------------------------------------------


async def revisions(served: Served, **fields: object) -> list[int]:
    request = pb.ListTransitionsRequest(**fields)  # type: ignore[arg-type]
    got: list[int] = []
    while True:
        page = await served.stub.ListTransitions(request)
        got += [transition.revision for transition in page.transitions]
        if not page.next_page_token:
            return got
        request.page_token = page.next_page_token


async def lives(served: Served, rounds: int) -> None:
    """Have two VMs stop and start; every round makes two transitions."""
    for n in range(rounds):
        state = VmState.STOPPED if n % 2 else VmState.RUNNING
        await served.survey(sighting(1, "web", state), sighting(2, "db", state))


@pytest.mark.parametrize("page_size", [1, 3, 7, 1000])
async def test_pages_of_history_have_no_gap_and_no_repeat(served: Served, page_size: int) -> None:
    await lives(served, 6)
    everything = list(range(1, served.journal.head + 1))
    assert len(everything) == 12
    assert await revisions(served, page_size=page_size, oldest_first=True) == everything
    assert await revisions(served, page_size=page_size) == everything[::-1]


async def test_history_can_be_filtered(served: Served) -> None:
    await lives(served, 4)
    of_web = await revisions(served, vm="web", oldest_first=True)
    assert len(of_web) == 4
    assert of_web == await revisions(served, vm=uuid(1).upper(), oldest_first=True)
    assert await revisions(served, min_revision=3, max_revision=5) == [5, 4, 3]
    later = convert.timestamp(datetime.now(UTC) + timedelta(hours=1))
    assert await revisions(served, min_time=later) == []
    assert len(await revisions(served, max_time=later)) == 8


async def test_the_history_of_nobody_is_not_found(served: Served) -> None:
    refused = await refusal(served.stub.ListTransitions(pb.ListTransitionsRequest(vm="nobody")))
    assert refused.reason == "VM_NOT_FOUND"


async def test_a_token_of_another_filter_is_refused(served: Served) -> None:
    await lives(served, 4)
    page = await served.stub.ListTransitions(pb.ListTransitionsRequest(page_size=1))
    for request in (
        pb.ListTransitionsRequest(page_token=page.next_page_token, oldest_first=True),
        pb.ListTransitionsRequest(page_token=page.next_page_token, vm="web"),
        pb.ListTransitionsRequest(page_token=page.next_page_token[:-4]),
    ):
        refused = await refusal(served.stub.ListTransitions(request))
        assert (refused.reason, refused.fields) == ("INVALID_FIELD", ["page_token"])


async def test_history_tells_when_nobody_looked(served: Served) -> None:
    await served.survey(sighting(1, "web"))
    await served.lose_link()
    await served.survey(sighting(1, "web", VmState.STOPPED))
    newest = await served.stub.ListTransitions(pb.ListTransitionsRequest())
    assert len(newest.blind_intervals) >= 1
    assert newest.blind_intervals[0].cause == "it ended"
    assert newest.blind_intervals[0].HasField("end_time")
    # A page that ends before it has nothing of it.
    assert newest.transitions[0].revision == 2
    first = await served.stub.ListTransitions(pb.ListTransitionsRequest(max_revision=1))
    assert "it ended" not in [interval.cause for interval in first.blind_intervals]


async def test_a_page_without_transitions_has_the_blindness_of_its_revisions(
    served: Served,
) -> None:
    await served.survey(sighting(1, "web"))
    await served.lose_link()
    await served.survey(sighting(1, "web", VmState.STOPPED))
    await served.survey(sighting(1, "web"))
    assert await blindness(served, min_revision=4) == []
    await served.lose_link()
    await served.survey(sighting(1, "web"))  # nothing has changed
    assert await blindness(served, min_revision=4) == ["it ended"]
    assert await blindness(served, min_revision=4, oldest_first=True) == ["it ended"]


async def test_nor_has_it_the_blindness_behind_its_revisions(served: Served) -> None:
    await served.survey(sighting(1, "web"))
    await served.lose_link()
    await served.survey(sighting(1, "web", VmState.STOPPED))
    await served.survey(sighting(1, "web", VmState.STOPPED), sighting(2, "db"))
    await served.lose_link()
    before, *_ = await blindness(served, max_revision=1)
    assert await blindness(served, vm="db", max_revision=2) == ["it ended", before]
    assert await blindness(served, vm="db", max_revision=2, oldest_first=True) == [
        "it ended",
        before,
    ]
    assert await blindness(served, vm="db", min_revision=2, max_revision=2) == ["it ended", before]
    # up to now: nothing has come behind it
    assert await blindness(served, min_revision=4, max_revision=9) == ["it ended"]


def test_an_empty_page_that_more_follow_lies_between_its_neighbours() -> None:
    """Whoever sees few VMs has such pages, and each tells its own blindness only."""
    third, ninth = Revision(3), Revision(9)
    upwards, downwards = HistoryFilter(oldest_first=True), HistoryFilter()
    assert edges_of(upwards, after=third, following=ninth) == (3, 9)
    assert edges_of(downwards, after=ninth, following=third) == (3, 9)
    assert edges_of(downwards, after=None, following=third) == (3, None)
    assert edges_of(HistoryFilter(min_revision=third), after=ninth, following=None) == (2, 9)


async def blindness(served: Served, **which: Any) -> list[str]:  # noqa: ANN401  # any field
    page = await served.stub.ListTransitions(pb.ListTransitionsRequest(**which))
    return [interval.cause for interval in page.blind_intervals]


async def test_a_page_up_to_now_has_the_blindness_that_lasts(served: Served) -> None:
    await served.survey(sighting(1, "web"))
    await served.lose_link()
    for oldest_first in (False, True):
        request = pb.ListTransitionsRequest(oldest_first=oldest_first)
        page = await served.stub.ListTransitions(request)
        assert not page.blind_intervals[0].HasField("end_time")
        assert not page.link.libvirt_connected


# --- GetOperation, ListOperations ---------------------------------------------------------------


def stop_of(number: int, vm: int = 1, actor: str = "user:ann") -> Operation:
    accept_time = START + timedelta(seconds=number)
    return Operation(
        id=OperationId(uuid(number)),
        vm=uuid(vm),
        vm_name=f"vm{vm}",
        actor=actor,
        request_id=None,
        parameters=StopParameters(
            mode=StopMode.GRACEFUL,
            grace_period=timedelta(seconds=60),
            on_grace_expired=OnGraceExpired.FAIL,
        ),
        phase=OperationPhase.ACCEPTED,
        steps=(OperationStep(phase=OperationPhase.ACCEPTED, time=accept_time),),
        accept_time=accept_time,
        deadline_time=accept_time + timedelta(seconds=60),
    )


async def done(served: Served, operation: Operation) -> Operation:
    """Have *operation* accepted and ended."""
    await served.journal.append(operation)
    ended = end(
        operation,
        OperationPhase.SUCCEEDED,
        time=operation.accept_time,
        outcome=OperationOutcome.DONE,
    )
    await served.journal.append(ended)
    return ended


async def numbers(served: Served, **fields: object) -> list[int]:
    """Return the numbers of the operations that a request finds, on all pages."""
    request = pb.ListOperationsRequest(**fields)  # type: ignore[arg-type]
    got: list[int] = []
    while True:
        page = await served.stub.ListOperations(request)
        got += [int(operation.operation_id[:8], 16) for operation in page.operations]
        if not page.next_page_token:
            return got
        request.page_token = page.next_page_token


async def test_an_operation_is_told_as_it_stands(served: Served) -> None:
    await served.survey(sighting(1, "web"))
    operation = stop_of(10)
    await served.journal.append(operation)
    for spelling in (uuid(10), uuid(10).upper(), uuid(10).replace("-", "")):
        answer = await served.stub.GetOperation(pb.GetOperationRequest(operation_id=spelling))
        assert answer.operation == convert.operation(operation)
    signalled = step(operation, OperationPhase.SIGNALLED, time=START)
    await served.journal.append(signalled)
    answer = await served.stub.GetOperation(pb.GetOperationRequest(operation_id=uuid(10)))
    assert answer.operation == convert.operation(signalled)


async def test_what_waits_for_its_turn_is_told_with_its_present_place(served: Served) -> None:
    starts = [
        replace(stop_of(number, number), parameters=StartParameters(timeout=MINUTE))
        for number in (1, 2, 3)
    ]
    await served.survey(*(sighting(n, f"vm{n}", VmState.STOPPED) for n in (1, 2, 3)))
    served.starts.limit(HostLimits(starts_at_once=1))
    claims = [served.starts.claim(start, lambda _: None) for start in starts]

    async def places() -> list[int]:
        each = [
            await served.stub.GetOperation(pb.GetOperationRequest(operation_id=start.id))
            for start in starts
        ]
        page = await served.stub.ListOperations(pb.ListOperationsRequest())
        assert [answer.operation for answer in each] == [*page.operations][::-1]
        return [answer.operation.queue_place for answer in each]

    for start in starts:
        await served.journal.append(start)
    assert await places() == [0, 0, 0], "the step is told first"
    for start in starts:
        await served.journal.append(step(start, OperationPhase.QUEUED, time=START))
    assert await places() == [0, 1, 2]
    served.starts.leave(claims[0])
    assert await places() == [0, 0, 1]


async def test_an_operation_nobody_knows_is_not_found(served: Served) -> None:
    request = pb.GetOperationRequest(operation_id=uuid(10))
    refused = await refusal(served.stub.GetOperation(request))
    assert (refused.code, refused.reason) == (grpc.StatusCode.NOT_FOUND, "OPERATION_NOT_FOUND")
    assert refused.facts == {"operation_id": uuid(10)}


@pytest.mark.parametrize("page_size", [1, 2, 1000])
async def test_operations_can_be_filtered(served: Served, page_size: int) -> None:
    await served.survey(sighting(1, "web"), sighting(2, "db"))
    for operation in (stop_of(1), stop_of(2, 2), stop_of(3, actor="user:bob")):
        await done(served, operation)
    await served.journal.append(stop_of(4))
    await served.survey(sighting(2, "db"))  # the first one is gone

    async def found(**fields: object) -> list[int]:
        return await numbers(served, page_size=page_size, **fields)

    assert await found() == [4, 3, 2, 1]
    assert await found(vm="web") == await found(vm=uuid(1).upper()) == [4, 3, 1]
    assert await found(vm="db") == [2]
    assert await found(actor="user:bob") == [3]
    assert await found(actor="nobody") == []
    assert await found(phases=[OperationPhaseNumber.OPERATION_PHASE_ACCEPTED]) == [4]
    assert await found(outcomes=[OperationOutcomeNumber.OPERATION_OUTCOME_DONE]) == [3, 2, 1]
    assert await found(verbs=[OperationVerbNumber.OPERATION_VERB_START]) == []
    assert await found(verbs=[OperationVerbNumber.OPERATION_VERB_STOP], vm="db") == [2]
    third = convert.timestamp(START + timedelta(seconds=3))
    assert await found(min_accept_time=third) == [4, 3]
    assert await found(max_accept_time=third) == [2, 1]


async def test_operations_of_a_vm_that_is_forgotten(folder: Path) -> None:
    async with serving(folder) as served:
        await served.survey(sighting(1, "web"))
        await done(served, stop_of(1))
    with closing(sqlite3.connect(folder / "state/journal.db")) as db, db:
        db.execute("DELETE FROM vm")
    async with serving(folder) as served:
        assert served.journal.find(uuid(1)) is None
        assert await numbers(served) == await numbers(served, vm=uuid(1).upper()) == [1]


async def test_operations_of_nobody_are_not_found(served: Served) -> None:
    for ref in ("nobody", uuid(9)):
        refused = await refusal(served.stub.ListOperations(pb.ListOperationsRequest(vm=ref)))
        assert refused.reason == "VM_NOT_FOUND"


async def test_a_token_of_other_operations_is_refused(served: Served) -> None:
    await served.survey(sighting(1, "web"))
    for number in (1, 2):
        await done(served, stop_of(number))
    token = (
        await served.stub.ListOperations(pb.ListOperationsRequest(page_size=1))
    ).next_page_token
    for request in (
        pb.ListOperationsRequest(page_token=token, vm="web"),
        pb.ListOperationsRequest(page_token=token, actor="user:ann"),
        pb.ListOperationsRequest(page_token=token[:-4]),
    ):
        refused = await refusal(served.stub.ListOperations(request))
        assert (refused.reason, refused.fields) == ("INVALID_FIELD", ["page_token"])


# --- GetHost ----------------------------------------------------------------------------------


async def test_the_host(served: Served) -> None:
    await served.survey(sighting(1, "web"), sighting(2, "db"), sighting(3, "off", VmState.STOPPED))
    host = (await served.stub.GetHost(pb.GetHostRequest())).host
    assert (host.name, host.daemon_version, host.boot_id) == ("host1", "0.1.0", "boot")
    assert (host.libvirt_version, host.hypervisor_version) == ("9.0.0", "QEMU 7.2.0")
    assert (host.libvirt_uri, host.journal_id) == ("test:///default", served.journal.id)
    assert (host.head_revision, host.oldest_revision) == (3, 1)
    assert host.journal_writable
    assert host.link.libvirt_connected
    assert list(host.state_counts) == [
        host_pb2.StateCount(state=VM_STATE_RUNNING, count=2),
        host_pb2.StateCount(state=VM_STATE_STOPPED, count=1),
    ]
    assert host.capacity == host_pb2.Capacity(
        active_vms=2,
        used_vcpus=4,
        used_memory_bytes=2 << 30,
        host_cpus=8,
        host_memory_bytes=1 << 34,
        running_starts_limit=8,
    )
    assert host.start_time.ToDatetime(tzinfo=UTC) == START
    assert host.ready_time.ToDatetime(tzinfo=UTC) == START + timedelta(seconds=1)


async def test_the_host_while_blind(served: Served) -> None:
    await served.survey(sighting(1, "web"))
    await served.lose_link()
    host = (await served.stub.GetHost(pb.GetHostRequest())).host
    assert not host.link.libvirt_connected
    assert host.blind_intervals[0].cause == "it ended"
    assert host.link.blind_since == host.blind_intervals[0].begin_time
