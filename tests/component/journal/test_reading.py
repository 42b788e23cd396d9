"""Pages are found without reading what is not in them, and hold nobody up who waits for others."""

from __future__ import annotations

import asyncio
import random
import subprocess
import sys
from dataclasses import replace
from itertools import product
from pathlib import Path
from threading import Event
from typing import TYPE_CHECKING, Final

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
from vmagentd.errors import ShuttingDown
from vmagentd.journal.history import BLOCK, load_transitions
from vmagentd.journal.reader import Lane, read_for
from vmagentd.journal.recent import RECENT
from vmagentd.journal.schema import TRANSITION, sql, to_column
from vmagentd.model import HistoryFilter, Revision

if TYPE_CHECKING:
    from collections.abc import Iterable

    from peewee import SqliteDatabase

    from tests.component.journal.conftest import Open
    from vmagentd.journal.store import Journal
    from vmagentd.model import Transition

ROOT: Final = Path(__file__).parents[3]
# the largest number that SQLite has
LAST: Final = 2**63 - 1


async def stored(opened: Open, state_dir: Path, places: Iterable[tuple[int, int, int]]) -> None:
    """Make the history out of these revisions, seconds after BEGIN, and VMs."""
    async with opened() as journal:
        await journal.append(event(1))
        (one,) = await collected(journal, 0, 1)
    record = TRANSITION.dump_json(one).decode().replace("'", "''")
    values = ", ".join(
        f"({revision}, '{uuid(vm)}', {to_column(BEGIN + seconds * SECOND)})"
        for revision, seconds, vm in places
    )
    rows(state_dir, "DELETE FROM 'transition'")
    rows(
        state_dir,
        "INSERT INTO 'transition' SELECT column1, column2, 'STATE', 'RUNNING', column3, "
        f"json_set('{record}', '$.revision', column1) FROM (VALUES {values})",
    )


class TestByTime:
    async def test_whatever_the_hosts_clock_did(self, opened: Open, state_dir: Path) -> None:
        """Pages of every range of times hold what is in it, in the order of revisions."""
        luck = random.Random(1)
        clock, places = 0, []
        for revision in sorted(luck.sample(range(1, 12 * BLOCK), 300)):
            clock += luck.choice((1, 1, 1, 1, 1, 1, 1, 0, -1, -40, 40))
            stray = luck.random() < 0.02
            places.append((revision, 5000 if stray else clock, luck.randint(1, 3)))
        await stored(opened, state_dir, places)
        ends = [None, -9, 0, *luck.sample(range(clock), 4), 4999, 5000, 5001]
        async with opened() as journal:
            for since, until in product(ends, ends):
                vm = luck.choice((None, 1))
                oldest_first = luck.random() < 0.5
                expected = [
                    revision
                    for revision, seconds, of in places
                    if (since is None or seconds >= since)
                    and (until is None or seconds < until)
                    and (vm is None or of == vm)
                ]
                which = HistoryFilter(
                    vm=None if vm is None else uuid(vm),
                    min_time=None if since is None else BEGIN + since * SECOND,
                    max_time=None if until is None else BEGIN + until * SECOND,
                    oldest_first=oldest_first,
                )
                got = [t.revision for t in await whole(journal, which, limit=40)]
                assert got == (expected if oldest_first else expected[::-1])

    async def test_only_the_page_is_read(self, opened: Open, state_dir: Path) -> None:
        await stored(opened, state_dir, ((n, n, 1) for n in range(1, 5 * BLOCK)))
        before_all, after_all = (None, 0), (100_000, None)
        ranges = (before_all, after_all, (None, 100), (20_000, None), (9000, 9100), (0, 20_000))

        def instructions(db: SqliteDatabase, which: HistoryFilter) -> int:
            """Count what SQLite does for a page, by hundreds."""
            counted: list[None] = []
            connection = db.connection()  # type: ignore[no-untyped-call]
            connection.set_progress_handler(lambda: counted.append(None), 100)
            load_transitions(db, which, limit=101, after=None)
            return 100 * len(counted)

        costs = {}
        async with opened() as journal:
            for (since, until), vm, order in product(ranges, (None, uuid(1)), (True, False)):
                which = HistoryFilter(
                    vm=vm,
                    min_time=None if since is None else BEGIN + since * SECOND,
                    max_time=None if until is None else BEGIN + until * SECOND,
                    oldest_first=order,
                )
                costs[which] = await journal._reader.read(Lane.LISTS, instructions, which)
        # a block is read at most, and a block at either end looked through
        assert max(costs.values()) < 20 * BLOCK, costs


