"""The journal as the rest of the daemon sees it.

Facts go in by `record` (from any thread, not waiting) and `append` (durable on return). What is
committed can be read from memory (`vms`, `head`, `link`, the newest transitions) on the event
loop, or page by page from SQLite. All that waits for something to happen to a VM waits here:
`follow` for the transitions, `changed` for those and for the link.

Runs on the event loop, but for `record`.
"""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from functools import partial
from typing import TYPE_CHECKING, Final, ParamSpec, TypeAlias

from typing_extensions import override  # typing has it since 3.12

from vmagentd.errors import JournalUnwritable, ShuttingDown
from vmagentd.journal.backlog import Entry
from vmagentd.journal.disk import Ballast
from vmagentd.journal.file import InUse, held, open_file
from vmagentd.journal.known import KnownVms
from vmagentd.journal.reader import Reader
from vmagentd.journal.recent import EndedOperations
from vmagentd.journal.records import Records
from vmagentd.journal.retention import NO_LIMITS, Limits, Retention, steady_clock
from vmagentd.journal.told import Told
from vmagentd.journal.trace import trace
from vmagentd.journal.writer import Writer
from vmagentd.model import LinkLost, Revision

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Mapping, Sequence
    from pathlib import Path

    from vmagentd.journal.batch import Batch, Fact
    from vmagentd.model import (
        JoinedRequest,
        JournalId,
        Link,
        Operation,
        Vm,
        VmUuid,
    )

# Longer than SQLite waits for somebody else who writes, twice: that ends by itself.
_CLOSE_S: Final = 12.0

P = ParamSpec("P")
Waiter: TypeAlias = "asyncio.Future[None]"


