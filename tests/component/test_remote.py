"""The daemon as a process that listens on TCP, too."""

from __future__ import annotations

import asyncio
import re
import signal
import socket
import ssl
from contextlib import suppress
from typing import TYPE_CHECKING

import grpc
import pytest
from grpc import aio
from vmagent.v1 import vm_agent_service_pb2 as pb
from vmagent.v1.vm_agent_service_pb2_grpc import VmAgentServiceStub

from tests.component.process import DEADLINE_S, daemon, short_folder, started
from tests.pki import Pair, issue

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator
    from pathlib import Path

SUBJECT = "spiffe://example.org/ops"


@pytest.fixture
def folder() -> Iterator[Path]:
    with short_folder() as folder:
        yield folder


def configured(folder: Path, ca: Pair, port: int, more: str = "") -> None:
    """Write the settings of a daemon whose clients are of *ca*."""
    if not (folder / "server.pem").exists():
        issue(ca, "server", "localhost").write(folder, "server")
        (folder / "ca.pem").write_bytes(ca.pem)
    (folder / "vmagentd.toml").write_text(
        f"""
        [remote]
        listen = "127.0.0.1:{port}"
        certificate = "{folder}/server.pem"
        key = "{folder}/server.key"
        client_ca = "{folder}/ca.pem"
        {more}
        [[access.grants]]
        role = "viewer"
        subjects = ["{SUBJECT}"]
        """
    )


async def test_sighup_denies_a_certificate_of_the_settings(folder: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    ca = issue(None, "the CA", ca=True)
    client = issue(ca, "client", SUBJECT)
    configured(folder, ca, port)
    credentials = grpc.ssl_channel_credentials(ca.pem, client.key, client.pem)
    async with (
        daemon(folder) as running,
        aio.secure_channel(f"localhost:{port}", credentials) as channel,
        asyncio.timeout(DEADLINE_S),
    ):
        stub = VmAgentServiceStub(channel)
        watch = stub.WatchStatus(pb.WatchStatusRequest())
        responses = watch.__aiter__()
        await anext(responses)
        configured(folder, ca, port, f'deny_serials = ["{client.serial}"]')
        running.process.send_signal(signal.SIGHUP)
        ended = await _end(responses)
        assert ended.code() is grpc.StatusCode.UNAUTHENTICATED
        # and it may come back
        configured(folder, ca, port)
        running.process.send_signal(signal.SIGHUP)
        while True:
            with suppress(aio.AioRpcError):
                await stub.GetHost(pb.GetHostRequest())
                break


@pytest.mark.parametrize("no_good", ["server.key", "denied"])
async def test_sighup_denies_one_while_a_file_is_no_good(folder: Path, no_good: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    ca = issue(None, "the CA", ca=True)
    client = issue(ca, "client", SUBJECT)
    (folder / "denied").touch()
    listed = f'deny_file = "{folder}/denied"\n'
    configured(folder, ca, port, listed)
    credentials = grpc.ssl_channel_credentials(ca.pem, client.key, client.pem)
    async with (
        daemon(folder) as running,
        aio.secure_channel(f"localhost:{port}", credentials) as channel,
        asyncio.timeout(DEADLINE_S),
    ):
        responses = VmAgentServiceStub(channel).WatchStatus(pb.WatchStatusRequest()).__aiter__()
        await anext(responses)
        (folder / no_good).write_text("nonsense")
        configured(folder, ca, port, f'{listed}deny_fingerprints = ["{client.fingerprint}"]')
        running.process.send_signal(signal.SIGHUP)
        ended = await _end(responses)
        assert ended.code() is grpc.StatusCode.UNAUTHENTICATED


async def _end(responses: AsyncIterator[pb.WatchStatusResponse]) -> aio.AioRpcError:
    """Return the error with which a stream ends."""
    try:
        async for _ in responses:
            pass
    except aio.AioRpcError as error:
        return error
    raise AssertionError("it ended without one")


async def test_a_stranger_writes_nothing_into_the_log(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("GRPC_VERBOSITY")  # of the tests: the daemon has its own
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    ca = issue(None, "the CA", ca=True)
    configured(folder, ca, port)
    context = ssl.create_default_context(cadata=ca.pem.decode())
    context.check_hostname = False
    async with daemon(folder), asyncio.timeout(DEADLINE_S):
        # It has no certificate, and asks for a host of another name.
        _, writer = await asyncio.open_connection(
            "127.0.0.1", port, ssl=context, server_hostname="another.example"
        )
        writer.close()
    lines = (folder / "log").read_text().splitlines()
    assert [each for each in lines if not re.match(r"[\d:.]{12} (INFO|WARNING) ", each)] == []


async def test_a_port_in_use_is_one_line(folder: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        configured(folder, issue(None, "the CA", ca=True), port)
        process = await started(folder, f"test://{folder}/host.xml")
        async with asyncio.timeout(DEADLINE_S):
            assert await process.wait() == 1
    last = (folder / "log").read_text().splitlines()[-1]
    assert f"[remote] listen = '127.0.0.1:{port}': another process listens there" in last


async def test_files_that_cannot_be_used_are_one_line(folder: Path) -> None:
    configured(folder, issue(None, "the CA", ca=True), 1)
    (folder / "server.key").write_text("")
    process = await started(folder, f"test://{folder}/host.xml")
    async with asyncio.timeout(DEADLINE_S):
        assert await process.wait() == 1
    last = (folder / "log").read_text().splitlines()[-1]
    assert f"[remote] {folder}/server.key holds no private key in PEM" in last
