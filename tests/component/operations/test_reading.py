"""An operation that waits reads what happens on its host once, however long; if it can."""

from __future__ import annotations

import asyncio
import resource
from collections import Counter
from contextlib import contextmanager
from dataclasses import replace
from itertools import count
from typing import TYPE_CHECKING

import pytest

from tests.component.hypervisor.host import until
from tests.component.journal.facts import event
from tests.component.operations.site import (
    DEADLINE_S,
    FORCED,
    PAUSE,
    REBOOT,
    SECOND,
    START,
    STOP,
    TIMES,
    Daemon,
    Site,
)
from vmagentd.errors import OutcomeUnknown
from vmagentd.model import (
    OperationOutcome,
    OperationPhase,
    Parameters,
    Revision,
    Transition,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

OTHER = 7


def counted(daemon: Daemon) -> Counter[Revision]:
    """Return how often each transition has been read from now on."""
    read: Counter[Revision] = Counter()
    page = daemon.journal.page

    async def counting(after: Revision) -> tuple[Transition, ...]:
        transitions = await page(after)
        read.update(transition.revision for transition in transitions)
        return transitions

    daemon.journal.page = counting  # type: ignore[method-assign]
    return read


async def others_change(daemon: Daemon, numbers: Iterator[int]) -> None:
    *most, last = (event(next(numbers), vm=OTHER) for _ in range(600))
    for each in most:
        daemon.journal.record(each)
    await daemon.journal.append(last)


@pytest.mark.parametrize(
    ("ref", "wish", "phase", "call"),
    [
        ("a", STOP, OperationPhase.SIGNALLED, "shutdown"),
        ("a", REBOOT, OperationPhase.SIGNALLED, "reboot"),
        ("a", PAUSE, OperationPhase.WAITING, "pause"),
        ("off", START, OperationPhase.WAITING, "start"),
    ],
)
async def test_what_happens_to_others_is_not_read_again(
    here: Site, ref: str, wish: Parameters, phase: OperationPhase, call: str
) -> None:
    numbers = count(1)

    async def silent() -> None:
        raise OutcomeUnknown(here.uuid(ref), call, "no answer")

    here.times = replace(TIMES, press_interval=0.1 * SECOND)
    async with here.daemon() as daemon:
        here.domains.instead[call] = silent
        _, waiting = await daemon.under_way(ref, wish, phase)
        read = counted(daemon)
        for _ in range(3):  # it waits anew after each press, or look
            await others_change(daemon, numbers)
            asked, looked = len(here.domains.calls), daemon.vm(ref).verify_time
            await until(
                lambda: len(here.domains.calls) > asked or daemon.vm(ref).verify_time != looked,  # noqa: B023
                "it waits on",
            )
        # what happens during a press need not be read at all
        assert max(read.values(), default=0) <= 1
        waiting.cancel()


@contextmanager
def nothing_opened() -> Iterator[None]:
    """Let no file be opened: no descriptor is free."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (0, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


async def test_one_that_cannot_read_does_not_stay_open(here: Site) -> None:
    """A Reboot reads whether its guest may have rebooted unheard before it asks again."""
    here.domains.deaf()
    here.times = replace(TIMES, press_interval=0.1 * SECOND)
    async with here.daemon() as daemon, asyncio.timeout(DEADLINE_S):
        _, reboot = await daemon.under_way("a", REBOOT, OperationPhase.SIGNALLED)
        with nothing_opened():
            failure = (await reboot).failure
        assert failure is not None
        assert failure.error == "OutcomeUnknown"
        assert "unable to open database file" in failure.message
        assert daemon.journal.writable
        assert (await daemon.done("a", FORCED)).outcome is OperationOutcome.DONE
