"""What operations that earlier daemons gave up may bring yet.

Read as the journal is opened. While the daemon runs, `fold` has it in memory.
"""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from typing import TYPE_CHECKING, Final

from vmagentd.journal.rows import BOOT_HEAD, BOOT_ID, load_operations, read_meta
from vmagentd.journal.schema import TRANSITION, TransitionRow
from vmagentd.lifecycle.moves import give_up, to_come
from vmagentd.lifecycle.trails import CALL_COUNTS, left_open
from vmagentd.model import OperationFilter, OperationPhase, Revision, TransitionKind

if TYPE_CHECKING:
    from datetime import datetime

    from peewee import SqliteDatabase

    from vmagentd.lifecycle.trails import GivenUp
    from vmagentd.model import Operation, Vm, VmUuid

_GIVEN_UP: Final = frozenset({
    OperationPhase.FAILED,
    OperationPhase.CANCELLED,
    OperationPhase.INTERRUPTED,
})  # fmt: skip
# An operation may take an hour, and its force another one.
_LONGEST: Final = timedelta(hours=2)
# No more operations are looked at, nor transitions of one VM.
_MOST: Final = 1000


def load_given_up(db: SqliteDatabase, *, now: datetime) -> dict[VmUuid, tuple[GivenUp, ...]]:
    """Return what may come yet of each VM at *now*, as the last daemon had it."""
    which = OperationFilter(phases=_GIVEN_UP, min_accept_time=now - CALL_COUNTS - _LONGEST)
    boot_id, boot_head = read_meta(db, BOOT_ID), Revision(int(read_meta(db, BOOT_HEAD) or 0))
    given_up: dict[VmUuid, tuple[GivenUp, ...]] = {}
    for operation in reversed(load_operations(db, which, limit=_MOST, after=None)):
        *_, before, last = operation.steps
        if not left_open(operation, boot_id=boot_id) or abs(now - last.time) > CALL_COUNTS:
            continue
        since = _moves_since(db, operation, boot_head)
        if since is None:
            continue
        as_it_was = replace(operation, phase=before.phase)
        own = give_up((), as_it_was, time=last.time)
        for vm in since:
            own = to_come(own, vm)
        if own:
            earlier = given_up.get(operation.vm, ())
            given_up[operation.vm] = give_up(earlier, as_it_was, time=last.time)
    return given_up


def _moves_since(db: SqliteDatabase, operation: Operation, boot_head: Revision) -> list[Vm] | None:
    """Return the VM after each move from state to state since *operation* ended, newest first.

    None: the host has booted since, and libvirt has forgotten what it was asked for.
    """
    newest = TransitionRow.select(TransitionRow.record).where(TransitionRow.vm == operation.vm)
    rows = newest.order_by(TransitionRow.revision.desc()).limit(_MOST).tuples()
    moves: list[Vm] = []
    for (record,) in rows.execute(db):
        transition = TRANSITION.validate_json(record)
        if transition.revision <= boot_head:
            return None
        if transition.operation_id == operation.id:
            break
        if transition.kind is TransitionKind.STATE:
            moves.append(transition.vm)
    return moves
