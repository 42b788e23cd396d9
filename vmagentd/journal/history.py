"""Pages of history, found by revision, by VM and by time.

Plain functions over a connection: who calls them owns it and its transaction.

Revisions are the order of history. Times nearly are, but a host's clock may be set back, and what
a survey finds is older than what was heard meanwhile: a time alone does not tell where to look.
So there is an index of the times in each block of revisions. The blocks at either end that have
none of the time asked for are passed over, one look each, and not read.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from vmagentd.journal.schema import TRANSITION, TransitionRow, sql, to_column

if TYPE_CHECKING:
    from peewee import SqliteDatabase

    from vmagentd.model import HistoryFilter, Revision, Transition

# How many revisions are a block in that index: it was made with this number.
BLOCK: Final = 4096
# No revision is beyond it, and no time.
_LAST: Final = (1 << 63) - 1

_HAS_SUCH = f"""EXISTS (
    SELECT 1 FROM "transition"
    WHERE revision / {BLOCK} = number AND time >= :since AND time < :until)"""  # noqa: S608
# Of the blocks that have rows, from :first upwards, the first with a row of that time.
_LOWEST_BLOCK: Final = f"""
WITH RECURSIVE block (number) AS (
    SELECT (SELECT min(revision) FROM "transition" WHERE revision >= :first) / {BLOCK}
    UNION ALL
    SELECT (
        SELECT min(revision) FROM "transition" WHERE revision >= (number + 1) * {BLOCK}) / {BLOCK}
    FROM block WHERE number IS NOT NULL)
SELECT number FROM block WHERE {_HAS_SUCH} LIMIT 1"""  # noqa: S608
# Likewise from :last downwards.
_HIGHEST_BLOCK: Final = f"""
WITH RECURSIVE block (number) AS (
    SELECT (SELECT max(revision) FROM "transition" WHERE revision <= :last) / {BLOCK}
    UNION ALL
    SELECT (SELECT max(revision) FROM "transition" WHERE revision < number * {BLOCK}) / {BLOCK}
    FROM block WHERE number IS NOT NULL)
SELECT number FROM block WHERE {_HAS_SUCH} LIMIT 1"""  # noqa: S608


def load_transitions(
    db: SqliteDatabase, which: HistoryFilter, *, limit: int, after: Revision | None
) -> tuple[Transition, ...]:
    """Return a page of history in the order asked for, from behind *after* on."""
    first = which.min_revision or 0
    last = _LAST if which.max_revision is None else which.max_revision
    if after is not None and which.oldest_first:
        first = max(first, after + 1)
    elif after is not None:
        last = min(last, after - 1)
    if first > last:  # it may even be beyond what SQLite has numbers for
        return ()
    # an expression, lest SQLite takes the index on time alone and sorts all that it finds
    time, timed = TransitionRow.time + 0, which.min_time or which.max_time
    since = to_column(which.min_time) if which.min_time else 0
    until = to_column(which.max_time) if which.max_time else _LAST
    if timed:
        between = _blocks(db, first, last, since, until)
        if between is None:
            return ()
        first, last = max(first, between[0]), min(last, between[1])
    revision = TransitionRow.revision
    query = TransitionRow.select(TransitionRow.record).where(revision.between(first, last))
    if timed:
        query = query.where((time >= since) & (time < until))
    if which.vm is not None:
        query = query.where(TransitionRow.vm == which.vm)
    order = revision.asc() if which.oldest_first else revision.desc()
    rows = query.order_by(order).limit(limit).tuples().execute(db)
    return tuple(TRANSITION.validate_json(record) for (record,) in rows)


def _blocks(
    db: SqliteDatabase, first: int, last: int, since: int, until: int
) -> tuple[int, int] | None:
    """Return between which revisions a time is found; None: nowhere from *first* to *last*."""
    times = {"since": since, "until": until}
    lowest = sql(db, _LOWEST_BLOCK, {"first": first, **times}).fetchone()
    highest = sql(db, _HIGHEST_BLOCK, {"last": last, **times}).fetchone()
    if lowest is None or highest is None:
        return None
    return lowest[0] * BLOCK, highest[0] * BLOCK + BLOCK - 1
