"""How a VM is stopped: the guest is asked, again and again; then, if so wished, it is forced."""

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING

from vmagentd.errors import (
    ForceTimedOut,
    GraceExpired,
    LibvirtBusy,
    LibvirtInvalidState,
    LibvirtUnreachable,
    OutcomeUnknown,
    VmCrashed,
    VmInState,
    VmNotFound,
    VmPaused,
    VmSleeping,
)
from vmagentd.model import OnGraceExpired, OperationOutcome, OperationPhase, VmState
from vmagentd.operations.run import EVENT_DUE_S

if TYPE_CHECKING:
    from datetime import timedelta

    from vmagentd.model import StopParameters, Vm
    from vmagentd.operations.run import Run

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class StopTimes:
    """How often a guest is asked, and how long a forced VM may take to be off."""

    press_interval: timedelta
    force_timeout: timedelta


async def stop(run: Run, parameters: StopParameters, times: StopTimes) -> OperationOutcome:
    """Stop the VM of *run*; return once the journal has it off.

    Raises:
        VmagentdError: it is not off, and why.
    """
    if run.predecessor is not None:
        await _end_start(run, run.predecessor, times)
    vm = await run.look()
    if not vm.active:
        return OperationOutcome.ALREADY_DONE
    if not run.forced:
        _refuse(vm)
    if run.forced or not await _ask_guest(run, parameters, times):
        await _force(run, times)
    if not run.vm.persistent:
        await run.look_if_possible()  # gone with its process, and that is told before the answer
    return OperationOutcome.DONE


def _refuse(vm: Vm) -> None:
    """Raise if a guest cannot react in its VM's state."""
    match vm.state:
        case VmState.PAUSED:
            raise VmPaused(vm)
        case VmState.SLEEPING:
            raise VmSleeping(vm)
        case VmState.CRASHED:
            raise VmCrashed(vm)
        case VmState.UNRECOGNIZED:
            raise VmInState(vm)
        case _:
            return


async def _ask_guest(run: Run, parameters: StopParameters, times: StopTimes) -> bool:
    """Ask the guest until it reacts, and wait until the VM is off.

    Returns:
        Whether the VM is off; if not, it is to be forced.

    Raises:
        GraceExpired: it is not off in time and is to be left alone.
    """
    loop = asyncio.get_running_loop()
    next_press = loop.time()
    while True:
        vm = run.vm
        run.check()
        if not vm.active or run.forced:
            return not vm.active
        if loop.time() >= run.deadline:
            return await _on_grace_expired(run, parameters)
        wake = run.deadline
        if vm.state is VmState.RUNNING:  # it does not react yet, or runs again
            if loop.time() >= next_press:
                next_press = loop.time() + times.press_interval.total_seconds()
                await _press(run)
                continue  # who interrupted meanwhile found nobody waiting
            wake = min(wake, next_press)
        elif vm.state is VmState.STOPPING and run.operation.phase is OperationPhase.SIGNALLED:
            await run.step(OperationPhase.WAITING)
            continue
        async with run.until(wake):
            await run.reached(vm.revision, lambda _: True)


async def _press(run: Run) -> None:
    """Ask the guest once. What cannot be said now is asked again at the next press."""
    try:
        asked = False
        async with run.until(run.deadline):
            await run.domains.shutdown(run.operation.vm)
            asked = True
        if asked:
            await run.step(OperationPhase.SIGNALLED)
    except (VmNotFound, LibvirtInvalidState):
        await run.look()
    except (LibvirtBusy, LibvirtUnreachable, OutcomeUnknown) as error:
        log.info("stop %s: asked without an answer: %s", run.vm.name, error)


async def _on_grace_expired(run: Run, parameters: StopParameters) -> bool:
    vm = await run.look_if_possible()
    if not vm.active:
        return True
    if parameters.on_grace_expired is OnGraceExpired.FAIL:
        raise GraceExpired(vm, parameters.grace_period)
    return False


async def _force(run: Run, times: StopTimes) -> None:
    """Force the VM off, and wait until the journal has it off.

    Raises:
        ForceTimedOut: it is not, after all the time it may take.
    """
    loop = asyncio.get_running_loop()
    give_up = loop.time() + times.force_timeout.total_seconds()
    while True:
        run.check()
        after = run.vm.revision
        told = run.begin(OperationPhase.FORCING)
        try:
            async with run.until(give_up):
                await run.domains.destroy(run.operation.vm)
        except (VmNotFound, LibvirtInvalidState):
            await run.look()
        except (LibvirtBusy, LibvirtUnreachable, OutcomeUnknown) as error:
            log.warning("stop %s: forced without an answer: %s", run.vm.name, error)
        finally:
            await told
        if run.vm.active:
            async with run.until(min(give_up, loop.time() + EVENT_DUE_S)):
                await run.reached(after, lambda vm: not vm.active)
        vm = run.vm if not run.vm.active else await run.look_if_possible()
        if not vm.active:
            return
        if loop.time() >= give_up:
            raise ForceTimedOut(vm)


async def _end_start(run: Run, starting: asyncio.Task[object], times: StopTimes) -> None:
    """Wait until libvirt has answered a start that this Stop cancelled.

    Before that the VM may be off and still come up. A forced Stop breaks the start off; else
    what has been started is asked to shut down.
    """
    loop = asyncio.get_running_loop()
    give_up = loop.time() + times.force_timeout.total_seconds()
    while not starting.done() and loop.time() < (give_up if run.forced else run.deadline):
        wake = run.deadline
        if run.forced:
            wake = loop.time() + EVENT_DUE_S / 4
            try:
                await run.domains.destroy(run.operation.vm)
            except (VmNotFound, LibvirtInvalidState, LibvirtBusy, OutcomeUnknown) as error:
                log.debug("stop %s: breaking the start off: %s", run.vm.name, error)
        async with run.until(wake):
            await asyncio.wait([starting])
        run.check()
