"""What its operation does not wait for any more: libvirt may have it, or never gets it."""

from __future__ import annotations

import asyncio
import sqlite3
import threading
from contextlib import asynccontextmanager, closing
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from tests.component.hypervisor.host import until
from tests.component.operations.gates import Gate, turns
from tests.component.operations.site import (
    DEADLINE_S,
    FORCED,
    PAUSE,
    RESET,
    RESUME,
    SECOND,
    START,
    STOP,
    TIMES,
    Daemon,
    Site,
    for_ever,
    somebody,
    unreachable,
)
from vmagentd.errors import LibvirtBusy, OutcomeUnknown
from vmagentd.hypervisor.guest import Lane
from vmagentd.model import (
    OnGraceExpired,
    Operation,
    OperationOutcome,
    OperationPhase,
    Parameters,
    ResumeParameters,
    StartParameters,
    StopParameters,
    VmState,
)

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from vmagentd.model import VmUuid
    from vmagentd.pool import Pool

DONE, ALREADY_DONE = OperationOutcome.DONE, OperationOutcome.ALREADY_DONE
SOON: StartParameters = replace(START, timeout=0.2 * SECOND)


def error_of(operation: Operation) -> str:
    assert operation.failure is not None
    return operation.failure.error


async def given_up(daemon: Daemon, how: str) -> None:
    """Let a Start of `off` end that libvirt has been given, and perhaps a Stop after it."""
    if how == "timed out":
        assert error_of(await daemon.done("off", SOON)) == "StartTimedOut"
        return
    start_id, start = await daemon.under_way("off", START, OperationPhase.STARTING)
    await until(lambda: "start" in daemon.site.domains.calls, "libvirt has it")
    await daemon.operations.cancel(start_id, caller=somebody("other"))
    assert (await start).phase is OperationPhase.CANCELLED
    if how == "a cancelled Stop later":
        stop_id, stop = await daemon.under_way("off", STOP, OperationPhase.ACCEPTED)
        await turns(20)
        await daemon.operations.cancel(stop_id, caller=somebody("other"))
        assert (await stop).phase is OperationPhase.CANCELLED


@asynccontextmanager
async def occupied(pool: Pool, vm: VmUuid) -> AsyncIterator[None]:
    """Let libvirt hang in a call on *vm*; then let it go on."""
    lane, free = (vm, Lane.PROCESS), threading.Event()
    hung = asyncio.create_task(pool.run(lambda _: free.wait(), lane=lane))
    await until(lambda: pool.has(lane), "it hangs")
    try:
        yield
    finally:
        free.set()
        await hung


@asynccontextmanager
async def busy(pool: Pool) -> AsyncIterator[None]:
    """Let libvirt hang in a call of each thread of *pool*; then let it go on."""
    threads, free = pool._limit, threading.Event()
    hung = [asyncio.create_task(pool.run(lambda _: free.wait())) for _ in range(threads)]
    await until(lambda: len(pool._unfinished) == threads and not pool._jobs.qsize(), "all hang")
    try:
        yield
    finally:
        free.set()
        await asyncio.gather(*hung)
        # in turn: whatever waited for a thread has had one
        await asyncio.gather(*(pool.run(lambda _: None) for _ in range(threads)))


class TestNotGiven:
    """No thread, or no link, was there to give it to libvirt."""

    async def test_one_that_is_cancelled_never_begins(self, here: Site, daemon: Daemon) -> None:
        async with asyncio.timeout(DEADLINE_S):
            async with busy(here.domains._start):
                start_id, start = await daemon.under_way("off", START, OperationPhase.STARTING)
                await turns(20)
                await daemon.operations.cancel(start_id, caller=somebody("other"))
                assert (await start).phase is OperationPhase.CANCELLED
                await until(lambda: daemon.starts.running == 0, "its place is free")
            assert not here.domain("off").isActive()
            assert (await daemon.done("off", START)).outcome is DONE

    @pytest.mark.parametrize("wish", [STOP, FORCED])
    async def test_who_stops_its_vm_does_not_wait(
        self, here: Site, daemon: Daemon, wish: StopParameters
    ) -> None:
        async with asyncio.timeout(DEADLINE_S):
            async with busy(here.domains._start):
                _, start = await daemon.under_way("off", START, OperationPhase.STARTING)
                await turns(20)
                stopped = await daemon.done("off", wish)
                assert (await start).phase is OperationPhase.CANCELLED
            assert stopped.outcome is ALREADY_DONE
            assert not here.domain("off").isActive()

    async def test_one_that_is_late_never_begins(self, here: Site, daemon: Daemon) -> None:
        async with busy(here.domains._start):
            late = await daemon.done("off", SOON)
            assert error_of(late) == "LibvirtUnreachable"
        assert not here.domain("off").isActive()

    async def test_one_whose_time_was_over_when_it_was_accepted_never_begins(
        self, here: Site, daemon: Daemon
    ) -> None:
        path = here.state_dir / "journal.db"
        with closing(sqlite3.connect(path, isolation_level=None)) as other:
            other.execute("BEGIN IMMEDIATE")  # nothing is committed while this lasts
            start = asyncio.create_task(daemon.done("off", START))
            await until(lambda: daemon.operations._runs, "it waits for the disk")
            daemon.let_time_pass()
        late = await start
        assert late.failure is not None
        assert late.failure.error == "StartTimedOut"
        assert "libvirt was not asked" in late.failure.message
        assert here.domains.calls == []

    @pytest.mark.parametrize("lane", [True, False])
    @pytest.mark.parametrize(
        "wish",
        [replace(PAUSE, timeout=0.3 * SECOND), replace(RESUME, timeout=0.3 * SECOND), RESET],
    )
    async def test_others_are_told_so_too(
        self, here: Site, wish: Parameters, *, lane: bool
    ) -> None:
        """Not that they may still come."""
        here.times = replace(TIMES, force_timeout=0.3 * SECOND)
        if isinstance(wish, ResumeParameters):
            here.domain("a").suspend()
        act = here.domains._act
        async with here.daemon() as daemon, occupied(act, here.uuid("a")) if lane else busy(act):
            told = await daemon.done("a", wish)
            assert error_of(told) == ("LibvirtBusy" if lane else "LibvirtUnreachable")

    async def test_one_whose_daemon_ends_never_begins(self, here: Site) -> None:
        async with busy(here.domains._start):
            async with here.daemon() as daemon:
                _, start = await daemon.under_way("off", START, OperationPhase.STARTING)
                await turns(20)
            await asyncio.wait([start])
        assert not here.domain("off").isActive()


