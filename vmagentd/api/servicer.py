"""What the contract's methods do: decode, call, encode."""

from __future__ import annotations

from contextlib import aclosing
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, assert_never

from vmagent.v1 import host_pb2, vm_pb2
from vmagent.v1 import vm_agent_service_pb2 as pb

from vmagentd.api import convert, requests
from vmagentd.api.access import caller
from vmagentd.api.frames import Frames
from vmagentd.api.status import NotServed, OperationFailed
from vmagentd.errors import VmNotFound
from vmagentd.model import Cursor
from vmagentd.watch import Changes, Heartbeat, Snapshot, SnapshotEnd

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterator, Callable
    from datetime import datetime

    from grpc import aio

    from vmagentd.journal.store import Journal
    from vmagentd.model import (
        BlindInterval,
        HistoryFilter,
        HypervisorFacts,
        Operation,
        Transition,
        Vm,
    )
    from vmagentd.operations.engine import Operations
    from vmagentd.watch import Watch

    _Context = aio.ServicerContext[Any, Any]

SERVICE = pb.DESCRIPTOR.services_by_name["VmAgentService"]

_HOST_BLIND_INTERVALS = 20
_PAGE_BLIND_INTERVALS = 1000


@dataclass(frozen=True, slots=True, kw_only=True)
class HostFacts:
    """What GetHost tells beside the journal."""

    name: str
    daemon_version: str
    libvirt_uri: str
    boot_id: str
    start_time: datetime
    # None before the daemon is ready
    ready_time: Callable[[], datetime | None]
    # None before the first connection
    hypervisor: Callable[[], HypervisorFacts | None]


