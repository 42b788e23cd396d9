"""How much history the journal keeps, and how the rest goes.

In small steps, one short transaction each, between commits: no fact waits longer than one step.
History is dropped from its old end, so what is kept has no gap after `compacted_to`. Before it
only the newest transition of each VM is kept that is still present.

A VM that is gone is forgotten with the last of its history, unless an operation on it is under
way: at once by those who ask, later here. Until then an operation that somebody was just about to
begin finds it, and what libvirt answered when it was still there does not bring it back.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from itertools import islice
from time import monotonic
from typing import TYPE_CHECKING, Final

from vmagentd.journal import audit, pruning
from vmagentd.journal.schema import to_column, writing
from vmagentd.model import Revision

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from peewee import SqliteDatabase

    from vmagentd.journal.fold import Fold
    from vmagentd.model import VmUuid

# Rows in one step; a commit waits for no more than this: 3 ms (measured; 500 rows took 11).
STEP: Final = 100
# While commits come without a pause they add up to 256 rows each, and waiting is the rule.
LONG_STEP: Final = 500
# Audit records are counted again after so many new ones: there are at most so many too many.
_RECOUNT: Final = 1000
# While nothing is written only age makes rows too old, and that is looked at this often: a look
# costs 2 ms, and the writer takes a round every few seconds.
_AGE_LOOK: Final = timedelta(minutes=1)
# For so long the writer knows a VM that all others have forgotten.
FAREWELL: Final = timedelta(hours=1)
# By so much more than allowed the rows may grow while there is never a pause between commits.
_SLACK: Final = 1.05


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """How much is kept: of the transitions what is within both bounds."""

    transitions: int
    age: timedelta
    operations_age: timedelta
    audit_age: timedelta
    # of each kind
    audit_records: int


_CENTURY: Final = timedelta(days=36_500)
NO_LIMITS: Final = Limits(
    transitions=1 << 62,
    age=_CENTURY,
    operations_age=_CENTURY,
    audit_age=_CENTURY,
    audit_records=1 << 62,
)


def steady_clock(now: Callable[[], datetime]) -> Callable[[], datetime]:
    """Return a clock that goes on from *now* evenly: a step of the host's makes nothing old."""
    start, begin = now(), monotonic()
    return lambda: start + timedelta(seconds=monotonic() - begin)


class Retention:
    """What is to be dropped. Belongs to the writer's thread."""

    def __init__(
        self,
        limits: Limits,
        compacted_to: Revision,
        *,
        now: Callable[[], datetime],
        forgotten: Callable[[Sequence[VmUuid]], object],
    ) -> None:
        """Begin.

        Args:
            limits: how much is kept.
            compacted_to: all transitions after this one are there.
            now: a clock that goes on evenly.
            forgotten: told the VMs that are not to be seen any more.
        """
        self._limits = limits
        self._now = now
        self.compacted_to = compacted_to
        self._forgotten = forgotten
        # up to where it was looked which VMs are gone; and those that are still known here: until
        # when, and what they were last seen at
        self._forgotten_to = Revision(0)
        self._leaving: deque[tuple[datetime, VmUuid, Revision]] = deque()
        # survivors may have been overtaken by newer transitions of their VMs since a sweep
        self._unswept = True
        # the newest audit record when they were last counted
        self._counted: int | None = None
        # how much had been written when there was nothing left to drop, and when that will be over
        self._done_at: int | None = None
        self._next_look = datetime.min.replace(tzinfo=UTC)

    def limit(self, limits: Limits) -> None:
        """Keep from now on what is within *limits*. In the writer's thread."""
        self._limits = limits
        self._done_at = self._counted = None

    def pressing(self, head: Revision) -> bool:
        """Whether a step must not wait for a pause any longer."""
        return head - self.compacted_to > self._limits.transitions * _SLACK

    def step(self, db: SqliteDatabase, fold: Fold, *, most: int = STEP) -> bool:
        """Drop at most so many rows of each kind; return whether there may be more.

        Raises:
            DatabaseError: nothing was dropped.
        """
        now = self._now()
        if self._done_at == _written(db) and now < self._next_look:
            return False
        end = self._droppable(db, fold.head, most, cutoff=to_column(now - self._limits.age))
        if end > self.compacted_to:
            with writing(db):
                pruning.delete_transitions(db, after=self.compacted_to, until=end)
            self.compacted_to, self._unswept = end, True
            return True
        before = to_column(now - self._limits.operations_age)
        newest, surplus = audit.newest(db), 0
        count = self._counted is None or newest - self._counted >= _RECOUNT
        with writing(db):
            dropped = pruning.delete_operations(db, ended_before=before, most=most)
            dropped += pruning.delete_blind_intervals(
                db, ended_before=to_column(now - self._limits.age), most=most
            )
            if self._unswept:
                dropped += pruning.delete_overtaken(db, until=self.compacted_to, most=most)
            dropped += audit.delete_old(
                db, before=to_column(now - self._limits.audit_age), most=most
            )
            if count:
                keep = self._limits.audit_records
                surplus = audit.delete_surplus(db, keep=keep, most=most)
        dropped += surplus
        if count:  # not before it is committed
            self._counted = None if surplus >= most else newest
        self._unswept = dropped >= most
        dropped += self._forget(db, fold, now, most=most)
        if dropped < most:
            self._done_at, self._next_look = _written(db), now + _AGE_LOOK
        return dropped >= most

    def _forget(self, db: SqliteDatabase, fold: Fold, now: datetime, *, most: int) -> int:
        """Forget the VMs of which nothing is left; return how many the writer forgot."""
        if self.compacted_to > self._forgotten_to:
            gone = fold.gone(after=self._forgotten_to, until=self.compacted_to)
            self._forgotten_to = self.compacted_to
            self._leaving.extend((now + FAREWELL, vm.uuid, vm.revision) for vm in gone)
            if gone:
                self._forgotten([vm.uuid for vm in gone])
        due = [each for each in islice(self._leaving, most) if each[0] <= now]
        # those that did not come back, nor were anything asked of
        left = [vm for _, vm, revision in due if fold.is_at(vm, revision)]
        if left:
            with writing(db):
                pruning.forget_vms(db, left)
            fold.forget(left)
            self._forgotten(left)  # an answer of libvirt's may have shown it again, as gone
        for _ in due:
            self._leaving.popleft()
        return len(due)

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


def _written(db: SqliteDatabase) -> int:
    """Return a number that grows with every row that this connection changes."""
    connection = db.connection()  # type: ignore[no-untyped-call]
    return int(connection.total_changes)
