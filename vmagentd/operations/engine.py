"""Takes operations in, and sees them through to their end."""

from __future__ import annotations

import asyncio
import logging
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from typing import TYPE_CHECKING
from uuid import UUID, uuid4

from vmagentd.errors import (
    CancelledByStop,
    JournalUnwritable,
    LibvirtUnreachable,
    OperationCancelled,
    OperationInProgress,
    OperationInterrupted,
    RequestIdReused,
    ShuttingDown,
    VmagentdError,
    VmNotFound,
)
from vmagentd.lifecycle.steps import Meeting, meeting
from vmagentd.model import (
    JoinedRequest,
    Operation,
    OperationFailure,
    OperationId,
    OperationOutcome,
    OperationPhase,
    OperationStep,
    Source,
    StartParameters,
    StopMode,
    StopParameters,
    VmUuid,
)
from vmagentd.operations.run import Run
from vmagentd.operations.start import resume_start, start
from vmagentd.operations.stop import stop

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterator
    from datetime import timedelta

    from vmagentd.hypervisor.domains import Domains
    from vmagentd.journal.store import Journal
    from vmagentd.model import Vm
    from vmagentd.operations.stop import StopTimes

log = logging.getLogger(__name__)


class Operations:
    """The operations of one host: at most one under way for each VM."""

    def __init__(
        self, journal: Journal, domains: Domains, *, tasks: asyncio.TaskGroup, times: StopTimes
    ) -> None:
        """Prepare.

        Args:
            journal: where operations are kept and VMs are watched.
            domains: asks libvirt.
            tasks: owns the tasks; when it ends them, operations stay open in the journal.
            times: how a VM is stopped.
        """
        self._journal = journal
        self._domains = domains
        self._tasks = tasks
        self._times = times
        self._runs: dict[VmUuid, Run] = {}
        # requests that are being taken in: a second one of the same id waits for the first
        self._claims: dict[tuple[str, str], asyncio.Event] = {}
        # before that, what an earlier daemon left open would not be met
        self._recovered = asyncio.Event()

    async def start(
        self, ref: str, parameters: StartParameters, *, actor: str, request_id: str | None
    ) -> AsyncGenerator[Operation]:
        """Start a VM: yield the operation after each step, the last time when it is over.

        Whoever stops listening does not stop the operation.

        Raises:
            RequestError: it was not accepted.
            HypervisorError: it was not accepted: libvirt cannot be asked.
        """
        async for operation in self._ask(ref, parameters, actor, request_id):
            yield operation

    async def stop(
        self, ref: str, parameters: StopParameters, *, actor: str, request_id: str | None
    ) -> AsyncGenerator[Operation]:
        """Stop a VM: yield and raise as `start` does."""
        async for operation in self._ask(ref, parameters, actor, request_id):
            yield operation

    def recover(self) -> None:
        """Go on with what an earlier daemon left open. After a survey, once."""
        for operation in self._journal.left_open:
            log.info("%s %s: going on with %s", operation.verb, operation.vm_name, operation.id)
            run = Run(operation, self._journal, self._domains, accepted=True)
            self._launch(run, resumed=True)
        self._recovered.set()

    async def _ask(
        self,
        ref: str,
        parameters: StartParameters | StopParameters,
        actor: str,
        request_id: str | None,
    ) -> AsyncGenerator[Operation]:
        taken = await self._take_in(ref, parameters, actor, request_id)
        if isinstance(taken, Operation):
            yield taken
            return
        async for operation in taken.follow():
            yield operation

    async def _take_in(
        self,
        ref: str,
        parameters: StartParameters | StopParameters,
        actor: str,
        request_id: str | None,
    ) -> Run | Operation:
        """Return the run to follow, or the operation that is over already."""
        async with self._claimed(actor, request_id):
            if request_id is not None:
                earlier = await self._earlier(ref, parameters, actor, request_id)
                if earlier is not None:
                    return earlier
            vm = await self._find(ref)
            operation_id = OperationId(str(uuid4()))
            met = await self._meet(vm.uuid, parameters, operation_id)
            if met is not None and not met.over.is_set():
                if request_id is not None:
                    await self._journal.accept(
                        JoinedRequest(
                            operation=met.operation.id,
                            actor=actor,
                            request_id=request_id,
                            parameters=parameters,
                        )
                    )
                return met
            # from the meeting to the launch nothing is awaited: nobody comes in between
            operation = self._operation(operation_id, vm, parameters, actor, request_id)
            run = Run(operation, self._journal, self._domains)
            run.predecessor = met.call if met else None
            self._launch(run, resumed=False)
            return run

    @asynccontextmanager
    async def _claimed(self, actor: str, request_id: str | None) -> AsyncIterator[None]:
        """Let one request of an id be taken in at a time."""
        if request_id is None:
            yield
            return
        key = (actor, request_id)
        while key in self._claims:
            await self._claims[key].wait()
        self._claims[key] = asyncio.Event()
        try:
            yield
        finally:
            self._claims.pop(key).set()

    async def _earlier(
        self,
        ref: str,
        parameters: StartParameters | StopParameters,
        actor: str,
        request_id: str,
    ) -> Run | Operation | None:
        """Return what was made of an earlier request of the same id."""
        for run in self._runs.values():
            operation = run.operation
            if (operation.actor, operation.request_id) == (actor, request_id):
                if operation.parameters == parameters and self._is_of(operation, ref):
                    return run
                raise RequestIdReused(request_id, operation.id)
        if (stored := await self._journal.request(actor, request_id)) is None:
            return None
        operation, asked = stored
        if asked != parameters or not self._is_of(operation, ref):
            raise RequestIdReused(request_id, operation.id)
        # one that it joined may be under way
        joined = self._runs.get(operation.vm)
        return joined if joined and joined.operation.id == operation.id else operation

    def _is_of(self, operation: Operation, ref: str) -> bool:
        """Whether *ref* means the VM of *operation*."""
        vm = self._journal.find(ref)
        return ref == operation.vm_name or (vm is not None and vm.uuid == operation.vm)

    async def _find(self, ref: str) -> Vm:
        """Return the VM that is meant; asks libvirt for one that was never heard of."""
        link = self._journal.link
        if not link.connected:
            raise LibvirtUnreachable(link.cause or "not connected", link.blind_since)
        await self._recovered.wait()
        vm = self._journal.find(ref)
        if vm is None:
            self._journal.check_writable()
            try:
                uuid = VmUuid(str(UUID(ref)))
            except ValueError:
                query = await self._domains.look_up_name(ref, source=Source.SURVEY)
            else:
                query = await self._domains.look_up(uuid, source=Source.SURVEY)
            if query is not None and query.sighting is not None:
                await self._journal.append(query)
            vm = self._journal.find(ref)
        if vm is None:
            raise VmNotFound(ref)
        return vm

    async def _meet(
        self,
        vm: VmUuid,
        parameters: StartParameters | StopParameters,
        operation_id: OperationId,
    ) -> Run | None:
        """Return the run that is joined, or the one that is over because of this request."""
        while (run := self._runs.get(vm)) is not None:
            match meeting(run.operation, parameters):
                case Meeting.JOIN:
                    return run
                case Meeting.ESCALATE:
                    log.info("stop %s: %s uses force from now on", vm, run.operation.id)
                    run.escalate()
                    return run
                case Meeting.CANCEL:
                    self._journal.check_writable()  # else it ends for nothing
                    run.cancel(CancelledByStop(vm, operation_id))
                    await run.over.wait()
                    if vm not in self._runs:
                        return run
                case Meeting.REFUSE:
                    raise OperationInProgress(vm, run.operation.id, run.operation.verb)
        return None

    def _operation(
        self,
        operation_id: OperationId,
        vm: Vm,
        parameters: StartParameters | StopParameters,
        actor: str,
        request_id: str | None,
    ) -> Operation:
        now = datetime.now(UTC)
        return Operation(
            id=operation_id,
            vm=vm.uuid,
            vm_name=vm.name,
            actor=actor,
            request_id=request_id,
            parameters=parameters,
            phase=OperationPhase.ACCEPTED,
            steps=(OperationStep(phase=OperationPhase.ACCEPTED, time=now),),
            accept_time=now,
            deadline_time=now + self._allowed(parameters),
        )

    def _allowed(self, parameters: StartParameters | StopParameters) -> timedelta:
        match parameters:
            case StartParameters():
                return parameters.timeout
            case StopParameters(mode=StopMode.FORCE):
                return self._times.force_timeout
            case StopParameters():
                return parameters.grace_period

    def _launch(self, run: Run, *, resumed: bool) -> None:
        operation = run.operation
        self._runs[operation.vm] = run
        self._tasks.create_task(
            self._see_through(run, resumed=resumed),
            name=f"{operation.verb} {operation.vm} {operation.id}",
        )

    async def _see_through(self, run: Run, *, resumed: bool) -> None:
        """Accept the operation, carry it out, and commit how it ended, after the VM's true state.

        All in a task of its own: whoever asked may be gone at any moment, also before it is
        accepted.
        """
        why: VmagentdError = ShuttingDown()
        try:
            if not resumed:
                await run.accept()
            await self._conclude(run, resumed=resumed)
        except JournalUnwritable as error:
            why = error
        finally:
            # whoever waits for `over` finds the VM free
            del self._runs[run.operation.vm]
            run.abandon(why)

    async def _conclude(self, run: Run, *, resumed: bool) -> None:
        try:
            outcome = await self._carry_out(run, resumed=resumed)
        except JournalUnwritable:
            raise
        except VmagentdError as error:
            await run.look_if_possible()
            await self._fail(run, error)
        else:
            await run.end(OperationPhase.SUCCEEDED, outcome=outcome)
            self._log(run.operation, outcome)

    async def _carry_out(self, run: Run, *, resumed: bool) -> OperationOutcome:
        match run.operation.parameters:
            case StartParameters() as parameters:
                procedure = resume_start if resumed else start
                return await procedure(run, parameters)
            case StopParameters() as parameters:
                return await stop(run, parameters, self._times)

    async def _fail(self, run: Run, error: VmagentdError) -> None:
        match error:
            case CancelledByStop() | OperationCancelled():
                phase = OperationPhase.CANCELLED
            case OperationInterrupted():
                phase = OperationPhase.INTERRUPTED
            case _:
                phase = OperationPhase.FAILED
        failure = OperationFailure(
            error=type(error).__name__, message=str(error), facts=error.facts
        )
        await run.end(phase, failure=failure)
        self._log(run.operation, f"{phase}: {error}")

    def _log(self, operation: Operation, how: str) -> None:
        log.info(
            "%s %s by %s: %s",
            operation.verb.lower(),
            operation.vm_name,
            operation.actor,
            how,
            extra={
                "VM_UUID": operation.vm,
                "VM_NAME": operation.vm_name,
                "OPERATION_ID": operation.id,
                "ACTOR": operation.actor,
            },
        )
