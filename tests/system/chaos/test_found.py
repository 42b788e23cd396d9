"""What chaos has found, each as small as it gets."""

from dataclasses import replace

import pytest

from tests.system.deadline import until
from tests.system.domains import Spec, domain_xml
from tests.system.guests import Roms
from tests.system.vms import Vms

pytestmark = pytest.mark.timeout(60)


def test_a_guest_that_comes_back_with_another_size_has_it(vms: Vms, roms: Roms) -> None:
    vm = vms.transient(Spec(memory_mib=1))
    vm.domain.destroy()
    vms.until(vm, "GONE/UNDEFINED")
    vm.libvirtd.connection.createXML(domain_xml(replace(vm.spec, memory_mib=2), roms))
    until(lambda: vms.vm(vm).memory_bytes == 2 << 20, "its size is known", within_s=10)
