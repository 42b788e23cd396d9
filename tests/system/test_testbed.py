"""The test bed's own tests: guests do what they say, and libvirt says what we think it says.

The histories here are what libvirt 9.0 and QEMU 7.2 were seen to do; vmagentd's idea of a VM's
life rests on them. If one of these tests fails with newer versions, that is news for vmagentd.
"""

import contextlib
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import libvirt
import pytest

from tests.system.deadline import NeverHappenedError, until
from tests.system.domains import Guest, Guests, Spec, Then
from tests.system.guests import Behaviour, Roms
from tests.system.recorder import Recorder

DEFINED = "DEFINED/ADDED"
BOOTED = ["RESUMED/UNPAUSED", "STARTED/BOOTED"]
PAUSED = "SUSPENDED/PAUSED"
PANICKED = "CRASHED/PANICKED"
CLEAN = ["SHUTDOWN/GUEST", "STOPPED/SHUTDOWN"]

SHUT_OFF = (libvirt.VIR_DOMAIN_SHUTOFF, libvirt.VIR_DOMAIN_SHUTOFF_SHUTDOWN)
DESTROYED = (libvirt.VIR_DOMAIN_SHUTOFF, libvirt.VIR_DOMAIN_SHUTOFF_DESTROYED)
CRASHED_OFF = (libvirt.VIR_DOMAIN_SHUTOFF, libvirt.VIR_DOMAIN_SHUTOFF_CRASHED)
RUNNING = (libvirt.VIR_DOMAIN_RUNNING, libvirt.VIR_DOMAIN_RUNNING_BOOTED)


def nothing(_: Guest) -> None:
    pass


def press(vm: Guest) -> None:
    vm.domain.shutdown()


def send(sig: signal.Signals) -> Callable[[Guest], None]:
    return lambda vm: vm.signal(sig)


@dataclass(frozen=True, slots=True)
class History:
    """What becomes of a guest that was booted."""

    spec: Spec
    what_happens: Callable[[Guest], object]
    seen: list[str]
    state: tuple[int, int]
    id: str = field(kw_only=True)


HISTORIES = [
    History(Spec(), press, CLEAN, SHUT_OFF, id="shutdown"),
    History(Spec(Behaviour.SLOW, 0.3), press, CLEAN, SHUT_OFF, id="slow shutdown"),
    History(Spec(Behaviour.POWEROFF, 0.2), nothing, CLEAN, SHUT_OFF, id="poweroff"),
    History(Spec(on_poweroff=Then.RESTART), press, ["REBOOT"], RUNNING, id="shutdown, restarts"),
    History(Spec(), lambda vm: vm.domain.reboot(), ["REBOOT"], RUNNING, id="reboot"),
    History(Spec(Behaviour.DEAF), lambda vm: vm.domain.reset(), ["REBOOT"], RUNNING, id="reset"),
    History(Spec(Behaviour.RESET, 0.2), nothing, ["REBOOT"], RUNNING, id="resets itself"),
    History(Spec(Behaviour.FAULT, 0.2), nothing, ["REBOOT"], RUNNING, id="triple fault"),
    History(
        Spec(Behaviour.RESET, 0.2, on_reboot=Then.DESTROY),
        nothing,
        CLEAN,
        SHUT_OFF,
        id="resets itself, destroys",
    ),
    History(
        Spec(Behaviour.PANIC, 0.2),
        nothing,
        [PANICKED, "STOPPED/CRASHED"],
        CRASHED_OFF,
        id="panic",
    ),
    History(
        Spec(Behaviour.PANIC, 0.2, on_crash=Then.PRESERVE),
        nothing,
        [PANICKED],
        (libvirt.VIR_DOMAIN_CRASHED, libvirt.VIR_DOMAIN_CRASHED_PANICKED),
        id="panic, preserved",
    ),
    History(
        Spec(Behaviour.PANIC, 0.2, on_crash=Then.RESTART),
        nothing,
        [PANICKED, "REBOOT", "RESUMED/UNPAUSED"],
        (libvirt.VIR_DOMAIN_RUNNING, libvirt.VIR_DOMAIN_RUNNING_CRASHED),
        id="panic, restarts",
    ),
    History(
        Spec(Behaviour.SLEEP, 0.2),
        nothing,
        ["PMSUSPEND", "PMSUSPENDED/MEMORY"],
        (libvirt.VIR_DOMAIN_PMSUSPENDED, libvirt.VIR_DOMAIN_PMSUSPENDED_UNKNOWN),
        id="sleep",
    ),
    History(
        Spec(),
        lambda vm: vm.domain.destroy(),
        ["SHUTDOWN/HOST", "STOPPED/DESTROYED"],
        DESTROYED,
        id="destroy",
    ),
    History(
        Spec(),
        send(signal.SIGTERM),
        ["SHUTDOWN/HOST", "STOPPED/SHUTDOWN"],
        SHUT_OFF,
        id="QEMU terminated",
    ),
    History(Spec(), send(signal.SIGKILL), ["STOPPED/FAILED"], CRASHED_OFF, id="QEMU killed"),
    History(Spec(), send(signal.SIGSEGV), ["STOPPED/FAILED"], CRASHED_OFF, id="QEMU crashes"),
    History(
        Spec(),
        lambda vm: vm.domain.suspend(),
        [PAUSED],
        (libvirt.VIR_DOMAIN_PAUSED, libvirt.VIR_DOMAIN_PAUSED_USER),
        id="suspend",
    ),
    History(
        Spec(),
        lambda vm: vm.domain.managedSave(),
        [PAUSED, "JOB_COMPLETED", "STOPPED/SAVED"],
        (libvirt.VIR_DOMAIN_SHUTOFF, libvirt.VIR_DOMAIN_SHUTOFF_SAVED),
        id="managed save",
    ),
    History(
        Spec(), lambda vm: vm.domain.undefine(), ["UNDEFINED/REMOVED"], RUNNING, id="undefine"
    ),
]


