"""Other users of this host, as the tests have them call."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterable

NOBODY, NOGROUP = 65534, 65534

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")


@dataclass(frozen=True)
class Said:
    """How one call of a visitor ended."""

    code: str
    reason: str
    message: str
    answer: Any


async def visitor(
    path: Path,
    *calls: str,
    uid: int = NOBODY,
    gid: int = NOGROUP,
    groups: Iterable[int] = (),
    pass_fds: tuple[int, ...] = (),
) -> asyncio.subprocess.Process:
    """Start a client that is that user; root can go on to read its lines."""
    # what leads to the socket is the test's own
    path.parent.chmod(0o755)
    return await asyncio.create_subprocess_exec(
        sys.executable,
        str(Path(__file__).with_name("visitor.py")),
        str(path),
        str(uid),
        str(gid),
        ",".join(map(str, groups)),
        *calls,
        stdout=asyncio.subprocess.PIPE,
        env=os.environ | {"GRPC_VERBOSITY": "NONE"},
        pass_fds=pass_fds,
    )


async def visit(path: Path, *calls: str, **who: Any) -> list[Said]:  # noqa: ANN401 - as `visitor`
    """Make *calls* as that user, and return how each ended."""
    process = await visitor(path, *calls, **who)
    async with asyncio.timeout(40):
        out, _ = await process.communicate()
    assert process.returncode == 0
    return [Said(*json.loads(line)) for line in out.splitlines()]


@asynccontextmanager
async def sending(program: str, path: Path, *arguments: object) -> AsyncIterator[None]:
    """Run a program that sends something to the socket at *path*; it has when this yields.

    It says `sent` then, and ends with its standard input.
    """
    path.parent.chmod(0o755)
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", program, str(path), *map(str, arguments)),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
    )
    assert process.stdout is not None
    try:
        assert await process.stdout.readline() == b"sent\n"
        yield
    finally:
        await process.communicate(b"")
