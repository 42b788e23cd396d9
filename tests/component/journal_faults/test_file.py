"""The journal's file is damaged, removed or replaced."""

from __future__ import annotations

import asyncio
import ctypes
import os
import shutil
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

import pytest

from tests.component.journal.facts import (
    BEGIN,
    DEADLINE_S,
    event,
    filled,
    operation,
    revisions,
    rows,
    sighting,
    survey,
)
from tests.component.journal_faults.conftest import Open, check_history, eventually, until
from tests.component.journal_faults.disks import break_off
from vmagentd.errors import JournalUnusable, JournalUnwritable
from vmagentd.journal import file as journal_file
from vmagentd.journal.disk import Ballast, Damaged
from vmagentd.journal.file import InUse
from vmagentd.journal.log import WriteAheadLog
from vmagentd.model import HistoryFilter, Revision

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from tests.component.journal_faults.disks import Disk
    from vmagentd.journal.store import Journal


PAGE_BYTES = 4096


@pytest.fixture
def state_dir(tmp_path: Path) -> Path:
    return tmp_path / "state"


def aside(state_dir: Path) -> list[Path]:
    return sorted(state_dir.glob("journal.db.corrupt-*"))


def overwrite(path: Path) -> None:
    """Overwrite all but the first page, under whoever has it open."""
    with path.open("r+b") as file:
        file.seek(0, 2)
        size = file.tell()
        file.seek(PAGE_BYTES)
        file.write(b"\xa5" * (size - PAGE_BYTES))


def make(state_dir: Path) -> None:
    state_dir.mkdir()


def remove(state_dir: Path, name: str) -> None:
    (state_dir / name).unlink()


def replace(state_dir: Path, name: str) -> None:
    copy = state_dir / "copy"
    shutil.copy(state_dir / name, copy)
    copy.rename(state_dir / name)


async def filled_with_others(journal: Journal) -> None:
    """Record events of many VMs: whatever page there is, it is needed."""
    async with asyncio.timeout(DEADLINE_S):
        for number in range(10_000, 12_000):
            await journal.append(event(number, vm=number))


async def fault_of(opening: Open) -> JournalUnusable:
    await eventually(lambda: opening.faults)
    (fault,) = opening.faults
    assert isinstance(fault, JournalUnusable)
    return fault


