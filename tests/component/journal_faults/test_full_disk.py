"""The disk is full, read-only or fails: nothing uncommitted is shown, nothing is lost."""

from __future__ import annotations

import asyncio
import itertools
import logging
import shutil
import sqlite3
from contextlib import closing, contextmanager
from dataclasses import replace
from datetime import UTC, datetime
from functools import partial
from typing import TYPE_CHECKING

import pytest
from typing_extensions import override  # typing has it since 3.12

from tests.component.journal.facts import (
    DEADLINE_S,
    SECOND,
    collected,
    event,
    filled,
    lost,
    operation,
    restore_version_1,
    revisions,
    rows,
    sighting,
    survey,
    uuid,
)
from tests.component.journal_faults.conftest import Open, check_history, eventually, until
from tests.component.journal_faults.disks import MIB, break_off, lock, unlock
from vmagentd.errors import JournalUnusable, JournalUnwritable, StartupError
from vmagentd.journal import backlog
from vmagentd.journal.disk import BALLAST_BYTES, Ballast
from vmagentd.journal.inbox import MAX_BATCH
from vmagentd.lifecycle.steps import end, step
from vmagentd.model import (
    EventKind,
    HistoryFilter,
    InitiatorKind,
    OperationOutcome,
    OperationPhase,
    Revision,
    VmState,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from tests.component.journal_faults.disks import Disk
    from vmagentd.journal.store import Journal
    from vmagentd.model import Operation, OperationId


async def exhausted(journal: Journal, disk: Disk) -> int:
    """Record events until the disk is full without any ballast; return the last one's number."""
    ballast = disk.path / "state/ballast"
    await eventually(ballast.exists)
    number = 1000
    async with asyncio.timeout(DEADLINE_S):
        while journal.writable:
            disk.fill()
            for _ in range(200):
                number += 1
                journal.record(event(number))
            await asyncio.sleep(0.02)
    assert not ballast.exists()
    return number


class TestFullDisk:
    async def test_the_ballast_goes_first(self, opening: Open, disk: Disk) -> None:
        async with opening(disk.path / "state") as journal:
            ballast = disk.path / "state/ballast"
            await eventually(ballast.exists)
            assert ballast.stat().st_size == BALLAST_BYTES
            disk.fill()
            number = 0
            while ballast.exists():
                number += 1
                await journal.append(event(number))
            assert journal.writable
            disk.make_room()
            await journal.append(event(number + 1))
            check_history(disk.path / "state", number + 1)
            await eventually(ballast.exists)

    async def test_facts_wait_and_new_operations_are_refused(
        self, opening: Open, disk: Disk
    ) -> None:
        async with opening(disk.path / "state") as journal:
            await journal.append(survey(sighting(1), sighting(2)))
            await journal.accept(operation(1))
            number = await exhausted(journal, disk)
            shown = journal.head
            waiting = journal.submit(event(number + 1))
            taken = step(operation(1), OperationPhase.SIGNALLED, time=operation(1).accept_time)
            later = journal.submit(taken)
            with pytest.raises(JournalUnwritable, match="SQLITE_FULL"):
                await journal.accept(operation(2, vm=2))
            # one that was handed over before anybody knew
            with pytest.raises(JournalUnwritable):
                await journal.submit(operation(3, vm=2), now_or_never=True)
            assert journal.head == shown
            assert not waiting.done()
            assert not later.done()
            # what is committed can be read
            assert revisions(await journal.page(Revision(0)))[0] == 1
            assert await journal.operation(operation(1).id) == operation(1)
            disk.make_room()
            await asyncio.gather(waiting, later)
            await until(journal, lambda: journal.writable)
            assert await journal.operation(operation(1).id) == taken
            assert await journal.operation(operation(3).id) is None
            assert journal.vms[uuid(2)].active_operation_id is None
            await journal.accept(operation(4, vm=2))
            head = journal.head
            found = await collected(journal, 0, head)
            assert revisions(found) == list(range(1, head + 1))
            # every event made its transition, in order
            assert [t.time for t in found if t.raw_event] == [
                event(told).observe_time for told in range(1001, number + 2)
            ]
            await eventually((disk.path / "state/ballast").exists)
        check_history(disk.path / "state", head)

    async def test_the_writer_gives_its_signs_of_life(self, opening: Open, disk: Disk) -> None:
        async with opening(disk.path / "state") as journal:
            await exhausted(journal, disk)
            async with asyncio.timeout(DEADLINE_S):
                await journal.beat()
            assert not journal.writable
            disk.make_room()

    async def test_the_link_is_told_though_nothing_is_committed(
        self, opening: Open, disk: Disk
    ) -> None:
        async with opening(disk.path / "state") as journal:
            await journal.append(survey(sighting(1)))
            number = await exhausted(journal, disk)
            surveyed = journal.link.last_survey_time
            journal.record(lost(cause="libvirtd ended"))
            await until(journal, lambda: not journal.link.connected)
            assert journal.link.cause == "libvirtd ended"
            anew = survey(sighting(1), after_event=number, link=2)
            anew = replace(anew, begin_time=anew.begin_time + SECOND)
            later = journal.submit(anew)
            await until(journal, lambda: journal.link.connected)
            assert journal.link.last_survey_time == surveyed
            assert not journal.writable
            assert not later.done()
            disk.make_room()
            await later
            await until(journal, lambda: journal.writable)
            assert journal.link.last_survey_time == anew.begin_time
            ended, _ = await journal.blind_intervals()
            assert ended.cause == "libvirtd ended"
            assert ended.end_time is not None

    async def test_who_is_blind_is_not_told_connected_as_the_disk_comes_back(
        self, opening: Open, disk: Disk
    ) -> None:
        async with opening(disk.path / "state") as journal:
            await journal.append(survey(sighting(1)))
            number = await exhausted(journal, disk)
            # caught up in several commits, and at most of them the link was up
            for later in range(1, 8 * MAX_BATCH):
                journal.record(event(number + later))
            journal.record(lost(cause="libvirtd ended"))
            await until(journal, lambda: not journal.link.connected)
            disk.make_room()
            await until(journal, lambda: journal.writable or journal.link.connected)
            assert (journal.writable, journal.link.connected) == (True, False)
            assert journal.link.cause == "libvirtd ended"

    async def test_losses_that_wait_are_told_by_the_first_and_the_last(
        self, opening: Open, disk: Disk
    ) -> None:
        async with opening(disk.path / "state") as journal:
            await journal.append(survey(sighting(1)))
            number = await exhausted(journal, disk)
            for link, cause in enumerate(("first", "second", "third", "last"), start=1):
                journal.record(lost(link, cause))
            late = journal.submit(survey(sighting(1), after_event=number, link=4))
            await eventually(lambda: not journal.inbox_depth)  # else they come after the outage
            disk.make_room()
            await late
            assert (journal.link.connected, journal.link.cause) == (False, "last")
            lasting, _ = await journal.blind_intervals()
            assert lasting.cause == "first, then: last"
            await journal.append(survey(sighting(1), after_event=number, link=5))
            assert journal.link.connected

    async def test_too_many_facts_become_doubts(self, opening: Open, disk: Disk) -> None:
        async with opening(disk.path / "state") as journal:
            off = sighting(3, VmState.STOPPED)
            await journal.append(survey(sighting(1), sighting(2), off, monitored=True))
            await journal.append(event(1, vm=3, kind=EventKind.STARTED_RUNNING))
            number = await exhausted(journal, disk)
            began = datetime.now(UTC)
            assert not await journal.was_blind(began)
            shown = journal.head
            for _ in range(backlog.MAX_EVENTS + 1000):
                number += 1
                journal.record(event(number, vm=2 + number % 2))
            await eventually(lambda: not journal.inbox_depth)  # else some find room at once
            journal.take_doubts()
            disk.make_room()
            await until(journal, lambda: journal.writable)
            await journal.append(event(number + 1, vm=1))
            assert journal.take_doubts() >= {uuid(2), uuid(3)}
            assert journal.head - shown <= backlog.MAX_EVENTS + 1
            # among them may be whatever tells who ends it
            await journal.append(event(number + 2, vm=3, kind=EventKind.SHUTDOWN_GUEST))
            assert journal.vms[uuid(3)].initiator.kind is InitiatorKind.UNKNOWN
            assert await journal.was_blind(began)  # for a Reboot that waits for its event
            assert not await journal.was_blind(datetime.now(UTC))
        check_history(disk.path / "state", journal.head)

    async def test_an_end_without_room_gives_up_what_waits(
        self, opening: Open, disk: Disk
    ) -> None:
        async with opening(disk.path / "state") as journal:
            await journal.append(survey(sighting(1)))
            number = await exhausted(journal, disk)
            waiting = journal.submit(event(number + 1))
            head = journal.head
        with pytest.raises(JournalUnwritable):
            await waiting
        disk.make_room()
        async with opening(disk.path / "state") as journal:
            assert journal.head == head
            assert not journal.link.connected
        check_history(disk.path / "state", head)

    async def test_a_start_on_a_full_disk_takes_the_ballast(
        self, opening: Open, disk: Disk
    ) -> None:
        async with opening(disk.path / "state") as journal:
            await filled(journal, 10)
            await eventually((disk.path / "state/ballast").exists)
        disk.fill()
        async with opening(disk.path / "state") as journal:
            assert journal.head == 10
            await journal.append(event(11))

    async def test_a_start_without_any_room_says_so(self, opening: Open, disk: Disk) -> None:
        ballast = disk.path / "state/ballast"
        async with opening(disk.path / "state") as journal:
            await filled(journal, 10)
            await eventually(ballast.exists)
        ballast.unlink()
        disk.fill()
        with pytest.raises(JournalUnusable, match="make room"):
            async with opening(disk.path / "state"):
                pass
        disk.make_room()
        async with opening(disk.path / "state") as journal:
            assert journal.head == 10


class TestUpgradeOnAFullDisk:
    @pytest.fixture
    def old(self, disk: Disk) -> Path:
        """A journal of version 1: to migrate it takes more than SQLite keeps in memory."""
        state = disk.path / "state"
        restore_version_1(state)
        rows(
            state,
            """WITH RECURSIVE n (n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM n LIMIT 4000)
            INSERT INTO operation SELECT
                'op-' || n, 'vm', 'a', NULL, 1, 2,
                json_object('phase', 'SUCCEEDED', 'text', hex(zeroblob(200))) FROM n""",
        )
        return state

    async def test_it_takes_the_ballast(self, opening: Open, disk: Disk, old: Path) -> None:
        assert Ballast(old / "ballast").make()
        disk.fill(leave=MIB)  # it is opened, and migrated in part
        async with opening(old):
            assert not (old / "ballast").exists()
        assert rows(old, "SELECT count(*) FROM operation WHERE vm = 'vm'") == [(4000,)]

    async def test_without_any_room_it_says_so(self, opening: Open, disk: Disk, old: Path) -> None:
        disk.fill(leave=MIB)  # it is opened, and migrated in part
        with pytest.raises(JournalUnusable, match="SQLITE_FULL; make room"):
            async with opening(old):
                pass
        disk.make_room()
        async with opening(old):
            pass
        assert rows(old, "SELECT count(*) FROM operation WHERE vm = 'vm'") == [(4000,)]


class TestFailingFsync:
    async def test_nothing_is_acknowledged_that_was_not_synced(
        self, opening: Open, thin_disk: Disk
    ) -> None:
        state = thin_disk.path / "state"
        async with opening(state) as journal:
            await filled(journal, 10)
            await eventually((state / "ballast").exists)
            thin_disk.fill()
            number = 10
            while journal.writable:
                number += 1
                journal.record(event(number))
                await asyncio.sleep(0.001)
            with pytest.raises(JournalUnwritable, match="SQLITE_IOERR"):
                await journal.accept(operation(1))
            waiting = journal.submit(event(number + 1))
            shown = journal.head
            assert shown < number
            thin_disk.make_room()
            await waiting
            assert journal.head == number + 1
            found = await collected(journal, 0, journal.head)
            assert revisions(found) == list(range(1, journal.head + 1))
        check_history(state, journal.head)


class TestRefused:
    """What is refused is not done later either, also if the daemon is killed right after."""

    async def test_it_is_not_in_what_a_kill_leaves(
        self, opening: Open, thin_disk: Disk, tmp_path: Path
    ) -> None:
        async with opening(thin_disk.path / "state") as journal:
            await self._prepared(journal, thin_disk)
            refused = await self._refused(journal)
            left = left_by_a_kill(thin_disk, tmp_path)
            thin_disk.make_room()
        async with opening(left) as journal:
            assert refused not in {operation.id for operation in journal.left_open}
            assert journal.vms[uuid(1)].active_operation_id != refused

    async def test_who_asks_waits_while_it_may_be(
        self, opening: Open, thin_disk: Disk, tmp_path: Path
    ) -> None:
        """It was written and not synced, and then there is no writing over it."""
        log = thin_disk.path / "state/journal.db-wal"
        async with opening(thin_disk.path / "state") as journal:
            await self._prepared(journal, thin_disk)
            with between_tries(partial(lock, log)):
                asked, undecided = await self._asked_in_vain(journal)
            left = left_by_a_kill(thin_disk, tmp_path)
            # one that comes later was never written
            with pytest.raises(JournalUnwritable):
                await journal.submit(operation(1000, vm=2), now_or_never=True)
            assert not undecided.done()
            thin_disk.make_room()
            unlock(log)
            with pytest.raises(JournalUnwritable):
                await undecided
            await until(journal, lambda: journal.writable)
            assert await journal.operation(asked.id) is None
        async with opening(left) as journal:
            assert asked in journal.left_open

    async def _prepared(self, journal: Journal, disk: Disk) -> None:
        await journal.append(survey(sighting(1), sighting(2)))
        await eventually((disk.path / "state/ballast").exists)
        disk.fill()

    async def _refused(self, journal: Journal) -> OperationId:
        """Ask until the disk is full, and return what was refused."""
        asked, done = await self._asked_in_vain(journal)
        with pytest.raises(JournalUnwritable):
            await done
        return asked.id

    async def _asked_in_vain(self, journal: Journal) -> tuple[Operation, asyncio.Future[None]]:
        """Ask until the disk is full, and return what was asked then."""
        for number in itertools.count(1):
            done = journal.submit(operation(number), now_or_never=True)
            await until(journal, lambda: done.done() or not journal.writable)  # noqa: B023
            if not journal.writable:
                return operation(number), done
        raise AssertionError


@contextmanager
def between_tries(act: Callable[[], object]) -> Iterator[None]:
    """Have the writer do something after a commit that failed, before it tries again."""

    class Between(logging.Handler):
        @override
        def emit(self, record: logging.LogRecord) -> None:
            if "ballast was released" in record.getMessage():
                act()

    log, between = logging.getLogger("vmagentd.journal.disk"), Between()
    log.addHandler(between)
    try:
        yield
    finally:
        log.removeHandler(between)


def left_by_a_kill(disk: Disk, tmp_path: Path) -> Path:
    """Copy what a daemon leaves that is killed now; its shared memory is made anew."""
    left = tmp_path / "left"
    left.mkdir()
    for name in ("journal.db", "journal.db-wal"):
        shutil.copy(disk.path / "state" / name, left)
    return left


async def test_a_disk_that_turns_read_only(thin_disk: Disk) -> None:
    state, opening = thin_disk.path / "state", Open()
    async with opening(state) as journal:
        await filled(journal, 10)
        break_off(thin_disk)
        waiting = journal.submit(event(11))
        await until(journal, lambda: not journal.writable)
        assert not waiting.done()
        assert (journal.head, len(await journal.page(Revision(0)))) == (10, 10)
        assert revisions(await journal.transitions(HistoryFilter(), limit=3)) == [10, 9, 8]
        with pytest.raises(JournalUnwritable):
            await journal.accept(operation(1))
    assert not opening.faults
    with pytest.raises(StartupError, match=r"Read-only|readonly|read-only"):
        async with opening(state):
            pass


class TestSomebodyElseWrites:
    async def test_for_too_long(self, opening: Open, disk: Disk) -> None:
        state = disk.path / "state"
        async with opening(state) as journal:
            await journal.append(survey(sighting(1)))
            with closing(sqlite3.connect(state / "journal.db", isolation_level=None)) as other:
                other.execute("BEGIN IMMEDIATE")
                waiting = journal.submit(event(1))
                refused = journal.submit(operation(1), now_or_never=True)
                with pytest.raises(JournalUnwritable, match="SQLITE_BUSY"):
                    await refused
                assert not journal.writable
                assert not waiting.done()
            await waiting
            await until(journal, lambda: journal.writable)
            assert journal.vms[uuid(1)].state is VmState.PAUSED

    async def test_and_then_the_disk_is_full(self, opening: Open, disk: Disk) -> None:
        state = disk.path / "state"
        async with opening(state) as journal:
            await eventually((state / "ballast").exists)
            with closing(sqlite3.connect(state / "journal.db", isolation_level=None)) as other:
                other.execute("BEGIN IMMEDIATE")
                for number in range(1, 500):
                    journal.record(event(number))
                waiting = journal.submit(event(500))
                await until(journal, lambda: not journal.writable)
                disk.fill()
            async with asyncio.timeout(DEADLINE_S):
                await waiting
            assert not (state / "ballast").exists()
        check_history(state, 500)


async def test_an_operation_ends_though_its_disk_was_full(opening: Open, disk: Disk) -> None:
    """Its outcome waits, as whoever asked does."""
    async with opening(disk.path / "state") as journal:
        await journal.append(survey(sighting(1), sighting(2)))
        await journal.accept(operation(1, vm=2))
        await exhausted(journal, disk)
        done = end(
            operation(1, vm=2),
            OperationPhase.SUCCEEDED,
            time=operation(1).accept_time,
            outcome=OperationOutcome.DONE,
        )
        waiting = journal.submit(done)
        assert journal.vms[uuid(2)].active_operation_id == operation(1).id
        disk.make_room()
        await waiting
        assert journal.vms[uuid(2)].active_operation_id is None
    async with opening(disk.path / "state") as journal:
        assert not journal.left_open
