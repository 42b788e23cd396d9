"""Clients from other hosts, over real TLS on loopback: who is let in, how long, and why not."""

from __future__ import annotations

import asyncio
import logging
import resource
import socket
import ssl
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, timedelta
from typing import TYPE_CHECKING, Any

import grpc
import pytest
from cryptography.x509.oid import ExtensionOID
from grpc import aio
from vmagent.v1 import vm_agent_service_pb2 as pb
from vmagent.v1.access_pb2 import CallerOrigin, Role
from vmagent.v1.vm_agent_service_pb2_grpc import VmAgentServiceStub

from tests.pki import (
    DAY,
    FOR_CLIENTS,
    FOR_SERVERS,
    Pair,
    PrivateKey,
    issue,
    key_of_no_known_curve,
)
from vmagentd.api.certificates import client_certificate
from vmagentd.errors import CallerUnknown, ListenFailed
from vmagentd.model import (
    Denied,
    Grant,
    NetworkSettings,
    Rule,
    TlsFiles,
    TlsSettings,
    parse_serial,
)
from vmagentd.model import Role as OurRole

from . import wire
from .conftest import Served, Setting, refusal, serving, sighting
from .wire import PREFACE, call, message, settings

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable
    from pathlib import Path

    from cryptography.x509 import ObjectIdentifier
    from vmagent.v1.vm_agent_service_pb2_grpc import VmAgentServiceAsyncStub

NOBODY = Denied(frozenset())
SUBJECT = "spiffe://example.org/ops"
DEADLINE_S = 20.0
# extensions of certificates that are looked at
ODD = (
    ExtensionOID.SUBJECT_ALTERNATIVE_NAME,
    ExtensionOID.EXTENDED_KEY_USAGE,
    ExtensionOID.KEY_USAGE,
)


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return int(probe.getsockname()[1])


@dataclass
class Site:
    """A server on a TCP port, its files, and its CA."""

    served: Served
    folder: Path
    port: int
    ca: Pair
    tls: TlsSettings

    @asynccontextmanager
    async def connected(
        self, client: Pair | None, ca: Pair | None = None
    ) -> AsyncIterator[VmAgentServiceAsyncStub]:
        """A channel of its own, with this certificate; *ca* is that of the server."""
        pair = (None, None) if client is None else (client.key, client.pem)
        credentials = grpc.ssl_channel_credentials((ca or self.ca).pem, *pair)
        # one connection per channel, not shared
        options = [("grpc.use_local_subchannel_pool", 1)]
        async with aio.secure_channel(f"localhost:{self.port}", credentials, options) as channel:
            yield VmAgentServiceStub(channel)

    async def is_let_in(self, client: Pair | None, ca: Pair | None = None) -> bool:
        """Whether the handshake lets it in."""
        async with self.connected(client, ca) as stub:
            try:
                await stub.WhoAmI(pb.WhoAmIRequest(), timeout=DEADLINE_S)
            except aio.AioRpcError as error:
                assert error.code() is grpc.StatusCode.UNAVAILABLE, error  # noqa: PT017
                return False
        return True

    def client(self, *sans: str, **how: Any) -> Pair:  # noqa: ANN401
        return issue(self.ca, "client", *(sans or (SUBJECT,)), **how)

    def server(self, ca: Pair) -> None:
        """Give the server another certificate, of *ca*."""
        issue(ca, "server", "localhost").write(self.folder, "server")


@asynccontextmanager
async def site(
    folder: Path,
    denied: Denied = NOBODY,
    age: timedelta = timedelta(hours=1),
    key: PrivateKey | None = None,
) -> AsyncIterator[Site]:
    ca = issue(None, "the CA", ca=True)
    server = issue(ca, "server", "localhost", key=key)
    certificate, key_file = server.write(folder, "server")
    (folder / "ca.pem").write_bytes(ca.pem)
    (folder / "denied").write_text("# nobody\n")
    tls = TlsSettings(
        files=TlsFiles(certificate=certificate, key=key_file, client_ca=folder / "ca.pem"),
        denied=denied,
        deny_file=folder / "denied",
    )
    port = free_port()
    setting = Setting(
        rules=(
            Rule(
                grant=Grant(role=OurRole.OPERATOR),
                subjects=frozenset({"spiffe://example.org/*", "dns:ops.example.org"}),
            ),
        ),
        network=NetworkSettings(listen=f"127.0.0.1:{port}", max_connection_age=age, tls=tls),
    )
    async with serving(folder, setting) as served:
        yield Site(served, folder, port, ca, tls)


