"""What the tests of this lane share: a real journal in a file of its own."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from vmagentd.journal.store import Journal, open_journal

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path


@pytest.fixture
async def journal(tmp_path: Path) -> AsyncIterator[Journal]:
    """An empty journal; a fault of its writer fails the test."""
    faults: list[BaseException] = []
    async with open_journal(tmp_path / "state", fatal=faults.append) as journal:
        yield journal
    assert not faults
