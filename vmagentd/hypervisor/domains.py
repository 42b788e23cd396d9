"""What can be asked of VMs, and done to them, through libvirt.

Owns the pools `libvirt-observe`, `libvirt-act` and `libvirt-kill`, one for each kind of call, so
that queries and forced stops get through while starts and shutdowns hang. Its methods run on the
event loop; libvirt is called in the pools' threads. It keeps no domain handle, never retries,
and never takes an error for a state.
"""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from typing import TYPE_CHECKING, TypeVar
from xml.etree import ElementTree

import libvirt

from vmagentd.errors import (
    HypervisorError,
    LibvirtInvalidState,
    LibvirtUnreachable,
    NoShutdownMethod,
    OutcomeUnknown,
    VmNotFound,
)
from vmagentd.model import Query, Source, Survey, VmUuid

from .pool import NotRun, Pool
from .survey import find, find_name, sight, sight_all
from .translate import libvirt_errors

if TYPE_CHECKING:
    from collections.abc import Callable

    from vmagentd.model import Sighting

    from .connection import Connection
    from .events import VirConnect, VirDomain

T = TypeVar("T")

_AGENT_CONNECTED = "devices/channel/target[@name='org.qemu.guest_agent.0'][@state='connected']"
_LOOK_UP_DEADLINE = timedelta(seconds=10)
_SURVEY_DEADLINE = timedelta(seconds=60)
_PRESS_DEADLINE = timedelta(seconds=10)
# libvirt gives an agent that does not answer 5 s. A call that takes longer was heard: it waits
# until the guest is down.
_AGENT_DEADLINE = timedelta(seconds=7)
# libvirtd gives a process that does not end 10 s after SIGTERM, then up to 30 s after SIGKILL.
_DESTROY_DEADLINE = timedelta(seconds=50)


class ShutdownMethod(StrEnum):
    """How a guest was asked to shut down."""

    GUEST_AGENT = "GUEST_AGENT"
    ACPI = "ACPI"
    # the hypervisor's own way, where it is not QEMU
    DRIVER = "DRIVER"


_SHUTDOWN_FLAGS = {
    ShutdownMethod.GUEST_AGENT: libvirt.VIR_DOMAIN_SHUTDOWN_GUEST_AGENT,
    ShutdownMethod.ACPI: libvirt.VIR_DOMAIN_SHUTDOWN_ACPI_POWER_BTN,
    ShutdownMethod.DRIVER: 0,
}


