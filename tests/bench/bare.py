"""The least that an operation can cost here: what it must consist of, and nothing around it.

A server of nothing but grpc.aio, sqlite3 and libvirt's test driver, with what is promised of an
operation: it is committed before libvirt is asked and told then; libvirt is asked in a thread;
what libvirt's thread hears of it is committed with the end before that is told; and a local
client's bytes pass a relay, since gRPC does not tell who is at the other end of its sockets. All
rows and messages are ready-made: nobody is identified, and nothing is known, decided, converted,
bounded, counted or logged.

    python -m tests.bench.bare DIRECTORY URI

serves Start and Stop of the one VM of *URI* on `DIRECTORY/bare` until standard input ends.
"""

from __future__ import annotations

import asyncio
import socket
import subprocess
import sys
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from queue import SimpleQueue
from threading import Thread
from typing import TYPE_CHECKING, Any, Final

import grpc
import libvirt
from grpc import aio
from typing_extensions import override  # typing has it since 3.12
from vmagent.v1 import vm_agent_service_pb2 as pb
from vmagent.v1.operation_pb2 import Operation
from vmagent.v1.vm_agent_service_pb2_grpc import VmAgentServiceStub

from vmagentd.api.peercred import credentials
from vmagentd.api.relay import Relay
from vmagentd.hypervisor import eventloop
from vmagentd.journal.schema import open_for_writing, sql, writing

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator

# As long as the daemon's are.
_UUID: Final = "x" * 36
_RECORD: Final = "x" * 840
_VM_RECORD: Final = "x" * 540

_TRANSITION: Final = "INSERT INTO transition VALUES (:n, 'vm', 'STATE', 'RUNNING', :n, :record)"
_VM: Final = """
    INSERT INTO vm VALUES ('vm', 'vm0', 'RUNNING', :n, :vm)
    ON CONFLICT (uuid) DO UPDATE SET revision = :n, record = :vm"""
_ACCEPTED: Final = (
    _TRANSITION,
    _VM,
    """INSERT INTO operation VALUES
        (:id, 'vm', 'uid:0', NULL, 'STOP', 'ACCEPTED', NULL, :n, NULL, :record)""",
    """INSERT INTO audit (kind, time, actor, peer, method, vm, vm_name, operation, phase, count)
        VALUES ('OPERATION', :n, 'uid:0', 'uid 0', 'Stop', 'vm', 'vm0', :id, 'ACCEPTED', 1)""",
)
_ENDED: Final = (
    _TRANSITION,
    _TRANSITION.replace(":n", ":n + 1"),
    _VM,
    """UPDATE operation SET phase = 'SUCCEEDED', outcome = 'DONE', end_time = :n, record = :record
        WHERE id = :id""",
    "UPDATE audit SET phase = 'SUCCEEDED', end_time = :n WHERE operation = :id",
)


@contextmanager
def bare(directory: Path, uri: str) -> Iterator[VmAgentServiceStub]:
    """Run the server in a process of its own, and yield a client of it."""
    command = [sys.executable, "-m", "tests.bench.bare", str(directory), uri]
    process = subprocess.Popen(command, stdin=subprocess.PIPE)
    try:
        with grpc.insecure_channel(f"unix:{directory}/bare") as channel:
            grpc.channel_ready_future(channel).result(30)
            yield VmAgentServiceStub(channel)
    finally:
        process.communicate()


class _Rows(Thread):
    """Commits rows; those of an operation's end as libvirt tells of it."""

    def __init__(self, path: Path) -> None:
        super().__init__(daemon=True)
        self._path = path
        self._asked: SimpleQueue[tuple[tuple[str, ...], str, asyncio.Future[None]]] = SimpleQueue()
        self._open: tuple[str, asyncio.Future[None]] | None = None

    def commit(self, operation: str) -> asyncio.Future[None]:
        done = asyncio.get_running_loop().create_future()
        self._asked.put((_ACCEPTED, operation, done))
        return done

    def expect(self, operation: str) -> asyncio.Future[None]:
        """Return what is done once the end of *operation* is committed."""
        done = asyncio.get_running_loop().create_future()
        self._open = operation, done
        return done

    def heard(self, _link: object, _domain: object, event: int, _detail: int, _: object) -> None:
        """Take in an event; in libvirt's thread."""
        ends = {libvirt.VIR_DOMAIN_EVENT_STARTED, libvirt.VIR_DOMAIN_EVENT_STOPPED}
        if event in ends and self._open is not None:
            self._asked.put((_ENDED, *self._open))
            self._open = None

    @override
    def run(self) -> None:
        db = open_for_writing(self._path)
        for number in count(1, 2):
            statements, operation, done = self._asked.get()
            values = {"n": number, "id": operation, "record": _RECORD, "vm": _VM_RECORD}
            with writing(db):
                for statement in statements:
                    sql(db, statement, values)
            done.get_loop().call_soon_threadsafe(done.set_result, None)


async def _serve(directory: Path, uri: str) -> None:
    eventloop.start()
    link: Any = libvirt.open(uri)
    (domain,) = link.listAllDomains()
    rows = _Rows(directory / "bare.db")
    link.domainEventRegisterAny(None, libvirt.VIR_DOMAIN_EVENT_ID_LIFECYCLE, rows.heard, None)
    rows.start()
    told = pb.StopResponse(
        operation=Operation(operation_id=_UUID, vm_uuid=_UUID, vm_name="x" * 600)
    ).SerializeToString()
    numbers = count(10**35)

    def verb(call: Callable[[], object]) -> grpc.RpcMethodHandler[bytes, bytes]:
        async def carry_out(_request: object, _context: object) -> AsyncIterator[bytes]:
            operation = str(next(numbers))
            await rows.commit(operation)
            ended = rows.expect(operation)
            called = asyncio.get_running_loop().run_in_executor(None, call)
            yield told
            yield told
            await called
            await ended
            yield told

        return grpc.unary_stream_rpc_method_handler(carry_out)

    verbs = {"Start": verb(domain.create), "Stop": verb(domain.destroy)}
    server = aio.server()
    server.add_generic_rpc_handlers(
        (grpc.method_handlers_generic_handler("vmagent.v1.VmAgentService", verbs),)
    )
    server.add_insecure_port(f"unix:{directory}/inner")
    await server.start()
    with _relayed(f"{directory}/bare", f"{directory}/inner"):
        await asyncio.to_thread(sys.stdin.read)
    await server.stop(None)


@contextmanager
def _relayed(outer: str, inner: str) -> Iterator[None]:
    """Relay the connections to *outer* to *inner*, and look who it is."""
    buffer = memoryview(bytearray(256 * 1024))
    loop = asyncio.get_running_loop()
    relays = []
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(outer)
        listener.listen()
        listener.settimeout(0)

        def accept() -> None:
            client, _ = listener.accept()
            client.settimeout(0)
            credentials(client)
            server = socket.socket(socket.AF_UNIX)
            server.connect(inner)
            server.settimeout(0)
            relay = Relay(buffer, on_inner_end=lambda: None)
            relay.join(client, server)
            relays.append(relay)

        loop.add_reader(listener, accept)
        yield
        loop.remove_reader(listener)
        for relay in relays:
            relay.abort()


if __name__ == "__main__":
    sys.setswitchinterval(0.0005)  # as the daemon
    asyncio.run(_serve(Path(sys.argv[1]), sys.argv[2]))
