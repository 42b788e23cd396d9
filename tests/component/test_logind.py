"""logind's word on the host's shutdown, over a real message bus.

Its peer stands in for logind: a few lines that speak the same protocol.
"""

from __future__ import annotations

import asyncio
import shutil
import subprocess
from contextlib import asynccontextmanager, contextmanager
from typing import TYPE_CHECKING

import pytest
from jeepney import DBusAddress, MessageType, message_bus, new_method_return, new_signal
from jeepney.io.asyncio import DBusRouter, Proxy, open_dbus_connection

from vmagentd import logind

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator
    from pathlib import Path

    from jeepney.io.asyncio import DBusConnection

_MANAGER = DBusAddress("/org/freedesktop/login1", interface="org.freedesktop.login1.Manager")

pytestmark = pytest.mark.skipif(
    shutil.which("dbus-daemon") is None, reason="needs dbus-daemon (Debian: dbus-daemon)"
)


@contextmanager
def _bus(directory: Path) -> Iterator[None]:
    """A message bus of our own; it listens when this is entered."""
    daemon = subprocess.Popen(
        [
            "dbus-daemon",
            "--session",
            "--nofork",
            "--print-address",
            f"--address=unix:path={directory}/bus",
        ],
        stdout=subprocess.PIPE,
    )
    assert daemon.stdout is not None
    try:
        assert daemon.stdout.readline()
        yield
    finally:
        daemon.terminate()
        daemon.wait(5)
        daemon.stdout.close()


@pytest.fixture
def system_bus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where this process finds the system bus; nothing is there yet."""
    monkeypatch.setenv("DBUS_SYSTEM_BUS_ADDRESS", f"unix:path={tmp_path}/bus")
    return tmp_path


@asynccontextmanager
async def _peer(*, preparing: bool) -> AsyncIterator[DBusConnection]:
    """Somebody who answers in logind's place."""
    connection = await open_dbus_connection("SYSTEM")
    async with DBusRouter(connection) as router:
        await Proxy(message_bus, router).RequestName("org.freedesktop.login1")

    async def answer() -> None:
        while True:
            message = await connection.receive()
            if message.header.message_type is MessageType.method_call:
                reply = new_method_return(message, "v", (("b", preparing),))
                await connection.send(reply)

    answering = asyncio.create_task(answer())
    try:
        yield connection
    finally:
        answering.cancel()
        await asyncio.gather(answering, return_exceptions=True)
        await connection.close()


@asynccontextmanager
async def _followed() -> AsyncIterator[asyncio.Queue[bool]]:
    told: asyncio.Queue[bool] = asyncio.Queue()
    following = asyncio.create_task(logind.follow(told.put_nowait))
    try:
        yield told
    finally:
        following.cancel()
        await asyncio.gather(following, return_exceptions=True)


async def _next(told: asyncio.Queue[bool]) -> bool:
    async with asyncio.timeout(10):
        return await told.get()


async def test_says_what_is_and_what_changes(system_bus: Path) -> None:
    with _bus(system_bus):
        async with _peer(preparing=False) as peer, _followed() as told:
            assert await _next(told) is False
            for going_down in (True, False):
                signal = new_signal(_MANAGER, "PrepareForShutdown", "b", (going_down,))
                await peer.send(signal)
                assert await _next(told) is going_down


async def test_a_host_that_is_going_down_already(system_bus: Path) -> None:
    with _bus(system_bus):
        async with _peer(preparing=True), _followed() as told:
            assert await _next(told) is True


async def test_without_a_bus_nothing_is_foreseen(
    system_bus: Path, caplog: pytest.LogCaptureFixture
) -> None:
    assert not (system_bus / "bus").exists()
    caplog.set_level("INFO")
    async with _followed() as told:
        assert await _next(told) is False
    assert "no logind" in caplog.text


async def test_without_logind_nothing_is_foreseen(system_bus: Path) -> None:
    with _bus(system_bus):
        async with _followed() as told:
            assert await _next(told) is False
