"""How a VM is stopped: the guest is asked, again and again; then, if so wished, it is forced."""

from __future__ import annotations

import asyncio
import logging
from datetime import timedelta
from typing import TYPE_CHECKING

from vmagentd.errors import (
    ForceTimedOut,
    LibvirtBusy,
    LibvirtInvalidState,
    LibvirtRefused,
    LibvirtUnreachable,
    OutcomeUnknown,
    VmCrashed,
    VmNotFound,
)
from vmagentd.lifecycle.steps import is_outlived
from vmagentd.model import OnGraceExpired, OperationOutcome, OperationPhase, VmState
from vmagentd.operations.asking import grace_expired, press, refuse_outlived, refuse_unheard
from vmagentd.operations.logged import log_fields
from vmagentd.operations.run import EVENT_DUE_S

if TYPE_CHECKING:
    from vmagentd.errors import VmagentdError
    from vmagentd.model import StopParameters, Vm
    from vmagentd.operations.run import Run
    from vmagentd.operations.starts import StartCall

log = logging.getLogger(__name__)

# How libvirt says that there is no process that could be forced off.
_NOT_UP = (VmNotFound, LibvirtInvalidState)


def open_stop(run: Run, _parameters: StopParameters) -> OperationPhase | None:
    """Force a VM off at once that is up, if that is what is asked for."""
    at_once = run.forced and run.vm.active and run.starting is None
    return OperationPhase.FORCING if at_once else None


async def stop(run: Run, parameters: StopParameters) -> OperationOutcome:
    """Stop the VM of *run*; return once the journal has it off.

    Raises:
        VmagentdError: it is not off, and why.
    """
    if not run.opened:
        await _look(run, parameters)
    return await _bring_off(run, parameters)


async def _look(run: Run, parameters: StopParameters) -> Vm:
    """Look at the VM, once libvirt has answered a start that it was given before.

    Raises:
        OutcomeUnknown: it has not, and the VM is off; or it cannot be asked in all the time.
    """
    answered = await _end_start(run, parameters)
    give_up = run.deadline
    if run.forced or parameters.on_grace_expired is OnGraceExpired.FORCE:
        begin = max(give_up, asyncio.get_running_loop().time())
        give_up = begin + run.times.force_timeout.total_seconds()
    vm = await run.look_in_time(give_up)
    if not answered and not vm.active:
        raise OutcomeUnknown(vm, "start", "libvirt has it and does not answer")
    return vm


async def _bring_off(run: Run, parameters: StopParameters) -> OperationOutcome:
    """Have the VM go off; it was looked at before, unless the Stop was opened by what is known."""
    if not run.opened:
        if not run.vm.active:
            return run.holds()
        run.bind()  # the journal may have been behind as it was accepted
    if not run.forced:
        refuse_unheard(run.vm)
    outcome = OperationOutcome.DONE
    if run.forced or not await _ask_guest(run, parameters):
        outcome = await _force(run)
    if not run.vm.persistent:
        await run.look_if_possible()  # gone with its process, and that is told before the answer
    return outcome


async def go_on_stop(run: Run, parameters: StopParameters) -> OperationOutcome:
    """Go on with a Stop that had begun, unless the VM was started anew since.

    Whoever asked meant the boot of then, which has ended; nobody asked for this one to end.

    Raises:
        OperationInterrupted: it was started anew, and nothing had been done to end it.
        VmagentdError: it is not off, and why.
    """
    vm = await _look(run, parameters)
    if not (vm.active and is_outlived(run.operation, vm)):
        return await _bring_off(run, parameters)
    if run.operation.phase is OperationPhase.ACCEPTED:
        refuse_outlived(run)
    return OperationOutcome.DONE


def _is_off(run: Run) -> bool:
    """Whether the VM has gone off since it was asked for, be it up again."""
    return not run.vm.active or is_outlived(run.operation, run.vm)


async def _ask_guest(run: Run, parameters: StopParameters) -> bool:
    """Ask the guest until it reacts, and wait until the VM is off.

    Returns:
        Whether the VM is off; if not, it is to be forced.

    Raises:
        GraceExpired: it is not off in time and is to be left alone.
    """
    loop = asyncio.get_running_loop()
    next_press = loop.time()
    while True:
        vm, cursor = run.vm, run.cursor()
        run.check()
        if _is_off(run) or run.forced:
            return _is_off(run)
        if loop.time() >= run.deadline:
            await grace_expired(run, parameters)
            return _is_off(run)
        wake = run.deadline
        if vm.state is VmState.RUNNING:  # it does not react yet, or runs again
            if loop.time() >= next_press:
                await press(run, run.domains.shutdown)
                # from its end on: an agent that is silent is given some seconds
                next_press = loop.time() + run.times.press_interval.total_seconds()
                continue  # who interrupted meanwhile found nobody waiting
            wake = min(wake, next_press)
        elif vm.state is VmState.STOPPING and run.operation.phase is not OperationPhase.WAITING:
            await run.step(OperationPhase.WAITING)
            continue
        elif vm.state is VmState.CRASHED:
            raise VmCrashed(vm)  # it will never react
        async with run.until(wake):
            await cursor.reached(lambda _: True)


