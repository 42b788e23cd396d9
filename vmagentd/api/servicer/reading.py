"""The calls that read what the journal has."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final

from vmagent.v1 import vm_agent_service_pb2 as pb

from vmagentd.api import access, convert, requests
from vmagentd.api.pages import page_of
from vmagentd.api.servicer.references import (
    found,
    known,
    sees_operation,
    sees_transition,
)
from vmagentd.errors import OperationNotFound, VmNotFound
from vmagentd.model import (
    Cursor,
    HistoryFilter,
    OperationPhase,
    OperationPlace,
    Revision,
    VmUuid,
)

if TYPE_CHECKING:
    from datetime import datetime

    from grpc import aio
    from vmagent.v1 import operation_pb2

    from vmagentd.journal.store import Journal
    from vmagentd.model import BlindInterval, Operation, Transition
    from vmagentd.operations.starts import Starts

    _Context = aio.ServicerContext[Any, Any]
    Edges = tuple[Revision | None, Revision | None]

_PAGE_BLIND_INTERVALS: Final = 1000


class Reading:
    """Serves GetVm, ListVms, ListTransitions, GetOperation, ListOperations."""

    def __init__(self, journal: Journal, starts: Starts) -> None:
        self._journal = journal
        self._starts = starts

    async def GetVm(self, request: pb.GetVmRequest, _context: _Context) -> pb.GetVmResponse:
        """Return one VM."""
        return pb.GetVmResponse(
            vm=convert.vm(found(self._journal, requests.reference("vm", request.vm))),
            link=convert.link(self._journal.link),
        )

    async def ListVms(self, request: pb.ListVmsRequest, _context: _Context) -> pb.ListVmsResponse:
        """Return a page of VMs."""
        asked = requests.list_vms(request, self._journal.secret)
        journal, caller = self._journal, access.caller()
        vms = sorted(
            (
                vm
                for vm in journal.vms.values()
                if vm.state in asked.states
                and caller.sees(vm.name)
                and (asked.after is None or (vm.name, vm.uuid) > asked.after)
                and asked.matches(vm.name)
            ),
            key=lambda vm: (vm.name, vm.uuid),
        )
        page = vms[: asked.page_size]
        more = len(vms) > len(page)
        return pb.ListVmsResponse(
            vms=map(convert.vm, page),
            next_page_token=asked.pages.token(page[-1].uuid + page[-1].name) if more else "",
            cursor=convert.cursor(Cursor(journal_id=journal.id, revision=journal.head)),
            link=convert.link(journal.link),
        )

    async def ListTransitions(
        self, request: pb.ListTransitionsRequest, _context: _Context
    ) -> pb.ListTransitionsResponse:
        """Return a page of history."""
        journal = self._journal
        asked = requests.history(request, journal.secret)
        vm = None if asked.vm is None else found(self._journal, asked.vm).uuid
        which = replace(asked.which, vm=vm)
        page, following = await page_of(
            lambda limit, after: journal.transitions(which, limit=limit, after=after),
            asked.page_size,
            after=asked.after,
            passes=sees_transition,
            place=lambda transition: transition.revision,
        )
        edges = edges_of(which, after=asked.after, following=following)
        return pb.ListTransitionsResponse(
            transitions=map(convert.transition, page),
            next_page_token="" if following is None else asked.pages.token(str(following)),
            blind_intervals=map(convert.blind_interval, await self._blind(which, page, edges)),
            oldest_revision=journal.oldest,
            link=convert.link(journal.link),
        )

    async def GetOperation(
        self, request: pb.GetOperationRequest, _context: _Context
    ) -> pb.GetOperationResponse:
        """Return one operation."""
        asked = requests.operation_id("operation_id", request.operation_id)
        operation = await self._journal.operation(asked)
        if operation is None or not sees_operation(self._journal, operation):
            raise OperationNotFound(asked)
        (told,) = self._told(operation)
        return pb.GetOperationResponse(operation=told)

    async def ListOperations(
        self, request: pb.ListOperationsRequest, _context: _Context
    ) -> pb.ListOperationsResponse:
        """Return a page of operations."""
        journal = self._journal
        asked = requests.list_operations(request, journal.secret)
        vm = there = None
        if asked.vm is not None:
            there = known(journal, asked.vm)
            # what a VM that is forgotten did may be kept longer than the VM
            vm = there.uuid if there else VmUuid(asked.vm[0])
        which = replace(asked.which, vm=vm)
        page, following = await page_of(
            lambda limit, after: journal.operations(which, limit=limit, after=after),
            asked.page_size,
            after=asked.after,
            passes=lambda operation: sees_operation(journal, operation),
            place=lambda row: OperationPlace(accept_time=row.accept_time, id=row.id),
        )
        if asked.vm is not None and there is None and not page:
            raise VmNotFound(asked.vm[-1])
        return pb.ListOperationsResponse(
            operations=self._told(*page),
            next_page_token=asked.pages.token(requests.operation_key(following))
            if following
            else "",
        )

    def _told(self, *operations: Operation) -> list[operation_pb2.Operation]:
        """Return what is told of stored operations: those that wait have a place now."""
        places = self._starts.places
        return [
            convert.operation(
                replace(operation, queue_place=places.get(operation.id, 0))
                if operation.phase is OperationPhase.QUEUED
                else operation
            )
            for operation in operations
        ]

    async def _blind(
        self, which: HistoryFilter, page: tuple[Transition, ...], edges: Edges
    ) -> tuple[BlindInterval, ...]:
        """Return the times when nobody looked that overlap a page, as the contract says."""
        behind, before = edges
        # The host's clock may have been set back, so the first is not always the earliest.
        times = [transition.time for transition in page]
        since, until = min(times, default=None), max(times, default=None)
        if not times and behind is not None:
            since = await self._time(HistoryFilter(max_revision=behind))
        if not times and before is not None:
            until = await self._time(HistoryFilter(min_revision=before, oldest_first=True))
        if before is None:
            until = None
        return await self._journal.blind_intervals(
            since=max(filter(None, (since, which.min_time)), default=None),
            until=min(filter(None, (until, which.max_time)), default=None),
            limit=_PAGE_BLIND_INTERVALS,
        )

    async def _time(self, which: HistoryFilter) -> datetime | None:
        """Return the time of the first transition of these, whichever VM's that is."""
        first = await self._journal.transitions(which, limit=1)
        return first[0].time if first else None


def edges_of(which: HistoryFilter, *, after: Revision | None, following: Revision | None) -> Edges:
    """Return between which revisions a page lies; None: it begins, or ends, where history does.

    Args:
        which: the filter.
        after: where the page before ended.
        following: where this one ended, if another follows.
    """
    low, high = which.min_revision, which.max_revision
    behind = None if low is None else Revision(low - 1)
    before = None if high is None else Revision(high + 1)
    first, last = (after, following) if which.oldest_first else (following, after)
    return behind if first is None else first, before if last is None else last
