"""The whole daemon: opens everything in order, and closes it in reverse.

    socket       held against other daemons; nobody can connect yet
    journal      held, checked, migrated; its writer runs
    libvirt      connecting; events are recorded from here on
    surveys      the first one is awaited, unless libvirt cannot be reached
    operations   those an earlier daemon left open go on
    server       clients come in; systemd is told so

It ends at SIGTERM or SIGINT, or with the first fault of any task or thread: the journal makes a
restart cheap, so nothing limps. VMs and operations are left alone; operations go on in the next
daemon.
"""

from __future__ import annotations

import asyncio
import gc
import logging
import platform
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Never

from vmagentd import appliers, logind, messages, notify, settings
from vmagentd.api import socketfile
from vmagentd.api.access import Access
from vmagentd.api.directory import Directory
from vmagentd.api.gate import Gate
from vmagentd.api.network import Network
from vmagentd.api.refusals import Refusals
from vmagentd.api.server import Server
from vmagentd.api.servicer import HostFacts, Servicer
from vmagentd.api.socketfile import SocketFile
from vmagentd.ending import Ending
from vmagentd.hypervisor.connection import Connection
from vmagentd.hypervisor.domains import Domains
from vmagentd.journal.store import open_journal
from vmagentd.metrics import Metrics
from vmagentd.model import HostBooted, HostGoingDown, LinkLost
from vmagentd.operations.engine import Operations
from vmagentd.operations.means import Clock, Means
from vmagentd.operations.starts import Starts
from vmagentd.reconcile import Surveys
from vmagentd.reload import Reload
from vmagentd.watch import Watch

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Coroutine

    from vmagentd.config import Config
    from vmagentd.errors import VmagentdError
    from vmagentd.journal.store import Journal
    from vmagentd.model import Caller, Event

log = logging.getLogger(__name__)

# A libvirt that neither answers nor refuses is not waited for any longer: serve, blind.
_FIRST_LOOK_S: Final = 15.0
_BOOT_ID: Final = Path("/proc/sys/kernel/random/boot_id")


class _Ended(Exception):
    """The daemon was asked to end."""


async def run(config: Config, load: Callable[[], Config]) -> None:
    """Run until a signal ends the daemon.

    Args:
        config: the settings to begin with.
        load: reads them again, at SIGHUP.

    Raises:
        StartupError: it cannot run; alone or in a group.
        BaseExceptionGroup: a task or a thread had a fault.
    """
    ending = Ending()
    reload = Reload(config, load)
    metrics = Metrics(config.metrics.listen)
    notify.opening()
    place = SocketFile(
        config.socket, mode=config.socket_mode, adopted=socketfile.adopted(config.socket)
    )
    appliers.of_socket(reload, place, config)
    with place as socket:
        async with open_journal(
            config.state_dir,
            fatal=ending.fatal,
            limits=settings.retention(config),
            on_measured=metrics.observe.commit,
        ) as journal:
            await _serve(config, socket, journal, ending, reload=reload, metrics=metrics)
    if ending.fault is not None:  # met while all was closed
        raise ending.fault


