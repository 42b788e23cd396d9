"""What waits for the journal's writer. Handed over from any thread, taken by the writer's."""

from __future__ import annotations

from contextlib import suppress
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING, Final, TypeAlias

from vmagentd.journal.backlog import Entry

if TYPE_CHECKING:
    from collections.abc import Callable

# Bounds one transaction, and so how long a fact waits for those before it.
MAX_BATCH: Final = 256

Ask: TypeAlias = "Callable[[], object]"


class Inbox:
    """Facts, calls and the end, in their order."""

    def __init__(self) -> None:
        # SimpleQueue: its put() takes no lock of Python's and never waits, so libvirt's thread
        # is not held up while the writer's sleeps in fsync
        self._queue: SimpleQueue[Entry | Ask | Exception | None] = SimpleQueue()

    def __len__(self) -> int:
        return self._queue.qsize()

    def put(self, what: Entry | Ask | Exception) -> None:
        """Hand over a fact, a call, or an error that ends the thread. Never waits."""
        self._queue.put(what)

    def end(self) -> None:
        """Let the thread end once all that was put before is taken."""
        self._queue.put(None)

    def take(self, wait_s: float) -> list[Entry] | None:
        """Return the facts that wait, up to a bound, after the calls between them.

        After *wait_s* perhaps none. None: the end.

        Raises:
            Exception: one was put that ends the thread.
        """
        entries: list[Entry] = []
        try:
            entry = self._queue.get(timeout=max(wait_s, 0.0))
            while entry is not None and not isinstance(entry, Exception):
                if isinstance(entry, Entry):
                    entries.append(entry)
                else:
                    entry()
                if len(entries) == MAX_BATCH:
                    return entries
                entry = self._queue.get_nowait()  # only one thread takes
        except Empty:
            return entries
        if isinstance(entry, Exception):
            raise entry
        if entries:
            self.end()
            return entries
        return None

    def give_up(self) -> int:
        """Leave nothing to be taken but the end; return how many facts that were."""
        facts = 0
        with suppress(Empty):
            while True:
                facts += isinstance(self._queue.get_nowait(), Entry)
        self.end()
        return facts
