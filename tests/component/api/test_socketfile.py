"""The socket's file: never taken from anybody, never left to anybody."""

from __future__ import annotations

import asyncio
import os
import socket
import stat
import sys
from typing import TYPE_CHECKING

import pytest
from vmagent.v1 import vm_agent_service_pb2 as pb

from vmagentd.api.socketfile import MAX_PATH_BYTES, SocketFile
from vmagentd.errors import SocketInUse

from .conftest import Setting, serving, serving_at, sighting

if TYPE_CHECKING:
    from contextlib import AbstractAsyncContextManager
    from pathlib import Path

    from .conftest import Served


def mode_of(path: Path) -> int:
    return stat.S_IMODE(path.lstat().st_mode)


def names_in(folder: Path) -> set[str]:
    return {each.name for each in folder.iterdir()}


def listening(path: Path) -> socket.socket:
    """Return a socket that somebody else listens on at *path*."""
    other = socket.socket(socket.AF_UNIX)
    other.bind(str(path))
    other.listen()
    return other


def refused(path: Path) -> str:
    """Return why *path* cannot be had."""
    with pytest.raises(SocketInUse) as caught, SocketFile(path, mode=0o600):
        pass
    return str(caught.value)


async def test_all_may_connect_to_it_alone_and_nothing_else_is_left(folder: Path) -> None:
    async with serving(folder) as served:
        assert mode_of(served.path) == 0o666
        assert names_in(folder) == {"s", "s.d", "s.lock", "state"}
        assert mode_of(folder / "s.d") == 0o700
        assert mode_of(folder / "s.lock") == 0o600
    assert names_in(folder) == {"s.lock", "state"}


@pytest.mark.parametrize("mode", [0o600, 0o660, 0o666])
@pytest.mark.parametrize("mask", [0o000, 0o022, 0o777])
def test_the_mode_is_the_one_asked_for(folder: Path, mode: int, mask: int) -> None:
    before = os.umask(mask)
    try:
        with SocketFile(folder / "s", mode=mode) as file, file.listen():
            assert mode_of(folder / "s") == mode
            assert mode_of(folder / "s.d") == 0o700
            assert os.umask(mask) == mask
    finally:
        os.umask(before)


def _server(
    served: Served, path: Path, tasks: asyncio.TaskGroup
) -> AbstractAsyncContextManager[object]:
    """Another server of the same, at *path*."""
    return serving_at(path, served.servicer, tasks, Setting())


async def test_a_second_daemon_is_refused_and_the_first_serves_on(served: Served) -> None:
    async with asyncio.TaskGroup() as tasks:
        with pytest.raises(SocketInUse, match="another vmagentd serves it"):
            async with _server(served, served.path, tasks):
                pass
    await served.survey(sighting(1, "web"))
    assert (await served.stub.GetVm(pb.GetVmRequest(vm="web"))).vm.name == "web"
    assert served.path.is_socket()


def test_a_live_socket_of_somebody_else_is_left_alone(folder: Path) -> None:
    with listening(folder / "s") as other:
        assert "another process serves it" in refused(folder / "s")
        assert (folder / "s").is_socket()
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(str(folder / "s"))
            other.accept()[0].close()


def test_a_live_socket_with_a_full_backlog_is_live(folder: Path) -> None:
    with socket.socket(socket.AF_UNIX) as other:
        other.bind(str(folder / "s"))
        other.listen(0)
        clients = [socket.socket(socket.AF_UNIX) for _ in range(3)]
        for client in clients:
            client.settimeout(0)
            client.connect_ex(str(folder / "s"))
        assert "another process serves it" in refused(folder / "s")
        for client in clients:
            client.close()


@pytest.mark.parametrize("kind", ["file", "folder", "link", "fifo"])
def test_what_is_no_socket_is_left_alone(folder: Path, kind: str) -> None:
    path = folder / "s"
    match kind:
        case "file":
            path.write_text("precious")
        case "folder":
            path.mkdir()
        case "link":
            path.symlink_to(folder / "nowhere")
        case _:
            os.mkfifo(path)
    assert "no socket" in refused(path)
    assert os.path.lexists(path)


