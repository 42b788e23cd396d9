"""A process that reads the journal without end makes its log grow: that is told, and mended."""

from __future__ import annotations

import asyncio
import sqlite3
from contextlib import closing, contextmanager
from typing import TYPE_CHECKING

from peewee import SqliteDatabase

from tests.component.journal.facts import DEADLINE_S, filled
from tests.component.journal_faults.conftest import eventually
from vmagentd.journal.log import WriteAheadLog
from vmagentd.journal.schema import LOG_BYTES

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    import pytest

    from tests.component.journal_faults.conftest import Open
    from vmagentd.journal.store import Journal


@contextmanager
def reading(state_dir: Path) -> Iterator[None]:
    """Hold a read transaction at the present end of the log, as another process does."""
    with closing(sqlite3.connect(state_dir / "journal.db", isolation_level=None)) as reader:
        reader.execute("BEGIN")
        reader.execute("SELECT count(*) FROM meta").fetchone()
        yield


def size(state_dir: Path) -> int:
    return (state_dir / "journal.db-wal").stat().st_size


async def grown(journal: Journal, state_dir: Path) -> None:
    """Make transitions until the log is larger than it should be."""
    async with asyncio.timeout(DEADLINE_S):
        while size(state_dir) <= LOG_BYTES:
            await filled(journal, 500, begin=journal.head + 1)


async def cut(journal: Journal, state_dir: Path) -> None:
    """Make transitions until the log is small again, and the journal has seen it."""
    async with asyncio.timeout(DEADLINE_S):
        while size(state_dir) > LOG_BYTES:
            await filled(journal, 10, begin=journal.head + 1)
    await eventually(lambda: not journal._writer._log._held)


def told(caplog: pytest.LogCaptureFixture) -> int:
    """Return how often a long reader was told of."""
    return sum("another process has been reading" in r.getMessage() for r in caplog.records)


async def test_each_long_reader_is_told_of_once(
    opening: Open, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    state_dir = tmp_path / "state"
    async with opening(state_dir) as journal:
        await filled(journal, 100)
        with reading(state_dir):
            await grown(journal, state_dir)
            await eventually(lambda: told(caplog) == 1)
            await filled(journal, 2000, begin=journal.head + 1)
        await cut(journal, state_dir)
        with reading(state_dir):
            await grown(journal, state_dir)
            await eventually(lambda: told(caplog) == 2)
        await cut(journal, state_dir)
    assert told(caplog) == 2


async def test_a_log_that_is_just_large_is_not_told_of(
    opening: Open, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    state_dir = tmp_path / "state"
    async with opening(state_dir) as journal:
        await filled(journal, 100)
        with reading(state_dir):
            await grown(journal, state_dir)
        before = told(caplog)
        with closing(SqliteDatabase(str(state_dir / "journal.db"))) as db:
            WriteAheadLog(state_dir / "journal.db").check(db)
        assert size(state_dir) > LOG_BYTES
        assert told(caplog) == before
