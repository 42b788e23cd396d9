"""Small disks to fill and to break, in a mount namespace that ends with the test run.

The namespace is this process's own: its mounts are seen by the threads and processes that are
started from here, by nobody else, and go with it.
"""

import ctypes
import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

CLONE_NEWNS = 0x00020000
MIB = 1 << 20
_CHUNK = 64 << 10


class CannotMountError(Exception):
    """This machine lets us mount nothing; the text says why."""


class Disk:
    """A file system with a limit, full or not."""

    def __init__(self, path: Path, reserve: Path) -> None:
        self.path = path
        # what takes the room; on the file system below, if there is one
        self._reserve = reserve

    def fill(self, *, leave: int = 0) -> None:
        """Take all room that is left, to the last byte, but for so many of them."""
        with self._reserve.open("ab", buffering=0) as file:
            size = _CHUNK
            while size:
                try:
                    file.write(bytes(size))
                except OSError:
                    size //= 2
            file.truncate(file.tell() - leave)

    def make_room(self) -> None:
        self._reserve.unlink(missing_ok=True)


@contextmanager
def tmpfs(path: Path, size: int) -> Iterator[Disk]:
    """A disk whose files live in memory: full is full, at once."""
    with _mounted(path, "-t", "tmpfs", "-o", f"size={size}", "tmpfs"):
        yield Disk(path, path / "filler")


@contextmanager
def thin(path: Path, size: int, really: int) -> Iterator[Disk]:
    """A disk that promises *size* and has *really*: when that is used up, fsync fails.

    An ext4 in a file with holes, on a tmpfs that is too small for it.
    """
    below = path.with_name(path.name + "-below")
    with _mounted(below, "-t", "tmpfs", "-o", f"size={really}", "tmpfs"):
        image = below / "image"
        with image.open("wb") as file:
            file.truncate(size)
        _run("mkfs.ext4", "-q", "-F", "-O", "^has_journal", os.fspath(image))
        with _mounted(path, "-t", "ext4", "-o", "loop,errors=remount-ro", os.fspath(image)):
            yield Disk(path, below / "filler")


@contextmanager
def hanging(disk: Disk) -> Iterator[None]:
    """Let a thin disk hang: who writes to it waits until the body is left."""
    _run("fsfreeze", "--freeze", os.fspath(disk.path))
    try:
        yield
    finally:
        _run("fsfreeze", "--unfreeze", os.fspath(disk.path))


def break_off(disk: Disk) -> None:
    """Have the kernel find an error on a thin disk: from here on it is read-only."""
    mounts = (line.split() for line in Path("/proc/self/mounts").read_text().splitlines())
    (device,) = (device for device, path, *_ in mounts if path == os.fspath(disk.path))
    trigger = Path("/sys/fs/ext4", Path(device).name, "trigger_fs_error")
    trigger.write_text("a test wants it")


def lock(file: Path) -> None:
    """Let nobody write to a file on a thin disk, not even who has it open, until `unlock`."""
    _run("chattr", "+i", os.fspath(file))


def unlock(file: Path) -> None:
    _run("chattr", "-i", os.fspath(file))


def enter_namespace() -> None:
    """Give this process's main thread a mount namespace of its own.

    Raises:
        CannotMountError: that is not allowed here.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(CLONE_NEWNS) != 0:
        why = os.strerror(ctypes.get_errno())
        raise CannotMountError(f"no mount namespace for us: {why}")
    _run("mount", "--make-rslave", "/")


@contextmanager
def _mounted(path: Path, *arguments: str) -> Iterator[None]:
    path.mkdir(exist_ok=True)
    _run("mount", *arguments, os.fspath(path))
    try:
        yield
    finally:
        _run("umount", "--lazy", os.fspath(path))


def _run(*command: str) -> None:
    try:
        subprocess.run(command, check=True, capture_output=True, text=True)
    except FileNotFoundError as error:
        raise CannotMountError(f"{command[0]} is missing") from error
    except subprocess.CalledProcessError as error:
        raise CannotMountError(f"{' '.join(command)}: {error.stderr.strip()}") from error
