"""The calls that do something to a VM: each streams one operation."""

from __future__ import annotations

from contextlib import aclosing
from typing import TYPE_CHECKING, Any, TypeVar

from vmagent.v1 import vm_agent_service_pb2 as pb

from vmagentd.api import access, convert, requests
from vmagentd.api.servicer.references import check_may_cancel, sees_operation, to_operate
from vmagentd.api.status import OperationFailed
from vmagentd.errors import OperationNotFound, VmNotFound

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterator

    from grpc import aio

    from vmagentd.journal.store import Journal
    from vmagentd.model import Operation, Parameters
    from vmagentd.operations.engine import Operations

    _Context = aio.ServicerContext[Any, Any]

R = TypeVar(
    "R",
    pb.StartResponse,
    pb.StopResponse,
    pb.RebootResponse,
    pb.PauseResponse,
    pb.ResumeResponse,
)


class Operating:
    """Serves Start, Stop, Reboot, Pause, Resume and CancelOperation."""

    def __init__(self, journal: Journal, operations: Operations) -> None:
        self._journal = journal
        self._operations = operations

    def Start(
        self, request: pb.StartRequest, _context: _Context
    ) -> AsyncIterator[pb.StartResponse]:
        """Start a VM."""
        return self._operate(requests.start(request), pb.StartResponse)

    def Stop(self, request: pb.StopRequest, _context: _Context) -> AsyncIterator[pb.StopResponse]:
        """Stop a VM."""
        return self._operate(requests.stop(request), pb.StopResponse)

    def Reboot(
        self, request: pb.RebootRequest, _context: _Context
    ) -> AsyncIterator[pb.RebootResponse]:
        """Reboot a guest."""
        return self._operate(requests.reboot(request), pb.RebootResponse)

    def Pause(
        self, request: pb.PauseRequest, _context: _Context
    ) -> AsyncIterator[pb.PauseResponse]:
        """Pause a VM."""
        return self._operate(requests.pause(request), pb.PauseResponse)

    def Resume(
        self, request: pb.ResumeRequest, _context: _Context
    ) -> AsyncIterator[pb.ResumeResponse]:
        """Have a guest run on, or wake up."""
        return self._operate(requests.resume(request), pb.ResumeResponse)

    async def CancelOperation(
        self, request: pb.CancelOperationRequest, _context: _Context
    ) -> pb.CancelOperationResponse:
        """Cancel an operation."""
        asked = requests.operation_id("operation_id", request.operation_id)
        known = await self._journal.operation(asked)
        if known is not None:
            if not sees_operation(self._journal, known):
                raise OperationNotFound(asked)
            check_may_cancel(self._journal, known)
        operation = await self._operations.cancel(asked, caller=access.caller())
        return pb.CancelOperationResponse(operation=convert.operation(operation))

    async def _operate(
        self, asked: requests.Asked[Parameters], response: type[R]
    ) -> AsyncIterator[R]:
        """Stream an operation, whatever it does, each step as a *response*."""
        steps = self._operations.ask(
            to_operate(self._journal, asked.vm),
            asked.parameters,
            caller=access.caller(),
            request_id=asked.request_id,
        )
        async with aclosing(_told(steps)) as told:
            async for operation in told:
                if not sees_operation(self._journal, operation):
                    # Renamed meanwhile, or long ago: a request id finds its operation anyhow.
                    raise VmNotFound(asked.vm[-1])
                vm = self._journal.vms.get(operation.vm)
                yield response(
                    operation=convert.operation(operation),
                    vm=convert.vm(vm) if vm else None,
                    link=convert.link(self._journal.link),
                )


async def _told(steps: AsyncGenerator[Operation]) -> AsyncGenerator[Operation, None]:
    """Yield the operation's steps; if it did not succeed, raise that after the last."""
    operation = None
    async with aclosing(steps):
        async for operation in steps:
            yield operation
    if operation is not None and operation.failure is not None:
        raise OperationFailed(operation.failure)
