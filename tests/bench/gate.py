"""What the gate costs: the same server through it, and straight at gRPC's own socket.

    python -m tests.bench.gate

Both ways alternate in one run. As root a crowd of another user's connections is refused as well,
while one that may is served.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections import deque
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "0")
os.environ.setdefault("GRPC_VERBOSITY", "NONE")

from grpc import aio
from vmagent.v1 import vm_agent_service_pb2 as pb
from vmagent.v1.transition_pb2 import Cursor
from vmagent.v1.vm_agent_service_pb2_grpc import VmAgentServiceStub

from tests.bench.bed import told
from vmagentd.api.gate import Connections
from vmagentd.api.limits import CallerLimits
from vmagentd.errors import CallerUnknown
from vmagentd.model import Event, EventKind, LocalPeer, RawPair

CALLS, ROUNDS, WATCHERS, CHANGES, REFUSED = 2000, 5, 100, 2000, 10_000
HELD = 16
_HEARTBEAT_BYTES = 200
_OWN = [("grpc.use_local_subchannel_pool", 1)]


async def serve(folder: Path) -> None:
    """Serve until standard input ends; to this server both ways lead to root."""
    from tests.component.api.conftest import (  # noqa: PLC0415 - only the server needs it
        Setting,
        serving,
        sighting,
        uuid,
    )

    setting = Setting(
        limits=CallerLimits(calls_per_second=1e9),
        connections=Connections(each=HELD, total=1000),
    )
    untyped: Any = setting
    untyped.refusals = deque(maxlen=1)  # what a test keeps of them is none of the daemon's memory
    async with serving(folder, setting) as served:
        known = served.gate.peer
        itself = LocalPeer(uid=0, gids=frozenset(), pid=0, user="root")

        def root(name: str) -> LocalPeer:
            with contextlib.suppress(CallerUnknown):  # who comes straight
                known(name)
            return itself

        served.access._local = root
        await served.survey(sighting(1, "web"))
        for number in range(1, CHANGES):
            await served.journal.append(
                Event(
                    number=number,
                    vm=uuid(1),
                    name="web",
                    kind=(EventKind.SUSPENDED_PAUSED, EventKind.RESUMED_UNPAUSED)[1 - number % 2],
                    raw=RawPair(3, 0),
                    run_id=1,
                    observe_time=datetime.now(UTC),
                )
            )
        print(served.journal.id, served.journal.head, flush=True)
        await asyncio.to_thread(sys.stdin.read)


def cpu_s(pid: int) -> float:
    """Return how much CPU time a process has used."""
    fields = Path(f"/proc/{pid}/stat").read_text(encoding="ascii").rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def resident_mib(pid: int) -> float:
    """Return how much memory a process has."""
    return int(Path(f"/proc/{pid}/statm").read_text(encoding="ascii").split()[1]) / 256


async def unary(ways: dict[str, Path]) -> None:
    """Time calls, one way and the other by turns."""
    took: dict[str, list[float]] = {way: [] for way in ways}
    async with contextlib.AsyncExitStack() as stack:
        stubs = {
            way: VmAgentServiceStub(
                await stack.enter_async_context(aio.insecure_channel(f"unix:{path}", _OWN))
            )
            for way, path in ways.items()
        }
        for number in range(CALLS + 200):
            for way, stub in stubs.items():
                began = time.perf_counter()
                await stub.WhoAmI(pb.WhoAmIRequest())
                if number >= 200:
                    took[way].append(time.perf_counter() - began)
    for way, seconds in took.items():
        print(told(f"call, {way}", seconds))
    medians = [statistics.median(seconds) for seconds in took.values()]
    print(f"call, ratio of medians: {medians[1] / medians[0]:.3f}")


async def bytes_of_all(path: Path, begin: Cursor, head: int) -> int:
    """Return how many bytes a watcher is sent until it has all, heartbeats left out."""
    count = 0
    async with aio.insecure_channel(f"unix:{path}", _OWN) as channel:
        async for answer in VmAgentServiceStub(channel).WatchStatus(
            pb.WatchStatusRequest(resume=begin)
        ):
            if answer.transitions:
                count += answer.ByteSize()
                if answer.transitions[-1].revision >= head:
                    break
    return count


async def watched(
    path: Path, begin: Cursor, head: int, size: int, pid: int
) -> tuple[float, float]:
    """Have many watchers read all there is; return deliveries per second, and CPU for each."""
    request = pb.WatchStatusRequest(resume=begin).SerializeToString()

    async def watch(channel: Any) -> None:  # noqa: ANN401 - aio's own types are narrower
        call = channel.unary_stream("/vmagent.v1.VmAgentService/WatchStatus")(request)
        left = size
        # read as bytes: to parse them would cost more than all that is measured
        async for raw in call:
            left -= len(raw) if len(raw) > _HEARTBEAT_BYTES else 0
            if left <= 0:
                break
        call.cancel()

    async with contextlib.AsyncExitStack() as stack:
        channels = [
            await stack.enter_async_context(aio.insecure_channel(f"unix:{path}", _OWN))
            for _ in range(10)
        ]
        for channel in channels:
            await channel.channel_ready()
        cpu, began = cpu_s(pid), time.perf_counter()
        await asyncio.gather(*(watch(channels[n % 10]) for n in range(WATCHERS)))
        took = time.perf_counter() - began
        deliveries = WATCHERS * head
        return deliveries / took, (cpu_s(pid) - cpu) / deliveries


async def watches(ways: dict[str, Path], begin: Cursor, head: int, pid: int) -> None:
    """Measure watchers, one way and the other by turns."""
    rates: dict[str, list[float]] = {way: [] for way in ways}
    cpus: dict[str, list[float]] = {way: [] for way in ways}
    size = await bytes_of_all(ways["direct"], begin, head)
    for _ in range(ROUNDS):
        for way, path in ways.items():
            rate, cpu = await watched(path, begin, head, size, pid)
            rates[way].append(rate)
            cpus[way].append(cpu)
    for way in ways:
        rate, cpu = statistics.median(rates[way]), statistics.median(cpus[way])
        print(f"deliveries/s at {WATCHERS} watchers, {way}: {rate:.0f}, {cpu * 1e6:.2f} µs of CPU")
    medians = [statistics.median(each) for each in rates.values()]
    print(f"deliveries/s, ratio of medians: {medians[1] / medians[0]:.3f}")


async def refused(path: Path, pid: int) -> None:
    """Time the calls of one who may while another user's connections are refused."""
    path.parent.chmod(0o755)
    code = f"""
import os, socket, sys
os.setgid(65534); os.setuid(65534)
def made():
    each = socket.socket(socket.AF_UNIX)
    each.connect({str(path)!r})
    return each
held = [made() for _ in range({HELD})]
for each in held:
    each.sendall(b"PRI * HTTP/2.0\\r\\n\\r\\nSM\\r\\n\\r\\n" + bytes.fromhex("000000040000000000"))
    each.recv(9)
print("held", flush=True)
sys.stdin.readline()
told = 0
for _ in range({REFUSED}):
    with made() as each:
        told += b"limit" in each.recv(500)
print(told, flush=True)
"""
    crowd = await asyncio.create_subprocess_exec(
        sys.executable, "-c", code, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert crowd.stdin is not None
    assert crowd.stdout is not None
    await crowd.stdout.readline()
    async with aio.insecure_channel(f"unix:{path}", _OWN) as channel:
        stub = VmAgentServiceStub(channel)

        async def timed() -> float:
            began = time.perf_counter()
            await stub.WhoAmI(pb.WhoAmIRequest())
            return time.perf_counter() - began

        calm = [await timed() for _ in range(CALLS)]
        memory = resident_mib(pid)
        crowd.stdin.write(b"\n")
        answer = asyncio.ensure_future(crowd.stdout.readline())
        busy = []
        while not answer.done():
            busy.append(await timed())
        print(f"refused: {(await answer).decode().strip()} of {REFUSED}")
    print(told("call, calm", calm))
    print(told("call, while others are refused", busy))
    p99 = [statistics.quantiles(each, n=100)[98] for each in (calm, busy)]
    print(f"call, ratio of p99: {p99[1] / p99[0]:.2f}")
    print(f"memory: {memory:.1f} MiB before, {resident_mib(pid):.1f} MiB after")
    crowd.stdin.close()
    await crowd.wait()


async def measure(folder: Path) -> None:
    """Start a server, measure, and print the figures."""
    server = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "tests.bench.gate", str(folder)),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert server.stdout is not None
    assert server.stdin is not None
    journal, head = (await server.stdout.readline()).split()
    ways = {"direct": folder / "s.d/grpc", "through the gate": folder / "s"}
    begin = Cursor(journal_id=journal.decode(), revision=0)
    await unary(ways)
    await watches(ways, begin, int(head), server.pid)
    if os.geteuid() == 0:
        await refused(folder / "s", server.pid)
    server.stdin.close()
    await server.wait()


if __name__ == "__main__":
    if len(sys.argv) > 1:
        asyncio.run(serve(Path(sys.argv[1])))
    else:
        with tempfile.TemporaryDirectory(prefix="gate-") as directory:
            asyncio.run(measure(Path(directory)))
