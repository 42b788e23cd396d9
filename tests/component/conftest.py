"""What the tests of this lane share: a real journal in a file of its own."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.component.process import short_folder
from tests.component.systemd import Systemd
from vmagentd.journal.store import Journal, open_journal

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator
    from pathlib import Path


@pytest.fixture
async def journal(tmp_path: Path) -> AsyncIterator[Journal]:
    """An empty journal; a fault of its writer fails the test."""
    faults: list[BaseException] = []
    async with open_journal(tmp_path / "state", fatal=faults.append) as journal:
        yield journal
    assert not faults


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder whose path is short, for a daemon of the test's own."""
    with short_folder() as path:
        yield path


@pytest.fixture
def systemd(folder: Path) -> Iterator[Systemd]:
    """What listens in the place of systemd."""
    listening = Systemd(folder)
    yield listening
    listening.close()
