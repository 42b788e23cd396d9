"""Bytes at the socket: noise, HTTP/2 by hand, frames that no client sends."""

from __future__ import annotations

import socket
import struct
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from hpack import Decoder, Encoder, HPACKError
from hyperframe.exceptions import HyperframeError
from hyperframe.frame import Frame, HeadersFrame, PingFrame
from hypothesis import strategies as st

from tests.fuzz.calls import METHODS
from tests.fuzz.verdict import DETAILS, judge

if TYPE_CHECKING:
    from tests.fuzz.target import Target

PREFACE: Final = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
_LISTEN_S: Final = 0.05
_MARK: Final = b"fuzzmark"
_HEADER_BYTES: Final = 9

DATA, HEADERS, RST_STREAM, SETTINGS, PING, GOAWAY, CONTINUATION = 0, 1, 3, 4, 6, 7, 9
END_STREAM, END_HEADERS = 1, 4


def frame(kind: int, flags: int, stream: int, payload: bytes, length: int | None = None) -> bytes:
    """Return a frame; *length* may lie."""
    size = len(payload) if length is None else length
    return (
        (size & 0xFFFFFF).to_bytes(3, "big")
        + bytes([kind & 255, flags & 255])
        + struct.pack(">I", stream & 0xFFFFFFFF)
        + payload
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Talk:
    """What is sent over one connection, and how that ends."""

    pieces: list[bytes]
    # whether the writing side is closed before what comes is read; None: nothing is read
    half_close: bool | None


_NOISE = st.one_of(
    st.binary(max_size=300),
    st.just(PREFACE),
    st.integers(1, len(PREFACE) - 1).map(lambda at: PREFACE[:at]),
    st.sampled_from([
        b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
        b"POST /vmagent.v1.VmAgentService/GetHost HTTP/1.1\r\nUpgrade: h2c\r\n\r\n",
        bytes.fromhex("16030100dc010000d80303") + bytes(200),  # a TLS hello
        b"\x00" * 4096,
        b"SSH-2.0-x\r\n",
    ]),
    st.integers(1, 60_000).map(lambda size: b"A" * size),
)  # fmt: skip


@st.composite
def noise(draw: st.DrawFn) -> Talk:
    """Anything but HTTP/2, or only its beginning."""
    return Talk(
        pieces=draw(st.lists(_NOISE, max_size=4)),
        half_close=draw(st.sampled_from([True, False, None])),
    )


_PATHS = st.sampled_from(sorted(METHODS)) | st.sampled_from(
    ["", "/", "//", "/vmagent.v1.VmAgentService", "/no.Such/Method", "*", "/" + "m" * 3000]
)
_BYTES = st.binary(max_size=40)


@st.composite
def _headers(draw: st.DrawFn) -> bytes:
    """A block of headers: those of a call, some of them missing, doubled or nonsense."""
    headers: list[tuple[bytes, bytes]] = [
        (b":method", b"POST"),
        (b":scheme", b"http"),
        (b":path", draw(_PATHS).encode()),
        (b":authority", b"localhost"),
        (b"content-type", b"application/grpc"),
        (b"te", b"trailers"),
    ]
    for _ in range(draw(st.integers(0, 3))):
        at = draw(st.integers(0, len(headers) - 1))
        match draw(st.sampled_from(["drop", "double", "value", "name", "add", "timeout"])):
            case "drop" if len(headers) > 1:
                del headers[at]
            case "double":
                headers.append(headers[at])
            case "value":
                headers[at] = (headers[at][0], draw(_BYTES))
            case "name":
                headers[at] = (draw(_BYTES), headers[at][1])
            case "timeout":
                value = draw(st.sampled_from([b"1n", b"0S", b"99999999H", b"-1S", b"x", b""]))
                headers.append((b"grpc-timeout", value))
            case _:
                extra = draw(st.sampled_from([
                    (b"grpc-encoding", b"gzip"), (b"grpc-encoding", b"\xff"),
                    (b"x-bin", b"!!!"), (b"connection", b"close"), (b"x", b"y" * 9000),
                    (b"content-length", b"7"), (b"transfer-encoding", b"chunked"),
                    (b":status", b"200"), (b"grpc-status", b"0"), (b"X-Upper", b"1"),
                ]))  # fmt: skip
                headers.append(extra)
    return Encoder().encode(headers, huffman=draw(st.booleans()))


def _body(payload: bytes) -> bytes:
    return b"\x00" + len(payload).to_bytes(4, "big") + payload


_BODIES = st.one_of(
    st.binary(max_size=60).map(_body),
    st.just(_body(b"")),
    st.binary(max_size=60),
    st.just(b"\x01" + _body(b"x")[1:]),  # said to be compressed
    st.just(b"\x00\xff\xff\xff\xff"),  # 4 GiB are to follow
    st.just(b"\xee" * 5),
)
_STREAMS = st.sampled_from([1, 1, 1, 3, 5, 7, 0, 2, 2**31 - 1])
_SETTING = st.tuples(st.integers(0, 8), st.sampled_from([0, 1, 100, 65_535, 2**31, 2**32 - 1]))


@st.composite
def _frames(draw: st.DrawFn) -> bytes:  # noqa: PLR0911 - a return for each kind
    stream = draw(_STREAMS)
    match draw(st.sampled_from([
        "call", "call", "call", "headers", "continued", "data", "reset", "settings", "ping",
        "goaway", "window", "any", "raw", "lie",
    ])):  # fmt: skip
        case "call":
            block, body = draw(_headers()), draw(_BODIES)
            ends = draw(st.sampled_from([0, END_STREAM]))
            return frame(HEADERS, END_HEADERS, stream, block) + frame(DATA, ends, stream, body)
        case "headers":
            flags = draw(st.integers(0, 255))
            return frame(HEADERS, flags, stream, draw(_headers()))
        case "continued":
            block = draw(_headers())
            rest = [block[at : at + 7] for at in range(7, len(block), 7)][:200]
            parts = [frame(HEADERS, 0, stream, block[:7])]
            parts += [frame(CONTINUATION, 0, stream, part) for part in rest]
            return b"".join(parts) + frame(CONTINUATION, END_HEADERS, stream, b"")
        case "data":
            return frame(DATA, draw(st.integers(0, 255)), stream, draw(_BODIES))
        case "reset":
            number = draw(st.integers(1, 30))  # rapid reset
            block = draw(_headers())
            return b"".join(
                frame(HEADERS, END_HEADERS, 2 * n + 1, block)
                + frame(RST_STREAM, 0, 2 * n + 1, b"\x00\x00\x00\x08")
                for n in range(number)
            )
        case "settings":
            pairs = draw(st.lists(_SETTING, max_size=6))
            payload = b"".join(struct.pack(">HI", *pair) for pair in pairs)
            return frame(SETTINGS, draw(st.sampled_from([0, 1])), draw(_STREAMS), payload)
        case "ping":
            one = frame(PING, draw(st.sampled_from([0, 1])), 0, bytes(8))
            return one * draw(st.integers(1, 50))
        case "goaway":
            return frame(GOAWAY, 0, 0, draw(_BYTES))
        case "window":
            step = draw(st.sampled_from([0, 1, 2**31 - 1, 2**31]))
            return frame(8, 0, stream, struct.pack(">I", step))
        case "any":
            kind, flags = draw(st.integers(0, 255)), draw(st.integers(0, 255))
            return frame(kind, flags, stream, draw(st.binary(max_size=100)))
        case "lie":
            length = draw(st.sampled_from([0, 1, 16_385, 2**24 - 1]))
            return frame(draw(st.integers(0, 9)), 0, stream, draw(_BYTES), length)
        case _:
            return draw(_BYTES)


@st.composite
def framed(draw: st.DrawFn) -> Talk:
    """HTTP/2 by hand: a preface, then frames in any order."""
    begin = PREFACE + frame(SETTINGS, 0, 0, b"")
    return Talk(
        pieces=[begin, *draw(st.lists(_frames(), min_size=1, max_size=8))],
        half_close=draw(st.sampled_from([False, False, False, True, None])),
    )


def feed(target: Target, talk: Talk) -> None:
    """Say all of it, listen, and judge what was answered."""
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(2.0)
        heard = Heard()
        try:
            connection.connect(str(target.path))
            for piece in talk.pieces:
                connection.sendall(piece)
            if talk.half_close is None:
                return
            connection.sendall(frame(PING, 0, 0, _MARK))
            if talk.half_close:
                connection.shutdown(socket.SHUT_WR)
            connection.settimeout(_LISTEN_S)
            while not heard.all_said and (piece := connection.recv(65536)):
                heard.take(piece)
        except (TimeoutError, BrokenPipeError, ConnectionError):
            pass
        heard.judge()


@dataclass(slots=True)
class Heard:
    """What the daemon has said on a connection so far."""

    _rest: bytes = b""
    _decoder: Decoder = field(default_factory=Decoder)
    _ended: list[dict[bytes, bytes]] = field(default_factory=list)
    # the mark came back, and with it whatever was answered before
    all_said: bool = False

    def take(self, piece: bytes) -> None:
        self._rest += piece
        while len(self._rest) >= _HEADER_BYTES:
            try:
                one, length = Frame.parse_frame_header(memoryview(self._rest[:_HEADER_BYTES]))
                if len(self._rest) < _HEADER_BYTES + length:
                    return
                one.parse_body(memoryview(self._rest[_HEADER_BYTES : _HEADER_BYTES + length]))
            except HyperframeError as error:
                raise AssertionError(
                    f"the daemon speaks no HTTP/2: {self._rest[:40]!r}"
                ) from error
            self._rest = self._rest[_HEADER_BYTES + length :]
            if isinstance(one, HeadersFrame):
                self._block(one)
            elif isinstance(one, PingFrame) and one.opaque_data == _MARK:
                self.all_said = True

    def _block(self, one: HeadersFrame) -> None:
        try:
            decoded: Any = self._decoder.decode(one.data, raw=True)
        except HPACKError as error:
            raise AssertionError("the daemon's headers cannot be read") from error
        self._ended.append(dict(decoded))

    def judge(self) -> None:
        for headers in self._ended:
            if b"grpc-status" in headers:
                text = headers.get(b"grpc-message", b"").decode(errors="replace")
                typed = DETAILS.encode() in headers
                judge(int(headers[b"grpc-status"]), text, typed=typed)
