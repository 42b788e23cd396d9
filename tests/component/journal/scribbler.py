"""A process that writes a journal as fast as it can and says what was acknowledged, until killed.

`python -m tests.component.journal.scribbler STATE_DIR`: each line is a head that was committed.
"""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

from tests.component.journal.facts import event
from vmagentd.journal.store import open_journal


async def scribble(state_dir: Path) -> None:
    async with open_journal(state_dir, fatal=_raise) as journal:
        number = int(journal.head)
        while True:
            for vm in (1, 2, 3):  # these share a transaction, or do not
                journal.record(event(number, vm))
            await journal.append(event(number, 4))
            number += 1
            print(journal.head, flush=True)  # noqa: T201 - that is what it is for


def _raise(error: BaseException) -> None:
    raise error


if __name__ == "__main__":
    asyncio.run(scribble(Path(sys.argv[1])))
