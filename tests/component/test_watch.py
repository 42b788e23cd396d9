"""What a watcher sees, over a real journal: etcd's six properties, and heartbeats."""

from __future__ import annotations

import asyncio
import threading
from contextlib import aclosing
from dataclasses import dataclass, field, replace
from datetime import timedelta
from typing import TYPE_CHECKING

import pytest

from tests.component.journal.facts import (
    BEGIN,
    DEADLINE_S,
    SECOND,
    event,
    filled,
    lost,
    rows,
    sighting,
    survey,
    uuid,
)
from vmagentd.errors import JournalReplaced, RevisionCompacted
from vmagentd.journal.recent import RECENT
from vmagentd.journal.store import Journal, open_journal
from vmagentd.model import (
    Cursor,
    Event,
    EventKind,
    JournalId,
    RawPair,
    Revision,
    Transition,
    Vm,
    VmState,
    VmUuid,
)
from vmagentd.watch import Changes, Heartbeat, Snapshot, SnapshotEnd, Watch, WatchItem

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable
    from pathlib import Path

SELDOM = 3600 * SECOND


@dataclass
class Seen:
    """What one watcher saw."""

    snapshot: dict[VmUuid, Vm] = field(default_factory=dict)
    cursor: Cursor | None = None
    transitions: list[Transition] = field(default_factory=list)
    heartbeats: list[Heartbeat] = field(default_factory=list)

    def take(self, item: WatchItem) -> None:
        match item:
            case Snapshot(vms=vms):
                assert self.cursor is None
                self.snapshot |= {vm.uuid: vm for vm in vms}
            case SnapshotEnd(cursor=cursor):
                assert self.cursor is None
                self.cursor = cursor
            case Changes(transitions=transitions):
                assert transitions
                self.transitions += transitions
            case Heartbeat():
                self.heartbeats.append(item)

    @property
    def vms(self) -> dict[VmUuid, Vm]:
        """What a client that applies every transition has."""
        return self.snapshot | {t.vm.uuid: t.vm for t in self.transitions}

    @property
    def revisions(self) -> list[int]:
        return [transition.revision for transition in self.transitions]


async def watched(
    journal: Journal,
    enough: Callable[[Seen], object],
    *,
    vms: tuple[str, ...] = (),
    resume: Cursor | None = None,
    heartbeat_interval: timedelta = SELDOM,
) -> Seen:
    """Watch until what was seen is *enough*."""
    seen = Seen()
    items = Watch(journal).follow(vms=vms, resume=resume, heartbeat_interval=heartbeat_interval)
    async with asyncio.timeout(DEADLINE_S), aclosing(items):
        async for item in items:
            seen.take(item)
            if enough(seen):
                break
    return seen


def at(journal: Journal, revision: int) -> Cursor:
    return Cursor(journal_id=journal.id, revision=Revision(revision))


def up_to(revision: int) -> Callable[[Seen], object]:
    return lambda seen: bool(seen.transitions) and seen.transitions[-1].revision >= revision


def heartbeat(seen: Seen) -> object:
    return seen.heartbeats


