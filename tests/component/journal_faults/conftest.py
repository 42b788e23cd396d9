"""A journal on a small disk of its own."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import pytest

from tests.component.journal.facts import DEADLINE_S, rows
from tests.component.journal_faults import disks
from tests.component.journal_faults.disks import MIB, CannotMountError, Disk
from vmagentd.journal.retention import NO_LIMITS, Limits
from vmagentd.journal.store import Journal, open_journal

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator
    from pathlib import Path


@pytest.fixture(scope="session")
def namespace() -> None:
    """A mount namespace of the test run's own, from here on."""
    try:
        disks.enter_namespace()
    except CannotMountError as why:
        pytest.skip(str(why))


@pytest.fixture
def disk(namespace: None, tmp_path: Path) -> Iterator[Disk]:
    """24 MiB: enough for the journal, its log and its ballast, and soon full."""
    with disks.tmpfs(tmp_path / "disk", 24 * MIB) as disk:
        yield disk


@pytest.fixture
def thin_disk(namespace: None, tmp_path: Path) -> Iterator[Disk]:
    """64 MiB that are 24: a write succeeds, its fsync does not."""
    try:
        with disks.thin(tmp_path / "disk", 64 * MIB, 24 * MIB) as disk:
            yield disk
    except CannotMountError as why:
        pytest.skip(str(why))


@dataclass
class Open:
    """Opens journals, and notes what ended them."""

    faults: list[BaseException] = field(default_factory=list)

    @asynccontextmanager
    async def __call__(
        self,
        state_dir: Path,
        *,
        limits: Limits = NO_LIMITS,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> AsyncIterator[Journal]:
        async with open_journal(
            state_dir, fatal=self.faults.append, limits=limits, now=now
        ) as journal:
            yield journal


@pytest.fixture
def opening() -> Iterator[Open]:
    """Opens journals that are to have no fault."""
    opening = Open()
    yield opening
    assert not opening.faults


async def until(journal: Journal, fact: Callable[[], object]) -> None:
    """Wait until *fact* holds; the journal tells of each change."""
    async with asyncio.timeout(DEADLINE_S):
        while True:
            changed = journal.changed
            if fact():
                return
            await changed.wait()


async def eventually(fact: Callable[[], object]) -> None:
    """Wait until *fact* holds of which the journal does not tell."""
    async with asyncio.timeout(DEADLINE_S):
        while not fact():  # noqa: ASYNC110 - nobody tells
            await asyncio.sleep(0.01)


def check_history(state_dir: Path, head: int) -> None:
    """Make sure that the file has every revision up to *head*, each once."""
    found = rows(state_dir, "SELECT revision FROM 'transition' ORDER BY revision")
    assert [revision for (revision,) in found] == list(range(1, head + 1))
