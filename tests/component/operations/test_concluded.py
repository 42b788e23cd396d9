"""An operation ends with what its VM becomes, whatever it waits for itself at that moment."""

from __future__ import annotations

import asyncio
import logging
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from tests.component.hypervisor.host import until
from tests.component.operations.gates import Gate, busy_disk, turns, until_joined
from tests.component.operations.site import (
    DEADLINE_S,
    FORCED,
    SECOND,
    START,
    STOP,
    TIMES,
    Site,
)
from vmagentd.errors import LibvirtInvalidState
from vmagentd.model import OperationOutcome, OperationPhase, Parameters, VmState

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from tests.component.operations.site import Daemon
    from vmagentd.model import Operation, OperationId

DONE, ALREADY_DONE = OperationOutcome.DONE, OperationOutcome.ALREADY_DONE


@pytest.fixture
async def daemon(here: Site) -> AsyncIterator[Daemon]:
    """One that asks guests again after a moment."""
    here.times = replace(TIMES, press_interval=0.1 * SECOND)
    async with here.daemon() as running:
        yield running


async def hung(
    daemon: Daemon, call: str = "shutdown"
) -> tuple[OperationId, asyncio.Task[Operation]]:
    """Return a Stop of `a` that hangs in that call: libvirt has answered its first press."""
    here, gate = daemon.site, Gate()

    async def press() -> None:
        if here.domains.calls.count("shutdown") == 1:
            return
        if call == "shutdown":
            await gate()
        here.domains.before[call] = gate
        raise LibvirtInvalidState(here.uuid("a"), 55, 10, "so it thinks")

    here.domains.instead["shutdown"] = press
    stop_id, stop = await daemon.under_way("a", STOP, OperationPhase.SIGNALLED)
    async with asyncio.timeout(DEADLINE_S):
        await gate.reached.wait()
    here.domains.instead.clear()
    return stop_id, stop


async def held_up(daemon: Daemon) -> tuple[OperationId, asyncio.Task[Operation], asyncio.Event]:
    """Return a Stop as `hung` does whose call ends, once nobody waits for it, at that event."""
    here, gate, leave = daemon.site, Gate(), asyncio.Event()

    async def press() -> None:
        if here.domains.calls.count("shutdown") == 1:
            return
        try:
            await gate()
        finally:
            await leave.wait()

    here.domains.instead["shutdown"] = press
    stop_id, stop = await daemon.under_way("a", STOP, OperationPhase.SIGNALLED)
    async with asyncio.timeout(DEADLINE_S):
        await gate.reached.wait()
    return stop_id, stop, leave


async def over(daemon: Daemon) -> None:
    """Return right when it is shown that nothing is under way on `a`."""
    async with asyncio.timeout(DEADLINE_S):
        while daemon.vm("a").active_operation_id is not None:
            await daemon.journal.changed.wait()


@pytest.mark.parametrize("call", ["shutdown", "look_up"])
@pytest.mark.parametrize(("wish", "outcome"), [(START, DONE), (STOP, ALREADY_DONE)])
async def test_it_is_over_at_once(
    here: Site, daemon: Daemon, call: str, wish: Parameters, outcome: OperationOutcome
) -> None:
    stop_id, stop = await hung(daemon, call)
    here.domain("a").destroy()  # the guest obeys the first press
    await over(daemon)
    here.domains.before.clear()
    other = await daemon.done("a", wish)
    assert (other.outcome, other.id == stop_id) == (outcome, False)
    assert stop.done()
    assert await stop == await daemon.journal.operation(stop_id)
    assert (await stop).outcome is DONE


@pytest.mark.parametrize("wish", [STOP, FORCED])
async def test_nobody_joins_it_for_the_next_boot(
    here: Site, daemon: Daemon, wish: Parameters
) -> None:
    stop_id, stop = await hung(daemon)
    here.domain("a").destroy()
    await over(daemon)
    here.domain("a").create()
    await daemon.until_state("a", VmState.RUNNING)
    other = await daemon.done("a", wish, actor="other")
    assert (other.outcome, other.id == stop_id) == (DONE, False)
    assert stop.done()
    assert not here.domain("a").isActive()


async def test_who_comes_before_it_is_told_waits_for_that(here: Site, daemon: Daemon) -> None:
    stop_id, stop, leave = await held_up(daemon)
    here.domain("a").destroy()
    await over(daemon)
    start = asyncio.create_task(daemon.done("a", START))
    await turns(20)
    assert not start.done()
    leave.set()
    assert (await start).outcome is DONE
    assert ((await stop).id, (await stop).outcome) == (stop_id, DONE)


async def test_force_that_joins_as_it_ends_is_not_told_to_be_used(
    here: Site, daemon: Daemon, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "vmagentd.operations.intake")
    stop_id, stop, leave = await held_up(daemon)
    with busy_disk(here):
        before = here.connection.events_taken
        here.domain("a").destroy()
        await until(lambda: here.connection.events_taken > before, "its event")
        forced = asyncio.create_task(daemon.done("a", FORCED, actor="other"))
        await turns(20)
    await until_joined(daemon, "other")
    assert not stop.done()
    leave.set()
    assert await forced == await stop
    assert ((await stop).id, (await stop).outcome) == (stop_id, DONE)
    assert not caplog.messages


async def test_what_the_log_says_of_it(
    here: Site, daemon: Daemon, caplog: pytest.LogCaptureFixture
) -> None:
    """It goes off at the last look before it is told to have failed."""
    caplog.set_level(logging.INFO, "vmagentd.operations.engine")
    looks = 0

    async def look() -> None:
        nonlocal looks
        looks += 1
        if looks == 3:  # the first one is the Stop's own, the second at the end of its time
            here.domain("a").destroy()

    here.domains.deaf()
    here.domains.before["look_up"] = look
    stopped = await daemon.done("a", replace(STOP, grace_period=0.3 * SECOND))
    assert stopped.outcome is DONE
    assert caplog.messages[-1] == "stop a by tester: DONE"
