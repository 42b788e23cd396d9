"""The daemon as a process of its own, on libvirt's test driver or on no libvirt at all."""

from __future__ import annotations

import os

# As `__main__` does, before gRPC is there: no fork handlers, no chatter.
os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "0")
os.environ.setdefault("GRPC_VERBOSITY", "NONE")

import asyncio
import sys
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from grpc import aio
from vmagent.v1 import vm_agent_service_pb2 as pb
from vmagent.v1.vm_agent_service_pb2_grpc import VmAgentServiceStub

from tests.component.hypervisor.host import host_xml

if TYPE_CHECKING:
    from asyncio.subprocess import Process
    from collections.abc import AsyncIterator, Iterator, Mapping

    from vmagent.v1.vm_agent_service_pb2_grpc import VmAgentServiceAsyncStub

ROOT = Path(__file__).parents[2]
DEADLINE_S = 40.0
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


@contextmanager
def short_folder() -> Iterator[Path]:
    """Yield a folder whose path is short, as a socket's must be; it describes a host."""
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


async def started(folder: Path, uri: str, env: Mapping[str, str] | None = None) -> Process:
    """Start one, with *env* over the environment of the tests."""
    command = [sys.executable, "-m", "vmagentd", "--libvirt-uri", uri]
    command += ["--socket", str(folder / "s"), "--state-dir", str(folder / "state")]
    # an empty file: what this machine has in /etc is none of a test's
    config = folder / "vmagentd.toml"
    config.touch()
    with (folder / "log").open("ab") as log:
        return await asyncio.create_subprocess_exec(
            *command,
            "--config",
            str(config),
            cwd=ROOT,
            stdout=log,
            stderr=log,
            env=os.environ | dict(env or {}),
        )


@asynccontextmanager
async def daemon(
    folder: Path, uri: str | None = None, env: Mapping[str, str] | None = None
) -> AsyncIterator[Running]:
    """Run one until it serves, and to the end of the body."""
    process = await started(folder, uri or f"test://{folder}/host.xml", env)
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
