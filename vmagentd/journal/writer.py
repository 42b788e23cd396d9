"""Appends to the journal.

Owns the only writing connection and the `journal-writer` thread; all SQL writes happen there.
Facts that wait together share one transaction and one fsync.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass
from queue import SimpleQueue
from typing import TYPE_CHECKING, Final

from vmagentd.journal.rows import insert_transitions, write_link, write_operations, write_vms

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable, Sequence

    from peewee import SqliteDatabase

    from vmagentd.journal.fold import Batch, Fact, Fold

# Bounds one transaction, and so how long a fact waits for those before it.
MAX_BATCH: Final = 256


@dataclass(frozen=True, slots=True)
class Entry:
    """A fact in the inbox, and the future that its commit resolves."""

    fact: Fact
    done: asyncio.Future[None] | None = None


class Writer:
    """The `journal-writer` thread."""

    def __init__(
        self,
        db: SqliteDatabase,
        fold: Fold,
        *,
        committed: Callable[[Batch, Sequence[asyncio.Future[None]]], object],
        ended: Callable[[BaseException | None], object],
    ) -> None:
        """Take over *db* and *fold*: from `start` on only this thread uses them.

        Args:
            db: the writing connection.
            fold: the journal as it is committed.
            committed: called in this thread after each commit, with those who wait for it.
            ended: called in this thread as its last act, with the error that ended it, if any.
        """
        self._db = db
        self._fold = fold
        self._committed = committed
        self._ended = ended
        # SimpleQueue: its put() takes no lock of Python's and never waits, so libvirt's thread
        # is not held up while this one sleeps in fsync
        self._inbox: SimpleQueue[Entry | None] = SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="journal-writer", daemon=True)

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def put(self, entry: Entry) -> None:
        """Hand over a fact. From any thread; never waits."""
        self._inbox.put(entry)

    def stop(self) -> None:
        """Let the thread end once all that was put before is committed; does not wait."""
        self._inbox.put(None)

    def _run(self) -> None:
        error: BaseException | None = None
        try:
            while (entries := self._take()) is not None:
                self._write(entries)
            self._db.close()
        except BaseException as fault:  # noqa: BLE001 - a thread's border: handed on
            error = fault
        self._ended(error)

    def _take(self) -> list[Entry] | None:
        """Return what waits, up to a bound; sleeps until there is something. None: the end."""
        entry = self._inbox.get()
        if entry is None:
            return None
        entries = [entry]
        while len(entries) < MAX_BATCH and not self._inbox.empty():
            entry = self._inbox.get()  # only this thread takes, so it does not wait
            if entry is None:
                self._inbox.put(None)
                break
            entries.append(entry)
        return entries

    def _write(self, entries: list[Entry]) -> None:
        batch = self._fold.apply(entry.fact for entry in entries)
        relinked = batch.link != self._fold.link
        if batch.transitions or batch.operations or relinked:
            changed = {transition.vm.uuid for transition in batch.transitions}
            with self._db.atomic("IMMEDIATE"):
                insert_transitions(self._db, batch.transitions)
                write_vms(self._db, (batch.vms[vm] for vm in changed))
                write_operations(self._db, batch.operations.values())
                if relinked:
                    write_link(self._db, batch.link)
        self._fold.commit(batch)
        self._committed(batch, [entry.done for entry in entries if entry.done is not None])
