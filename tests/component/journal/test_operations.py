"""Operations are found by what they are, page by page, also in a file of version 1."""

from __future__ import annotations

import asyncio
import threading
from dataclasses import replace
from itertools import islice
from typing import TYPE_CHECKING

import pytest

from tests.component.journal.facts import (
    BEGIN,
    DEADLINE_S,
    SECOND,
    event,
    operation,
    restore_version_1,
    rows,
    sighting,
    survey,
    uuid,
)
from vmagentd.journal import schema
from vmagentd.journal.reader import Lane
from vmagentd.journal.rows import load_operations
from vmagentd.journal.store import open_journal
from vmagentd.lifecycle.steps import end, step
from vmagentd.model import (
    EventKind,
    JoinedRequest,
    OnGraceExpired,
    OperationFailure,
    OperationFilter,
    OperationId,
    OperationOutcome,
    OperationPhase,
    OperationPlace,
    OperationVerb,
    StartParameters,
    StopMode,
    StopParameters,
    VmState,
)

if TYPE_CHECKING:
    from pathlib import Path

    from tests.component.journal.conftest import Open
    from vmagentd.journal.store import Journal
    from vmagentd.model import Operation


def started(number: int, vm: int = 1) -> Operation:
    return replace(operation(number, vm), parameters=StartParameters(timeout=60 * SECOND))


def done(operation: Operation, outcome: OperationOutcome = OperationOutcome.DONE) -> Operation:
    time = operation.accept_time + SECOND
    return end(operation, OperationPhase.SUCCEEDED, time=time, outcome=outcome)


def failed(operation: Operation) -> Operation:
    time = operation.accept_time + SECOND
    failure = OperationFailure(error="StartFailed", message="no disk")
    return end(operation, OperationPhase.FAILED, time=time, failure=failure)


async def found(journal: Journal, *, page: int = 1000, **which: object) -> list[str]:
    """Return the ids of all operations that a filter lets through, read in pages."""
    ids: list[str] = []
    after = None
    while True:
        filter_ = OperationFilter(**which)  # type: ignore[arg-type]
        read = await journal.operations(filter_, limit=page, after=after)
        ids += [operation.id for operation in read]
        if len(read) < page:
            return ids
        after = OperationPlace(accept_time=read[-1].accept_time, id=read[-1].id)


@pytest.fixture
async def busy(journal: Journal) -> Journal:
    """A journal with two VMs and five operations."""
    await journal.append(survey(sighting(1), sighting(2, VmState.STOPPED)))
    for asked, ended in (
        (operation(1), done(operation(1))),
        (started(2), failed(started(2))),
        (started(3, 2), done(started(3, 2), OperationOutcome.ALREADY_DONE)),
        (replace(started(4), actor="other"), replace(failed(started(4)), actor="other")),
    ):
        await journal.append(asked)
        await journal.append(ended)
    await journal.append(operation(5, 2))
    return journal


async def test_all_of_them_come_newest_first(busy: Journal) -> None:
    assert await found(busy) == ["op-5", "op-4", "op-3", "op-2", "op-1"]


@pytest.mark.parametrize(
    ("which", "ids"),
    [
        ({"vm": uuid(2)}, ["op-5", "op-3"]),
        ({"actor": "other"}, ["op-4"]),
        ({"verbs": {OperationVerb.STOP}}, ["op-5", "op-1"]),
        ({"verbs": {OperationVerb.STOP, OperationVerb.PAUSE}}, ["op-5", "op-1"]),
        ({"phases": {OperationPhase.FAILED}}, ["op-4", "op-2"]),
        ({"phases": {OperationPhase.ACCEPTED, OperationPhase.FAILED}}, ["op-5", "op-4", "op-2"]),
        ({"outcomes": {OperationOutcome.ALREADY_DONE}}, ["op-3"]),
        ({"min_accept_time": BEGIN + 3 * SECOND}, ["op-5", "op-4", "op-3"]),
        ({"max_accept_time": BEGIN + 3 * SECOND}, ["op-2", "op-1"]),
        (
            {"vm": uuid(1), "verbs": {OperationVerb.START}, "phases": {OperationPhase.FAILED}},
            ["op-4", "op-2"],
        ),
        ({"vm": uuid(1), "outcomes": {OperationOutcome.ALREADY_DONE}}, []),
    ],
)
@pytest.mark.parametrize("page", [1, 2, 1000])
async def test_a_filter_lets_through_what_it_says(
    busy: Journal, which: dict[str, object], ids: list[str], page: int
) -> None:
    assert await found(busy, page=page, **which) == ids


