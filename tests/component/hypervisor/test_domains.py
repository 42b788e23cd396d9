"""Queries and changes on libvirt's test driver."""

import asyncio
import threading
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest

from tests.component.hypervisor.conftest import Connect
from tests.component.hypervisor.host import Host, domain_xml, host_xml, until
from vmagentd.errors import (
    LibvirtInvalidState,
    LibvirtUnreachable,
    LibvirtUnsupported,
    VmNotFound,
)
from vmagentd.hypervisor.guest import AskMethod
from vmagentd.model import Reason, Sighting, Source, VmState, VmUuid

NOBODY = VmUuid("00000000-0000-4000-8000-000000000000")


async def start(host: Host, vm: VmUuid) -> None:
    await host.domains.start(vm, paused=False, discard_saved_state=False)


async def sighting(host: Host, vm: VmUuid) -> Sighting:
    seen = (await host.domains.look_up(vm)).sighting
    assert seen is not None
    return seen


async def test_a_survey_equals_what_is_there(host: Host) -> None:
    host.raw.lookupByName("b").suspend()
    off = host.define("off")
    saved = host.define("saved")
    saved.create()
    saved.managedSave()
    host.raw.createXML(domain_xml("transient", memory_kib=4096, vcpus=1))
    before = datetime.now(UTC)

    survey = await host.domains.survey()

    seen = {vm.name: vm for vm in survey.sightings}
    assert {name: (vm.state, vm.reason) for name, vm in seen.items()} == {
        "a": (VmState.RUNNING, Reason.UNKNOWN),
        "b": (VmState.PAUSED, Reason.PAUSED_BY_USER),
        "off": (VmState.STOPPED, Reason.UNKNOWN),
        "saved": (VmState.SAVED, Reason.SAVED),
        "transient": (VmState.RUNNING, Reason.BOOTED),
    }
    assert {name for name, vm in seen.items() if vm.persistent} == {"a", "b", "off", "saved"}
    assert {name for name, vm in seen.items() if vm.active} == {"a", "b", "transient"}
    assert {name for name, vm in seen.items() if vm.run_id} == {"a", "b", "transient"}
    assert seen["off"].vm == off.UUIDString()
    assert (seen["transient"].memory_bytes, seen["transient"].vcpus) == (4096 << 10, 1)
    assert survey.unreadable == ()
    assert survey.link == 1
    assert before <= survey.begin_time <= datetime.now(UTC)


async def test_a_look_up_says_what_a_survey_says(host: Host) -> None:
    host.define("off")
    host.raw.createXML(domain_xml("transient"))
    for seen in (await host.domains.survey()).sightings:
        again = await sighting(host, seen.vm)
        assert replace(again, cpu_time=seen.cpu_time) == seen
        assert (again.cpu_time is not None) == (seen.cpu_time is not None) == seen.active


async def test_a_survey_that_hangs_leaves_threads_for_queries(host: Host) -> None:
    vm, free = host.vm("a"), threading.Event()
    observe = host.domains._observe
    hung = asyncio.create_task(observe.run(lambda _: free.wait(), lane="survey"))
    await until(lambda: observe.has("survey"), "it is under way")
    surveys = [asyncio.create_task(host.domains.survey()) for _ in range(4)]
    try:
        assert (await sighting(host, vm)).state is VmState.RUNNING
        assert observe._threads == 2
    finally:
        free.set()
    await asyncio.gather(hung, *surveys)


async def test_queries_know_which_event_came_last_before_them(host: Host) -> None:
    vm = host.vm("a")
    assert (await host.domains.survey()).after_event == 0
    host.raw.lookupByName("a").suspend()
    await host.until_seen(vm, "SUSPENDED_PAUSED")
    assert (await host.domains.survey()).after_event == 1
    assert (await host.domains.look_up(vm)).after_event == 1
    by_name = await host.domains.look_up_name("a")
    assert by_name is not None
    assert by_name.after_event == 1


async def test_queries_and_surveys_are_counted_as_they_begin(host: Host) -> None:
    vm = host.vm("a")
    assert (await host.domains.survey()).number == 1
    later = asyncio.create_task(host.domains.look_up(vm))
    assert (await host.domains.look_up(vm)).number == 2
    assert (await later).number == 3
    by_name = await host.domains.look_up_name("a")
    assert by_name is not None
    assert by_name.number == 4