class Domains:
    """The VMs of the connected libvirt.

    Every method raises LibvirtUnreachable if libvirt could not be asked; nothing was changed
    then. Those that change something raise OutcomeUnknown if the link broke or the deadline
    passed in the middle, and every other HypervisorError if libvirt refused. A cancelled call
    does not begin; one that has begun goes on.
    """

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._observe = Pool("libvirt-observe", 4)
        self._act = Pool("libvirt-act", 16)
        self._kill = Pool("libvirt-kill", 8)
        # VMs whose agent was asked by a call that has not returned
        self._agent_busy: set[VmUuid] = set()

    def close(self) -> None:
        """Let the threads end; calls that wait never begin."""
        for pool in (self._observe, self._act, self._kill):
            pool.close()

    async def survey(self) -> Survey:
        """List all VMs with what is true of each."""
        after_event, begin_time = self._connection.events_taken, datetime.now(UTC)
        link, monitored = self._connection.link, self._connection.links().monitored
        sightings, unreadable = await self._ask(sight_all, deadline=_SURVEY_DEADLINE)
        return Survey(
            sightings=sightings,
            unreadable=unreadable,
            after_event=after_event,
            begin_time=begin_time,
            link=link,
            monitored=monitored,
        )

    async def look_up(self, vm: VmUuid, *, source: Source = Source.SURVEY) -> Query:
        """Ask for one VM; the sighting is None only if libvirt says that it does not know it."""
        after_event, begin_time = self._connection.events_taken, datetime.now(UTC)

        def look(link: VirConnect) -> Sighting | None:
            try:
                return sight(link, find(link, vm))
            except VmNotFound:
                return None

        return Query(
            vm=vm,
            sighting=await self._ask(look),
            after_event=after_event,
            begin_time=begin_time,
            source=source,
        )

    async def look_up_name(self, name: str, *, source: Source = Source.SURVEY) -> Query | None:
        """Ask for the VM that bears a name now; None if libvirt knows none."""
        after_event, begin_time = self._connection.events_taken, datetime.now(UTC)

        def look(link: VirConnect) -> Sighting | None:
            try:
                domain = find_name(link, name)
                return None if domain is None else sight(link, domain)
            except VmNotFound:
                return None

        sighting = await self._ask(look)
        if sighting is None:
            return None
        return Query(
            vm=sighting.vm,
            sighting=sighting,
            after_event=after_event,
            begin_time=begin_time,
            source=source,
        )

    async def start(
        self, vm: VmUuid, *, paused: bool, discard_saved_state: bool, deadline: timedelta
    ) -> None:
        """Create the hypervisor process of a VM; returns when libvirt says that it is up.

        Raises:
            VmNotFound: libvirt does not know the VM.
            LibvirtInvalidState: it runs already, perhaps.
        """
        flags = libvirt.VIR_DOMAIN_START_PAUSED if paused else 0
        flags |= libvirt.VIR_DOMAIN_START_FORCE_BOOT if discard_saved_state else 0
        await self._change(
            self._act, vm, "start", lambda domain: domain.createWithFlags(flags), deadline=deadline
        )

    async def shutdown(self, vm: VmUuid) -> ShutdownMethod:
        """Ask the guest once to shut down; it may take its time, or ignore it.

        The guest agent is asked if it is connected, and the ACPI button pressed at once if the
        agent refuses, or still has not answered the call before.

        Returns:
            The method that was used. With the agent, the guest may already be down.

        Raises:
            VmNotFound: libvirt does not know the VM.
            NoShutdownMethod: the guest has neither a connected agent nor ACPI.
            LibvirtInvalidState: it does not run.
        """
        methods = await self._ask(lambda link: _shutdown_methods(link, vm))
        agent, acpi = ShutdownMethod.GUEST_AGENT, ShutdownMethod.ACPI
        if agent in methods and vm not in self._agent_busy:
            try:
                return await self._ask_agent(vm)
            except (LibvirtInvalidState, LibvirtUnreachable, OutcomeUnknown):
                raise
            except HypervisorError:
                if acpi not in methods:
                    raise
        for method in (acpi, ShutdownMethod.DRIVER):
            if method in methods:
                await self._press(vm, _SHUTDOWN_FLAGS[method])
                return method
        if agent in methods:  # asked before; that call still waits for the guest
            return agent
        raise NoShutdownMethod(vm, "it has no ACPI and no guest agent is connected")

    async def destroy(self, vm: VmUuid) -> None:
        """Force a VM off; returns when libvirt says that its process has ended.

        Raises:
            VmNotFound: libvirt does not know the VM.
            LibvirtInvalidState: it does not run.
        """
        await self._change(
            self._kill, vm, "destroy", lambda domain: domain.destroy(), deadline=_DESTROY_DEADLINE
        )

    async def _ask_agent(self, vm: VmUuid) -> ShutdownMethod:
        loop = asyncio.get_running_loop()
        flags = _SHUTDOWN_FLAGS[ShutdownMethod.GUEST_AGENT]
        began = False

        def ask(domain: VirDomain) -> None:
            nonlocal began
            began = True
            try:
                domain.shutdownFlags(flags)
            finally:
                # not where it is awaited: that may be given up before the call returns
                loop.call_soon_threadsafe(self._agent_busy.discard, vm)

        self._agent_busy.add(vm)
        try:
            await self._change(self._act, vm, "shutdown", ask, deadline=_AGENT_DEADLINE)
        except OutcomeUnknown as error:
            if not isinstance(error.__cause__, TimeoutError):
                raise
        finally:
            if not began:
                self._agent_busy.discard(vm)
        return ShutdownMethod.GUEST_AGENT

    async def _press(self, vm: VmUuid, flags: int) -> None:
        await self._change(
            self._act,
            vm,
            "shutdown",
            lambda domain: domain.shutdownFlags(flags),
            deadline=_PRESS_DEADLINE,
        )

    async def _ask(
        self, question: Callable[[VirConnect], T], *, deadline: timedelta = _LOOK_UP_DEADLINE
    ) -> T:
        """Run a query; one that is not answered in time says nothing about any VM."""
        try:
            return await self._run(self._observe, question, deadline)
        except TimeoutError as error:
            raise LibvirtUnreachable(self._why(deadline)) from error

    async def _change(
        self,
        pool: Pool,
        vm: VmUuid,
        name: str,
        change: Callable[[VirDomain], object],
        *,
        deadline: timedelta,
    ) -> None:
        """Run a call that changes the VM; given up, it never begins or its outcome is unknown."""
        # Taken once, atomically: by the thread that goes ahead, or here when nobody waits any
        # more. A change that came after all would meddle with what the VM's story is by then.
        leave = [True]

        def call(link: VirConnect) -> None:
            domain = find(link, vm)
            if not _take(leave):
                raise LibvirtUnreachable("given up")
            with libvirt_errors(vm, alive=link.isAlive, effect=name):
                change(domain)

        try:
            await self._run(pool, call, deadline)
        except TimeoutError as error:
            if _take(leave):
                raise LibvirtUnreachable(self._why(deadline)) from error
            raise OutcomeUnknown(vm, name, self._why(deadline)) from error
        except asyncio.CancelledError:
            _take(leave)
            raise

    def _why(self, deadline: timedelta) -> str:
        return self._connection.cause or f"no answer in {deadline.total_seconds():g} s"

    async def _run(self, pool: Pool, call: Callable[[VirConnect], T], deadline: timedelta) -> T:
        links = self._connection.links()

        def run(number: int) -> T:
            try:
                return call(links.of(pool.name, number))
            except (LibvirtUnreachable, OutcomeUnknown):
                links.suspect()
                raise

        # When the link breaks, calls fail by themselves, but for one that is opening a link: that
        # hangs for as long as libvirtd does.
        lost = self._connection.lost()
        try:
            return await pool.run(run, deadline=deadline, hurry=lost)
        except NotRun as error:
            raise LibvirtUnreachable(str(error)) from error


def _take(leave: list[bool]) -> bool:
    """Take the leave to go ahead, if nobody has; any thread may try."""
    try:
        return leave.pop()
    except IndexError:
        return False


def _shutdown_methods(link: VirConnect, vm: VmUuid) -> frozenset[ShutdownMethod]:
    domain = find(link, vm)
    with libvirt_errors(vm, alive=link.isAlive):
        if link.getType() != "QEMU":
            return frozenset({ShutdownMethod.DRIVER})
        definition = ElementTree.fromstring(domain.XMLDesc())  # noqa: S314  (libvirt wrote it)
    methods = set()
    if definition.find("features/acpi") is not None:
        methods.add(ShutdownMethod.ACPI)
    # libvirt puts the state there while the VM runs
    if definition.find(_AGENT_CONNECTED) is not None:
        methods.add(ShutdownMethod.GUEST_AGENT)
    return frozenset(methods)