class TestDamaged:
    async def test_a_commit_meets_it(self, state_dir: Path) -> None:
        """It is set aside, the daemon ends, and the next one begins a new journal."""
        opening = Open()
        async with opening(state_dir) as journal:
            await filled(journal, 3000)  # the log was copied into the database in between
            first = journal.id
            rows(state_dir, "PRAGMA wal_checkpoint(TRUNCATE)")
            overwrite(state_dir / "journal.db")
            with pytest.raises(JournalUnwritable, match="kept as"):
                await filled_with_others(journal)
            assert str(aside(state_dir)[0]) in str(await fault_of(opening))
            assert not journal.writable
        again = Open()
        async with again(state_dir) as journal:
            assert journal.id != first
            assert journal.head == 0
            await journal.append(event(1))
        assert not again.faults

    async def test_a_reader_meets_it(self, state_dir: Path) -> None:
        opening = Open()
        async with opening(state_dir) as journal:
            await filled(journal, 3000)
            rows(state_dir, "PRAGMA wal_checkpoint(TRUNCATE)")
            overwrite(state_dir / "journal.db")
            with pytest.raises(JournalUnwritable):
                await journal.transitions(HistoryFilter(oldest_first=True), limit=3000)
            await fault_of(opening)
            assert aside(state_dir)

    async def test_it_cannot_be_moved_away(self, thin_disk: Disk) -> None:
        """What damages a journal may well have made its disk read-only."""
        opening, state_dir = Open(), thin_disk.path / "state"
        async with opening(state_dir) as journal:
            await filled(journal, 3000)
            rows(state_dir, "PRAGMA wal_checkpoint(TRUNCATE)")
            overwrite(state_dir / "journal.db")
            break_off(thin_disk)
            with pytest.raises(JournalUnwritable):
                await journal.transitions(HistoryFilter(oldest_first=True), limit=3000)
            assert "cannot be moved away: Read-only" in str(await fault_of(opening))

    def test_what_is_left_of_it_cannot_be_moved_away(self, thin_disk: Disk) -> None:
        path = thin_disk.path / "journal.db"
        path.with_name("journal.db-wal").write_bytes(b"log")
        break_off(thin_disk)
        with pytest.raises(JournalUnusable, match=r"was removed.*cannot be moved away: Read-only"):
            journal_file.open_file(path, Ballast(thin_disk.path / "ballast"), now=BEGIN)

    def test_the_log_goes_with_its_database(self, state_dir: Path) -> None:
        """A log left behind would be taken for the new one's."""
        state_dir.mkdir()
        for suffix in ("", "-wal", "-shm"):
            (state_dir / f"journal.db{suffix}").write_text(suffix)
        journal_file.set_aside(state_dir / "journal.db", Damaged("a test"), now=BEGIN)
        stamp = "journal.db.corrupt-2026-01-01T00:00:00Z"
        kept = {path.name: path.read_text() for path in state_dir.iterdir()}
        assert kept == {stamp: "", f"{stamp}-wal": "-wal", f"{stamp}-shm": "-shm"}

    async def test_nothing_set_aside_is_overwritten(self, state_dir: Path) -> None:
        opening = Open()
        make(state_dir)
        for content in (b"one" * 1000, b"two" * 1000, b"three" * 1000):
            (state_dir / "journal.db").write_bytes(content)
            async with opening(state_dir):
                pass
        assert {path.read_bytes()[:3] for path in aside(state_dir)} == {b"one", b"two", b"thr"}

    async def test_a_database_that_was_removed_without_its_log(
        self, state_dir: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        make(state_dir)
        (state_dir / "journal.db-wal").write_bytes(b"log")
        async with Open()(state_dir) as journal:
            assert journal.head == 0
        assert [path.read_bytes() for path in aside(state_dir)] == [b"log"]
        assert "was removed" in caplog.text


@pytest.mark.parametrize("how", [remove, replace])
class TestRemovedOrReplaced:
    @pytest.mark.parametrize("name", ["journal.db", "journal.db-wal", "journal.db-shm"])
    async def test_a_commit_notices(
        self, state_dir: Path, how: Callable[[Path, str], None], name: str
    ) -> None:
        """Nothing is acknowledged that a restart would not find."""
        opening = Open()
        async with opening(state_dir) as journal:
            await journal.append(survey(sighting(1)))
            await filled(journal, 5)
            shown = journal.head
            how(state_dir, name)
            with pytest.raises(JournalUnwritable, match="removed or replaced"):
                await journal.append(event(6))
            with pytest.raises(JournalUnwritable, match="removed or replaced"):
                await journal.accept(operation(1))
            assert "removed or replaced" in str(await fault_of(opening))
            assert journal.head == shown

    async def test_a_read_notices(self, state_dir: Path, how: Callable[[Path, str], None]) -> None:
        opening = Open()
        async with opening(state_dir) as journal:
            await filled(journal, 5)
            how(state_dir, "journal.db")
            with pytest.raises(JournalUnwritable):
                await journal.transitions(HistoryFilter(), limit=1)
            await fault_of(opening)

    async def test_an_idle_journal_notices(
        self, state_dir: Path, how: Callable[[Path, str], None]
    ) -> None:
        opening = Open()
        async with opening(state_dir) as journal:
            await filled(journal, 5)
            how(state_dir, "journal.db")
            await until(journal, lambda: not journal.writable)
            await fault_of(opening)


@pytest.mark.skipif(os.geteuid() != 0, reason="takes root's rights from a thread of root's")
async def test_files_that_cannot_be_looked_at_are_not_taken_for_removed(state_dir: Path) -> None:
    async with Open()(state_dir) as journal:
        in_use = InUse(state_dir / "journal.db")
        log = WriteAheadLog(state_dir / "journal.db")
        with without_rights():
            with pytest.raises(PermissionError):
                (state_dir / "journal.db").stat()
            in_use.check()
            log.check(journal._writer._db)


@contextmanager
def without_rights() -> Iterator[None]:
    """Let this thread, and no other, look at no file of root's."""
    libc = ctypes.CDLL(None)
    libc.setfsuid(65534)
    try:
        yield
    finally:
        libc.setfsuid(0)


async def test_the_restart_goes_on_with_what_is_there(state_dir: Path, tmp_path: Path) -> None:
    """Another journal, put in the place of ours with its log, is not touched by our end."""
    ids: dict[str, str] = {}
    other = tmp_path / "other"
    async with Open()(other) as journal:
        await filled(journal, 7)
        ids["other"] = journal.id
        for name in ("journal.db", "journal.db-wal"):  # as a crash would leave it
            shutil.copy(other / name, tmp_path / name)
    opening = Open()
    async with opening(state_dir) as journal:
        await filled(journal, 5)
        for name in ("journal.db", "journal.db-wal"):
            (tmp_path / name).rename(state_dir / name)
        with suppress(JournalUnwritable):
            await journal.append(event(6))
        await fault_of(opening)
    again = Open()
    async with again(state_dir) as journal:
        assert (journal.id, journal.head) == (ids["other"], 7)
        assert revisions(await journal.page(Revision(0))) == [*range(1, 8)]
    check_history(state_dir, 7)
    assert not again.faults
