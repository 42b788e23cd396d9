"""What of the journal is deleted, statement by statement; `retention` says when.

Plain functions over a connection: who calls them owns it and its transaction.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from peewee import ModelSelect, Value, fn

from vmagentd.journal.rows import COMPACTED_TO, read_meta, write_meta
from vmagentd.journal.schema import BlindRow, JoinedRow, OperationRow, TransitionRow, VmRow
from vmagentd.model import VmState

if TYPE_CHECKING:
    from collections.abc import Iterable

    from peewee import SqliteDatabase

    from vmagentd.model import Revision, VmUuid

# However short they are, no more blind intervals are kept.
_BLIND_INTERVALS: Final = 10_000


def first_young(
    db: SqliteDatabase, *, after: Revision, until: Revision, cutoff: int
) -> Revision | None:
    """Return the first transition in that range that was made at *cutoff* or later."""
    revision = TransitionRow.revision
    young = (revision > after) & (revision <= until) & (TransitionRow.time >= cutoff)
    first = TransitionRow.select(revision).where(young).order_by(revision).limit(1)
    return next((found for (found,) in first.tuples().execute(db)), None)


def delete_transitions(db: SqliteDatabase, *, after: Revision, until: Revision) -> None:
    """Delete the transitions of that range, but the newest of each present VM."""
    revision = TransitionRow.revision
    TransitionRow.delete().where(
        (revision > after) & (revision <= until) & ~fn.EXISTS(_newest_of_present_vm())
    ).execute(db)
    write_meta(db, COMPACTED_TO, str(until))


def delete_overtaken(db: SqliteDatabase, *, until: Revision, most: int) -> int:
    """Delete what was kept up to *until* for a VM that has a newer transition, or is gone, now."""
    overtaken = (
        TransitionRow.select(TransitionRow.revision)
        .where((TransitionRow.revision <= until) & ~fn.EXISTS(_newest_of_present_vm()))
        .limit(most)
    )
    delete = TransitionRow.delete().where(TransitionRow.revision.in_(overtaken))
    return int(delete.execute(db))


def delete_operations(db: SqliteDatabase, *, ended_before: int, most: int) -> int:
    """Delete operations that ended before that time, and the requests that joined them."""
    old = (
        OperationRow.select(OperationRow.id)
        # no operation ends before it was accepted, and that is indexed
        .where((OperationRow.accept_time < ended_before) & (OperationRow.end_time < ended_before))
        .limit(most)
    )
    # by their ids: to find requests without an operation, all of them had to be looked at
    ids = [key for (key,) in old.tuples().execute(db)]
    JoinedRow.delete().where(JoinedRow.operation.in_(ids)).execute(db)
    return int(OperationRow.delete().where(OperationRow.id.in_(ids)).execute(db))


def delete_blind_intervals(db: SqliteDatabase, *, ended_before: int, most: int) -> int:
    """Delete blind intervals that ended before that time, or are too many."""
    last = BlindRow.select(fn.MAX(BlindRow.id)).scalar(db) or 0
    old = (
        BlindRow.select(BlindRow.id)
        .where((BlindRow.end_time < ended_before) | (BlindRow.id <= last - _BLIND_INTERVALS))
        .limit(most)
    )
    return int(BlindRow.delete().where(BlindRow.id.in_(old)).execute(db))


def forget_gone_vms(db: SqliteDatabase) -> None:
    """Delete the VMs that are gone and whose whole history is compacted.

    Only at a start: later somebody may hold one of them, and `retention` takes its time.
    """
    compacted_to = int(read_meta(db, COMPACTED_TO) or 0)
    busy = OperationRow.select(OperationRow.vm).where(OperationRow.end_time.is_null())
    VmRow.delete().where(
        (VmRow.state == VmState.GONE) & (VmRow.revision <= compacted_to) & VmRow.uuid.not_in(busy)
    ).execute(db)


def forget_vms(db: SqliteDatabase, vms: Iterable[VmUuid]) -> None:
    """Delete these VMs."""
    VmRow.delete().where(VmRow.uuid.in_([*vms])).execute(db)


def _newest_of_present_vm() -> ModelSelect[VmRow]:
    """Select the VM whose newest transition the outer query looks at, unless it is gone."""
    return VmRow.select(Value(1)).where(
        (VmRow.uuid == TransitionRow.vm)
        & (VmRow.revision == TransitionRow.revision)
        & (VmRow.state != VmState.GONE)
    )
