"""What chaos has found, each as small as it gets."""

import shutil
from dataclasses import replace
from uuid import uuid4

import libvirt

from tests.system.calls import finished, read_until
from tests.system.deadline import until
from tests.system.domains import Spec, domain_xml
from tests.system.guests import Behaviour, Roms
from tests.system.history import state
from tests.system.vms import Vms
from tests.unit.lifecycle.story import Story, told


def test_a_guest_that_comes_back_with_another_size_has_it(vms: Vms, roms: Roms) -> None:
    vm = vms.transient(Spec(memory_mib=1))
    vm.domain.destroy()
    vms.until(vm, "GONE/UNDEFINED")
    vm.libvirtd.connection.createXML(domain_xml(replace(vm.spec, memory_mib=2), roms))
    until(lambda: vms.vm(vm).memory_bytes == 2 << 20, "its size is known", within_s=10)


def test_a_guest_whose_start_from_saved_memory_failed_is_still_saved(vms: Vms, roms: Roms) -> None:
    """Why it is off does not tell what its next start does."""
    rom = roms.directory / f"{uuid4().hex}.rom"
    shutil.copy(roms.rom(Behaviour.ACPI), rom)
    vm = vms.up(Spec(rom=rom))
    vm.domain.managedSave()
    vms.until(vm, "SAVED/SAVED")
    rom.unlink()
    assert vms.start(vm).result == "START_FAILED"
    assert vm.domain.hasManagedSaveImage()
    assert vm.state != (libvirt.VIR_DOMAIN_SHUTOFF, libvirt.VIR_DOMAIN_SHUTOFF_SAVED)
    assert state(vms.vm(vm)) == "SAVED/SAVED"


def test_a_guest_that_has_come_back_paused_unseen_is_paused() -> None:
    """For libvirt one that was restored paused is paused for a migration, for good.

    It shows the same while it is being restored; that this is over was told while nobody listened.
    """
    story = Story()
    story.see("STARTING", "STARTING_UP", 1)
    assert told(story.see("PAUSED", "MIGRATING", 1)) == ["PAUSED/MIGRATING on #1"]


def test_a_request_that_joined_an_operation_is_it_when_it_is_repeated(vms: Vms) -> None:
    """Else a client that repeats what a crash left unanswered does it a second time."""
    vm = vms.up(Spec(Behaviour.SLOW, 3.0))
    first = vms.stopping(vm, request_id=f"first-{vm.uuid}")
    begun = read_until(first, "SIGNALLED")
    joined = vms.stop(vm, request_id=f"second-{vm.uuid}")
    operation_id = finished(first, begun).operation.operation_id
    assert joined.operation.operation_id == operation_id
    assert vms.start(vm).result == "DONE"
    repeated = vms.stop(vm, request_id=f"second-{vm.uuid}")
    assert repeated.operation.operation_id == operation_id
