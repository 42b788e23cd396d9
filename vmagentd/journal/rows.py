"""Rows of the journal ⇄ values of the model.

Plain functions over a connection: who calls them owns it and its transaction.
"""

from __future__ import annotations

from secrets import token_hex
from typing import TYPE_CHECKING, Final, TypeVar
from uuid import uuid4

from peewee import Tuple, fn

from vmagentd.journal.schema import (
    OPERATION,
    PARAMETERS,
    TRANSITION,
    VM,
    BlindRow,
    JoinedRow,
    MetaRow,
    OperationRow,
    TransitionRow,
    VmRow,
    from_column,
    insert,
    sql,
    to_column,
)
from vmagentd.model import BlindInterval, JournalId, Link, OperationId, Revision

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from datetime import datetime

    from peewee import Expression, Ordering, SqliteDatabase

    from vmagentd.model import (
        JoinedRequest,
        Operation,
        OperationFilter,
        OperationPlace,
        Parameters,
        Transition,
        Vm,
    )

T = TypeVar("T")

# Key in `meta`: all transitions after this revision are there.
COMPACTED_TO: Final = "compacted_to"
# Until when events were lost for the last time, for want of room on the disk.
EVENTS_LOST: Final = "events_lost_until"
# The host's present boot, as it was told.
BOOT_ID: Final = "boot_id"
# The head right after that.
BOOT_HEAD: Final = "boot_head"
# Between why a blind time began and why it goes on.
_THEN: Final = ", then: "


def insert_transitions(db: SqliteDatabase, transitions: Iterable[Transition]) -> None:
    """Write transitions under the revisions they carry."""
    for transition in transitions:
        row = {
            "revision": transition.revision,
            "vm": transition.vm.uuid,
            "kind": transition.kind,
            "state": transition.vm.state,
            "time": to_column(transition.time),
            "record": TRANSITION.dump_json(transition).decode(),
        }
        insert(db, TransitionRow, row)


def write_vms(db: SqliteDatabase, vms: Iterable[Vm]) -> None:
    """Write VMs over what was there of them."""
    for vm in vms:
        row = {
            "uuid": vm.uuid,
            "name": vm.name,
            "state": vm.state,
            "revision": vm.revision,
            "record": VM.dump_json(vm).decode(),
        }
        insert(db, VmRow, row, instead=_over("uuid", row))


def write_operations(db: SqliteDatabase, operations: Iterable[Operation]) -> None:
    """Write operations over what was there of them."""
    for operation in operations:
        row = {
            "id": operation.id,
            "vm": operation.vm,
            "actor": operation.actor,
            "request_id": operation.request_id,
            "verb": operation.verb,
            "phase": operation.phase,
            "outcome": operation.outcome,
            "accept_time": to_column(operation.accept_time),
            "end_time": to_column(operation.end_time) if operation.end_time else None,
            "record": OPERATION.dump_json(operation).decode(),
        }
        changing = ("phase", "outcome", "end_time", "record")
        insert(db, OperationRow, row, instead=_over("id", changing))


def _over(key: str, columns: Iterable[str]) -> str:
    """Return the clause that writes *columns* over those of the row of the same *key*."""
    written = ", ".join(f"{name} = excluded.{name}" for name in columns)
    return f"ON CONFLICT ({key}) DO UPDATE SET {written}"


def write_link(db: SqliteDatabase, link: Link) -> None:
    """Write the state of the link: the time of the last survey, and the blind interval."""
    if link.last_survey_time is not None:
        write_meta(db, "last_survey_time", str(to_column(link.last_survey_time)))
    blind = BlindRow.end_time.is_null()
    if link.connected:
        end = to_column(link.last_survey_time) if link.last_survey_time else None
        # not before it began: the host's clock may have been set back meanwhile
        later = fn.MAX(BlindRow.begin_time, end)
        BlindRow.update(end_time=later).where(blind).execute(db)
    elif link.blind_since is not None:
        begin, cause = to_column(link.blind_since), link.cause or ""
        lasting = _first(BlindRow.select().where(blind).limit(1).execute(db))
        if lasting is None:
            BlindRow.insert(begin_time=begin, end_time=None, cause=cause).execute(db)
        else:
            BlindRow.update(cause=_and_then(lasting.cause, cause)).where(blind).execute(db)


