"""What is promised of a fact that was handed over."""

from __future__ import annotations

import asyncio
import sqlite3
import threading
from contextlib import closing
from itertools import pairwise
from typing import TYPE_CHECKING

import pytest

from tests.component.journal.facts import (
    DEADLINE_S,
    collected,
    commits,
    event,
    filled,
    operation,
    query,
    revisions,
    rows,
    sighting,
    survey,
    uuid,
)
from vmagentd.errors import JournalUnwritable, ShuttingDown
from vmagentd.journal.inbox import MAX_BATCH
from vmagentd.journal.recent import PAGE, RECENT
from vmagentd.journal.schema import TRANSITION, VM
from vmagentd.journal.store import Journal, open_journal
from vmagentd.model import EventKind, HistoryFilter, Revision, VmState

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from tests.component.journal.conftest import Open
    from vmagentd.model import Transition

# a little more than is kept in memory at most
MANY = 2 * RECENT + PAGE + 7


class TestDurable:
    async def test_on_return_it_is_in_the_file_for_everybody(
        self, journal: Journal, state_dir: Path
    ) -> None:
        for number in range(1, 11):
            await journal.append(event(number))
            stored = rows(state_dir, "SELECT revision, record FROM transition")
            assert [revision for revision, _ in stored] == list(range(1, number + 1))
            newest = TRANSITION.validate_json(stored[-1][1])
            assert newest == (await journal.page(Revision(number - 1)))[0]
            ((record,),) = rows(state_dir, "SELECT record FROM vm")
            assert VM.validate_json(record) == journal.vms[uuid(1)] == newest.vm

    async def test_nothing_is_shown_or_acknowledged_before(
        self, journal: Journal, state_dir: Path
    ) -> None:
        await journal.append(event(1))
        with holding_the_file(state_dir):
            waiting = asyncio.ensure_future(journal.append(event(2)))
            done, _ = await asyncio.wait([waiting], timeout=0.3)
            assert not done
            assert journal.head == 1
            assert journal.vms[uuid(1)].revision == 1
        async with asyncio.timeout(DEADLINE_S):
            await waiting
        assert journal.head == 2

    async def test_what_was_only_recorded_is_there_after_a_close(self, opened: Open) -> None:
        async with opened() as journal:
            for number in range(1, 1001):
                journal.record(event(number))
        async with opened() as journal:
            assert journal.head == 1000
            assert revisions(await collected(journal, 0, 1000)) == list(range(1, 1001))

    async def test_facts_may_come_from_any_thread(self, journal: Journal) -> None:
        def tell(vm: int) -> None:
            for number in range(1, 101):
                journal.record(event(number, vm))

        threads = [threading.Thread(target=tell, args=(vm,)) for vm in range(1, 5)]
        for thread in threads:
            thread.start()
        found = await collected(journal, 0, 400)
        for thread in threads:
            thread.join()
        assert revisions(found) == list(range(1, 401))
        for vm in range(1, 5):
            times = [t.time for t in found if t.vm.uuid == uuid(vm)]
            assert times == sorted(times)
            assert len(times) == 100

    async def test_giving_up_waiting_takes_nothing_back(self, journal: Journal) -> None:
        waiting = journal.submit(event(1))
        waiting.cancel()
        await journal.append(event(2))
        assert journal.head == 2


class TestGroupCommit:
    async def test_facts_that_wait_share_a_transaction(
        self, journal: Journal, state_dir: Path
    ) -> None:
        await journal.append(event(1))
        before = commits(state_dir)
        with holding_the_file(state_dir):
            waiting = [journal.submit(event(number)) for number in range(2, MAX_BATCH)]
        async with asyncio.timeout(DEADLINE_S):
            await asyncio.gather(*waiting)
        assert journal.head == MAX_BATCH - 1
        # what the writer had taken when it met the lock, and all the rest
        assert commits(state_dir) - before in {1, 2}

    async def test_one_after_the_other_are_one_each(
        self, journal: Journal, state_dir: Path
    ) -> None:
        await journal.append(event(1))
        before = commits(state_dir)
        for number in range(2, 12):
            await journal.append(event(number))
        assert commits(state_dir) - before == 10

    async def test_a_fact_that_changes_nothing_costs_no_transaction(
        self, journal: Journal, state_dir: Path
    ) -> None:
        await journal.append(survey(sighting()))
        before = commits(state_dir)
        await journal.append(query(sighting(), after_event=0))
        assert commits(state_dir) == before
        assert journal.vms[uuid(1)].verify_time is not None


