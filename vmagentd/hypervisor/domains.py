"""What can be asked of VMs, and done to them, through libvirt.

Owns the pools `libvirt-observe`, `libvirt-act`, `libvirt-start` and `libvirt-kill`, one for each
kind of call, so that queries, starts and forced stops get through while guests hang. Its methods
run on the event loop; libvirt is called in the pools' threads. It keeps no domain handle, never
retries, and never takes an error for a state.
"""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import TYPE_CHECKING, TypeAlias, TypedDict, TypeVar

import libvirt

from vmagentd.errors import LibvirtBusy, LibvirtUnreachable, OutcomeUnknown
from vmagentd.failpoints import failpoint
from vmagentd.model import Query, Source, Survey, VmUuid
from vmagentd.pool import Leave, NotRun, Occupied, Pool

from .guest import REBOOT, SHUTDOWN, AskMethod, Guests, Lane, ways
from .survey import find, find_name, seen, sight_all
from .translate import libvirt_errors

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable

    from .connection import Connection
    from .events import VirConnect, VirDomain

T = TypeVar("T")
OnAnswer: TypeAlias = "Callable[[], object]"
# told of a call: its name, `ok` or the name of its error, its seconds
OnCall: TypeAlias = "Callable[[str, str, float], object]"

_LOOK_UP_DEADLINE = timedelta(seconds=10)
_SURVEY_DEADLINE = timedelta(seconds=60)
_RESET_DEADLINE = timedelta(seconds=30)
# libvirtd gives a process that does not end 10 s after SIGTERM, then up to 30 s after SIGKILL.
_DESTROY_DEADLINE = timedelta(seconds=50)


class _Begin(TypedDict):
    """What places a query among the other facts, see `model.Survey`."""

    number: int
    after_event: int
    begin_time: datetime


