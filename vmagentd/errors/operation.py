"""An accepted operation did not succeed; the VM's true state is in the journal."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vmagentd.errors.base import VmagentdError

if TYPE_CHECKING:
    from datetime import timedelta

    from vmagentd.model import OperationId, OperationVerb, Vm


class OperationEnded(VmagentdError):
    """An accepted operation did not succeed; the VM's true state is in the journal."""


class StartFailed(OperationEnded):
    """libvirt could not start the VM."""

    def __init__(self, vm: Vm, code: int, domain: int, message: str) -> None:
        super().__init__(
            f"VM {vm.name} ({vm.uuid}) could not be started, libvirt says: {message}",
            vm=vm.uuid,
            libvirt_code=code,
            libvirt_domain=domain,
            libvirt_message=message,
        )


class HostLimitReached(OperationEnded):
    """The VMs of the host would use more than they may together.

    How much that is, is not said: whoever may start some VMs may not see all that run.
    """

    def __init__(self, vm: Vm, limit: str, *, allowed: int) -> None:
        super().__init__(
            f"VM {vm.name} ({vm.uuid}) is not started: with it there would be more than the "
            f"{allowed} {limit} that this host may have; stop another one, start it on another "
            "host, or raise the limit in [host_limits]",
            vm=vm.uuid,
            subject="host",
            limit=limit,
            allowed=allowed,
        )


class StartTimedOut(OperationEnded):
    """The VM was not up in time."""

    def __init__(self, vm: Vm, timeout: timedelta, *, asked: bool = True) -> None:
        yet = (
            "watch it, it may still come up"
            if asked
            else "libvirt was not asked to start it in that time, so try again"
        )
        super().__init__(
            f"VM {vm.name} ({vm.uuid}) was not running within {timeout.total_seconds():g} s, "
            f"it is {vm.state}; {yet}",
            vm=vm.uuid,
            state=vm.state,
            timeout_s=f"{timeout.total_seconds():g}",
        )


class GraceExpired(OperationEnded):
    """The guest did not do what it was asked within the grace period; the VM was left alone."""

    def __init__(self, vm: Vm, verb: OperationVerb, grace_period: timedelta) -> None:
        super().__init__(
            f"{verb.lower()} of VM {vm.name} ({vm.uuid}): the guest did not do it within "
            f"{grace_period.total_seconds():g} s, the VM is still {vm.state}; "
            f"give it more time, or {verb.lower()} it by force",
            vm=vm.uuid,
            state=vm.state,
            grace_period_s=f"{grace_period.total_seconds():g}",
        )


class ForceTimedOut(OperationEnded):
    """The VM was forced off and libvirt does not report it off."""

    def __init__(self, vm: Vm) -> None:
        super().__init__(
            f"VM {vm.name} ({vm.uuid}) was forced off but is still {vm.state}; its hypervisor "
            "process may hang in the kernel: look at the host's storage, and at libvirt's log",
            vm=vm.uuid,
            state=vm.state,
        )


class OperationTimedOut(OperationEnded):
    """What was asked does not hold in time; it may still come."""

    def __init__(self, vm: Vm, verb: OperationVerb, timeout: timedelta) -> None:
        super().__init__(
            f"{verb.lower()} of VM {vm.name} ({vm.uuid}): not done within "
            f"{timeout.total_seconds():g} s, it is {vm.state}; watch it, it may still come",
            vm=vm.uuid,
            state=vm.state,
            timeout_s=f"{timeout.total_seconds():g}",
        )


class CancelledByStop(OperationEnded):
    """A Stop ended another operation that had not reached its end."""

    def __init__(self, vm: Vm, stop_id: OperationId) -> None:
        super().__init__(
            f"VM {vm.name} ({vm.uuid}): the operation was cancelled by stop operation {stop_id}",
            vm=vm.uuid,
            operation_id=stop_id,
        )


class OperationCancelled(OperationEnded):
    """Somebody cancelled the operation; the VM was left as it was."""

    def __init__(self, vm: Vm, operation_id: OperationId, actor: str) -> None:
        super().__init__(
            f"VM {vm.name} ({vm.uuid}): operation {operation_id} was cancelled by {actor}; the VM "
            "was left as it is, and what libvirt or the guest was asked for may still come: "
            "watch it",
            vm=vm.uuid,
            operation_id=operation_id,
            actor=actor,
        )


class OperationInterrupted(OperationEnded):
    """The daemon ended before libvirt was asked, or the VM was started anew meanwhile."""

    def __init__(self, vm: Vm, operation_id: OperationId, *, anew: bool = False) -> None:
        what = "VM was started anew" if anew else "daemon ended"
        super().__init__(
            f"VM {vm.name} ({vm.uuid}): the {what} before operation {operation_id} took effect; "
            "ask again",
            vm=vm.uuid,
            operation_id=operation_id,
        )
