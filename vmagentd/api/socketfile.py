"""The Unix socket's file: ours alone while we serve, and never anybody else's.

gRPC alone would take a live daemon's socket away without a word, and unlink whatever lies at its
path when it stops. It gets a place in a folder beside, which nobody else may enter.
"""

from __future__ import annotations

import fcntl
import os
import socket
import stat
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Self

from systemd import daemon

from vmagentd import sockets
from vmagentd.errors import SocketInUse

if TYPE_CHECKING:
    from types import TracebackType

_FOLDER = ".d"
_PRIVATE = "grpc"
_BOUND = "new"

# What fits into `sun_path`, less what a socket in the folder needs.
MAX_PATH_BYTES = 107 - len(f"{_FOLDER}/{_PRIVATE}")
# as many as wait to be accepted; the kernel has its own limit below that
_BACKLOG = 4096


class SocketFile:
    """The place of a socket in the file system; as a context manager, the right to it.

    The right is a lock on a file beside it, which is never removed: a lock on a removed file
    excludes nobody. The socket is bound in the folder beside and then moved to its place, so
    nobody meets it before it has its mode.
    """

    def __init__(self, path: Path, *, mode: int, adopted: socket.socket | None = None) -> None:
        """Prepare.

        Args:
            path: where clients connect.
            mode: who may.
            adopted: a socket that listens already, for us, and whose file is not ours.
        """
        self._path, self._mode = path, mode
        self._adopted = adopted
        self._folder = Path(f"{path}{_FOLDER}")
        # where gRPC is to serve
        self.private = self._folder / _PRIVATE
        self._lock = -1
        # device and inode of our socket, once it is in place
        self._ours: tuple[int, int] | None = None

    @property
    def is_adopted(self) -> bool:
        """Whether systemd listens, not the daemon."""
        return self._adopted is not None

    @property
    def address(self) -> str:
        """Where clients connect; `@NAME` if that is no file."""
        if self._adopted is None:
            return str(self._path)
        name: str | bytes = self._adopted.getsockname()
        return f"@{os.fsdecode(name[1:])}" if isinstance(name, bytes) else name

    def why_not_at(self, path: Path) -> str | None:
        """Return why clients of an adopted socket do not connect to *path*, None if they do."""
        if Path(self.address).resolve() == path.resolve():
            return None
        return (
            f"does nothing, since systemd listens for the daemon, on {self.address}: set "
            "ListenStream= in a drop-in of vmagentd.socket"
        )

    def why_not_for(self, mode: int) -> str | None:
        """Return why others may connect to an adopted socket than *mode* says, None if not."""
        try:
            present = stat.S_IMODE(Path(self.address).stat().st_mode)
        except OSError:
            return None  # no file, so it has no mode; or none that we may look at
        if present == mode:
            return None
        return (
            f"does nothing, since systemd made {self.address}, with mode {present:04o}: set "
            "SocketMode= in a drop-in of vmagentd.socket"
        )

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
                if self._adopted is None:
                    self._check_present()
                self._make_folder()
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
            sockets.remove(self._path, self._ours)
            self.private.unlink(missing_ok=True)
            self._folder.rmdir()
        except OSError:
            pass  # the directory is gone or no longer ours: the socket is nobody's then
        finally:
            self._unlock()

    def listen(self) -> socket.socket:
        """Return the socket that clients connect to, in its place, with its mode.

        Raises:
            SocketInUse: it cannot be had; nothing was changed.
        """
        if self._adopted is not None:
            return self._adopted
        made = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        bound = self._folder / _BOUND
        try:
            bound.unlink(missing_ok=True)  # a daemon was killed just here
            made.bind(os.fspath(bound))
            bound.chmod(self._mode)
            made.listen(_BACKLOG)
            ours = sockets.identity(bound)
            bound.rename(self._path)
        except OSError as error:
            made.close()
            raise self._refusal(f"cannot be served: {error.strerror}") from error
        self._ours = ours
        return made

    def _make_folder(self) -> None:
        """Make the folder, or take over one of ours that was left behind."""
        with suppress(FileExistsError):
            self._folder.mkdir(0o700)
        there = self._folder.lstat()
        if not stat.S_ISDIR(there.st_mode) or there.st_uid != os.geteuid():
            raise self._refusal(f"{self._folder} is not the daemon's own folder; remove it")
        self._folder.chmod(0o700)

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
        why = sockets.why_not_at(self._path)
        if why is not None:
            raise self._refusal(why)

    def _refusal(self, why: str) -> SocketInUse:
        return SocketInUse(str(self._path), why)


def adopted(path: Path) -> socket.socket | None:
    """Return the socket that systemd listens on for us, None if it does not.

    Args:
        path: of several, the one that listens there.

    Raises:
        SocketInUse: none of several does.
    """
    handed = daemon.listen_fds()
    found = [
        socket.socket(fileno=fd)
        for fd in handed
        if daemon.is_socket(fd, socket.AF_UNIX, socket.SOCK_STREAM, 1)
    ]
    if len(found) > 1:
        found = [each for each in found if each.getsockname() == os.fspath(path)]
    if handed and not found:
        raise SocketInUse(str(path), "it is none of the sockets that systemd hands over")
    return found[0] if found else None
