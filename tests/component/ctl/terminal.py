"""vmagentctl as a process, as a person or a script runs it."""

from __future__ import annotations

import asyncio
import os
import sys
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from asyncio.subprocess import Process
    from collections.abc import AsyncIterator
    from pathlib import Path

DEADLINE_S = 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Done:
    """A run of vmagentctl that is over."""

    code: int
    out: str
    err: str


@asynccontextmanager
async def started(target: Path, *arguments: str) -> AsyncIterator[Process]:
    """Run vmagentctl in the background; it does not outlive the block."""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "vmagent.ctl",
        *arguments,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        env=os.environ | {"VMAGENTD_TARGET": f"unix:{target}", "TZ": "UTC"},
    )
    try:
        yield process
    finally:
        if process.returncode is None:
            process.kill()
        # Reads the rest, so that the pipes are closed.
        await asyncio.wait_for(process.communicate(), DEADLINE_S)


async def ended(process: Process) -> Done:
    """Wait for a run to end."""
    out, err = await asyncio.wait_for(process.communicate(), DEADLINE_S)
    assert process.returncode is not None
    return Done(code=process.returncode, out=(out or b"").decode(), err=err.decode())


async def vmagentctl(target: Path, *arguments: str) -> Done:
    """Run vmagentctl until it ends."""
    async with started(target, *arguments) as process:
        return await ended(process)


async def line(stream: asyncio.StreamReader | None) -> str:
    """Return the next line of a process that runs on."""
    assert stream is not None
    return (await asyncio.wait_for(stream.readline(), DEADLINE_S)).decode().rstrip("\n")