def _and_then(before: str, cause: str) -> str:
    """Return why a blind time began and why it went on: no more, however often that changes.

    That the cause of its beginning is there again, as a daemon stops once more, is not told: what
    was in the way meanwhile would be forgotten for it.
    """
    first = before.partition(_THEN)[0]
    return before if cause == first else f"{first}{_THEN}{cause}"


def load_link(db: SqliteDatabase, *, now: datetime) -> Link:
    """Return the link as a daemon that starts *now* has it: blind, since the last certain time."""
    survey = read_meta(db, "last_survey_time")
    last_survey_time = from_column(int(survey)) if survey else None
    row = _first(BlindRow.select().where(BlindRow.end_time.is_null()).limit(1).execute(db))
    if row is not None:
        return Link(
            connected=False,
            blind_since=from_column(row.begin_time),
            cause=row.cause.rpartition(_THEN)[2],
            last_survey_time=last_survey_time,
        )
    newest = TransitionRow.select(fn.MAX(TransitionRow.time)).scalar(db)
    certain = [time for time in (last_survey_time, newest and from_column(newest)) if time]
    cause = "vmagentd was not running" if certain else "not connected yet"
    return Link(
        connected=False,
        blind_since=min(max(certain, default=now), now),
        cause=cause,
        last_survey_time=last_survey_time,
    )


def read_meta(db: SqliteDatabase, key: str) -> str | None:
    """Return a fact about the journal, None if it was never written."""
    row = _first(MetaRow.select().where(MetaRow.key == key).execute(db))
    return row.value if row else None


def write_meta(db: SqliteDatabase, key: str, value: str) -> None:
    """Write a fact about the journal over what was there."""
    MetaRow.insert(key=key, value=value).on_conflict_replace().execute(db)


def journal_id(db: SqliteDatabase) -> JournalId:
    """Return the journal's identity; makes it with a new file."""
    return JournalId(_lasting(db, "journal_id", lambda: str(uuid4())))


def secret(db: SqliteDatabase) -> bytes:
    """Return 32 bytes that no client ever sees; makes them with the first daemon that asks."""
    return bytes.fromhex(_lasting(db, "secret", lambda: token_hex(32)))


def _lasting(db: SqliteDatabase, key: str, make: Callable[[], str]) -> str:
    known = read_meta(db, key)
    if known is None:
        known = make()
        write_meta(db, key, known)
    return known


def head_and_oldest(db: SqliteDatabase) -> tuple[Revision, Revision]:
    """Return the newest revision ever given (0: none), and from which on all are kept."""
    # sqlite_sequence outlives the rows: after a deletion of the newest the count goes on
    used = sql(db, "SELECT seq FROM sqlite_sequence WHERE name = 'transition'").fetchone()
    head = used[0] if used else 0
    compacted_to = read_meta(db, COMPACTED_TO)
    if compacted_to is not None:  # before that some rows are kept, with gaps
        return Revision(head), Revision(int(compacted_to) + 1)
    oldest = TransitionRow.select(fn.MIN(TransitionRow.revision)).scalar(db)
    return Revision(head), Revision(oldest or head + 1)


def load_vms(db: SqliteDatabase) -> list[Vm]:
    """Return every VM that the journal knows."""
    rows = VmRow.select(VmRow.record).tuples().execute(db)
    return [VM.validate_json(record) for (record,) in rows]


def load_open_operations(db: SqliteDatabase) -> list[Operation]:
    """Return the operations that are under way, oldest first."""
    return _operations(
        db, OperationRow.end_time.is_null(), order=(OperationRow.accept_time.asc(),), limit=None
    )


def load_operation(db: SqliteDatabase, operation_id: OperationId) -> Operation | None:
    """Return one operation."""
    return _first(_operations(db, OperationRow.id == operation_id))