async def test_look_ups_by_name(host: Host) -> None:
    found = await host.domains.look_up_name("a", source=Source.OPERATION)
    assert found is not None
    assert found.vm == host.vm("a")
    again = await sighting(host, host.vm("a"))
    assert found.sighting is not None
    assert found.sighting == replace(again, cpu_time=found.sighting.cpu_time)
    assert found.source is Source.OPERATION
    assert await host.domains.look_up_name("nobody") is None


async def test_a_vm_that_libvirt_does_not_know(host: Host) -> None:
    assert (await host.domains.look_up(NOBODY)).sighting is None
    with pytest.raises(VmNotFound):
        await start(host, NOBODY)
    with pytest.raises(VmNotFound):
        await host.domains.shutdown(NOBODY)
    with pytest.raises(VmNotFound):
        await host.domains.destroy(NOBODY)


async def test_shutdown_start_destroy(host: Host) -> None:
    vm = host.vm("a")
    assert await host.domains.shutdown(vm) is AskMethod.DRIVER
    assert (await sighting(host, vm)).reason is Reason.CLEAN_SHUTDOWN
    await start(host, vm)
    assert (await sighting(host, vm)).reason is Reason.BOOTED
    await host.domains.destroy(vm)
    assert (await sighting(host, vm)).reason is Reason.FORCED
    await host.until_seen(vm, "STOPPED_SHUTDOWN", "STARTED_RUNNING", "STOPPED_DESTROYED")


async def test_starts_and_forced_stops_do_not_wait_for_guests_that_hang(host: Host) -> None:
    vm, free = host.vm("a"), threading.Event()
    act = host.domains._act
    hung = [asyncio.create_task(act.run(lambda _: free.wait())) for _ in range(100)]
    await until(lambda: len(act._unfinished) == 100, "no thread for such calls left")
    try:
        await host.domains.destroy(vm)
        await start(host, vm)
        assert (await sighting(host, vm)).state is VmState.RUNNING
    finally:
        free.set()
    await asyncio.gather(*hung)


async def test_what_is_refused_in_the_wrong_state(host: Host) -> None:
    vm = host.vm("a")
    with pytest.raises(LibvirtInvalidState):
        await start(host, vm)
    host.raw.lookupByName("a").suspend()
    with pytest.raises(LibvirtInvalidState):
        await start(host, vm)
    await host.domains.destroy(vm)
    with pytest.raises(LibvirtInvalidState):
        await host.domains.destroy(vm)
    with pytest.raises(LibvirtInvalidState):
        await host.domains.shutdown(vm)


@pytest.mark.parametrize(("paused", "discard"), [(True, False), (False, True)])
async def test_a_flag_that_the_driver_lacks(host: Host, paused: bool, discard: bool) -> None:  # noqa: FBT001
    vm = host.vm("a")
    await host.domains.destroy(vm)
    with pytest.raises(LibvirtUnsupported):
        await host.domains.start(vm, paused=paused, discard_saved_state=discard)
    assert (await sighting(host, vm)).state is VmState.STOPPED


async def test_a_survey_of_more_than_one_reply_holds(tmp_path: Path, connect: Connect) -> None:
    names = [f"vm-{n}" for n in range(2500)]
    description = tmp_path / "many.xml"
    description.write_text(host_xml(names))
    async with connect(f"test://{description}") as host:
        await until(lambda: host.connection.connected, "connected")
        survey = await host.domains.survey()
        assert sorted(vm.name for vm in survey.sightings) == sorted(names)
        assert {vm.state for vm in survey.sightings} == {VmState.RUNNING}


async def test_while_blind_nothing_is_asked(connect: Connect) -> None:
    async with connect("qemu:///system?socket=/nowhere") as host:
        await until(lambda: host.witness.losses, "a loss")
        for call in (
            host.domains.survey(),
            host.domains.look_up(NOBODY),
            host.domains.look_up_name("a"),
            start(host, NOBODY),
            host.domains.shutdown(NOBODY),
            host.domains.destroy(NOBODY),
        ):
            with pytest.raises(LibvirtUnreachable, match=r"since .*/nowhere") as raised:
                await call
            assert raised.value.facts["blind_since"]
