"""A Linux guest with a real guest agent: Debian's cloud kernel, busybox, qemu-guest-agent.

Its packages are downloaded and unpacked, never installed, into a cache that the next run finds;
what it boots is built from them in a few seconds. It is up about 3 s after its start (QEMU
without KVM).
"""

import fcntl
import gzip
import hashlib
import os
import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final

from tests.system.machine import CannotRunError

MEMORY_MIB: Final = 128

_INIT: Final = Path(__file__).with_name("linux-init.sh")
_KERNEL: Final = "linux-image-cloud-amd64"  # depends on the one of the present version
_PACKAGES: Final = ("busybox-static", "qemu-guest-agent")
# In the order in which they are loaded.
_MODULES: Final = (
    "acpi/button",
    "input/evdev",
    "virtio/virtio_ring",
    "virtio/virtio",
    "virtio/virtio_pci_legacy_dev",
    "virtio/virtio_pci_modern_dev",
    "virtio/virtio_pci",
    "char/virtio_console",
)
# What the agent runs to end the guest: -h -P or -h -r, and more.
_SHUTDOWN: Final = """#!/bin/busybox sh
case " $* " in *" -r "*) exec reboot -f ;; *) exec poweroff -f ;; esac
"""
_DOWNLOAD_S: Final = 120


@dataclass(frozen=True, slots=True)
class Kernel:
    """What a Linux guest boots."""

    vmlinuz: Path
    initramfs: Path


def kernel(within: Path) -> Kernel:
    """Return what a Linux guest boots, copied to where QEMU may read it; built if need be.

    Raises:
        CannotRunError: it cannot be had here.
    """
    if shutil.which("apt-get") is None or shutil.which("dpkg-deb") is None:
        raise CannotRunError("the Linux guest is made of Debian packages; there is no apt-get")
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "vmagentd-tests"
    cache.mkdir(parents=True, exist_ok=True)
    with (cache / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        built = cache / f"linux-{_fingerprint()}"
        if not built.exists():
            with TemporaryDirectory(dir=cache) as scratch:
                _build(cache, Path(scratch) / "built")
                (Path(scratch) / "built").rename(built)
    copies = [Path(shutil.copy(file, within)) for file in sorted(built.iterdir())]
    for copy in copies:
        copy.chmod(0o644)
    initramfs, vmlinuz = copies
    return Kernel(vmlinuz, initramfs)


def _fingerprint() -> str:
    return hashlib.sha256(_INIT.read_bytes() + Path(__file__).read_bytes()).hexdigest()[:12]


def _build(cache: Path, built: Path) -> None:
    busybox, agent, image = (_unpacked(name, cache) for name in (*_PACKAGES, _kernel_package()))
    built.mkdir()
    (vmlinuz,) = image.glob("boot/vmlinuz-*")
    shutil.copy(vmlinuz, built / "vmlinuz")
    root = built.with_name("root")
    for place in ("bin", "sbin", "lib", "proc", "sys", "dev", "run", "var/run", "var/log"):
        (root / place).mkdir(parents=True)
    shutil.copy(busybox / "bin/busybox", root / "bin")
    for applet in _output(os.fspath(root / "bin/busybox"), "--list").split():
        if applet != "busybox":
            (root / "bin" / applet).symlink_to("busybox")
    _write_program(root / "init", _INIT.read_text())
    _write_program(root / "sbin/shutdown", _SHUTDOWN)
    _copy_with_libraries(agent / "usr/sbin/qemu-ga", root / "bin", root)
    (drivers,) = image.glob("lib/modules/*/kernel/drivers")
    order = [module for module in _MODULES if (drivers / f"{module}.ko").exists()]  # or built in
    for module in order:
        shutil.copy(drivers / f"{module}.ko", root / "lib")
    (root / "lib/modules.order").write_text("\n".join(Path(module).name for module in order))
    (built / "initramfs").write_bytes(_packed(root))


def _kernel_package() -> str:
    depends = _output("apt-cache", "depends", _KERNEL)
    found = re.search(r"^ *Depends: (linux-image-[0-9]\S+)", depends, re.MULTILINE)
    if found is None:
        raise CannotRunError(f"no package {_KERNEL} is known here; try apt-get update")
    return found[1]


def _unpacked(package: str, cache: Path) -> Path:
    """Return the directory of a package's files."""
    directory = cache / package
    if not directory.exists():
        with TemporaryDirectory(dir=cache) as scratch:
            _output("apt-get", "--quiet", "download", package, within=Path(scratch))
            (archive,) = Path(scratch).glob("*.deb")
            _output("dpkg-deb", "--extract", os.fspath(archive), f"{scratch}/files")
            Path(scratch, "files").rename(directory)
    return directory


def _copy_with_libraries(program: Path, to: Path, root: Path) -> None:
    shutil.copy(program, to)
    needed = _output("ldd", os.fspath(program))
    if "not found" in needed:
        raise CannotRunError(f"qemu-guest-agent lacks libraries here: {needed}")
    for library in re.findall(r"(/\S+) \(0x", needed):
        place = root / library[1:]
        place.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(library, place)


def _write_program(path: Path, text: str) -> None:
    path.write_text(text)
    path.chmod(0o755)


def _packed(root: Path) -> bytes:
    names = "\n".join(os.fspath(path.relative_to(root)) for path in sorted(root.rglob("*")))
    pack: list[str | Path] = [root / "bin/busybox", "cpio", "-o", "-H", "newc"]
    done = subprocess.run(
        pack, cwd=root, input=names.encode(), capture_output=True, check=True, timeout=60
    )
    return gzip.compress(done.stdout, compresslevel=6, mtime=0)


def _output(*command: str, within: Path | None = None) -> str:
    try:
        done = subprocess.run(
            ["env", "LC_ALL=C.UTF-8", *command],
            cwd=within,
            capture_output=True,
            text=True,
            check=True,
            timeout=_DOWNLOAD_S,
        )
    except subprocess.TimeoutExpired:
        raise CannotRunError(f"{' '.join(command)}: no end within {_DOWNLOAD_S} s") from None
    except subprocess.CalledProcessError as error:
        said = (error.stderr or error.stdout).strip()
        raise CannotRunError(f"{' '.join(command)}: {said}") from None
    return done.stdout
