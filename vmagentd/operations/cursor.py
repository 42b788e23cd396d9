"""How far an operation has read what happens to its VM."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    from vmagentd.journal.store import Journal
    from vmagentd.model import Vm, VmUuid


class Cursor:
    """What happens to a VM from now on. Nothing is read twice, however often one waits for it."""

    def __init__(self, journal: Journal, vm: VmUuid) -> None:
        self._journal, self._vm = journal, vm
        self._after = journal.head

    async def reached(self, wanted: Callable[[Vm], bool]) -> Vm:
        """Wait for the next transition that makes the VM *wanted*; return it as it was then.

        What has been waited for until something else came first is not looked at again.
        """
        async for page in self._journal.follow(self._after):
            for transition in page:
                self._after = transition.revision
                if transition.vm.uuid == self._vm and wanted(transition.vm):
                    return transition.vm
        raise AssertionError  # follow does not end
