"""HTTP/2 as bytes, for what no gRPC client would send."""

from __future__ import annotations

import asyncio
import struct
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
DATA, HEADERS, RST_STREAM, SETTINGS, PING, GOAWAY, WINDOW_UPDATE = 0, 1, 3, 4, 6, 7, 8
END_STREAM, END_HEADERS = 1, 4
INITIAL_WINDOW_SIZE = 4


def frame(kind: int, flags: int, stream: int, payload: bytes) -> bytes:
    return (
        struct.pack(">I", len(payload))[1:]
        + bytes([kind, flags])
        + struct.pack(">I", stream)
        + payload
    )


def settings(*items: tuple[int, int]) -> bytes:
    return frame(SETTINGS, 0, 0, b"".join(struct.pack(">HI", *item) for item in items))


def call(path: bytes, *, extra: bytes = b"", stream: int = 1, end: bool = False) -> bytes:
    """Return the headers that open a call, each as a literal without Huffman coding."""
    fields = {
        b":method": b"POST",
        b":scheme": b"http",
        b":path": path,
        b":authority": b"localhost",
        b"content-type": b"application/grpc",
        b"te": b"trailers",
        b"x-extra": extra,
    }
    block = b"".join(
        bytes([0, len(name)]) + name + bytes([len(value)]) + value
        for name, value in fields.items()
    )
    return frame(HEADERS, END_HEADERS | (END_STREAM if end else 0), stream, block)


def message(raw: bytes, *, stream: int = 1, end: bool = True) -> bytes:
    return frame(DATA, END_STREAM if end else 0, stream, b"\0" + struct.pack(">I", len(raw)) + raw)


async def answer(socket: Path, sent: bytes, *, until: bytes = b"") -> bytes:
    """Send *sent* and return what comes back, to the end or until it holds *until*."""
    reader, writer = await asyncio.open_unix_connection(socket)
    try:
        writer.write(sent)
        came = b""
        while not (until and until in came):
            part = await reader.read(65536)
            if not part:
                break
            came += part
        return came
    finally:
        writer.close()
