"""What an operation that was given up may bring yet is known to the next daemon too."""

from __future__ import annotations

from contextlib import asynccontextmanager
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from tests.component.journal.facts import BEGIN, SECOND, event, operation, sighting, survey, uuid
from vmagentd.journal.store import open_journal
from vmagentd.lifecycle.steps import end, step
from vmagentd.model import (
    BootTime,
    EventKind,
    HostBooted,
    InitiatorKind,
    OnGraceExpired,
    OperationFailure,
    OperationPhase,
    StartParameters,
    StopMode,
    StopParameters,
    VmState,
)

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable
    from contextlib import AbstractAsyncContextManager
    from pathlib import Path

    from vmagentd.journal.store import Journal
    from vmagentd.model import Operation

    Daemon = Callable[..., AbstractAsyncContextManager[Journal]]

UNKNOWN, OUT_OF_BAND = InitiatorKind.UNKNOWN, InitiatorKind.OUT_OF_BAND
BOOTED, DESTROYED = EventKind.STARTED_BOOTED, EventKind.STOPPED_DESTROYED
MINUTE = 60 * SECOND


@pytest.fixture
def daemon(state_dir: Path) -> Daemon:
    """Opens the journal of a host on which 1 is off and 2 runs; *after* so long."""

    @asynccontextmanager
    async def running(*, after: int = 0, boot: str = "one") -> AsyncIterator[Journal]:
        faults: list[BaseException] = []
        now = BEGIN + after * MINUTE
        async with open_journal(state_dir, fatal=faults.append, now=lambda: now) as journal:
            await journal.append(HostBooted(time=now, boot_id=boot))
            if not journal.vms:
                await journal.append(survey(sighting(1, VmState.STOPPED), sighting(2)))
            yield journal
        assert not faults

    return running


def a_start(number: int = 1) -> Operation:
    return replace(operation(number), parameters=StartParameters(timeout=MINUTE))


def a_forced_stop(number: int = 1) -> Operation:
    forced = StopParameters(
        mode=StopMode.FORCE, grace_period=MINUTE, on_grace_expired=OnGraceExpired.FAIL
    )
    return replace(operation(number, 2), parameters=forced)


async def give_up(
    journal: Journal,
    wish: Operation,
    *phases: OperationPhase,
    error: str = "OutcomeUnknown",
    how: OperationPhase = OperationPhase.FAILED,
) -> None:
    await journal.accept(wish)
    for phase in phases:
        wish = step(wish, phase, time=BEGIN)
        await journal.append(wish)
    failure = OperationFailure(error=error, message="")
    await journal.append(end(wish, how, time=BEGIN, failure=failure))


async def hear(journal: Journal, vm: int, *kinds: EventKind, after: int = 0) -> InitiatorKind:
    """Tell events, each *after* so many minutes; return whose doing the last one was."""
    for kind in kinds:
        number = 1000 + journal.head
        told = replace(event(number, vm, kind), observe_time=BEGIN + after * MINUTE, run_id=None)
        await journal.append(told)
    return journal.vms[uuid(vm)].initiator.kind


STARTING, FORCING = OperationPhase.STARTING, OperationPhase.FORCING


@pytest.mark.parametrize(
    ("how", "error"),
    [
        (OperationPhase.CANCELLED, "OperationCancelled"),
        (OperationPhase.FAILED, "OutcomeUnknown"),
        (OperationPhase.INTERRUPTED, "OperationInterrupted"),
    ],
)
async def test_nobody_knows_who_did_it(daemon: Daemon, how: OperationPhase, error: str) -> None:
    async with daemon() as journal:
        await give_up(journal, a_start(), STARTING, error=error, how=how)
        await give_up(journal, a_forced_stop(2), FORCING, error=error, how=how)
    async with daemon(after=9) as journal:
        assert await hear(journal, 1, BOOTED, after=9) is UNKNOWN
        assert await hear(journal, 2, DESTROYED, after=9) is UNKNOWN
        assert await hear(journal, 2, BOOTED, DESTROYED, after=9) is OUT_OF_BAND  # it came


async def test_nor_if_it_came_while_no_daemon_was_there(daemon: Daemon) -> None:
    async with daemon() as journal:
        await give_up(journal, a_start(), STARTING)
    async with daemon() as journal:
        await journal.append(survey(sighting(1), sighting(2)))
        assert journal.vms[uuid(1)].active
        assert journal.vms[uuid(1)].initiator.kind is UNKNOWN


async def test_each_of_several_may_come(daemon: Daemon) -> None:
    async with daemon() as journal:
        await give_up(journal, a_start(1), STARTING)
        stop = replace(a_forced_stop(2), vm=uuid(1))
        await give_up(journal, stop, FORCING)
        await give_up(journal, a_start(3), STARTING)
    async with daemon() as journal:
        for kind in (BOOTED, DESTROYED):
            assert await hear(journal, 1, kind) is UNKNOWN
        for kind in (BOOTED, DESTROYED):
            assert await hear(journal, 1, kind) is OUT_OF_BAND


