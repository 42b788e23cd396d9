"""A real server on a Unix socket, with a real journal behind it."""

from __future__ import annotations

import os

# As `__main__` does, before gRPC is there: no fork handlers, no chatter.
os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "0")
os.environ.setdefault("GRPC_VERBOSITY", "NONE")

import asyncio
from contextlib import asynccontextmanager
from dataclasses import dataclass
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

from vmagentd.api.server import Server
from vmagentd.api.servicer import HostFacts, Servicer
from vmagentd.api.socketfile import SocketFile
from vmagentd.journal.store import Journal, open_journal
from vmagentd.model import (
    HypervisorFacts,
    LinkLost,
    RawPair,
    Reason,
    Sighting,
    Survey,
    VmState,
    VmUuid,
)
from vmagentd.watch import Watch

from .scripted import ScriptedOperations

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

    from vmagent.v1.vm_agent_service_pb2_grpc import VmAgentServiceAsyncStub

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
class Served:
    """A server with everything behind it."""

    path: Path
    journal: Journal
    operations: ScriptedOperations
    servicer: Servicer
    server: Server
    channel: aio.Channel
    stub: VmAgentServiceAsyncStub

    async def survey(self, *sightings: Sighting) -> None:
        """Have the journal learn of exactly these VMs."""
        await self.journal.append(
            Survey(sightings=sightings, after_event=0, begin_time=datetime.now(UTC), link=1)
        )

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
    path: Path, servicer: Servicer, tasks: asyncio.TaskGroup, *, grace: timedelta
) -> AsyncIterator[Server]:
    """A server at *path*."""
    with SocketFile(path, mode=0o600) as socket:
        async with Server(servicer, socket=socket, grace=grace, tasks=tasks) as server:
            yield server


@asynccontextmanager
async def serving(
    folder: Path, *, grace: timedelta = timedelta(seconds=5)
) -> AsyncIterator[Served]:
    """Serve on `folder/s` with a journal in `folder/state`."""
    faults: list[BaseException] = []
    async with open_journal(folder / "state", fatal=faults.append) as journal:
        operations = ScriptedOperations()
        host = HostFacts(
            name="host1",
            daemon_version="0.1.0",
            libvirt_uri="test:///default",
            boot_id="boot",
            start_time=START,
            ready_time=lambda: START + timedelta(seconds=1),
            hypervisor=lambda: FACTS,
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
            serving_at(path, servicer, tasks, grace=grace) as server,
            aio.insecure_channel(f"unix:{path}") as channel,
        ):
            yield Served(
                path=path,
                journal=journal,
                operations=operations,
                servicer=servicer,
                server=server,
                channel=channel,
                stub=VmAgentServiceStub(channel),
            )
    assert not faults


@pytest.fixture
async def served(folder: Path) -> AsyncIterator[Served]:
    async with serving(folder) as served:
        yield served
