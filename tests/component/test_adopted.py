"""A socket that systemd listens on for the daemon, and what of its settings that leaves to it."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import sys
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import pytest
from grpc import aio
from vmagent.v1 import vm_agent_service_pb2 as pb
from vmagent.v1.vm_agent_service_pb2_grpc import VmAgentServiceStub

from tests.component.hypervisor.host import until
from tests.component.process import DEADLINE_S, ROOT, Running

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

# As systemd does: the socket is descriptor 3, and the number of the process is told.
AS_SYSTEMD = """
import os, sys
os.dup2(int(sys.argv[1]), 3)
os.environ |= {"LISTEN_FDS": "1", "LISTEN_PID": str(os.getpid())}
os.execv(sys.argv[2], sys.argv[2:])
"""


@asynccontextmanager
async def adopting(folder: Path, address: str, settings: str) -> AsyncIterator[Running]:
    """A daemon with *settings* that was handed a socket at *address*, of mode 0640."""
    (folder / "vmagentd.toml").write_text(settings)
    command = [sys.executable, "-m", "vmagentd", "--config", str(folder / "vmagentd.toml")]
    command += ["--libvirt-uri", f"test://{folder}/host.xml", "--state-dir", str(folder / "state")]
    with socket.socket(socket.AF_UNIX) as listener, (folder / "log").open("ab") as log:
        listener.bind(address)
        if address.startswith("/"):
            os.chmod(address, 0o640)  # noqa: PTH101
        listener.listen()
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-c", AS_SYSTEMD, str(listener.fileno()), *command),
            cwd=ROOT,
            stdout=log,
            stderr=log,
            pass_fds=(listener.fileno(),),
        )
    try:
        abstract = address.startswith("\0")
        target = f"unix-abstract:{address[1:]}" if abstract else f"unix:{address}"
        async with aio.insecure_channel(target) as channel:
            stub = VmAgentServiceStub(channel)
            await stub.GetHost(pb.GetHostRequest(), wait_for_ready=True, timeout=DEADLINE_S)
            running = Running(process, stub, folder / "log")
            await until(lambda: "serving" in said(running), "serving", within_s=DEADLINE_S)
            yield running
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()
        sys.stdout.write((folder / "log").read_text())


def said(running: Running) -> str:
    return running.log.read_text()


def warnings(text: str) -> list[str]:
    """The warnings about the socket."""
    lines = [line.split(maxsplit=2) for line in text.splitlines()]
    return [text for _, level, text in lines if level == "WARNING" and text.startswith("socket")]


async def test_settings_that_do_nothing_are_told_with_what_does(folder: Path) -> None:
    settings = f'socket = "{folder}/s"\nsocket_mode = "0600"\n'
    async with adopting(folder, f"{folder}/held", settings) as running:
        assert warnings(said(running)) == [
            f"socket: does nothing, since systemd listens for the daemon, on {folder}/held: set "
            "ListenStream= in a drop-in of vmagentd.socket",
            f"socket_mode: does nothing, since systemd made {folder}/held, with mode 0640: set "
            "SocketMode= in a drop-in of vmagentd.socket",
        ]
        (serving,) = [line for line in said(running).splitlines() if " serving " in line]
        assert serving.endswith(f" on {folder}/held")


@pytest.mark.parametrize("mode", ["", 'socket_mode = "0640"\n'])
async def test_nothing_is_told_of_what_is_as_it_should_be(folder: Path, mode: str) -> None:
    """Nor of a default: it is systemd's to choose."""
    (folder / "link").symlink_to(folder)
    settings = f'socket = "{folder}/link/held"\n{mode}'
    async with adopting(folder, f"{folder}/held", settings) as running:
        assert warnings(said(running)) == []


async def test_a_reload_promises_nothing_for_after_a_restart(folder: Path) -> None:
    settings = f'socket = "{folder}/held"\n'
    async with adopting(folder, f"{folder}/held", settings) as running:
        before = len(said(running))
        (folder / "vmagentd.toml").write_text(f'{settings}socket_mode = "0600"\n')
        running.process.send_signal(signal.SIGHUP)
        await until(lambda: "were read again" in said(running), "reload", within_s=DEADLINE_S)
        (told,) = warnings(said(running)[before:])
        assert told.startswith("socket_mode: does nothing, since systemd made")


async def test_one_without_a_file_is_told_by_its_name(folder: Path) -> None:
    name = f"vmagentd-{os.getpid()}"
    async with adopting(folder, f"\0{name}", f'socket = "{folder}/s"\n') as running:
        (told,) = warnings(said(running))
        assert f"on @{name}: set ListenStream=" in told
