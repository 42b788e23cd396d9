"""Against a real libvirtd, stopped, killed and frozen; and with guests that hang."""

import asyncio
import gc
import os
import signal
import threading
import time
from collections.abc import Awaitable, Iterator
from datetime import timedelta
from pathlib import Path

import libvirt
import pytest

from tests.component.hypervisor.conftest import Connect
from tests.component.hypervisor.host import Host, until
from tests.system.domains import Guests, Spec
from tests.system.guests import Behaviour
from tests.system.libvirtd import PrivateLibvirtd
from vmagentd.errors import (
    LibvirtBusy,
    LibvirtInvalidState,
    LibvirtUnreachable,
    NoShutdownMethod,
    OutcomeUnknown,
    VmNotFound,
)
from vmagentd.hypervisor.guest import AskMethod
from vmagentd.model import Reason, VmState, VmUuid
from vmagentd.pool import Leave, Pool

pytestmark = pytest.mark.timeout(120)

SHORT, LONG = timedelta(milliseconds=10), timedelta(seconds=30)
NOBODY = VmUuid("00000000-0000-4000-8000-000000000000")


async def state(host: Host, vm: VmUuid) -> tuple[VmState, Reason]:
    seen = (await host.domains.look_up(vm)).sighting
    assert seen is not None
    return seen.state, seen.reason


@pytest.mark.parametrize("how", ["stop", "kill"])
async def test_libvirtd_goes_and_comes_back(
    how: str, real: Host, libvirtd: PrivateLibvirtd, guest: Guests
) -> None:
    vm = guest()
    await real.domains.survey()  # opens a link of its own thread
    await real.until_event(vm.uuid, "STARTED_BOOTED")
    taken = real.connection.events_taken

    getattr(libvirtd, how)()
    await until(lambda: not real.connection.connected, "blind")
    (loss,) = real.witness.losses
    assert (loss.cause, loss.link) == ("connection closed: end of file", 1)
    assert real.connection.cause
    with pytest.raises(LibvirtUnreachable):
        await real.domains.look_up(VmUuid(vm.uuid))

    libvirtd.start()
    await real.until_link(2)
    assert len(real.witness.ups) == 2
    assert await state(real, VmUuid(vm.uuid)) == (VmState.RUNNING, Reason.BOOTED)
    assert (await real.domains.survey()).link == 2
    await real.domains.destroy(VmUuid(vm.uuid))
    await until(lambda: real.connection.events_taken > taken + 1, "events, registered again")
    assert [event.number for event in real.witness.events] == list(
        range(1, real.connection.events_taken + 1)
    )
    assert real.witness.kinds(vm.uuid)[-2:] == ["SHUTDOWN_HOST", "STOPPED_DESTROYED"]
    assert real.witness.losses == [loss]


def open_links() -> int:
    """Return how many there are in this process; libvirt closes the socket of a broken one."""
    gc.collect()  # links and their callbacks hold each other
    return sum(isinstance(thing, libvirt.virConnect) for thing in gc.get_objects())


async def test_links_do_not_pile_up(real: Host, libvirtd: PrivateLibvirtd) -> None:
    at_first = open_links()  # no call was made yet: there is the one that events come by
    for link in (1, 2, 3, 4):
        await real.until_link(link)
        await until(lambda: open_links() <= at_first, "the links before it let go of")
        await asyncio.gather(*(real.domains.look_up(NOBODY) for _ in range(4)))
        libvirtd.kill()
        await until(lambda: not real.connection.connected, "blind")
        libvirtd.start()


