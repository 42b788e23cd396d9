"""The whole daemon in a process of its own, on libvirt's test driver or on no libvirt at all."""

from __future__ import annotations

import os

# As `__main__` does, before gRPC is there: no fork handlers, no chatter.
os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "0")
os.environ.setdefault("GRPC_VERBOSITY", "NONE")

import asyncio
import signal
import sqlite3
import sys
from contextlib import asynccontextmanager, closing
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

import grpc
import pytest
from grpc import aio
from vmagent.v1 import vm_agent_service_pb2 as pb
from vmagent.v1.operation_pb2 import OperationOutcome
from vmagent.v1.vm_agent_service_pb2_grpc import VmAgentServiceStub
from vmagent.v1.vm_pb2 import VmState

from tests.component.hypervisor.host import host_xml, until

if TYPE_CHECKING:
    from asyncio.subprocess import Process
    from collections.abc import AsyncIterator, Iterator

    from vmagent.v1.vm_agent_service_pb2_grpc import VmAgentServiceAsyncStub

ROOT = Path(__file__).parents[2]
DEADLINE_S = 20.0
# The daemon gives calls under way 2 s; this leaves time for a busy machine.
ENDS_WITHIN_S = 8.0


@dataclass
class Running:
    """A daemon that serves."""

    process: Process
    stub: VmAgentServiceAsyncStub
    log: Path

    async def ended(self) -> int:
        async with asyncio.timeout(ENDS_WITHIN_S):
            return await self.process.wait()


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder whose path is short: a socket's must be."""
    with TemporaryDirectory(prefix="vmagentd-") as path:
        (Path(path) / "host.xml").write_text(described(["a", "b"]))
        yield Path(path)


def described(names: list[str]) -> str:
    """Return a host whose VMs have the same UUIDs in every process."""
    text = host_xml(names)
    for number, name in enumerate(names, start=1):
        uuid = f"<uuid>{number:08x}-0000-4000-8000-000000000000</uuid>"
        text = text.replace(f"<name>{name}</name>", f"<name>{name}</name>{uuid}")
    return text


async def started(folder: Path, uri: str) -> Process:
    command = [sys.executable, "-m", "vmagentd", "--libvirt-uri", uri]
    command += ["--socket", str(folder / "s"), "--state-dir", str(folder / "state")]
    # an empty file: what this machine has in /etc is none of a test's
    config = folder / "vmagentd.toml"
    config.touch()
    with (folder / "log").open("ab") as log:
        return await asyncio.create_subprocess_exec(
            *command, "--config", str(config), cwd=ROOT, stdout=log, stderr=log
        )


@asynccontextmanager
async def daemon(folder: Path, uri: str | None = None) -> AsyncIterator[Running]:
    process = await started(folder, uri or f"test://{folder}/host.xml")
    log = folder / "log"
    try:
        async with aio.insecure_channel(f"unix:{folder}/s") as channel:
            stub = VmAgentServiceStub(channel)
            # the socket is there before anybody serves on it
            await stub.GetHost(pb.GetHostRequest(), wait_for_ready=True, timeout=DEADLINE_S)
            yield Running(process, stub, log)
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()
        sys.stdout.write(log.read_text())  # pytest shows it if the test failed


def blind_causes(folder: Path) -> list[str]:
    with closing(sqlite3.connect(folder / "state" / "journal.db")) as db:
        return [cause for (cause,) in db.execute("SELECT cause FROM blind ORDER BY id")]


async def test_what_it_serves_is_known_already(folder: Path) -> None:
    """The first survey is committed before the first client is answered."""
    async with daemon(folder) as running:
        vms = await running.stub.ListVms(pb.ListVmsRequest())
        assert [(vm.name, vm.state) for vm in vms.vms] == [
            ("a", VmState.VM_STATE_RUNNING),
            ("b", VmState.VM_STATE_RUNNING),
        ]
        assert vms.link.libvirt_connected


async def watch_and_signal(running: Running, number: signal.Signals) -> None:
    """Signal the daemon when a watcher has all there is, and watch on."""
    async for response in running.stub.WatchStatus(pb.WatchStatusRequest()):
        if response.HasField("heartbeat"):
            running.process.send_signal(number)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_a_signal_ends_it(folder: Path, number: signal.Signals) -> None:
    async with daemon(folder) as running:
        with pytest.raises(aio.AioRpcError) as caught:
            await watch_and_signal(running, number)
        assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
        assert await running.ended() == 0
        log = running.log.read_text()
        assert f"ending: {number.name}" in log
        assert "Traceback" not in log
    assert not (folder / "s").exists()
    # that nobody looks from now on was the last thing to be written down
    assert blind_causes(folder)[-1] == "vmagentd was stopped"


async def test_the_next_one_goes_on_where_it_ended(folder: Path) -> None:
    async with daemon(folder) as first:
        answers = [answer async for answer in first.stub.Stop(pb.StopRequest(vm="a"))]
        assert answers[-1].operation.outcome == OperationOutcome.OPERATION_OUTCOME_DONE
        before = await first.stub.GetHost(pb.GetHostRequest())
        first.process.terminate()
        assert await first.ended() == 0
    async with daemon(folder) as second:
        after = await second.stub.GetHost(pb.GetHostRequest())
        assert after.host.journal_id == before.host.journal_id
        history = await second.stub.ListTransitions(pb.ListTransitionsRequest(oldest_first=True))
        revisions = [t.revision for t in history.transitions]
        assert revisions == list(range(1, len(revisions) + 1))
        assert len(revisions) > before.host.head_revision
        # the test driver's world is new in each process: `a` runs again, and nobody saw it start
        assert history.transitions[-1].late


@pytest.mark.parametrize("uri", ["test:///no/such.xml", "qemu:///system?socket=/no/such/socket"])
async def test_without_libvirt_it_serves_and_says_so(folder: Path, uri: str) -> None:
    async with daemon(folder, uri) as running:
        answer = await running.stub.GetHost(pb.GetHostRequest())
        assert not answer.host.link.libvirt_connected
        assert answer.host.link.HasField("blind_since")
        with pytest.raises(aio.AioRpcError) as caught:
            async for _ in running.stub.Stop(pb.StopRequest(vm="a")):
                pass
        assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
        assert "libvirt cannot be asked" in (caught.value.details() or "")
        running.process.terminate()
        assert await running.ended() == 0


async def test_it_sees_when_libvirt_comes_up(folder: Path) -> None:
    late = folder / "late.xml"
    async with daemon(folder, f"test://{late}") as running:
        late.write_text(described(["a"]))
        async with asyncio.timeout(DEADLINE_S):
            async for response in running.stub.WatchStatus(pb.WatchStatusRequest()):
                names = [t.vm.name for t in response.transitions]
                if "a" in names:
                    break


async def test_it_ends_before_it_has_begun_to_serve(folder: Path) -> None:
    process = await started(folder, f"test://{folder}/host.xml")
    journal = folder / "state" / "journal.db"
    await until(journal.exists, "the journal", within_s=DEADLINE_S)
    process.terminate()
    async with asyncio.timeout(ENDS_WITHIN_S):
        assert await process.wait() == 0


async def test_a_journal_of_a_newer_daemon_ends_it_in_one_line(folder: Path) -> None:
    (folder / "state").mkdir()
    with closing(sqlite3.connect(folder / "state" / "journal.db")) as db:
        db.execute("PRAGMA user_version = 1000")
    process = await started(folder, f"test://{folder}/host.xml")
    async with asyncio.timeout(DEADLINE_S):
        assert await process.wait() == 1
    (line,) = (folder / "log").read_text().splitlines()
    assert "version 1000" in line
