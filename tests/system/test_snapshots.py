"""Snapshots of a guest with a disk: taken while it runs, and reverted to."""

import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from uuid import uuid4

import libvirt
import pytest

from tests.system.domains import Guest, Spec
from tests.system.libvirtd import PrivateLibvirtd
from tests.system.vms import Vms

BOOTED = "RUNNING/BOOTED by OUT_OF_BAND"
# libvirt pauses a guest for as long as it copies its memory
TAKEN = [BOOTED, "PAUSED/PAUSED_BY_USER by OUT_OF_BAND", "RUNNING/UNPAUSED by OUT_OF_BAND"]
XML = "<domainsnapshot><name>before</name></domainsnapshot>"


@pytest.fixture
def disk(libvirtd: PrivateLibvirtd) -> Iterator[Path]:
    """An empty disk image that can hold snapshots, where QEMU may write it."""
    if shutil.which("qemu-img") is None:
        pytest.skip("qemu-img is missing; scripts/setup test installs it")
    image = libvirtd.directory / f"{uuid4().hex}.qcow2"
    create = ["qemu-img", "create", "-q", "-f", "qcow2", str(image), "1M"]
    subprocess.run(create, check=True, timeout=30)
    image.chmod(0o666)
    yield image
    image.unlink()


@pytest.fixture
def taken(vms: Vms, disk: Path) -> Guest:
    """A guest that runs and of which a snapshot was taken while it did."""
    vm = vms.up(Spec(disk=disk))
    vm.domain.snapshotCreateXML(XML)
    vms.until(vm, "RUNNING/UNPAUSED")
    return vm


def revert(vm: Guest, flags: int = 0) -> None:
    vm.domain.revertToSnapshot(vm.domain.snapshotLookupByName("before"), flags)


def test_a_live_snapshot(vms: Vms, taken: Guest) -> None:
    vms.expect(taken, *TAKEN)
    assert vms.vm(taken).incarnation == 1


def test_a_running_guest_is_reverted(vms: Vms, taken: Guest) -> None:
    revert(taken)
    vms.expect(
        taken,
        *TAKEN,
        "STOPPED/REVERTED by OUT_OF_BAND",
        "STARTING/REVERTED by OUT_OF_BAND, #2",
        "RUNNING/REVERTED by OUT_OF_BAND, #2",
    )
    assert vms.vm(taken).crash_count == 0


def test_a_running_guest_is_reverted_paused(vms: Vms, taken: Guest) -> None:
    revert(taken, libvirt.VIR_DOMAIN_SNAPSHOT_REVERT_PAUSED)
    vms.expect(
        taken,
        *TAKEN,
        "STOPPED/REVERTED by OUT_OF_BAND",
        "STARTING/REVERTED by OUT_OF_BAND, #2",
        "PAUSED/REVERTED by OUT_OF_BAND, #2",
    )


def test_a_guest_that_is_off_is_reverted_to_running(vms: Vms, taken: Guest) -> None:
    taken.domain.destroy()
    vms.until(taken, "STOPPED/FORCED")
    revert(taken)
    vms.expect(
        taken,
        *TAKEN,
        "STOPPING/HOST_TERMINATION by OUT_OF_BAND",
        "STOPPED/FORCED by OUT_OF_BAND",
        "STARTING/REVERTED by OUT_OF_BAND, #2",
        "RUNNING/REVERTED by OUT_OF_BAND, #2",
    )


def test_a_running_guest_is_reverted_to_off(vms: Vms, disk: Path) -> None:
    vm = vms.off(Spec(disk=disk))
    vm.domain.snapshotCreateXML(XML)
    vm.domain.create()
    vms.until(vm, "RUNNING/BOOTED")
    revert(vm)
    vms.expect(vm, BOOTED, "STOPPED/REVERTED by OUT_OF_BAND")