async def test_saved_memory_is_found_after_libvirtd_forgot_why_the_vm_is_off(
    real: Host, libvirtd: PrivateLibvirtd, guest: Guests
) -> None:
    saved, off = guest(), guest()
    saved.domain.managedSave()
    off.domain.destroy()
    assert await state(real, VmUuid(off.uuid)) == (VmState.STOPPED, Reason.FORCED)
    libvirtd.stop()
    libvirtd.start()
    await real.until_link(2)
    seen = {vm.vm: vm for vm in (await real.domains.survey()).sightings}
    for guest_, expected in (
        (saved, (VmState.SAVED, Reason.SAVED)),
        (off, (VmState.STOPPED, Reason.UNKNOWN)),
    ):
        assert await state(real, VmUuid(guest_.uuid)) == expected
        assert (seen[VmUuid(guest_.uuid)].state, seen[VmUuid(guest_.uuid)].reason) == expected
        assert seen[VmUuid(guest_.uuid)].raw.minor == libvirt.VIR_DOMAIN_SHUTOFF_UNKNOWN
    # discards the saved memory: boots
    await real.domains.start(VmUuid(saved.uuid), paused=True, discard_saved_state=True)
    assert await state(real, VmUuid(saved.uuid)) == (VmState.PAUSED, Reason.PAUSED_BY_USER)
    assert not saved.domain.hasManagedSaveImage()


async def test_a_survey_says_of_each_vm_what_a_look_up_says(real: Host, guest: Guests) -> None:
    running, paused, saved = guest(), guest(), guest()
    off, transient = guest(running=False), guest(persistent=False)
    paused.domain.suspend()
    saved.domain.managedSave()
    for config in (libvirt.VIR_DOMAIN_VCPU_MAXIMUM, 0):  # three vCPUs, two of them in use
        off.domain.setVcpusFlags(3 if config else 2, config | libvirt.VIR_DOMAIN_AFFECT_CONFIG)
    off.domain.setMaxMemory(4096)
    off.domain.setMemoryFlags(2048, libvirt.VIR_DOMAIN_AFFECT_CONFIG)

    seen = {vm.vm: vm for vm in (await real.domains.survey()).sightings}

    made = {VmUuid(vm.uuid) for vm in (running, off, saved, transient, paused)}
    assert seen.keys() == made
    for vm in made:
        assert (await real.domains.look_up(vm)).sighting == seen[vm]
    told = seen[VmUuid(off.uuid)]
    assert (told.vcpus, told.memory_bytes) == (2, 4096 << 10)


async def test_a_survey_does_not_wait_for_guests_that_hang(real: Host, guest: Guests) -> None:
    hanging, off = guest(), guest(running=False)
    hanging.signal(signal.SIGSTOP)  # and nobody has found out yet
    try:
        survey = await real.domains.survey()
    finally:
        hanging.signal(signal.SIGCONT)
    states = {vm.vm: vm.state for vm in survey.sightings}
    assert states == {hanging.uuid: VmState.RUNNING, off.uuid: VmState.STOPPED}


async def test_of_a_process_that_is_gone_libvirt_does_not_tell_what_it_used(
    real: Host, libvirtd: PrivateLibvirtd, guest: Guests
) -> None:
    """For a moment libvirt says that such a VM runs, and that its CPU time is 0."""
    vms = [guest() for _ in range(4)]
    await real.domains.survey()  # its link is open then
    libvirtd.freeze()
    try:
        survey = asyncio.create_task(real.domains.survey())
        queries = [asyncio.create_task(real.domains.look_up(VmUuid(vm.uuid))) for vm in vms]
        processes = [libvirtd.qemu_pid(vm.name) for vm in vms]
        for process in processes:
            os.kill(process, signal.SIGKILL)
        await until(lambda: not any(map(is_there, processes)), "the end of all of them")
    finally:
        libvirtd.thaw()
    for query in await asyncio.gather(*queries):
        assert query.sighting is not None
        assert query.sighting.cpu_time is None
    assert {seen.cpu_time for seen in (await survey).sightings} == {None}


def is_there(process: int) -> bool:
    return Path(f"/proc/{process}").exists()


async def test_a_frozen_libvirtd(connect: Connect, libvirtd: PrivateLibvirtd) -> None:
    async with connect(libvirtd.uri, keepalive_s=1) as host:
        await until(lambda: host.connection.connected, "connected")
        nobodies = [VmUuid(f"00000000-0000-4000-8000-00000000000{n}") for n in range(4)]

        def eight_calls() -> list[Awaitable[object]]:
            return [host.domains.look_up(vm) for vm in nobodies] + [
                host.domains.destroy(vm) for vm in nobodies
            ]

        await asyncio.gather(*eight_calls(), return_exceptions=True)  # opens some links
        libvirtd.freeze()
        try:
            answers = await asyncio.gather(*eight_calls(), return_exceptions=True)
            assert {type(answer) for answer in answers} == {LibvirtUnreachable}
            await until(lambda: not host.connection.connected, "blind")
            assert host.witness.losses[0].cause == "connection closed: keepalive timeout"
        finally:
            libvirtd.thaw()
        await host.until_link(2)
        await host.domains.survey()