class Servicer:
    """Answers for VmAgentService. Every method may raise errors of ours; see `boundary.py`."""

    def __init__(
        self, *, journal: Journal, operations: Operations, watch: Watch, host: HostFacts
    ) -> None:
        self._journal = journal
        self._operations = operations
        self._watch = watch
        self._host = host
        self._frames = Frames()

    async def Start(
        self, request: pb.StartRequest, context: _Context
    ) -> AsyncIterator[pb.StartResponse]:
        """Start a VM."""
        asked = requests.start(request)
        steps = self._operations.start(
            self._spelling(asked.vm),
            asked.parameters,
            actor=caller(context).actor,
            request_id=asked.request_id,
        )
        async with aclosing(_told(steps)) as told:
            async for operation in told:
                yield pb.StartResponse(
                    operation=convert.operation(operation),
                    vm=self._vm(operation),
                    link=convert.link(self._journal.link),
                )

    async def Stop(
        self, request: pb.StopRequest, context: _Context
    ) -> AsyncIterator[pb.StopResponse]:
        """Stop a VM."""
        asked = requests.stop(request)
        steps = self._operations.stop(
            self._spelling(asked.vm),
            asked.parameters,
            actor=caller(context).actor,
            request_id=asked.request_id,
        )
        async with aclosing(_told(steps)) as told:
            async for operation in told:
                yield pb.StopResponse(
                    operation=convert.operation(operation),
                    vm=self._vm(operation),
                    link=convert.link(self._journal.link),
                )

    async def WatchStatus(
        self, request: pb.WatchStatusRequest, _context: _Context
    ) -> AsyncIterator[bytes]:
        """Stream what there is and what changes, as frames."""
        asked = requests.watch(request)
        seen = self._watch.follow(
            vms=asked.vms, resume=asked.resume, heartbeat_interval=asked.heartbeat_interval
        )
        frames = self._frames
        async with aclosing(seen):
            async for item in seen:
                match item:
                    case Changes(transitions=transitions):
                        for frame in frames.changes(transitions):
                            yield frame
                    case Heartbeat(revision=revision, link=link, journal_writable=writable):
                        yield frames.heartbeat(revision, link, journal_writable=writable)
                    case Snapshot(vms=vms):
                        for frame in frames.snapshot(vms):
                            yield frame
                    case SnapshotEnd(cursor=cursor):
                        yield frames.snapshot_end(cursor)
                    case _:
                        assert_never(item)

    async def GetVm(self, request: pb.GetVmRequest, _context: _Context) -> pb.GetVmResponse:
        """Return one VM."""
        return pb.GetVmResponse(
            vm=convert.vm(self._found(requests.reference("vm", request.vm))),
            link=convert.link(self._journal.link),
        )

    async def ListVms(self, request: pb.ListVmsRequest, _context: _Context) -> pb.ListVmsResponse:
        """Return a page of VMs."""
        asked = requests.list_vms(request)
        journal = self._journal
        vms = sorted(
            (
                vm
                for vm in journal.vms.values()
                if vm.state in asked.states
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
        asked = requests.history(request, journal.id)
        vm = None if asked.vm is None else self._found(asked.vm).uuid
        which = replace(asked.which, vm=vm)
        # One more than asked for tells whether another page follows.
        found = await journal.transitions(which, limit=asked.page_size + 1, after=asked.after)
        page = found[: asked.page_size]
        more = len(found) > len(page)
        newest = not more if which.oldest_first else asked.after is None
        return pb.ListTransitionsResponse(
            transitions=map(convert.transition, page),
            next_page_token=asked.pages.token(str(page[-1].revision)) if more else "",
            blind_intervals=map(
                convert.blind_interval, await self._blind(which, page, newest=newest)
            ),
            oldest_revision=journal.oldest,
            link=convert.link(journal.link),
        )

    async def GetOperation(
        self, _request: pb.GetOperationRequest, _context: _Context
    ) -> pb.GetOperationResponse:
        """Not yet."""
        raise NotServed("GetOperation")

    async def ListOperations(
        self, _request: pb.ListOperationsRequest, _context: _Context
    ) -> pb.ListOperationsResponse:
        """Not yet."""
        raise NotServed("ListOperations")

    async def CancelOperation(
        self, _request: pb.CancelOperationRequest, _context: _Context
    ) -> pb.CancelOperationResponse:
        """Not yet."""
        raise NotServed("CancelOperation")

    async def GetHost(self, _request: pb.GetHostRequest, _context: _Context) -> pb.GetHostResponse:
        """Return the host."""
        journal, host = self._journal, self._host
        blind = await journal.blind_intervals(limit=_HOST_BLIND_INTERVALS)
        vms, facts = journal.vms.values(), host.hypervisor()
        return pb.GetHostResponse(
            host=host_pb2.Host(
                name=host.name,
                daemon_version=host.daemon_version,
                libvirt_version=facts.libvirt_version if facts else "",
                hypervisor_version=facts.hypervisor_version if facts else "",
                libvirt_uri=host.libvirt_uri,
                boot_id=host.boot_id,
                journal_id=journal.id,
                head_revision=journal.head,
                oldest_revision=journal.oldest,
                journal_writable=journal.writable,
                link=convert.link(journal.link),
                blind_intervals=map(convert.blind_interval, blind),
                state_counts=convert.state_counts(vms),
                capacity=convert.capacity(vms, facts),
                ready_time=convert.timestamp(host.ready_time()),
                start_time=convert.timestamp(host.start_time),
            )
        )

    def _spelling(self, reference: requests.Reference) -> str:
        """Return that spelling of *reference* by which a VM is known, else the first."""
        return next(
            (spelling for spelling in reference if self._journal.find(spelling)), reference[0]
        )

    def _found(self, reference: requests.Reference) -> Vm:
        for spelling in reference:
            vm = self._journal.find(spelling)
            if vm is not None:
                return vm
        raise VmNotFound(reference[-1])

    def _vm(self, operation: Operation) -> vm_pb2.Vm | None:
        vm = self._journal.vms.get(operation.vm)
        return convert.vm(vm) if vm else None

    async def _blind(
        self, which: HistoryFilter, page: tuple[Transition, ...], *, newest: bool
    ) -> tuple[BlindInterval, ...]:
        """Return the times when nobody looked that overlap a page, as the contract says."""
        # The host's clock may have been set back, so the first is not always the earliest.
        times = [transition.time for transition in page]
        since = min(times, default=which.min_time)
        until = max(times, default=which.max_time)
        if newest and which.max_revision is None:
            until = which.max_time
        return await self._journal.blind_intervals(
            since=since, until=until, limit=_PAGE_BLIND_INTERVALS
        )


async def _told(steps: AsyncGenerator[Operation]) -> AsyncGenerator[Operation, None]:
    """Yield the operation's steps; if it did not succeed, raise that after the last."""
    operation = None
    async with aclosing(steps):
        async for operation in steps:
            yield operation
    if operation is not None and operation.failure is not None:
        raise OperationFailed(operation.failure)
