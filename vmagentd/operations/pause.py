"""How a VM is paused and resumed: one call, after which the journal must have it so.

To ask twice is to ask once, so one that an earlier daemon began goes on, unless the VM was started
anew since.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from vmagentd.errors import (
    LibvirtInvalidState,
    LibvirtRefused,
    OperationTimedOut,
    OutcomeUnknown,
    VmCrashed,
    VmInState,
    VmNotFound,
    VmSleeping,
)
from vmagentd.model import OperationOutcome, OperationPhase, VmState
from vmagentd.operations.asking import refuse_outlived
from vmagentd.operations.run import EVENT_DUE_S

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from vmagentd.model import PauseParameters, ResumeParameters, Vm
    from vmagentd.operations.cursor import Cursor
    from vmagentd.operations.run import Run

_RESUMABLE = (VmState.PAUSED, VmState.SLEEPING)


def open_pause(run: Run, _parameters: PauseParameters) -> OperationPhase | None:
    """Pause a VM at once that runs."""
    return OperationPhase.APPLYING if run.vm.state is VmState.RUNNING else None


async def pause(run: Run, parameters: PauseParameters) -> OperationOutcome:
    """Pause the VM of *run*; return once the journal has it paused.

    Raises:
        VmagentdError: it is not, and why.
    """
    if not run.opened:
        await run.look()
        run.bind()  # the journal may have been behind as it was accepted
    return await _bring(run, parameters, VmState.PAUSED, _refuse_pause)


async def go_on_pause(run: Run, parameters: PauseParameters) -> OperationOutcome:
    """Go on with a Pause that an earlier daemon began; errors as `pause`.

    Raises:
        OperationInterrupted: the VM was started anew since.
    """
    await run.look_in_time()
    refuse_outlived(run)
    return await _bring(run, parameters, VmState.PAUSED, _refuse_pause)


def open_resume(run: Run, _parameters: ResumeParameters) -> OperationPhase | None:
    """Have a guest run on at once that is paused or sleeps."""
    return OperationPhase.APPLYING if run.vm.state in _RESUMABLE else None


async def resume(run: Run, parameters: ResumeParameters) -> OperationOutcome:
    """Have the guest of *run* run on, or wake up; return once the journal has it running.

    Raises:
        VmagentdError: it does not run, and why.
    """
    if not run.opened:
        await run.look()
        run.bind()
    return await _bring(run, parameters, VmState.RUNNING, _refuse_resume)


async def go_on_resume(run: Run, parameters: ResumeParameters) -> OperationOutcome:
    """Go on with a Resume that an earlier daemon began; errors as `resume` and `go_on_pause`."""
    await run.look_in_time()
    refuse_outlived(run)
    return await _bring(run, parameters, VmState.RUNNING, _refuse_resume)


def _refuse_pause(vm: Vm) -> None:
    if vm.state is VmState.SLEEPING:
        raise VmSleeping(vm)
    _refuse(vm, VmState.RUNNING)


def _refuse_resume(vm: Vm) -> None:
    _refuse(vm, *_RESUMABLE)


def _refuse(vm: Vm, *possible: VmState) -> None:
    match vm.state:
        case VmState.GONE:
            raise VmNotFound(vm.uuid, vm)
        case VmState.CRASHED if vm.active:
            raise VmCrashed(vm)
        case state if state not in possible:
            raise VmInState(vm)
        case _:
            return


async def _bring(
    run: Run,
    parameters: PauseParameters | ResumeParameters,
    state: VmState,
    refuse: Callable[[Vm], None],
) -> OperationOutcome:
    """Have libvirt bring the VM into *state*, and wait until the journal has it there.

    It was looked at before, unless the operation was opened by what is known.

    Raises:
        OperationTimedOut: it is not, in time.
        LibvirtUnreachable: likewise, and libvirt was never given it.
        LibvirtBusy: likewise.
        OutcomeUnknown: nor can libvirt be asked then.
        VmInState: it is off, or was not as it had to be.
    """
    if not run.opened:
        vm = run.vm
        if vm.state is state:
            return run.holds()
        refuse(vm)
        if not run.time_left:  # of an earlier daemon's: who asked for it was to be told long ago
            raise OperationTimedOut(vm, parameters.verb, parameters.timeout)
        await run.step(OperationPhase.APPLYING)
    run.check()
    refuse_outlived(run)
    if run.vm.state is not state:  # else libvirt refuses, or has nothing to do
        refuse(run.vm)
    cursor, silent = run.cursor(), False
    try:
        async with run.until(run.deadline + EVENT_DUE_S):  # at its own deadline it tells more
            await _call(run, state)(run.operation.vm, deadline=run.time_left)
    except (VmNotFound, LibvirtInvalidState) as error:
        vm = await run.look_in_time()
        if vm.state is state:
            return run.holds()
        refuse(vm)
        raise VmInState(vm) from error
    except LibvirtRefused as error:
        if (await run.look_in_time()).active:
            raise
        raise VmInState(run.vm) from error
    except OutcomeUnknown:
        silent = True
    if silent:
        await run.step(OperationPhase.WAITING)

    def settled(vm: Vm) -> bool:
        return vm.state is state or not vm.active

    vm = await _settle(run, settled, cursor)
    if not settled(vm):
        raise OperationTimedOut(vm, parameters.verb, parameters.timeout)
    if vm.state is not state:
        raise VmInState(vm)
    return OperationOutcome.DONE


async def _settle(run: Run, settled: Callable[[Vm], bool], cursor: Cursor) -> Vm:
    """Wait until *cursor* sees a transition that makes the VM *settled*, or the deadline.

    An event that is missing for EVENT_DUE_S is looked for. Returns the VM as it was then.

    Raises:
        OutcomeUnknown: at the deadline libvirt cannot be asked.
    """
    loop = asyncio.get_running_loop()
    while True:
        async with run.until(min(run.deadline, loop.time() + EVENT_DUE_S)):
            return await cursor.reached(settled)
        run.check()
        late = loop.time() >= run.deadline
        vm = await run.look_if_possible(at_last=late)
        if settled(vm) or late:
            return vm


def _call(run: Run, state: VmState) -> Callable[..., Awaitable[None]]:
    """Return the call of libvirt that brings the VM into *state*."""
    if state is VmState.PAUSED:
        return run.domains.pause
    return run.domains.wake if run.vm.state is VmState.SLEEPING else run.domains.resume