@pytest.fixture
async def here(folder: Path) -> AsyncIterator[Site]:
    async with site(folder) as here:
        yield here


async def until(fact: Callable[[], bool]) -> None:
    async with asyncio.timeout(DEADLINE_S):
        while not fact():  # noqa: ASYNC110  # a file or a log: nobody tells
            await asyncio.sleep(0.02)


async def is_refused_soon(stub: VmAgentServiceAsyncStub) -> str:
    """Call until it is refused, and return why."""
    async with asyncio.timeout(DEADLINE_S):
        while True:
            try:
                await stub.WhoAmI(pb.WhoAmIRequest())
            except aio.AioRpcError as error:
                assert error.code() is grpc.StatusCode.UNAUTHENTICATED, error  # noqa: PT017
                return error.details() or ""


class TestWhoIsLetIn:
    async def test_its_certificate_tells_who_it_is(self, here: Site) -> None:
        client = here.client(usage=FOR_CLIENTS)
        await here.served.survey(sighting(1, "web"))
        async with here.connected(client) as stub:
            caller = (await stub.WhoAmI(pb.WhoAmIRequest())).caller
            assert (await stub.GetVm(pb.GetVmRequest(vm="web"))).vm.name == "web"
        assert caller.actor == SUBJECT
        assert caller.origin == CallerOrigin.CALLER_ORIGIN_REMOTE
        assert caller.role == Role.ROLE_OPERATOR
        assert caller.peer.startswith("127.0.0.1:")
        assert caller.certificate_fingerprint == client.fingerprint
        end = caller.certificate_end_time.ToDatetime(UTC)
        assert end == client.certificate.not_valid_after_utc

    async def test_a_dns_name_stands_in_for_a_uri(self, here: Site) -> None:
        async with here.connected(here.client("ops.example.org")) as stub:
            caller = (await stub.WhoAmI(pb.WhoAmIRequest())).caller
        assert (caller.actor, caller.role) == ("dns:ops.example.org", Role.ROLE_OPERATOR)

    async def test_whoever_is_known_and_has_no_role_is_told_so(self, here: Site) -> None:
        async with here.connected(here.client("spiffe://elsewhere/x")) as stub:
            caller = (await stub.WhoAmI(pb.WhoAmIRequest())).caller
            refused = await refusal(stub.ListVms(pb.ListVmsRequest()))
        assert caller.actor == "spiffe://elsewhere/x"
        assert (refused.code, refused.reason) == (
            grpc.StatusCode.PERMISSION_DENIED,
            "ROLE_DENIED",
        )

    @pytest.mark.parametrize(
        ("sans", "why"),
        [
            ((), "the common name does not count"),
            (("127.0.0.1",), "the common name does not count"),
            ((SUBJECT, "spiffe://example.org/other"), "2 URIs"),
            (("user:root",), "begins with 'user'"),
            (("UID:0",), "begins with 'uid'"),
            (("dns:ops.example.org",), "begins with 'dns'"),
        ],
    )
    async def test_a_certificate_that_names_nobody_is_no_identity(
        self, here: Site, sans: tuple[str, ...], why: str
    ) -> None:
        async with here.connected(issue(here.ca, "ops", *sans)) as stub:
            refused = await refusal(stub.WhoAmI(pb.WhoAmIRequest()))
        assert (refused.code, refused.reason) == (
            grpc.StatusCode.UNAUTHENTICATED,
            "CALLER_UNKNOWN",
        )
        assert why in refused.facts["why"]
        (told,) = here.served.setting.refusals
        assert (told[0], told[2]) == (None, "/vmagent.v1.VmAgentService/WhoAmI")

    @pytest.mark.parametrize("odd", ODD)
    def test_one_that_is_not_understood_is_no_identity(self, odd: ObjectIdentifier) -> None:
        with pytest.raises(CallerUnknown, match="cannot be understood"):
            client_certificate(issue(None, "ops", odd=odd).pem)

    async def test_what_the_handshake_refuses(self, here: Site) -> None:
        other = issue(None, "another CA", ca=True)
        refused = {
            "none": None,
            "of another CA": issue(other, "client", SUBJECT),
            "of nobody": issue(None, "client", SUBJECT),
            "ended": here.client(begin=-2 * DAY, end=-DAY),
            "not begun": here.client(begin=DAY),
            "for servers": here.client(usage=FOR_SERVERS),
        }
        let_in = {what: await here.is_let_in(client) for what, client in refused.items()}
        assert let_in == dict.fromkeys(refused, False)
        assert await here.is_let_in(here.client())

    async def test_tls_before_1_3_is_refused_in_the_call(self, here: Site) -> None:
        """GRPC cannot refuse it in the handshake; its client has no knob for it either."""
        context = ssl.create_default_context(cadata=here.ca.pem.decode())
        context.maximum_version = ssl.TLSVersion.TLSv1_2
        context.set_alpn_protocols(["h2"])
        context.load_cert_chain(*here.client().write(here.folder, "client"))
        reader, writer = await asyncio.open_connection("localhost", here.port, ssl=context)
        assert writer.get_extra_info("ssl_object").version() == "TLSv1.2"
        writer.write(PREFACE + settings() + _call("WhoAmI"))
        came = b""
        async with asyncio.timeout(DEADLINE_S):
            while b"only TLS 1.3" not in came:
                part = await reader.read(65536)
                assert part, came
                came += part
        writer.close()
        (told,) = here.served.setting.refusals
        assert "TLSv1.2" in str(told[3])
        assert told[1].startswith("127.0.0.1:")
        assert isinstance(told[3], CallerUnknown)
        assert told[3].fingerprint is not None

    async def test_plain_text_comes_to_nothing(self, here: Site) -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", here.port)
        writer.write(PREFACE + settings())
        async with asyncio.timeout(DEADLINE_S):
            with suppress(ConnectionError):
                while part := await reader.read(65536):
                    assert b"grpc" not in part
        writer.close()
        assert await here.is_let_in(here.client())


