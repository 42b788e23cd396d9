"""One operation that is under way: its steps, who follows it, and what it may wait for."""

from __future__ import annotations

import asyncio
import logging
from contextlib import suppress
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Final

from vmagentd.errors import HypervisorError, LibvirtUnreachable, OutcomeUnknown
from vmagentd.failpoints import failpoint
from vmagentd.lifecycle.steps import end, is_forced, meant_for, step
from vmagentd.model import (
    Answered,
    JoinedRequest,
    Operation,
    OperationOutcome,
    OperationPhase,
    Source,
)
from vmagentd.operations.bound import Bound
from vmagentd.operations.course import Course
from vmagentd.operations.cursor import Cursor
from vmagentd.operations.logged import log_fields

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable

    from vmagentd.errors import VmagentdError
    from vmagentd.model import Caller, OperationFailure, Parameters, Vm
    from vmagentd.operations.means import Means
    from vmagentd.operations.starts import Claim, StartCall


log = logging.getLogger(__name__)

# How long an event may be missing before libvirt is asked.
EVENT_DUE_S: Final = 1.0


class Run:
    """An operation under way. One task carries it out; others follow it, or interrupt it."""

    def __init__(self, operation: Operation, means: Means, *, accepted: bool = False) -> None:
        """Take *operation* over, which an earlier daemon has *accepted*, or which is new."""
        self.operation = operation
        self.domains, self.times, self.starts = means.domains, means.times, means.starts
        # its first step was taken as it was accepted: libvirt is asked next, by what is known
        self.opened = False
        # its turn among the starts of the host, or its place before that
        self.claim: Claim | None = None
        # loop time of the operation's own deadline
        left = means.clock.left(operation).total_seconds()
        self.deadline = asyncio.get_running_loop().time() + left
        self._journal = means.journal
        # it is gone perhaps, and may be forgotten until this operation is accepted
        self._found = self._journal.vms[operation.vm]
        self._cancelled: VmagentdError | None = None
        # somebody joined who wants force, and is there: an earlier daemon's callers are not
        self._force_wanted = False
        # an earlier daemon took these
        self._earlier_steps = operation.steps if accepted else ()
        self._bound: Bound | None = None
        self._course = Course([operation] if accepted else [])
        self.over = asyncio.Event()

    @property
    def vm(self) -> Vm:
        """The VM as the journal has it now."""
        return self._journal.vms.get(self.operation.vm, self._found)

    @property
    def starting(self) -> StartCall | None:
        """A start of the VM that libvirt has not answered, of whichever operation.

        Before it has, the VM may be off and still come up.
        """
        return self.starts.unanswered(self.operation.vm)

    @property
    def forced(self) -> bool:
        """Whether the guest is not to be asked, or not any more."""
        has_come_to_it = self.operation.phase is OperationPhase.FORCING
        return self.operation.escalated or has_come_to_it or is_forced(self.operation.parameters)

    @property
    def force_is_due(self) -> bool:
        """Whether somebody joined it here who wants force, which it has not come to and may."""
        taken = self.operation.steps[len(self._earlier_steps) :]
        used = any(each.phase is OperationPhase.FORCING for each in taken)
        return self._force_wanted and not used and not self.ending

    @property
    def concluded(self) -> bool:
        """Whether it has ended in the journal, which is to be told yet."""
        return self.operation.id in self._journal.ended

    @property
    def ending(self) -> bool:
        """Whether it was cancelled, or its end is being committed: force comes too late for it."""
        return self._cancelled is not None or self.operation.phase.final or self.concluded

    @property
    def time_left(self) -> timedelta:
        """The time until its deadline."""
        return timedelta(seconds=max(self.deadline - asyncio.get_running_loop().time(), 0))

    def holds(self) -> OperationOutcome:
        """Return how an operation succeeded whose wish is found to hold.

        It did that if libvirt was asked before, perhaps by an earlier daemon.
        """
        asked = len(self.operation.steps) > 1 and not self.opened
        return OperationOutcome.DONE if asked else OperationOutcome.ALREADY_DONE

    # For those who follow it.

    async def follow(self) -> AsyncIterator[Operation]:
        """Yield the operation as it stands, then after each step; the last one is final.

        Raises:
            VmagentdError: it was abandoned: the daemon ends, or could not accept it.
        """
        async for operation in self._course.follow():
            yield operation

    async def join(
        self,
        parameters: Parameters | None,
        *,
        caller: Caller,
        request_id: str | None = None,
        method: str | None = None,
    ) -> None:
        """Commit that a request joined the operation: one for the same, or of another *method*.

        Raises:
            JournalUnwritable: it did not, and will not.
            VmagentdError: likewise, as there is nothing to join: why that was abandoned.
        """
        await self._course.begun()  # it comes after what it joins in the journal too
        await self._journal.accept(
            JoinedRequest(
                operation=self.operation.id,
                vm=self.operation.vm,
                vm_name=self.operation.vm_name,
                method=method or self.operation.method,
                time=datetime.now(UTC),
                actor=caller.actor,
                peer=caller.peer,
                certificate_fingerprint=caller.certificate_fingerprint,
                request_id=request_id,
                parameters=parameters,
            )
        )
        if parameters is not None:  # who asks now means the VM as it is now; see `joined`
            self.bind()

    def bind(self) -> None:
        """Let the operation be for the present boot of its VM; durable with its next step."""
        self.operation = meant_for(self.operation, self.vm)

    async def ended(self) -> Operation:
        """Wait until it is over and return it; raises as `follow`."""
        return [operation async for operation in self.follow()][-1]

    def place(self, place: int) -> None:
        """Tell its place among those that wait for their turn."""
        self._course.place(place)

    def escalate(self) -> None:
        """Use force from now on, whatever is being waited for: somebody joined who wants it."""
        was_due = self.force_is_due
        self.operation = replace(self.operation, escalated=True)
        self._force_wanted = True
        if self.force_is_due and not was_due:
            self._interrupt()

    def cancel(self, why: VmagentdError) -> None:
        """End the operation, whatever is being waited for. What libvirt does it goes on doing.

        Of several reasons the first one stands: it may have been acted upon.
        """
        self._cancelled = self._cancelled or why
        self._interrupt()

    def abandon(self, why: VmagentdError) -> None:
        """Let go of those who still follow. The operation stays as it is in the journal."""
        self._course.abandon(why)
        self.over.set()

    def leave(self) -> None:
        """Let another start have the turn of this one, once libvirt has answered it.

        At its deadline at the latest: those that hang must not keep all others waiting.
        """
        claim, self.claim = self.claim, None
        if claim is None:
            return
        if self.starting is None:
            self.starts.leave(claim)
        else:
            self.starting.add_done_callback(lambda _: self.starts.leave(claim))
            asyncio.get_running_loop().call_at(self.deadline, self.starts.leave, claim)

    # For the task that carries it out.

    async def accept(self, opening: OperationPhase | None = None) -> None:
        """Commit the operation, with its first step if it has an *opening*: it is promised now."""
        self.operation = accepted = meant_for(self.operation, self.vm)
        if opening is not None:
            self.operation = step(accepted, opening, time=datetime.now(UTC))
            self.opened = True
        begin = asyncio.get_running_loop().time()
        failpoint("before", accepted.phase)
        await self._journal.accept(self.operation)
        failpoint("after", accepted.phase)
        self._course.tell(accepted)
        if opening is not None:
            failpoint("after", opening)
            self._course.tell(self.operation)
            await self._look_if_late(begin)

    async def step(self, phase: OperationPhase) -> None:
        """Take a step; it is committed, then told. What was known before may be old then."""
        begin = asyncio.get_running_loop().time()
        failpoint("before", phase)
        self.operation = step(self.operation, phase, time=datetime.now(UTC))
        await self._journal.append(self.operation)
        failpoint("after", phase)
        self._course.tell(self.operation)
        await self._look_if_late(begin)

    async def _look_if_late(self, begin: float) -> None:
        """Look, if a commit took long: what has happened since its *begin* is not shown by it."""
        if asyncio.get_running_loop().time() > begin + EVENT_DUE_S:
            await self.look_if_possible()

    async def while_open(self, work: Awaitable[OperationOutcome]) -> OperationOutcome | None:
        """Return what comes of *work*; None as soon as the operation has ended in the journal.

        There it ends with what its VM becomes, whatever is being waited for here.
        """
        still_open = Bound()
        async with still_open:
            self._journal.ended.on_end(self.operation.id, still_open.end)
            return await work
        return None

    async def end(
        self,
        phase: OperationPhase,
        *,
        outcome: OperationOutcome | None = None,
        failure: OperationFailure | None = None,
    ) -> None:
        """Commit its end, unless it has ended in the journal by now."""
        if not self.concluded:
            failpoint("before", phase)
            now = datetime.now(UTC)
            self.operation = end(self.operation, phase, time=now, outcome=outcome, failure=failure)
            await self._journal.append(self.operation)

    def conclude(self) -> None:
        """Tell its end as the journal has it."""
        self.operation = self._journal.ended.take(self.operation.id)
        failpoint("after", self.operation.phase)
        self._course.tell(self.operation)
        self.over.set()

    def answered(self) -> None:
        """Tell the journal that libvirt did what it was asked for. From any thread."""
        operation, now = self.operation, datetime.now(UTC)
        self._journal.record(Answered(vm=operation.vm, operation=operation.id, time=now))

    def check(self) -> None:
        """Raise why the operation was cancelled, if it was."""
        if self._cancelled is not None:
            raise self._cancelled

    def until(self, time: float) -> Bound:
        """Bound what is awaited inside by *time* (the loop's), an escalation or a cancellation.

        Ends quietly whichever of them comes: look at what holds afterwards. A cancellation may
        have come before, when nobody was waiting; of an escalation look at what holds first.
        """
        cancelled = self._cancelled is not None
        self._bound = Bound(asyncio.get_running_loop().time() if cancelled else time)
        return self._bound

    async def was_blind(self, since: datetime) -> bool:
        """Whether libvirt could not be asked at some time after *since*."""
        return await self._journal.was_blind(since)

    async def look(self) -> Vm:
        """Ask libvirt for the VM, and return it as the journal has it after the answer.

        Raises:
            HypervisorError: libvirt could not be asked.
        """
        query = await self.domains.look_up(self.operation.vm, source=Source.OPERATION)
        await self._journal.append(query)
        return self.vm

    async def look_in_time(self, until: float | None = None) -> Vm:
        """Ask libvirt for the VM as soon as it can be asked; return it as the journal has it then.

        Args:
            until: how long that may take, in the loop's time; the deadline if None.

        Raises:
            OutcomeUnknown: it cannot be asked in time, so nobody knows what came of the operation.
            HypervisorError: libvirt does not tell.
        """
        loop, give_up = asyncio.get_running_loop(), self.deadline if until is None else until
        while loop.time() < give_up:
            cursor = self.cursor()
            with suppress(LibvirtUnreachable):
                return await self.look()
            async with self.until(min(give_up, loop.time() + EVENT_DUE_S)):
                await cursor.reached(lambda _: True)
            self.check()
        return await self.look_if_possible(at_last=True)

    async def look_if_possible(self, *, at_last: bool = False) -> Vm:
        """Ask libvirt for the VM if it can be asked, and return it as the journal has it.

        Raises:
            OutcomeUnknown: it cannot be asked *at_last*: there is no time to wait until it can,
                so nobody knows what came of the operation.
        """
        try:
            return await self.look()
        except HypervisorError as error:
            if at_last:
                call = self.operation.verb.lower()
                raise OutcomeUnknown(self.vm, call, str(error)) from error
            fields = log_fields(self.operation)
            log.info("%s: could not be asked: %s", self.vm.name, error, extra=fields)
            return self.vm

    def cursor(self) -> Cursor:
        """Return what sees all that happens to the VM after what `vm` tells now."""
        return Cursor(self._journal, self.operation.vm)

    def _interrupt(self) -> None:
        if self._bound is not None:
            self._bound.end()