async def test_one_that_is_under_way_does_not_hide_it(daemon: Daemon) -> None:
    async with daemon() as journal:
        await give_up(journal, a_forced_stop(), FORCING)
        await journal.accept(operation(2, 2))
    async with daemon() as journal:
        assert await hear(journal, 2, DESTROYED) is UNKNOWN


@pytest.mark.parametrize("restarts", [1, 2])
async def test_what_has_come_does_not_come_again(daemon: Daemon, restarts: int) -> None:
    async with daemon() as journal:
        await give_up(journal, a_start(), STARTING)
        assert await hear(journal, 1, BOOTED) is UNKNOWN
        await hear(journal, 1, DESTROYED)
    for _ in range(restarts):
        async with daemon() as journal:
            assert await hear(journal, 1, BOOTED) is OUT_OF_BAND
            await hear(journal, 1, DESTROYED)


async def test_what_came_before_is_not_what_comes(daemon: Daemon) -> None:
    async with daemon() as journal:
        assert await hear(journal, 1, BOOTED, DESTROYED) is OUT_OF_BAND
        await give_up(journal, a_start(), STARTING)
    async with daemon() as journal:
        assert await hear(journal, 1, BOOTED) is UNKNOWN


async def test_another_end_does_not_use_it_up(daemon: Daemon) -> None:
    async with daemon() as journal:
        await give_up(journal, a_forced_stop(), FORCING)
        await hear(journal, 2, EventKind.SHUTDOWN_HOST, EventKind.STOPPED_SHUTDOWN, BOOTED)
    async with daemon() as journal:
        assert await hear(journal, 2, DESTROYED) is UNKNOWN


@pytest.mark.parametrize(
    ("phases", "error"), [([], "OutcomeUnknown"), ([STARTING], "LibvirtRefused")]
)
async def test_what_libvirt_was_not_asked_or_refused_does_not_come(
    daemon: Daemon, phases: list[OperationPhase], error: str
) -> None:
    async with daemon() as journal:
        await give_up(journal, a_start(), *phases, error=error)
    async with daemon() as journal:
        assert await hear(journal, 1, BOOTED) is OUT_OF_BAND


@pytest.mark.parametrize("after", [9, 11])
async def test_it_comes_soon_or_not_at_all(daemon: Daemon, after: int) -> None:
    async with daemon() as journal:
        await give_up(journal, a_start(), STARTING)
    async with daemon(after=after) as journal:
        assert await hear(journal, 1, BOOTED, after=11) is OUT_OF_BAND


async def test_libvirt_forgets_it_with_the_boot_of_the_host(daemon: Daemon) -> None:
    async with daemon() as journal:
        await give_up(journal, a_start(), STARTING)
    async with daemon(boot="two") as journal:
        assert await hear(journal, 1, BOOTED) is OUT_OF_BAND


async def test_nor_does_it_come_back_if_that_boot_changed_no_vm(daemon: Daemon) -> None:
    async with daemon() as journal:
        await hear(journal, 2, DESTROYED)
        await give_up(journal, a_start(), STARTING)
    async with daemon(boot="two") as journal:
        head = journal.head
    async with daemon(boot="two") as journal:
        assert journal.head == head
        assert await hear(journal, 1, BOOTED) is OUT_OF_BAND


@pytest.mark.parametrize(("boot", "by"), [("one", UNKNOWN), ("two", OUT_OF_BAND)])
@pytest.mark.parametrize("next_daemon", [False, True])
async def test_nor_does_one_come_that_is_interrupted_after_that_boot(
    daemon: Daemon, boot: str, by: InitiatorKind, *, next_daemon: bool
) -> None:
    wish = replace(a_start(), deadline_boot=BootTime(boot_id="one", since_boot=MINUTE))
    async with daemon() as journal:
        await journal.accept(wish)
        wish = step(wish, STARTING, time=BEGIN)
        await journal.append(wish)
    async with daemon(boot=boot) as journal:
        failure = OperationFailure(error="OperationInterrupted", message="")
        await journal.append(end(wish, OperationPhase.INTERRUPTED, time=BEGIN, failure=failure))
        assert next_daemon or await hear(journal, 1, BOOTED) is by
    async with daemon(boot=boot) as journal:
        assert not next_daemon or await hear(journal, 1, BOOTED) is by


@pytest.mark.parametrize("vm", [1, 2])
async def test_it_does_not_come_back_with_the_daemon_after_that_boot(
    daemon: Daemon, vm: int
) -> None:
    async with daemon() as journal:
        await give_up(journal, replace(a_start(), vm=uuid(vm)), STARTING)
    async with daemon(boot="two") as journal:
        await give_up(journal, replace(a_forced_stop(2), vm=uuid(vm)), FORCING)
    async with daemon(boot="two") as journal:
        assert await hear(journal, vm, BOOTED) is OUT_OF_BAND
        assert await hear(journal, vm, DESTROYED) is UNKNOWN  # asked for since that boot
