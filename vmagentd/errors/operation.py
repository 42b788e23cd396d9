"""An accepted operation did not succeed; the VM's true state is in the journal."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vmagentd.errors.base import VmagentdError

if TYPE_CHECKING:
    from datetime import timedelta

    from vmagentd.model import OperationId, Vm, VmUuid


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


class StartTimedOut(OperationEnded):
    """The VM was not up in time."""

    def __init__(self, vm: Vm, timeout: timedelta) -> None:
        super().__init__(
            f"VM {vm.name} ({vm.uuid}) was not running within {timeout.total_seconds():g} s, "
            f"it is {vm.state}; watch it, it may still come up",
            vm=vm.uuid,
            state=vm.state,
            timeout_s=f"{timeout.total_seconds():g}",
        )


class GraceExpired(OperationEnded):
    """The guest did not shut down within the grace period; the VM was left alone."""

    def __init__(self, vm: Vm, grace_period: timedelta) -> None:
        super().__init__(
            f"VM {vm.name} ({vm.uuid}) did not shut down within "
            f"{grace_period.total_seconds():g} s and is still {vm.state}; "
            "give it more time, or stop it by force",
            vm=vm.uuid,
            state=vm.state,
            grace_period_s=f"{grace_period.total_seconds():g}",
        )


class ForceTimedOut(OperationEnded):
    """The VM was forced off and libvirt does not report it off."""

    def __init__(self, vm: Vm) -> None:
        super().__init__(
            f"VM {vm.name} ({vm.uuid}) was forced off but is still {vm.state}; its hypervisor "
            "process hangs in the kernel: look at the host's storage",
            vm=vm.uuid,
            state=vm.state,
        )


class CancelledByStop(OperationEnded):
    """A Stop ended a Start that had not reached its end."""

    def __init__(self, vm: VmUuid, stop_id: OperationId) -> None:
        super().__init__(
            f"VM {vm}: the start was cancelled by stop operation {stop_id}",
            vm=vm,
            operation_id=stop_id,
        )


class OperationCancelled(OperationEnded):
    """Somebody cancelled the operation; the VM was left as it was."""

    def __init__(self, vm: VmUuid, operation_id: OperationId) -> None:
        super().__init__(
            f"VM {vm}: operation {operation_id} was cancelled; the VM was left as it was",
            vm=vm,
            operation_id=operation_id,
        )


class OperationInterrupted(OperationEnded):
    """The daemon ended before libvirt was asked."""

    def __init__(self, vm: VmUuid, operation_id: OperationId) -> None:
        super().__init__(
            f"VM {vm}: the daemon ended before operation {operation_id} took effect; ask again",
            vm=vm,
            operation_id=operation_id,
        )
