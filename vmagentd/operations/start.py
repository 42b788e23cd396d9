"""How a VM is started."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from typing import TYPE_CHECKING

from vmagentd.errors import (
    LibvirtInvalidState,
    LibvirtRefused,
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
from vmagentd.model import OperationOutcome, OperationPhase, StartParameters, VmState
from vmagentd.operations.run import EVENT_DUE_S

if TYPE_CHECKING:
    from vmagentd.hypervisor.domains import Domains
    from vmagentd.model import Revision, Vm
    from vmagentd.operations.run import Run


async def start(run: Run, parameters: StartParameters) -> OperationOutcome:
    """Start the VM of *run*; return once the journal has it running.

    Raises:
        VmagentdError: it does not run, and why.
    """
    vm = await run.look()
    if _is_up(vm, parameters):
        return OperationOutcome.ALREADY_DONE
    _refuse(vm, parameters)
    after = run.head
    answered = not vm.active and await _call(run, parameters)
    await _arrive(run, parameters, vm.incarnation, after=after, answered=answered)
    return OperationOutcome.DONE


async def resume_start(run: Run, parameters: StartParameters) -> OperationOutcome:
    """Settle a Start that an earlier daemon began. It is never repeated.

    Raises:
        OperationInterrupted: it did not take effect.
    """
    vm = await run.look()
    asked = run.operation.phase is not OperationPhase.ACCEPTED
    if asked and _is_up(vm, parameters):
        return OperationOutcome.DONE
    if not asked or not vm.active:
        raise OperationInterrupted(vm.uuid, run.operation.id)
    await _arrive(run, parameters, vm.incarnation, after=vm.revision, answered=False)
    return OperationOutcome.DONE


def _is_up(vm: Vm, parameters: StartParameters) -> bool:
    return vm.state is VmState.RUNNING or (parameters.paused and vm.state is VmState.PAUSED)


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
    """Have libvirt start the VM; return whether libvirt says that it did, or is silent."""
    run.check()
    told = run.begin(OperationPhase.STARTING)
    loop = asyncio.get_running_loop()
    allowed = timedelta(seconds=max(run.deadline - loop.time(), 0))
    run.call = call = loop.create_task(_answer(run.domains, run, parameters, allowed))
    async with run.until(run.deadline):
        await asyncio.shield(call)
    await told
    run.check()
    error = call.result() if call.done() else None
    match error:
        case None:
            return call.done()
        case OutcomeUnknown():
            await run.step(OperationPhase.WAITING)
            return False
        case LibvirtInvalidState():  # somebody else was faster, or it is no longer off
            vm = await run.look()
            if not vm.active:
                raise VmInState(vm) from error
            return False
        case VmNotFound():
            raise VmNotFound(run.vm.uuid, await run.look()) from error
        case LibvirtRefused():
            vm = await run.look()
            raise StartFailed(vm, error.code, error.domain, error.message) from error
        case _:
            raise error


async def _answer(
    domains: Domains, run: Run, parameters: StartParameters, allowed: timedelta
) -> VmagentdError | None:
    """Return libvirt's answer to the start, an error too: it may be read later, or never."""
    try:
        await domains.start(
            run.operation.vm,
            paused=parameters.paused,
            discard_saved_state=parameters.discard_saved_state,
            deadline=allowed,
        )
    except VmagentdError as error:
        return error
    return None


async def _arrive(
    run: Run, parameters: StartParameters, incarnation: int, *, after: Revision, answered: bool
) -> None:
    """Wait until the VM is up.

    Args:
        run: the Start.
        parameters: what is up.
        incarnation: the VM's before the start: a later one that is off has come and gone.
        after: transitions after this one count.
        answered: libvirt says that it has started the VM, so one that is off has ended since.

    Raises:
        StartTimedOut: it is not up in time.
        StartFailed: it came and went before the guest ran.
    """

    def over(vm: Vm) -> bool:
        return _is_up(vm, parameters) or (not vm.active and vm.incarnation > incarnation)

    loop = asyncio.get_running_loop()
    while True:
        async with run.until(min(run.deadline, loop.time() + EVENT_DUE_S)):
            vm = await run.reached(after, over)
            break
        run.check()
        vm = await run.look_if_possible()
        if over(vm) or (answered and not vm.active):
            break
        if loop.time() >= run.deadline:
            raise StartTimedOut(vm, parameters.timeout)
    if not _is_up(vm, parameters):
        raise StartFailed(vm, 0, 0, f"it ended at once: {vm.state}, {vm.reason}")