def _call(method: str) -> bytes:
    return call(f"/vmagent.v1.VmAgentService/{method}".encode()) + message(b"")


class TestHowLong:
    @pytest.mark.parametrize("by", ["serial", "fingerprint"])
    async def test_a_denied_one_is_out_within_a_second(self, here: Site, by: str) -> None:
        denied, other = here.client(), here.client("spiffe://example.org/other")
        async with here.connected(denied) as stub, here.connected(other) as stays:
            watch = stub.WatchStatus(pb.WatchStatusRequest())
            kept = stays.WatchStatus(pb.WatchStatusRequest()).__aiter__()
            await anext(watch.__aiter__())
            await anext(kept)
            loop = asyncio.get_running_loop()
            began = loop.time()
            (here.folder / "denied").write_text(f"{getattr(denied, by)}  # lost laptop\n")
            ended = await refusal(watch)
            took = loop.time() - began
            assert (ended.code, ended.reason) == (
                grpc.StatusCode.UNAUTHENTICATED,
                "CALLER_UNKNOWN",
            )
            assert "is denied on this host" in ended.message
            assert took < 5  # 0.5 s if the machine has nothing else to do
            assert "denied" in await is_refused_soon(stub)
            await stays.WhoAmI(pb.WhoAmIRequest())
            await here.served.survey(sighting(1, "web"))
            await anext(kept)
            # and it can be taken back
            (here.folder / "denied").write_text("")
            async with asyncio.timeout(DEADLINE_S):
                while True:
                    with suppress(aio.AioRpcError):
                        await stub.WhoAmI(pb.WhoAmIRequest())
                        break

    async def test_the_settings_deny_too(self, folder: Path) -> None:
        async with site(folder) as here:
            client = here.client()
        entry = Denied(frozenset({parse_serial(f"serial={client.serial.upper()}")}))
        async with site(folder, entry) as again:
            (folder / "ca.pem").write_bytes(here.ca.pem)
            again.server(here.ca)
            again.ca = here.ca
            async with again.connected(client) as stub:
                async with asyncio.timeout(DEADLINE_S):
                    while not await again.is_let_in(here.client()):
                        pass
                assert "denied" in await is_refused_soon(stub)

    async def test_an_open_stream_ends_with_its_certificate(self, here: Site) -> None:
        # in whole seconds, and the handshake must come before
        async with here.connected(here.client(end=timedelta(seconds=8))) as stub:
            watch = stub.WatchStatus(pb.WatchStatusRequest())
            await anext(watch.__aiter__())
            ended = await refusal(watch)
            assert ended.code is grpc.StatusCode.UNAUTHENTICATED
            assert "ended at" in ended.message
            # the connection is still there, and nobody is let in through it any more
            assert "ended at" in await is_refused_soon(stub)

    async def test_a_connection_ends_at_its_age(self, folder: Path) -> None:
        async with (
            site(folder, age=timedelta(seconds=1)) as here,
            here.connected(here.client()) as stub,
        ):
            peers = set[str]()
            async with asyncio.timeout(DEADLINE_S):
                while len(peers) < 2:  # no call fails meanwhile
                    peers.add((await stub.WhoAmI(pb.WhoAmIRequest())).caller.peer)


