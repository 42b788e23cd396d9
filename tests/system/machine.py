"""What a private libvirtd needs of the machine, and whether it is there."""

import os
import platform
import shutil
import subprocess

PROGRAMS = {  # and the Debian packages they come in
    "libvirtd": "libvirt-daemon-system",
    "qemu-system-x86_64": "qemu-system-x86",
    "as": "binutils",
    "ld": "binutils",
}
SEARCH_PATH = os.pathsep.join((os.defpath, "/usr/sbin", "/sbin", "/usr/local/sbin"))


class CannotRunError(RuntimeError):
    """A private libvirtd cannot run here; the message says why."""


def check_machine() -> None:
    """Check that a private libvirtd can run here.

    Raises:
        CannotRunError: it cannot.
    """
    if platform.machine() != "x86_64":
        raise CannotRunError(f"the test guests are x86; this machine is {platform.machine()}")
    missing = sorted(name for name in PROGRAMS if shutil.which(name, path=SEARCH_PATH) is None)
    if missing:
        packages = sorted({PROGRAMS[name] for name in missing})
        raise CannotRunError(
            f"not installed: {', '.join(missing)} (Debian packages: {' '.join(packages)})"
        )
    if is_root():
        trial = subprocess.run(
            [*unshare(), "true"], capture_output=True, text=True, check=False, timeout=30
        )
        if trial.returncode:
            raise CannotRunError(
                "root may not make namespaces here (a container without privileges?): "
                + trial.stderr.strip()
            )


def is_root() -> bool:
    return os.geteuid() == 0


def program(name: str) -> str:
    """Return the full path of a program."""
    path = shutil.which(name, path=SEARCH_PATH)
    if path is None:
        raise CannotRunError(f"not installed: {name}")
    return path


def unshare() -> list[str]:
    """Return the words that start a command in namespaces of its own, as their PID 1.

    What is mounted in there is invisible outside; when PID 1 dies, the kernel kills the others.
    """
    return [
        program("unshare"),
        *("--mount", "--propagation", "private", "--net"),
        *("--pid", "--fork", "--kill-child", "--mount-proc", "--"),
    ]
