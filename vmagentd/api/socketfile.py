"""The Unix socket's file: ours alone while we serve, and never anybody else's.

gRPC alone would take a live daemon's socket away without a word, and unlink whatever lies at its
path when it stops.
"""

from __future__ import annotations

import fcntl
import os
import socket
import stat
from pathlib import Path
from typing import TYPE_CHECKING, Self

from vmagentd.errors import SocketInUse

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import TracebackType

# What fits into `sun_path`, less the one byte of `_BOUND`.
MAX_PATH_BYTES = 107 - 1
_BOUND = "~"


class SocketFile:
    """The place of a socket in the file system; as a context manager, the right to it.

    The right is a lock on a file beside it, which is never removed: a lock on a removed file
    excludes nobody. The socket is bound under another name and then moved to its own, so nobody
    meets it before it has its mode, and gRPC, which unlinks the name it bound, cannot unlink a
    socket that somebody else has put in its place meanwhile.
    """

    def __init__(self, path: Path, *, mode: int) -> None:
        self._path, self._mode = path, mode
        self._lock = -1
        # device and inode of our socket, once it is in place
        self._ours: tuple[int, int] | None = None

    def __enter__(self) -> Self:
        """Take the right to the path.

        Raises:
            SocketInUse: another daemon has it, or it cannot be had; the message tells why.
        """
        if len(os.fsencode(self._path)) > MAX_PATH_BYTES:
            raise self._refusal(
                f"is longer than the {MAX_PATH_BYTES} bytes that a socket can have"
            )
        try:
            self._lock = self._locked()
            try:
                self._check_present()
            except BaseException:
                self._unlock()
                raise
        except OSError as error:
            raise self._refusal(f"cannot be served: {error.strerror}") from error
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Remove the socket if it is still ours, then give the right up."""
        try:
            if self._ours is not None and self._identity() == self._ours:
                self._path.unlink()
        except OSError:
            pass  # the directory is gone or no longer ours: the socket is nobody's then
        finally:
            self._unlock()

    def bind(self, add_port: Callable[[str], object]) -> None:
        """Have *add_port* bind the socket, and put it in its place with its mode.

        The file mode creation mask belongs to the whole process, so other threads must not make
        files meanwhile; at start they do not. A stricter mask for a moment is all they could meet.
        """
        bound = Path(f"{self._path}{_BOUND}")
        mask = os.umask(0o777 & ~self._mode)
        try:
            add_port(f"unix:{bound}")
            there = bound.lstat()
            bound.rename(self._path)
        except (OSError, RuntimeError) as error:  # RuntimeError is gRPC's for any failed bind
            raise self._refusal(f"cannot be served: {error}") from error
        finally:
            os.umask(mask)
        self._ours = (there.st_dev, there.st_ino)

    def _locked(self) -> int:
        lock = os.open(f"{self._path}.lock", os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(lock)
            raise self._refusal("another vmagentd serves it") from None
        return lock

    def _unlock(self) -> None:
        os.close(self._lock)
        self._lock = -1

    def _check_present(self) -> None:
        """Refuse the path if what is there now is in use or is no socket."""
        try:
            present = self._path.lstat()
        except FileNotFoundError:
            return
        if not stat.S_ISSOCK(present.st_mode):
            raise self._refusal("something that is no socket is in its place")
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
            probe.settimeout(0)
            try:
                probe.connect(os.fspath(self._path))
            except ConnectionRefusedError:
                return  # left behind by a daemon that was killed; replaced when we bind
            except BlockingIOError:
                pass  # somebody listens, with a full backlog
        raise self._refusal("another process serves it")

    def _identity(self) -> tuple[int, int] | None:
        try:
            present = self._path.lstat()
        except FileNotFoundError:
            return None
        return present.st_dev, present.st_ino

    def _refusal(self, why: str) -> SocketInUse:
        return SocketInUse(str(self._path), why)