async def test_one_under_way_is_found_as_it_is_committed(busy: Journal) -> None:
    signalled = step(operation(5, 2), OperationPhase.SIGNALLED, time=BEGIN + 6 * SECOND)
    await busy.append(signalled)
    which = OperationFilter(phases=frozenset({OperationPhase.SIGNALLED}))
    assert await busy.operations(which, limit=9) == (signalled,)
    await busy.append(done(signalled))
    assert await busy.operations(which, limit=9) == ()
    assert await found(busy, outcomes={OperationOutcome.DONE}) == ["op-5", "op-1"]


async def test_pages_hold_when_times_repeat_and_step_back(journal: Journal) -> None:
    """What was there at the first page comes once, whatever is accepted in between."""
    await journal.append(survey(sighting()))

    async def accepted(number: int, seconds: float) -> None:
        made = replace(operation(number), accept_time=BEGIN + seconds * SECOND)
        await journal.append(made)
        await journal.append(done(made))

    for number, seconds in enumerate((5, 5, 5, 5, 2, 7, 7, 0)):
        await accepted(number, seconds)
    there = await found(journal)
    got: list[str] = []
    after = None
    more = iter(range(10, 20))
    while page := await journal.operations(OperationFilter(), limit=1, after=after):
        got.append(page[0].id)
        after = OperationPlace(accept_time=page[0].accept_time, id=page[0].id)
        for number in islice(more, 1):
            await accepted(number, number % 10)
    assert len(got) == len(set(got))
    assert [each for each in got if each in there] == there


@pytest.mark.parametrize(
    "which",
    [
        OperationFilter(),
        OperationFilter(vm=uuid(1)),
        OperationFilter(actor="tester"),
        OperationFilter(verbs=frozenset({OperationVerb.STOP})),
        OperationFilter(phases=frozenset({OperationPhase.FAILED, OperationPhase.CANCELLED})),
        OperationFilter(outcomes=frozenset({OperationOutcome.DONE})),
        OperationFilter(min_accept_time=BEGIN, max_accept_time=BEGIN + SECOND),
    ],
)
async def test_every_filter_has_its_index(journal: Journal, which: OperationFilter) -> None:
    def plans(db: object) -> list[str]:
        statements: list[str] = []
        connection = db.connection()  # type: ignore[attr-defined]
        connection.set_trace_callback(statements.append)
        place = OperationPlace(accept_time=BEGIN, id=OperationId("x"))
        load_operations(db, which, limit=2, after=place)  # type: ignore[arg-type]
        connection.set_trace_callback(None)
        (statement,) = (each for each in statements if "record" in each)
        return [row[3] for row in connection.execute(f"EXPLAIN QUERY PLAN {statement}")]

    steps = await journal._reader.read(Lane.LISTS, plans)
    looks = [each for each in steps if each.startswith(("SCAN", "SEARCH"))]
    assert looks
    assert all("INDEX operation_" in each or "PRIMARY KEY" in each for each in looks), steps


