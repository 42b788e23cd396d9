"""What TLS costs a call on an open channel.

    python -m tests.bench.tls

One server in a process of its own listens with mutual TLS as vmagentd does, and on a plain TCP
port that exists here only. The client asks for a VM through either in turn, call by call.
"""

from __future__ import annotations

import asyncio
import os
import statistics
import subprocess
import sys
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

os.environ.setdefault("GRPC_VERBOSITY", "NONE")

import grpc
from vmagent.v1 import vm_agent_service_pb2 as pb
from vmagent.v1.vm_agent_service_pb2_grpc import VmAgentServiceStub

from tests.bench.bed import told
from tests.component.api.conftest import Setting, serving, sighting
from tests.pki import issue
from vmagentd.api.endpoint import Endpoint
from vmagentd.api.handlers import handlers
from vmagentd.api.limits import CallerLimits
from vmagentd.api.servicer import SERVICE
from vmagentd.model import (
    Denied,
    Grant,
    NetworkSettings,
    RemotePeer,
    Role,
    Rule,
    TlsFiles,
    TlsSettings,
)

if TYPE_CHECKING:
    from grpc import aio

    from vmagentd.api.access import Auth

SUBJECT = "spiffe://example.org/bench"
PORTS = {"plain TCP": 17442, "mutual TLS": 17443}
CALLS = 4000
WARM_UP = 200


def main() -> None:
    """Measure, and print the figures."""
    if sys.argv[1:]:
        asyncio.run(_serve(Path(sys.argv[1])))
        return
    with TemporaryDirectory(prefix="vmagentd-") as name:
        folder = Path(name)
        ca = issue(None, "the CA", ca=True)
        issue(ca, "server", "localhost").write(folder, "server")
        (folder / "ca.pem").write_bytes(ca.pem)
        client = issue(ca, "client", SUBJECT)
        command = [sys.executable, "-m", "tests.bench.tls", name]
        with subprocess.Popen(command) as server:
            try:
                credentials = grpc.ssl_channel_credentials(ca.pem, client.key, client.pem)
                address = "localhost:{}".format
                with (
                    grpc.insecure_channel(address(PORTS["plain TCP"])) as plain,
                    grpc.secure_channel(address(PORTS["mutual TLS"]), credentials) as tls,
                ):
                    _measure({"plain TCP": plain, "mutual TLS": tls})
            finally:
                server.terminate()


def _measure(channels: dict[str, grpc.Channel]) -> None:
    stubs = {kind: VmAgentServiceStub(channel) for kind, channel in channels.items()}
    request = pb.GetVmRequest(vm="web")
    took: dict[str, list[float]] = {kind: [] for kind in stubs}
    for number in range(WARM_UP + CALLS):
        for kind, stub in stubs.items():
            began = time.perf_counter()
            stub.GetVm(request, wait_for_ready=True, timeout=30)
            if number >= WARM_UP:
                took[kind].append(time.perf_counter() - began)
    for kind, seconds in took.items():
        print(told(kind, seconds))
    plain, tls = took.values()
    print(
        f"median of mutual TLS over plain: {statistics.median(tls) / statistics.median(plain):.3f}"
    )
    print(f"sum of mutual TLS over plain: {sum(tls) / sum(plain):.3f}")


async def _serve(folder: Path) -> None:
    """Serve until the process is ended."""
    files = TlsFiles(
        certificate=folder / "server.pem", key=folder / "server.key", client_ca=folder / "ca.pem"
    )
    setting = Setting(
        rules=(Rule(grant=Grant(role=Role.VIEWER), subjects=frozenset({SUBJECT})),),
        limits=CallerLimits(calls_per_second=1_000_000),
        network=NetworkSettings(
            listen=f"127.0.0.1:{PORTS['mutual TLS']}",
            max_connection_age=timedelta(hours=1),
            tls=TlsSettings(files=files, denied=Denied(frozenset())),
        ),
    )
    async with serving(folder, setting) as served:
        await served.survey(sighting(1, "web"))
        by_certificate = served.access._remote

        def peer(connection: str, auth: Auth) -> RemotePeer:
            if "x509_pem_cert" in auth:
                return by_certificate(connection, auth)
            return RemotePeer(
                subject=SUBJECT,
                address=connection,
                serial=1,
                fingerprint="",
                end_time=datetime.max.replace(tzinfo=UTC),
            )

        def bind(server: aio.Server) -> None:
            server.add_insecure_port(f"127.0.0.1:{PORTS['plain TCP']}")

        served.access._remote = peer
        plain = Endpoint(
            bind,
            interceptor=served.server._boundary,
            services=[handlers(SERVICE, *served.servicer.parts)],
            options=served.server._endpoints[0]._options,
            on_crash=lambda: None,
        )
        await plain.start()
        await asyncio.Event().wait()


if __name__ == "__main__":
    main()