@pytest.mark.parametrize("history", HISTORIES, ids=lambda history: history.id)
def test_history(history: History, guest: Guests, recorder: Recorder) -> None:
    vm = guest(history.spec)
    history.what_happens(vm)
    last, times = history.seen[-1], BOOTED.count(history.seen[-1]) + 1
    if history.what_happens is press:
        # on a busy machine libvirt loses one at times, which is why people press again
        with contextlib.suppress(NeverHappenedError):
            recorder.until(vm.uuid, last, times=times, within_s=10)
        if last not in recorder.of(vm.uuid):
            press(vm)
    recorder.until(vm.uuid, last, times=times)
    seen = recorder.of(vm.uuid)
    if PANICKED in seen and seen[seen.index(PANICKED) - 1] == PAUSED:
        seen.remove(PAUSED)  # libvirt sometimes tells that the panic has stopped the CPU
    assert seen == [DEFINED, *BOOTED, *history.seen]
    assert vm.state == history.state


def test_second_press_deaf_and_acpi_less_guests_outlive_one_that_obeys(
    guest: Guests, recorder: Recorder
) -> None:
    stubborn = [
        guest(Spec(Behaviour.SECOND_PRESS)),
        guest(Spec(Behaviour.DEAF)),
        guest(Spec(acpi=False)),
    ]
    obedient = guest()
    for vm in [*stubborn, obedient]:
        press(vm)
    recorder.until(obedient.uuid, "STOPPED/SHUTDOWN")
    assert [vm.state for vm in stubborn] == [RUNNING] * 3

    again = guest()
    for vm in [*stubborn, again]:
        press(vm)
    recorder.until(stubborn[0].uuid, "STOPPED/SHUTDOWN")
    recorder.until(again.uuid, "STOPPED/SHUTDOWN")
    assert [vm.state for vm in stubborn] == [SHUT_OFF, RUNNING, RUNNING]


def test_a_slow_guest_takes_its_time(guest: Guests, recorder: Recorder) -> None:
    vm = guest(Spec(Behaviour.SLOW, 1.0))
    pressed = time.monotonic()
    press(vm)
    recorder.until(vm.uuid, "STOPPED/SHUTDOWN")
    off = next(seen for seen in recorder.everything() if seen.what == "SHUTDOWN/GUEST")
    assert 0.9 < off.monotonic_s - pressed < 10


