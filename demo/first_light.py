"""First light: a daemon, a watcher, a few commands, a kill, and nothing lost.

    make demo

Runs the real vmagentd on libvirt's built-in test driver, in a directory of its own: no root, no
hypervisor, nothing left behind. What it shows it also checks; it ends with 0 only if every
promise was kept, else it says which one was not.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import re
import signal
import socket
import sys
import tempfile
import time
from collections import deque
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from asyncio import StreamReader
    from asyncio.subprocess import Process
    from collections.abc import AsyncIterator, Callable, Iterable

BIN = Path(sys.executable).parent
DEADLINE_S = 10  # for any single step; the whole takes a few seconds
INTERRUPTED = 130
BOLD, DIM, PLAIN = ("\x1b[1m", "\x1b[2m", "\x1b[0m") if sys.stdout.isatty() else ("", "", "")


class BrokenPromiseError(Exception):
    """Something did not go as it must."""


def say(text: str) -> None:
    """Tell what comes."""
    print(f"\n{BOLD}# {text}{PLAIN}", flush=True)


def expect(promise: str, *, kept: bool) -> None:
    """End the demo unless a promise was kept."""
    if not kept:
        raise BrokenPromiseError(promise)


class Lines:
    """The lines of a background process, shown as they come and kept to be waited for."""

    def __init__(self, form: str = "{}", *, shown: bool = True) -> None:
        self.all: list[str] = []
        self._form, self._shown = form, shown
        self._more = asyncio.Condition()

    async def read(self, stream: StreamReader | None) -> None:
        """Take lines until the stream ends."""
        while stream is not None and (raw := await stream.readline()):
            line = raw.decode(errors="replace").rstrip("\n")
            if self._shown:
                print(self._form.format(line), flush=True)
            async with self._more:
                self.all.append(line)
                self._more.notify_all()

    async def wait(self, what: str, found: Callable[[list[str]], bool]) -> None:
        """Wait until the lines so far are as they should be."""
        try:
            async with asyncio.timeout(DEADLINE_S), self._more:
                await self._more.wait_for(lambda: found(self.all))
        except TimeoutError:
            raise BrokenPromiseError(f"within {DEADLINE_S} s {what}") from None


@asynccontextmanager
async def background(
    command: Iterable[str | Path], lines: Lines, env: dict[str, str]
) -> AsyncIterator[Process]:
    """Run a process; it does not outlive the block."""
    process = await asyncio.create_subprocess_exec(
        *command,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        env=env,
    )
    readers = [asyncio.create_task(lines.read(s)) for s in (process.stdout, process.stderr)]
    try:
        yield process
    finally:
        with suppress(ProcessLookupError):
            process.kill()
        await asyncio.gather(*readers)
        await process.wait()


class Demo:
    """One run: a place of its own, and the commands in it."""

    def __init__(self, folder: Path) -> None:
        self.socket, self.state = folder / "vmagentd.sock", folder / "state"
        self.env = os.environ | {"VMAGENTD_TARGET": f"unix:{self.socket}"}
        self.acknowledged: list[str] = []  # operations whose end a command has shown

    @asynccontextmanager
    async def daemon(self) -> AsyncIterator[Process]:
        """Run the daemon, ready to serve."""
        options = ["--libvirt-uri", "test:///default"]
        options += ["--socket", str(self.socket), "--state-dir", str(self.state)]
        print(f"{BOLD}$ vmagentd {' '.join(options)} &{PLAIN}", flush=True)
        log = Lines(shown=False)
        async with background([BIN / "vmagentd", *options], log, self.env) as process:
            deadline = time.monotonic() + DEADLINE_S
            while not self._answers():
                if process.returncode is not None or time.monotonic() > deadline:
                    tail = "\n".join(deque(log.all, maxlen=20))
                    raise BrokenPromiseError(f"the daemon listens at {self.socket}\n{tail}")
                await asyncio.sleep(0.02)
            yield process

    def _answers(self) -> bool:
        with socket.socket(socket.AF_UNIX) as probe:
            return probe.connect_ex(str(self.socket)) == 0

    async def run(self, *arguments: str, code: int = 0, shown: bool = True) -> str:
        """Run vmagentctl as a person would; it must end with *code*. Return what it printed."""
        if shown:
            print(f"{BOLD}$ vmagentctl {' '.join(arguments)}{PLAIN}", flush=True)
        lines = Lines(shown=shown)
        command: list[str | Path] = [BIN / "vmagentctl", *arguments]
        async with background(command, lines, self.env) as process:
            try:
                await asyncio.wait_for(process.wait(), DEADLINE_S)
            except TimeoutError:
                raise BrokenPromiseError(f"`{arguments[0]}` ends in {DEADLINE_S} s") from None
        expect(
            f"`vmagentctl {' '.join(arguments)}` ends with {code}, it ended with "
            f"{process.returncode}",
            kept=process.returncode == code,
        )
        output = "\n".join(lines.all)
        if code == 0:
            self.acknowledged += re.findall(r"accepted, operation (\S+)", output)
        return output

    async def history(self) -> list[dict[str, Any]]:
        """Return all transitions, oldest first."""
        options = ("--oldest-first", "--limit", "0", "-o", "json")
        answer = json.loads(await self.run("history", *options, shown=False))
        return list(answer["transitions"])


def revisions(lines: Iterable[str]) -> list[int]:
    """Return the revisions that a watcher has shown."""
    return [int(found[1]) for line in lines if (found := re.match(r" *(\d+)  \d{4}-", line))]


def shows(*words: str) -> Callable[[list[str]], bool]:
    """Return whether some line has all the words."""
    return lambda lines: any(all(word in line for word in words) for line in lines)


async def operate(demo: Demo, watched: Lines, verb: str) -> str:
    """Start or stop the VM; what was acknowledged must reach the watcher. Return the output."""
    output = await demo.run(verb, "test")
    operation = demo.acknowledged[-1][:8]
    await watched.wait(
        f"the watcher sees operation {operation} succeed", shows(operation, "succeeded")
    )
    return output


async def before_the_kill(demo: Demo, watched: Lines) -> None:
    """Show a watcher what starts and stops do."""
    say("A watcher sees what a stop does, as it happens")
    await operate(demo, watched, "stop")
    await watched.wait("the watcher sees test stop", shows("RUNNING → ", "STOPPED"))

    say("Stopping what is stopped: what was wished for holds already")
    output = await operate(demo, watched, "stop")
    expect("a second stop says that it was stopped already", kept="already" in output)

    say("A start, and one of a VM that is not there")
    await operate(demo, watched, "start")
    await watched.wait("the watcher sees test run", shows("→ RUNNING"))
    output = await demo.run("start", "no-such-vm", code=3)
    expect("a missing VM is VM_NOT_FOUND", kept="[VM_NOT_FOUND]" in output)

    say("One more stop, and then …")
    await operate(demo, watched, "stop")


async def check(demo: Demo, watched: Lines, first: int) -> None:
    """Compare what the watcher saw with what the journal holds and the commands were told."""
    transitions = await demo.history()
    kept = [int(t["revision"]) for t in transitions]
    expect(
        f"the journal holds 1, 2, 3, … without a hole, it holds {kept}",
        kept=kept == list(range(1, len(kept) + 1)),
    )
    await watched.wait(
        f"the watcher sees revision {kept[-1]}", lambda lines: kept[-1] in revisions(lines)
    )
    seen = revisions(watched.all)
    expect(
        f"the watcher sees each revision from {first + 1} on once and in order, it saw {seen}",
        kept=seen == kept[first:],
    )
    for operation in demo.acknowledged:
        phases = [t["operationPhase"] for t in transitions if t.get("operationId") == operation]
        expect(
            f"operation {operation}, which was acknowledged, is in the journal from "
            f"acceptance to success, it has {phases}",
            kept=phases == ["OPERATION_PHASE_ACCEPTED", "OPERATION_PHASE_SUCCEEDED"],
        )
    print(
        f"\n{BOLD}All kept:{PLAIN} revisions 1 to {kept[-1]} without a gap; the watcher saw "
        f"{seen[0]} to {seen[-1]} once each, across the kill; all {len(demo.acknowledged)} "
        "acknowledged operations are in the journal."
    )


async def first_light(folder: Path) -> None:
    """Run the demo in a folder of its own."""
    demo, watched = Demo(folder), Lines(f"{DIM}  watch │ {{}}{PLAIN}")
    say("A daemon on libvirt's test driver, which has one VM")
    print(f"{BOLD}$ export VMAGENTD_TARGET=unix:{demo.socket}{PLAIN}")
    async with demo.daemon() as daemon:
        await demo.run("list")
        first = int((await demo.history())[-1]["revision"])
        print(f"{BOLD}$ vmagentctl watch &{PLAIN}", flush=True)
        async with background([BIN / "vmagentctl", "watch"], watched, demo.env) as watcher:
            await watched.wait("the watcher gets its snapshot", shows("changes follow"))
            expect(
                f"the snapshot is at revision {first}",
                kept=shows(f"revision {first};")(watched.all),
            )
            await before_the_kill(demo, watched)

            say("… the daemon is killed. The watcher waits for it, others are told")
            print(f"{BOLD}$ kill -9 {daemon.pid}{PLAIN}", flush=True)
            daemon.kill()
            await daemon.wait()
            await watched.wait("the watcher notices", shows("connecting again"))
            await demo.run("list", code=4)

            say("It comes back: the watcher goes on where it was")
            async with demo.daemon():
                await watched.wait("the watcher resumes", shows("connected again, going on"))
                await after_the_restart(demo, watched, first)
                watcher.send_signal(signal.SIGINT)
                expect(
                    "Ctrl-C ends the watcher with 130", kept=await watcher.wait() == INTERRUPTED
                )


async def after_the_restart(demo: Demo, watched: Lines, first: int) -> None:
    """Show what the second daemon knows."""
    say("The test driver died with the daemon; its VM runs again. Nobody saw it: it is `late`")
    await watched.wait("the watcher sees that test runs again", shows("→ RUNNING", "late"))
    await demo.run("show", "test")

    say("History, read back after the kill")
    await demo.run("history", "--oldest-first")
    await check(demo, watched, first)


async def cancellable(folder: Path) -> None:
    """Run the demo so that SIGTERM cleans up as Ctrl-C does."""
    task = asyncio.current_task()
    if task is not None:
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
    await first_light(folder)


def main() -> int:
    """Run the demo; 0 if all that it shows is true."""
    # asyncio warns of a process that ends just as it is given up.
    logging.getLogger("asyncio").setLevel(logging.CRITICAL)
    started = time.monotonic()
    try:
        with tempfile.TemporaryDirectory(prefix="first-light-") as folder:
            asyncio.run(cancellable(Path(folder)))
    except BrokenPromiseError as broken:
        print(f"\n{BOLD}FAILED{PLAIN}, expected: {broken}", file=sys.stderr)
        return 1
    except BrokenPipeError:  # whoever watched has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except (KeyboardInterrupt, asyncio.CancelledError):
        return INTERRUPTED
    print(f"Took {time.monotonic() - started:.1f} s.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
