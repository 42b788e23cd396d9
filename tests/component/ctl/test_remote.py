"""Why a daemon on another host cannot be reached, in one line."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import grpc
import pytest
from grpc.aio import Metadata
from typing_extensions import override  # typing has it since 3.12
from vmagent.ctl import tls
from vmagent.ctl.app import run
from vmagent.ctl.errand import Errand, Way
from vmagent.ctl.failures import ExitCode
from vmagent.ctl.follow import Follower
from vmagent.ctl.operate import Operations
from vmagent.ctl.screen import Output
from vmagent.ctl.targets import Remote, TlsFiles, parse_target
from vmagent.v1.vm_agent_service_pb2 import (
    Heartbeat,
    StopRequest,
    StopResponse,
    WatchStatusResponse,
)

from tests.component.ctl.scripted import cursor, server_of
from tests.component.ctl.terminal import DEADLINE_S, vmagentctl
from tests.pki import issue

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from tests.component.ctl.scripted import Context


@pytest.fixture
def files(tmp_path: Path) -> list[str]:
    """Options with good files."""
    ca = issue(None, "the CA", ca=True)
    certificate, key = issue(ca, "me", "spiffe://example.org/me").write(tmp_path, "me")
    (tmp_path / "ca.pem").write_bytes(ca.pem)
    return ["--cert", str(certificate), "--key", str(key), "--ca", str(tmp_path / "ca.pem")]


def paths(files: list[str]) -> TlsFiles:
    """Return the files of these options."""
    cert, key, ca = map(Path, files[1::2])
    return TlsFiles(cert=cert, key=key, ca=ca)


@pytest.mark.parametrize(
    "case",
    [
        ("me.key", None, "--key: {} cannot be read: No such file or directory"),
        ("me.pem", None, "--cert: {} cannot be read: No such file or directory"),
        ("ca.pem", "", "--ca: {} holds no certificates in PEM"),
        ("me.key", "x", "--key: {} and "),
    ],
)
def test_a_file_that_cannot_be_used(
    tmp_path: Path,
    files: list[str],
    case: tuple[str, str | None, str],
    capsys: pytest.CaptureFixture[str],
) -> None:
    file, text, said = case
    (tmp_path / file).unlink()
    if text is not None:
        (tmp_path / file).write_text(text)
    assert run([*files, "--target", "localhost:1", "list"]) == 2
    err = capsys.readouterr().err
    assert err.startswith("vmagentctl: " + said.format(tmp_path / file))
    assert err.count("\n") == 1


def test_a_key_of_another_certificate(
    tmp_path: Path, files: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "me.key").write_bytes(issue(None, "x").key)
    assert run([*files, "--target", "localhost:1", "list"]) == 2
    assert f"is not the key of {tmp_path}/me.pem" in capsys.readouterr().err


@asynccontextmanager
async def listening(
    credentials: grpc.ServerCredentials | None, **methods: Callable[..., Any]
) -> AsyncIterator[str]:
    """A server of these methods; without credentials it speaks no TLS."""
    server = server_of(methods)
    if credentials is None:
        port = server.add_insecure_port("127.0.0.1:0")
    else:
        port = server.add_secure_port("127.0.0.1:0", credentials)
    await server.start()
    try:
        yield f"localhost:{port}"
    finally:
        await server.stop(None)


async def test_a_port_without_tls(target: Path, files: list[str]) -> None:
    async with listening(None) as address:
        done = await vmagentctl(target, *files, "--target", address, "list")
    assert done.code == 4
    assert "it does not speak TLS 1.3" in done.err


async def test_a_name_that_nobody_has(target: Path, files: list[str]) -> None:
    done = await vmagentctl(target, *files, "--target", "nobody.invalid:7443", "list")
    assert done.code == 4
    assert "no host of the name nobody.invalid is known" in done.err


async def test_a_server_of_another_ca(target: Path, files: list[str]) -> None:
    server = issue(None, "server", "localhost")
    credentials = grpc.ssl_server_credentials([(server.key, server.pem)])
    async with listening(credentials) as address:
        done = await vmagentctl(target, *files, "--target", address, "list")
    assert done.code == 4
    assert "its certificate is not accepted (self-signed certificate)" in done.err


async def test_a_refused_certificate_that_cannot_be_looked_into(
    target: Path, tmp_path: Path, files: list[str]
) -> None:
    mine = tmp_path / "me.pem"
    # as `openssl x509 -trustout` writes it: TLS takes it, Python's cryptography does not
    mine.write_text(mine.read_text().replace("CERTIFICATE", "TRUSTED CERTIFICATE"))
    server, other = issue(None, "server", "localhost"), issue(None, "another CA", ca=True)
    (tmp_path / "ca.pem").write_bytes(server.pem)
    credentials = grpc.ssl_server_credentials(
        [(server.key, server.pem)], other.pem, require_client_auth=True
    )
    async with listening(credentials) as address:
        done = await vmagentctl(target, *files, "--target", address, "list")
    assert done.code == 4
    assert f"it does not accept your certificate ({mine}), and does not say why" in done.err


async def test_a_key_that_is_being_replaced_is_no_end_of_a_watch(
    tmp_path: Path, files: list[str]
) -> None:
    good = (tmp_path / "me.key").read_bytes()
    told: list[str] = []

    async def watch(_request: object, _context: Context) -> AsyncIterator[WatchStatusResponse]:
        if not told:  # the new key is there, its certificate not yet
            (tmp_path / "me.key").write_bytes(issue(None, "me").key)
        yield WatchStatusResponse(heartbeat=Heartbeat(revision=8))

    def tell(sentence: str) -> None:
        told.append(sentence)
        if "is not the key" in sentence:
            (tmp_path / "me.key").write_bytes(good)

    server = issue(None, "server", "localhost")
    (tmp_path / "ca.pem").write_bytes(server.pem)
    credentials = grpc.ssl_server_credentials([(server.key, server.pem)])
    async with listening(credentials, WatchStatus=watch) as address:
        responses = Follower(
            daemon=parse_target(address, paths(files), {}),
            heartbeat=timedelta(seconds=1),
            place=cursor(7),
            tell=tell,
        ).responses()
        async with asyncio.timeout(DEADLINE_S):
            for _ in "12":
                assert (await anext(responses)).heartbeat.revision == 8
    assert told == [
        "the daemon ended the stream; connecting again",
        f"--key: {tmp_path}/me.key is not the key of {tmp_path}/me.pem; connecting again",
        "connected again, going on after revision 8",
    ]


async def test_a_file_that_is_gone_since_is_told_as_an_obstacle(
    tmp_path: Path, files: list[str]
) -> None:
    async with listening(None) as address:
        daemon = parse_target(address, paths(files), {})
        assert isinstance(daemon.at, Remote)
        (tmp_path / "me.key").unlink()
        told = await asyncio.to_thread(tls.obstacle, daemon.at, "")
    assert told == f"--key: {tmp_path}/me.key cannot be read: No such file or directory"


async def test_the_way_is_tried_once_for_all_vms_that_cannot_be_reached(
    files: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    tried = []

    def answer(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        tried.append(writer.get_extra_info("peername"))
        writer.write(b"this is no TLS\n")
        writer.close()

    class Lost(Errand):
        """Not by gRPC, which tries again when it pleases."""

        @override
        async def responses(self) -> AsyncIterator[StopResponse]:
            raise grpc.aio.AioRpcError(grpc.StatusCode.UNAVAILABLE, Metadata(), Metadata(), "lost")
            yield StopResponse()  # type: ignore[unreachable]  # it makes this a generator

    async with await asyncio.start_server(answer, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        daemon = parse_target(f"127.0.0.1:{port}", paths(files), {})
        way = Way(daemon, timedelta(), print)
        # The server is of this loop, so that it answers only if trying does not keep the loop
        # from anything else.
        ended = await Operations(Output.TABLE, daemon).run(
            "abc", lambda vm: Lost(way, StopRequest(vm=vm))
        )
    assert ended is ExitCode.UNREACHABLE
    assert len(tried) == 1
    assert "it does not speak TLS 1.3" in capsys.readouterr().err
