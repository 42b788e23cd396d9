"""Force that is asked for while the disk is full."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest

from tests.component.journal_faults.conftest import until
from tests.component.journal_faults.test_full_disk import exhausted
from tests.component.operations.site import DEADLINE_S, FORCED, STOP, site, somebody
from vmagentd.errors import JournalUnwritable
from vmagentd.hypervisor import eventloop
from vmagentd.model import OperationPhase

if TYPE_CHECKING:
    from tests.component.journal_faults.disks import Disk


async def test_what_cannot_be_written_down_is_not_forced(disk: Disk) -> None:
    """Also not later, when there is room: whoever asked was told that it is not."""
    eventloop.start()
    async with site(disk.path, ["a"]) as here, here.daemon() as daemon:
        here.domains.deaf()
        stop_id, stop = await daemon.under_way("a", STOP, OperationPhase.SIGNALLED)
        await exhausted(daemon.journal, disk)
        with pytest.raises(JournalUnwritable):
            await daemon.done("a", FORCED)
        disk.make_room()
        await until(daemon.journal, lambda: daemon.journal.writable)
        async with asyncio.timeout(DEADLINE_S):
            await daemon.operations.cancel(stop_id, caller=somebody("other"))
            cancelled = await stop
        assert OperationPhase.FORCING not in [step.phase for step in cancelled.steps]
        assert "destroy" not in here.domains.calls
        assert here.domain("a").isActive()
