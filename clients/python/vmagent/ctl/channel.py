"""The way to the daemon: its socket, a channel to it, and why it cannot be reached."""

from __future__ import annotations

import os
import socket
import stat
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import quote

import grpc.aio

from vmagent.ctl.failures import ExitCode, Failure, reason_of, refusal
from vmagent.v1.vm_agent_service_pb2_grpc import VmAgentServiceStub

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from grpc.aio import AioRpcError

    from vmagent.v1.vm_agent_service_pb2_grpc import VmAgentServiceAsyncStub

DEFAULT_TARGET = "unix:/run/vmagentd/vmagentd.sock"

# A question that the journal answers takes milliseconds.
ANSWER_TIMEOUT_S = 15

_LONGEST_PATH = 107  # bytes: what the kernel's sockaddr_un holds
_CHANNEL_OPTIONS = (
    # How long a connection may take to come up. The default is 20 s, and somebody waits.
    ("grpc.min_reconnect_backoff_ms", 3000),
    # Channels share connections, and with them the wait after a failed attempt, unless told not
    # to: the follower has its own pace.
    ("grpc.use_local_subchannel_pool", 1),
    # A watcher that is told of 1000 VMs with long names in one message.
    ("grpc.max_receive_message_length", 64 << 20),
)
_ADVICE = {
    FileNotFoundError: (
        "there is no such socket; start vmagentd (systemctl start vmagentd), or name the right "
        "socket with --target"
    ),
    PermissionError: (
        "permission denied; become root, or a member of a group to which vmagentd's "
        "configuration gives a role"
    ),
    ConnectionRefusedError: "nobody listens there; start vmagentd (systemctl start vmagentd)",
}


def socket_path(target: str) -> Path:
    """Return the path of the socket that *target* names: `unix:/path`, or `/path` alone.

    Raises:
        ValueError: with one sentence that says what is wrong.
    """
    path = target.removeprefix("unix:").removeprefix("//")
    if not target.startswith(("unix:", "/")) or not path or "\0" in path:
        raise ValueError(f"{target!r} is not a socket of vmagentd; write unix:/path")
    if len(os.fsencode(path)) > _LONGEST_PATH:
        raise ValueError(f"a socket's path has {_LONGEST_PATH} bytes at most: {path!r}")
    return Path(path)


@asynccontextmanager
async def connect(path: Path) -> AsyncIterator[VmAgentServiceAsyncStub]:
    """Yield the service behind a socket; what gRPC raises within becomes a `Failure`."""
    async with open_channel(path) as channel:
        try:
            yield VmAgentServiceStub(channel)
        except grpc.aio.AioRpcError as error:
            raise failure_of(error, path) from error


def open_channel(path: Path) -> grpc.aio.Channel:
    """Return a channel to a socket; it connects with its first call."""
    # gRPC reads the target as a URI; quoted, any path is one.
    return grpc.aio.insecure_channel(f"unix:{quote(os.fsencode(path))}", options=_CHANNEL_OPTIONS)


def failure_of(error: AioRpcError, path: Path) -> Failure:
    """Return why a call ended: what the daemon said, or why it cannot be reached."""
    failure = refusal(error)
    if failure.code is not ExitCode.UNREACHABLE or reason_of(error):
        return failure
    return Failure(f"cannot reach vmagentd at unix:{path}: {_obstacle(path, error)}", failure.code)


def _obstacle(path: Path, error: AioRpcError) -> str:
    """Return what is in the way, and what to do. Asked afterwards: the way is free mostly."""
    if error.code() is grpc.StatusCode.DEADLINE_EXCEEDED:
        return f"it did not answer within {ANSWER_TIMEOUT_S} s; see its log, or ask again"
    if error.code() is not grpc.StatusCode.UNAVAILABLE:
        return f"the call was lost ({error.details()}); ask again"
    try:
        if not stat.S_ISSOCK(path.stat().st_mode):
            return "this is not a socket; name the right one with --target"
        with socket.socket(socket.AF_UNIX) as probe:
            probe.settimeout(1)
            probe.connect(str(path))
    except OSError as obstacle:
        return _ADVICE.get(type(obstacle)) or str(obstacle)
    return f"somebody listens there, but the call was lost ({error.details()}); ask again"
