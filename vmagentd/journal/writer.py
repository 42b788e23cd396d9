"""Appends to the journal.

Owns the only writing connection and the `journal-writer` thread; all SQL writes happen there.
Facts that wait together share one transaction and one fsync. While the disk takes nothing they
wait here, and nothing of them is acknowledged or shown; between commits old history is dropped.
"""

from __future__ import annotations

import logging
import threading
from contextlib import suppress
from functools import partial
from time import monotonic
from typing import TYPE_CHECKING, Final

from vmagentd import messages
from vmagentd.errors import JournalUnusable
from vmagentd.journal.backlog import Backlog, Entry
from vmagentd.journal.commit import write_batch
from vmagentd.journal.disk import (
    DATABASE_ERRORS,
    Fault,
    cause,
    fault,
    may_be_whole,
    was_written,
)
from vmagentd.journal.file import set_aside
from vmagentd.journal.inbox import MAX_BATCH, Inbox
from vmagentd.journal.log import WriteAheadLog
from vmagentd.journal.retention import LONG_STEP, STEP
from vmagentd.journal.rows import EVENTS_LOST, write_meta
from vmagentd.journal.schema import to_column, writing
from vmagentd.model import LinkLost, Survey

if TYPE_CHECKING:
    from collections.abc import Callable
    from datetime import datetime
    from pathlib import Path

    from peewee import SqliteDatabase

    from vmagentd.journal.disk import Ballast
    from vmagentd.journal.file import InUse
    from vmagentd.journal.fold import Fold
    from vmagentd.journal.inbox import Ask
    from vmagentd.journal.retention import Limits, Retention
    from vmagentd.journal.told import Told, Waiters

log = logging.getLogger(__name__)

# Between two attempts while nothing can be written.
_FIRST_RETRY_S, _LONGEST_RETRY_S = 0.05, 1.0
# How often an idle journal looks after its files, its ballast and its history.
_ROUND_S: Final = 5.0
# After a step of a retention that has more to do, for so many times as long nothing is dropped.
_REST: Final = 4