class TestSnapshot:
    async def test_it_shows_what_is_there_and_where(self, journal: Journal) -> None:
        await journal.append(survey(sighting(3), sighting(1), sighting(2)))
        await journal.append(survey(sighting(3), sighting(1)))
        seen = await watched(journal, heartbeat)
        assert list(seen.snapshot) == [uuid(1), uuid(3)]  # by name; without the one that is gone
        assert seen.cursor == at(journal, journal.head)
        assert seen.transitions == []
        (beat,) = seen.heartbeats
        assert (beat.revision, beat.link) == (journal.head, journal.link)
        assert beat.journal_writable

    async def test_of_an_empty_host(self, journal: Journal) -> None:
        seen = await watched(journal, heartbeat)
        assert (seen.snapshot, seen.cursor) == ({}, at(journal, 0))

    async def test_what_is_gone_already_can_come_back(self, journal: Journal) -> None:
        await journal.append(survey(sighting(1)))
        await journal.append(survey())
        task = asyncio.create_task(watched(journal, up_to(3)))
        await journal.append(replace(event(1), run_id=2))
        seen = await task
        assert seen.snapshot == {}
        assert seen.transitions[0].previous_state is VmState.GONE

    async def test_there_is_no_gap_behind_it(self, journal: Journal) -> None:
        """Watchers that begin at any moment of a storm end with the same truth."""
        last = 2000

        def blow() -> None:
            for number in range(last):  # each a transition: a VM is paused and resumed by turns
                journal.record(event(number, 1 + number // 2 % 7))

        storm = threading.Thread(target=blow)
        watchers = []
        async with asyncio.TaskGroup() as tasks:
            storm.start()
            while journal.head < last:
                watchers.append(
                    tasks.create_task(watched(journal, lambda seen: uuid(99) in seen.vms))
                )
                await asyncio.sleep(0.02)  # so that they begin at many places
            storm.join()
            await journal.append(event(last, 99))
        truth = dict(journal.vms)
        assert len({watcher.result().cursor for watcher in watchers}) > 3
        for seen in [watcher.result() for watcher in watchers]:
            assert seen.cursor is not None
            begin = seen.cursor.revision
            assert all(vm.revision <= begin for vm in seen.snapshot.values())
            assert seen.revisions == list(range(begin + 1, journal.head + 1))
            assert seen.vms == truth


class TestResume:
    @pytest.mark.parametrize("recent", [True, False], ids=["memory", "file"])
    async def test_it_equals_an_uninterrupted_watch(
        self, journal: Journal, *, recent: bool
    ) -> None:
        last = 300 if recent else 2 * RECENT + 300
        whole = asyncio.create_task(watched(journal, up_to(last)))
        await filled(journal, last)
        expected = (await whole).transitions
        pieces: list[Transition] = []
        while len(pieces) < last:
            stop = min(len(pieces) + 1 + last // 4, last)
            seen = await watched(journal, up_to(stop), resume=at(journal, len(pieces)))
            assert seen.cursor is None  # no snapshot
            pieces += seen.transitions
        assert pieces == expected

    async def test_at_the_head_there_is_a_heartbeat_and_then_news(self, journal: Journal) -> None:
        await filled(journal, 3)
        task = asyncio.create_task(watched(journal, up_to(4), resume=at(journal, 3)))
        await journal.append(event(4))
        seen = await task
        assert seen.revisions == [4]
        assert seen.heartbeats[0].revision in {3, 4}

    async def test_in_another_journal(self, journal: Journal) -> None:
        await filled(journal, 3)
        other = Cursor(journal_id=JournalId("another"), revision=Revision(1))
        with pytest.raises(JournalReplaced) as caught:
            await watched(journal, heartbeat, resume=other)
        assert caught.value.facts == {"journal_id": journal.id, "head_revision": "3"}

    async def test_at_a_place_that_this_journal_never_came_to(self, journal: Journal) -> None:
        """An older copy of the file was put back."""
        await filled(journal, 3)
        with pytest.raises(JournalReplaced):
            await watched(journal, heartbeat, resume=at(journal, 4))

    async def test_where_history_is_compacted(self, tmp_path: Path) -> None:
        state_dir = tmp_path / "compacted"
        async with opened(state_dir) as journal:
            await filled(journal, 10)
        rows(state_dir, "DELETE FROM 'transition' WHERE revision <= 4")
        async with opened(state_dir) as journal:
            for revision in (0, 3):
                with pytest.raises(RevisionCompacted) as caught:
                    await watched(journal, heartbeat, resume=at(journal, revision))
                assert caught.value.facts == {"oldest_revision": "5"}
            seen = await watched(journal, up_to(10), resume=at(journal, 4))
            assert seen.revisions == [5, 6, 7, 8, 9, 10]
        rows(state_dir, "DELETE FROM 'transition'")
        async with opened(state_dir) as journal:  # nothing is left to tell it by
            with pytest.raises(RevisionCompacted):
                await watched(journal, heartbeat, resume=at(journal, 9))
            seen = await watched(journal, heartbeat, resume=at(journal, 10))
            assert seen.heartbeats[0].revision == 10

    async def test_where_history_is_compacted_while_it_is_read(self, tmp_path: Path) -> None:
        state_dir = tmp_path / "compacted"
        async with opened(state_dir) as journal:
            await filled(journal, 10)
        async with opened(state_dir) as journal:
            items = Watch(journal).follow(vms=(), resume=at(journal, 4), heartbeat_interval=SELDOM)
            rows(state_dir, "DELETE FROM 'transition' WHERE revision <= 6")
            with pytest.raises(RevisionCompacted) as caught:
                await anext(items)
            # the file knows it before the journal has told us
            assert caught.value.facts == {"oldest_revision": "7"}

    async def test_where_all_of_it_is_compacted_and_nothing_happens(self, tmp_path: Path) -> None:
        state_dir = tmp_path / "compacted"
        async with opened(state_dir) as journal:
            await filled(journal, 300)
        async with opened(state_dir) as journal:
            items = Watch(journal).follow(vms=(), resume=at(journal, 0), heartbeat_interval=SELDOM)
            async with asyncio.timeout(DEADLINE_S), aclosing(items):
                assert isinstance(await anext(items), Changes)
                rows(state_dir, "DELETE FROM 'transition'")
                with pytest.raises(RevisionCompacted) as caught:
                    async for _ in items:
                        pass
            assert caught.value.facts == {"oldest_revision": "301"}
            # and there it can go on
            seen = await watched(journal, heartbeat, resume=at(journal, 300))
            assert seen.heartbeats[0].revision == 300


class TestFilter:
    @pytest.mark.parametrize("vms", [("vm1",), (uuid(1),), ("vm1", uuid(1), "nobody")])
    async def test_only_these_pass(self, journal: Journal, vms: tuple[str, ...]) -> None:
        await journal.append(survey(sighting(1), sighting(2)))
        task = asyncio.create_task(watched(journal, up_to(10), vms=vms))
        await asyncio.sleep(0)  # it has its snapshot
        for number in range(1, 5):
            for vm in (2, 1):
                await journal.append(event(number, vm))
        seen = await task
        assert seen.revisions == [4, 6, 8, 10]
        assert set(seen.snapshot) == {uuid(1)}
        assert {t.vm.uuid for t in seen.transitions} == {uuid(1)}
        every = await watched(journal, up_to(journal.head), resume=at(journal, 2))
        assert seen.transitions == [t for t in every.transitions if t.vm.uuid == uuid(1)]

    async def test_a_vm_that_takes_the_name_passes(self, journal: Journal) -> None:
        await journal.append(survey(sighting(1), sighting(2)))
        task = asyncio.create_task(watched(journal, lambda s: s.transitions, vms=("new",)))
        await journal.append(renamed(2, "new"))
        seen = await task
        assert [t.vm.uuid for t in seen.transitions] == [uuid(2)]


class TestHeartbeats:
    async def test_they_come_at_least_every_interval(self, journal: Journal) -> None:
        loop = asyncio.get_running_loop()
        begin = loop.time()
        interval = timedelta(milliseconds=50)
        await watched(journal, lambda s: len(s.heartbeats) >= 5, heartbeat_interval=interval)
        assert loop.time() - begin >= 4 * interval.total_seconds() - 0.01  # and not more often

    async def test_they_come_while_changes_do(self, journal: Journal) -> None:
        async with asyncio.TaskGroup() as tasks:
            watching = tasks.create_task(
                watched(
                    journal,
                    lambda s: (
                        len(s.heartbeats) >= 3
                        and s.heartbeats[-1].revision > s.heartbeats[0].revision
                    ),
                    heartbeat_interval=timedelta(milliseconds=50),
                )
            )
            number = 0
            while not watching.done():
                number += 1
                await journal.append(event(number))
        seen = watching.result()
        revisions = [beat.revision for beat in seen.heartbeats]
        assert revisions == sorted(revisions)

    async def test_the_link_is_told_at_once(self, journal: Journal) -> None:
        await journal.append(survey(sighting()))
        items = Watch(journal).follow(vms=("nobody",), resume=None, heartbeat_interval=SELDOM)
        async with asyncio.timeout(DEADLINE_S), aclosing(items):
            first = await until_heartbeat(items)
            assert first.link.connected
            await journal.append(lost(cause="it ended"))
            second = await until_heartbeat(items)
            assert (second.link.connected, second.link.cause) == (False, "it ended")
            assert second.link.blind_since == BEGIN + 60 * SECOND
            await journal.append(survey(sighting(), link=2))
            assert (await until_heartbeat(items)).link.connected

    async def test_one_that_sees_nothing_gets_on(self, journal: Journal) -> None:
        """A resume from its last heartbeat does not fall out of history."""
        await journal.append(survey(sighting()))
        items = Watch(journal).follow(
            vms=("nobody",), resume=None, heartbeat_interval=timedelta(milliseconds=20)
        )
        async with asyncio.timeout(DEADLINE_S), aclosing(items):
            await until_heartbeat(items)
            for number in range(1, 21):
                await journal.append(event(number))
            while (await until_heartbeat(items)).revision < journal.head:
                pass

    async def test_a_journal_that_cannot_be_written_is_told_at_once(self, tmp_path: Path) -> None:
        faults: list[BaseException] = []
        async with open_journal(tmp_path / "full", fatal=faults.append) as journal:
            await journal.append(survey(sighting()))
            items = Watch(journal).follow(vms=(), resume=None, heartbeat_interval=SELDOM)
            async with asyncio.timeout(DEADLINE_S), aclosing(items):
                assert (await until_heartbeat(items)).journal_writable
                rows(
                    tmp_path / "full",
                    "CREATE TRIGGER full BEFORE INSERT ON 'transition' "
                    "BEGIN SELECT RAISE(ABORT, 'database or disk is full'); END",
                )
                journal.record(event(1))
                assert not (await until_heartbeat(items)).journal_writable
                rows(tmp_path / "full", "DROP TRIGGER full")


async def until_heartbeat(items: AsyncIterator[WatchItem]) -> Heartbeat:
    async for item in items:
        if isinstance(item, Heartbeat):
            return item
    raise AssertionError


def renamed(vm: int, name: str) -> Event:
    return Event(
        number=1,
        vm=uuid(vm),
        name=name,
        kind=EventKind.DEFINED_RENAMED,
        raw=RawPair(0, 2),
        run_id=None,
        observe_time=BEGIN,
    )


def opened(state_dir: Path):  # type: ignore[no-untyped-def]  # noqa: ANN201 - a context manager
    def fatal(error: BaseException) -> None:
        raise error

    return open_journal(state_dir, fatal=fatal)