@pytest.mark.parametrize("behaviour", [Behaviour.RESET, Behaviour.FAULT])
def test_a_guest_acts_once_and_obeys_afterwards(
    behaviour: Behaviour, guest: Guests, recorder: Recorder
) -> None:
    vm = guest(Spec(behaviour))
    recorder.until(vm.uuid, "REBOOT")

    def obeyed() -> list[str] | None:
        # a press is lost on a guest that has just been reset and does not listen yet
        with contextlib.suppress(libvirt.libvirtError):  # it is off by now
            press(vm)
        with contextlib.suppress(NeverHappenedError):
            return recorder.until(vm.uuid, "STOPPED/SHUTDOWN", within_s=1)
        return None

    assert until(obeyed, "it obeys").count("REBOOT") == 1


def test_a_sleeping_guest_wakes_up_and_obeys(guest: Guests, recorder: Recorder) -> None:
    vm = guest(Spec(Behaviour.SLEEP, 0.2))
    recorder.until(vm.uuid, "PMSUSPENDED/MEMORY")
    with pytest.raises(libvirt.libvirtError, match="not running"):
        press(vm)
    vm.domain.pMWakeup()
    recorder.until(vm.uuid, "STARTED/WAKEUP")
    press(vm)
    seen = recorder.until(vm.uuid, "STOPPED/SHUTDOWN")
    assert seen[5:] == ["PMWAKEUP", "STARTED/WAKEUP", *CLEAN]


def test_a_start_that_fails(guest: Guests, roms: Roms, recorder: Recorder) -> None:
    vm = guest(Spec(rom=roms.directory / "missing.rom"), running=False)
    with pytest.raises(libvirt.libvirtError, match="could not load PC BIOS"):
        vm.domain.create()
    assert recorder.until(vm.uuid, "CONTROL_ERROR") == [DEFINED, "CONTROL_ERROR"]
    assert vm.state == (libvirt.VIR_DOMAIN_SHUTOFF, libvirt.VIR_DOMAIN_SHUTOFF_FAILED)


def test_a_transient_guest_vanishes(guest: Guests, recorder: Recorder) -> None:
    vm = guest(persistent=False)
    press(vm)
    assert recorder.until(vm.uuid, "STOPPED/SHUTDOWN") == [*BOOTED, *CLEAN]
    vm.until_state(None)


def test_a_renamed_guest(guest: Guests, recorder: Recorder) -> None:
    vm = guest(running=False)
    vm.domain.rename(f"{vm.name}-new")
    recorder.until(vm.uuid, "DEFINED/RENAMED")
    assert [(seen.what, seen.name) for seen in recorder.everything() if seen.uuid == vm.uuid] == [
        (DEFINED, vm.name),
        ("UNDEFINED/RENAMED", vm.name),
        ("DEFINED/RENAMED", f"{vm.name}-new"),
    ]


def test_a_guest_with_an_agent_channel_and_no_agent(guest: Guests) -> None:
    vm = guest(Spec(agent=True))
    with pytest.raises(libvirt.libvirtError, match="agent is not connected"):
        vm.domain.shutdownFlags(libvirt.VIR_DOMAIN_SHUTDOWN_GUEST_AGENT)


def test_guests_are_removed_in_whatever_state(
    guest: Guests, virt: libvirt.virConnect, recorder: Recorder
) -> None:
    guest(running=False)
    guest(persistent=False)
    guest().signal(signal.SIGSTOP)
    guest().domain.managedSave()
    guest().domain.undefine()
    guest().domain.suspend()
    recorder.until(guest(Spec(Behaviour.SLEEP)).uuid, "PMSUSPENDED/MEMORY")
    idle = guest(running=False)
    idle.domain.rename(f"{idle.name}-new")
    guest.remove_all()
    assert virt.listAllDomains() == []


@pytest.mark.parametrize("delay_s", [-1, 601])
def test_a_delay_has_bounds(delay_s: float, roms: Roms) -> None:
    with pytest.raises(ValueError, match="counts from 0 to 600 s"):
        roms.rom(Behaviour.SLOW, delay_s)
