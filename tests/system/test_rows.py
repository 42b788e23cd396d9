"""What happens to real guests, and how the journal represents it: a test for each way.

The lines are what `tests.system.history.tell` makes of transitions. A guest's story begins when
it is defined and off.
"""

import signal
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import libvirt
import pytest
from vmagent.v1 import vm_agent_service_pb2 as pb

from tests.system.conftest import SETTINGS
from tests.system.daemon import Daemon
from tests.system.deadline import until
from tests.system.domains import Guest, Guests, Spec, Then, domain_xml
from tests.system.guests import Behaviour, Roms
from tests.system.history import check_history, state, tell
from tests.system.libvirtd import PrivateLibvirtd
from tests.system.vms import Vms
from tests.system.watcher import Watcher

BOOTED = "RUNNING/BOOTED by OUT_OF_BAND"
BOOTED_BY_US = "RUNNING/BOOTED by CLIENT"
PAUSED = "PAUSED/PAUSED_BY_USER by OUT_OF_BAND"
UNPAUSED = "RUNNING/UNPAUSED by OUT_OF_BAND"
TERMINATING = "STOPPING/HOST_TERMINATION by OUT_OF_BAND"
FORCED = "STOPPED/FORCED by OUT_OF_BAND"


STARTING_UP = libvirt.VIR_DOMAIN_PAUSED_STARTING_UP


def clean(initiator: str) -> list[str]:
    """A shutdown in order, and who began it."""
    return [
        f"STOPPING/GUEST_SHUTDOWN by {initiator}",
        f"STOPPED/CLEAN_SHUTDOWN by {initiator}",
    ]


def nothing(_: Guest) -> None:
    pass


def send(sig: signal.Signals) -> Callable[[Guest], None]:
    return lambda vm: vm.signal(sig)


@dataclass(frozen=True, slots=True)
class Row:
    """What becomes of a guest that others have started."""

    spec: Spec
    what_happens: Callable[[Guest], object]
    story: list[str]  # after it has booted
    id: str = field(kw_only=True)
    perhaps: str = field(kw_only=True, default="")


ROWS = [
    Row(Spec(), nothing, [], id="start"),
    Row(Spec(), lambda vm: vm.domain.shutdown(), clean("OUT_OF_BAND"), id="shutdown"),
    Row(Spec(Behaviour.POWEROFF, 0.2), nothing, clean("GUEST"), id="guest powers off"),
    Row(
        Spec(Behaviour.RESET, 0.2),
        nothing,
        ["REBOOT RUNNING/REBOOTED by GUEST"],
        id="guest resets",
    ),
    Row(
        Spec(Behaviour.FAULT, 0.2),
        nothing,
        ["REBOOT RUNNING/REBOOTED by GUEST"],
        id="guest triple-faults",
    ),
    Row(
        Spec(Behaviour.DEAF),
        lambda vm: vm.domain.reset(),
        ["REBOOT RUNNING/REBOOTED by OUT_OF_BAND"],
        id="reset",
    ),
    Row(
        Spec(),
        lambda vm: vm.domain.reboot(),
        ["REBOOT RUNNING/REBOOTED by OUT_OF_BAND"],
        id="reboot",
    ),
    Row(
        Spec(Behaviour.RESET, 0.2, on_reboot=Then.DESTROY),
        nothing,
        clean("GUEST"),
        id="guest resets, on_reboot=destroy",
    ),
    Row(Spec(), lambda vm: vm.domain.destroy(), [TERMINATING, FORCED], id="destroy"),
    Row(
        Spec(),
        send(signal.SIGTERM),
        [TERMINATING, "STOPPED/KILLED_BY_HOST_SIGNAL by OUT_OF_BAND"],
        id="QEMU terminated",
    ),
    Row(Spec(), send(signal.SIGKILL), ["CRASHED/PROCESS_DIED by UNKNOWN"], id="QEMU killed"),
    Row(Spec(), send(signal.SIGSEGV), ["CRASHED/PROCESS_DIED by UNKNOWN"], id="QEMU crashes"),
    # libvirt sometimes tells that the panic has stopped the CPU before it tells of the panic
    Row(
        Spec(Behaviour.PANIC, 0.2),
        nothing,
        ["CRASHED/GUEST_PANIC by GUEST, active", "CRASHED/GUEST_PANIC by GUEST"],
        perhaps=PAUSED,
        id="panic, on_crash=destroy",
    ),
    Row(
        Spec(Behaviour.PANIC, 0.2, on_crash=Then.COREDUMP_DESTROY),
        nothing,
        ["CRASHED/GUEST_PANIC by GUEST, active", "CRASHED/GUEST_PANIC by GUEST"],
        perhaps=PAUSED,
        id="panic, on_crash=coredump-destroy",
    ),
    Row(
        Spec(Behaviour.PANIC, 0.2, on_crash=Then.PRESERVE),
        nothing,
        ["CRASHED/GUEST_PANIC by GUEST, active"],
        perhaps=PAUSED,
        id="panic, on_crash=preserve",
    ),
    Row(
        Spec(Behaviour.PANIC, 0.2, on_crash=Then.RESTART),
        nothing,
        ["CRASHED/GUEST_PANIC by GUEST, active", "RUNNING/RESTARTED_AFTER_PANIC by LIBVIRT"],
        perhaps=PAUSED,
        id="panic, on_crash=restart",
    ),
    Row(
        Spec(Behaviour.SLEEP, 0.2),
        nothing,
        ["SLEEPING/SUSPENDED_TO_RAM by GUEST"],
        id="guest sleeps",
    ),
    Row(
        Spec(),
        lambda vm: vm.domain.undefine(),
        ["DEFINITION RUNNING/BOOTED by OUT_OF_BAND, transient"],
        id="undefine while running",
    ),
]


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.id)
def test_row(row: Row, vms: Vms) -> None:
    vm = vms.up(row.spec)
    row.what_happens(vm)
    vms.expect(vm, BOOTED, *row.story, perhaps=row.perhaps)
    crashes = sum(line.startswith("CRASHED") for line in row.story[:1])
    assert vms.vm(vm).crash_count == crashes


