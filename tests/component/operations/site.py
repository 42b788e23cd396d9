"""A host of libvirt's test driver, and daemons on it, one after the other."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from typing_extensions import override  # typing has it since 3.12

from tests.component.hypervisor.host import domain_xml, host_xml, until
from vmagentd.errors import LibvirtUnreachable
from vmagentd.hypervisor.connection import Connection
from vmagentd.hypervisor.domains import Domains, OnAnswer
from vmagentd.hypervisor.guest import AskMethod
from vmagentd.journal.store import Journal, open_journal
from vmagentd.model import (
    Caller,
    CallerOrigin,
    OnGraceExpired,
    Operation,
    OperationId,
    OperationPhase,
    Parameters,
    PauseParameters,
    RebootMode,
    RebootParameters,
    ResumeParameters,
    Source,
    StartParameters,
    StopMode,
    StopParameters,
    VmState,
    VmUuid,
)
from vmagentd.operations.engine import Operations
from vmagentd.operations.means import Clock, Means, Times
from vmagentd.operations.starts import HostLimits, Starts
from vmagentd.reconcile import Surveys

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Iterable
    from pathlib import Path

    from vmagentd.model import Event, LinkLost, Query, Vm
    from vmagentd.operations.run import Run
    from vmagentd.pool import Leave

DEADLINE_S = 20.0
SECOND = timedelta(seconds=1)

START = StartParameters(timeout=60 * SECOND)
STOP = StopParameters(
    mode=StopMode.GRACEFUL, grace_period=60 * SECOND, on_grace_expired=OnGraceExpired.FAIL
)
FORCED = replace(STOP, mode=StopMode.FORCE)
PAUSE = PauseParameters(timeout=60 * SECOND)
RESUME = ResumeParameters(timeout=60 * SECOND)
REBOOT = RebootParameters(
    mode=RebootMode.GRACEFUL, grace_period=60 * SECOND, on_grace_expired=OnGraceExpired.FAIL
)
RESET = replace(REBOOT, mode=RebootMode.FORCE)
STOP_OR_FORCE = replace(STOP, on_grace_expired=OnGraceExpired.FORCE)
# Long times: what ends earlier in a test ended for a reason of its own.
TIMES = Times(press_interval=3600 * SECOND, force_timeout=60 * SECOND)

# libvirt's number of the state in which a domain has no process
_SHUTOFF = 5


class Meddled(Domains):
    """Domains that a test can make do something else for a call of that name, or before it."""

    def __init__(self, connection: Connection) -> None:
        super().__init__(connection)
        self.calls: list[str] = []
        self.instead: dict[str, Callable[[], Awaitable[object]]] = {}
        self.before: dict[str, Callable[[], Awaitable[object]]] = {}

    async def _meddle(self, call: str) -> bool:
        self.calls.append(call)
        if call in self.before:
            await self.before[call]()
        if call in self.instead:
            await self.instead[call]()
            return True
        return False

    @override
    async def look_up(self, vm: VmUuid, *, source: Source = Source.SURVEY) -> Query:
        if "look_up" in self.before:
            await self.before["look_up"]()
        return await super().look_up(vm, source=source)

    @override
    async def start(
        self,
        vm: VmUuid,
        *,
        paused: bool,
        discard_saved_state: bool,
        leave: Leave | None = None,
        answered: OnAnswer = lambda: None,
    ) -> None:
        if "start" in self.before or "start" in self.instead:
            # what happens then happens in libvirt, which has been given it
            assert leave is None or leave.take()
            leave = None
        if not await self._meddle("start"):
            await super().start(
                vm,
                paused=paused,
                discard_saved_state=discard_saved_state,
                leave=leave,
                answered=answered,
            )

    @override
    async def shutdown(self, vm: VmUuid) -> AskMethod:
        if await self._meddle("shutdown"):
            return AskMethod.DRIVER
        return await super().shutdown(vm)

    @override
    async def destroy(
        self,
        vm: VmUuid,
        *,
        deadline: timedelta = 50 * SECOND,
        answered: OnAnswer = lambda: None,
    ) -> None:
        if not await self._meddle("destroy"):
            await super().destroy(vm, deadline=deadline, answered=answered)

    @override
    async def reboot(self, vm: VmUuid) -> AskMethod:
        if await self._meddle("reboot"):
            return AskMethod.ACPI
        return await super().reboot(vm)

    @override
    async def reset(self, vm: VmUuid, *, deadline: timedelta = 30 * SECOND) -> None:
        if not await self._meddle("reset"):
            await super().reset(vm, deadline=deadline)

    @override
    async def pause(self, vm: VmUuid, *, deadline: timedelta) -> None:
        if not await self._meddle("pause"):
            await super().pause(vm, deadline=deadline)

    @override
    async def resume(self, vm: VmUuid, *, deadline: timedelta) -> None:
        if not await self._meddle("resume"):
            await super().resume(vm, deadline=deadline)

    @override
    async def wake(self, vm: VmUuid, *, deadline: timedelta) -> None:
        if not await self._meddle("wake"):
            await super().wake(vm, deadline=deadline)

    def deaf(self) -> None:
        """Let guests not react to their power button."""
        self.instead["shutdown"] = self.instead["reboot"] = nothing


async def nothing() -> None:
    pass


async def for_ever() -> None:
    await asyncio.Event().wait()


async def unreachable() -> None:
    raise LibvirtUnreachable("it ended")


@dataclass
class Site:
    """libvirt, which outlives the daemon."""

    state_dir: Path
    connection: Connection
    domains: Meddled
    record: list[Journal] = field(default_factory=list)
    limits: HostLimits = field(default_factory=HostLimits)
    times: Times = TIMES
    clock: Clock = field(default_factory=lambda: Clock(boot_id="this one"))
    # events are not heard while this is set, as if nobody listened
    unheard: bool = False

    @property
    def raw(self) -> Any:  # noqa: ANN401  (libvirt-python has no types)
        """What virsh would use."""
        return self.connection.links().of("test", 0)

    def domain(self, name: str) -> Any:  # noqa: ANN401
        return self.raw.lookupByName(name)

    def uuid(self, name: str) -> VmUuid:
        return VmUuid(self.domain(name).UUIDString())

    def define(self, *names: str) -> None:
        for name in names:
            self.raw.defineXML(domain_xml(name))

    def take(self, fact: Event | LinkLost) -> None:
        """Pass on to the daemon that runs, if one does; in whichever thread libvirt uses."""
        if self.record and not self.unheard:
            self.record[-1].record(fact)

    async def in_silence(self, act: Callable[[], object]) -> None:
        """Do something that the daemon does not hear of."""
        self.unheard = True
        before = self.connection.events_taken
        act()
        await until(lambda: self.connection.events_taken > before, "the event")
        # there may be several; a marker of our own is the last one
        self.define("marker")
        marked = self.connection.events_taken
        self.domain("marker").undefine()
        await until(lambda: self.connection.events_taken >= marked + 1, "the marker's events")
        self.unheard = False

    @asynccontextmanager
    async def daemon(self, *, recover: bool = True) -> AsyncIterator[Daemon]:
        """Run what of a daemon operations need; its end leaves operations open."""
        faults: list[BaseException] = []
        async with open_journal(self.state_dir, fatal=faults.append) as journal:
            surveys = Surveys(
                journal,
                survey=self.domains.survey,
                look_up=self.domains.look_up,
                interval=3600 * SECOND,
            )
            try:
                async with asyncio.TaskGroup() as tasks:
                    means = Means(
                        journal=journal,
                        domains=self.domains,
                        times=self.times,
                        starts=Starts(journal, self.limits),
                        clock=self.clock,
                    )
                    operations = Operations(means, tasks=tasks)
                    tasks.create_task(surveys.run())
                    self.record.append(journal)
                    surveys.want()
                    await surveys.first_done.wait()
                    if recover:
                        operations.recover()
                    yield Daemon(self, journal, operations, means.starts)
                    raise _Ended  # noqa: TRY301 - the way to end tasks that go on for ever
            except* _Ended:
                pass
            finally:
                self.record.clear()
        assert not faults


class _Ended(Exception):
    pass


def somebody(actor: str = "tester") -> Caller:
    """Return somebody who asks for operations."""
    return Caller(actor=actor, origin=CallerOrigin.LOCAL, peer="uid 1000, pid 1")


@dataclass
class Daemon:
    site: Site
    journal: Journal
    operations: Operations
    starts: Starts

    def ask(
        self,
        ref: str,
        parameters: Parameters,
        *,
        request_id: str | None = None,
        actor: str = "tester",
    ) -> AsyncGenerator[Operation]:
        return self.operations.ask(ref, parameters, caller=somebody(actor), request_id=request_id)

    async def steps(
        self,
        ref: str,
        parameters: Parameters,
        *,
        request_id: str | None = None,
        actor: str = "tester",
    ) -> list[Operation]:
        """Carry an operation out and return each of its steps.

        The last one finds the truth in the journal: what libvirt says of the VM, and no operation
        under way on it.
        """
        told: list[Operation] = []
        async with asyncio.timeout(DEADLINE_S):
            async for step in self.ask(ref, parameters, request_id=request_id, actor=actor):
                told.append(step)
                if step.phase.final:
                    self.check_truth(step)
        assert [step.phase.final for step in told] == [False] * (len(told) - 1) + [True]
        return told

    async def done(
        self,
        ref: str,
        parameters: Parameters,
        *,
        request_id: str | None = None,
        actor: str = "tester",
    ) -> Operation:
        return (await self.steps(ref, parameters, request_id=request_id, actor=actor))[-1]

    async def under_way(
        self, ref: str, parameters: Parameters, phase: OperationPhase
    ) -> tuple[OperationId, asyncio.Task[Operation]]:
        """Ask for an operation; return when it has come to *phase*, and a task that follows it."""
        seen: asyncio.Future[Operation] = asyncio.get_running_loop().create_future()

        async def follow() -> Operation:
            last = None
            async for step in self.ask(ref, parameters):
                last = step
                if step.phase is phase and not seen.done():
                    seen.set_result(step)
                if step.phase.final:
                    self.check_truth(step)
            assert last is not None
            return last

        task = asyncio.create_task(follow())
        async with asyncio.timeout(DEADLINE_S):
            await asyncio.wait([seen, task], return_when=asyncio.FIRST_COMPLETED)
        assert seen.done(), f"it never came to {phase}: {task}"
        return seen.result().id, task

    def let_time_pass(self) -> Run:
        """Bring the one operation under way to its deadline, once it does not wait any more."""
        (run,) = self.operations._runs.values()
        run.deadline = asyncio.get_running_loop().time()
        return run

    def check_truth(self, operation: Operation) -> None:
        vm = self.journal.vms[operation.vm]
        assert vm.active_operation_id is None
        found = [d for d in self.site.raw.listAllDomains() if d.UUIDString() == vm.uuid]
        if found:
            assert vm.active == (found[0].state()[0] != _SHUTOFF)
            assert vm.state is not VmState.GONE
        else:
            assert vm.state is VmState.GONE

    def vm(self, name: str) -> Vm:
        found = self.journal.find(name)
        assert found is not None
        return found

    async def until_state(self, name: str, state: VmState) -> Vm:
        await until(lambda: self.vm(name).state is state, f"{name} {state}")
        return self.vm(name)


@asynccontextmanager
async def site(folder: Path, running: Iterable[str]) -> AsyncIterator[Site]:
    """Connect to a host on which the VMs *running* do, and no others."""
    description = folder / "host.xml"
    description.write_text(host_xml([*running]))
    faults: list[BaseException] = []
    place: Site

    def record(fact: Event | LinkLost) -> None:
        place.take(fact)

    connection = Connection(
        f"test://{description}", record=record, on_up=lambda: None, fatal=faults.append
    )
    domains = Meddled(connection)
    place = Site(folder / "state", connection, domains)
    keeping = asyncio.create_task(connection.keep(), name="keep")
    try:
        await until(lambda: connection.connected, "connected")
        yield place
    finally:
        keeping.cancel()
        await asyncio.wait([keeping])
        await connection.close()
        domains.close()
    assert not faults
