"""What a guest can be asked for, and how.

`Guests` runs on the event loop, the rest in the threads of `domains`.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from datetime import timedelta
from enum import StrEnum
from typing import TYPE_CHECKING, Protocol
from xml.etree import ElementTree

import libvirt

from vmagentd.errors import (
    HypervisorError,
    LibvirtInvalidState,
    LibvirtUnreachable,
    NoShutdownMethod,
    OutcomeUnknown,
)

from .survey import find
from .translate import libvirt_errors

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping

    from vmagentd.model import VmUuid

    from .events import VirConnect, VirDomain

_PRESS_DEADLINE = timedelta(seconds=10)
# libvirt gives an agent that does not answer 5 s. A call that takes longer was heard: it waits
# until the guest is down.
_AGENT_DEADLINE = timedelta(seconds=7)
# An agent that was asked in vain is left alone for so long: each press would wait for it anew.
_AGENT_REST_S = 15.0

_AGENT_CONNECTED = "devices/channel/target[@name='org.qemu.guest_agent.0'][@state='connected']"


class AskMethod(StrEnum):
    """How a guest was asked to shut down or to reboot."""

    GUEST_AGENT = "GUEST_AGENT"
    ACPI = "ACPI"
    # the hypervisor's own way, where it is not QEMU
    DRIVER = "DRIVER"


class Lane(StrEnum):
    """What of a VM a call occupies in libvirt: another one that needs it waits for its end."""

    PROCESS = "process"
    AGENT = "agent"


class Change(Protocol):
    """Has libvirt do something to a VM."""

    async def __call__(
        self,
        vm: VmUuid,
        name: str,
        change: Callable[[VirDomain], object],
        /,
        *,
        lane: Lane,
        deadline: timedelta,
    ) -> None:
        """Return once libvirt has done it; see `Domains`."""


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


class Guests:
    """Asks guests, each by what it can hear."""

    def __init__(
        self,
        *,
        ways: Callable[[VmUuid], Awaitable[frozenset[AskMethod]]],
        change: Change,
        is_asked: Callable[[VmUuid], bool],
    ) -> None:
        """Prepare.

        Args:
            ways: finds out how a guest can be asked.
            change: has libvirt do something to a VM, see `Domains`.
            is_asked: whether a VM's agent was asked by a call that has not returned.
        """
        self._ways = ways
        self._change = change
        self._is_asked = is_asked
        # VMs whose agent was asked in vain a little while ago
        self._rests: set[VmUuid] = set()

    async def ask(self, vm: VmUuid, wish: Wish) -> AskMethod:
        """Ask the guest once; returns how, see `Domains.shutdown`."""
        methods = await self._ways(vm)
        agent, acpi = AskMethod.GUEST_AGENT, AskMethod.ACPI
        rests = vm in self._rests and acpi in methods
        if agent in methods and not self._is_asked(vm) and not rests:
            try:
                return await self._ask_agent(vm, wish)
            except (LibvirtInvalidState, LibvirtUnreachable, OutcomeUnknown):
                raise
            except HypervisorError:
                methods = await self._ways(vm)
                # An agent that has left has heard: its guest goes down. The button would reach
                # one that is on its way, or that has just rebooted, and switch that off.
                if agent not in methods:
                    return agent
                if acpi not in methods:  # it refuses, and nothing else can be asked
                    raise
                self._rests.add(vm)
                loop = asyncio.get_running_loop()
                loop.call_later(_AGENT_REST_S, self._rests.discard, vm)
        for method in (acpi, AskMethod.DRIVER):
            if method in methods:
                await self._press(vm, wish, method)
                return method
        if agent in methods:  # asked before; that call still waits for the guest
            return agent
        raise NoShutdownMethod(vm, "it has no ACPI and no guest agent is connected")

    async def _ask_agent(self, vm: VmUuid, wish: Wish) -> AskMethod:
        agent = AskMethod.GUEST_AGENT
        try:
            await self._press(vm, wish, agent, lane=Lane.AGENT, deadline=_AGENT_DEADLINE)
        except OutcomeUnknown as error:
            if not isinstance(error.__cause__, TimeoutError):
                raise
        return agent

    async def _press(
        self,
        vm: VmUuid,
        wish: Wish,
        method: AskMethod,
        *,
        lane: Lane = Lane.PROCESS,
        deadline: timedelta = _PRESS_DEADLINE,
    ) -> None:
        flags = wish.flags[method]
        await self._change(
            vm, wish.name, lambda domain: wish.call(domain, flags), lane=lane, deadline=deadline
        )
