"""The host's directory of users may be a server that does not answer: that is no answer."""

from __future__ import annotations

import asyncio
import grp
import sys
import threading
import time
from contextlib import suppress
from typing import TYPE_CHECKING

import pytest
from vmagent.v1 import vm_agent_service_pb2 as pb

from vmagentd.api.directory import Directory, DirectorySilent

from .conftest import Setting, serving
from .test_gate import until
from .users import needs_root, visit

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping
    from pathlib import Path

HANGING = 1000
# for what must not be waited for; all else has its time on a machine that is busy
SOON_S = 0.05

# libc is to read its files, and cannot open any from some time on.
WITHOUT_FILES = """
import asyncio, ctypes, resource
from vmagentd.api import nss
from vmagentd.api.directory import Directory, DirectorySilent

nss._BUFFER_BYTES = 1  # so that it has to grow
for database in (b"passwd", b"group"):
    ctypes.CDLL(None).__nss_configure_lookup(database, b"files")

async def main():
    directory = Directory(limit_s=20)
    await directory.want(["daemon", "no\\0such"])
    nobody = 4_000_000_000
    print(await directory.user(1), await directory.user(nobody), dict(directory.gids))
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (0, most))
    for ask, key in ((nss.user_name, 1), (nss.group_id, "daemon")):
        try:
            print(ask(key))
        except OSError as error:
            print(error)
    directory._users[1] = ("daemon", -1.0)  # long ago
    print(await directory.user(1), dict(directory.gids))
    try:
        print(await directory.user(2))
    except DirectorySilent:
        print("silent")

asyncio.run(main())
"""

# The names of these users, by another /etc/passwd, which only this process sees.
NAMES_OF = """
import ctypes, sys
from vmagentd.api import nss

ctypes.CDLL(None).__nss_configure_lookup(b"passwd", b"files")
print(*(ascii(nss.user_name(int(uid))) for uid in sys.argv[1:]))
"""


class Server:
    """A directory that answers for some users only once it is told to."""

    def __init__(self) -> None:
        self.asked: list[int] = []
        self.go_on = threading.Event()
        self.fails = False
        # None: all groups have the same
        self.gids: dict[str, int | None] | None = None

    def name_of(self, uid: int) -> str | None:
        self.asked.append(uid)
        if self.fails:
            raise OSError(5, "Input/output error")
        if uid >= HANGING:
            self.go_on.wait()
        return f"name{uid}"

    def gids_of(self, groups: Iterable[str]) -> Mapping[str, int | None]:
        self.go_on.wait()
        return dict.fromkeys(groups, 7) if self.gids is None else self.gids


@pytest.fixture
def server() -> Iterator[Server]:
    server = Server()
    yield server
    server.go_on.set()


async def test_no_answer_is_not_no_name(server: Server) -> None:
    directory = Directory(name_of=server.name_of, limit_s=SOON_S)
    for _ in range(3):
        with pytest.raises(DirectorySilent, match="how uid 1000 is called; try again"):
            await directory.user(HANGING)
    # asked once, however often it is wanted
    assert server.asked == [HANGING]
    server.go_on.set()
    # A late answer counts.
    await until(lambda: not directory._open)
    assert await directory.user(HANGING) == "name1000"
    assert server.asked == [HANGING]


async def test_one_that_fails_gives_no_answer(
    server: Server, caplog: pytest.LogCaptureFixture
) -> None:
    server.fails = True
    directory = Directory(name_of=server.name_of, limit_s=20)
    for _ in range(2):
        with pytest.raises(DirectorySilent):
            await directory.user(5)
    assert server.asked == [5, 5]
    assert "users cannot be asked: OSError(5, 'Input/output error')" in caplog.text
    server.fails = False
    assert await directory.user(5) == "name5"
    directory._users[5] = ("name5", -1.0)  # long ago
    server.fails = True
    assert await directory.user(5) == "name5"


async def test_a_group_that_is_not_answered_for_is_what_it_was(
    server: Server, caplog: pytest.LogCaptureFixture
) -> None:
    server.go_on.set()
    directory = Directory(gids_of=server.gids_of, limit_s=20)
    await directory.want(["operators", "viewers"])
    server.gids = {"viewers": None, "admins": 8}
    await directory.want(["operators", "viewers", "admins", "others"])
    assert directory.gids == {"operators": 7, "admins": 8}
    assert "does not tell of operators, others: left as they were" in caplog.text


