"""Bytes go through a relay whole and in order, and wait on nobody's account but the reader's."""

from __future__ import annotations

import asyncio
import hashlib
import socket
from pathlib import Path

from vmagentd.api.relay import Relay

CHUNK = bytes(range(256)) * 1024
TOTAL = 400 * 1024 * 1024


def resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096


def pair() -> tuple[socket.socket, socket.socket]:
    ours, theirs = socket.socketpair(socket.AF_UNIX)
    ours.settimeout(0)
    theirs.settimeout(0)
    return ours, theirs


async def test_who_does_not_read_is_waited_for_and_costs_nothing() -> None:
    """400 MB for a reader that takes its time: what is not taken is not read either."""
    ended: list[str] = []
    client, outer = pair()
    grpc, inner = pair()
    relay = Relay(memoryview(bytearray(65536)), on_inner_end=lambda: ended.append("inner"))
    relay.join(outer, inner)
    loop = asyncio.get_running_loop()
    before = resident_bytes()
    sent = 0

    async def send() -> None:
        nonlocal sent
        while sent < TOTAL:
            await loop.sock_sendall(grpc, CHUNK)
            sent += len(CHUNK)
        grpc.close()

    sending = asyncio.create_task(send())
    stalled = -1
    async with asyncio.timeout(10):
        while stalled != sent:  # until nothing goes any more
            stalled = sent
            await asyncio.sleep(0.2)
    assert stalled < 4 * 1024 * 1024
    # the other way is open all the while
    await loop.sock_sendall(client, b"still here")
    assert await loop.sock_recv(grpc, 100) == b"still here"

    got, digest = 0, hashlib.sha256()
    async with asyncio.timeout(50):
        while part := await loop.sock_recv(client, 1 << 20):
            got += len(part)
            digest.update(part)
        await sending
        await relay.ended.wait()
    assert got == TOTAL
    expected = hashlib.sha256()
    for _ in range(TOTAL // len(CHUNK)):
        expected.update(CHUNK)
    assert digest.digest() == expected.digest()
    assert resident_bytes() - before < 16 * 1024 * 1024
    assert ended == ["inner"]
    client.close()


async def test_the_end_of_a_side_comes_after_what_it_said() -> None:
    client, outer = pair()
    grpc, inner = pair()
    relay = Relay(memoryview(bytearray(65536)), on_inner_end=lambda: None)
    # both have spoken, and one has gone, before the relay begins
    client.sendall(b"question")
    grpc.sendall(b"answer")
    client.shutdown(socket.SHUT_WR)
    relay.join(outer, inner)
    loop = asyncio.get_running_loop()
    async with asyncio.timeout(10):
        assert await loop.sock_recv(grpc, 100) == b"question"
        assert await loop.sock_recv(client, 100) == b"answer"
        assert await loop.sock_recv(grpc, 100) == b""
        assert await loop.sock_recv(client, 100) == b""
        await relay.ended.wait()
    client.close()
    grpc.close()


async def test_a_side_that_never_takes_the_rest_is_given_up() -> None:
    client, outer = pair()
    grpc, inner = pair()
    relay = Relay(memoryview(bytearray(65536)), on_inner_end=lambda: None)
    relay.join(outer, inner)
    loop = asyncio.get_running_loop()
    sending = asyncio.create_task(loop.sock_sendall(grpc, CHUNK * 40))
    relay.end()
    async with asyncio.timeout(20):
        await relay.ended.wait()
    sending.cancel()
    await asyncio.wait([sending])
    client.close()
    grpc.close()


async def test_a_side_that_goes_while_bytes_wait_for_it_ends_both() -> None:
    client, outer = pair()
    grpc, inner = pair()
    ended: list[str] = []
    relay = Relay(memoryview(bytearray(65536)), on_inner_end=lambda: ended.append("inner"))
    relay.join(outer, inner)
    loop = asyncio.get_running_loop()
    sending = asyncio.create_task(loop.sock_sendall(grpc, CHUNK * 40))
    async with asyncio.timeout(20):
        await loop.sock_recv(client, 1)  # and there is more than the kernel holds
        client.close()
        await relay.ended.wait()
        await asyncio.wait([sending])
    assert isinstance(sending.exception(), OSError)
    assert ended == ["inner"]
    grpc.close()
