from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture
def target() -> Iterator[Path]:
    """A path for a socket; pytest's own folders are too deep for one."""
    with tempfile.TemporaryDirectory(prefix="vmagentctl-") as folder:
        yield Path(folder) / "s"
