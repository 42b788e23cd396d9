"""Unix sockets in the file system: whether one is in use, and which one it is."""

from __future__ import annotations

import os
import socket
import stat
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path


def why_not_at(path: Path) -> str | None:
    """Return why a socket of ours may not take the place of what is at *path*, None if it may.

    Raises:
        OSError: it cannot be found out.
    """
    try:
        present = path.lstat()
    except FileNotFoundError:
        return None
    if not stat.S_ISSOCK(present.st_mode):
        return "something that is no socket is in its place"
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(0)
        try:
            probe.connect(os.fspath(path))
        except ConnectionRefusedError:
            return None  # left behind by a process that was killed; replaced when we bind
        except BlockingIOError:
            pass  # somebody listens, with a full backlog
    return "another process serves it"


def identity(path: Path) -> tuple[int, int] | None:
    """Return device and inode of what is at *path*, None if nothing is.

    Raises:
        OSError: it cannot be found out.
    """
    try:
        present = path.lstat()
    except FileNotFoundError:
        return None
    return present.st_dev, present.st_ino


def remove(path: Path, ours: tuple[int, int] | None) -> None:
    """Remove what is at *path* if it is *ours* still.

    Raises:
        OSError: it cannot be removed.
    """
    if ours is not None and identity(path) == ours:
        path.unlink()
