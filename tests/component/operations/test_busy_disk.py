"""What is to be done is committed first: meanwhile its VM may become what it is not to be done to.

What was asked for one boot and waits until the next is in `test_boots`.
"""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from tests.component.hypervisor.host import until
from tests.component.operations.gates import Gate, busy_disk, forcing, long_in_hand
from tests.component.operations.site import (
    DEADLINE_S,
    PAUSE,
    REBOOT,
    RESUME,
    START,
    Daemon,
    Site,
    unreachable,
)
from vmagentd.errors import LibvirtRefused
from vmagentd.model import (
    Event,
    EventKind,
    Operation,
    OperationOutcome,
    OperationPhase,
    Parameters,
    RawPair,
    StartParameters,
    VmState,
)
from vmagentd.operations.starts import HostLimits

if TYPE_CHECKING:
    from collections.abc import Callable


def error_of(operation: Operation) -> str:
    assert operation.failure is not None
    return operation.failure.error


def tell(daemon: Daemon, name: str, *kinds: EventKind) -> None:
    """Tell of a VM, as libvirt does, what its test driver cannot do."""
    here = daemon.site
    for kind in kinds:
        event = Event(
            number=here.connection.events_taken,
            vm=here.uuid(name),
            name=name,
            kind=kind,
            raw=RawPair(0, 0),
            run_id=None,
            observe_time=daemon.vm(name).state_time,
        )
        daemon.journal.record(event)


async def done_here(here: Site, act: Callable[[], object]) -> None:
    """Do something to a VM that libvirt tells; it is known once something can be committed."""
    before = here.connection.events_taken
    act()
    await until(lambda: here.connection.events_taken > before, "its event")


async def test_a_guest_that_is_paused_is_not_reset(here: Site, daemon: Daemon) -> None:
    """Libvirt would do it, and it would not run."""
    here.domains.instead["reboot"] = unreachable
    _, asking = await daemon.under_way("a", REBOOT, OperationPhase.SIGNALLED)
    await until(lambda: here.domains.calls == ["reboot"], "the guest is asked")
    (run,) = daemon.operations._runs.values()
    with busy_disk(here):
        await forcing(run)
        await long_in_hand(daemon)
        await done_here(here, here.domain("a").suspend)
    async with asyncio.timeout(DEADLINE_S):
        assert error_of(await asking) == "VmPaused"
    assert here.domains.calls == ["reboot"]


class TestStart:
    """Another host has the VM by now."""

    AWAY = (EventKind.STARTED_RUNNING, EventKind.STOPPED_MIGRATED)

    @pytest.mark.parametrize("wish", [START, replace(START, force=True)])
    async def test_while_it_is_accepted(
        self, here: Site, daemon: Daemon, wish: StartParameters
    ) -> None:
        with busy_disk(here):
            asking = asyncio.create_task(daemon.done("off", wish))
            await until(lambda: daemon.operations._runs, "it waits for its acceptance")
            await long_in_hand(daemon)
            tell(daemon, "off", *self.AWAY)
        async with asyncio.timeout(DEADLINE_S):
            start = await asking
        assert here.domain("off").isActive() == wish.force
        assert (start.outcome is None) != wish.force
        assert wish.force or error_of(start) == "VmMigratedAway"

    async def test_while_its_turn_has_come(self, here: Site) -> None:
        first, look = Gate(), Gate()

        async def refuse() -> None:
            await first()
            raise LibvirtRefused(None, 1, 10, "no disk")

        here.define("before")
        here.domains.instead["start"] = refuse
        here.limits = HostLimits(starts_at_once=1)
        async with here.daemon() as daemon, asyncio.timeout(DEADLINE_S):
            failing = asyncio.create_task(daemon.done("before", START))
            await first.reached.wait()
            _, start = await daemon.under_way("off", START, OperationPhase.QUEUED)
            run = daemon.operations._runs[here.uuid("off")]
            here.domains.before["look_up"] = look  # the step is all that is to be committed
            with busy_disk(here):
                first.open.set()
                await until(lambda: run.operation.phase is OperationPhase.STARTING, "the step")
                await long_in_hand(daemon)
                tell(daemon, "off", *self.AWAY)
            look.open.set()
            assert error_of(await start) == "VmMigratedAway"
            assert here.domains.calls == ["start"]
            await failing

    async def test_somebody_else_has_started_it(self, here: Site, daemon: Daemon) -> None:
        with busy_disk(here):
            asking = asyncio.create_task(daemon.done("off", replace(START, paused=True)))
            await until(lambda: daemon.operations._runs, "it waits for its acceptance")
            await long_in_hand(daemon)
            await done_here(here, here.domain("off").create)
            await done_here(here, here.domain("off").suspend)
        async with asyncio.timeout(DEADLINE_S):
            assert (await asking).outcome is OperationOutcome.ALREADY_DONE
        assert daemon.vm("off").state is VmState.PAUSED


@pytest.mark.parametrize("wish", [PAUSE, RESUME])
async def test_a_guest_that_has_crashed_is_not_touched(
    here: Site, daemon: Daemon, wish: Parameters
) -> None:
    if wish is RESUME:
        here.domain("a").suspend()
        await daemon.until_state("a", VmState.PAUSED)
    here.domains.before["look_up"] = unreachable  # it would tell that all is well
    with busy_disk(here):
        tell(daemon, "a", EventKind.CRASHED_PANICKED)
        asking = asyncio.create_task(daemon.done("a", wish))
        await until(lambda: daemon.operations._runs, "it waits for its acceptance")
    async with asyncio.timeout(DEADLINE_S):
        assert error_of(await asking) == "VmCrashed"
    assert here.domains.calls == []
