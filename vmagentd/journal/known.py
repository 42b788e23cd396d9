"""All VMs that were recorded and not forgotten, by UUID and by name.

In memory, on the event loop; shows what is committed.
"""

from __future__ import annotations

from typing import TYPE_CHECKING
from uuid import UUID

from vmagentd.model import VmState, VmUuid

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from vmagentd.model import Vm


class KnownVms:
    """The VMs as they are at the head of the journal."""

    def __init__(self, vms: Iterable[Vm]) -> None:
        self._vms = {vm.uuid: vm for vm in vms}
        # of VMs that are present
        self._names = {vm.name: vm.uuid for vm in self._vms.values() if vm.state != VmState.GONE}

    @property
    def all(self) -> Mapping[VmUuid, Vm]:
        """Every VM, also those that are gone."""
        return self._vms

    def find(self, ref: str) -> Vm | None:
        """Return the VM of that UUID or name; of VMs that are gone, the one that went last."""
        try:
            vm = self._vms.get(VmUuid(str(UUID(ref))))
        except ValueError:
            vm = None
        if vm is not None:
            return vm
        if ref in self._names:
            return self._vms[self._names[ref]]
        # gone, or it shared the name with one that is: of two, a restart knows not the younger
        bearers = (vm for vm in self._vms.values() if vm.name == ref)
        return max(bearers, key=lambda vm: (vm.state != VmState.GONE, vm.revision), default=None)

    def forget(self, vm: VmUuid) -> None:
        """Let *vm* not be seen any more if it is gone."""
        known = self._vms.get(vm)
        if known is not None and known.state is VmState.GONE:
            del self._vms[vm]  # no name leads to it

    def show(self, vm: Vm) -> None:
        """Let *vm* be seen as it is now.

        Its name means this VM from when it first bears it on. Of one that was defined anew the old
        VM may still seem to be there; whatever is told of that one does not take it back.
        """
        before = self._vms.get(vm.uuid)
        old, new = _present_name(before), _present_name(vm)
        if old != new:
            if old is not None and self._names.get(old) == vm.uuid:
                del self._names[old]
            if new is not None:
                self._names[new] = vm.uuid
        self._vms[vm.uuid] = vm


def _present_name(vm: Vm | None) -> str | None:
    return vm.name if vm is not None and vm.state is not VmState.GONE else None
