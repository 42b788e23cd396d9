"""How the process ends early: at once and quietly.

Whoever presses Ctrl-C, or closes the pipe, wants no farewell of gRPC, asyncio or the interpreter,
nor to wait for one. Nothing is lost by it: every line was flushed as it was printed, and what
the daemon was asked to do it does on its own.
"""

from __future__ import annotations

import os
import signal
from contextlib import suppress
from typing import TYPE_CHECKING, NoReturn

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from types import FrameType

_INTERRUPTED = 128 + signal.SIGINT
_PIPE_CLOSED = 128 + signal.SIGPIPE


def on_interrupt(last_words: Callable[[], Iterable[str]] | None = None) -> None:
    """From now on Ctrl-C ends the process with 130; *last_words* go to stderr before."""

    def leave(_signal: int, _frame: FrameType | None) -> None:
        if last_words is not None:
            with suppress(OSError):
                lines = "".join(f"vmagentctl: {sentence}\n" for sentence in last_words())
                os.write(2, lines.encode(errors="backslashreplace"))
        os._exit(_INTERRUPTED)

    # Not asyncio's way, which cancels a task: a write into a full pipe would not notice.
    signal.signal(signal.SIGINT, leave)


def reader_gone() -> NoReturn:
    """End the process as SIGPIPE would have: nobody reads what is printed."""
    os._exit(_PIPE_CLOSED)


def give_up_stdout() -> None:
    """Drop what could not be written to stdout, or the interpreter tries once more at its end."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)
    os.close(nowhere)