async def _serve(
    config: Config,
    socket: SocketFile,
    journal: Journal,
    ending: Ending,
    *,
    reload: Reload,
    metrics: Metrics,
) -> None:
    """Connect to libvirt, look, and serve until the end."""
    observe = metrics.observe
    start_time = datetime.now(UTC)
    loop = asyncio.get_running_loop()
    boot_id = _BOOT_ID.read_text(encoding="ascii").strip()
    booted = _booted(journal, start_time, boot_id)
    looked = asyncio.Event()

    def record(fact: Event | LinkLost) -> None:
        journal.record(fact)
        if isinstance(fact, LinkLost):
            loop.call_soon_threadsafe(looked.set)

    # surveys are made from the connection that tells them to begin
    def on_up() -> None:
        observe.connect()
        surveys.want()

    connection = Connection(config.libvirt_uri, record=record, on_up=on_up, fatal=ending.fatal)
    domains = Domains(connection, on_call=observe.call)
    surveys = Surveys(
        journal,
        survey=domains.survey,
        look_up=domains.look_up,
        interval=config.survey_interval,
    )
    async with _closing(connection, domains), _tasks() as tasks:
        means = _means(config, journal, domains, boot_id)
        operations = Operations(means, tasks=tasks, on_end=observe.operation)
        tasks.create_task(connection.keep(), name="link")
        tasks.create_task(surveys.run(), name="surveys")
        tasks.create_task(logind.follow(_on_host(journal)), name="logind")
        tasks.create_task(_recover(operations, surveys), name="recover")
        await _first(ending.cause, booted, looked.wait(), surveys.first_done.wait())

        watch = Watch(journal, on_delivered=observe.delivered)
        servicer = Servicer(
            journal=journal,
            operations=operations,
            watch=watch,
            host=_host(config, connection, means, start_time),
            stall_timeout=config.limits.stall_timeout,
        )

        refusals = Refusals(journal.record, find=journal.find)

        def on_refusal(
            caller: Caller | None, peer: str, method: str, error: VmagentdError
        ) -> None:
            refusals.note(caller, peer, method, error)
            observe.refusal(error)

        directory = Directory()
        gate = Gate(
            directory=directory,
            limits=settings.connections(config),
            on_refusal=lambda peer, error: on_refusal(None, peer, "", error),
            tasks=tasks,
        )
        network = Network(config.remote.network)
        access = Access(
            directory=directory, local=gate.peer, remote=network.peer, admit=network.admit
        )
        await access.apply(config.access.rules)
        async with (
            refusals,
            metrics.served(journal, watch, tasks, connections=gate.__len__),
            Server(
                servicer,
                access=access,
                limits=settings.caller_limits(config),
                on_refusal=on_refusal,
                gate=gate,
                socket=socket,
                network=network,
                grace=config.drain_timeout,
                tasks=tasks,
            ) as server,
        ):
            tasks.create_task(_report_health(journal, server), name="health")
            tasks.create_task(notify.feed_watchdog(journal.beat), name="watchdog")
            tasks.create_task(notify.keep_status(journal, lambda: watch.watchers), name="status")
            # in this order: a denial does not wait for a directory that is slow
            appliers.of_tls(reload, network, server)
            appliers.of_access(reload, access, gate, server, servicer)
            appliers.of_work(reload, journal, surveys, means, server)
            tasks.create_task(network.keep(server.recheck), name="tls")
            tasks.create_task(reload.run(), name="reload")
            # Nearly all that is there by now is there for good: to look through it for garbage
            # again and again holds every thread up for 25 ms each time (measured).
            gc.freeze()
            notify.ready()
            log.info(
                "serving %s of %s on %s%s",
                notify.counted(len(journal.vms), "VM"),
                config.libvirt_uri,
                socket.address,
                "" if journal.link.connected else f", blind: {journal.link.cause}",
                extra={"MESSAGE_ID": messages.READY},
            )
            log.info("ending: %s", await ending.cause, extra={"MESSAGE_ID": messages.ENDING})
            notify.stopping()


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


def _booted(journal: Journal, time: datetime, boot_id: str) -> asyncio.Future[None]:
    """Record which boot of the host this is; done once it is known what ended with another."""
    recorded = journal.submit(HostBooted(time=time, boot_id=boot_id))
    # looked at: if it cannot be recorded, the journal ends the daemon by itself
    recorded.add_done_callback(lambda done: done.exception())
    return recorded


async def _first(
    ended: asyncio.Future[Any],
    booted: asyncio.Future[Any],
    *looks: Coroutine[None, None, object],
) -> None:
    """Wait until one of *looks* at libvirt has told something, or the daemon ends.

    In any case until *booted*: no VM that ended with the host is served as one that runs.
    """
    tasks = [asyncio.create_task(look, name="first look") for look in looks]
    awaited: list[asyncio.Future[Any]] = [ended, *tasks]
    await asyncio.wait(awaited, timeout=_FIRST_LOOK_S, return_when=asyncio.FIRST_COMPLETED)
    for task in tasks:
        task.cancel()
    await asyncio.wait([ended, booted], return_when=asyncio.FIRST_COMPLETED)


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


def _means(config: Config, journal: Journal, domains: Domains, boot_id: str) -> Means:
    return Means(
        journal=journal,
        domains=domains,
        times=config.stop.times,
        starts=Starts(journal, config.host_limits.limits),
        clock=Clock(boot_id=boot_id),
    )


def _host(config: Config, connection: Connection, means: Means, start_time: datetime) -> HostFacts:
    ready_time = datetime.now(UTC)
    return HostFacts(
        name=platform.node(),
        daemon_version=version("vmagentd"),
        libvirt_uri=config.libvirt_uri,
        boot_id=means.clock.boot_id,
        start_time=start_time,
        ready_time=lambda: ready_time,
        hypervisor=lambda: connection.facts,
        starts=means.starts,
    )
