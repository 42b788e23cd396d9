"""Who ends gRPC's loop over and over does not get in for a while, and others do."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager, suppress
from typing import TYPE_CHECKING

from vmagentd.errors import ShutOut
from vmagentd.model import Grant, Role, Rule

from . import wire
from .conftest import Served, Setting, serving
from .test_gate import until
from .test_server import served_again
from .users import NOBODY, needs_root, sending, visit

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

VIEWER = 54321
RULES = (Rule(grant=Grant(role=Role.VIEWER), users=frozenset({f"uid:{VIEWER}"})),)

# Sends something as that user, again and again, or once.
SENDER = """
import os, select, socket, sys
path, uid, said, again = sys.argv[1], int(sys.argv[2]), bytes.fromhex(sys.argv[3]), sys.argv[4]
os.setgroups([]); os.setgid(65534); os.setuid(uid)
while True:
    with socket.socket(socket.AF_UNIX) as each:
        try:
            each.connect(path)
            each.send(said)
        except OSError:
            pass
        print("sent", flush=True)
        if select.select([sys.stdin], [], [], 0.02 if again else 60)[0]:
            break
"""
BAD = wire.PREFACE + wire.settings() + wire.call(b"/\xff", end=True)


@asynccontextmanager
async def sender(
    path: Path, uid: int, said: bytes = BAD, *, again: bool = False
) -> AsyncIterator[None]:
    """A user who sends that."""
    async with sending(SENDER, path, uid, said.hex(), "again" if again else ""):
        yield


def suspected(served: Served) -> list[str]:
    """Return who was, from where."""
    return [
        where.partition(",")[0]
        for _, where, _, why in served.setting.refusals
        if isinstance(why, ShutOut)
    ]


@needs_root
async def test_who_ends_grpcs_loop_over_and_over_does_so_few_times(served: Served) -> None:
    private = served.path.parent / "s.d" / "grpc"
    loop = asyncio.get_running_loop()
    made = set()
    async with sender(served.path, NOBODY, again=True):
        end_s = loop.time() + 3
        while loop.time() < end_s:
            await served_again(served)
            with suppress(FileNotFoundError):
                made.add(private.stat().st_ctime_ns)
    assert len(made) < 5
    assert set(suspected(served)) == {f"uid {NOBODY}"}
    assert len(suspected(served)) > 10  # and he was told so


@needs_root
async def test_others_get_in_at_once(folder: Path) -> None:
    async with serving(folder, Setting(rules=RULES)) as served:
        hello = (
            wire.PREFACE
            + wire.settings()
            + wire.call(b"/vmagent.v1.VmAgentService/WhoAmI")
            + wire.message(b"")
        )
        async with sender(served.path, VIEWER, hello):
            await until(lambda: served.server._boundary.calls.begun == 1)
            async with sender(served.path, NOBODY):
                await until(lambda: suspected(served))
            await served_again(served)
            assert suspected(served) == [f"uid {NOBODY}"]
        for uid in (VIEWER, 12345):
            (told,) = await visit(served.path, "whoami", uid=uid)
            assert told.code == "OK"


@needs_root
async def test_who_leaves_at_once_is_suspected_too(served: Served) -> None:
    """Also with calls before it that are as they should be."""
    good = wire.call(b"/vmagent.v1.VmAgentService/WhoAmI") + wire.message(b"")
    said = wire.PREFACE + wire.settings() + good + wire.call(b"/\xff", stream=3, end=True)
    async with asyncio.timeout(20):
        while not suspected(served):
            async with sender(served.path, 1000, said):
                pass
            await served_again(served)
    assert set(suspected(served)) == {"uid 1000"}
