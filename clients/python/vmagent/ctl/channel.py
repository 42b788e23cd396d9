"""The way to a daemon: a channel to it, and why it cannot be reached."""

from __future__ import annotations

import os
import socket
import stat
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import quote

import grpc.aio

from vmagent.ctl import tls
from vmagent.ctl.failures import ExitCode, Failure, reason_of, refusal
from vmagent.v1.vm_agent_service_pb2_grpc import VmAgentServiceStub

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from grpc.aio import AioRpcError

    from vmagent.ctl.targets import Daemon
    from vmagent.v1.vm_agent_service_pb2_grpc import VmAgentServiceAsyncStub

# A question that the journal answers takes milliseconds.
ANSWER_TIMEOUT_S = 15

_CHANNEL_OPTIONS = (
    # Channels share connections, and with them the wait after a failed attempt, unless told not
    # to: the follower has its own pace.
    ("grpc.use_local_subchannel_pool", 1),
    # A watcher that is told of 1000 VMs with long names in one message.
    ("grpc.max_receive_message_length", 64 << 20),
)
_REMOTE_OPTIONS = (
    # How long a connection may take to come up, the server's first word included. The default is
    # 20 s, and somebody waits. Not on this host: where nobody listens one is refused at once, and
    # who is not has come before the daemon, to a socket that systemd holds for it.
    ("grpc.min_reconnect_backoff_ms", 3000),
    # A cut cable or a frozen host tells nothing by itself.
    ("grpc.keepalive_time_ms", 30_000),
    ("grpc.keepalive_timeout_ms", 10_000),
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


@asynccontextmanager
async def connect(daemon: Daemon) -> AsyncIterator[VmAgentServiceAsyncStub]:
    """Yield the service of a daemon; what gRPC raises within becomes a `Failure`."""
    async with open_channel(daemon) as channel:
        try:
            yield VmAgentServiceStub(channel)
        except grpc.aio.AioRpcError as error:
            raise failure_of(error, daemon) from error


def open_channel(daemon: Daemon) -> grpc.aio.Channel:
    """Return a channel to a daemon; it connects with its first call.

    Raises:
        Failure: a file that TLS needs cannot be used.
    """
    at = daemon.at
    if isinstance(at, Path):
        # gRPC reads the target as a URI; quoted, any path is one.
        return grpc.aio.insecure_channel(
            f"unix:{quote(os.fsencode(at))}", options=_CHANNEL_OPTIONS
        )
    options: list[tuple[str, str | int]] = [*_CHANNEL_OPTIONS, *_REMOTE_OPTIONS]
    if at.server_name is not None:
        options.append(("grpc.ssl_target_name_override", at.server_name))
    return grpc.aio.secure_channel(f"dns:///{at.address}", tls.credentials(at), options=options)


def failure_of(error: AioRpcError, daemon: Daemon) -> Failure:
    """Return why a call ended: what the daemon said, or why it cannot be reached."""
    failure = refusal(error)
    if failure.code is not ExitCode.UNREACHABLE or reason_of(error):
        return failure
    return Failure(
        f"cannot reach vmagentd at {daemon.name}: {_obstacle(daemon, error)}", failure.code
    )


def _obstacle(daemon: Daemon, error: AioRpcError) -> str:
    """Return what is in the way, and what to do. Asked afterwards: the way is free mostly."""
    if error.code() is grpc.StatusCode.DEADLINE_EXCEEDED:
        return f"it did not answer within {ANSWER_TIMEOUT_S} s; see its log, or ask again"
    if error.code() is not grpc.StatusCode.UNAVAILABLE:
        return f"the call was lost ({error.details()}); ask again"
    if isinstance(daemon.at, Path):
        return _on_this_host(daemon.at, error)
    return tls.obstacle(daemon.at, error.details() or "")


def _on_this_host(path: Path, error: AioRpcError) -> str:
    try:
        if not stat.S_ISSOCK(path.stat().st_mode):
            return "this is not a socket; name the right one with --target"
        with socket.socket(socket.AF_UNIX) as probe:
            probe.settimeout(1)
            probe.connect(str(path))
    except OSError as obstacle:
        return _ADVICE.get(type(obstacle)) or str(obstacle)
    return f"somebody listens there, but the call was lost ({error.details()}); ask again"