def operation(line: str) -> str:
    """An operation that was accepted or ended, with the VM as it was then."""
    state, *rest = line.split(", ")
    return ", ".join([f"OPERATION {state}", "per OPERATION", *rest])


OFF = "STOPPED/DEFINED by OUT_OF_BAND, #0"


def test_start_by_us(vms: Vms) -> None:
    vm = vms.off()
    assert vms.start(vm).result == "DONE"
    vms.expect(vm, operation(OFF), BOOTED_BY_US, operation(BOOTED_BY_US))


def test_shutdown_by_us(vms: Vms) -> None:
    vm = vms.up()
    assert vms.stop(vm).result == "DONE"
    vms.expect(vm, BOOTED, operation(BOOTED), *clean("CLIENT"), operation(clean("CLIENT")[-1]))


def test_destroy_by_us(vms: Vms) -> None:
    vm = vms.up()
    assert vms.force_off(vm).result == "DONE"
    forced = [line.replace("OUT_OF_BAND", "CLIENT") for line in (TERMINATING, FORCED)]
    vms.expect(vm, BOOTED, operation(BOOTED), *forced, operation(forced[-1]))


def test_a_start_that_fails_by_us(vms: Vms, roms: Roms) -> None:
    vm = vms.off(Spec(rom=roms.directory / "missing.rom"))
    assert vms.start(vm).result == "START_FAILED"
    failed = "STOPPED/START_FAILED by CLIENT, per OPERATION, #0"
    vms.expect(vm, operation(OFF), failed, f"OPERATION {failed}")
    error = vms.vm(vm).last_start_error
    assert error.libvirt_code == libvirt.VIR_ERR_INTERNAL_ERROR
    assert "could not load PC BIOS" in error.message


def test_a_start_that_fails_by_others_is_looked_at_and_found(vms: Vms, roms: Roms) -> None:
    vm = vms.off(Spec(rom=roms.directory / "missing.rom"))
    with pytest.raises(libvirt.libvirtError, match="could not load PC BIOS"):
        vm.domain.create()
    # no event tells of its state, only that something failed, while libvirt is still at it
    vms.until(vm, "STOPPED/START_FAILED")
    failed = "STOPPED/START_FAILED by OUT_OF_BAND, per SURVEY"
    seen_starting = ["STARTING/STARTING_UP by OUT_OF_BAND, per SURVEY", f"{failed}, late"]
    assert vms.story(vm) in ([f"{failed}, #0, late"], seen_starting)
    assert vms.stop(vm).result == "ALREADY_DONE"


def test_start_while_running(vms: Vms) -> None:
    vm = vms.up()
    with pytest.raises(libvirt.libvirtError, match="already running"):
        vm.domain.create()
    vms.expect(vm, BOOTED)
    assert vms.start(vm).result == "ALREADY_DONE"
    vms.expect(vm, BOOTED, operation(BOOTED), operation(BOOTED))


