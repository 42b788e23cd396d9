"""A real server on a Unix socket, with a real journal behind it."""

from __future__ import annotations

import os

# As `__main__` does, before gRPC is there: no fork handlers, no chatter.
os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "0")
os.environ.setdefault("GRPC_VERBOSITY", "NONE")

import asyncio
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, cast

import grpc
import pytest
from google.rpc import error_details_pb2
from grpc import aio
from grpc_status import rpc_status
from vmagent.v1.vm_agent_service_pb2_grpc import VmAgentServiceStub

from vmagentd.api.access import Access
from vmagentd.api.directory import Directory
from vmagentd.api.gate import Connections, Gate
from vmagentd.api.limits import CallerLimits
from vmagentd.api.network import Network
from vmagentd.api.server import Server
from vmagentd.api.servicer import HostFacts, Servicer
from vmagentd.api.socketfile import SocketFile
from vmagentd.journal.store import Journal, open_journal
from vmagentd.model import (
    Caller,
    HostGoingDown,
    HypervisorFacts,
    LinkLost,
    NetworkSettings,
    RawPair,
    Reason,
    Rule,
    Sighting,
    Survey,
    VmState,
    VmUuid,
)
from vmagentd.operations.starts import HostLimits, Starts
from vmagentd.watch import Watch

from .scripted import ScriptedOperations

if TYPE_CHECKING:
    import socket
    from collections.abc import AsyncIterator, Iterator

    from vmagent.v1.vm_agent_service_pb2_grpc import VmAgentServiceAsyncStub

    from vmagentd.api.boundary import OnRefusal
    from vmagentd.errors import VmagentdError

# Facts of libvirt: nothing of it is needed here.
FACTS = HypervisorFacts(
    libvirt_version="9.0.0",
    hypervisor_version="QEMU 7.2.0",
    host_cpus=8,
    host_memory_bytes=1 << 34,
)
START = datetime(2026, 1, 1, tzinfo=UTC)


def uuid(number: int) -> VmUuid:
    return VmUuid(f"{number:08x}-0000-4000-8000-000000000000")


def sighting(number: int, name: str, state: VmState = VmState.RUNNING) -> Sighting:
    return Sighting(
        vm=uuid(number),
        name=name,
        state=state,
        reason=Reason.BOOTED if state is VmState.RUNNING else Reason.UNKNOWN,
        raw=RawPair(1, 1),
        active=state is VmState.RUNNING,
        persistent=True,
        run_id=number if state is VmState.RUNNING else None,
        vcpus=2,
        memory_bytes=1 << 30,
    )


@dataclass
class Setting:
    """How a server is set, and whom it refused: who, from where, what, why."""

    rules: tuple[Rule, ...] = ()
    limits: CallerLimits = field(default_factory=CallerLimits)
    connections: Connections = field(default_factory=lambda: Connections(each=256, total=1024))
    grace: timedelta = timedelta(seconds=5)
    adopted: socket.socket | None = None
    network: NetworkSettings | None = None
    directory: Directory | None = None
    refusals: list[tuple[Caller | None, str, str, VmagentdError]] = field(default_factory=list)
    # instead of keeping it there
    on_refusal: OnRefusal | None = None


@dataclass
class Served:
    """A server with everything behind it."""

    path: Path
    journal: Journal
    operations: ScriptedOperations
    servicer: Servicer
    server: Server
    gate: Gate
    access: Access
    starts: Starts
    setting: Setting
    channel: aio.Channel
    stub: VmAgentServiceAsyncStub

    async def survey(self, *sightings: Sighting) -> None:
        """Have the journal learn of exactly these VMs."""
        now = datetime.now(UTC)
        await self.journal.append(
            Survey(sightings=sightings, number=1, after_event=0, begin_time=now, link=1)
        )

    async def written(self) -> None:
        """Wait until the journal has committed all that was recorded before."""
        await self.journal.append(HostGoingDown(time=datetime.now(UTC), going_down=False))

    async def lose_link(self) -> None:
        """Have the journal learn that libvirt cannot be asked."""
        await self.journal.append(LinkLost(time=datetime.now(UTC), cause="it ended", link=0))


