"""What the daemon takes: memory, idle processor time, and time until it is ready.

With 1,000 VMs and 10 watchers: on libvirt's test driver, and on a libvirtd of its own in which
they are defined. The test driver keeps its VMs in the daemon's own memory, which QEMU's does not;
so what it takes by itself is measured and left out. The daemon has its byte code, as one that was
installed.

    python -m tests.bench.footprint [VMS]
"""

from __future__ import annotations

import asyncio
import os
import resource
import subprocess
import sys
import time
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from grpc import aio
from vmagent.v1 import vm_agent_service_pb2 as pb
from vmagent.v1.vm_agent_service_pb2_grpc import VmAgentServiceStub

from tests.bench.bed import told
from tests.component.process import described, short_folder, started
from tests.component.systemd import Systemd
from tests.system.domains import Guests, Spec
from tests.system.guests import Roms
from tests.system.libvirtd import PrivateLibvirtd

if TYPE_CHECKING:
    from asyncio.subprocess import Process
    from collections.abc import AsyncIterator

WATCHERS = 10
STARTS = 9
# as long as from one survey to the next
QUIET_S = 60.0
_DRIVER = """
import libvirt, sys
def resident():
    return int(open("/proc/self/statm").read().split()[1])
links = [libvirt.open("test:///default")]
before = resident()
links.append(libvirt.open(sys.argv[1]))
print(resident() - before)
"""


def main() -> None:
    """Print the figures."""
    vms = int(sys.argv[1]) if len(sys.argv) > 1 else 1000
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
    with TemporaryDirectory(prefix="bench-") as cache:
        os.environ["PYTHONPYCACHEPREFIX"] = cache
        with short_folder() as folder:
            host = folder / "host.xml"
            host.write_text(described([f"vm{number}" for number in range(vms)]))
            uri = f"test://{host}"
            asyncio.run(_measure("the test driver", folder, uri, vms, driver=_driver_pages(uri)))
        with PrivateLibvirtd() as libvirtd, short_folder() as folder:
            guests = Guests(libvirtd, Roms(folder))
            for number in range(vms):
                guests(Spec(name=f"vm{number}"), running=False)
            asyncio.run(_measure("a libvirtd", folder, libvirtd.uri, vms, driver=0))


def _driver_pages(uri: str) -> int:
    command = [sys.executable, "-c", _DRIVER, uri]
    # The first compiles libvirt's module, and has room for the VMs in what that took.
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return int(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)


async def _measure(what: str, folder: Path, uri: str, vms: int, *, driver: int) -> None:
    print(f"{vms} VMs of {what}:")
    async with AsyncExitStack() as stack:
        systemd = Systemd(folder)
        stack.callback(systemd.close)
        await _starts(folder, uri, systemd)
        process = await stack.enter_async_context(_ready(folder, uri, systemd))
        readers = []
        for _ in range(WATCHERS):
            options = [("grpc.use_local_subchannel_pool", 1)]
            channel = aio.insecure_channel(f"unix:{folder}/s", options=options)
            await stack.enter_async_context(channel)
            watch = VmAgentServiceStub(channel).WatchStatus(pb.WatchStatusRequest())
            await _caught_up(watch)
            readers.append(asyncio.create_task(_read_on(watch)))
        before = _processor_s(process.pid)
        await asyncio.sleep(QUIET_S)
        worked_s = _processor_s(process.pid) - before
        print(f"idle with {WATCHERS} watchers: {100 * worked_s / QUIET_S:.2f} % of a processor")
        pages = _resident_pages(process.pid) - driver
        print(f"memory: {pages * resource.getpagesize() / (1 << 20):.1f} MiB resident")
        for reader in readers:
            reader.cancel()


async def _starts(folder: Path, uri: str, systemd: Systemd) -> None:
    """Start it again and again on what it knows; the first time is not counted, it writes much."""
    took, worked = [], []
    for _ in range(1 + STARTS):
        begin = time.monotonic()
        async with _ready(folder, uri, systemd) as process:
            took.append(time.monotonic() - begin)
            worked.append(_processor_s(process.pid))
    print(told("ready", took[1:]))
    print(told("of which at work", worked[1:]))


@asynccontextmanager
async def _ready(folder: Path, uri: str, systemd: Systemd) -> AsyncIterator[Process]:
    """Run one from when it is ready to the end of the body."""
    process = await started(folder, uri, systemd.environment | {"WATCHDOG_USEC": "30000000"})
    try:
        await systemd.until("READY=1")
        yield process
    finally:
        process.terminate()
        await process.wait()


async def _caught_up(watch: Any) -> None:  # noqa: ANN401  # its stubs know no read()
    while not (await watch.read()).HasField("heartbeat"):
        pass


async def _read_on(watch: Any) -> None:  # noqa: ANN401
    async for _ in watch:
        pass


def _processor_s(pid: int) -> float:
    text = Path(f"/proc/{pid}/stat").read_text()
    user, system = text.rpartition(")")[2].split()[11:13]
    return (int(user) + int(system)) / os.sysconf("SC_CLK_TCK")


def _resident_pages(pid: int) -> int:
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1])


if __name__ == "__main__":
    main()
