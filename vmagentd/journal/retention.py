"""How much history the journal keeps, and how the rest goes.

In small steps, one short transaction each, between commits: no fact waits longer than one step.
History is dropped from its old end, so what is kept has no gap after `compacted_to`. Before it
only the newest transition of each VM is kept that is still present.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from time import monotonic
from typing import TYPE_CHECKING, Final

from vmagentd.journal import pruning
from vmagentd.journal.schema import to_column, writing
from vmagentd.model import Revision

if TYPE_CHECKING:
    from collections.abc import Callable

    from peewee import SqliteDatabase

# Rows in one step; a commit waits for no more than this: 3 ms (measured; 500 rows took 11).
STEP: Final = 100
# While commits come without a pause they add up to 256 rows each, and waiting is the rule.
LONG_STEP: Final = 500
# By so much more than allowed the rows may grow while there is never a pause between commits.
_SLACK: Final = 1.05


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """How much is kept: of the transitions what is within both bounds."""

    transitions: int
    age: timedelta
    operations_age: timedelta


_CENTURY: Final = timedelta(days=36_500)
NO_LIMITS: Final = Limits(transitions=1 << 62, age=_CENTURY, operations_age=_CENTURY)


def steady_clock(now: Callable[[], datetime]) -> Callable[[], datetime]:
    """Return a clock that goes on from *now* evenly: a step of the host's makes nothing old."""
    start, begin = now(), monotonic()
    return lambda: start + timedelta(seconds=monotonic() - begin)


class Retention:
    """What is to be dropped. Belongs to the writer's thread."""

    def __init__(
        self, limits: Limits, compacted_to: Revision, *, now: Callable[[], datetime]
    ) -> None:
        self._limits = limits
        self._now = now
        # all transitions after this one are there
        self.compacted_to = compacted_to
        # survivors may have been overtaken by newer transitions of their VMs since a sweep
        self._unswept = True

    def pressing(self, head: Revision) -> bool:
        """Whether a step must not wait for a pause any longer."""
        return head - self.compacted_to > self._limits.transitions * _SLACK

    def step(self, db: SqliteDatabase, head: Revision, *, most: int = STEP) -> bool:
        """Drop at most so many rows of each kind; return whether there may be more.

        Raises:
            DatabaseError: nothing was dropped.
        """
        now = self._now()
        end = self._droppable(db, head, most, cutoff=to_column(now - self._limits.age))
        if end > self.compacted_to:
            with writing(db):
                pruning.delete_transitions(db, after=self.compacted_to, until=end)
            self.compacted_to, self._unswept = end, True
            return True
        before = to_column(now - self._limits.operations_age)
        with writing(db):
            dropped = pruning.delete_operations(db, ended_before=before, most=most)
            dropped += pruning.delete_blind_intervals(
                db, ended_before=to_column(now - self._limits.age), most=most
            )
            if self._unswept:
                dropped += pruning.delete_overtaken(db, until=self.compacted_to, most=most)
        self._unswept = dropped >= most
        return dropped >= most

    def _droppable(
        self, db: SqliteDatabase, head: Revision, most: int, *, cutoff: int
    ) -> Revision:
        """Return up to which transition this step drops.

        Age counts in the order of revisions: nothing is dropped behind one that is young, whatever
        the host's clock said when.
        """
        end = min(self.compacted_to + most, head)
        young = pruning.first_young(
            db, after=self.compacted_to, until=Revision(end), cutoff=cutoff
        )
        by_age = end if young is None else young - 1
        return Revision(min(end, max(by_age, head - self._limits.transitions)))
