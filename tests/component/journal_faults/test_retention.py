"""History is dropped from its old end, in small steps; clocks may say what they like."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from datetime import timedelta
from typing import TYPE_CHECKING

import pytest
from peewee import DatabaseError

from tests.component.journal.facts import (
    BEGIN,
    SECOND,
    collected,
    event,
    filled,
    lost,
    operation,
    query,
    revisions,
    rows,
    sighting,
    survey,
    uuid,
)
from tests.component.journal_faults.conftest import check_history, eventually
from vmagentd.errors import RevisionCompacted
from vmagentd.journal import pruning
from vmagentd.journal.disk import Ballast
from vmagentd.journal.file import open_file
from vmagentd.journal.retention import FAREWELL, NO_LIMITS, STEP, Retention
from vmagentd.journal.schema import open_for_writing, sql, to_column, writing
from vmagentd.lifecycle.steps import end
from vmagentd.model import (
    Cursor,
    EventKind,
    HistoryFilter,
    OperationFilter,
    OperationOutcome,
    OperationPhase,
    Revision,
    VmState,
)
from vmagentd.watch import Heartbeat, Watch

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from tests.component.journal_faults.conftest import Open
    from tests.component.journal_faults.disks import Disk
    from vmagentd.journal.file import Kept
    from vmagentd.journal.retention import Limits
    from vmagentd.journal.store import Journal

DAY = timedelta(days=1)
DONE = OperationOutcome.DONE


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
            await journal.append(operation(1, vm=3))  # 4
            ended = end(operation(1, vm=3), OperationPhase.SUCCEEDED, time=BEGIN, outcome=DONE)
            await journal.append(ended)  # 5
            await journal.append(survey(sighting(1), sighting(2)))  # 6: the third is gone
            await filled(journal, 3500 - 6)  # of the first
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
            # gone, and nothing is left of its history; what was asked of it is still found
            await eventually(lambda: set(journal.vms) == {uuid(1), uuid(2)})
        async with opening(state_dir, limits=limits) as journal:
            assert (journal.head, journal.oldest) == (3500, 2501)
            assert set(journal.vms) == {uuid(1), uuid(2)}
            (kept,) = await journal.operations(OperationFilter(vm=uuid(3)), limit=9)
            assert kept.id == "op-1"
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

    async def test_a_follower_that_is_overtaken_goes_on(
        self, opening: Open, state_dir: Path
    ) -> None:
        """An operation waits for what comes, and looks at its VM for what came."""
        async with opening(state_dir) as journal:
            await filled(journal, 3000)
        async with opening(state_dir) as journal:
            rows(state_dir, "DELETE FROM 'transition'")
            following = asyncio.create_task(collected(journal, 1, 3001))
            # it has found nothing, and neither asks again and again nor gives up
            await journal.page(Revision(1))
            await journal.append(event(3001))
            assert revisions(await following) == [3001]


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


class TestVmsThatAreGone:
    """They are forgotten with the last of their history, while the daemon runs."""

    async def test_they_are_not_seen_any_more(self, opening: Open, state_dir: Path) -> None:
        limits = replace(NO_LIMITS, transitions=100)
        async with opening(state_dir, limits=limits) as journal:
            await journal.append(survey(sighting(1), sighting(2), sighting(3), sighting(4)))
            await journal.accept(operation(1, vm=3))
            await journal.append(survey(sighting(1), sighting(4, VmState.STOPPED)))
            assert {uuid(2), uuid(3)} <= journal.vms.keys()
            await filled(journal, 200)
            await eventually(lambda: uuid(2) not in journal.vms)
            assert journal.find(uuid(2)) is journal.find("vm2") is None
            # one is asked something, one does not change and is there
            assert journal.vms.keys() == {uuid(1), uuid(3), uuid(4)}
            ended = end(operation(1, vm=3), OperationPhase.SUCCEEDED, time=BEGIN, outcome=DONE)
            await journal.append(ended)
            await filled(journal, 200, begin=201)
            await eventually(lambda: uuid(3) not in journal.vms)
            # whoever was about to do something to it when it was forgotten
            await journal.accept(operation(2, vm=2))
            assert journal.vms[uuid(2)].active_operation_id == operation(2).id
            # it comes back, and is there as any other
            head = journal.head
            after = 400
            await journal.append(
                survey(sighting(1), sighting(3), sighting(4), after_event=after, link=1)
            )
            assert journal.vms[uuid(3)].state is VmState.RUNNING
            assert journal.vms[uuid(3)].revision > head
            (newest,) = await journal.transitions(HistoryFilter(vm=uuid(3)), limit=1)
            assert newest.vm == journal.vms[uuid(3)]

    async def test_the_writer_forgets_them_later(self, opening: Open, state_dir: Path) -> None:
        limits = replace(NO_LIMITS, transitions=10)
        async with opening(state_dir) as journal:
            await journal.append(survey(*map(sighting, range(1, 6))))
            await journal.append(survey(sighting(1)))  # the others are gone
            await filled(journal, 50)
        kept = open_file(state_dir / "journal.db", Ballast(state_dir / "ballast"), now=BEGIN)
        clock, fold = [BEGIN], kept.fold
        told: list[object] = []
        retention = Retention(
            limits, Revision(kept.oldest - 1), now=lambda: clock[0], forgotten=told.append
        )

        def stepped() -> set[str]:
            """Have all done that is due, and return which VMs are in the file."""
            while retention.step(kept.db, fold):
                pass
            return {vm for (vm,) in sql(kept.db, "SELECT uuid FROM vm")}

        try:
            assert stepped() == {*map(uuid, range(1, 6))}
            gone = [uuid(2), uuid(3), uuid(4), uuid(5)]
            assert told == [gone]
            # libvirt's old answer, one that it is there again, and an operation on it
            late = query(sighting(2), vm=2, after_event=0)
            facts = (
                event(51, vm=2, kind=EventKind.UNDEFINED),
                late,
                query(sighting(3), vm=3, after_event=51),
                operation(1, vm=4),
            )
            batch = fold.apply(facts)
            assert {t.vm.uuid for t in batch.transitions} == {uuid(3), uuid(4)}
            fold.commit(batch)
            clock[0] += FAREWELL - SECOND
            assert uuid(5) in stepped()
            clock[0] += 2 * SECOND + timedelta(minutes=1)
            assert stepped() == {uuid(1), uuid(3), uuid(4)}
            assert told == [gone, [uuid(2), uuid(5)]]
            # begun anew
            (first,) = fold.apply([query(sighting(5), vm=5, after_event=60)]).transitions
            assert (first.revision, first.previous_state) == (fold.head + 1, None)
        finally:
            kept.db.close()


class TestAuditRecords:
    """They are counted now and then; what is to be dropped then is dropped."""

    LIMITS = replace(NO_LIMITS, audit_records=500)

    @pytest.fixture
    async def kept(self, opening: Open, disk: Disk) -> AsyncIterator[Kept]:
        """A journal with 300 of them, on a disk that can be full."""
        state = disk.path / "state"
        async with opening(state) as journal:
            await journal.append(survey(sighting()))
            for number in range(299):
                journal.record(operation(number))
            await journal.append(operation(299))
        kept = open_file(state / "journal.db", Ballast(state / "ballast"), now=BEGIN)
        yield kept
        kept.db.close()

    async def test_a_lower_limit_holds_at_once(self, kept: Kept) -> None:
        retention = retaining(kept, self.LIMITS)
        assert not retention.step(kept.db, kept.fold, most=300)
        retention.limit(replace(self.LIMITS, audit_records=100))
        assert not retention.step(kept.db, kept.fold, most=300)
        assert counted(kept) == 100

    async def test_what_could_not_be_dropped_is_dropped_later(
        self, kept: Kept, disk: Disk
    ) -> None:
        retention = retaining(kept, replace(self.LIMITS, audit_records=100))
        disk.fill()
        with pytest.raises(DatabaseError, match="full"):
            retention.step(kept.db, kept.fold, most=300)
        disk.make_room()
        assert counted(kept) == 300
        assert not retention.step(kept.db, kept.fold, most=300)
        assert counted(kept) == 100


def retaining(kept: Kept, limits: Limits) -> Retention:
    after = Revision(kept.oldest - 1)
    return Retention(limits, after, now=lambda: BEGIN, forgotten=lambda _: None)


def counted(kept: Kept) -> int:
    (count,) = sql(kept.db, "SELECT count(*) FROM audit").fetchone()
    return int(count)


class TestCost:
    def test_a_step_looks_at_no_requests_but_those_it_drops(self, tmp_path: Path) -> None:
        db = open_for_writing(tmp_path / "journal.db")
        rows_of = "WITH RECURSIVE n (x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM n WHERE x < 5000)"
        old, young = to_column(BEGIN), to_column(BEGIN + DAY)
        with writing(db):
            sql(
                db,
                f"INSERT INTO operation {rows_of} "
                "SELECT x, 'vm', 'a', NULL, 'START', 'SUCCEEDED', 'DONE', "
                f"iif(x > 1, {young}, {old}), iif(x > 1, {young}, {old}), '{{}}' FROM n",
            )
            sql(db, f"INSERT INTO joined {rows_of} SELECT 'b', x, (x + 1) / 2, '{{}}' FROM n")
        counted: list[None] = []
        connection = db.connection()  # type: ignore[no-untyped-call]
        connection.set_progress_handler(lambda: counted.append(None), 10)
        with writing(db):
            assert pruning.delete_operations(db, ended_before=young, most=STEP) == 1
        connection.set_progress_handler(None, 0)
        # by tens of SQLite's instructions; to look at each request takes ten times as many
        assert len(counted) < 500
        assert sql(db, "SELECT count(*), min(operation) FROM joined").fetchone() == (4998, "10")
        db.close()


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

    async def test_set_back_while_nobody_looked(self, opening: Open, state_dir: Path) -> None:
        """No time has a negative length, and nothing is late before it can have happened."""
        async with opening(state_dir, now=lambda: BEGIN + 5000 * SECOND) as journal:
            await journal.append(survey(sighting()))  # at 100 s
            await journal.append(replace(event(1), observe_time=BEGIN + 5000 * SECOND))
            await journal.append(replace(lost(), time=BEGIN + 6000 * SECOND))
            back = survey(sighting(state=VmState.STOPPED), after_event=1, link=2)
            await journal.append(back)  # at 100 s again
            (newest,) = await journal.transitions(HistoryFilter(), limit=1)
            assert newest.earliest_time == newest.time == BEGIN + 100 * SECOND
            blind, _ = await journal.blind_intervals()
            assert blind.begin_time == blind.end_time == BEGIN + 6000 * SECOND
        async with opening(state_dir, now=lambda: BEGIN) as journal:
            assert journal.link.blind_since == BEGIN + 5000 * SECOND  # as the last daemon said
        rows(state_dir, "DELETE FROM blind")  # as if it had been killed
        async with opening(state_dir, now=lambda: BEGIN) as journal:
            assert journal.link.blind_since == BEGIN

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
