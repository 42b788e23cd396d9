"""Takes requests in: each becomes an operation, or part of one that is under way."""

from __future__ import annotations

import asyncio
import logging
from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING
from uuid import UUID, uuid4

from vmagentd.errors import (
    CancelledByStop,
    LibvirtUnreachable,
    OperationInProgress,
    RequestIdReused,
    VmNotFound,
)
from vmagentd.lifecycle.steps import Meeting, meeting
from vmagentd.model import (
    BootTime,
    Operation,
    OperationId,
    OperationPhase,
    OperationStep,
    Source,
    VmUuid,
)
from vmagentd.operations.lasting import outlast
from vmagentd.operations.logged import log_fields
from vmagentd.operations.run import Run
from vmagentd.operations.verbs import VERBS

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from vmagentd.model import Caller, Parameters, Vm
    from vmagentd.operations.means import Means

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """Somebody wants something done to a VM."""

    # the VM's UUID or name
    ref: str
    parameters: Parameters
    caller: Caller
    # the same one again, of the same actor, is the same request
    request_id: str | None


class Intake:
    """Where requests come in. One of an id is taken in at a time."""

    def __init__(
        self,
        means: Means,
        runs: Mapping[VmUuid, Run],
        *,
        tasks: asyncio.TaskGroup,
        launch: Callable[[Run], object],
    ) -> None:
        """Prepare.

        Args:
            means: what operations are carried out with.
            runs: the operations under way; whoever waits until one is `over` finds its VM free.
            tasks: owns the tasks.
            launch: adds a new one to them, and has it carried out.
        """
        self._means = means
        self._journal, self._domains = means.journal, means.domains
        self._runs = runs
        self._tasks = tasks
        self._launch = launch
        # requests that are being taken in: a second one of the same id waits for the first
        self._claims: dict[tuple[str, str], asyncio.Event] = {}
        # set once what an earlier daemon left open goes on: before, it would not be met
        self.recovered = asyncio.Event()

    async def take_in(self, asked: Request) -> Run | Operation:
        """Return the run to follow, or the operation that is over already.

        Whoever asked may leave: it was not taken in then, or it goes on.

        Raises:
            RequestError: it is not accepted.
            HypervisorError: it is not accepted: libvirt cannot be asked.
        """
        with ExitStack() as claimed:
            await self._claim(asked, claimed)
            if (earlier := await self._earlier(asked)) is not None:
                return earlier
            vm = await self._find(asked.ref)
            if vm.uuid not in self._runs:
                return self._begin(vm, asked, _new_id())
            return await outlast(
                self._meet(vm, asked),
                tasks=self._tasks,
                name=f"{asked.parameters.verb} {vm.uuid} meets another",
                on_over=claimed.pop_all().close,
            )

    async def until_recovered(self, operation_id: OperationId) -> None:
        """Wait until an operation that may be an earlier daemon's goes on, if it is open.

        Raises:
            LibvirtUnreachable: that may take long: nobody knows yet how its VM is.
        """
        if any(operation.id == operation_id for operation in self._journal.left_open):
            if not self.recovered.is_set():
                self._check_link()
            await self.recovered.wait()

    async def _claim(self, asked: Request, claimed: ExitStack) -> None:
        """Wait for others of its id that are being taken in; the next waits for *claimed*."""
        if asked.request_id is None:
            return
        key = (asked.caller.actor, asked.request_id)
        while key in self._claims:
            await self._claims[key].wait()
        self._claims[key] = asyncio.Event()
        claimed.callback(lambda: self._claims.pop(key).set())

    async def _earlier(self, asked: Request) -> Run | Operation | None:
        """Return what was made of an earlier request of the same id."""
        actor, request_id = asked.caller.actor, asked.request_id
        if request_id is None:
            return None
        for run in self._runs.values():
            if (run.operation.actor, run.operation.request_id) == (actor, request_id):
                self._check_same(asked, run.operation, run.operation.parameters)
                return run
        if (stored := await self._journal.request(actor, request_id)) is None:
            return None
        operation, parameters = stored
        self._check_same(asked, operation, parameters)
        if operation.phase.final:
            return operation
        await self.until_recovered(operation.id)
        joined = self._runs.get(operation.vm)
        if joined is not None and joined.operation.id == operation.id:
            return joined
        return await self._journal.operation(operation.id)  # it has ended since it was read

    def _check_same(self, asked: Request, operation: Operation, parameters: Parameters) -> None:
        """Raise if the request of that id, which led to *operation*, was another one."""
        vm = self._journal.find(asked.ref)
        same_vm = asked.ref == operation.vm_name or (vm is not None and vm.uuid == operation.vm)
        if asked.parameters != parameters or not same_vm:
            raise RequestIdReused(asked.request_id or "", operation.id)

    async def _find(self, ref: str) -> Vm:
        """Return the VM that is meant; asks libvirt for one that was never heard of."""
        self._check_link()
        await self.recovered.wait()
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

    def _check_link(self) -> None:
        link = self._journal.link
        if not link.connected:
            raise LibvirtUnreachable(link.cause or "not connected", link.blind_since)

    async def _meet(self, vm: Vm, asked: Request) -> Run:
        """Return the run that is joined, or the new one that takes the place of what it ended."""
        operation_id = _new_id()
        while (run := self._runs.get(vm.uuid)) is not None:
            met = meeting(run.operation, asked.parameters)
            if run.concluded or (met is Meeting.JOIN and run.ending):
                self._journal.check_writable()  # else its end may not come
                await run.over.wait()
                continue
            match met:
                case Meeting.JOIN:
                    await self._join(run, asked)
                    return run
                case Meeting.ESCALATE:
                    # committed before: nothing is forced that nobody can tell who wanted
                    await self._join(run, asked)
                    if run.ending:
                        await run.over.wait()
                    if not run.over.is_set():
                        what, fields = run.operation.verb.lower(), log_fields(run.operation)
                        log.info("%s %s: forces it from now on", what, vm.name, extra=fields)
                        run.escalate()
                    elif run.operation.outcome is None:
                        continue  # it has failed without the force, or was cancelled
                    return run
                case Meeting.CANCEL:
                    self._journal.check_writable()  # else it ends for nothing
                    run.cancel(CancelledByStop(vm, operation_id))
                    await run.over.wait()
                case Meeting.REFUSE:
                    raise OperationInProgress(vm, run.operation.id, run.operation.verb)
        return self._begin(vm, asked, operation_id)

    async def _join(self, run: Run, asked: Request) -> None:
        await run.join(asked.parameters, caller=asked.caller, request_id=asked.request_id)

    def _begin(self, vm: Vm, asked: Request, operation_id: OperationId) -> Run:
        """Make an operation of a request on *vm*, on which none is under way.

        Awaits nothing: nobody comes in between.
        """
        clock, parameters, caller = self._means.clock, asked.parameters, asked.caller
        now, since_boot = clock.now(), clock.since_boot()
        allowed = VERBS[parameters.verb].allowed(parameters, self._means.times)
        operation = Operation(
            id=operation_id,
            vm=vm.uuid,
            vm_name=vm.name,
            actor=caller.actor,
            peer=caller.peer,
            certificate_fingerprint=caller.certificate_fingerprint,
            request_id=asked.request_id,
            parameters=parameters,
            phase=OperationPhase.ACCEPTED,
            steps=(OperationStep(phase=OperationPhase.ACCEPTED, time=now),),
            accept_time=now,
            deadline_time=now + allowed,
            deadline_boot=BootTime(boot_id=clock.boot_id, since_boot=since_boot + allowed),
        )
        run = Run(operation, self._means)
        self._launch(run)
        return run


def _new_id() -> OperationId:
    return OperationId(str(uuid4()))
