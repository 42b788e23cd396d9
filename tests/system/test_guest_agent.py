"""A Linux guest with a real agent: asked by it, or by its power button when it is silent."""

from xml.etree import ElementTree

import pytest

from tests.system.calls import finished, reboot
from tests.system.deadline import until
from tests.system.domains import Guest, Linux, Spec
from tests.system.guests.linux import MEMORY_MIB, Kernel, kernel
from tests.system.history import state
from tests.system.libvirtd import PrivateLibvirtd
from tests.system.machine import CannotRunError
from tests.system.vms import Vms

pytestmark = pytest.mark.timeout(240)  # the first run on a machine downloads the guest

OFF = "STOPPED/CLEAN_SHUTDOWN"
# It boots without KVM, on a machine that may be busy.
BOOTS_WITHIN_S = 90.0


@pytest.fixture(scope="session")
def linux(libvirtd: PrivateLibvirtd) -> Kernel:
    directory = libvirtd.directory / "linux"
    directory.mkdir(mode=0o755)
    try:
        return kernel(directory)
    except CannotRunError as why:
        pytest.skip(str(why))


def up(vms: Vms, linux: Kernel, words: str) -> Guest:
    """Return a guest that has booted and whose agent is connected."""
    guest = vms.up(Spec(linux=Linux(linux, words), agent=True, memory_mib=MEMORY_MIB))
    until(lambda: agent_is_connected(guest), "its agent is there", within_s=BOOTS_WITHIN_S)
    return guest


def agent_is_connected(guest: Guest) -> bool:
    target = ElementTree.fromstring(guest.domain.XMLDesc()).find("devices/channel/target")
    return target is not None and target.get("state") == "connected"


def test_an_agent_that_is_there_shuts_its_guest_down(vms: Vms, linux: Kernel) -> None:
    vm = up(vms, linux, "agent=qemu-ga button=ignore")  # nothing else could
    outcome = vms.stop(vm, grace_s=60)
    assert outcome.result == "DONE"
    assert outcome.phases.count("SIGNALLED") <= 1
    assert state(vms.vm(vm)) == OFF
    assert outcome.vm.initiator.operation_id == outcome.operation.operation_id


def test_the_button_is_pressed_at_once_when_the_agent_is_silent(vms: Vms, linux: Kernel) -> None:
    vm = up(vms, linux, "agent=silent")
    outcome = vms.stop(vm, grace_s=60)
    assert outcome.result == "DONE"
    # with the first asking: the agent's silence and the button are one
    assert outcome.phases.count("SIGNALLED") == 1
    assert state(vms.vm(vm)) == OFF


def test_the_button_is_pressed_at_once_when_the_agent_refuses(vms: Vms, linux: Kernel) -> None:
    vm = up(vms, linux, "agent=refusing")
    outcome = vms.stop(vm, grace_s=60)
    assert outcome.result == "DONE"
    assert outcome.phases.count("SIGNALLED") == 1
    assert state(vms.vm(vm)) == OFF


@pytest.mark.parametrize("agent", ["qemu-ga", "silent"])
def test_a_guest_reboots_in_order(agent: str, vms: Vms, linux: Kernel) -> None:
    vm = up(vms, linux, f"agent={agent}")
    outcome = finished(reboot(vms.stub, vm.uuid, grace_s=60))
    assert outcome.result == "DONE"
    assert state(outcome.vm) == "RUNNING/REBOOTED"
    assert outcome.vm.initiator.operation_id == outcome.operation.operation_id
    assert vms.vm(vm).incarnation == 1
    until(lambda: agent_is_connected(vm), "it is up again", within_s=BOOTS_WITHIN_S)


def test_a_guest_that_heeds_neither_outlives_its_grace_period(vms: Vms, linux: Kernel) -> None:
    vm = up(vms, linux, "agent=silent button=ignore")
    outcome = vms.stop(vm, grace_s=12)
    assert outcome.result == "GRACE_EXPIRED"
    assert state(vms.vm(vm)) == "RUNNING/BOOTED"
    # its silence, of 5 s, is waited for once and not at each press
    assert outcome.phases.count("SIGNALLED") > 3