class Domains:
    """The VMs of the connected libvirt.

    Every method raises LibvirtUnreachable if libvirt could not be asked; nothing was changed
    then. Those that change something raise OutcomeUnknown if the link broke or the deadline
    passed in the middle, and every other HypervisorError if libvirt refused; LibvirtBusy also if
    libvirt has not returned from such a call on the VM in time, whoever made that. A cancelled
    call does not begin; one that has begun goes on.
    """

    def __init__(self, connection: Connection, *, on_call: OnCall = lambda *_: None) -> None:
        """Prepare.

        Args:
            connection: what is asked.
            on_call: told of each call: its name, `ok` or the name of its error, its seconds.
        """
        self._connection = connection
        self._on_call = on_call
        self._observe = Pool("libvirt-observe", 4)
        # A call into a guest that hangs does not return, nor does one after it that waits for the
        # VM's lock in libvirt: hence lanes. More threads would keep others waiting in libvirtd
        # instead of here: it has 20 for what all its clients ask (`max_workers`), and 5 more for
        # queries and destroy (`prio_workers`), so that 16 and 8 leave it one.
        self._act = Pool("libvirt-act", 16)
        self._start = Pool("libvirt-start", 16)
        self._kill = Pool("libvirt-kill", 8)
        self._guests = Guests(
            ways=lambda vm: self._ask(lambda link: ways(link, vm)),
            change=partial(self._change, self._act),
            is_asked=lambda vm: self._act.has((vm, Lane.AGENT)),
        )
        # surveys and queries that have begun
        self._begun = 0

    def close(self) -> None:
        """Let the threads end; calls that wait never begin."""
        for pool in (self._observe, self._act, self._start, self._kill):
            pool.close()

    async def survey(self) -> Survey:
        """List all VMs with what is true of each."""
        begin = self._begin()
        link, monitored = self._connection.link, self._connection.links().monitored
        # one that hangs takes one thread: the next ones would leave none for queries
        sightings, unreadable = await self._ask(
            sight_all, name="survey", deadline=_SURVEY_DEADLINE, lane="survey"
        )
        return Survey(
            sightings=sightings,
            unreadable=unreadable,
            link=link,
            monitored=monitored,
            **begin,
        )

    async def look_up(self, vm: VmUuid, *, source: Source = Source.SURVEY) -> Query:
        """Ask for one VM; the sighting is None only if libvirt says that it does not know it."""
        begin = self._begin()
        sighting = await self._ask(lambda link: seen(link, find, vm))
        return Query(vm=vm, sighting=sighting, source=source, **begin)

    async def look_up_name(self, name: str, *, source: Source = Source.SURVEY) -> Query | None:
        """Ask for the VM that bears a name now; None if libvirt knows none."""
        begin = self._begin()
        sighting = await self._ask(lambda link: seen(link, find_name, name))
        if sighting is None:
            return None
        return Query(vm=sighting.vm, sighting=sighting, source=source, **begin)

    async def start(
        self,
        vm: VmUuid,
        *,
        paused: bool,
        discard_saved_state: bool,
        leave: Leave | None = None,
        answered: OnAnswer = lambda: None,
    ) -> None:
        """Create the hypervisor process of a VM; returns when libvirt says that it is up.

        That takes as long as it takes: who waits no more takes the *leave*, and if it is still
        there, cancels this, and libvirt never hears of it. It is *answered* before this returns,
        in the thread that has heard it, also if nobody waits any more.

        Raises:
            VmNotFound: libvirt does not know the VM.
            LibvirtInvalidState: it runs already, perhaps.
        """
        flags = libvirt.VIR_DOMAIN_START_PAUSED if paused else 0
        flags |= libvirt.VIR_DOMAIN_START_FORCE_BOOT if discard_saved_state else 0
        await self._change(
            self._start,
            vm,
            "start",
            lambda domain: domain.createWithFlags(flags),
            lane=None,
            leave=leave,
            answered=answered,
        )

    async def shutdown(self, vm: VmUuid) -> AskMethod:
        """Ask the guest once to shut down; it may take its time, or ignore it.

        The guest agent is asked if it is connected. The ACPI button is pressed at once if the
        agent refuses or is silent, did so a little while ago, or is busy with the call before.

        Returns:
            The method that was used. With the agent, the guest may already be down.

        Raises:
            VmNotFound: libvirt does not know the VM.
            NoShutdownMethod: the guest has neither a connected agent nor ACPI.
            LibvirtInvalidState: it does not run.
        """
        return await self._guests.ask(vm, SHUTDOWN)

    async def reboot(self, vm: VmUuid) -> AskMethod:
        """Ask the guest once to reboot, as `shutdown` does.

        After the ACPI button, libvirt resets a guest that has shut down, in the same process.
        """
        return await self._guests.ask(vm, REBOOT)

    async def reset(self, vm: VmUuid, *, deadline: timedelta = _RESET_DEADLINE) -> None:
        """Reset the guest, like its reset button; returns when libvirt says that it was.

        At the *deadline*, or that of its own if that comes before, it tells whether libvirt was
        given it.

        Raises:
            VmNotFound: libvirt does not know the VM.
            LibvirtInvalidState: it does not run.
        """
        await self._change(
            self._act,
            vm,
            "reset",
            lambda domain: domain.reset(0),
            deadline=min(deadline, _RESET_DEADLINE),
        )

    async def pause(self, vm: VmUuid, *, deadline: timedelta) -> None:
        """Take the CPU from the guest; errors as `reset`."""
        await self._change(
            self._act, vm, "suspend", lambda domain: domain.suspend(), deadline=deadline
        )

    async def resume(self, vm: VmUuid, *, deadline: timedelta) -> None:
        """Give the CPU back to a guest that is paused; errors as `reset`."""
        await self._change(
            self._act, vm, "resume", lambda domain: domain.resume(), deadline=deadline
        )

    async def wake(self, vm: VmUuid, *, deadline: timedelta) -> None:
        """Wake a guest that sleeps; errors as `reset`."""
        await self._change(
            self._act, vm, "pMWakeup", lambda domain: domain.pMWakeup(0), deadline=deadline
        )

    async def destroy(
        self,
        vm: VmUuid,
        *,
        deadline: timedelta = _DESTROY_DEADLINE,
        answered: OnAnswer = lambda: None,
    ) -> None:
        """Force a VM off; returns when libvirt says that its process has ended.

        It is *answered* as `start`. At the *deadline*, or that of its own if that comes before, it
        tells whether libvirt was given it.

        Raises:
            VmNotFound: libvirt does not know the VM.
            LibvirtInvalidState: it does not run.
        """
        await self._change(
            self._kill,
            vm,
            "destroy",
            lambda domain: domain.destroy(),
            deadline=min(deadline, _DESTROY_DEADLINE),
            answered=answered,
        )

    def _begin(self) -> _Begin:
        self._begun += 1
        return {
            "number": self._begun,
            "after_event": self._connection.events_taken,
            "begin_time": datetime.now(UTC),
        }

    async def _ask(
        self,
        question: Callable[[VirConnect], T],
        *,
        name: str = "query",
        deadline: timedelta = _LOOK_UP_DEADLINE,
        lane: Hashable = None,
    ) -> T:
        """Run a query; one that is not answered in time says nothing about any VM."""
        try:
            return await self._run(self._observe, name, question, deadline, lane)
        except (TimeoutError, Occupied) as error:
            raise LibvirtUnreachable(self._why(deadline)) from error

    async def _change(
        self,
        pool: Pool,
        vm: VmUuid,
        name: str,
        change: Callable[[VirDomain], object],
        *,
        lane: Lane | None = Lane.PROCESS,
        deadline: timedelta | None = None,
        leave: Leave | None = None,
        answered: OnAnswer = lambda: None,
    ) -> None:
        """Run a call that changes the VM; given up, it never begins or its outcome is unknown."""
        # Taken once, atomically: by the thread that goes ahead, or by whoever waits no more. A
        # change that came after all would meddle with what the VM's story is by then.
        go_ahead = leave or Leave()

        def call(link: VirConnect) -> None:
            domain = find(link, vm)
            if not go_ahead.take():
                raise LibvirtUnreachable("given up")
            failpoint("before", name)
            with libvirt_errors(vm, alive=link.isAlive, effect=name):
                change(domain)
            failpoint("after", name)
            answered()

        try:
            await self._run(pool, name, call, deadline, None if lane is None else (vm, lane))
        except Occupied as error:
            if (cause := self._connection.cause) is not None:
                raise LibvirtUnreachable(cause) from error
            raise LibvirtBusy(vm, 0, 0, "it has not answered what it was asked before") from error
        except TimeoutError as error:
            if go_ahead.take():
                raise LibvirtUnreachable(self._why(deadline)) from error
            raise OutcomeUnknown(vm, name, self._why(deadline)) from error
        except asyncio.CancelledError:
            go_ahead.take()
            raise

    def _why(self, deadline: timedelta | None) -> str:
        in_time = f" in {deadline.total_seconds():g} s" if deadline is not None else ""
        return self._connection.cause or f"no answer{in_time}"

    async def _run(
        self,
        pool: Pool,
        name: str,
        call: Callable[[VirConnect], T],
        deadline: timedelta | None,
        lane: Hashable,
    ) -> T:
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
            on_end = partial(self._on_call, name)
            return await pool.run(run, deadline=deadline, hurry=lost, lane=lane, on_end=on_end)
        except NotRun as error:
            raise LibvirtUnreachable(str(error)) from error