def load_operations(
    db: SqliteDatabase, which: OperationFilter, *, limit: int, after: OperationPlace | None
) -> tuple[Operation, ...]:
    """Return a page of operations, newest first, from behind *after* on.

    In the order of accept times, and of ids where those are the same: neither ever changes, so
    pages have no operation twice and leave none out, whatever the host's clock does.
    """
    accept_time, key = OperationRow.accept_time, OperationRow.id
    conditions = [
        OperationRow.vm == which.vm if which.vm is not None else None,
        OperationRow.actor == which.actor if which.actor is not None else None,
        OperationRow.verb.in_(sorted(which.verbs)) if which.verbs else None,
        OperationRow.phase.in_(sorted(which.phases)) if which.phases else None,
        OperationRow.outcome.in_(sorted(which.outcomes)) if which.outcomes else None,
        accept_time >= to_column(which.min_accept_time) if which.min_accept_time else None,
        accept_time < to_column(which.max_accept_time) if which.max_accept_time else None,
        Tuple(accept_time, key) < (to_column(after.accept_time), after.id) if after else None,
    ]
    # The keys first: an index has all that is sorted then, and records are read of one page only.
    page = OperationRow.select(key).order_by(accept_time.desc(), key.desc()).limit(limit)
    for condition in conditions:
        if condition is not None:
            page = page.where(condition)
    return tuple(
        _operations(db, key.in_(page), order=(accept_time.desc(), key.desc()), limit=None)
    )


def write_joined(db: SqliteDatabase, requests: Iterable[JoinedRequest]) -> None:
    """Write requests that joined operations, as far as they have an id."""
    for request in requests:
        if request.request_id is None or request.parameters is None:
            continue
        JoinedRow.insert(
            actor=request.actor,
            request_id=request.request_id,
            operation=request.operation,
            parameters=PARAMETERS.dump_json(request.parameters).decode(),
        ).on_conflict_replace().execute(db)


def load_request(
    db: SqliteDatabase, actor: str, request_id: str
) -> tuple[Operation, Parameters] | None:
    """Return the operation that *actor*'s request began or joined, and what it asked for."""
    own = (OperationRow.actor == actor) & (OperationRow.request_id == request_id)
    begun = _first(_operations(db, own))
    if begun is not None:
        return begun, begun.parameters
    same = (JoinedRow.actor == actor) & (JoinedRow.request_id == request_id)
    row = _first(JoinedRow.select().where(same).execute(db))
    joined = row and load_operation(db, OperationId(row.operation))
    return (joined, PARAMETERS.validate_json(row.parameters)) if row and joined else None


def load_blind_intervals(
    db: SqliteDatabase, *, since: datetime | None, until: datetime | None, limit: int
) -> tuple[BlindInterval, ...]:
    """Return the intervals that overlap the time from *since* to *until*, newest first."""
    query = BlindRow.select()
    if since is not None:
        still = BlindRow.end_time.is_null() | (BlindRow.end_time >= to_column(since))
        query = query.where(still)
    if until is not None:
        query = query.where(BlindRow.begin_time <= to_column(until))
    return tuple(
        BlindInterval(
            begin_time=from_column(row.begin_time),
            end_time=from_column(row.end_time) if row.end_time is not None else None,
            cause=row.cause,
        )
        for row in query.order_by(BlindRow.id.desc()).limit(limit).execute(db)
    )


def load_was_blind(db: SqliteDatabase, *, since: datetime) -> bool:
    """Return whether something may have gone unheard after *since*: blind or not."""
    lost_until = read_meta(db, EVENTS_LOST)
    if lost_until is not None and int(lost_until) >= to_column(since):
        return True
    return bool(load_blind_intervals(db, since=since, until=None, limit=1))


def _operations(
    db: SqliteDatabase,
    condition: Expression,
    *,
    order: tuple[Ordering, ...] = (),
    limit: int | None = 1,
) -> list[Operation]:
    query = OperationRow.select(OperationRow.record).where(condition).limit(limit)
    if order:
        query = query.order_by(*order)
    return [OPERATION.validate_json(record) for (record,) in query.tuples().execute(db)]


def _first(rows: Iterable[T]) -> T | None:
    return next(iter(rows), None)