async def test_what_libc_cannot_look_up_is_not_taken_for_none() -> None:
    """It tells so by the code that it returns, whatever `pwd` and `grp` make of that."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", WITHOUT_FILES, stdout=asyncio.subprocess.PIPE
    )
    said = (await process.communicate())[0].decode()
    gids = {"daemon": grp.getgrnam("daemon").gr_gid}
    assert said.splitlines() == [
        f"daemon None {gids}",
        "[Errno 24] Too many open files",
        "[Errno 24] Too many open files",
        f"daemon {gids}",
        "silent",
    ]


async def test_without_an_answer_a_user_has_the_name_that_he_had(
    server: Server, caplog: pytest.LogCaptureFixture
) -> None:
    server.go_on.set()
    directory = Directory(name_of=server.name_of, limit_s=20)
    assert await directory.user(HANGING) == "name1000"
    directory._users[HANGING] = ("name1000", -1.0)  # long ago
    server.go_on.clear()
    directory._limit_s = SOON_S
    assert [await directory.user(HANGING) for _ in range(3)] == ["name1000"] * 3
    assert [each.getMessage() for each in caplog.records if each.name.startswith("vmagentd")] == [
        "the host's directory of users does not answer; users whom it never named cannot connect"
    ]


async def test_one_that_is_not_answered_for_holds_up_no_other(server: Server) -> None:
    directory = Directory(name_of=server.name_of, limit_s=20)
    hanging = [asyncio.create_task(directory.user(HANGING + i)) for i in range(15)]
    await until(lambda: len(server.asked) == 15)
    assert await directory.user(5) == "name5"
    # There are so many threads and no more; root needs none.
    last = asyncio.create_task(directory.user(HANGING + 15))
    await until(lambda: len(server.asked) == 17)
    waits = asyncio.create_task(directory.user(6))
    await asyncio.sleep(0)  # it runs as far as it gets
    assert await directory.user(0) == "root"
    assert (len(directory._waiting), waits.done()) == (1, False)
    assert 6 not in server.asked
    server.go_on.set()
    assert await waits == "name6"
    assert await asyncio.gather(*hanging, last) == [f"name{HANGING + i}" for i in range(16)]


async def test_many_at_once_have_their_turns(server: Server) -> None:
    """However long that takes all in all: it is for each question that there is a time."""
    asked: list[int] = []

    def name_of(uid: int) -> str:
        asked.append(uid)
        time.sleep(0.03)
        return f"name{uid}"

    directory = Directory(name_of=name_of, gids_of=server.gids_of, limit_s=1)
    many = [asyncio.create_task(directory.user(uid)) for uid in range(1, 801)]
    assert await asyncio.gather(*many) == [f"name{uid}" for uid in range(1, 801)]
    assert asked[0] == 1
    # first come, first served; threads may overtake each other a little
    assert all(abs(uid - place) < 32 for place, uid in enumerate(asked, start=1))


async def test_who_waits_does_so_no_longer_than_something_is_answered(server: Server) -> None:
    directory = Directory(name_of=server.name_of, limit_s=0.2)
    hanging = [asyncio.create_task(directory.user(HANGING + i)) for i in range(16)]
    await until(lambda: len(server.asked) == 16)
    async with asyncio.timeout(10):
        with pytest.raises(DirectorySilent):
            await directory.user(5)
    assert 5 not in server.asked
    await asyncio.wait(hanging)
    server.go_on.set()
    await until(lambda: not directory._open)
    assert await directory.user(5) == "name5"


async def test_no_more_wait_than_can_be_connected(server: Server) -> None:
    directory = Directory(name_of=server.name_of, limit_s=20)
    many = [asyncio.create_task(directory.user(HANGING + i)) for i in range(16 + 4096)]
    await until(lambda: len(server.asked) == 16)
    with pytest.raises(DirectorySilent):
        await directory.user(5)
    server.go_on.set()
    assert len(await asyncio.gather(*many)) == 16 + 4096


async def test_groups_that_are_not_answered_for_hold_no_user_up(server: Server) -> None:
    directory = Directory(gids_of=server.gids_of, name_of=server.name_of, limit_s=SOON_S)
    await directory.want(["operators"])
    assert not directory.gids
    with suppress(DirectorySilent):  # where the machine is so busy
        await directory.user(5)
    await until(lambda: 5 in directory._users)
    assert await directory.user(5) == "name5"
    server.go_on.set()
    await until(lambda: directory.gids)
    assert directory.gids == {"operators": 7}
    await directory.want([])
    assert not directory.gids


async def test_where_there_can_be_no_more_threads_there_is_no_answer(server: Server) -> None:
    directory = Directory(name_of=server.name_of, limit_s=20)
    threading.stack_size(1 << 47)  # more than there is address space
    try:
        with pytest.raises(DirectorySilent):
            await directory.user(5)
    finally:
        threading.stack_size(0)
    assert await directory.user(5) == "name5"


@needs_root
async def test_whoever_is_not_known_is_told_to_try_again(folder: Path, server: Server) -> None:
    folder.chmod(0o755)  # noqa: ASYNC240 - a moment
    directory = Directory(name_of=server.name_of, limit_s=SOON_S)
    async with serving(folder, Setting(directory=directory)) as served:
        code = f"""
import os, socket, sys
os.setuid({HANGING})
with socket.socket(socket.AF_UNIX) as it:
    it.connect({str(served.path)!r})
    while part := it.recv(65536):
        sys.stdout.buffer.write(part)
"""
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-c", code, stdout=asyncio.subprocess.PIPE
        )
        said = (await process.communicate())[0]
        assert b"does not tell how uid 1000 is called; try again later" in said
        await served.stub.WhoAmI(pb.WhoAmIRequest())
        assert len(served.gate) == 1
        server.go_on.set()
        await until(lambda: HANGING in directory._users)
        (who,) = await visit(served.path, "whoami", uid=HANGING)
        assert who.answer["actor"] == "user:name1000"


@needs_root
async def test_a_name_that_cannot_be_told_is_none(tmp_path: Path) -> None:
    """Messages and the journal hold UTF-8 alone, and a log is lines."""
    names = ["j\u00f6rg".encode(), b"j\xf6rg", b"a\x1bb", b"a b"]
    lines = (b"%b:x:%d:1::/:/bin/sh\n" % (name, uid) for uid, name in enumerate(names, 61000))
    (tmp_path / "passwd").write_bytes(b"".join(lines))
    mount = 'mount --bind "$1" /etc/passwd; echo mounted; shift; exec "$@"'
    process = await asyncio.create_subprocess_exec(
        *("unshare", "--mount", "sh", "-ec", mount, "sh", str(tmp_path / "passwd")),
        *(sys.executable, "-c", NAMES_OF, "61000", "61001", "61002", "61003", "61004"),
        stdout=asyncio.subprocess.PIPE,
    )
    mounted, _, said = (await process.communicate())[0].decode().partition("\n")
    if not mounted:
        pytest.skip("this machine mounts nothing for us")
    assert said == "'j\\xf6rg' None None 'a b' None\n"