class TestFollow:
    async def test_from_any_place_it_tells_the_history(self, journal: Journal) -> None:
        await filled(journal, MANY)
        stored: list[Transition] = []
        while len(stored) < MANY:
            place = stored[-1].revision if stored else None
            which = HistoryFilter(oldest_first=True)
            stored += await journal.transitions(which, limit=1000, after=place)
        assert revisions(stored) == list(range(1, MANY + 1))
        # memory is bounded: some is in it, some only in the file
        assert RECENT <= len(journal._recent) <= 2 * RECENT
        oldest = journal._recent.oldest
        assert oldest is not None
        for after in (0, 1, PAGE - 1, oldest - PAGE, oldest - 2, oldest - 1, oldest, MANY - 1):
            assert await collected(journal, after, MANY) == stored[after:]
        # at the edge of memory every place goes on, with a whole page
        for after in range(oldest - 3, oldest + 3):
            assert await journal.page(Revision(after)) == tuple(stored[after : after + PAGE])

    async def test_it_waits_at_the_head_and_goes_on(self, journal: Journal) -> None:
        await journal.append(event(1))
        told = asyncio.ensure_future(collected(journal, 0, 3))
        await journal.append(event(2))
        await journal.append(event(3))
        assert revisions(await told) == [1, 2, 3]

    async def test_a_page_shows_nothing_before_the_head_does(self, opened: Open) -> None:
        """What a watcher saw must be there for whoever asks after it."""
        async with opened() as journal:
            await filled(journal, 2 * PAGE)
        async with opened() as journal:  # all of it is only in the file
            for number in range(2 * PAGE + 1, 2 * PAGE + 250):
                journal.record(event(number))
                page = await journal.page(Revision(2 * PAGE - 1))
                assert page[-1].revision <= journal.head

    async def test_a_slow_follower_delays_nobody(self, journal: Journal) -> None:
        async def dawdle() -> AsyncIterator[int]:
            async for page in journal.follow(Revision(0)):
                yield page[-1].revision

        slow = dawdle()
        await journal.append(event(1))
        assert await anext(slow) == 1  # and now it does nothing
        quick = asyncio.ensure_future(collected(journal, 0, MANY))
        async with asyncio.timeout(DEADLINE_S):
            await filled(journal, MANY - 1, begin=2)
            assert revisions(await quick) == list(range(1, MANY + 1))
        seen = [1]
        async for last in slow:  # nothing was lost on it either
            seen.append(last)
            if last == MANY:
                break
        assert all(b - a <= PAGE for a, b in pairwise(seen))


class TestDoubts:
    async def test_an_answer_older_than_an_event_loses_and_is_asked_for_again(
        self, journal: Journal
    ) -> None:
        await journal.append(survey(sighting()))
        await journal.append(event(1, kind=EventKind.SUSPENDED_PAUSED))
        journal.take_doubts()
        changed = journal.changed
        await journal.append(query(sighting(), after_event=0))
        assert journal.vms[uuid(1)].state is VmState.PAUSED
        assert changed.is_set()
        assert journal.take_doubts() == {uuid(1)}
        assert journal.take_doubts() == set()
        await journal.append(query(sighting(), after_event=1))
        assert journal.vms[uuid(1)].state is VmState.RUNNING

    async def test_a_survey_loses_only_where_an_event_is_younger(self, journal: Journal) -> None:
        await journal.append(survey(sighting(1), sighting(2)))
        await journal.append(event(1, vm=1, kind=EventKind.SUSPENDED_PAUSED))
        await journal.append(survey(sighting(1)))
        assert journal.vms[uuid(1)].state is VmState.PAUSED
        assert journal.vms[uuid(2)].state is VmState.GONE

    async def test_what_a_survey_could_not_read_is_asked_about(self, journal: Journal) -> None:
        await journal.append(survey(sighting(1), sighting(2)))
        await journal.append(survey(sighting(1), unreadable=(uuid(2),)))
        assert journal.vms[uuid(2)].state is VmState.RUNNING
        assert journal.take_doubts() == {uuid(2)}
        assert journal.link.connected


class TestTheEnd:
    async def test_after_close_nothing_is_taken(self, opened: Open) -> None:
        async with opened() as journal:
            pass
        with pytest.raises(ShuttingDown):
            await journal.append(event(1))

    async def test_a_file_that_cannot_be_written_is_fatal_and_nobody_waits_for_ever(
        self, state_dir: Path
    ) -> None:
        faults: list[BaseException] = []
        async with open_journal(state_dir, fatal=faults.append) as journal:
            await journal.append(survey(sighting()))
            changed = journal.changed
            break_the_table(state_dir)
            waiting = [journal.submit(event(number)) for number in range(1, 4)]
            async with asyncio.timeout(DEADLINE_S):
                results = await asyncio.gather(*waiting, return_exceptions=True)
            assert [type(result) for result in results] == [JournalUnwritable] * 3
            assert len(faults) == 1
            assert not journal.writable
            assert changed.is_set()  # whoever reports it need not poll
            assert journal.head == 1
            assert journal.vms[uuid(1)].revision == 1
            # nor does anybody who comes later
            async with asyncio.timeout(DEADLINE_S):
                with pytest.raises(JournalUnwritable):
                    await journal.append(operation(1))


class holding_the_file:
    """Nobody else can commit in the block; what waits for it goes on after."""

    def __init__(self, state_dir: Path) -> None:
        self._db = sqlite3.connect(state_dir / "journal.db", timeout=5.0, isolation_level=None)

    def __enter__(self) -> None:
        self._db.execute("BEGIN IMMEDIATE")

    def __exit__(self, *_: object) -> None:
        self._db.execute("ROLLBACK")
        self._db.close()


def break_the_table(state_dir: Path) -> None:
    """Let every insert fail from now on, as a full disk would."""
    with closing(sqlite3.connect(state_dir / "journal.db")) as db, db:
        db.execute(
            "CREATE TRIGGER full BEFORE INSERT ON 'transition' "
            "BEGIN SELECT RAISE(ABORT, 'database or disk is full'); END"
        )
