"""Calls of every method of every service, with any request: what gRPC's own client can send."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import grpc
from grpc_channelz.v1 import channelz_pb2
from grpc_health.v1 import health_pb2
from grpc_reflection.v1alpha import reflection_pb2
from hypothesis import strategies as st
from vmagent.v1 import vm_agent_service_pb2

from tests.fuzz.messages import messages
from tests.fuzz.verdict import judge_error
from tests.system.daemon import channel

if TYPE_CHECKING:
    from collections.abc import Iterator

    from google.protobuf.descriptor import MethodDescriptor, ServiceDescriptor

    from tests.fuzz.target import Target

_FILES: Final = (vm_agent_service_pb2, health_pb2, reflection_pb2, channelz_pb2)
_SERVICES: Final[list[ServiceDescriptor]] = [
    service for file in _FILES for service in file.DESCRIPTOR.services_by_name.values()
]
METHODS: Final = {
    f"/{service.full_name}/{method.name}": method
    for service in _SERVICES
    for method in service.methods
}

_NAMES = st.sampled_from(sorted(METHODS))
_MOST_ANSWERS: Final = 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """One call: its requests as bytes, what goes before them, how long it is waited for."""

    method: str
    requests: list[bytes]
    metadata: list[tuple[str, str | bytes]]
    timeout_s: float


_KEYS = st.from_regex(r"[0-9a-z_.-]{1,40}", fullmatch=True).filter(
    lambda key: not key.startswith("grpc-")
)
_ASCII = st.text(st.characters(min_codepoint=32, max_codepoint=126), max_size=200)
_METADATA: st.SearchStrategy[list[Any]] = st.lists(
    st.tuples(_KEYS.filter(lambda key: not key.endswith("-bin")), _ASCII)
    | st.tuples(
        _KEYS.map(lambda key: key + "-bin") | st.sampled_from(["grpc-trace-bin", "grpc-tags-bin"]),
        st.binary(max_size=200),
    )
    | st.tuples(
        st.sampled_from([
            "authorization", "user-agent", "x-forwarded-for", "grpc-timeout", "grpc-encoding",
            "grpc-accept-encoding", "grpc-previous-rpc-attempts", "content-type", "te", "host",
            "x-goog-api-client",
        ]),
        _ASCII,
    )
    | st.tuples(st.just("big"), st.integers(0, 20_000).map(lambda size: "y" * size)),
    max_size=8,
)  # fmt: skip
_TIMEOUTS = st.sampled_from([0.001, 0.02, 0.1, 0.3])


@st.composite
def _mutated(draw: st.DrawFn, whole: bytes) -> bytes:
    """Return a message that was damaged in a few places."""
    damaged = bytearray(whole)
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, len(damaged)))
        match draw(st.sampled_from(["insert", "delete", "flip", "double"])):
            case "insert":
                damaged[at:at] = draw(st.binary(max_size=8))
            case "delete":
                del damaged[at : at + draw(st.integers(1, 8))]
            case "flip" if at < len(damaged):
                damaged[at] ^= 1 << draw(st.integers(0, 7))
            case _:
                damaged[at:at] = damaged[at:]
    return bytes(damaged)


def _message(method: str) -> st.SearchStrategy[bytes]:
    kind = METHODS[method].input_type
    return messages(kind).map(lambda message: message.SerializeToString())


def _call(draw: st.DrawFn, requests: st.SearchStrategy[bytes], method: str) -> Call:
    streams = METHODS[method].client_streaming
    return Call(
        method=method,
        requests=draw(st.lists(requests, min_size=not streams, max_size=4 if streams else 1)),
        metadata=draw(_METADATA) if draw(st.integers(0, 9)) == 0 else [],
        timeout_s=draw(_TIMEOUTS),
    )


@st.composite
def valid_calls(draw: st.DrawFn) -> Call:
    """Any method with any valid message."""
    method = draw(_NAMES)
    return _call(draw, _message(method), method)


@st.composite
def malformed_calls(draw: st.DrawFn) -> Call:
    """Any method with bytes that are no message of its, or hardly one."""
    method = draw(_NAMES)
    damaged = _message(method).flatmap(_mutated)
    return _call(draw, st.binary(max_size=200) | damaged, method)


@st.composite
def hostile_metadata(draw: st.DrawFn) -> Call:
    """Valid requests behind metadata that nobody would send."""
    method = draw(_NAMES)
    call = _call(draw, _message(method), method)
    return Call(
        method=call.method,
        requests=call.requests,
        metadata=draw(_METADATA.filter(bool)),
        timeout_s=call.timeout_s,
    )


class Caller:
    """Makes calls on one connection, which is renewed now and then."""

    def __init__(self, target: Target) -> None:
        self._target = target
        self._channel = channel(target.daemon.target)

    def close(self) -> None:
        self._channel.close()

    def feed(self, call: Call) -> None:
        """Make one call, read what comes, and judge how it ended."""
        method: MethodDescriptor = METHODS[call.method]
        try:
            for _ in itertools.islice(self._answers(method, call), _MOST_ANSWERS):
                pass
        except grpc.RpcError as error:
            judge_error(error)
        except ValueError as error:  # gRPC's client itself sends no such metadata
            if "metadata" not in str(error):
                raise

    def _answers(self, method: MethodDescriptor, call: Call) -> Iterator[bytes]:
        kind = "stream" if method.client_streaming else "unary"
        kind += "_stream" if method.server_streaming else "_unary"
        # as bytes: what is sent need not be a message
        multi: Any = getattr(self._channel, kind)(call.method)
        sent: Any = iter(call.requests) if method.client_streaming else call.requests[0]
        answer = multi(sent, timeout=call.timeout_s, metadata=call.metadata)
        if not method.server_streaming:
            yield answer
            return
        try:
            yield from answer
        finally:
            answer.cancel()
