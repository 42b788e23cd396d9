"""History is dropped from its old end, in small steps; clocks may say what they like."""

from __future__ import annotations

import asyncio
import sqlite3
from contextlib import closing
from dataclasses import replace
from datetime import timedelta
from typing import TYPE_CHECKING

import pytest

from tests.component.journal.facts import (
    BEGIN,
    DEADLINE_S,
    SECOND,
    collected,
    event,
    filled,
    operation,
    revisions,
    rows,
    sighting,
    survey,
    uuid,
)
from tests.component.journal_faults.conftest import check_history, eventually
from vmagentd.errors import RevisionCompacted
from vmagentd.journal.retention import NO_LIMITS, STEP
from vmagentd.lifecycle.steps import end
from vmagentd.model import (
    Cursor,
    HistoryFilter,
    OperationOutcome,
    OperationPhase,
    Revision,
    VmState,
)
from vmagentd.watch import Heartbeat, Watch

if TYPE_CHECKING:
    from pathlib import Path

    from tests.component.journal_faults.conftest import Open
    from vmagentd.journal.store import Journal

DAY = timedelta(days=1)


@pytest.fixture
def state_dir(tmp_path: Path) -> Path:
    return tmp_path / "state"


async def resumed(journal: Journal, after: int) -> object:
    """Return what a watcher gets first who goes on after that revision."""
    cursor = Cursor(journal_id=journal.id, revision=Revision(after))
    watching = Watch(journal).follow(vms=(), resume=cursor, heartbeat_interval=60 * SECOND)
    try:
        return await anext(watching)
    finally:
        await watching.aclose()


class TestByRows:
    async def test_the_newest_stay_and_each_vms_last(self, opening: Open, state_dir: Path) -> None:
        limits = replace(NO_LIMITS, transitions=1000)
        async with opening(state_dir) as journal:
            await journal.append(survey(sighting(1), sighting(2), sighting(3)))  # 1, 2, 3
            await journal.append(survey(sighting(1), sighting(2)))  # 4: the third is gone
            await filled(journal, 3500 - 4)  # of the first
            whole = await collected(journal, 0, 3500)
        async with opening(state_dir, limits=limits) as journal:
            await eventually(lambda: journal.oldest == 2501)
            (kept,) = rows(
                state_dir, "SELECT group_concat(revision) FROM 'transition' WHERE revision < 2501"
            )
            assert kept == ("2",)
            assert rows(state_dir, "SELECT count(*) FROM 'transition'") == [(1001,)]
            # history tells what there is, the survivor too
            found = await journal.transitions(HistoryFilter(oldest_first=True), limit=3)
            assert list(found) == [whole[1], *whole[2500:2502]]
            assert await collected(journal, 2500, 3500) == whole[2500:]
            # a survivor that is not the newest any more goes with the next sweep
            with pytest.raises(RevisionCompacted) as refused:
                await resumed(journal, 2499)
            assert refused.value.facts["oldest_revision"] == "2501"
            assert await resumed(journal, 2500)
            assert isinstance(await resumed(journal, 3500), Heartbeat)
            assert set(journal.vms) == {uuid(1), uuid(2), uuid(3)}
        async with opening(state_dir, limits=limits) as journal:
            assert (journal.head, journal.oldest) == (3500, 2501)
            # gone, and nothing is left of its history
            assert set(journal.vms) == {uuid(1), uuid(2)}
            await journal.append(survey(sighting(1), sighting(2, VmState.STOPPED)))
            await filled(journal, STEP, begin=4001)
            await eventually(lambda: journal.oldest > 2501)
            left = "SELECT revision FROM 'transition' WHERE revision < 2501"
            await eventually(lambda: not rows(state_dir, left))

    async def test_a_journal_under_load_is_kept_in_bounds(
        self, opening: Open, state_dir: Path
    ) -> None:
        limits = replace(NO_LIMITS, transitions=1000)
        async with opening(state_dir, limits=limits) as journal:
            await filled(journal, 20_000)
            assert journal.oldest > 15_000
            assert await collected(journal, journal.oldest - 1, 20_000)

    async def test_a_page_has_no_gap(self, opening: Open, state_dir: Path) -> None:
        """A watcher that is overtaken by compaction finds out, and skips nothing."""
        async with opening(state_dir) as journal:
            await journal.append(survey(sighting(1), sighting(2)))
            await filled(journal, 3000)
        rows(state_dir, "DELETE FROM 'transition' WHERE revision BETWEEN 3 AND 100")
        async with opening(state_dir) as journal:
            assert revisions(await journal.page(Revision(0))) == [1, 2]
            assert revisions(await journal.page(Revision(2)))[0] == 101


