"""What clients can ask, and what they are told."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

import grpc
import pytest
from vmagent.v1 import host_pb2
from vmagent.v1 import vm_agent_service_pb2 as pb
from vmagent.v1.transition_pb2 import Cursor
from vmagent.v1.vm_pb2 import VM_STATE_GONE, VM_STATE_RUNNING, VM_STATE_STOPPED

from vmagentd.api import convert
from vmagentd.model import VmState

from .conftest import START, refusal, sighting, uuid

if TYPE_CHECKING:
    from .conftest import Served


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


async def test_a_page_up_to_now_has_the_blindness_that_lasts(served: Served) -> None:
    await served.survey(sighting(1, "web"))
    await served.lose_link()
    for oldest_first in (False, True):
        request = pb.ListTransitionsRequest(oldest_first=oldest_first)
        page = await served.stub.ListTransitions(request)
        assert not page.blind_intervals[0].HasField("end_time")
        assert not page.link.libvirt_connected


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