def test_suspend_and_resume(vms: Vms) -> None:
    vm = vms.up()
    vm.domain.suspend()
    vm.domain.suspend()
    vm.domain.resume()
    vms.expect(vm, BOOTED, PAUSED, UNPAUSED)


def test_shutdown_when_paused(vms: Vms) -> None:
    vm = vms.up()
    vm.domain.suspend()
    with pytest.raises(libvirt.libvirtError, match="not running"):
        vm.domain.shutdown()
    vms.expect(vm, BOOTED, PAUSED)


def test_start_paused(vms: Vms) -> None:
    vm = vms.off()
    vm.domain.createWithFlags(libvirt.VIR_DOMAIN_START_PAUSED)
    vm.domain.resume()
    vms.expect(vm, "STARTING/STARTING_UP by OUT_OF_BAND", PAUSED, UNPAUSED)


def test_start_paused_by_us(vms: Vms) -> None:
    vm = vms.off()
    assert vms.start(vm, paused=True).result == "DONE"
    paused = "PAUSED/PAUSED_BY_USER by CLIENT"
    vms.expect(vm, operation(OFF), "STARTING/STARTING_UP by CLIENT", paused, operation(paused))


def test_managed_save_and_start(vms: Vms) -> None:
    vm = vms.up()
    vm.domain.managedSave()
    vms.until(vm, "SAVED/SAVED")
    vm.domain.create()
    vms.expect(
        vm,
        BOOTED,
        PAUSED,
        "SAVED/SAVED by OUT_OF_BAND",
        "STARTING/RESTORED by OUT_OF_BAND, #2",
        "RUNNING/RESTORED by OUT_OF_BAND, #2",
        # a query about the saved VM that finds it on its way up
        perhaps="STARTING/STARTING_UP by OUT_OF_BAND, per SURVEY, #2",
    )


def test_a_second_boot_is_another_incarnation(vms: Vms) -> None:
    vm = vms.up()
    vm.domain.destroy()
    vm.domain.create()
    vms.expect(vm, BOOTED, TERMINATING, FORCED, f"{BOOTED}, #2")


def test_a_panicked_guest_whose_process_is_preserved(vms: Vms) -> None:
    vm = vms.up(Spec(Behaviour.PANIC, 0.2, on_crash=Then.PRESERVE))
    vms.until(vm, "CRASHED/GUEST_PANIC")
    assert vms.start(vm).result == "VM_CRASHED"
    assert vms.stop(vm).result == "VM_CRASHED"
    assert vms.force_off(vm).result == "DONE"
    assert vms.vm(vm).crash_count == 1


def test_a_sleeping_guest_wakes_up(vms: Vms) -> None:
    vm = vms.up(Spec(Behaviour.SLEEP, 0.2))
    vms.until(vm, "SLEEPING/SUSPENDED_TO_RAM")
    vm.domain.pMWakeup()
    vms.expect(vm, BOOTED, "SLEEPING/SUSPENDED_TO_RAM by GUEST", "RUNNING/WOKE_UP by UNKNOWN")


def test_a_transient_guest_stops_then_is_gone(vms: Vms) -> None:
    vm = vms.transient()
    vm.domain.shutdown()
    booted = f"{BOOTED}, transient"
    vms.expect(
        vm,
        booted,
        # its size, which no event tells
        booted.replace("RUNNING", "DEFINITION RUNNING").replace(", t", ", per SURVEY, t"),
        *(f"{line}, transient" for line in clean("OUT_OF_BAND")),
        "GONE/UNDEFINED by OUT_OF_BAND, per SURVEY, transient",
    )


def test_a_stopped_guest_is_undefined(vms: Vms) -> None:
    vm = vms.off()
    vm.domain.undefine()
    vms.expect(
        vm,
        f"DEFINITION {OFF}, transient",
        "GONE/UNDEFINED by OUT_OF_BAND, per SURVEY, #0, transient",
    )


def test_an_undefined_running_guest_is_gone_when_it_stops(vms: Vms) -> None:
    vm = vms.up()
    vm.domain.undefine()
    vms.expect(vm, BOOTED, f"DEFINITION {BOOTED}, transient")
    vm.domain.reset()
    vms.until(vm, "RUNNING/REBOOTED")
    vm.signal(signal.SIGKILL)
    vms.until(vm, "GONE/UNDEFINED")


def test_a_guest_is_renamed(vms: Vms, watcher: Watcher) -> None:
    vm = vms.off()
    vm.domain.rename(f"{vm.name}-new")
    vms.expect(vm, f"DEFINITION {OFF}")
    assert watcher.vms[vm.uuid].name == f"{vm.name}-new"
    assert vms.stub.GetVm(pb.GetVmRequest(vm=f"{vm.name}-new")).vm.uuid == vm.uuid