class Journal(Records):
    """The journal of one host. Made by `open_journal`."""

    def __init__(
        self,
        path: Path,
        *,
        fatal: Callable[[BaseException], None],
        limits: Limits,
        on_measured: Callable[[float, int], object],
        now: Callable[[], datetime],
    ) -> None:
        ballast = Ballast(path.with_name("ballast"))
        kept = open_file(path, ballast, now=now())
        self.id: JournalId = kept.id
        # never told to anybody, and the same as long as the id is
        self.secret = kept.secret
        self.head, self.link, self.oldest = kept.fold.head, kept.fold.link, kept.oldest
        # operations that were under way when the last daemon ended, oldest first
        self.left_open: Sequence[Operation] = kept.open_operations
        self.writable = True
        self._known = KnownVms(kept.vms)
        self.ended = EndedOperations()
        self._doubts: set[VmUuid] = set()
        # replaced, not cleared, at each change, so that a waiter cannot miss one
        self._changed = asyncio.Event()
        self._closing = False
        # why nothing can be committed, when that is so
        self.cause = "it is closed"
        self._waiting: set[asyncio.Future[None]] = set()
        self._loop = asyncio.get_running_loop()
        self._ended = self._loop.create_future()
        self._fatal = fatal
        self._now = now
        in_use = InUse(path)
        self._writer = Writer(
            kept.db,
            kept.fold,
            path=path,
            in_use=in_use,
            ballast=ballast,
            retention=Retention(
                limits,
                Revision(kept.oldest - 1),
                now=steady_clock(now),
                forgotten=self._on_loop(self._on_forgotten),
            ),
            tell=Told(
                committed=self._on_loop(self._on_commit),
                measured=on_measured,
                unwritable=self._on_loop(self._on_unwritable),
                writable=self._on_loop(self._on_writable),
                compacted=self._on_loop(self._on_compacted),
                ended=self._on_loop(self._on_end),
            ),
            now=now,
        )
        super().__init__(Reader(path, in_use, damaged=self._writer.end))
        # how much history is kept from now on
        self.limit = self._writer.limit
        self._writer.start()

    @property
    def inbox_depth(self) -> int:
        """How many facts wait for the writer, those not counted that wait for the disk."""
        return self._writer.waiting

    @property
    @override
    def vms(self) -> Mapping[VmUuid, Vm]:
        """Every VM that was recorded and is not forgotten, as it is at `head`."""
        return self._known.all

    def find(self, ref: str) -> Vm | None:
        """Return the VM of that UUID or name; of VMs that are gone, the one that went last."""
        return self._known.find(ref)

    def record(self, fact: Fact) -> None:
        """Hand over a fact. From any thread; returns at once, before it is durable."""
        self._writer.put(Entry(fact))

    def submit(self, fact: Fact, *, now_or_never: bool = False) -> asyncio.Future[None]:
        """Hand over a fact; the future is done once it is durable and shown.

        On return it has its place in the order: whatever libvirt says from now on comes after it.
        While the disk takes nothing it waits, unless it is *now_or_never*. Cancelling the future
        does not take it back.

        Raises:
            ShuttingDown: the journal is being closed.
            JournalUnwritable: by the future: it was not committed, and will not be.
        """
        if self._closing:
            raise ShuttingDown
        done = self._loop.create_future()
        if self._ended.done():
            done.set_exception(JournalUnwritable(self.cause))
            return done
        self._waiting.add(done)
        done.add_done_callback(self._waiting.discard)
        self._writer.put(Entry(fact, done, now_or_never))
        return done

    async def append(self, fact: Fact) -> None:
        """Hand over a fact. Durable and shown on return, however long that takes; see `submit`."""
        await self.submit(fact)

    async def accept(self, asked: Operation | JoinedRequest) -> None:
        """Commit what a client asked for, or refuse it. Durable and shown on return.

        Unlike later steps, which tell what has happened, it does not wait for a full disk.

        Raises:
            ShuttingDown: the journal is being closed.
            JournalUnwritable: it is not accepted, and will not be.
        """
        self.check_writable()
        await self.submit(asked, now_or_never=True)

    def check_writable(self) -> None:
        """Raise if nothing new can be promised now.

        Raises:
            JournalUnwritable: nothing can be committed.
        """
        if not self.writable:
            raise JournalUnwritable(self.cause)

    async def beat(self) -> None:
        """Return once the writer takes from its inbox; what it takes may wait for the disk.

        It does not return while the writer hangs, and raises nothing once it has ended.
        """
        taken = self._loop.create_future()
        self._writer.ask(self._on_loop(partial(_done, [taken])))
        await asyncio.wait([taken, self._ended], return_when=asyncio.FIRST_COMPLETED)

    @property
    @override
    def changed(self) -> asyncio.Event:
        """The event that is set at the next change of head, link, doubts or writability.

        Take it before looking, then wait for it: a change in between is not missed.
        """
        return self._changed

    def take_doubts(self) -> set[VmUuid]:
        """Return, and forget, the VMs about which libvirt is to be asked."""
        doubts, self._doubts = self._doubts, set()
        return doubts

    async def close(self) -> None:
        """Commit all that was handed over, and that nobody looks from now on.

        A disk that hangs is not waited for: that is a fatal fault, and says what it has not taken.
        """
        self._closing = True
        self.record(LinkLost(time=self._now(), cause="vmagentd was stopped", link=0))
        self._writer.stop()
        await asyncio.wait([self._ended, self._reader.close()], timeout=_CLOSE_S)
        if not self._ended.done():
            self._fatal(self._writer.give_up(f"its disk has not answered for {_CLOSE_S:g} s"))

    def _on_loop(self, call: Callable[P, object]) -> Callable[P, object]:
        """Return what has *call* called on the loop, from another thread."""

        def post(*args: P.args, **kwargs: P.kwargs) -> None:
            self._loop.call_soon_threadsafe(partial(call, *args, **kwargs))

        return post

    def _on_end(self, error: BaseException | None) -> None:
        """The writer has ended: by `close`, or by a fault after which nothing is promised."""
        if error is not None:
            self.cause, self.writable = str(error), False
        self._refuse([*self._waiting])
        self._ended.set_result(None)
        self._wake()
        if error is not None:
            self._fatal(error)

    def _on_unwritable(self, cause: str, link: Link, refused: Sequence[Waiter]) -> None:
        """Tell that nothing can be committed, how the link is all the same, and whom we refuse."""
        self.cause, self.link, self.writable = cause, link, False
        self._wake()
        self._refuse(refused)

    def _on_writable(self, link: Link) -> None:
        self.link, self.writable = link, True
        self._wake()

    def _on_compacted(self, to: Revision) -> None:
        self.oldest = Revision(to + 1)

    def _on_forgotten(self, vms: Sequence[VmUuid]) -> None:
        for vm in vms:
            self._known.forget(vm)

    def _refuse(self, waiters: Sequence[Waiter]) -> None:
        for waiter in waiters:
            if not waiter.done():
                waiter.set_exception(JournalUnwritable(self.cause))

    def _on_commit(self, batch: Batch, done: Sequence[Waiter]) -> None:
        """Show what was committed, then tell those who waited for it."""
        seen = (self.head, self.link)
        self.head = batch.head
        if self.writable:  # else it is how the link was long ago: `_on_unwritable` told how it is
            self.link = batch.link
        for vm in batch.vms.values():
            self._known.show(vm)
        self._recent.add(batch.transitions)
        self.ended.add(batch.operations.values())
        self._doubts |= batch.doubts
        trace(batch.transitions)
        if batch.doubts or seen != (self.head, self.link):
            self._wake()
        _done(done)

    def _wake(self) -> None:
        changed, self._changed = self._changed, asyncio.Event()
        changed.set()


def _done(waiters: Sequence[Waiter]) -> None:
    for waiter in waiters:
        if not waiter.done():
            waiter.set_result(None)


@asynccontextmanager
async def open_journal(
    state_dir: Path,
    *,
    fatal: Callable[[BaseException], None],
    limits: Limits = NO_LIMITS,
    on_measured: Callable[[float, int], object] = lambda *_: None,
    now: Callable[[], datetime] = lambda: datetime.now(UTC),
) -> AsyncIterator[Journal]:
    """Hold *state_dir*, and yield the journal in it.

    Args:
        state_dir: a directory of the daemon's own; made if it is not there.
        fatal: called on the loop if the journal cannot go on.
        limits: how much history is kept.
        on_measured: told how many seconds each commit took and for how many facts, in the
            writer's thread.
        now: the host's clock.

    Raises:
        StateDirInUse: another daemon holds it, or it cannot be used.
        JournalUnusable: its file is a newer version's, or its disk does not let us.
    """
    with held(state_dir):
        journal = Journal(
            state_dir / "journal.db", fatal=fatal, limits=limits, on_measured=on_measured, now=now
        )
        try:
            yield journal
        finally:
            await journal.close()
