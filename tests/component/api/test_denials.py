"""Certificates that are denied: obeyed whatever else is wrong, and told of for themselves."""

from __future__ import annotations

import asyncio
import logging
import os
from contextlib import asynccontextmanager
from datetime import timedelta
from typing import TYPE_CHECKING, TextIO

import pytest
from cryptography.hazmat.primitives.hashes import SHA1
from grpc import StatusCode, aio
from vmagent.v1 import vm_agent_service_pb2 as pb

from tests.pki import issue

from .conftest import refusal
from .test_tls import DEADLINE_S, Site, is_refused_soon, site, until

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path


@pytest.fixture
async def here(folder: Path) -> AsyncIterator[Site]:
    async with site(folder) as here:
        yield here


def told(caplog: pytest.LogCaptureFixture) -> list[str]:
    """The errors in the log."""
    return [each.getMessage() for each in caplog.records if each.levelno == logging.ERROR]


@pytest.mark.parametrize("file", ["server.pem", "server.key", "ca.pem"])
async def test_one_is_out_while_a_file_for_tls_is_no_good(
    here: Site, file: str, caplog: pytest.LogCaptureFixture
) -> None:
    """A renewal that was left half-way is no way around a denial."""
    client = here.client()
    async with here.connected(client) as stub:
        await stub.WhoAmI(pb.WhoAmIRequest())
        (here.folder / file).write_bytes(issue(here.ca, "server", "localhost").pem)
        await until(lambda: bool(told(caplog)))
        (here.folder / "denied").write_text(f"{client.fingerprint}\n")
        assert "is denied on this host" in await is_refused_soon(stub)
    (message,) = told(caplog)
    assert "the files before them stay in use" in message


@asynccontextmanager
async def endless(file: Path) -> AsyncIterator[None]:
    """A pipe in the place of *file*: whoever reads it does so until the end of the body."""
    os.mkfifo(file.with_name("pipe"))
    file.with_name("pipe").rename(file)
    async with asyncio.timeout(DEADLINE_S):
        while (pipe := _open_if_read(file)) is None:  # noqa: ASYNC110  # nobody tells
            await asyncio.sleep(0.02)
    with pipe:
        yield


@pytest.mark.parametrize("file", ["server.pem", "server.key", "ca.pem"])
async def test_one_is_out_while_the_reading_of_a_file_for_tls_does_not_end(
    here: Site, file: str
) -> None:
    client = here.client()
    async with here.connected(client) as stub:
        await stub.WhoAmI(pb.WhoAmIRequest())
        async with endless(here.folder / file):
            (here.folder / "denied").write_text(f"{client.fingerprint}\n")
            assert "is denied on this host" in await is_refused_soon(stub)


async def test_a_certificate_ends_while_the_reading_of_the_list_does_not(here: Site) -> None:
    # in whole seconds, and the handshake must come before
    async with here.connected(here.client(end=timedelta(seconds=8))) as stub:
        watch = stub.WatchStatus(pb.WatchStatusRequest())
        await anext(watch.__aiter__())
        async with endless(here.folder / "denied"), asyncio.timeout(DEADLINE_S):
            ended = await refusal(watch)
    assert ended.code is StatusCode.UNAUTHENTICATED
    assert "ended at" in ended.message


async def test_a_list_that_is_no_good_keeps_no_new_certificate_from_being_shown(
    here: Site, caplog: pytest.LogCaptureFixture
) -> None:
    client, new = here.client(), issue(None, "a new CA", ca=True)
    (here.folder / "denied").write_text("everybody\n")
    await until(lambda: bool(told(caplog)))
    here.server(new)
    async with asyncio.timeout(DEADLINE_S):
        while not await here.is_let_in(client, new):
            pass
    (message,) = told(caplog)
    assert f"{here.folder}/denied line 1: 'everybody' is neither" in message


async def test_a_line_that_is_no_good_lets_nobody_in_and_keeps_nobody_in(here: Site) -> None:
    before, now, other = (here.client(f"spiffe://example.org/{n}") for n in range(3))
    (here.folder / "denied").write_text(f"{before.serial}\n")
    async with (
        here.connected(before) as first,
        here.connected(now) as second,
        here.connected(other) as third,
    ):
        assert "denied" in await is_refused_soon(first)
        (here.folder / "denied").write_text(f"{before.serial}?\n{now.serial}\n")
        assert "denied" in await is_refused_soon(second)
        assert "denied" in await is_refused_soon(first)
        await third.WhoAmI(pb.WhoAmIRequest())
        # mended, it is all there is to it
        (here.folder / "denied").write_text(f"{now.serial}\n")
        async with asyncio.timeout(DEADLINE_S):
            while not await _is_let_in(first):
                pass
        assert not await _is_let_in(second)


async def test_a_list_that_comes_back_as_it_was_is_all_there_is_to_it(here: Site) -> None:
    """As by a link that is set back: the file has the marks that it had."""
    client, link = here.client(), here.folder / "denied"
    (here.folder / "bad").write_text(f"{client.fingerprint}\nnonsense\n")
    link.rename(here.folder / "good")
    link.symlink_to("good")
    async with here.connected(client) as stub:
        assert await _is_let_in(stub)
        _set(link, "bad")
        assert "denied" in await is_refused_soon(stub)
        _set(link, "good")
        async with asyncio.timeout(DEADLINE_S):
            while not await _is_let_in(stub):
                pass


def _set(link: Path, place: str) -> None:
    new = link.with_name("new")
    new.symlink_to(place)
    new.rename(link)


async def test_a_list_that_takes_long_to_read_holds_up_nobody(here: Site) -> None:
    """As that on a slow disk does, or a very long one: it is a pipe here, which waits for us."""
    client, denied = here.client(), here.folder / "denied"
    os.mkfifo(here.folder / "pipe")
    async with here.connected(client) as stub:
        (here.folder / "pipe").rename(denied)
        async with asyncio.timeout(DEADLINE_S):
            while (pipe := _open_if_read(denied)) is None:
                assert await _is_let_in(stub)
        with pipe:
            assert await _is_let_in(stub)
            text = f"{client.serial}\n"
            (here.folder / "list").write_text(text)
            (here.folder / "list").rename(denied)  # the pipe is not read again
            pipe.write(text)
        assert "denied" in await is_refused_soon(stub)


def _open_if_read(pipe: Path) -> TextIO | None:
    """Open a pipe for writing; None: nobody reads it."""
    try:
        return os.fdopen(os.open(pipe, os.O_WRONLY | os.O_NONBLOCK), "w")
    except OSError:
        return None


@pytest.mark.parametrize("label", ["SHA1 Fingerprint=", ""])
async def test_a_sha_1_fingerprint_is_not_taken_for_a_serial_number_in_silence(
    here: Site, label: str, caplog: pytest.LogCaptureFixture
) -> None:
    """So openssl prints it by default; whoever pastes it is told that it denies nobody."""
    client = here.client()
    (here.folder / "denied").write_text(
        f"{label}{client.certificate.fingerprint(SHA1()).hex(':').upper()}\n"
    )

    def said() -> list[str]:
        odd = [each for each in caplog.records if each.levelno >= logging.WARNING]
        return [each.getMessage() for each in odd]

    await until(lambda: bool(said()))
    assert f"{here.folder}/denied line 1: " in said()[0]
    assert "openssl x509 -noout -fingerprint -sha256" in said()[0]


async def _is_let_in(stub: object) -> bool:
    try:
        await stub.WhoAmI(pb.WhoAmIRequest())  # type: ignore[attr-defined]
    except aio.AioRpcError:
        return False
    return True
