"""libvirt refused, or could not be asked."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vmagentd.errors.base import VmagentdError, utc

if TYPE_CHECKING:
    from datetime import datetime

    from vmagentd.model import Vm, VmUuid


class HypervisorError(VmagentdError):
    """libvirt refused, or could not be asked."""


class LibvirtUnreachable(HypervisorError):
    """libvirt cannot be asked. It says nothing about any VM."""

    def __init__(self, cause: str, blind_since: datetime | None = None) -> None:
        since = f" since {utc(blind_since)}" if blind_since else ""
        super().__init__(
            f"libvirt cannot be asked{since} ({cause}); the daemon keeps trying, so try again",
            blind_since=utc(blind_since) if blind_since else None,
            cause=cause,
        )
        self.cause, self.blind_since = cause, blind_since


class OutcomeUnknown(HypervisorError):
    """libvirt did not answer in time, or the link broke during the call; the VM may still change.

    Never repeat the call blindly: the event or the next query settles it.
    """

    def __init__(self, vm: Vm | VmUuid | None, call: str, why: str) -> None:
        if vm is None or isinstance(vm, str):
            uuid, named = vm, str(vm)
        else:
            uuid, named = vm.uuid, f"{vm.name} ({vm.uuid})"
        super().__init__(
            f"libvirt call {call} for VM {named}: outcome unknown ({why}); "
            "watch the VM, it may still change",
            vm=uuid,
            call=call,
        )


class _LibvirtError(HypervisorError):
    """libvirt answered with an error."""

    sentence = "libvirt refused"

    def __init__(self, vm: VmUuid | None, code: int, domain: int, message: str) -> None:
        super().__init__(
            f"{self.sentence}: {message}",
            vm=vm,
            libvirt_code=code,
            libvirt_domain=domain,
            libvirt_message=message,
        )
        self.vm, self.code, self.domain, self.message = vm, code, domain, message


class LibvirtInvalidState(_LibvirtError):
    """The VM is not in a state for this call: look at its state before judging."""

    sentence = "libvirt says that the VM's state does not allow this; look at it and ask again"


class LibvirtBusy(_LibvirtError):
    """Another job holds the VM's lock in libvirt."""

    sentence = "libvirt is busy with another job on the VM, try again later"


class LibvirtDenied(_LibvirtError):
    """libvirt does not let the daemon do this."""

    sentence = "libvirt denies this to the daemon, look at its polkit rules"


class LibvirtUnsupported(_LibvirtError):
    """This hypervisor cannot do this."""

    sentence = "this hypervisor cannot do this"


class HostExhausted(_LibvirtError):
    """The host lacks what the VM needs."""

    sentence = "the host lacks what the VM needs, free some or use another host"


class LibvirtRefused(_LibvirtError):
    """libvirt refused for a reason that has no type of its own."""

    sentence = "libvirt refused, look at the VM's definition and at libvirt's log"
