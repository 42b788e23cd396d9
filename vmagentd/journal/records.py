"""What is read of the journal page by page: the older part of its face.

Runs on the event loop; reads from the file in the `journal-read` threads.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from itertools import count
from typing import TYPE_CHECKING

from vmagentd.journal import audit, history, rows
from vmagentd.journal.reader import Lane
from vmagentd.journal.recent import PAGE, RecentTransitions
from vmagentd.model import HistoryFilter, Revision

if TYPE_CHECKING:
    import asyncio
    from collections.abc import AsyncIterator, Mapping
    from datetime import datetime

    from vmagentd.journal.reader import Reader
    from vmagentd.model import (
        AuditFilter,
        AuditRecord,
        BlindInterval,
        Operation,
        OperationFilter,
        OperationId,
        OperationPlace,
        Parameters,
        Transition,
        Vm,
        VmUuid,
    )


class Records(ABC):
    """The committed records of a journal. Each read may raise `JournalUnwritable`."""

    # the newest revision that is shown
    head: Revision

    def __init__(self, reader: Reader) -> None:
        self._reader = reader
        self._recent = RecentTransitions()

    @property
    @abstractmethod
    def vms(self) -> Mapping[VmUuid, Vm]:
        """The VMs as they are shown."""

    @property
    @abstractmethod
    def changed(self) -> asyncio.Event:
        """The event that is set when more is shown."""

    async def follow(self, after: Revision) -> AsyncIterator[tuple[Transition, ...]]:
        """Yield all transitions after *after*, in order, for ever, as many at once as there are.

        A slow reader delays only itself; what is compacted before it comes to it, it does not get.
        """
        while True:
            changed = self.changed
            page = await self.page(after)
            if page:
                after = page[-1].revision
                yield page
            else:
                await changed.wait()

    async def page(self, after: Revision) -> tuple[Transition, ...]:
        """Return the next transitions after *after*, in order; none if there is none yet.

        The recent ones come from memory, older ones from SQLite; those that are compacted by now
        are missing at its beginning.
        """
        if after >= self.head:
            return ()
        recent = self._recent.page(after)
        if recent is not None:
            return recent
        # a commit can be in the file a moment before it is shown here
        which = HistoryFilter(
            min_revision=Revision(after + 1), max_revision=self.head, oldest_first=True
        )
        page = await self._reader.read(
            Lane.WATCHERS, history.load_transitions, which, limit=PAGE, after=None
        )
        if page and page[-1].revision - page[0].revision >= len(page):
            # compacted meanwhile: what is kept before `oldest` has gaps, and a page has none
            page = tuple(t for t, at in zip(page, count(page[0].revision)) if t.revision == at)
        return page

    async def transitions(
        self, which: HistoryFilter, *, limit: int, after: Revision | None = None
    ) -> tuple[Transition, ...]:
        """Return a page of history, in the order asked for, from behind *after* on."""
        return await self._reader.read(
            Lane.LISTS, history.load_transitions, which, limit=limit, after=after
        )

    async def blind_intervals(
        self, *, since: datetime | None = None, until: datetime | None = None, limit: int = 100
    ) -> tuple[BlindInterval, ...]:
        """Return the blind intervals that overlap that time, newest first."""
        return await self._reader.read(
            Lane.LISTS, rows.load_blind_intervals, since=since, until=until, limit=limit
        )

    async def was_blind(self, since: datetime) -> bool:
        """Whether something may have gone unheard after *since*, for an operation.

        Because libvirt could not be asked, or because the disk left no room for all events.
        """
        return await self._reader.read(Lane.OPERATIONS, rows.load_was_blind, since=since)

    async def operation(self, operation_id: OperationId) -> Operation | None:
        """Return one operation, as it is committed and shown."""
        found = await self._reader.read(Lane.OPERATIONS, rows.load_operation, operation_id)
        if found is not None:
            await self._shown(found)
        return found

    async def operations(
        self, which: OperationFilter, *, limit: int, after: OperationPlace | None = None
    ) -> tuple[Operation, ...]:
        """Return a page of operations as committed, newest first, from behind *after* on."""
        return await self._reader.read(
            Lane.LISTS, rows.load_operations, which, limit=limit, after=after
        )

    async def request(self, actor: str, request_id: str) -> tuple[Operation, Parameters] | None:
        """Return the operation that *actor*'s request began or joined, and what it asked for."""
        found = await self._reader.read(Lane.OPERATIONS, rows.load_request, actor, request_id)
        if found is not None:
            await self._shown(found[0])
        return found

    async def audit_records(
        self, which: AuditFilter, *, limit: int, before: int | None = None
    ) -> tuple[AuditRecord, ...]:
        """Return a page of audit records, newest first, from *before* that sequence number on."""
        return await self._reader.read(
            Lane.LISTS, audit.load_audit, which, limit=limit, before=before
        )

    async def _shown(self, operation: Operation) -> None:
        """Wait until its VM is shown as the operation's end left it, if it has ended.

        A commit is in the file a moment before it is shown: whoever was told of the end would see
        the VM as it was before.
        """
        while operation.phase.final:
            changed, vm = self.changed, self.vms.get(operation.vm)
            if vm is None or vm.active_operation_id != operation.id:
                return
            await changed.wait()
