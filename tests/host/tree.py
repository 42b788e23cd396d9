"""The file system of a hypervisor: Debian with systemd, libvirt and QEMU, and nothing of ours.

    python -m tests.host.tree      make it, if it is not there (a minute)

It is made once, outside the checkout, and never written to again: each host has a layer of its
own over it.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import subprocess
from pathlib import Path

# What the package depends on is in there, as hosts have no network.
PACKAGES = (
    "adduser,ca-certificates,dbus,iproute2,kmod,libsystemd0,libvirt-clients,"
    "libvirt-daemon-driver-qemu,libvirt-daemon-system,libvirt0,polkitd,procps,python3,"
    "qemu-system-x86,sudo,systemd-sysv,udev,util-linux"
)
SUITE = "bookworm"
# Not the documentation, except for ours: man is not there to show it anyhow.
_LEAVE_OUT = ("/usr/share/doc/*", "/usr/share/locale/*")
# These have nothing to do in there, or wait for what is not there.
_MASKED = (
    "apt-daily.timer",
    "apt-daily-upgrade.timer",
    "console-getty.service",
    "dpkg-db-backup.timer",
    "e2scrub_all.timer",
    "fstrim.timer",
    "getty.target",
    "sys-kernel-debug.mount",
    "sys-kernel-tracing.mount",
    "systemd-networkd-wait-online.service",
    "systemd-timesyncd.service",
)
_DEFAULT_MIRROR = "http://deb.debian.org/debian"


def tree() -> Path:
    """Return the directory with the file system; make it if it is not there.

    Raises:
        subprocess.CalledProcessError: it could not be made; its output says why.
    """
    recipe = "\n".join((PACKAGES, SUITE, *_LEAVE_OUT, *_MASKED))
    ready = cache() / f"host-{hashlib.sha256(recipe.encode()).hexdigest()[:12]}"
    ready.parent.mkdir(parents=True, exist_ok=True)
    with (ready.parent / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not ready.exists():
            half = ready.with_suffix(".half")
            shutil.rmtree(half, ignore_errors=True)
            _make(half)
            half.rename(ready)
    return ready


def cache() -> Path:
    """Return where trees are kept: outside the checkout, across runs."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "vmagentd-tests"


def _make(directory: Path) -> None:
    leave_out = [f"--dpkgopt=path-exclude={pattern}" for pattern in _LEAVE_OUT]
    options = ["--mode=root", "--variant=minbase", "--dpkgopt=force-unsafe-io", "--quiet"]
    command = ["mmdebstrap", *options, *leave_out, f"--include={PACKAGES}", SUITE, str(directory)]
    done = subprocess.run(
        [*command, _mirror()],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
        timeout=1500,
    )
    if done.returncode:
        raise RuntimeError(f"mmdebstrap ended with {done.returncode}: {done.stdout}")
    (directory / "etc/resolv.conf").unlink(missing_ok=True)
    (directory / "etc/machine-id").unlink(missing_ok=True)
    units = directory / "etc/systemd/system"
    for unit in _MASKED:
        (units / unit).symlink_to("/dev/null")


def _mirror() -> str:
    """Return the mirror that this machine is set up with."""
    for file in Path("/etc/apt").glob("sources.list.d/*.sources"):
        for line in file.read_text().splitlines():
            key, _, value = line.partition(":")
            if key == "URIs" and "debian" in value and "security" not in value:
                return value.split()[0]
    listed = Path("/etc/apt/sources.list")
    for line in listed.read_text().splitlines() if listed.exists() else []:
        words = [word for word in line.split() if word.startswith("http") and "debian" in word]
        if line.startswith("deb ") and words:
            return words[0]
    return _DEFAULT_MIRROR


if __name__ == "__main__":
    print(tree())  # noqa: T201 - what was asked for
