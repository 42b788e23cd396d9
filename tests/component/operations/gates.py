"""Ways to have things happen in the middle of others."""

from __future__ import annotations

import asyncio
import sqlite3
from contextlib import closing, contextmanager
from typing import TYPE_CHECKING

from tests.component.hypervisor.host import until
from tests.component.operations.site import DEADLINE_S
from vmagentd.model import AuditFilter, AuditKind, OperationPhase
from vmagentd.operations.run import EVENT_DUE_S

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.component.operations.site import Daemon, Site
    from vmagentd.operations.run import Run


class Gate:
    """A call of libvirt that is on its way until it is let go."""

    def __init__(self) -> None:
        self.reached = asyncio.Event()
        self.open = asyncio.Event()

    async def __call__(self) -> None:
        self.reached.set()
        await self.open.wait()


async def turns(number: int) -> None:
    """Let the loop take so many turns: each leaves the others at another place."""
    for _ in range(number):
        await asyncio.sleep(0)


async def until_joined(daemon: Daemon, actor: str) -> None:
    """Wait until a request of *actor*'s has joined an operation, and what follows at once."""
    which = AuditFilter(actor=actor, kinds=frozenset({AuditKind.JOINED}))
    async with asyncio.timeout(DEADLINE_S):
        while not await daemon.journal.audit_records(which, limit=1):
            pass
    # it is in the file a moment before the loop is told of it
    await daemon.journal.beat()
    await turns(20)


@contextmanager
def busy_disk(here: Site) -> Iterator[None]:
    """Let nothing be committed."""
    with closing(sqlite3.connect(here.state_dir / "journal.db", isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        yield


async def long_in_hand(daemon: Daemon) -> None:
    """Return when the writer has had all that is to be committed for so long that it is late."""
    await turns(20)
    await until(lambda: daemon.journal.inbox_depth == 0, "the writer has it")
    loop = asyncio.get_running_loop()
    late = loop.time() + EVENT_DUE_S
    await until(lambda: loop.time() > late, "it is late")


async def forcing(run: Run) -> None:
    """Have somebody want force; return when the step to it is to be committed."""
    run.escalate()
    await until(lambda: run.operation.phase is OperationPhase.FORCING, "the step")
