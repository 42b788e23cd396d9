"""How a guest is rebooted: it is asked, again and again; then, if so wished, it is reset.

Nothing tells that a guest has heard its power button before it has shut down and libvirt resets
it. That it has come about is known by the journal: a REBOOT transition that this operation
brought about. It is asked again until then, not after.
"""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime
from functools import partial
from typing import TYPE_CHECKING

from vmagentd.errors import (
    LibvirtInvalidState,
    LibvirtRefused,
    OperationInterrupted,
    OutcomeUnknown,
    VmInState,
    VmNotFound,
)
from vmagentd.hypervisor.guest import AskMethod
from vmagentd.model import OperationOutcome, OperationPhase, Reason, VmState
from vmagentd.operations.asking import grace_expired, press, refuse_outlived, refuse_unheard
from vmagentd.operations.run import EVENT_DUE_S

if TYPE_CHECKING:
    from vmagentd.model import RebootParameters, Vm, VmUuid
    from vmagentd.operations.cursor import Cursor
    from vmagentd.operations.run import Run


async def reboot(run: Run, parameters: RebootParameters) -> OperationOutcome:
    """Reboot the guest of *run*; return once the journal has its reboot.

    Raises:
        VmagentdError: it did not reboot, and why.
    """
    vm = await run.look()
    _refuse(vm)
    run.bind()  # the journal may have been behind as it was accepted
    if run.forced or not await _ask_guest(run, parameters):
        await _reset(run)
    return OperationOutcome.DONE


async def go_on_reboot(run: Run, parameters: RebootParameters) -> OperationOutcome:
    """Settle a Reboot that had begun. The guest is not asked again, nor reset.

    It may have rebooted while nobody listened, and nothing would tell: once more would be twice.
    Who joins it and wants force wants it now, whatever came before: then the guest is reset.

    Raises:
        OperationInterrupted: the guest was not asked, or the VM was started anew since.
        OutcomeUnknown: it was, and nobody knows what came of it.
        VmagentdError: it is not reset, and why.
    """
    vm = await run.look_in_time()
    refuse_outlived(run)
    if not run.force_is_due:
        if run.operation.phase is OperationPhase.ACCEPTED:
            raise OperationInterrupted(vm, run.operation.id)
        if await _rebooted(run, run.cursor(), until=run.deadline):
            return OperationOutcome.DONE
        run.check()
    if not run.force_is_due:
        raise OutcomeUnknown(
            vm, parameters.verb.lower(), "the daemon was not there when it may have come"
        )
    _refuse(run.vm)
    await _reset(run)
    return OperationOutcome.DONE


def _refuse(vm: Vm) -> None:
    """Raise if the guest cannot reboot in its VM's state, not even by force.

    libvirt would reset a guest that is paused, sleeps or has crashed, and it would not run.
    """
    if vm.state is VmState.GONE:
        raise VmNotFound(vm.uuid, vm)
    if vm.active:
        refuse_unheard(vm)
    if vm.state is not VmState.RUNNING:
        raise VmInState(vm)


async def _ask_guest(run: Run, parameters: RebootParameters) -> bool:
    """Ask the guest until it has rebooted.

    Returns:
        Whether it has; if not, it is to be reset.

    Raises:
        GraceExpired: it has not in time and is to be left alone.
        OperationInterrupted: the VM was started anew.
        OutcomeUnknown: nobody looked for a while, and it may have.
        VmInState: it went off instead.
    """
    loop = asyncio.get_running_loop()
    cursor, next_press = run.cursor(), loop.time()
    begin_time, asked = datetime.now(UTC), False
    while not run.forced:
        run.check()
        over = loop.time() >= run.deadline
        if asked and (over or loop.time() >= next_press):
            await _refuse_if_blind(run, begin_time)
        if over:
            await grace_expired(run, parameters)
            refuse_outlived(run)
            return await _rebooted(run, cursor, until=loop.time())
        if loop.time() >= next_press:
            method = None
            if run.vm.state is VmState.RUNNING:
                ask = partial(_ask_again, run, begin_time) if asked else run.domains.reboot
                asked = True
                method = await press(run, ask)
                if method is AskMethod.DRIVER:  # it is done then, and no event tells
                    return True
            next_press = loop.time() + run.times.press_interval.total_seconds()
            if method is AskMethod.GUEST_AGENT:
                # it has heard; a button could reach it after its reboot, and switch it off
                next_press = run.deadline
        run.check()
        if await _rebooted(run, cursor, until=_wake(run, next_press)):
            return True
    return False


async def _ask_again(run: Run, since: datetime, vm: VmUuid) -> AskMethod | None:
    """Ask the guest once more, unless it has rebooted meanwhile, or may have since *since*.

    The press was committed before, and that may have waited for the disk.
    """
    if _is_by(run, run.vm) or await run.was_blind(since):
        return None
    return await run.domains.reboot(vm)


def _wake(run: Run, next_press: float) -> float:
    """Return until when to wait: not at all if it is forced since the press."""
    now = asyncio.get_running_loop().time()
    return now if run.forced else min(run.deadline, next_press)


async def _refuse_if_blind(run: Run, since: datetime) -> None:
    """Raise if the guest may have rebooted while nobody looked: once more would be twice.

    Raises:
        OutcomeUnknown: nobody looked for a while, after *since*.
    """
    if await run.was_blind(since):
        why = "libvirt was not heard for a while, in which it may have come"
        raise OutcomeUnknown(run.vm, "reboot", why)


async def _reset(run: Run) -> None:
    """Reset the guest.

    Raises:
        VmInState: it is off, or was not as it had to be.
        LibvirtUnreachable: libvirt was never given it.
        LibvirtBusy: likewise.
        OutcomeUnknown: libvirt does not say whether it did.
    """
    run.check()
    loop = asyncio.get_running_loop()
    cursor, answered = run.cursor(), False
    # committed before: nothing would tell the next daemon that the guest was reset
    await run.step(OperationPhase.FORCING)
    run.check()
    refuse_outlived(run)
    _refuse(run.vm)
    allowed = run.times.force_timeout
    give_up = loop.time() + allowed.total_seconds()
    try:
        async with run.until(give_up + EVENT_DUE_S):  # at its own deadline it tells more
            await run.domains.reset(run.operation.vm, deadline=allowed)
            answered = True
    except (VmNotFound, LibvirtInvalidState) as error:
        raise VmInState(await run.look_in_time()) from error
    except LibvirtRefused as error:
        if (await run.look_in_time()).active:
            raise
        raise VmInState(run.vm) from error
    run.check()
    if not answered:
        raise OutcomeUnknown(run.vm, "reset", "no answer in time")
    # libvirt says that it is done; not every driver has an event that tells it too
    await _rebooted(run, cursor, until=loop.time() + EVENT_DUE_S)


async def _rebooted(run: Run, cursor: Cursor, *, until: float) -> bool:
    """Wait until *cursor* sees a reboot by this operation, or that time.

    Raises:
        VmInState: it is off instead.
    """
    async with run.until(until):
        vm = await cursor.reached(lambda vm: _is_by(run, vm) or not vm.active)
        if not vm.active:
            raise VmInState(vm)
        return True
    return False


def _is_by(run: Run, vm: Vm) -> bool:
    """Whether the guest of *vm* was rebooted last by this operation."""
    return vm.reason is Reason.REBOOTED and vm.initiator.operation_id == run.operation.id