async def _force(run: Run) -> OperationOutcome:
    """Force the VM off, and wait until the journal has it off.

    Raises:
        ForceTimedOut: it is not, after all the time it may take.
        LibvirtUnreachable: likewise, and libvirt was never given it.
        LibvirtBusy: likewise.
        OperationInterrupted: it was started anew before anything was done to end it.
        OutcomeUnknown: libvirt cannot be asked then.
    """
    untouched = run.opened  # so far
    # by an earlier daemon, perhaps, or to break a start off
    given = not untouched and run.operation.phase is OperationPhase.FORCING
    if run.opened:
        refuse_outlived(run)  # its commit may have waited for the disk, as that of each step
    else:
        await run.step(OperationPhase.FORCING)
    loop = asyncio.get_running_loop()
    give_up = loop.time() + run.times.force_timeout.total_seconds()
    while True:
        run.check()
        if _is_off(run):
            return run.holds() if untouched else OperationOutcome.DONE
        cursor = run.cursor()
        refusal = await _destroy(run, give_up)
        if untouched and isinstance(refusal, _NOT_UP) and not run.vm.active:
            return run.holds()
        untouched, given = False, given or refusal is None
        if run.vm.active:
            async with run.until(min(give_up, loop.time() + EVENT_DUE_S)):
                await cursor.reached(lambda vm: not vm.active)
        late = loop.time() >= give_up
        if run.vm.active:
            await run.look_if_possible(at_last=late)
        if _is_off(run):
            return OperationOutcome.DONE
        if late:
            raise refusal if refusal is not None and not given else ForceTimedOut(run.vm)
        await run.step(OperationPhase.FORCING)


async def _destroy(run: Run, give_up: float) -> VmagentdError | None:
    """Have libvirt force the VM off; return why it has not, None if it has or nobody knows.

    Raises:
        LibvirtRefused: it does not, and the VM is not off.
        OutcomeUnknown: it does not, and cannot be asked for the VM in time.
    """
    left = timedelta(seconds=give_up - asyncio.get_running_loop().time())
    try:
        async with run.until(give_up + EVENT_DUE_S):  # at its own deadline it tells more
            await run.domains.destroy(run.operation.vm, deadline=left, answered=run.answered)
    except _NOT_UP as error:
        await run.look_in_time(give_up)
        return error
    except LibvirtRefused as error:
        if (await run.look_in_time(give_up)).active:
            raise
        return error
    except (LibvirtBusy, LibvirtUnreachable, OutcomeUnknown) as error:
        fields = log_fields(run.operation)
        log.warning("stop %s: forced without an answer: %s", run.vm.name, error, extra=fields)
        return None if isinstance(error, OutcomeUnknown) else error
    return None


async def _end_start(run: Run, parameters: StopParameters) -> bool:
    """Wait until libvirt has answered a start that it was given before; return whether it has.

    Before that the VM may be off and still come up. Force breaks the start off; else what has
    been started is asked to shut down.
    """
    if (starting := run.starting) is None:
        return True
    if not run.forced:
        async with run.until(run.deadline):
            await asyncio.wait([starting])
        run.check()
    alone = not run.forced and parameters.on_grace_expired is OnGraceExpired.FAIL
    if alone or starting.done():
        return starting.done()
    return await _break_off(run, starting)


async def _break_off(run: Run, starting: StartCall) -> bool:
    """Force off whatever a start brings up, until libvirt has answered that; whether it has."""
    loop = asyncio.get_running_loop()
    give_up = loop.time() + run.times.force_timeout.total_seconds()
    if run.operation.phase is not OperationPhase.FORCING:
        await run.step(OperationPhase.FORCING)
    while True:
        run.check()  # nobody was waiting who could be interrupted
        try:
            async with run.until(give_up):
                await run.domains.destroy(run.operation.vm)
        except (
            *_NOT_UP,
            LibvirtBusy,
            LibvirtRefused,  # its process may be ending just now
            LibvirtUnreachable,
            OutcomeUnknown,
        ) as error:
            log.debug("stop %s: breaking the start off: %s", run.vm.name, error)
        async with run.until(min(give_up, loop.time() + EVENT_DUE_S / 4)):
            await asyncio.wait([starting])
        run.check()
        if starting.done() or loop.time() >= give_up:
            return starting.done()