@pytest.mark.parametrize("oldest_first", [True, False])
async def test_pages_from_either_end_of_all_numbers(
    journal: Journal, *, oldest_first: bool
) -> None:
    """Whoever computes places of his own gets a page like anybody else."""
    await filled(journal, 2)
    which = HistoryFilter(oldest_first=oldest_first)
    timed = replace(which, min_time=BEGIN, max_time=BEGIN + 100 * SECOND)
    for asked in which, timed:
        for place in LAST - 1, LAST:
            page = await journal.transitions(asked, limit=5, after=Revision(place))
            assert revisions(page) == ([] if oldest_first else [2, 1])
            beyond = replace(asked, min_revision=Revision(place))
            assert await journal.transitions(beyond, limit=5) == ()
        page = await journal.transitions(asked, limit=5, after=Revision(0))
        assert revisions(page) == ([1, 2] if oldest_first else [])


class TestLanes:
    async def test_an_operation_waits_for_no_page(self, opened: Open) -> None:
        async with opened() as journal:
            asked = operation(1, request_id="r")
            await journal.append(survey(sighting()))
            await journal.append(asked)
            await filled(journal, 2 * RECENT)
        async with opened() as journal:
            await journal.append(event(1))
            released = Event()
            try:
                slow = [
                    asyncio.create_task(journal._reader.read(Lane.LISTS, wait_for, released))
                    for _ in range(20)
                ]
                await asyncio.sleep(0)  # each of them is in its place
                async with asyncio.timeout(DEADLINE_S):
                    assert await journal.request("tester", "r") == (asked, asked.parameters)
                    assert await journal.operation(asked.id) == asked
                    assert await journal.was_blind(BEGIN)
                    assert await journal.page(Revision(0))
            finally:
                released.set()
            await asyncio.gather(*slow)

    @pytest.mark.parametrize("lane", Lane)
    async def test_who_reads_a_lot_holds_others_up_by_one(
        self, journal: Journal, lane: Lane
    ) -> None:
        read: list[str] = []

        async def ask(whom: str) -> None:
            read_for(whom)
            await journal._reader.read(lane, lambda _: read.append(whom))

        async with asyncio.timeout(DEADLINE_S), asyncio.TaskGroup() as tasks:
            for _ in range(50):
                tasks.create_task(ask("a"))
            tasks.create_task(ask("b"))
            tasks.create_task(ask("c"))
        assert read[:3] == ["a", "b", "c"]
        assert len(read) == 52
        assert not journal._reader._turns

    async def test_a_read_nobody_waits_for_is_given_up(self, journal: Journal) -> None:
        begun = Event()
        endless = asyncio.create_task(journal._reader.read(Lane.LISTS, without_end, begun))
        async with asyncio.timeout(DEADLINE_S):
            await asyncio.to_thread(begun.wait, DEADLINE_S)
            endless.cancel()
            await asyncio.wait([endless])
            assert await journal.transitions(HistoryFilter(), limit=1) == ()
        assert endless.cancelled()


async def test_nothing_is_read_once_it_is_closed(opened: Open) -> None:
    async with opened() as journal:
        pass
    with pytest.raises(ShuttingDown):
        await journal.transitions(HistoryFilter(), limit=1)


def test_a_read_that_hangs_keeps_no_process_from_ending(state_dir: Path) -> None:
    """Neither as it closes its journal, nor when it ends."""
    command = [sys.executable, "-m", "tests.component.journal.stuck", str(state_dir)]
    done = subprocess.run(
        command, cwd=ROOT, stdout=subprocess.PIPE, text=True, timeout=2 * DEADLINE_S, check=True
    )
    assert done.stdout == "closed\n"


def wait_for(_db: SqliteDatabase, released: Event) -> bool:
    return released.wait(DEADLINE_S)


def without_end(db: SqliteDatabase, begun: Event) -> None:
    begun.set()
    numbers = (
        "WITH RECURSIVE n(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM n) SELECT max(x) FROM n"
    )
    sql(db, numbers).fetchone()


async def whole(journal: Journal, which: HistoryFilter, *, limit: int) -> list[Transition]:
    """Read history page by page."""
    found: list[Transition] = []
    after: Revision | None = None
    while page := await journal.transitions(which, limit=limit, after=after):
        found += page
        after = page[-1].revision
    return found
