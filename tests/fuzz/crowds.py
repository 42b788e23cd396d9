"""Many at once: connections that say nothing, calls that nobody reads, watches that end."""

from __future__ import annotations

import socket
from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import grpc
from hypothesis import strategies as st
from vmagent.v1 import vm_agent_service_pb2 as pb
from vmagent.v1.vm_agent_service_pb2_grpc import VmAgentServiceStub

from tests.fuzz.verdict import judge_error
from tests.fuzz.wire import END_HEADERS, HEADERS, PREFACE, SETTINGS, frame
from tests.system.daemon import channel

if TYPE_CHECKING:
    from tests.fuzz.target import Target

_MEANWHILE_S: Final = 10.0
# A window of nothing: whatever is answered waits in the daemon.
_NO_WINDOW: Final = frame(SETTINGS, 0, 0, b"\x00\x04\x00\x00\x00\x00")


@dataclass(frozen=True, slots=True, kw_only=True)
class Crowd:
    """So many of them, doing that."""

    what: str
    size: int
    leave: str


def crowds() -> st.SearchStrategy[Crowd]:
    """Any crowd."""
    return st.builds(
        Crowd,
        what=st.sampled_from(["silent", "preface", "half", "deaf", "calls", "watches"]),
        size=st.integers(1, 60),
        leave=st.sampled_from(["close", "reset"]),
    )


def feed(target: Target, crowd: Crowd) -> None:
    """Let the crowd come, check that somebody else is served meanwhile, and let it go."""
    with ExitStack() as stack:
        match crowd.what:
            case "calls" | "watches":
                calling = stack.enter_context(channel(target.daemon.target))
                calls = [_call(calling, crowd.what) for _ in range(crowd.size * 5)]
            case _:
                calls = []
                for _ in range(crowd.size):
                    _one(target, crowd, stack)
        _is_served(target)
        for call in calls:
            if crowd.leave == "close":
                call.cancel()
            else:
                _end(call, crowd.what)


def _call(calling: grpc.Channel, what: str) -> Any:  # noqa: ANN401 - a future, or a stream of answers
    service = VmAgentServiceStub(calling)
    if what == "watches":
        return service.WatchStatus(pb.WatchStatusRequest(), timeout=0.5)
    return service.ListVms.future(pb.ListVmsRequest(), timeout=_MEANWHILE_S)


def _end(call: Any, what: str) -> None:  # noqa: ANN401 - as above
    try:
        # never one as the other: who iterates a future, which can be iterated too, has gRPC's
        # client lose the call, and its channel never close
        for _ in call if what == "watches" else (call.result(),):
            pass
    except grpc.RpcError as error:
        judge_error(error)


def _one(target: Target, crowd: Crowd, stack: ExitStack) -> None:
    connection = stack.enter_context(socket.socket(socket.AF_UNIX))
    connection.settimeout(2.0)
    try:
        connection.connect(str(target.path))
        match crowd.what:
            case "preface":
                connection.sendall(PREFACE)
            case "half":
                connection.sendall(PREFACE + frame(SETTINGS, 0, 0, b""))
                connection.shutdown(socket.SHUT_WR)
            case "deaf":
                begun = frame(HEADERS, END_HEADERS, 1, b"\x83\x86")
                connection.sendall(PREFACE + _NO_WINDOW + begun)
            case _:
                pass
    except OSError:  # the limit of connections was met
        pass


def _is_served(target: Target) -> None:
    with channel(target.daemon.target) as calling:
        service = VmAgentServiceStub(calling)
        try:
            service.GetHost(pb.GetHostRequest(), timeout=_MEANWHILE_S, wait_for_ready=True)
        except grpc.RpcError as error:
            told: Any = error
            # over a limit of its own is an answer too
            if told.code() is not grpc.StatusCode.RESOURCE_EXHAUSTED:
                raise AssertionError(f"nobody else is served: {told.code()}") from error
