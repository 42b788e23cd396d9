"""kill -9 in the middle of writing: what was acknowledged is there, and nothing is torn."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from tests.component.journal.facts import collected, revisions, rows
from vmagentd.journal.schema import TRANSITION, VM

if TYPE_CHECKING:
    from tests.component.journal.conftest import Open

ROOT = Path(__file__).parents[3]
KILLS = 10


def scribbled(state_dir: Path, heads: int) -> int:
    """Let a process write until it has acknowledged so many heads, kill it, return the last."""
    command = [sys.executable, "-m", "tests.component.journal.scribbler", str(state_dir)]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        said = [process.stdout.readline() for _ in range(heads)]
        assert all(said), "it ended by itself"
        process.kill()
        said += process.stdout  # what it said while it was being killed
    return int(said[-1])


async def test_what_was_acknowledged_survives(opened: Open, state_dir: Path) -> None:
    before = 0
    for kill in range(KILLS):
        acknowledged = scribbled(state_dir, 1 + 7 * kill)
        assert acknowledged > before
        assert rows(state_dir, "PRAGMA integrity_check") == [("ok",)]
        stored = rows(state_dir, "SELECT revision FROM 'transition' ORDER BY revision")
        assert [revision for (revision,) in stored] == list(range(1, len(stored) + 1))
        assert len(stored) >= acknowledged
        before = len(stored)
        # each VM is as its newest transition says: both are in one transaction
        for uuid, record in rows(state_dir, "SELECT uuid, record FROM vm"):
            newest = f"SELECT record FROM 'transition' WHERE vm = '{uuid}' ORDER BY revision DESC"
            ((last,), *_) = rows(state_dir, newest)
            assert VM.validate_json(record) == TRANSITION.validate_json(last).vm
    async with opened() as journal:
        assert journal.head == before
        assert journal.link.cause == "not connected yet"
        assert revisions(await collected(journal, 0, before)) == list(range(1, before + 1))
