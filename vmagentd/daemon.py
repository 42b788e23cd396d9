"""The whole daemon: opens everything in order, and closes it in reverse.

    socket       held against other daemons; nobody can connect yet
    journal      held, checked, migrated; its writer runs
    libvirt      connecting; events are recorded from here on
    surveys      the first one is awaited, unless libvirt cannot be reached
    operations   those an earlier daemon left open go on
    server       clients come in

It ends at SIGTERM or SIGINT, or with the first fault of any task or thread: the journal makes a
restart cheap, so nothing limps. VMs and operations are left alone; operations go on in the next
daemon.
"""

from __future__ import annotations

import asyncio
import logging
import platform
import signal
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Never

from vmagentd import logind
from vmagentd.api.server import Server
from vmagentd.api.servicer import HostFacts, Servicer
from vmagentd.api.socketfile import SocketFile
from vmagentd.hypervisor.connection import Connection
from vmagentd.hypervisor.domains import Domains
from vmagentd.journal.retention import Limits
from vmagentd.journal.store import open_journal
from vmagentd.model import HostBooted, HostGoingDown, LinkLost
from vmagentd.operations.engine import Operations
from vmagentd.operations.stop import StopTimes
from vmagentd.reconcile import Surveys
from vmagentd.watch import Watch

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Coroutine

    from vmagentd.config import Config
    from vmagentd.journal.store import Journal
    from vmagentd.model import Event

log = logging.getLogger(__name__)

# A libvirt that neither answers nor refuses is not waited for any longer: serve, blind.
_FIRST_LOOK_S: Final = 15.0
_BOOT_ID: Final = Path("/proc/sys/kernel/random/boot_id")


class _Ended(Exception):
    """The daemon was asked to end."""


async def run(config: Config) -> None:
    """Run until a signal ends the daemon.

    Raises:
        StartupError: it cannot run; alone or in a group.
        BaseExceptionGroup: a task or a thread had a fault.
    """
    ending = _Ending()
    with SocketFile(config.socket, mode=config.socket_mode) as socket:
        async with open_journal(
            config.state_dir, fatal=ending.fatal, limits=_limits(config)
        ) as journal:
            await _serve(config, socket, journal, ending)


async def _serve(config: Config, socket: SocketFile, journal: Journal, ending: _Ending) -> None:
    """Connect to libvirt, look, and serve until the end."""
    start_time = datetime.now(UTC)
    loop = asyncio.get_running_loop()
    boot_id = _BOOT_ID.read_text(encoding="ascii").strip()
    journal.record(HostBooted(time=start_time, boot_id=boot_id))
    looked = asyncio.Event()

    def record(fact: Event | LinkLost) -> None:
        journal.record(fact)
        if isinstance(fact, LinkLost):
            loop.call_soon_threadsafe(looked.set)

    # surveys are made from the connection that tells them to begin
    def on_up() -> None:
        surveys.want()

    connection = Connection(config.libvirt_uri, record=record, on_up=on_up, fatal=ending.fatal)
    domains = Domains(connection)
    surveys = Surveys(
        journal,
        survey=domains.survey,
        look_up=domains.look_up,
        interval=config.survey_interval,
    )
    async with _closing(connection, domains), _tasks() as tasks:
        operations = Operations(journal, domains, tasks=tasks, times=_stop_times(config))
        tasks.create_task(connection.keep(), name="link")
        tasks.create_task(surveys.run(), name="surveys")
        tasks.create_task(logind.follow(_on_host(journal)), name="logind")
        tasks.create_task(_recover(operations, surveys), name="recover")
        await _first(ending.cause, looked.wait(), surveys.first_done.wait())

        host = _host(config, connection, boot_id, start_time)
        servicer = Servicer(
            journal=journal, operations=operations, watch=Watch(journal), host=host
        )
        async with Server(
            servicer, socket=socket, grace=config.drain_timeout, tasks=tasks
        ) as server:
            tasks.create_task(_report_health(journal, server), name="health")
            log.info(
                "serving %d VMs of %s on %s%s",
                len(journal.vms),
                config.libvirt_uri,
                config.socket,
                "" if journal.link.connected else f", blind: {journal.link.cause}",
            )
            log.info("ending: %s", await ending.cause)


class _Ending:
    """Why the daemon ends: a signal, or the fault of a thread."""

    def __init__(self) -> None:
        loop = asyncio.get_running_loop()
        self.cause: asyncio.Future[str] = loop.create_future()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._signalled, number.name)

    def fatal(self, error: BaseException) -> None:
        """End with *error*; the first cause counts."""
        if not self.cause.done():
            self.cause.set_exception(error)

    def _signalled(self, name: str) -> None:
        if not self.cause.done():
            self.cause.set_result(name)


def _on_host(journal: Journal) -> Callable[[bool], None]:
    def tell(going_down: bool) -> None:  # noqa: FBT001 - a callback
        journal.record(HostGoingDown(time=datetime.now(UTC), going_down=going_down))

    return tell


@asynccontextmanager
async def _tasks() -> AsyncIterator[asyncio.TaskGroup]:
    """Yield a group whose tasks end with the body, and whose first fault ends the body."""
    try:
        async with asyncio.TaskGroup() as tasks:
            yield tasks
            raise _Ended  # noqa: TRY301 - the way to end a group whose tasks go on for ever
    except* _Ended:
        pass


@asynccontextmanager
async def _closing(connection: Connection, domains: Domains) -> AsyncIterator[None]:
    """Close what talks to libvirt; no call is under way that anybody waits for."""
    try:
        yield
    finally:
        domains.close()
        await connection.close()


async def _first(ended: asyncio.Future[str], *looks: Coroutine[None, None, object]) -> None:
    """Wait until one of *looks* at libvirt has told something, or the daemon ends."""
    tasks = [asyncio.create_task(look, name="first look") for look in looks]
    awaited: list[asyncio.Future[Any]] = [ended, *tasks]
    await asyncio.wait(awaited, timeout=_FIRST_LOOK_S, return_when=asyncio.FIRST_COMPLETED)
    for task in tasks:
        task.cancel()


async def _recover(operations: Operations, surveys: Surveys) -> None:
    """Go on with open operations once it is known how their VMs are."""
    await surveys.first_done.wait()
    operations.recover()


async def _report_health(journal: Journal, server: Server) -> Never:
    while True:
        changed = journal.changed
        server.set_health("libvirt", serving=journal.link.connected)
        server.set_health("journal", serving=journal.writable)
        await changed.wait()


def _stop_times(config: Config) -> StopTimes:
    return StopTimes(
        press_interval=config.stop.press_interval, force_timeout=config.stop.force_timeout
    )


def _limits(config: Config) -> Limits:
    keep = config.retention
    return Limits(
        transitions=keep.transitions_max, age=keep.age_max, operations_age=keep.operations_age
    )


def _host(config: Config, connection: Connection, boot_id: str, start_time: datetime) -> HostFacts:
    ready_time = datetime.now(UTC)
    return HostFacts(
        name=platform.node(),
        daemon_version=version("vmagentd"),
        libvirt_uri=config.libvirt_uri,
        boot_id=boot_id,
        start_time=start_time,
        ready_time=lambda: ready_time,
        hypervisor=lambda: connection.facts,
    )