@pytest.mark.parametrize("cancelled", [False, True])
async def test_a_start_that_was_given_up_does_not_come_later(
    real: Host, libvirtd: PrivateLibvirtd, guest: Guests, *, cancelled: bool
) -> None:
    """Its thread was still opening a link."""
    vm, leave = VmUuid(guest(running=False).uuid), Leave()
    libvirtd.freeze()
    try:
        start = asyncio.create_task(
            real.domains.start(vm, paused=False, discard_saved_state=False, leave=leave)
        )
        done, _ = await asyncio.wait([start], timeout=0.3)
        assert not done
        assert cancelled or leave.take()
        if cancelled:
            start.cancel()
            await asyncio.wait([start])
            assert not leave.take()
    finally:
        libvirtd.thaw()
    with pytest.raises(asyncio.CancelledError if cancelled else LibvirtUnreachable):
        await start
    # the same thread, so after the call that was given up
    with pytest.raises(VmNotFound):
        await real.domains.start(NOBODY, paused=False, discard_saved_state=False)
    assert (await state(real, vm))[0] is VmState.STOPPED


async def test_closing_does_not_wait_for_a_frozen_libvirtd(
    connect: Connect, libvirtd: PrivateLibvirtd
) -> None:
    try:
        async with connect(libvirtd.uri) as host:
            await until(lambda: host.connection.connected, "connected")
            libvirtd.freeze()
            began = time.monotonic()
        assert time.monotonic() - began < 10  # keepalive gives it up after 20
    finally:
        libvirtd.thaw()


async def test_a_libvirtd_that_dies_during_a_change(
    real: Host, libvirtd: PrivateLibvirtd, guest: Guests
) -> None:
    vm = guest()
    vm.signal(signal.SIGSTOP)  # so that destroy takes its 10 s
    destroying = asyncio.create_task(real.domains.destroy(VmUuid(vm.uuid)))
    await until(
        lambda: any(thread.name == "libvirt-kill-0" for thread in threading.enumerate()),
        "the destroy under way",
    )
    await until(lambda: not destroying.done() and busy(libvirtd, vm.name), "QEMU told to end")
    libvirtd.kill()
    with pytest.raises(OutcomeUnknown):
        await destroying
    vm.signal(signal.SIGCONT)
    libvirtd.start()
    await real.until_link(2)


def busy(libvirtd: PrivateLibvirtd, name: str) -> bool:
    """Whether QEMU has a SIGTERM waiting for it."""
    with open(f"/proc/{libvirtd.qemu_pid(name)}/status", encoding="ascii") as status:  # noqa: PTH123
        pending = {line.split()[0]: int(line.split()[1], 16) for line in status if "Pnd:" in line}
    return bool(pending["ShdPnd:"] & 1 << (signal.SIGTERM - 1))


async def test_how_a_guest_is_asked_to_shut_down(real: Host, guest: Guests) -> None:
    obedient, deaf = guest(), guest(Spec(acpi=False))
    agentless = guest(Spec(agent=True))  # a channel, and nobody at its other end
    assert await real.domains.shutdown(VmUuid(obedient.uuid)) is AskMethod.ACPI
    assert await real.domains.shutdown(VmUuid(agentless.uuid)) is AskMethod.ACPI
    with pytest.raises(NoShutdownMethod):
        await real.domains.shutdown(VmUuid(deaf.uuid))
    for vm in (obedient, agentless):
        await real.until_event(vm.uuid, "STOPPED_SHUTDOWN")
    with pytest.raises(LibvirtInvalidState):
        await real.domains.shutdown(VmUuid(obedient.uuid))


