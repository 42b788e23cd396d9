"""The daemon as a process that listens on TCP, too."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import socket
import ssl
from contextlib import asynccontextmanager, suppress
from typing import TYPE_CHECKING

import grpc
import pytest
from grpc import aio
from vmagent.v1 import vm_agent_service_pb2 as pb
from vmagent.v1.vm_agent_service_pb2_grpc import VmAgentServiceStub

from tests.component.hypervisor.host import until
from tests.component.process import DEADLINE_S, Running, daemon, short_folder, started
from tests.pki import Pair, issue

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator
    from pathlib import Path

    from vmagent.v1.access_pb2 import AuditRecord
    from vmagent.v1.vm_agent_service_pb2_grpc import VmAgentServiceAsyncStub

SUBJECT = "spiffe://example.org/ops"


@pytest.fixture
def folder() -> Iterator[Path]:
    with short_folder() as folder:
        yield folder


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return int(probe.getsockname()[1])


def configured(folder: Path, ca: Pair, port: int | None, more: str = "") -> None:
    """Write the settings of a daemon whose clients are of *ca*; without a port it is off."""
    if not (folder / "server.pem").exists():
        issue(ca, "server", "localhost").write(folder, "server")
        (folder / "ca.pem").write_bytes(ca.pem)
    (folder / "vmagentd.toml").write_text(
        f"""
        [remote]
        {f'listen = "127.0.0.1:{port}"' if port else ""}
        certificate = "{folder}/server.pem"
        key = "{folder}/server.key"
        client_ca = "{folder}/ca.pem"
        {more}
        [[access.grants]]
        role = "viewer"
        subjects = ["{SUBJECT}"]
        """
    )


@asynccontextmanager
async def watched(
    folder: Path, ca: Pair, client: Pair, port: int
) -> AsyncIterator[tuple[Running, VmAgentServiceAsyncStub, AsyncIterator[pb.WatchStatusResponse]]]:
    """Yield a daemon, the stub of a *client* of it, and what that watches, which has begun."""
    credentials = grpc.ssl_channel_credentials(ca.pem, client.key, client.pem)
    async with (
        daemon(folder) as running,
        aio.secure_channel(f"localhost:{port}", credentials) as channel,
        asyncio.timeout(DEADLINE_S),
    ):
        stub = VmAgentServiceStub(channel)
        responses = stub.WatchStatus(pb.WatchStatusRequest()).__aiter__()
        await anext(responses)
        yield running, stub, responses


async def test_sighup_denies_a_certificate_of_the_settings(folder: Path) -> None:
    port, ca = free_port(), issue(None, "the CA", ca=True)
    client = issue(ca, "client", SUBJECT)
    configured(folder, ca, port)
    async with watched(folder, ca, client, port) as (running, stub, responses):
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
    port, ca = free_port(), issue(None, "the CA", ca=True)
    client = issue(ca, "client", SUBJECT)
    (folder / "denied").touch()
    listed = f'deny_file = "{folder}/denied"\n'
    configured(folder, ca, port, listed)
    async with watched(folder, ca, client, port) as (running, _, responses):
        (folder / no_good).write_text("nonsense")
        configured(folder, ca, port, f'{listed}deny_fingerprints = ["{client.fingerprint}"]')
        running.process.send_signal(signal.SIGHUP)
        ended = await _end(responses)
        assert ended.code() is grpc.StatusCode.UNAUTHENTICATED


async def test_sighup_denies_one_after_a_file_whose_reading_does_not_end(folder: Path) -> None:
    port, ca = free_port(), issue(None, "the CA", ca=True)
    client = issue(ca, "client", SUBJECT)
    (folder / "denied").touch()
    configured(folder, ca, port, f'deny_file = "{folder}/denied"\n')
    async with watched(folder, ca, client, port) as (running, _, responses):
        os.mkfifo(folder / "pipe")
        (folder / "pipe").rename(folder / "denied")
        said = await reloaded(running)
        assert len(said) == 1
        assert said[0].startswith("deny_file is left as it was")
        assert f"{folder}/denied cannot be used: its reading does not end" in said[0]
        configured(folder, ca, port, f'deny_fingerprints = ["{client.fingerprint}"]')
        running.process.send_signal(signal.SIGHUP)
        ended = await _end(responses)
        assert ended.code() is grpc.StatusCode.UNAUTHENTICATED


async def reloaded(running: Running) -> list[str]:
    """Reload, and return what the daemon says of keys of `[remote]`, once it has."""
    await until(lambda: "serving" in running.log.read_text(), "serving", within_s=DEADLINE_S)
    before = len(running.log.read_text())
    running.process.send_signal(signal.SIGHUP)

    def said() -> str:
        return running.log.read_text()[before:]

    await until(lambda: "were read again" in said(), "the settings", within_s=DEADLINE_S)
    lines = [line.split(maxsplit=2)[2] for line in said().splitlines() if " remote." in line]
    return sorted(line.removeprefix("remote.") for line in lines)


async def test_one_is_denied_in_the_reload_that_turns_the_port_off(folder: Path) -> None:
    """It listens until a restart, so a denial is to hold until then, too."""
    port, ca = free_port(), issue(None, "the CA", ca=True)
    first, second = issue(ca, "first", SUBJECT), issue(ca, "second", SUBJECT)
    configured(folder, ca, port)
    async with daemon(folder) as running, asyncio.timeout(DEADLINE_S):
        assert await _is_let_in(first, ca, port)
        configured(folder, ca, None, f'deny_fingerprints = ["{first.fingerprint}"]')
        assert await reloaded(running) == [
            "deny_fingerprints: the new value holds from now on",
            "listen: the new value holds after a restart",
        ]
        assert not await _is_let_in(first, ca, port)
        (folder / "denied").write_text(second.serial)
        configured(folder, ca, None, f'deny_file = "{folder}/denied"')
        assert await reloaded(running) == [
            "deny_file: the new value holds from now on",
            "deny_fingerprints: the new value holds after a restart",
            "listen: the new value holds after a restart",
        ]
        assert not await _is_let_in(first, ca, port)
        assert not await _is_let_in(second, ca, port)
        # of what is not there any more, nothing is taken back
        (folder / "vmagentd.toml").write_text("")
        said = await reloaded(running)
        assert {line.split(": ")[1] for line in said} == {"the new value holds after a restart"}
        assert len(said) == 6  # listen, the three files, and both denials
        assert not await _is_let_in(first, ca, port)
        assert not await _is_let_in(second, ca, port)
        # turned on again, it is as the settings say
        configured(folder, ca, port)
        await reloaded(running)
        assert await _is_let_in(first, ca, port)
        assert await _is_let_in(second, ca, port)


async def test_a_new_list_holds_but_for_a_line_that_is_no_good(folder: Path) -> None:
    port, ca = free_port(), issue(None, "the CA", ca=True)
    first, second, third = (issue(ca, f"client {n}", SUBJECT) for n in range(3))
    listed = folder / "new"
    (folder / "denied").write_text(first.serial)
    configured(folder, ca, port, f'deny_file = "{folder}/denied"')
    async with daemon(folder) as running, asyncio.timeout(DEADLINE_S):
        listed.write_text(f"{second.serial}\nnonsense\n")
        configured(folder, ca, port, f'deny_file = "{listed}"')
        assert await reloaded(running) == ["deny_file: the new value holds from now on"]
        log = running.log.read_text()
        assert f"{listed} line 2: 'nonsense' is neither" in log
        assert "is left as it was" not in log
        assert not await _is_let_in(first, ca, port)
        assert not await _is_let_in(second, ca, port)
        assert await _is_let_in(third, ca, port)
        # it is this one that is followed
        (folder / "mended").write_text(f"{third.serial}\n")
        (folder / "mended").rename(listed)
        while await _is_let_in(third, ca, port):
            pass
        assert await _is_let_in(first, ca, port)
        assert await _is_let_in(second, ca, port)


async def test_a_line_that_is_no_good_keeps_no_daemon_from_starting(folder: Path) -> None:
    port, ca = free_port(), issue(None, "the CA", ca=True)
    denied, other = issue(ca, "client", SUBJECT), issue(ca, "client", SUBJECT)
    listed = folder / "denied"
    # in another encoding, as a comment may be too
    listed.write_bytes(f"# M\xfcller\nM\xfcller\n{denied.serial}\n".encode("latin-1"))
    configured(folder, ca, port, f'deny_file = "{listed}"')
    async with daemon(folder) as running, asyncio.timeout(DEADLINE_S):
        assert not await _is_let_in(denied, ca, port)
        assert await _is_let_in(other, ca, port)
        (error,) = (line for line in running.log.read_text().splitlines() if "ERROR" in line)
        assert f"{listed} line 2: " in error


async def test_nothing_of_a_port_that_is_off_holds_from_now_on(folder: Path) -> None:
    port, ca = free_port(), issue(None, "the CA", ca=True)
    async with daemon(folder) as running, asyncio.timeout(DEADLINE_S):
        configured(folder, ca, port, 'deny_serials = ["1f"]')
        assert await reloaded(running) == [
            f"{key}: the new value holds after a restart"
            for key in ("certificate", "client_ca", "deny_serials", "key", "listen")
        ]


async def test_the_audit_tells_whose_certificate_was_refused(folder: Path) -> None:
    port, ca = free_port(), issue(None, "the CA", ca=True)
    denied, nobody = issue(ca, "client", SUBJECT), issue(ca, "nobody")
    configured(folder, ca, port, f'deny_fingerprints = ["{denied.fingerprint}"]')
    async with daemon(folder) as running, asyncio.timeout(DEADLINE_S):
        assert not await _is_let_in(denied, ca, port)
        assert not await _is_let_in(nobody, ca, port)
        records: list[AuditRecord] = []
        while len(records) < 2:
            request = pb.ListAuditRecordsRequest()
            records = list((await running.stub.ListAuditRecords(request)).records)
    second, first = records
    assert (first.actor, first.certificate_fingerprint) == (SUBJECT, denied.fingerprint)
    assert (second.actor, second.certificate_fingerprint) == ("", nobody.fingerprint)
    for each in records:
        address, _, its_port = each.peer.partition(":")
        assert address == "127.0.0.1"
        assert its_port.isdecimal()
    log = (folder / "log").read_text()
    assert f"refused: {SUBJECT} ({first.peer}) WhoAmI: " in log
    assert f"refused: ? ({second.peer}) WhoAmI: " in log


async def _is_let_in(client: Pair, ca: Pair, port: int) -> bool:
    credentials = grpc.ssl_channel_credentials(ca.pem, client.key, client.pem)
    async with aio.secure_channel(f"localhost:{port}", credentials) as channel:
        try:
            await VmAgentServiceStub(channel).WhoAmI(pb.WhoAmIRequest())
        except aio.AioRpcError as error:
            assert error.code() is grpc.StatusCode.UNAUTHENTICATED, error  # noqa: PT017
            return False
    return True


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
    port, ca = free_port(), issue(None, "the CA", ca=True)
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