class TestChangedFiles:
    async def test_a_new_certificate_is_shown_and_streams_live_on(self, here: Site) -> None:
        client, new = here.client(), issue(None, "a new CA", ca=True)
        async with here.connected(client) as stub:
            watch = stub.WatchStatus(pb.WatchStatusRequest()).__aiter__()
            await anext(watch)
            here.server(new)
            async with asyncio.timeout(DEADLINE_S):
                while not await here.is_let_in(client, new):
                    pass
            assert not await here.is_let_in(client, here.ca)
            await here.served.survey(sighting(1, "web"))
            await anext(watch)
            await stub.WhoAmI(pb.WhoAmIRequest())

    async def test_the_clients_ca_is_replaced_step_by_step(self, here: Site) -> None:
        new = issue(None, "a new CA", ca=True)
        old_client, new_client = here.client(), issue(new, "client", SUBJECT)
        async with here.connected(old_client) as stub:
            watch = stub.WatchStatus(pb.WatchStatusRequest()).__aiter__()
            await anext(watch)
            (here.folder / "ca.pem").write_bytes(here.ca.pem + new.pem)
            async with asyncio.timeout(DEADLINE_S):
                while not await here.is_let_in(new_client):
                    pass
            assert await here.is_let_in(old_client)
            (here.folder / "ca.pem").write_bytes(new.pem)
            async with asyncio.timeout(DEADLINE_S):
                while await here.is_let_in(old_client):
                    pass
            assert await here.is_let_in(new_client)
            await here.served.survey(sighting(1, "web"))
            await anext(watch)

    @pytest.mark.parametrize(
        ("file", "text", "why"),
        [
            ("server.pem", "nonsense", "holds no certificate in PEM"),
            ("server.key", "nonsense", "holds no private key in PEM"),
            ("server.key", key_of_no_known_curve().decode(), "is neither an RSA key nor"),
            ("server.pem", issue(None, "x", odd=ODD[0]).pem.decode(), "cannot be understood"),
            ("ca.pem", "", "holds no certificate in PEM"),
            ("denied", "everybody", "is neither a serial number nor"),
        ],
    )
    async def test_broken_ones_are_told_once_and_change_nothing(
        self, here: Site, file: str, text: str, why: str, caplog: pytest.LogCaptureFixture
    ) -> None:
        def told() -> list[str]:
            errors = [each for each in caplog.records if each.levelno == logging.ERROR]
            return [each.getMessage() for each in errors]

        good = (here.folder / file).read_bytes()
        (here.folder / file).write_text(text)
        await until(lambda: bool(told()))
        assert await here.is_let_in(here.client())
        (here.folder / file).write_bytes(good)
        assert await here.is_let_in(here.client())
        (message,) = told()
        assert str(here.folder / file) in message
        assert why in message

    async def test_one_that_begins_later_is_shown_when_it_does(
        self, here: Site, caplog: pytest.LogCaptureFixture
    ) -> None:
        """The clock of its CA is ahead of ours; nobody writes the file again."""
        client, new = here.client(), issue(None, "a new CA", ca=True)
        begin = timedelta(seconds=5)  # in whole seconds; it must be seen twice before
        issue(new, "server", "localhost", begin=begin).write(here.folder, "server")
        async with asyncio.timeout(DEADLINE_S):
            while not await here.is_let_in(client, new):
                assert await here.is_let_in(client) or await here.is_let_in(client, new)
        (told,) = [each.getMessage() for each in caplog.records if each.levelno == logging.ERROR]
        assert "begins at" in told

    async def test_one_is_told_of_again_when_something_else_is_wrong_with_it(
        self, here: Site, caplog: pytest.LogCaptureFixture
    ) -> None:
        begin, end = timedelta(seconds=3), timedelta(seconds=5)
        issue(here.ca, "server", "localhost", begin=begin, end=end).write(here.folder, "server")
        (here.folder / "ca.pem").write_text("")

        def told() -> list[str]:
            errors = [each for each in caplog.records if each.levelno == logging.ERROR]
            return [each.getMessage() for each in errors]

        await until(lambda: any("ended at" in each for each in told()))
        assert "begins at" in told()[0]
        assert len(set(told())) == len(told())


