"""Sees operations through: from when they are asked for to their end."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from vmagentd import messages
from vmagentd.errors import (
    CancelledByStop,
    JournalUnwritable,
    OperationCancelled,
    OperationInterrupted,
    OperationNotFound,
    OutcomeUnknown,
    ShuttingDown,
    VmagentdError,
)
from vmagentd.model import Operation, OperationFailure, OperationPhase
from vmagentd.operations.intake import Intake, Request
from vmagentd.operations.lasting import outlast
from vmagentd.operations.logged import log_fields
from vmagentd.operations.run import Run
from vmagentd.operations.verbs import VERBS

if TYPE_CHECKING:
    import asyncio
    from collections.abc import AsyncGenerator, Callable

    from vmagentd.model import Caller, OperationId, OperationOutcome, Parameters, VmUuid
    from vmagentd.operations.means import Means

log = logging.getLogger(__name__)


class Operations:
    """The operations of one host: at most one under way for each VM."""

    def __init__(
        self,
        means: Means,
        *,
        tasks: asyncio.TaskGroup,
        on_end: Callable[[Operation], object] = lambda _: None,
    ) -> None:
        """Prepare.

        Args:
            means: what operations are carried out with.
            tasks: owns the tasks; when it ends them, operations stay open in the journal.
            on_end: told of each operation that has ended, once that is committed.
        """
        self._means, self._journal = means, means.journal
        self._tasks = tasks
        self._on_end = on_end
        self._runs: dict[VmUuid, Run] = {}
        self._intake = Intake(means, self._runs, tasks=tasks, launch=self._launch)

    async def ask(
        self, ref: str, parameters: Parameters, *, caller: Caller, request_id: str | None
    ) -> AsyncGenerator[Operation]:
        """Do something to a VM: yield the operation after each step, last when it is over.

        Whoever stops listening does not stop the operation.

        Raises:
            RequestError: it was not accepted.
            HypervisorError: it was not accepted: libvirt cannot be asked.
        """
        asked = Request(ref=ref, parameters=parameters, caller=caller, request_id=request_id)
        taken = await self._intake.take_in(asked)
        if isinstance(taken, Operation):
            yield taken
            return
        async for operation in taken.follow():
            yield operation

    async def cancel(self, operation_id: OperationId, *, caller: Caller) -> Operation:
        """End an operation that is not over; return it once its end is committed.

        The VM is left as it is. What libvirt or the guest was asked for may still come.

        Raises:
            OperationNotFound: there is no such operation.
            LibvirtUnreachable: an earlier daemon left it open, and nobody knows yet how its VM is.
            JournalUnwritable: its end could not be committed.
        """
        await self._intake.until_recovered(operation_id)
        run = next((run for run in self._runs.values() if run.operation.id == operation_id), None)
        if run is None:
            stored = await self._journal.operation(operation_id)
            if stored is None:
                raise OperationNotFound(operation_id)
            return stored
        await outlast(
            self._cancel(run, caller), tasks=self._tasks, name=f"CancelOperation {operation_id}"
        )
        return await run.ended()

    def recover(self) -> None:
        """Go on with what an earlier daemon left open. After a survey, once."""
        for operation in self._journal.left_open:
            fields = log_fields(operation)
            log.info("%s %s: goes on", operation.verb.lower(), operation.vm_name, extra=fields)
            self._launch(Run(operation, self._means, accepted=True), resumed=True)
        self._intake.recovered.set()

    async def _cancel(self, run: Run, caller: Caller) -> None:
        await run.join(None, caller=caller, method="CancelOperation")
        run.cancel(OperationCancelled(run.vm, run.operation.id, caller.actor))

    def _launch(self, run: Run, *, resumed: bool = False) -> None:
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
                parameters = run.operation.parameters
                await run.accept(VERBS[parameters.verb].opening(run, parameters))
                self._log(run.operation, "accepted")
            await self._conclude(run, resumed=resumed)
        except JournalUnwritable as error:
            why = error
        finally:
            # whoever waits for `over` finds the VM free
            if self._runs.get(run.operation.vm) is run:  # of several that were left open the last
                del self._runs[run.operation.vm]
            run.leave()
            run.abandon(why)

    async def _conclude(self, run: Run, *, resumed: bool) -> None:
        try:
            outcome = await run.while_open(self._carry_out(run, resumed=resumed))
        except VmagentdError as error:
            await self._fail(run, error)
        else:
            if outcome is not None:
                await run.end(OperationPhase.SUCCEEDED, outcome=outcome)
        run.conclude()
        self._on_end(run.operation)
        failure = run.operation.failure
        how = f"{run.operation.phase}: {failure.message}" if failure else run.operation.outcome
        self._log(run.operation, str(how))

    async def _carry_out(self, run: Run, *, resumed: bool) -> OperationOutcome:
        """Carry it out; go on with it if it failed without force that was asked for meanwhile.

        The VM was looked at, if that was possible, when it has failed.
        """
        verb, parameters = VERBS[run.operation.verb], run.operation.parameters
        procedure, known = (verb.go_on if resumed else verb.carry_out), run.force_is_due
        while True:
            try:
                return await procedure(run, parameters)
            except VmagentdError:
                run.leave()  # others need not wait until its end is committed
                await run.look_if_possible()
                if known or not run.force_is_due:
                    raise
                # who joined it meant the boot of then, which may have ended unseen since
                procedure, known = verb.go_on, True

    async def _fail(self, run: Run, error: VmagentdError) -> None:
        if isinstance(error, JournalUnwritable):
            # it could not be read; where nothing is written any more, nor will this be
            error = OutcomeUnknown(run.vm, run.operation.verb.lower(), str(error))
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

    def _log(self, operation: Operation, how: str) -> None:
        failed = operation.phase is OperationPhase.FAILED
        log.info(
            "%s %s by %s: %s",
            operation.verb.lower(),
            operation.vm_name,
            operation.actor,
            how,
            extra={
                **log_fields(operation),
                "PEER": operation.peer,
                "METHOD": operation.method,
                "REASON": operation.failure.error if operation.failure else None,
                "MESSAGE_ID": messages.OPERATION_FAILED if failed else None,
            },
        )
