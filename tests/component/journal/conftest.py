"""Real journals in real files."""

from __future__ import annotations

from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import pytest

from vmagentd.journal.store import Journal, open_journal

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable
    from contextlib import AbstractAsyncContextManager
    from pathlib import Path

    Open = Callable[[], AbstractAsyncContextManager[Journal]]


@pytest.fixture
def state_dir(tmp_path: Path) -> Path:
    return tmp_path / "state"


@pytest.fixture
def opened(state_dir: Path) -> Open:
    """Opens the journal of this test, as often as it likes, once at a time."""

    @asynccontextmanager
    async def opening() -> AsyncIterator[Journal]:
        faults: list[BaseException] = []
        async with open_journal(state_dir, fatal=faults.append) as journal:
            yield journal
        assert not faults

    return opening


@pytest.fixture
async def journal(opened: Open) -> AsyncIterator[Journal]:
    async with opened() as journal:
        yield journal
