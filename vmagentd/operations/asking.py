"""How a guest is asked for something, and what comes of it when it takes too long."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from vmagentd.errors import (
    GraceExpired,
    LibvirtBusy,
    LibvirtInvalidState,
    LibvirtRefused,
    LibvirtUnreachable,
    OperationInterrupted,
    OutcomeUnknown,
    VmCrashed,
    VmInState,
    VmNotFound,
    VmPaused,
    VmSleeping,
)
from vmagentd.lifecycle.steps import is_outlived
from vmagentd.model import OnGraceExpired, OperationPhase, VmState
from vmagentd.operations.logged import log_fields

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from vmagentd.hypervisor.guest import AskMethod
    from vmagentd.model import RebootParameters, StopParameters, Vm, VmUuid
    from vmagentd.operations.run import Run

log = logging.getLogger(__name__)


def refuse_unheard(vm: Vm) -> None:
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


def refuse_outlived(run: Run) -> None:
    """Raise if the VM was started anew since the operation was asked for.

    Raises:
        OperationInterrupted: it was.
    """
    if is_outlived(run.operation, run.vm):
        raise OperationInterrupted(run.vm, run.operation.id, anew=True)


async def press(
    run: Run, ask: Callable[[VmUuid], Awaitable[AskMethod | None]]
) -> AskMethod | None:
    """Ask the guest once. What cannot be said now is asked again at the next press.

    That it is being asked is committed before: of a daemon that ends in the middle, the next one
    would else hear that nothing was done.

    Returns:
        How it was asked, None if it was not or nobody knows.
    """
    await run.step(OperationPhase.SIGNALLED)
    run.check()  # nobody was waiting who could be interrupted
    if run.forced or not run.vm.active or is_outlived(run.operation, run.vm):
        return None
    method = None
    try:
        async with run.until(run.deadline):
            method = await ask(run.operation.vm)
            run.answered()
    except (VmNotFound, LibvirtInvalidState):
        await run.look_if_possible()
    except LibvirtRefused:
        if (await run.look_in_time()).active:
            raise  # else it went off meanwhile, and took what was being said to it along
    except (LibvirtBusy, LibvirtUnreachable, OutcomeUnknown) as error:
        log.info(
            "%s %s: asked without an answer: %s",
            run.operation.verb.lower(),
            run.vm.name,
            error,
            extra=log_fields(run.operation),
        )
    return method


async def grace_expired(run: Run, parameters: StopParameters | RebootParameters) -> Vm:
    """Return the VM, which is off now, was started anew or is to be forced.

    Raises:
        GraceExpired: it is to be left alone.
        OutcomeUnknown: likewise, and libvirt cannot be asked whether it is off.
    """
    alone = parameters.on_grace_expired is OnGraceExpired.FAIL
    vm = await run.look_if_possible(at_last=alone)
    if vm.active and alone and not is_outlived(run.operation, vm):
        raise GraceExpired(vm, parameters.verb, parameters.grace_period)
    return vm