def test_a_guest_is_given_more_memory(vms: Vms, roms: Roms, guest: Guests) -> None:
    vm = vms.off()
    bigger = Spec(name=vm.name, uuid=vm.spec.uuid, memory_mib=2)
    vm.libvirtd.connection.defineXML(domain_xml(bigger, roms))
    vms.expect(vm, f"DEFINITION {OFF.replace(', #0', ', per SURVEY, #0')}")
    assert vms.vm(vm).memory_bytes == 2 << 20


def test_each_change_tells_libvirts_own_numbers(vms: Vms, watcher: Watcher) -> None:
    vm = vms.up()
    vm.domain.destroy()
    vms.until(vm, "STOPPED/FORCED")
    *_, booted, terminating, forced = watcher.of(vm.uuid)
    assert [tell(t) for t in (booted, terminating, forced)] == [BOOTED, TERMINATING, FORCED]
    raw = [(t.raw_event.major, t.raw_event.minor) for t in (booted, terminating, forced)]
    assert raw == [
        (libvirt.VIR_DOMAIN_EVENT_RESUMED, libvirt.VIR_DOMAIN_EVENT_RESUMED_UNPAUSED),
        (libvirt.VIR_DOMAIN_EVENT_SHUTDOWN, libvirt.VIR_DOMAIN_EVENT_SHUTDOWN_HOST),
        (libvirt.VIR_DOMAIN_EVENT_STOPPED, libvirt.VIR_DOMAIN_EVENT_STOPPED_DESTROYED),
    ]


@pytest.fixture(scope="module")
def surveying_daemon(libvirtd: PrivateLibvirtd) -> Iterator[Daemon]:
    """A daemon that looks often: for what libvirt tells nobody of."""
    settings = SETTINGS.replace('"1h"', '"500ms"')
    with Daemon(libvirtd.uri, libvirtd.directory, settings=settings) as daemon:
        yield daemon


@pytest.fixture
def surveying(surveying_daemon: Daemon, guest: Guests) -> Iterator[Vms]:
    with Watcher(surveying_daemon.target) as watcher:
        yield Vms(guest, surveying_daemon, watcher)
        check_history(surveying_daemon.stub, watcher)


def test_a_start_that_fails_by_others_is_found(surveying: Vms, roms: Roms) -> None:
    vm = surveying.off(Spec(rom=roms.directory / "missing.rom"))
    with pytest.raises(libvirt.libvirtError, match="could not load PC BIOS"):
        vm.domain.create()
    surveying.until(vm, "STOPPED/START_FAILED")


def test_destroy_during_a_start(surveying: Vms) -> None:
    """Libvirt tells of no STOPPED then, and calls it a start that failed."""
    vm = surveying.off()
    with ThreadPoolExecutor(1) as others:
        starting = others.submit(on_a_connection_of_its_own, vm, libvirt.virDomain.create)
        until(lambda: vm.state == (libvirt.VIR_DOMAIN_PAUSED, STARTING_UP), "on its way up")
        vm.domain.destroy()
        with pytest.raises(libvirt.libvirtError, match="monitor"):
            starting.result()
    surveying.until(vm, "STOPPED/START_FAILED")


def test_a_process_that_does_not_answer_libvirt(surveying: Vms) -> None:
    vm = surveying.up()
    vm.signal(signal.SIGSTOP)
    with ThreadPoolExecutor(1) as others:
        suspending = others.submit(on_a_connection_of_its_own, vm, libvirt.virDomain.suspend)
        surveying.until_true(vm, lambda now: now.HasField("unresponsive"), "hangs")
        assert state(surveying.vm(vm)) == "RUNNING/BOOTED"
        vm.signal(signal.SIGCONT)
        suspending.result()
    surveying.until_true(vm, lambda now: not now.HasField("unresponsive"), "answers")
    surveying.until(vm, "PAUSED/PAUSED_BY_USER")
    hanging = [line for line in surveying.story(vm) if line.startswith("RESPONSIVENESS")]
    assert len(hanging) == 2  # not any more


def on_a_connection_of_its_own(vm: Guest, call: Callable[[libvirt.virDomain], object]) -> object:
    """Have somebody else call: a call that waits keeps its connection to itself."""
    connection = libvirt.open(vm.libvirtd.uri)
    try:
        return call(connection.lookupByUUIDString(vm.uuid))
    finally:
        connection.close()
