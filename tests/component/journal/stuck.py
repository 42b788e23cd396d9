"""A process that ends while its journal is being read by what never ends.

`python -m tests.component.journal.stuck STATE_DIR`: says so once the journal is closed.
"""

from __future__ import annotations

import asyncio
import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Never

from vmagentd.journal.reader import Lane
from vmagentd.journal.store import open_journal

if TYPE_CHECKING:
    from peewee import SqliteDatabase


async def end(state_dir: Path) -> None:
    async with open_journal(state_dir, fatal=_raise) as journal:
        begun = asyncio.Event()
        told = asyncio.get_running_loop().call_soon_threadsafe

        def hang(_db: SqliteDatabase) -> Never:
            told(begun.set)
            while True:
                threading.Event().wait()

        reading = asyncio.create_task(journal._reader.read(Lane.LISTS, hang))
        await begun.wait()
        reading.cancel()
    print("closed", flush=True)  # noqa: T201 - that is what it is for


def _raise(error: BaseException) -> None:
    raise error


if __name__ == "__main__":
    asyncio.run(end(Path(sys.argv[1])))
