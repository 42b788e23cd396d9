"""Audit records in the journal: noted with what they tell of, read page by page, dropped.

Plain functions over a connection: who calls them owns it and its transaction. An operation is
noted in the transaction that accepts it and again in each that changes it, so no record is ever
missing or behind, whenever the daemon is killed.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from peewee import fn

from vmagentd.journal.rows import load_operation
from vmagentd.journal.schema import FAILURE, AuditRow, from_column, insert, sql, to_column
from vmagentd.model import AuditKind, AuditRecord, OperationId, OperationPhase, VmUuid

if TYPE_CHECKING:
    from collections.abc import Iterable
    from datetime import datetime

    from peewee import Expression, SqliteDatabase

    from vmagentd.model import (
        AuditFilter,
        JoinedRequest,
        Operation,
        OperationFailure,
        Refusal,
    )

_NOTE_STANDING: Final = """
UPDATE audit SET phase = :phase, end_time = :end_time, failure = :failure
WHERE operation = :operation RETURNING kind"""


def note(
    db: SqliteDatabase,
    operations: Iterable[Operation],
    joined: Iterable[JoinedRequest],
    refusals: Iterable[Refusal],
) -> None:
    """Note what was accepted, what came of it, and what was refused."""
    for operation in operations:
        _note_operation(db, operation)
    for request in joined:
        _note_joined(db, request)
    for refusal in refusals:
        _note_refusal(db, refusal)


def _note_operation(db: SqliteDatabase, operation: Operation) -> None:
    """Note where *operation* stands, for itself and for all that joined it."""
    stands = {"operation": operation.id, **_standing(operation)}
    if AuditKind.OPERATION in {kind for (kind,) in sql(db, _NOTE_STANDING, stands)}:
        return
    row = {
        "kind": AuditKind.OPERATION,
        "time": to_column(operation.accept_time),
        "actor": operation.actor,
        "peer": operation.peer,
        "fingerprint": operation.certificate_fingerprint,
        "method": operation.method,
        "vm": operation.vm,
        "vm_name": operation.vm_name,
        "count": 1,
        **stands,
    }
    insert(db, AuditRow, row)


def _note_joined(db: SqliteDatabase, request: JoinedRequest) -> None:
    operation = load_operation(db, request.operation)
    AuditRow.insert(
        kind=AuditKind.JOINED,
        time=to_column(request.time),
        actor=request.actor,
        peer=request.peer,
        fingerprint=request.certificate_fingerprint,
        method=request.method,
        vm=request.vm,
        vm_name=request.vm_name,
        operation=request.operation,
        # there is none if the one that was joined could not be accepted
        **(_standing(operation) if operation else {"phase": OperationPhase.ACCEPTED}),
    ).execute(db)


def _note_refusal(db: SqliteDatabase, refusal: Refusal) -> None:
    again = {"end_time": to_column(refusal.end_time), "count": refusal.count}
    noted = AuditRow.update(**again).where(AuditRow.refusal == refusal.id).execute(db)
    if not noted:
        AuditRow.insert(
            kind=AuditKind.REFUSAL,
            time=to_column(refusal.time),
            actor=refusal.actor,
            peer=refusal.peer,
            fingerprint=refusal.certificate_fingerprint,
            method=refusal.method,
            vm=refusal.vm,
            vm_name=refusal.vm_name,
            refusal=refusal.id,
            failure=_stored(refusal.failure),
            **again,
        ).execute(db)


def _standing(operation: Operation) -> dict[str, Any]:
    return {
        "phase": operation.phase,
        "end_time": _column(operation.end_time),
        "failure": _stored(operation.failure),
    }


def load_audit(
    db: SqliteDatabase, which: AuditFilter, *, limit: int, before: int | None
) -> tuple[AuditRecord, ...]:
    """Return records, newest first, from before the sequence number *before* on."""
    sequence, time = AuditRow.sequence, AuditRow.time
    conditions = [
        sequence < before if before is not None else None,
        _of_vm(which) if which.vm is not None or which.vm_names else None,
        AuditRow.actor == which.actor if which.actor is not None else None,
        AuditRow.kind.in_(which.kinds) if which.kinds else None,
        time >= to_column(which.min_time) if which.min_time is not None else None,
        time < to_column(which.max_time) if which.max_time is not None else None,
    ]
    query = AuditRow.select()
    for condition in conditions:
        if condition is not None:
            query = query.where(condition)
    rows = query.order_by(sequence.desc()).limit(limit).execute(db)
    return tuple(map(_record, rows))


def _of_vm(which: AuditFilter) -> Expression:
    """A record that has the VM's UUID is of no other VM, whatever that was called."""
    named = AuditRow.vm.is_null() & AuditRow.vm_name.in_(which.vm_names)
    return named if which.vm is None else (AuditRow.vm == which.vm) | named


def _record(row: AuditRow) -> AuditRecord:
    return AuditRecord(
        sequence=row.sequence,
        kind=AuditKind(row.kind),
        time=from_column(row.time),
        end_time=from_column(row.end_time) if row.end_time is not None else None,
        actor=row.actor,
        peer=row.peer,
        certificate_fingerprint=row.fingerprint,
        method=row.method,
        vm=VmUuid(row.vm) if row.vm is not None else None,
        vm_name=row.vm_name,
        operation=OperationId(row.operation) if row.operation is not None else None,
        phase=OperationPhase(row.phase) if row.phase is not None else None,
        failure=FAILURE.validate_json(row.failure) if row.failure is not None else None,
        count=row.count,
    )


def delete_old(db: SqliteDatabase, *, before: int, most: int) -> int:
    """Delete records of what was asked before that time."""
    old = AuditRow.select(AuditRow.sequence).where(AuditRow.time < before).limit(most)
    return int(AuditRow.delete().where(AuditRow.sequence.in_(old)).execute(db))


def newest(db: SqliteDatabase) -> int:
    """Return the newest sequence number, 0 if there is none."""
    return AuditRow.select(fn.MAX(AuditRow.sequence)).scalar(db) or 0


def delete_surplus(db: SqliteDatabase, *, keep: int, most: int) -> int:
    """Delete the oldest records of each kind of which there are more than *keep*.

    Each kind by itself: whoever is refused all day long does not push out what was done.
    Finding them costs 1 ms for each 100,000 that are kept.
    """
    deleted, sequence = 0, AuditRow.sequence
    for kind in AuditKind:
        of_kind = AuditRow.select(sequence).where(AuditRow.kind == kind)
        last = of_kind.order_by(sequence.desc()).offset(keep).limit(1).scalar(db)
        if last is not None:
            oldest = of_kind.where(sequence <= last).order_by(sequence).limit(most)
            deleted += int(AuditRow.delete().where(sequence.in_(oldest)).execute(db))
    return deleted


def _column(time: datetime | None) -> int | None:
    return to_column(time) if time is not None else None


def _stored(failure: OperationFailure | None) -> str | None:
    return FAILURE.dump_json(failure).decode() if failure is not None else None