async def test_a_socket_left_behind_is_replaced(folder: Path) -> None:
    listening(folder / "s").close()
    assert (folder / "s").is_socket()
    async with serving(folder) as served:
        await served.stub.GetHost(pb.GetHostRequest())


async def test_what_a_killed_daemon_leaves_is_no_hindrance(folder: Path) -> None:
    """Also when it was killed between binding and moving the socket."""
    code = f"""
import os, sys
from pathlib import Path
from vmagentd.api.socketfile import SocketFile
file = SocketFile(Path({str(folder / "s")!r}), mode=0o600).__enter__()
def die(event, _):
    if event == "os.rename":
        print("bound", flush=True)
        os.kill(os.getpid(), 9)
sys.addaudithook(die)
file.listen()
"""
    daemon = await asyncio.create_subprocess_exec(sys.executable, "-c", code, stdout=-1)
    said, _ = await daemon.communicate()
    assert (said, daemon.returncode) == (b"bound\n", -9)
    async with serving(folder) as served:
        await served.stub.GetHost(pb.GetHostRequest())
    assert names_in(folder) == {"s.lock", "state"}


async def test_a_socket_that_is_somebody_elses_by_now_is_not_unlinked(folder: Path) -> None:
    async with serving(folder) as served:
        served.path.unlink()
        other = listening(served.path)
    assert served.path.is_socket()
    other.close()


async def test_a_folder_that_is_gone_is_no_trouble_at_the_end(folder: Path) -> None:
    (folder / "run").mkdir()
    path = folder / "run/s"
    async with (
        serving(folder) as served,
        asyncio.TaskGroup() as tasks,
        _server(served, path, tasks),
    ):
        (folder / "run").rename(folder / "elsewhere")


def test_the_right_to_the_path_ends_with_its_holder(folder: Path) -> None:
    with SocketFile(folder / "s", mode=0o600):
        assert "another vmagentd serves it" in refused(folder / "s")
    with SocketFile(folder / "s", mode=0o600):
        pass


def test_a_path_must_fit_into_an_address(folder: Path) -> None:
    longest = folder / ("x" * (MAX_PATH_BYTES - len(str(folder)) - 1))
    assert len(str(longest)) == MAX_PATH_BYTES
    with SocketFile(longest, mode=0o600) as file, file.listen():
        assert len(str(file.private)) == 107
        assert longest.is_socket()
    assert "longer than" in refused(longest.with_name(longest.name + "x"))
    assert "longer than" in refused(folder / ("ä" * 60))


@pytest.mark.parametrize("name", ["nowhere/s", "state.db/s"])
def test_a_folder_that_is_not_there(folder: Path, name: str) -> None:
    (folder / "state.db").touch()
    assert "cannot be served" in refused(folder / name)


async def test_what_grpc_cannot_bind_is_one_line_and_gives_the_path_back(served: Served) -> None:
    path = served.path.with_name("other")
    in_the_way = path.with_name("other.d") / "grpc"
    in_the_way.parent.mkdir()
    in_the_way.write_text("")
    async with asyncio.TaskGroup() as tasks:
        with pytest.raises(SocketInUse, match="cannot be served"):
            async with _server(served, path, tasks):
                pass
        async with _server(served, path, tasks):
            assert path.is_socket()


def test_a_folder_of_somebody_else_is_not_used(folder: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("only root can make a folder somebody else's")
    (folder / "s.d").mkdir()
    os.chown(folder / "s.d", 65534, 65534)
    assert "not the daemon's own folder" in refused(folder / "s")
    (folder / "s.d").rmdir()
    (folder / "elsewhere").mkdir()
    (folder / "s.d").symlink_to("elsewhere")
    assert "not the daemon's own folder" in refused(folder / "s")
