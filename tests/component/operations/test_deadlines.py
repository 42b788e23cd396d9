"""A deadline is the same in the next daemon, whatever was done to the host's clock meanwhile."""

from __future__ import annotations

import asyncio
from datetime import datetime, timedelta
from typing import TYPE_CHECKING

import pytest

from tests.component.operations.site import SECOND, STOP, Site, somebody
from vmagentd.model import OperationPhase
from vmagentd.operations.means import Clock

if TYPE_CHECKING:
    from collections.abc import Callable

HOUR = timedelta(hours=1)
BOOT = "this one"


def set_by(clock: Clock, by: timedelta, *, boot_id: str = BOOT) -> Clock:
    """Return *clock* with its wall clock set."""

    def now() -> datetime:
        return clock.now() + by

    return Clock(boot_id=boot_id, now=now, since_boot=clock.since_boot)


async def left(here: Site, clock: Callable[[Clock], Clock]) -> float:
    """Return how many seconds a Stop of 60 s has in a daemon that has that clock."""
    here.domains.deaf()
    async with here.daemon() as daemon:
        stop_id, caller = await daemon.under_way("a", STOP, OperationPhase.SIGNALLED)
    await asyncio.wait([caller])
    here.clock = clock(here.clock)
    async with here.daemon(recover=False) as daemon:
        daemon.operations.recover()
        (run,) = daemon.operations._runs.values()
        remaining = run.time_left.total_seconds()
        await daemon.operations.cancel(stop_id, caller=somebody("tester"))
    return remaining


@pytest.mark.parametrize("step", [-HOUR, timedelta(0), HOUR])
async def test_in_the_same_boot_the_wall_clock_does_not_matter(
    here: Site, step: timedelta
) -> None:
    assert 30 < await left(here, lambda clock: set_by(clock, step)) <= 60


async def test_in_the_same_boot_time_goes_on_while_nobody_runs(here: Site) -> None:
    def later(clock: Clock) -> Clock:
        def since_boot() -> timedelta:
            return clock.since_boot() + 20 * SECOND

        return Clock(boot_id=BOOT, now=clock.now, since_boot=since_boot)

    assert 10 < await left(here, later) <= 40


async def test_after_another_boot_the_wall_clock_tells(here: Site) -> None:
    def rebooted(clock: Clock) -> Clock:
        def since_boot() -> timedelta:
            return SECOND

        later = set_by(clock, 20 * SECOND)
        return Clock(boot_id="another", now=later.now, since_boot=since_boot)

    assert 10 < await left(here, rebooted) <= 40


async def test_one_that_has_passed_ends_it_at_once(here: Site) -> None:
    assert await left(here, lambda clock: set_by(clock, HOUR, boot_id="another")) == 0
