"""Fixtures of the host lane: the package, and hosts on which it is installed.

`host` is shared: a test leaves it with the service running. A test that installs, upgrades,
removes or reboots takes a `bare_host` of its own.
"""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.host.host import Host, check_machine
from tests.host.installed import define, install, until_serving
from tests.system.machine import CannotRunError

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).parents[2]
PREVIOUS = "0.0.1"


@pytest.fixture(scope="session", autouse=True)
def machine() -> None:
    """Skip all of the lane where hosts cannot run, and say why."""
    try:
        check_machine()
    except CannotRunError as why:
        pytest.skip(str(why))
    system = dict(
        line.split("=", 1) for line in Path("/etc/os-release").read_text().splitlines() if line
    )
    if system.get("VERSION_CODENAME") != "bookworm":
        pytest.skip("hosts are Debian 12, and so must be what the package is built on")


@pytest.fixture(scope="session")
def package(machine: None) -> Path:
    """The package, built from this checkout; or the one that $VMAGENTD_DEB names."""
    if named := os.environ.get("VMAGENTD_DEB"):
        return Path(named).resolve()
    done = subprocess.run(
        [ROOT / "packaging/debian/build"],
        capture_output=True,
        text=True,
        check=False,
        timeout=1500,
    )
    assert done.returncode == 0, done.stderr
    return ROOT / done.stdout.strip()


@pytest.fixture(scope="session")
def previous(package: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same package as an earlier version."""
    content = tmp_path_factory.mktemp("previous") / "content"
    subprocess.run(["dpkg-deb", "--raw-extract", package, content], check=True, timeout=120)
    control = content / "DEBIAN/control"
    lines = control.read_text().splitlines(keepends=True)
    control.write_text(
        "".join(f"Version: {PREVIOUS}\n" if s.startswith("Version:") else s for s in lines)
    )
    built = content.parent / f"vmagentd_{PREVIOUS}.deb"
    command = [
        "dpkg-deb",
        "--root-owner-group",
        "-Zgzip",
        "-z1",
        "--build",
        str(content),
        str(built),
    ]
    subprocess.run(command, check=True, timeout=120, stdout=subprocess.DEVNULL)
    return built


@pytest.fixture(scope="module")
def shared_host(package: Path) -> Iterator[Host]:
    with Host() as host:
        install(host, package)
        yield host


@pytest.fixture
def host(shared_host: Host) -> Iterator[Host]:
    """A host with vmagentd, and with a guest `web1` that is off."""
    shared_host.run("systemctl start vmagentd.socket vmagentd.service")
    until_serving(shared_host)
    define(shared_host, "web1")
    yield shared_host
    shared_host.try_run("virsh destroy web1; virsh undefine web1")


@pytest.fixture
def bare_host(machine: None) -> Iterator[Host]:
    """A host on which vmagentd was never installed."""
    with Host("bare") as host:
        yield host
