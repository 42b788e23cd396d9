"""Who asked for what is told afterwards: of each operation, each that joined, each refused."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from tests.component.journal.facts import (
    BEGIN,
    DEADLINE_S,
    SECOND,
    operation,
    restore_version_1,
    rows,
    sighting,
    survey,
    uuid,
)
from vmagentd.errors import JournalUnwritable
from vmagentd.journal.backlog import MAX_REFUSALS, Backlog, Entry
from vmagentd.journal.retention import NO_LIMITS
from vmagentd.journal.store import open_journal
from vmagentd.lifecycle.steps import end, step
from vmagentd.model import (
    AuditFilter,
    AuditKind,
    JoinedRequest,
    Operation,
    OperationFailure,
    OperationOutcome,
    OperationPhase,
    Refusal,
    VmUuid,
)

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from tests.component.journal.conftest import Open
    from vmagentd.journal.store import Journal
    from vmagentd.model import AuditRecord

ALL = AuditFilter()
DENIED = OperationFailure(error="RoleDenied", message="no")


async def records(journal: Journal, which: AuditFilter = ALL) -> list[AuditRecord]:
    return list(await journal.audit_records(which, limit=100))


def asked(number: int, vm: int = 1) -> Operation:
    return replace(
        operation(number, vm), actor="user:eve", peer="uid 7, pid 8", certificate_fingerprint="f0"
    )


def joined(to: Operation, **fields: object) -> JoinedRequest:
    known: dict[str, object] = {
        "operation": to.id,
        "vm": to.vm,
        "vm_name": to.vm_name,
        "method": "Stop",
        "time": BEGIN,
        "actor": "user:bob",
        "peer": "uid 9, pid 9",
    }
    return JoinedRequest(**{**known, **fields})  # type: ignore[arg-type]


def refusal(number: int, **fields: object) -> Refusal:
    known: dict[str, object] = {
        "id": f"refusal-{number}",
        "time": BEGIN + number * SECOND,
        "end_time": BEGIN + number * SECOND,
        "actor": "uid:1000",
        "peer": "uid 1000, pid 1",
        "method": "Stop",
        "vm_name": "vm1",
        "failure": DENIED,
    }
    return Refusal(**{**known, **fields})  # type: ignore[arg-type]


def ended(one: Operation) -> Operation:
    done = OperationOutcome.DONE
    return end(one, OperationPhase.SUCCEEDED, time=BEGIN + 9 * SECOND, outcome=done)


@pytest.fixture
async def journal(opened: Open) -> AsyncIterator[Journal]:
    async with opened() as journal:
        await journal.append(survey(*(sighting(number) for number in range(1, 10))))
        yield journal


class TestOperations:
    async def test_one_is_told_from_its_acceptance_on(self, journal: Journal) -> None:
        await journal.accept(asked(1))
        (record,) = await records(journal)
        assert (record.sequence, record.kind) == (1, AuditKind.OPERATION)
        assert (record.actor, record.peer) == ("user:eve", "uid 7, pid 8")
        assert record.certificate_fingerprint == "f0"
        assert (record.method, record.vm, record.vm_name) == ("Stop", uuid(1), "vm1")
        assert record.operation == asked(1).id
        assert (record.phase, record.end_time) == (OperationPhase.ACCEPTED, None)
        assert record.time == asked(1).accept_time

    @pytest.mark.parametrize("change", ["INSERT", "UPDATE"])
    async def test_what_cannot_be_audited_is_not_committed(
        self, state_dir: Path, change: str
    ) -> None:
        """Both are one transaction: a daemon that is killed leaves both or neither."""
        faults: list[BaseException] = []
        forbid = f"BEFORE {change} ON audit BEGIN SELECT RAISE(ABORT, 'forbidden'); END"
        async with open_journal(state_dir, fatal=faults.append) as journal:
            await journal.append(survey(sighting(1)))
            if change == "UPDATE":
                await journal.accept(asked(1))
            rows(state_dir, f"CREATE TRIGGER forbidden {forbid}")
            with pytest.raises(JournalUnwritable):
                await journal.append(ended(asked(1)))
        assert "forbidden" in str(faults)
        there = [(None,)] if change == "UPDATE" else []
        assert rows(state_dir, "SELECT end_time FROM operation") == there
        assert rows(state_dir, "SELECT end_time FROM audit") == there

    async def test_it_ends_as_the_operation_does(self, journal: Journal) -> None:
        await journal.accept(asked(1))
        failure = OperationFailure(error="GraceExpired", message="it did not", facts={"a": "b"})
        await journal.append(
            end(asked(1), OperationPhase.FAILED, time=BEGIN + 5 * SECOND, failure=failure)
        )
        (record,) = await records(journal)
        assert (record.phase, record.failure) == (OperationPhase.FAILED, failure)
        assert record.end_time == BEGIN + 5 * SECOND

    async def test_accepted_and_ended_in_one_transaction_makes_one_record(
        self, journal: Journal
    ) -> None:
        journal.record(asked(1))
        journal.record(step(asked(1), OperationPhase.WAITING, time=BEGIN))
        await journal.append(ended(asked(1)))
        (record,) = await records(journal)
        assert record.phase is OperationPhase.SUCCEEDED


class TestJoined:
    async def test_a_request_that_joined_is_told_and_ends_with_the_operation(
        self, journal: Journal
    ) -> None:
        await journal.accept(asked(1))
        await journal.append(step(asked(1), OperationPhase.WAITING, time=BEGIN))
        await journal.accept(joined(asked(1)))
        record, _ = await records(journal)
        assert (record.kind, record.actor) == (AuditKind.JOINED, "user:bob")
        assert record.phase is OperationPhase.WAITING
        await journal.append(ended(step(asked(1), OperationPhase.WAITING, time=BEGIN)))
        record, own = await records(journal)
        assert record.phase is own.phase is OperationPhase.SUCCEEDED
        assert record.end_time == own.end_time is not None

    async def test_one_that_comes_a_moment_before_the_operation(self, journal: Journal) -> None:
        await journal.accept(joined(asked(1)))
        await journal.accept(asked(1))
        assert [record.kind for record in await records(journal)] == [
            AuditKind.OPERATION,
            AuditKind.JOINED,
        ]


class TestRefusals:
    async def test_the_same_again_is_counted_in_its_record(self, journal: Journal) -> None:
        await journal.append(refusal(1))
        await journal.append(refusal(2))
        await journal.append(refusal(1, count=5, end_time=BEGIN + 30 * SECOND))
        other, again = await records(journal)
        assert (again.sequence, again.count, again.end_time) == (1, 5, BEGIN + 30 * SECOND)
        assert (other.sequence, other.count) == (2, 1)
        assert (again.kind, again.failure, again.vm) == (AuditKind.REFUSAL, DENIED, None)

    async def test_no_sequence_number_is_lost_to_a_repeat(self, journal: Journal) -> None:
        for count in range(1, 5):
            await journal.append(refusal(1, count=count))
        await journal.append(refusal(2))
        assert [record.sequence for record in await records(journal)] == [2, 1]


class TestFilters:
    @pytest.fixture(autouse=True)
    async def recorded(self, journal: Journal) -> None:
        await journal.accept(asked(1, vm=1))
        await journal.accept(asked(2, vm=2))
        await journal.accept(joined(asked(1, vm=1), time=BEGIN + 3 * SECOND))
        await journal.append(refusal(4))
        await journal.append(refusal(5, vm=uuid(1), vm_name="old name"))
        await journal.append(refusal(6, vm_name="nobody"))

    @pytest.mark.parametrize(
        ("which", "expected"),
        [
            (ALL, [6, 5, 4, 3, 2, 1]),
            (AuditFilter(actor="user:eve"), [2, 1]),
            (AuditFilter(kinds=frozenset({AuditKind.JOINED, AuditKind.REFUSAL})), [6, 5, 4, 3]),
            (AuditFilter(vm=uuid(1), vm_names=("vm1",)), [5, 4, 3, 1]),
            (AuditFilter(vm=VmUuid("nobody"), vm_names=("nobody",)), [6]),
            (AuditFilter(min_time=BEGIN + 2 * SECOND, max_time=BEGIN + 5 * SECOND), [4, 3, 2]),
            (AuditFilter(actor="user:eve", kinds=frozenset({AuditKind.REFUSAL})), []),
        ],
    )
    async def test_which(self, journal: Journal, which: AuditFilter, expected: list[int]) -> None:
        assert [record.sequence for record in await records(journal, which)] == expected

    async def test_pages(self, journal: Journal) -> None:
        first = await journal.audit_records(ALL, limit=4)
        rest = await journal.audit_records(ALL, limit=4, before=first[-1].sequence)
        assert [record.sequence for record in (*first, *rest)] == [6, 5, 4, 3, 2, 1]


class TestRetention:
    async def test_by_age(self, tmp_path: Path) -> None:
        limits = replace(NO_LIMITS, audit_age=3600 * SECOND)
        async with open_journal(tmp_path, fatal=_raise) as journal:
            for number in (0, 3000, 4000):
                await journal.append(refusal(number))
        now = BEGIN + 6700 * SECOND
        async with open_journal(tmp_path, fatal=_raise, limits=limits, now=lambda: now) as journal:
            await _eventually_left(journal, [3])

    async def test_by_number_each_kind_by_itself(self, tmp_path: Path) -> None:
        async with open_journal(tmp_path, fatal=_raise) as journal:
            await journal.append(survey(*(sighting(number) for number in range(1, 4))))
            for number in (1, 2, 3):
                await journal.accept(asked(number, vm=number))
            for number in range(10):
                await journal.append(refusal(number))
        limits = replace(NO_LIMITS, audit_records=2)
        async with open_journal(tmp_path, fatal=_raise, limits=limits) as journal:
            await _eventually_left(journal, [13, 12, 3, 2])
            await journal.append(refusal(20))
            assert (await records(journal))[0].sequence == 14


async def test_a_file_of_before(state_dir: Path, opened: Open) -> None:
    """An operation that an older daemon left open is told of from its next step on."""
    restore_version_1(state_dir)
    async with opened() as journal:
        (left,) = journal.left_open
        assert await records(journal) == []
        await journal.append(ended(left))
        (record,) = await records(journal)
        assert (record.actor, record.phase) == ("tester", OperationPhase.SUCCEEDED)
        assert record.time == left.accept_time


def _raise(error: BaseException) -> None:
    raise error


async def _eventually_left(journal: Journal, expected: list[int]) -> None:
    async with asyncio.timeout(DEADLINE_S):
        while [record.sequence for record in await records(journal)] != expected:
            journal.record(survey())
            await asyncio.sleep(0)


def test_while_the_disk_is_full_so_many_refusals_wait_and_the_rest_is_counted() -> None:
    backlog = Backlog()
    for number in range(MAX_REFUSALS + 5):
        backlog.add(Entry(refusal(number)))
    assert (len(backlog), backlog.lost_refusals) == (MAX_REFUSALS, 5)
    backlog.remove(10)
    backlog.add(Entry(refusal(1)))
    assert (len(backlog), backlog.lost_refusals) == (MAX_REFUSALS - 9, 5)