async def test_a_file_of_version_1_is_read_whole(opened: Open, state_dir: Path) -> None:
    """The file is as version 1 wrote it, as text; its last operation was under way."""
    restore_version_1(state_dir)
    assert rows(state_dir, "PRAGMA user_version") == [(1,)]
    records = rows(state_dir, "SELECT record FROM operation ORDER BY accept_time DESC")
    async with opened() as journal:
        assert (journal.id, journal.head) == ("1e6d496e-c080-4c96-a645-d74db0fe40b8", 11)
        assert [vm.state for vm in journal.vms.values()] == [
            VmState.RUNNING,
            VmState.STOPPED,
            VmState.GONE,
        ]
        everything = await journal.operations(OperationFilter(), limit=99)
        assert everything == tuple(schema.OPERATION.validate_json(record) for (record,) in records)
        under_way, already, refused, stopped = (each.id for each in everything)
        assert [each.id for each in journal.left_open] == [under_way]
        assert await found(journal, verbs={OperationVerb.STOP}) == [under_way, stopped]
        assert await found(journal, verbs={OperationVerb.START}) == [already, refused]
        assert await found(journal, phases={OperationPhase.SIGNALLED}) == [under_way]
        assert await found(journal, outcomes={OperationOutcome.DONE}) == [stopped]
        assert await found(journal, outcomes={OperationOutcome.ALREADY_DONE}) == [already]
        assert await found(journal, actor="other") == [refused]
        again = await journal.request("tester", "r1")
        joined = await journal.request("other", "r2")
        assert again is not None
        assert joined is not None
        assert again[0].id == joined[0].id == stopped
    assert rows(state_dir, "PRAGMA user_version") == [(len(schema.MIGRATIONS),)]
    assert rows(state_dir, "PRAGMA integrity_check") == [("ok",)]


@pytest.mark.parametrize("at_once", [False, True])
async def test_what_who_joined_has_made_of_it_outlasts_a_step_that_was_on_its_way(
    opened: Open, *, at_once: bool
) -> None:
    asked = replace(operation(1), incarnation=1)
    forced = JoinedRequest(
        operation=asked.id,
        vm=asked.vm,
        vm_name=asked.vm_name,
        method="Stop",
        time=BEGIN,
        actor="other",
        parameters=StopParameters(
            mode=StopMode.FORCE,
            grace_period=60 * SECOND,
            on_grace_expired=OnGraceExpired.FAIL,
        ),
    )
    async with opened() as journal:
        await journal.append(survey(sighting()))
        await journal.append(asked)
        journal.record(event(1, kind=EventKind.STOPPED_SHUTDOWN))
        journal.record(replace(event(2, kind=EventKind.STARTED_BOOTED), run_id=2))
        join = journal.submit(forced)
        if not at_once:
            await join
        await journal.append(step(asked, OperationPhase.SIGNALLED, time=BEGIN))
        now = journal.vms[uuid(1)].incarnation
        assert now == 2
    async with opened() as journal:
        (left,) = journal.left_open
        assert left.phase is OperationPhase.SIGNALLED
        assert (left.escalated, left.incarnation) == (True, now)


async def test_who_reads_of_an_end_sees_the_vm_after_it(state_dir: Path) -> None:
    """A commit is in the file a moment before it is shown: here that lasts."""
    in_the_file, shown = threading.Event(), threading.Event()
    shown.set()

    def hold(_seconds: float, _facts: int) -> None:
        in_the_file.set()
        shown.wait(DEADLINE_S)

    faults: list[BaseException] = []
    async with open_journal(state_dir, fatal=faults.append, on_measured=hold) as journal:
        await journal.append(survey(sighting()))
        asked = operation(1, request_id="r1")
        await journal.append(asked)
        shown.clear()
        in_the_file.clear()
        end = journal.submit(done(asked))
        assert await asyncio.to_thread(in_the_file.wait, DEADLINE_S)
        by_id = asyncio.create_task(journal.operation(asked.id))
        by_request = asyncio.create_task(journal.request("tester", "r1"))
        over, _ = await asyncio.wait([by_id, by_request], timeout=0.3)
        assert not over
        shown.set()
        async with asyncio.timeout(DEADLINE_S):
            assert await by_id == done(asked)
            assert await by_request == (done(asked), asked.parameters)
        assert journal.vms[uuid(1)].active_operation_id is None
        await end
    assert not faults