class TestByAge:
    async def test_what_is_old_goes(self, opening: Open, state_dir: Path) -> None:
        async with opening(state_dir) as journal:
            await filled(journal, 1000)  # one each second after BEGIN
        limits = replace(NO_LIMITS, age=DAY)
        async with opening(
            state_dir, limits=limits, now=lambda: BEGIN + DAY + 600 * SECOND
        ) as journal:
            await eventually(lambda: journal.oldest >= 600)
            assert journal.oldest < 650  # that clock goes on

    async def test_operations_and_their_request_ids(self, opening: Open, state_dir: Path) -> None:
        async with opening(state_dir) as journal:
            await journal.append(survey(sighting(1), sighting(2)))
            old = operation(1, request_id="r")
            await journal.accept(old)
            done = end(
                old, OperationPhase.SUCCEEDED, time=BEGIN + SECOND, outcome=OperationOutcome.DONE
            )
            await journal.append(done)
            await journal.accept(operation(2, vm=2))  # under way, however long
        limits = replace(NO_LIMITS, operations_age=DAY)
        async with opening(state_dir, limits=limits, now=lambda: BEGIN + 2 * DAY) as journal:
            await eventually(
                lambda: not rows(state_dir, "SELECT 1 FROM operation WHERE id = 'op-1'")
            )
            assert await journal.request("tester", "r") is None
            assert await journal.operation(operation(2).id) is not None
            # the VM's history still tells of it
            found = await journal.transitions(HistoryFilter(vm=uuid(1)), limit=10)
            assert {t.operation_id for t in found} == {None, old.id}


class TestClock:
    async def test_backwards_and_forwards(self, opening: Open, state_dir: Path) -> None:
        """Revisions are the order, whatever the times say."""
        steps = [0, 5000, -100_000, 20, 9_000_000, 30, 31]
        async with opening(state_dir) as journal:
            for number, seconds in enumerate(steps, start=1):
                fact = replace(event(number), observe_time=BEGIN + seconds * SECOND)
                await journal.append(fact)
            found = await collected(journal, 0, len(steps))
            assert [t.time - BEGIN for t in found] == [s * SECOND for s in steps]
            head = journal.head
        async with opening(state_dir) as journal:
            assert journal.head == head
            assert await collected(journal, 0, head) == found
            await journal.append(event(100))
        check_history(state_dir, head + 1)

    async def test_nothing_behind_a_young_one_is_dropped(
        self, opening: Open, state_dir: Path
    ) -> None:
        async with opening(state_dir) as journal:
            for number, days in enumerate([0, 0, 1000, 0, 0], start=1):
                await journal.append(replace(event(number), observe_time=BEGIN + days * DAY))
        limits = replace(NO_LIMITS, age=DAY)
        async with opening(state_dir, limits=limits, now=lambda: BEGIN + 10 * DAY) as journal:
            await eventually(lambda: journal.oldest == 3)
            assert revisions(await collected(journal, 2, 5)) == [3, 4, 5]

    async def test_a_step_of_the_hosts_clock_makes_nothing_old(
        self, opening: Open, state_dir: Path
    ) -> None:
        clock = [BEGIN]
        limits = replace(NO_LIMITS, age=DAY, operations_age=DAY, transitions=1000)
        async with opening(state_dir, limits=limits, now=lambda: clock[0]) as journal:
            await journal.append(event(1))
            clock[0] = BEGIN + 10_000 * DAY
            await filled(journal, 1200, begin=2)
            await eventually(lambda: journal.oldest > 1)
            assert journal.oldest <= 1201 - 1000 + 1


async def test_a_long_reader_does_not_make_the_log_grow_for_ever(
    opening: Open, state_dir: Path
) -> None:
    log = state_dir / "journal.db-wal"
    async with opening(state_dir) as journal:
        await filled(journal, 100)
        with closing(sqlite3.connect(state_dir / "journal.db", isolation_level=None)) as reader:
            reader.execute("BEGIN")
            reader.execute("SELECT count(*) FROM meta").fetchone()
            number, limit = 100, 16 << 20
            async with asyncio.timeout(DEADLINE_S):
                while log.stat().st_size < limit + (1 << 20):
                    await filled(journal, 500, begin=number + 1)
                    number += 500
        await filled(journal, 2000, begin=number + 1)
        await eventually(lambda: log.stat().st_size <= limit)