@pytest.mark.parametrize("how", ["cancelled", "timed out", "a cancelled Stop later"])
class TestGiven:
    """Libvirt has it, and whatever comes next on the VM knows of it."""

    @pytest.mark.parametrize("wish", [STOP, FORCED])
    async def test_a_stop_waits_for_its_answer(
        self, here: Site, daemon: Daemon, wish: StopParameters, how: str
    ) -> None:
        here.domains.before["start"] = libvirt = Gate()
        async with asyncio.timeout(DEADLINE_S):
            await given_up(daemon, how)
            stop = asyncio.create_task(daemon.done("off", wish))
            done, _ = await asyncio.wait([stop], timeout=0.2)
            assert not done
            libvirt.open.set()
            assert (await stop).phase is OperationPhase.SUCCEEDED
        assert not here.domain("off").isActive()
        assert daemon.vm("off").incarnation == 1

    @pytest.mark.parametrize(
        ("wish", "forces"),
        [
            (replace(STOP, grace_period=0.1 * SECOND), False),
            (
                replace(STOP, grace_period=0.1 * SECOND, on_grace_expired=OnGraceExpired.FORCE),
                True,
            ),
            (FORCED, True),
        ],
    )
    async def test_a_stop_does_not_say_that_it_is_off_while_it_may_come_up(
        self, here: Site, wish: StopParameters, how: str, *, forces: bool
    ) -> None:
        here.times = replace(TIMES, force_timeout=0.3 * SECOND)
        here.domains.before["start"] = libvirt = Gate()
        async with here.daemon() as daemon, asyncio.timeout(DEADLINE_S):
            await given_up(daemon, how)
            stopped = await daemon.done("off", wish)
            assert error_of(stopped) == "OutcomeUnknown"
            assert ("destroy" in here.domains.calls) == forces
            libvirt.open.set()
            await daemon.until_state("off", VmState.RUNNING)
            assert (await daemon.done("off", FORCED)).outcome is DONE
            assert not here.domain("off").isActive()

    async def test_a_start_does_not_give_it_another_one(
        self, here: Site, daemon: Daemon, how: str
    ) -> None:
        here.domains.before["start"] = libvirt = Gate()
        async with asyncio.timeout(DEADLINE_S):
            await given_up(daemon, how)
            assert error_of(await daemon.done("off", SOON)) == "StartTimedOut"
            start = asyncio.create_task(daemon.done("off", START))
            done, _ = await asyncio.wait([start], timeout=0.2)
            assert not done
            libvirt.open.set()
            assert (await start).outcome is ALREADY_DONE
        assert here.domains.calls.count("start") == 1
        assert daemon.vm("off").incarnation == 1


class TestForce:
    """A VM is still up when its force has had all its time."""

    async def test_that_no_thread_was_free_for(self, here: Site) -> None:
        here.times = replace(TIMES, force_timeout=0.3 * SECOND)
        async with here.daemon() as daemon:
            async with busy(here.domains._kill):
                assert error_of(await daemon.done("a", FORCED)) == "LibvirtUnreachable"
            assert here.domain("a").isActive()

    @pytest.mark.parametrize(
        ("last", "error"), [("unreachable", "LibvirtUnreachable"), ("busy", "LibvirtBusy")]
    )
    @pytest.mark.parametrize("once_given", [False, True])
    async def test_that_libvirt_did_not_take(
        self, here: Site, last: str, error: str, *, once_given: bool
    ) -> None:
        async def destroy() -> None:
            if once_given and here.domains.calls.count("destroy") == 1:
                raise OutcomeUnknown(here.uuid("a"), "destroy", "no answer")
            if last == "busy":
                raise LibvirtBusy(here.uuid("a"), 68, 10, "held by a job")
            await unreachable()

        here.domains.instead["destroy"] = destroy
        # there is another attempt each second
        here.times = replace(TIMES, force_timeout=(1.5 if once_given else 0.3) * SECOND)
        async with here.daemon() as daemon:
            told = error_of(await daemon.done("a", FORCED))
            assert told == ("ForceTimedOut" if once_given else error)

    async def test_that_an_earlier_daemon_may_have_given_it(self, here: Site) -> None:
        here.domains.instead["destroy"] = for_ever
        async with here.daemon() as daemon:
            stop_id, stop = await daemon.under_way("a", FORCED, OperationPhase.FORCING)
        await asyncio.wait([stop])
        here.domains.instead["destroy"] = unreachable
        here.times = replace(TIMES, force_timeout=0.3 * SECOND)
        async with here.daemon() as daemon:
            await until(lambda: daemon.vm("a").active_operation_id is None, "its end")
            stopped = await daemon.journal.operation(stop_id)
            assert stopped is not None
            assert error_of(stopped) == "ForceTimedOut"
