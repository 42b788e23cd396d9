"""Facts for a journal, made up, and ways to look at its file from outside."""

from __future__ import annotations

import asyncio
import itertools
import sqlite3
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vmagentd.model import (
    Event,
    EventKind,
    LinkLost,
    OnGraceExpired,
    Operation,
    OperationId,
    OperationPhase,
    OperationStep,
    Query,
    RawPair,
    Reason,
    Revision,
    Sighting,
    StopMode,
    StopParameters,
    Survey,
    Transition,
    VmState,
    VmUuid,
)

if TYPE_CHECKING:
    from vmagentd.journal.store import Journal

BEGIN = datetime(2026, 1, 1, tzinfo=UTC)
SECOND = timedelta(seconds=1)
DEADLINE_S = 20.0
# of queries and surveys, in the order in which they are made up
_NUMBERS = itertools.count(1)
_VERSION_1 = Path(__file__).with_name("version1.sql")


def uuid(number: int) -> VmUuid:
    return VmUuid(f"{number:08x}-0000-4000-8000-000000000000")


def event(number: int, vm: int = 1, kind: EventKind | None = None) -> Event:
    """Return an event; without a *kind* one that changes the VM whatever came before."""
    by_turns = EventKind.SUSPENDED_PAUSED if number % 2 else EventKind.RESUMED_UNPAUSED
    return Event(
        number=number,
        vm=uuid(vm),
        name=f"vm{vm}",
        kind=kind or by_turns,
        raw=RawPair(3, number % 7),
        run_id=vm,
        observe_time=BEGIN + number * SECOND,
    )


def sighting(vm: int = 1, state: VmState = VmState.RUNNING) -> Sighting:
    running = state is VmState.RUNNING
    return Sighting(
        vm=uuid(vm),
        name=f"vm{vm}",
        state=state,
        reason=Reason.BOOTED if running else Reason.UNKNOWN,
        raw=RawPair(1, 1),
        active=running,
        persistent=True,
        run_id=vm if running else None,
        vcpus=2,
        memory_bytes=1 << 30,
    )


def survey(
    *sightings: Sighting,
    after_event: int = 0,
    link: int = 1,
    unreadable: tuple[VmUuid, ...] = (),
    monitored: bool = False,
) -> Survey:
    return Survey(
        sightings=sightings,
        unreadable=unreadable,
        number=next(_NUMBERS),
        after_event=after_event,
        begin_time=BEGIN + 100 * SECOND,
        link=link,
        monitored=monitored,
    )


def query(seen: Sighting | None, vm: int = 1, *, after_event: int) -> Query:
    time = BEGIN + 50 * SECOND
    return Query(
        vm=uuid(vm),
        sighting=seen,
        number=next(_NUMBERS),
        after_event=after_event,
        begin_time=time,
    )


def lost(link: int = 1, cause: str = "it ended") -> LinkLost:
    return LinkLost(time=BEGIN + 60 * SECOND, cause=cause, link=link)


def operation(number: int, vm: int = 1, request_id: str | None = None) -> Operation:
    return Operation(
        id=OperationId(f"op-{number}"),
        vm=uuid(vm),
        vm_name=f"vm{vm}",
        actor="tester",
        request_id=request_id,
        parameters=StopParameters(
            mode=StopMode.GRACEFUL,
            grace_period=60 * SECOND,
            on_grace_expired=OnGraceExpired.FAIL,
        ),
        phase=OperationPhase.ACCEPTED,
        steps=(OperationStep(phase=OperationPhase.ACCEPTED, time=BEGIN),),
        accept_time=BEGIN + number * SECOND,
        deadline_time=BEGIN + 3600 * SECOND,
    )


async def filled(journal: Journal, transitions: int, *, begin: int = 1) -> None:
    """Make *transitions* more of them, with few waits."""
    for number in range(begin, begin + transitions - 1):
        journal.record(event(number))
    await journal.append(event(begin + transitions - 1))


async def collected(journal: Journal, after: int, until: int) -> list[Transition]:
    """Follow from *after* to the revision *until*."""
    found: list[Transition] = []
    async with asyncio.timeout(DEADLINE_S):
        async for page in journal.follow(Revision(after)):
            found += page
            if found[-1].revision >= until:
                break
    return found


def revisions(transitions: list[Transition] | tuple[Transition, ...]) -> list[int]:
    return [transition.revision for transition in transitions]


def rows(state_dir: Path, statement: str) -> list[Any]:
    """Run a statement on the file through a connection that the daemon knows nothing of."""
    with closing(sqlite3.connect(state_dir / "journal.db", timeout=5.0)) as db, db:
        return db.execute(statement).fetchall()


def restore_version_1(state_dir: Path) -> None:
    """Make a journal as version 1 left it, with an operation under way."""
    state_dir.mkdir()
    with closing(sqlite3.connect(state_dir / "journal.db")) as db:
        db.executescript(_VERSION_1.read_text())


def commits(state_dir: Path) -> int:
    """Count the transactions in the write-ahead log: their last frames bear a database size.

    https://www.sqlite.org/fileformat2.html#the_write_ahead_log
    """
    log = (state_dir / "journal.db-wal").read_bytes()
    page = int.from_bytes(log[8:12], "big")
    salt = log[16:24]
    frames = (log[at : at + 24] for at in range(32, len(log), 24 + page))
    return sum(f[8:16] == salt and f[4:8] != bytes(4) for f in frames)
