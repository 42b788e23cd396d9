"""Starts that fail in QEMU or before it: what libvirt said, what the VM is, and no ghost."""

import re
from collections.abc import Callable

import libvirt
import pytest

from tests.system.deadline import until
from tests.system.domains import Guest, domain_xml
from tests.system.guests import Roms
from tests.system.history import state
from tests.system.vms import Vms

DISK = """<devices><disk type='file' device='disk'>
<driver name='qemu' type='raw'/><source file='/nowhere/disk.img'/><target dev='hda' bus='ide'/>
</disk>"""


def with_a_missing_disk(xml: str) -> str:
    return xml.replace("<devices>", DISK)


def with_too_much_memory(xml: str) -> str:
    # more than there is address space for
    return re.sub(r"<memory unit='MiB'>\d+<", "<memory unit='TiB'>100<", xml)


def with_a_missing_network(xml: str) -> str:
    return xml.replace(
        "<devices>", "<devices><interface type='bridge'><source bridge='nowhere'/></interface>"
    )


def with_a_cpu_that_is_refused(xml: str) -> str:
    return xml.replace("check='none'", "check='full'").replace(
        "<model>486</model>", "<model>486</model><feature policy='require' name='svm'/>"
    )


@pytest.mark.parametrize(
    ("spoilt", "code"),
    [
        (with_a_missing_disk, libvirt.VIR_ERR_SYSTEM_ERROR),
        (with_too_much_memory, libvirt.VIR_ERR_INTERNAL_ERROR),
        (with_a_missing_network, None),
        (with_a_cpu_that_is_refused, None),
    ],
)
def test_a_start_that_fails_is_told_as_libvirt_told_it(
    spoilt: Callable[[str], str], code: int | None, vms: Vms, roms: Roms
) -> None:
    vm = vms.off()
    xml = domain_xml(vm.spec, roms)
    vm.libvirtd.connection.defineXML(spoilt(xml))
    outcome = vms.start(vm)
    assert outcome.refusal is not None
    assert (outcome.refusal.code, outcome.result) == ("FAILED_PRECONDITION", "START_FAILED")
    assert outcome.phases[-1] == "FAILED"
    facts = outcome.refusal.facts
    assert code is None or facts["libvirt_code"] == str(code)
    assert facts["libvirt_message"]
    assert facts["libvirt_message"] in outcome.refusal.message
    seen = vms.vm(vm)
    assert (seen.last_start_error.libvirt_code, seen.last_start_error.message) == (
        int(facts["libvirt_code"]),
        facts["libvirt_message"],
    )
    assert no_ghost(vms, vm)

    # and what was wrong can be mended
    vm.libvirtd.connection.defineXML(xml)
    until(lambda: vms.vm(vm).memory_bytes == 1 << 20, "its definition is known")
    assert vms.start(vm).result == "DONE"
    assert not vms.vm(vm).HasField("last_start_error")


def no_ghost(vms: Vms, vm: Guest) -> bool:
    """Return whether the VM is off, never ran, and has no process.

    Its process may have been seen while it started.
    """
    seen = vms.vm(vm)
    with pytest.raises(ProcessLookupError):
        vm.libvirtd.qemu_pid(vm.name)
    return (
        state(seen).startswith("STOPPED/")
        and not seen.active
        and not seen.active_operation_id
        and not any(line.startswith("RUNNING/") for line in vms.story(vm))
        and vm.domain.isActive() == 0
    )
