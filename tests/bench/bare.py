"""The least that an operation can cost here: what it consists of, and nothing around it.

A server of nothing but grpc.aio and sqlite3: for each call it commits two rows, one after the
other, each with a sync as the journal's, in a thread of their own; has another thread do nothing
at all in between; and streams three messages. No gate, nobody to identify, no VM.

    python -m tests.bench.bare DIRECTORY

serves on `DIRECTORY/bare` until standard input ends.
"""

from __future__ import annotations

import asyncio
import sqlite3
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path
from queue import SimpleQueue
from threading import Thread
from typing import TYPE_CHECKING, Final

import grpc
from grpc import aio
from typing_extensions import override  # typing has it since 3.12
from vmagent.v1 import vm_agent_service_pb2 as pb
from vmagent.v1.operation_pb2 import Operation
from vmagent.v1.vm_agent_service_pb2_grpc import VmAgentServiceStub

from vmagentd.journal.schema import WRITER_PRAGMAS

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

# About what an operation's row and its VM's transition come to.
_ROW: Final = "x" * 1500


@contextmanager
def bare(directory: Path) -> Iterator[VmAgentServiceStub]:
    """Run the server in a process of its own, and yield a client of it."""
    command = [sys.executable, "-m", "tests.bench.bare", str(directory)]
    process = subprocess.Popen(command, stdin=subprocess.PIPE)
    try:
        with grpc.insecure_channel(f"unix:{directory}/bare") as channel:
            grpc.channel_ready_future(channel).result(30)
            yield VmAgentServiceStub(channel)
    finally:
        process.communicate()


class _Rows(Thread):
    """Commits rows, each for itself."""

    def __init__(self, path: Path) -> None:
        super().__init__(daemon=True)
        self._path = path
        self._asked: SimpleQueue[asyncio.Future[None]] = SimpleQueue()

    async def commit(self) -> None:
        done = asyncio.get_running_loop().create_future()
        self._asked.put(done)
        await done

    @override
    def run(self) -> None:
        db = sqlite3.connect(self._path, isolation_level=None)
        for name, value in WRITER_PRAGMAS.items():
            db.execute(f"PRAGMA {name} = {value}")
        db.execute("CREATE TABLE kept (number INTEGER PRIMARY KEY, record TEXT)")
        while True:
            done = self._asked.get()
            db.execute("BEGIN IMMEDIATE")
            db.execute("INSERT INTO kept (record) VALUES (?)", (_ROW,))
            db.execute("COMMIT")
            done.get_loop().call_soon_threadsafe(done.set_result, None)


async def _serve(directory: Path) -> None:
    rows = _Rows(directory / "bare.db")
    rows.start()
    told = pb.StopResponse(operation=Operation(operation_id="x" * 36, vm_uuid="x" * 36))

    async def stop(_request: object, _context: object) -> AsyncIterator[pb.StopResponse]:
        await rows.commit()
        yield told
        yield told
        await asyncio.to_thread(lambda: None)
        await rows.commit()
        yield told

    method = grpc.unary_stream_rpc_method_handler(
        stop, pb.StopRequest.FromString, pb.StopResponse.SerializeToString
    )
    handler = grpc.method_handlers_generic_handler("vmagent.v1.VmAgentService", {"Stop": method})
    server = aio.server()
    server.add_generic_rpc_handlers((handler,))
    server.add_insecure_port(f"unix:{directory}/bare")
    await server.start()
    await asyncio.to_thread(sys.stdin.read)
    await server.stop(None)


if __name__ == "__main__":
    sys.setswitchinterval(0.0005)  # as the daemon
    asyncio.run(_serve(Path(sys.argv[1])))
