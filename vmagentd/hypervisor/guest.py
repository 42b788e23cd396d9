"""What a guest can be asked for, and how.

Runs in the threads of `domains`; keeps nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING
from xml.etree import ElementTree

import libvirt

from .survey import find
from .translate import libvirt_errors

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from vmagentd.model import VmUuid

    from .events import VirConnect, VirDomain

_AGENT_CONNECTED = "devices/channel/target[@name='org.qemu.guest_agent.0'][@state='connected']"


class AskMethod(StrEnum):
    """How a guest was asked to shut down or to reboot."""

    GUEST_AGENT = "GUEST_AGENT"
    ACPI = "ACPI"
    # the hypervisor's own way, where it is not QEMU
    DRIVER = "DRIVER"


@dataclass(frozen=True, slots=True)
class Wish:
    """What a guest is asked for: libvirt's call, and its flags for each method."""

    name: str
    call: Callable[[VirDomain, int], object]
    flags: Mapping[AskMethod, int]


SHUTDOWN = Wish(
    "shutdown",
    lambda domain, flags: domain.shutdownFlags(flags),
    {
        AskMethod.GUEST_AGENT: libvirt.VIR_DOMAIN_SHUTDOWN_GUEST_AGENT,
        AskMethod.ACPI: libvirt.VIR_DOMAIN_SHUTDOWN_ACPI_POWER_BTN,
        AskMethod.DRIVER: 0,
    },
)
REBOOT = Wish(
    "reboot",
    lambda domain, flags: domain.reboot(flags),
    {
        AskMethod.GUEST_AGENT: libvirt.VIR_DOMAIN_REBOOT_GUEST_AGENT,
        AskMethod.ACPI: libvirt.VIR_DOMAIN_REBOOT_ACPI_POWER_BTN,
        AskMethod.DRIVER: 0,
    },
)


def ways(link: VirConnect, vm: VmUuid) -> frozenset[AskMethod]:
    """Return how the guest of a running VM can be asked; in a `libvirt-observe` thread."""
    domain = find(link, vm)
    with libvirt_errors(vm, alive=link.isAlive):
        if link.getType() != "QEMU":
            return frozenset({AskMethod.DRIVER})
        definition = ElementTree.fromstring(domain.XMLDesc())  # noqa: S314  (libvirt wrote it)
    methods = set()
    if definition.find("features/acpi") is not None:
        methods.add(AskMethod.ACPI)
    # libvirt puts the state there while the VM runs
    if definition.find(_AGENT_CONNECTED) is not None:
        methods.add(AskMethod.GUEST_AGENT)
    return frozenset(methods)
