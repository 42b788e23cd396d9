"""What a watcher sees: a snapshot or a place to go on from, then every transition, and heartbeats.

A watcher is a revision and nothing more: it reads on from the journal, as fast as it likes, and
delays nobody. Runs on the event loop.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

from vmagentd.errors import JournalReplaced, RevisionCompacted
from vmagentd.model import Cursor, VmState

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator
    from datetime import timedelta

    from vmagentd.journal.store import Journal
    from vmagentd.model import Link, Revision, Transition, Vm


@dataclass(frozen=True, slots=True, kw_only=True)
class Snapshot:
    """Every VM that is not gone and passes the filter, as of one revision."""

    vms: tuple[Vm, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class SnapshotEnd:
    """The snapshot was complete and true at this place."""

    cursor: Cursor


@dataclass(frozen=True, slots=True, kw_only=True)
class Changes:
    """Transitions in the order of their revisions, at least one."""

    transitions: tuple[Transition, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Heartbeat:
    """All up to `revision` was sent or filtered out; and how the daemon is."""

    revision: Revision
    link: Link
    journal_writable: bool


WatchItem: TypeAlias = Snapshot | SnapshotEnd | Changes | Heartbeat


class Watch:
    """All watchers."""

    def __init__(self, journal: Journal) -> None:
        self._journal = journal

    async def follow(
        self, *, vms: tuple[str, ...], resume: Cursor | None, heartbeat_interval: timedelta
    ) -> AsyncGenerator[WatchItem]:
        """Yield the snapshot, unless *resume* is given, then all that comes after, for ever.

        A heartbeat comes first after the snapshot, then at least every *heartbeat_interval*, and
        at once when the link to libvirt or the journal's writability changes.

        Args:
            vms: UUIDs and names; only these pass. Empty: all.
            resume: where the watcher left off.
            heartbeat_interval: longest silence.

        Raises:
            JournalReplaced: *resume* is no place in this journal.
            RevisionCompacted: what comes after *resume* is not kept any more.
        """
        passing = frozenset(vms)
        if resume is None:
            after = self._journal.head
            cursor = Cursor(journal_id=self._journal.id, revision=after)
            yield Snapshot(vms=tuple(vm for vm in self._present() if _passes(vm, passing)))
            yield SnapshotEnd(cursor=cursor)
        else:
            after = self._checked(resume)
        async for item in self._go_on(after, passing, heartbeat_interval.total_seconds()):
            yield item

    def _present(self) -> list[Vm]:
        vms = self._journal.vms.values()
        present = (vm for vm in vms if vm.state is not VmState.GONE)
        return sorted(present, key=lambda vm: (vm.name, vm.uuid))

    def _checked(self, resume: Cursor) -> Revision:
        if resume.journal_id != self._journal.id or resume.revision > self._journal.head:
            raise JournalReplaced(self._journal.id, self._journal.head)
        if resume.revision + 1 < self._journal.oldest:
            raise RevisionCompacted(resume.revision, self._journal.oldest)
        return resume.revision

    async def _go_on(
        self, after: Revision, passing: frozenset[str], interval_s: float
    ) -> AsyncGenerator[WatchItem]:
        journal, loop = self._journal, asyncio.get_running_loop()
        told: object = None
        due = loop.time()
        while True:
            changed = journal.changed
            page = await journal.page(after)
            if page:
                if page[0].revision != after + 1:  # compacted while this watcher slept
                    raise RevisionCompacted(after, journal.oldest)
                after = page[-1].revision
                if transitions := tuple(t for t in page if _passes(t.vm, passing)):
                    yield Changes(transitions=transitions)
            condition = (journal.link.connected, journal.link.blind_since, journal.writable)
            if condition != told or loop.time() >= due:
                told, due = condition, loop.time() + interval_s
                yield Heartbeat(
                    revision=after, link=journal.link, journal_writable=journal.writable
                )
            elif not page:
                await _first(changed, due)


def _passes(vm: Vm, passing: frozenset[str]) -> bool:
    return not passing or vm.uuid in passing or vm.name in passing


async def _first(changed: asyncio.Event, due: float) -> None:
    """Wait until *changed* is set, or *due* (in the loop's time) has come."""
    try:
        async with asyncio.timeout_at(due):
            await changed.wait()
    except TimeoutError:
        pass