@dataclass
class Refusal:
    """The status that ended a call."""

    code: grpc.StatusCode
    message: str
    reason: str
    facts: dict[str, str]
    fields: list[str]
    details: list[str]


def read_refusal(error: aio.AioRpcError) -> Refusal:
    """Return the typed status of a call that failed; every one must have it."""
    status = rpc_status.from_call(error)  # type: ignore[arg-type]
    assert status is not None, error
    info = error_details_pb2.ErrorInfo()
    bad = error_details_pb2.BadRequest()
    for detail in status.details:
        detail.Unpack(info)
        detail.Unpack(bad)
    assert info.domain == "vmagentd"
    return Refusal(
        code=error.code(),
        message=error.details() or "",
        reason=info.reason,
        facts=dict(info.metadata),
        fields=[violation.field for violation in bad.field_violations],
        details=[detail.TypeName().rpartition(".")[2] for detail in status.details],
    )


async def refusal(call: Any) -> Refusal:  # noqa: ANN401  # any kind of call
    """Read *call* to its end, and return the status that ended it."""
    with pytest.raises(aio.AioRpcError) as caught:
        await collected(call) if hasattr(call, "__aiter__") else await call
    return read_refusal(caught.value)


async def collected(call: aio.UnaryStreamCall[Any, Any]) -> list[Any]:
    return [message async for message in call]


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder whose path is short: a socket's must be."""
    with TemporaryDirectory(prefix="vmagentd-") as path:
        yield Path(path)


@asynccontextmanager
async def serving_at(
    path: Path, servicer: Servicer, tasks: asyncio.TaskGroup, setting: Setting
) -> AsyncIterator[tuple[Server, Gate, Access]]:
    """A server at *path*."""
    with SocketFile(path, mode=0o666, adopted=setting.adopted) as place:
        directory = setting.directory or Directory()
        gate = Gate(
            directory=directory,
            limits=setting.connections,
            on_refusal=lambda peer, error: setting.refusals.append((None, peer, "", error)),
            tasks=tasks,
        )
        network = Network(setting.network)
        access = Access(
            directory=directory, local=gate.peer, remote=network.peer, admit=network.admit
        )
        await access.apply(setting.rules)
        async with Server(
            servicer,
            access=access,
            limits=setting.limits,
            on_refusal=setting.on_refusal or (lambda *each: setting.refusals.append(each)),
            gate=gate,
            socket=place,
            network=network,
            grace=setting.grace,
            tasks=tasks,
        ) as server:
            keeper = tasks.create_task(network.keep(server.recheck))
            yield server, gate, access
            keeper.cancel()


@asynccontextmanager
async def serving(
    folder: Path, setting: Setting | None = None, *, grace: timedelta = timedelta(seconds=5)
) -> AsyncIterator[Served]:
    """Serve on `folder/s` with a journal in `folder/state`."""
    faults: list[BaseException] = []
    setting = setting or Setting(grace=grace)
    async with open_journal(folder / "state", fatal=faults.append) as journal:
        operations = ScriptedOperations()
        starts = Starts(journal, HostLimits())
        host = HostFacts(
            name="host1",
            daemon_version="0.1.0",
            libvirt_uri="test:///default",
            boot_id="boot",
            start_time=START,
            ready_time=lambda: START + timedelta(seconds=1),
            hypervisor=lambda: FACTS,
            starts=starts,
        )
        servicer = Servicer(
            journal=journal,
            operations=cast("Any", operations),
            watch=Watch(journal),
            host=host,
        )
        path = folder / "s"
        async with (
            asyncio.TaskGroup() as tasks,
            serving_at(path, servicer, tasks, setting) as (server, gate, access),
            aio.insecure_channel(f"unix:{path}") as channel,
        ):
            yield Served(
                path=path,
                journal=journal,
                operations=operations,
                servicer=servicer,
                server=server,
                gate=gate,
                access=access,
                starts=starts,
                setting=setting,
                channel=channel,
                stub=VmAgentServiceStub(channel),
            )
    assert not faults


@pytest.fixture
async def served(folder: Path) -> AsyncIterator[Served]:
    async with serving(folder) as served:
        yield served
