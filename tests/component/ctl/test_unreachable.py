"""A daemon on this host that cannot be reached, or not yet: told in one line, soon, why."""

from __future__ import annotations

import asyncio
import os
import select
import socket
from typing import TYPE_CHECKING

import pytest
from vmagent.ctl.channel import connect
from vmagent.ctl.failures import ExitCode, Failure
from vmagent.ctl.targets import Daemon
from vmagent.v1.vm_agent_service_pb2 import GetHostRequest

from tests.component.api.conftest import Setting, serving
from tests.component.ctl.scripted import listening
from tests.component.ctl.terminal import DEADLINE_S, ended, started, vmagentctl

if TYPE_CHECKING:
    from pathlib import Path


async def told(target: Path, *arguments: str) -> str:
    done = await vmagentctl(target, *(arguments or ("list",)))
    assert (done.code, done.out) == (4, "")
    assert done.err.startswith(f"vmagentctl: cannot reach vmagentd at unix:{target}: ")
    assert done.err.count("\n") == 1
    return done.err


async def test_no_socket(target: Path) -> None:
    assert "there is no such socket; start vmagentd" in await told(target)


async def test_nobody_listens(target: Path) -> None:
    with socket.socket(socket.AF_UNIX) as left_behind:
        left_behind.bind(str(target))
    assert "nobody listens there" in await told(target)


async def test_no_socket_but_a_file(target: Path) -> None:
    os.mknod(target)
    assert "this is not a socket" in await told(target)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may go anywhere")
async def test_not_allowed(target: Path) -> None:
    target.parent.chmod(0)
    try:
        assert "permission denied" in await told(target)
    finally:
        target.parent.chmod(0o700)


async def test_somebody_who_hangs_up(target: Path) -> None:
    async with await asyncio.start_unix_server(lambda _, writer: writer.close(), target):
        assert "somebody listens there, but" in await told(target)


async def test_somebody_who_never_answers(target: Path) -> None:
    with listening(target), pytest.raises(Failure, match="it did not answer") as failure:
        async with connect(Daemon(target)) as service:
            await service.GetHost(GetHostRequest(), timeout=0.2)  # a command has more
    assert failure.value.code is ExitCode.UNREACHABLE


@pytest.mark.parametrize("command", ["start", "stop"])
async def test_several_vms_are_told_once(target: Path, command: str) -> None:
    await told(target, command, "a", "b", "c")


@pytest.mark.parametrize(
    "arguments", [("watch",), ("watch", "--resume-from", "7"), ("show", "a"), ("host",)]
)
async def test_every_command(target: Path, arguments: tuple[str, ...]) -> None:
    await told(target, *arguments)


async def test_who_comes_before_the_daemon_waits_for_it(target: Path) -> None:
    with listening(target) as systemds:
        async with started(target, "list") as process:
            await asyncio.to_thread(select.select, [systemds], [], [], DEADLINE_S)
            await asyncio.sleep(3.5)  # a daemon takes its time on a busy host
            async with serving(target.parent, Setting(adopted=systemds.dup())):
                done = await ended(process)
    assert (done.code, done.out.splitlines()[-1], done.err) == (0, "no VMs", "")
