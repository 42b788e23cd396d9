"""A connected host as a test holds it, and what was recorded of it."""

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from tests.system.deadline import NeverHappenedError
from vmagentd.hypervisor.connection import Connection
from vmagentd.hypervisor.domains import Domains
from vmagentd.model import Event, LinkLost, VmUuid


async def until(fact: Callable[[], object], what: str, *, within_s: float = 30.0) -> None:
    """Look at a fact every 5 ms until it is true.

    Raises:
        NeverHappenedError: the deadline passed.
    """
    deadline = time.monotonic() + within_s
    while not fact():
        if time.monotonic() > deadline:
            raise NeverHappenedError(what, within_s)
        await asyncio.sleep(0.005)


class Witness:
    """Takes what a connection records. Written from libvirt's thread, read on the loop."""

    def __init__(self) -> None:
        self.seen: list[Event | LinkLost] = []
        self.ups: list[int] = []  # how much had been seen when a link came up
        self.fatal: list[BaseException] = []
        self.fatal_expected: list[BaseException] = []

    def record(self, fact: Event | LinkLost) -> None:
        self.seen.append(fact)

    def up(self) -> None:
        self.ups.append(len(self.seen))

    @property
    def events(self) -> list[Event]:
        return [fact for fact in self.seen if isinstance(fact, Event)]

    @property
    def losses(self) -> list[LinkLost]:
        return [fact for fact in self.seen if isinstance(fact, LinkLost)]

    def kinds(self, vm: str) -> list[str]:
        """Return the kinds of one VM's events, in order."""
        return [event.kind for event in self.events if event.vm == vm]


@dataclass(frozen=True, slots=True)
class Host:
    """One libvirt: through our package, and raw, as virsh would see it."""

    connection: Connection
    domains: Domains
    witness: Witness = field(default_factory=Witness)

    @property
    def raw(self) -> Any:  # noqa: ANN401  (libvirt-python has no types)
        """The connection itself; for the test driver there is no other way into its world."""
        return self.connection.links().of("test", 0)

    def vm(self, name: str) -> VmUuid:
        return VmUuid(self.raw.lookupByName(name).UUIDString())

    def define(self, name: str) -> Any:  # noqa: ANN401
        return self.raw.defineXML(domain_xml(name))

    async def until_link(self, number: int) -> None:
        """Wait until the connection is up, for the n-th time."""
        await until(
            lambda: self.connection.connected and self.connection.link == number, f"link {number}"
        )

    async def until_event(self, vm: str, kind: str) -> None:
        """Wait for an event of a VM, among others."""
        await until(lambda: kind in self.witness.kinds(vm), f"{kind} of {vm}")

    async def until_seen(self, vm: str, *kinds: str) -> None:
        """Wait until exactly these events of a VM were recorded."""
        await until(lambda: len(self.witness.kinds(vm)) >= len(kinds), f"{kinds} of {vm}")
        assert self.witness.kinds(vm) == list(kinds)


def domain_xml(name: str, *, memory_kib: int = 8192, vcpus: int = 2) -> str:
    return f"""
<domain type='test'>
  <name>{name}</name><memory>{memory_kib}</memory><vcpu>{vcpus}</vcpu>
  <os><type>hvm</type></os>
</domain>"""


def host_xml(names: list[str]) -> str:
    """Return a whole host for the test driver; its VMs run."""
    return f"<node>{''.join(map(domain_xml, names))}</node>"
