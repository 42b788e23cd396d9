"""One operation that is under way: its steps, who follows it, and what it may wait for."""

from __future__ import annotations

import asyncio
import logging
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Final

from vmagentd.errors import HypervisorError
from vmagentd.lifecycle.steps import end, step
from vmagentd.model import Operation, OperationPhase, Source, StopMode, StopParameters

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable
    from types import TracebackType

    from vmagentd.errors import VmagentdError
    from vmagentd.hypervisor.domains import Domains
    from vmagentd.journal.store import Journal
    from vmagentd.model import OperationFailure, OperationOutcome, Revision, Vm


log = logging.getLogger(__name__)

# How long an event may be missing before libvirt is asked.
EVENT_DUE_S: Final = 1.0


class Bound:
    """A wait that ends quietly: at its time, or when somebody ends it before."""

    def __init__(self, time: float) -> None:
        self._timeout = asyncio.timeout_at(time)
        self._over = True  # so far

    def end(self) -> None:
        """End the wait now, if it goes on."""
        if not self._over:
            self._timeout.reschedule(asyncio.get_running_loop().time())

    async def __aenter__(self) -> None:
        self._over = False
        await self._timeout.__aenter__()

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> bool:
        self._over = True
        try:
            await self._timeout.__aexit__(kind, error, traceback)
        except TimeoutError:
            return True
        return False


class Run:
    """An operation under way. One task carries it out; others follow it, or interrupt it."""

    def __init__(
        self, operation: Operation, journal: Journal, domains: Domains, *, accepted: bool = False
    ) -> None:
        """Take *operation* over, which an earlier daemon has *accepted*, or which is new."""
        self.operation = operation
        self.domains = domains
        # what libvirt is still busy with for an operation before this one: its start
        self.predecessor: asyncio.Task[VmagentdError | None] | None = None
        # a start that libvirt has not answered yet
        self.call: asyncio.Task[VmagentdError | None] | None = None
        # use force from now on: a forced Stop came, or an earlier daemon had come to that
        self.escalated = operation.phase is OperationPhase.FORCING
        # loop time of the operation's own deadline
        self.deadline = asyncio.get_running_loop().time() + max(
            (operation.deadline_time - datetime.now(UTC)).total_seconds(), 0
        )
        self._journal = journal
        self._cancelled: VmagentdError | None = None
        self._bound: Bound | None = None
        # every step that is committed, for those who follow
        self._committed: list[Operation] = [operation] if accepted else []
        self._abandoned: VmagentdError | None = None
        # replaced, not cleared, so that a follower cannot miss a step
        self._grown = asyncio.Event()
        self.over = asyncio.Event()

    @property
    def vm(self) -> Vm:
        """The VM as the journal has it now."""
        return self._journal.vms[self.operation.vm]

    @property
    def head(self) -> Revision:
        """The journal's newest revision: what comes after it has not happened yet."""
        return self._journal.head

    @property
    def forced(self) -> bool:
        """Whether the VM is to be forced off without asking the guest."""
        parameters = self.operation.parameters
        by_request = isinstance(parameters, StopParameters) and parameters.mode is StopMode.FORCE
        return self.escalated or by_request

    # For those who follow it.

    async def follow(self) -> AsyncIterator[Operation]:
        """Yield the operation as it stands, then after each step; the last one is final.

        Raises:
            VmagentdError: it was abandoned: the daemon ends, or could not accept it.
        """
        sent = max(len(self._committed) - 1, 0)
        while True:
            for operation in self._committed[sent:]:
                sent += 1
                yield operation
                if operation.phase.final:
                    return
            if sent == len(self._committed):
                if self._abandoned is not None:
                    raise self._abandoned
                await self._grown.wait()

    def escalate(self) -> None:
        """Use force from now on, whatever is being waited for."""
        self.escalated = True
        self._interrupt()

    def cancel(self, why: VmagentdError) -> None:
        """End the operation, whatever is being waited for. What libvirt does it goes on doing."""
        self._cancelled = why
        self._interrupt()

    def abandon(self, why: VmagentdError) -> None:
        """Let go of those who still follow. The operation stays as it is in the journal."""
        self._abandoned = why
        self._grow()
        self.over.set()

    # For the task that carries it out.

    async def accept(self) -> None:
        """Commit the operation: from here on it is promised."""
        await self._journal.accept(self.operation)
        self._tell(self.operation)

    async def step(self, phase: OperationPhase) -> None:
        """Take a step; it is committed, then told."""
        await self._commit(step(self.operation, phase, time=datetime.now(UTC)))

    def begin(self, phase: OperationPhase) -> asyncio.Task[None]:
        """Take a step whose commit need not be waited for before libvirt is asked.

        On return the step has its place before whatever libvirt says next; await it before
        anything else is told.
        """
        operation = step(self.operation, phase, time=datetime.now(UTC))
        self.operation = operation
        done = self._journal.submit(operation)

        async def tell() -> None:
            await done
            self._tell(operation)

        return asyncio.ensure_future(tell())

    async def end(
        self,
        phase: OperationPhase,
        *,
        outcome: OperationOutcome | None = None,
        failure: OperationFailure | None = None,
    ) -> None:
        """End it; the outcome is committed, then told."""
        now = datetime.now(UTC)
        await self._commit(end(self.operation, phase, time=now, outcome=outcome, failure=failure))
        self.over.set()

    def check(self) -> None:
        """Raise why the operation was cancelled, if it was."""
        if self._cancelled is not None:
            raise self._cancelled

    def until(self, time: float) -> Bound:
        """Bound what is awaited inside by *time* (the loop's), an escalation or a cancellation.

        Ends quietly whichever of them comes: look at what holds afterwards.
        """
        self._bound = Bound(time)
        return self._bound

    async def look(self) -> Vm:
        """Ask libvirt for the VM, and return it as the journal has it after the answer.

        Raises:
            HypervisorError: libvirt could not be asked.
        """
        query = await self.domains.look_up(self.operation.vm, source=Source.OPERATION)
        await self._journal.append(query)
        return self.vm

    async def look_if_possible(self) -> Vm:
        """Ask libvirt for the VM if it can be asked, and return it as the journal has it."""
        try:
            return await self.look()
        except HypervisorError as error:
            log.info("%s: could not be asked: %s", self.vm.name, error)
            return self.vm

    async def reached(self, after: Revision, wanted: Callable[[Vm], bool]) -> Vm:
        """Wait for a transition after *after* that makes the VM *wanted*; return it as it was."""
        async for page in self._journal.follow(after):
            for transition in page:
                if transition.vm.uuid == self.operation.vm and wanted(transition.vm):
                    return transition.vm
        raise AssertionError  # follow does not end

    async def _commit(self, operation: Operation) -> None:
        self.operation = operation
        await self._journal.append(operation)
        self._tell(operation)

    def _tell(self, operation: Operation) -> None:
        self._committed.append(operation)
        self._grow()

    def _grow(self) -> None:
        grown, self._grown = self._grown, asyncio.Event()
        grown.set()

    def _interrupt(self) -> None:
        if self._bound is not None:
            self._bound.end()
