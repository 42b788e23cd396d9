"""What a watcher sees: a snapshot or a place to go on from, then every transition, and heartbeats.

A watcher is a revision and nothing more: it reads on from the journal, as fast as it likes, and
delays nobody. Runs on the event loop.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, TypeAlias

from vmagentd.errors import JournalReplaced, RevisionCompacted
from vmagentd.model import Cursor, Revision, VmState

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable, Sequence

    from vmagentd.journal.store import Journal
    from vmagentd.model import Link, Transition, Vm

    Sees: TypeAlias = Callable[[str], bool]
    _Passes: TypeAlias = Callable[[Vm, str | None], bool]


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

    def __init__(
        self,
        journal: Journal,
        *,
        on_delivered: Callable[[Sequence[Transition]], object] = lambda _: None,
    ) -> None:
        """Prepare.

        Args:
            journal: what is watched.
            on_delivered: told what a watcher's stream has taken at a time, once the watcher has
                caught up with what had happened before.
        """
        self._journal = journal
        self._on_delivered = on_delivered
        # up to where each watcher was told
        self._places: dict[object, Revision] = {}

    @property
    def watchers(self) -> int:
        """How many there are."""
        return len(self._places)

    @property
    def slowest(self) -> Revision | None:
        """Up to where the slowest watcher was told; None: there is none."""
        return min(self._places.values(), default=None)

    async def follow(
        self,
        *,
        vms: tuple[str, ...],
        resume: Cursor | None,
        heartbeat_interval: timedelta,
        shortest_interval: Callable[[], timedelta] = timedelta,
        sees: Sees | None = None,
    ) -> AsyncGenerator[WatchItem]:
        """Yield the snapshot, unless *resume* is given, then all that comes after, for ever.

        A heartbeat comes first after the snapshot, then at least every *heartbeat_interval*, and
        at once when the link to libvirt or the journal's writability changes.

        Args:
            vms: UUIDs and names; only these pass. Empty: all.
            resume: where the watcher left off.
            heartbeat_interval: longest silence.
            shortest_interval: asked each time; where it is longer it takes that one's place.
            sees: whether a VM of that name exists for the watcher; None: all do. It is shown the
                transition by which a VM takes such a name, and the one by which it gives it up.

        Raises:
            JournalReplaced: *resume* is no place in this journal.
            RevisionCompacted: what comes after *resume* is not kept any more.
        """
        passes = _filter(frozenset(vms), sees)
        if resume is None:
            after = self._journal.head
            cursor = Cursor(journal_id=self._journal.id, revision=after)
            yield Snapshot(vms=tuple(vm for vm in self._present() if passes(vm, None)))
            yield SnapshotEnd(cursor=cursor)
        else:
            after = self._checked(resume)

        def interval_s() -> float:
            return max(heartbeat_interval, shortest_interval()).total_seconds()

        watcher = object()
        try:
            async for item in self._go_on(watcher, after, passes, interval_s):
                yield item
        finally:
            self._places.pop(watcher, None)

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
        self, watcher: object, after: Revision, passes: _Passes, interval_s: Callable[[], float]
    ) -> AsyncGenerator[WatchItem]:
        journal, loop = self._journal, asyncio.get_running_loop()
        told: object = None
        due = loop.time()
        caught_up = False
        while True:
            self._places[watcher] = after
            changed, head = journal.changed, journal.head
            caught_up |= after == head
            page = await journal.page(after)
            first = page[0].revision if page else Revision(head + 1)
            if first != after + 1:  # compacted while this watcher slept; `oldest` may not tell yet
                raise RevisionCompacted(after, max(first, journal.oldest))
            if page:
                after = page[-1].revision
                if transitions := tuple(t for t in page if passes(t.vm, t.previous_name)):
                    yield Changes(transitions=transitions)
                    if caught_up:
                        self._on_delivered(transitions)
            condition = (journal.link.connected, journal.link.blind_since, journal.writable)
            if condition != told or loop.time() >= due:
                told, due = condition, loop.time() + interval_s()
                yield Heartbeat(
                    revision=after, link=journal.link, journal_writable=journal.writable
                )
            elif not page:
                await _first(changed, due)


def shown(transition: Transition, sees: Sees) -> bool:
    """Return whether who *sees* VMs of some names only is shown a transition.

    The one by which a VM gives such a name up is the last that is shown of it: whoever keeps a
    mirror would else keep that VM for ever.
    """
    before = transition.previous_name
    return sees(transition.vm.name) or (before is not None and sees(before))


def _filter(passing: frozenset[str], sees: Sees | None) -> _Passes:
    """Return what a VM must be to pass, and must have been called before a transition."""

    def wanted(vm: Vm) -> bool:
        return not passing or vm.uuid in passing or vm.name in passing

    def passes(vm: Vm, before: str | None) -> bool:
        if sees is None or sees(vm.name) or (before is not None and sees(before)):
            return wanted(vm)
        return False

    return passes


async def _first(changed: asyncio.Event, due: float) -> None:
    """Wait until *changed* is set, or *due* (in the loop's time) has come."""
    try:
        async with asyncio.timeout_at(due):
            await changed.wait()
    except TimeoutError:
        pass