class Writer:
    """The `journal-writer` thread."""

    def __init__(
        self,
        db: SqliteDatabase,
        fold: Fold,
        *,
        path: Path,
        in_use: InUse,
        ballast: Ballast,
        retention: Retention,
        tell: Told,
        now: Callable[[], datetime],
    ) -> None:
        """Take over *db*, *fold* and *retention*: from `start` on only this thread uses them.

        Args:
            db: the writing connection.
            fold: the journal as it is committed.
            path: the journal's file.
            in_use: finds out whether that file was removed or replaced.
            ballast: is released when the disk is full.
            retention: what history is dropped.
            tell: what is called when.
            now: the host's clock.
        """
        self._db = db
        self._fold = fold
        self._path = path
        self._log = WriteAheadLog(path)
        self._in_use = in_use
        self._ballast = ballast
        self._retention = retention
        self._tell = tell
        self._now = now
        # taken from the inbox, and not committed yet
        self._in_hand = 0
        # all that a commit was to write that failed may be in the log; what was to be accepted
        # with it is not refused yet: after a kill the next daemon would do it
        self._unsure = False
        self._undecided: list[Entry] = []
        # when the next look at what is not urgent is due
        self._round = 0.0
        self._inbox = Inbox()
        self._thread = threading.Thread(target=self._run, name="journal-writer", daemon=True)

    @property
    def waiting(self) -> int:
        """How much waits in the inbox."""
        return len(self._inbox)

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def put(self, entry: Entry) -> None:
        """Hand over a fact. From any thread; never waits."""
        self._inbox.put(entry)

    def ask(self, call: Ask) -> None:
        """Have *call* called by the thread when it comes to it, also while the disk is full."""
        self._inbox.put(call)

    def limit(self, limits: Limits) -> None:
        """Keep from now on what is within *limits*."""
        self.ask(partial(self._retention.limit, limits))

    def end(self, error: Exception) -> None:
        """End the thread with *error*, which somebody met in the file. From any thread."""
        self._inbox.put(error)

    def stop(self) -> None:
        """Let the thread end once all that was put before is committed; does not wait.

        What cannot be committed then is given up.
        """
        self._inbox.end()

    def give_up(self, why: str) -> JournalUnusable:
        """Leave a thread alone that hangs, and return what is to be said of it. From any thread.

        What it writes at the moment may be there after all; nothing else will.
        """
        facts = self._in_hand + self._inbox.give_up()
        what = "1 fact is" if facts == 1 else f"{facts} facts are"
        return JournalUnusable(
            str(self._path),
            f"{why}, {what} not written; the next start asks libvirt what is true",
        )

    def _run(self) -> None:
        error: BaseException | None = None
        try:
            while (entries := self._inbox.take(self._round - monotonic())) is not None:
                self._in_hand = len(entries)
                if entries:
                    self._write(entries)
                self._in_hand = 0
                if not self._inbox or self._retention.pressing(self._fold.head):
                    self._tidy()
        except BaseException as met:  # noqa: BLE001 - a thread's border: handed on
            error = met
        self._tell.ended(self._close(error))

    def _close(self, error: BaseException | None) -> BaseException | None:
        """Close the file, and return the error to tell of."""
        try:
            self._db.close()
        except DATABASE_ERRORS as met:  # what is committed is in the log, closed or not
            error = error or (met if fault(met) is Fault.DAMAGE else None)
        if isinstance(error, DATABASE_ERRORS) and fault(error) is Fault.DAMAGE:
            return set_aside(self._path, error, now=self._now())
        return error

    def _write(self, entries: list[Entry]) -> None:
        """Commit *entries*; if the disk does not let us, wait until it does."""
        try:
            self._commit(entries)
        except DATABASE_ERRORS as error:
            self._unsure = self._unsure or may_be_whole(error)
            if self._ballast.release(self._path, error):
                self._write(entries)
            else:
                self._endure(entries, error)

    def _commit(self, entries: list[Entry]) -> None:
        batch = self._fold.apply(entry.fact for entry in entries)
        booted = batch.boot_id != self._fold.boot_id
        told = batch.transitions or batch.operations or batch.joined or batch.links
        if told or booted or batch.refusals:
            begin = monotonic()
            with writing(self._db):
                write_batch(self._db, batch, booted=booted)
            self._unsure = False
            # after it: what went into a file that nobody finds again is not acknowledged
            self._in_use.check()
            self._tell.measured(monotonic() - begin, len(entries))
        self._fold.commit(batch)
        self._tell.committed(batch, _waiters(entries))

    def _endure(self, entries: list[Entry], error: Exception) -> None:
        """Keep facts, and try again and again, until the disk takes them or the journal ends.

        Raises:
            DatabaseError: it is not the disk's doing.
        """
        backlog, retry_s, ended = Backlog(), _FIRST_RETRY_S, False
        self._hold(backlog, self._decided(entries), _of_disk(error), news=True)
        log.error(
            "journal %s cannot be written: %s",
            self._path,
            cause(error),
            extra={"MESSAGE_ID": messages.JOURNAL_UNWRITABLE},
        )
        while not ended:
            ended = self._hold_on(backlog, error, monotonic() + retry_s)
            try:
                self._catch_up(backlog)
            except DATABASE_ERRORS as again:
                error = _of_disk(again)
                self._ballast.release(self._path, error)
                self._hold(backlog, [], error, news=True)
                retry_s = min(2 * retry_s, _LONGEST_RETRY_S)
            else:
                self._hold(backlog, [], error)
                log.warning(
                    "journal %s is written again",
                    self._path,
                    extra={"MESSAGE_ID": messages.JOURNAL_WRITABLE},
                )
                if backlog.lost_refusals:
                    log.warning("audit: %d refusals were not noted", backlog.lost_refusals)
                self._tell.writable(self._fold.link)
                break
        else:
            log.error(
                "journal %s: ends with %d facts that could not be written; the next start asks "
                "libvirt what is true",
                self._path,
                len(backlog),
            )
        self._round = 0.0  # for its ballast
        if ended:
            self._inbox.end()

    def _decided(self, entries: list[Entry]) -> list[Entry]:
        """Return *entries*, which were not committed, but for those that may be all the same."""
        if self._unsure:
            with suppress(*DATABASE_ERRORS):  # the next try tells
                self._overwrite()
        if not self._unsure:
            return entries
        self._undecided = [entry for entry in entries if entry.now_or_never]
        return [entry for entry in entries if not entry.now_or_never]

    def _hold_on(self, backlog: Backlog, error: Exception, until: float) -> bool:
        """Hold what comes until then; return whether the end has come."""
        while (left_s := until - monotonic()) > 0:
            entries = self._inbox.take(left_s)
            self._hold(backlog, entries or [], error)
            if entries is None:
                return True
        return False

    def _hold(
        self, backlog: Backlog, entries: list[Entry], error: Exception, *, news: bool = False
    ) -> None:
        """Keep *entries*, but for those that are refused; tell if there is *news*."""
        if not self._unsure:
            entries, self._undecided = [*self._undecided, *entries], []
        refused = [entry for entry in entries if entry.now_or_never]
        for entry in entries:
            if not entry.now_or_never:
                backlog.add(entry)
            news = news or entry.now_or_never or isinstance(entry.fact, LinkLost | Survey)
        self._in_hand = len(backlog)
        if news:
            link = self._fold.link_after(backlog.facts)
            self._tell.unwritable(cause(error), link, _waiters(refused))

    def _catch_up(self, backlog: Backlog) -> None:
        self._overwrite()  # what waits may be nothing that is written
        self._in_use.check()
        if backlog.lost:  # before all else: whoever waits for a commit may ask for this then
            with writing(self._db):
                write_meta(self._db, EVENTS_LOST, str(to_column(self._now())))
        while entries := backlog.next(MAX_BATCH):
            self._commit(entries)
            backlog.remove(len(entries))
            self._in_hand = len(backlog)
        if backlog.lost:
            self._commit([Entry(each) for each in backlog.lost])

    def _overwrite(self) -> None:
        """Commit next to nothing, in the log's place of what could not be committed."""
        try:
            with writing(self._db):
                write_meta(self._db, "last_failure_time", self._now().isoformat())
        except DATABASE_ERRORS as error:
            self._unsure = self._unsure and not was_written(error)
            raise
        self._unsure = False

    def _tidy(self) -> None:
        """Look after the files, and drop a little of what is too old; when it is time to."""
        begin, behind = monotonic(), bool(self._inbox)
        if begin < self._round and not behind:
            return
        before, more = self._retention.compacted_to, False
        self._in_use.check()
        try:
            most = LONG_STEP if behind else STEP
            more = self._retention.step(self._db, self._fold, most=most)
            self._log.check(self._db)
        except DATABASE_ERRORS as error:
            if not self._ballast.release(self._path, _of_disk(error)):
                self._endure([], error)
        if self._retention.compacted_to != before:
            self._tell.compacted(self._retention.compacted_to)
        now = monotonic()
        self._round = now + (_REST * (now - begin) if more else _ROUND_S)
        self._ballast.make()


def _of_disk(error: Exception) -> Exception:
    """Return *error* if it is the disk's doing, else raise it."""
    if fault(error) not in {Fault.ROOM, Fault.DISK}:
        raise error
    return error


def _waiters(entries: list[Entry]) -> Waiters:
    return [entry.done for entry in entries if entry.done is not None]
