"""How a VM is started."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from vmagentd.errors import (
    LibvirtInvalidState,
    LibvirtRefused,
    LibvirtUnreachable,
    OperationInterrupted,
    OutcomeUnknown,
    StartFailed,
    StartTimedOut,
    VmagentdError,
    VmCrashed,
    VmInState,
    VmMigratedAway,
    VmNotFound,
    VmPaused,
    VmSleeping,
)
from vmagentd.lifecycle.steps import is_up
from vmagentd.model import OperationOutcome, OperationPhase, StartParameters, VmState
from vmagentd.operations.run import EVENT_DUE_S
from vmagentd.pool import Leave

if TYPE_CHECKING:
    from vmagentd.model import Vm
    from vmagentd.operations.cursor import Cursor
    from vmagentd.operations.run import Run
    from vmagentd.operations.starts import StartCall


# Phases of before libvirt is asked.
_BEFORE = frozenset({OperationPhase.ACCEPTED, OperationPhase.QUEUED})


def open_start(run: Run, parameters: StartParameters) -> OperationPhase | None:
    """Start a VM at once that is off, if it is its turn."""
    try:
        _refuse(run.vm, parameters)
        run.starts.check(run.vm)
    except VmagentdError:
        return None
    if run.vm.active or run.starting is not None or not run.starts.free:
        return None
    run.claim = run.starts.claim(run.operation, run.place)
    return OperationPhase.STARTING


async def start(run: Run, parameters: StartParameters) -> OperationOutcome:
    """Start the VM of *run*; return once the journal has it running.

    Raises:
        VmagentdError: it does not run, and why.
    """
    if not run.opened:
        await _await_earlier(run, parameters)
        vm = await run.look()
        if is_up(vm, parameters):
            return OperationOutcome.ALREADY_DONE
        _refuse(vm, parameters)
        if not vm.active:  # else somebody else is starting it
            await _take_turn(run, parameters)
            vm = run.vm  # it may have waited
            if is_up(vm, parameters):
                return OperationOutcome.ALREADY_DONE
            _refuse(vm, parameters)
        if vm.active:
            await _arrive(run, parameters, vm.incarnation, run.cursor(), answered=False)
            return OperationOutcome.DONE
        await run.step(OperationPhase.STARTING)
    run.check()
    if is_up(run.vm, parameters):  # what was committed last may have waited for the disk
        return OperationOutcome.ALREADY_DONE
    _refuse(run.vm, parameters)
    cursor, incarnation = run.cursor(), run.vm.incarnation
    try:
        answered = await _call(run, parameters)
    except LibvirtInvalidState as error:  # somebody was faster, or it is not as it was
        vm = await run.look_in_time()
        if is_up(vm, parameters):
            return OperationOutcome.ALREADY_DONE
        _refuse(vm, parameters)
        if not vm.active:
            raise VmInState(vm) from error
        answered = False
    await _arrive(run, parameters, incarnation, cursor, answered=answered)
    return OperationOutcome.DONE


async def go_on_start(run: Run, parameters: StartParameters) -> OperationOutcome:
    """Settle a Start that an earlier daemon began. It is never repeated.

    Raises:
        OperationInterrupted: it did not take effect.
        OutcomeUnknown: libvirt cannot be asked in time.
    """
    vm = await run.look_in_time()
    if is_up(vm, parameters):
        return OperationOutcome.DONE
    coming = vm.state is VmState.STARTING or run.operation.phase not in _BEFORE
    if not vm.active or not coming:
        raise OperationInterrupted(vm, run.operation.id)
    # libvirt has begun: it is counted and does not wait
    run.claim = run.starts.claim(run.operation, run.place, now=True)
    await _arrive(run, parameters, vm.incarnation, run.cursor(), answered=False)
    return OperationOutcome.DONE


async def _await_earlier(run: Run, parameters: StartParameters) -> None:
    """Wait until libvirt has answered a start that it was given before, unless the VM is up.

    Another one beside it could come after a Stop that has seen the first one's end.

    Raises:
        StartTimedOut: it has not in time, and the VM is not up.
        OutcomeUnknown: nor can libvirt be asked then.
    """
    if (earlier := run.starting) is None or is_up(run.vm, parameters):
        return
    async with run.until(run.deadline):
        await asyncio.wait([earlier])
    run.check()
    if not earlier.done():
        vm = await run.look_if_possible(at_last=True)
        if not is_up(vm, parameters):
            raise StartTimedOut(vm, parameters.timeout)


async def _take_turn(run: Run, parameters: StartParameters) -> None:
    """Wait for the turn of *run* among the starts of the host; it lasts as long as the run.

    Raises:
        HostLimitReached: the host's VMs would use more than they may.
        StartTimedOut: its turn has not come in time.
    """
    run.starts.check(run.vm)
    run.claim = claim = run.starts.claim(run.operation, run.place)
    if claim.turn.is_set():
        return
    await run.step(OperationPhase.QUEUED)
    async with run.until(run.deadline):
        await claim.turn.wait()
    run.check()
    if not claim.turn.is_set():
        raise StartTimedOut(run.vm, parameters.timeout, asked=False)
    run.starts.check(run.vm)


def _refuse(vm: Vm, parameters: StartParameters) -> None:
    """Raise if a VM that is not up cannot be started from its state."""
    match vm.state:
        case VmState.GONE:
            raise VmNotFound(vm.uuid, vm)
        case VmState.PAUSED:
            raise VmPaused(vm)
        case VmState.SLEEPING:
            raise VmSleeping(vm)
        case VmState.CRASHED if vm.active:
            raise VmCrashed(vm)
        case VmState.STOPPING | VmState.UNRECOGNIZED:
            raise VmInState(vm)
        case VmState.MIGRATED_AWAY if not parameters.force:
            raise VmMigratedAway(vm)
        case _:
            return


async def _call(run: Run, parameters: StartParameters) -> bool:
    """Have libvirt start the VM; return whether libvirt says that it did, or is silent.

    Raises:
        LibvirtInvalidState: it is not off.
        LibvirtUnreachable: libvirt was not given the start in time, and never will be.
        StartTimedOut: the time was over before, while something was committed.
        VmagentdError: it is not started.
    """
    if not run.time_left:
        raise StartTimedOut(run.vm, parameters.timeout, asked=False)
    leave = Leave()
    call = asyncio.get_running_loop().create_task(_answer(run, parameters, leave))
    run.starts.give(run.operation.vm, call)
    call.add_done_callback(lambda _: _leave_if_refused(run, call))
    given = True  # so far
    try:
        async with run.until(run.deadline):
            await asyncio.wait([call])
    finally:
        # whoever comes next need not reckon with what libvirt was not given by now
        if not call.done() and leave.take():
            given = False
            call.cancel()
    run.check()
    if not given:
        waited = f"{parameters.timeout.total_seconds():g} s"
        raise LibvirtUnreachable(f"no thread or no link was free within {waited}")
    error = call.result() if call.done() else None
    match error:
        case None:
            return call.done()
        case OutcomeUnknown():
            await run.step(OperationPhase.WAITING)
            return False
        case VmNotFound():
            raise VmNotFound(run.vm.uuid, await run.look_if_possible()) from error
        case LibvirtRefused():
            vm = await run.look_if_possible()
            raise StartFailed(vm, error.code, error.domain, error.message) from error
        case _:
            raise error


def _leave_if_refused(run: Run, call: StartCall) -> None:
    """Let others have its turn at once if it is certain that libvirt did not start the VM."""
    doubtful = (type(None), OutcomeUnknown, LibvirtInvalidState)
    if call.cancelled() or not isinstance(call.result(), doubtful):
        run.leave()


async def _answer(run: Run, parameters: StartParameters, leave: Leave) -> VmagentdError | None:
    """Return libvirt's answer to the start, an error too: it may be read later, or never."""
    try:
        await run.domains.start(
            run.operation.vm,
            paused=parameters.paused,
            discard_saved_state=parameters.discard_saved_state,
            leave=leave,
            answered=run.answered,
        )
    except VmagentdError as error:
        return error
    return None


async def _arrive(
    run: Run, parameters: StartParameters, incarnation: int, cursor: Cursor, *, answered: bool
) -> None:
    """Wait until the VM is up.

    Args:
        run: the Start.
        parameters: what is up.
        incarnation: the VM's before the start: a later one that is off has come and gone.
        cursor: sees what happens to the VM since the start.
        answered: libvirt says that it has started the VM, so one that is off has ended since.

    Raises:
        StartTimedOut: it is not up in time.
        OutcomeUnknown: nor can libvirt be asked then.
        StartFailed: it came and went before the guest ran.
    """

    def over(vm: Vm) -> bool:
        return is_up(vm, parameters) or (not vm.active and vm.incarnation > incarnation)

    loop = asyncio.get_running_loop()
    while True:
        async with run.until(min(run.deadline, loop.time() + EVENT_DUE_S)):
            vm = await cursor.reached(over)
            break
        run.check()
        late = loop.time() >= run.deadline
        vm = await run.look_if_possible(at_last=late)
        if over(vm) or (answered and not vm.active):
            break
        if late:
            raise StartTimedOut(vm, parameters.timeout)
    if not is_up(vm, parameters):
        raise StartFailed(vm, 0, 0, f"it ended at once: {vm.state}, {vm.reason}")