async def test_a_port_in_use_is_told(folder: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        ca = issue(None, "the CA", ca=True)
        certificate, key = issue(ca, "server", "localhost").write(folder, "server")
        (folder / "ca.pem").write_bytes(ca.pem)
        files = TlsFiles(certificate=certificate, key=key, client_ca=folder / "ca.pem")
        network = NetworkSettings(
            listen=f"127.0.0.1:{port}",
            max_connection_age=timedelta(hours=1),
            tls=TlsSettings(files=files, denied=Denied(frozenset())),
        )
        with pytest.RaisesGroup(
            pytest.RaisesExc(ListenFailed, match="another process listens there")
        ):
            async with serving(folder, Setting(network=network)):
                pass


async def test_a_crash_of_one_endpoint_is_none_of_the_other(here: Site) -> None:
    """A method name that is not UTF-8 ends gRPC's loop for the socket, not for the port."""
    async with here.connected(here.client()) as stub:
        watch = stub.WatchStatus(pb.WatchStatusRequest()).__aiter__()
        await anext(watch)
        bad = wire.PREFACE + wire.settings() + wire.call(b"/a/\xff\xfe") + wire.message(b"")
        await wire.answer(here.served.path, bad)
        await here.served.stub.GetHost(pb.GetHostRequest(), wait_for_ready=True)
        await here.served.survey(sighting(1, "web"))
        await anext(watch)


async def test_strangers_leave_descriptors_for_others(folder: Path) -> None:
    """A quarter of them is for the port; one that says nothing gives its place up in 5 s."""
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (200, limits[1]))
    async with AsyncExitStack() as stack:
        try:
            here = await stack.enter_async_context(site(folder))
        finally:
            # The clients are in this process too, and need their own.
            resource.setrlimit(resource.RLIMIT_NOFILE, limits)
        for _ in range(25):
            _, writer = await asyncio.open_connection("127.0.0.1", here.port)
            stack.callback(writer.close)
        async with asyncio.timeout(DEADLINE_S):
            assert not await here.is_let_in(here.client())
            while not await here.is_let_in(here.client()):
                pass
