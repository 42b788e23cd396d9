"""Keeps the processes of one private libvirtd, and leaves nothing behind.

A program of its own: `keeper.py DIRECTORY`. Each line of its standard input is the argument list
of a program to start, as JSON; the answer, a line too, is the pid of the program. When its input
ends, because the test run closed it or died of whatever cause, it kills every process that has
come of them, removes the directory and exits.

Guests are daemons, they leave libvirtd's process tree. They come to the keeper instead: it is
PID 1 of a PID namespace, or at least their subreaper. It reaps at once, and that matters: libvirt
says that a guest has stopped only when its process is gone, zombie included.
"""

import contextlib
import ctypes
import json
import os
import shutil
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from types import FrameType

_PR_SET_CHILD_SUBREAPER = 36


def main(directory: Path) -> None:
    ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    signal.signal(signal.SIGCHLD, _reap)
    for line in sys.stdin:
        sys.stdout.write(f"{_start(json.loads(line), directory / 'output.log')}\n")
        sys.stdout.flush()
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    _kill_all()
    shutil.rmtree(directory)


def _start(argv: list[str], output: Path) -> int:
    append = os.O_WRONLY | os.O_CREAT | os.O_APPEND
    return os.posix_spawn(
        argv[0],
        argv,
        os.environ,
        file_actions=[
            (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0),
            (os.POSIX_SPAWN_OPEN, 1, os.fspath(output), append, 0o644),
            (os.POSIX_SPAWN_DUP2, 1, 2),
        ],
        setsid=True,
        setsigdef=[signal.SIGPIPE, signal.SIGXFSZ],  # Python ignores them, its children would too
    )


def _reap(_signal: int, _frame: FrameType | None) -> None:
    with contextlib.suppress(ChildProcessError):
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass


def _kill_all() -> None:
    with contextlib.suppress(ChildProcessError):  # none left: done
        while True:
            for pid in descendants(os.getpid()):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            os.waitpid(-1, 0)


def descendants(pid: int) -> Iterator[int]:
    """Yield the processes below a process, as seen from here."""
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):
        for tasks in Path(f"/proc/{pid}/task").iterdir():
            for child in map(int, (tasks / "children").read_text().split()):
                yield child
                yield from descendants(child)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