async def test_guests_that_hang_delay_nobody_else(
    connect: Connect, libvirtd: PrivateLibvirtd, guest: Guests
) -> None:
    """Libvirtd reads nothing more from a link with five calls under way, not even keepalive.

    And a second call into a guest that hangs waits in libvirtd for the first one.
    """
    async with connect(libvirtd.uri, keepalive_s=1) as host:
        await until(lambda: host.connection.connected, "connected")
        hanging = [guest(Spec(Behaviour.DEAF)) for _ in range(6)]
        healthy = guest()
        for vm in hanging:
            vm.signal(signal.SIGSTOP)
        presses = [asyncio.create_task(host.domains.shutdown(VmUuid(vm.uuid))) for vm in hanging]
        await until(lambda: in_libvirt(host.domains._act) == 6, "all of them asked")
        for vm in hanging * 3:
            with pytest.raises(LibvirtBusy):
                await host.domains.pause(VmUuid(vm.uuid), deadline=SHORT)
        assert host.domains._act._threads == 6
        assert await host.domains.shutdown(VmUuid(healthy.uuid)) is AskMethod.ACPI
        assert len((await host.domains.survey()).sightings) == 7
        await host.until_event(healthy.uuid, "STOPPED_SHUTDOWN")
        await host.domains.start(VmUuid(healthy.uuid), paused=False, discard_saved_state=False)
        # longer than keepalive's patience: not a link was cut off
        answers = await asyncio.gather(*presses, return_exceptions=True)
        assert {type(answer) for answer in answers} == {OutcomeUnknown}
        assert host.witness.losses == []
        with pytest.raises(LibvirtBusy):  # though it was given up
            await host.domains.pause(VmUuid(hanging[0].uuid), deadline=SHORT)
        for vm in hanging:
            vm.signal(signal.SIGCONT)
        await host.domains.pause(VmUuid(hanging[0].uuid), deadline=LONG)


async def test_resets_that_hang_keep_nobody_from_being_forced_off(
    connect: Connect, libvirtd: PrivateLibvirtd, guest: Guests
) -> None:
    async with connect(libvirtd.uri) as host:
        await until(lambda: host.connection.connected, "connected")
        hanging = [guest(Spec(Behaviour.DEAF)) for _ in range(8)]
        healthy = guest()
        for vm in hanging:
            vm.signal(signal.SIGSTOP)
        resets = [asyncio.create_task(host.domains.reset(VmUuid(vm.uuid))) for vm in hanging]
        pools = (host.domains._act, host.domains._kill)
        await until(lambda: sum(map(in_libvirt, pools)) == 8, "all of them under way")
        await host.domains.destroy(VmUuid(healthy.uuid))
        assert not any(reset.done() for reset in resets)
        for vm in hanging:
            vm.signal(signal.SIGCONT)
        await asyncio.gather(*resets)


async def test_a_vm_is_forced_off_once_at_a_time(
    real: Host, libvirtd: PrivateLibvirtd, guest: Guests
) -> None:
    """Who cancels that and asks again takes no thread from others."""
    vm = guest()
    vm.signal(signal.SIGSTOP)  # so that destroy takes its 10 s
    destroys = [asyncio.create_task(real.domains.destroy(VmUuid(vm.uuid))) for _ in range(3)]
    await until(lambda: busy(libvirtd, vm.name), "QEMU told to end by the first one")
    destroys[0].cancel()
    answers = await asyncio.gather(*destroys, return_exceptions=True)
    assert [type(answer) for answer in answers] == [
        asyncio.CancelledError,
        LibvirtInvalidState,
        LibvirtInvalidState,
    ]
    assert real.domains._kill._threads == 1
    assert await state(real, VmUuid(vm.uuid)) == (VmState.STOPPED, Reason.FORCED)


def in_libvirt(pool: Pool) -> int:
    """Return how many calls of that pool a thread has."""
    return sum(call.running() for call in pool._unfinished)


@pytest.fixture(autouse=True)
def _libvirtd_runs(libvirtd: PrivateLibvirtd) -> Iterator[None]:
    """Leaves libvirtd running for the next test, whatever this one did to it."""
    yield
    if not libvirtd._pid:
        libvirtd.start()
