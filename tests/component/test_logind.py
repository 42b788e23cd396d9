"""logind's word on the host's shutdown, over a real message bus.

Its peer stands in for logind: a few lines that speak the same protocol.
"""

from __future__ import annotations

import asyncio
import shutil
import subprocess
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import pytest
from jeepney import (
    DBusAddress,
    HeaderFields,
    Message,
    MessageType,
    message_bus,
    new_method_return,
    new_signal,
)
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


@dataclass
class Peer:
    """Somebody who answers in logind's place."""

    connection: DBusConnection
    preparing: bool
    # who has asked
    asked: asyncio.Queue[str] = field(default_factory=asyncio.Queue)
    # no answer before it is set
    answers: asyncio.Event = field(default_factory=asyncio.Event)

    async def signal(self, *, going_down: bool) -> None:
        await self.connection.send(prepare("b", going_down))

    async def answer(self) -> None:
        while True:
            message = await self.connection.receive()
            if message.header.message_type is MessageType.method_call:
                self.asked.put_nowait(message.header.fields[HeaderFields.sender])
                await self.answers.wait()
                reply = new_method_return(message, "v", (("b", self.preparing),))
                await self.connection.send(reply)


@asynccontextmanager
async def _peer(*, preparing: bool, answers: bool = True) -> AsyncIterator[Peer]:
    connection = await open_dbus_connection("SYSTEM")
    # not by a router: it drops a question that it reads together with the answer
    await connection.send(message_bus.RequestName("org.freedesktop.login1"))
    while (told := await connection.receive()).header.message_type is MessageType.signal:
        pass
    assert told.header.message_type is MessageType.method_return
    peer = Peer(connection, preparing)
    if answers:
        peer.answers.set()
    answering = asyncio.create_task(peer.answer())
    try:
        yield peer
    finally:
        answering.cancel()
        await asyncio.gather(answering, return_exceptions=True)
        await connection.close()


def prepare(signature: str | None, *arguments: object) -> Message:
    return new_signal(_MANAGER, "PrepareForShutdown", signature, arguments)


async def send_as_somebody(to: str, *messages: Message) -> None:
    """Have messages delivered that are neither logind's nor the bus's; return when they were."""
    connection = await open_dbus_connection("SYSTEM")
    async with DBusRouter(connection) as router:
        for message in messages:
            message.header.fields[HeaderFields.destination] = to
            await router.send(message)
        await Proxy(message_bus, router).GetId()  # the bus has them all behind it
    await connection.close()


@asynccontextmanager
async def _followed() -> AsyncIterator[asyncio.Queue[bool]]:
    told: asyncio.Queue[bool] = asyncio.Queue()
    following = asyncio.create_task(logind.follow(told.put_nowait))
    try:
        yield told
        assert not following.done()
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
                await peer.signal(going_down=going_down)
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


@pytest.mark.parametrize(
    "arguments",
    [("b", True), (None,), ("s", "yes"), ("bb", True, True), ("v", ("b", True))],
    ids=lambda arguments: arguments[0],
)
async def test_what_somebody_else_says_is_not_heeded(
    system_bus: Path, arguments: tuple[Any, ...]
) -> None:
    with _bus(system_bus):
        async with _peer(preparing=False) as peer, _followed() as told:
            assert await _next(told) is False
            follower = await peer.asked.get()
            await send_as_somebody(follower, prepare(*arguments))
            await peer.signal(going_down=False)
            assert await _next(told) is False
            assert peer.asked.empty()


async def test_what_logind_itself_says_otherwise_is_not_heeded(system_bus: Path) -> None:
    with _bus(system_bus):
        async with _peer(preparing=False) as peer, _followed() as told:
            assert await _next(told) is False
            for message in (prepare(None), prepare("s", "yes")):
                await peer.connection.send(message)
            await peer.signal(going_down=True)
            assert await _next(told) is True


async def test_nobody_else_tells_that_logind_changed(system_bus: Path) -> None:
    bus = DBusAddress("/org/freedesktop/DBus", interface="org.freedesktop.DBus")
    changed = ("org.freedesktop.login1", ":1.1", ":1.99")
    with _bus(system_bus):
        async with _peer(preparing=False) as peer, _followed() as told:
            assert await _next(told) is False
            follower = await peer.asked.get()
            await send_as_somebody(follower, new_signal(bus, "NameOwnerChanged", "sss", changed))
            await peer.signal(going_down=True)
            assert await _next(told) is True
            assert peer.asked.empty()


@pytest.mark.parametrize("times", [1, 2])
async def test_nobody_answers_in_its_place(system_bus: Path, times: int) -> None:
    """A signal that bears the number of our question is taken for its answer by the library."""
    with _bus(system_bus):
        async with _peer(preparing=False, answers=False) as peer, _followed() as told:
            follower = await peer.asked.get()
            messages = [prepare("v", ("b", True)) for _ in range(20 * times)]
            for number, message in enumerate(messages):
                message.header.fields[HeaderFields.reply_serial] = number // times + 1
            await send_as_somebody(follower, *messages)
            assert await _next(told) is False


async def test_another_logind_is_heeded_at_once(system_bus: Path) -> None:
    with _bus(system_bus):
        async with AsyncExitStack() as followed:
            async with _peer(preparing=False):
                told = await followed.enter_async_context(_followed())
                assert await _next(told) is False
            async with _peer(preparing=True) as peer:
                assert await _next(told) is True
                await peer.signal(going_down=False)
                assert await _next(told) is False
