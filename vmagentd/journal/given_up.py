"""What operations that earlier daemons gave up may bring yet.

Read as the journal is opened. While the daemon runs, `fold` has it in memory.
"""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from itertools import takewhile
from typing import TYPE_CHECKING, Final

from vmagentd.journal.rows import load_operations
from vmagentd.journal.schema import TRANSITION, TransitionRow
from vmagentd.lifecycle.moves import give_up, to_come
from vmagentd.lifecycle.trails import CALL_COUNTS, left_open
from vmagentd.model import OperationFilter, OperationPhase, TransitionKind

if TYPE_CHECKING:
    from collections.abc import Iterator
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
    given_up: dict[VmUuid, tuple[GivenUp, ...]] = {}
    for operation in reversed(load_operations(db, which, limit=_MOST, after=None)):
        *_, before, last = operation.steps
        if not left_open(operation) or abs(now - last.time) > CALL_COUNTS:
            continue
        as_it_was = replace(operation, phase=before.phase)
        own = give_up((), as_it_was, time=last.time)
        for vm in _moves_since(db, operation):
            own = to_come(own, vm)
        if own:
            earlier = given_up.get(operation.vm, ())
            given_up[operation.vm] = give_up(earlier, as_it_was, time=last.time)
    return given_up


def _moves_since(db: SqliteDatabase, operation: Operation) -> Iterator[Vm]:
    """Yield the VM after each move from state to state since *operation* ended, newest first."""
    newest = TransitionRow.select(TransitionRow.record).where(TransitionRow.vm == operation.vm)
    rows = newest.order_by(TransitionRow.revision.desc()).limit(_MOST).tuples().execute(db)
    transitions = (TRANSITION.validate_json(record) for (record,) in rows)
    for transition in takewhile(lambda each: each.operation_id != operation.id, transitions):
        if transition.kind is TransitionKind.STATE:
            yield transition.vm
