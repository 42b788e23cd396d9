"""The process: how it can be left, its environment, its exit code."""

from __future__ import annotations

import os
import sys
from io import TextIOWrapper
from pathlib import Path
from typing import TYPE_CHECKING

from vmagent.ctl import leaving

if TYPE_CHECKING:
    from typing import TextIO


def main() -> None:
    """Run vmagentctl as a command."""
    leaving.on_interrupt()  # first: the imports below take long enough to be interrupted
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")  # what matters of it is told by us
    os.environ["GRPC_ENABLE_FORK_SUPPORT"] = "0"
    sys.stdout, sys.stderr = _open(sys.stdout), _open(sys.stderr)

    from vmagent.ctl.app import run  # noqa: PLC0415  # gRPC reads its environment on import

    sys.exit(run(sys.argv[1:]))


def _open(stream: TextIO | None) -> TextIO:
    """Return a stream that can be written to, whatever it is asked to show."""
    if stream is None:  # it was closed before we began
        return Path(os.devnull).open("w", encoding="utf-8")
    if isinstance(stream, TextIOWrapper):
        stream.reconfigure(errors="backslashreplace")  # not every terminal speaks UTF-8
    return stream


if __name__ == "__main__":
    main()
