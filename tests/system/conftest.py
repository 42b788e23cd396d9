"""Fixtures of the system lane: real libvirtds, real guests, and the daemon as a process.

`libvirtd`, `virt`, `guest` and `recorder` share one libvirtd for the whole run. A test that stops
or kills libvirtd takes `own_libvirtd` and `own_guest`, and makes its recorders itself. Likewise
`daemon`, `watcher` and `vms` share one daemon; a test that ends it takes `own_daemon`.
"""

from collections.abc import Generator, Iterator
from pathlib import Path

import libvirt as libvirt_api
import pytest

from tests.system.daemon import Daemon
from tests.system.domains import Guests
from tests.system.guests import Roms
from tests.system.history import check_history
from tests.system.libvirtd import PrivateLibvirtd
from tests.system.machine import CannotRunError, check_machine
from tests.system.recorder import Recorder
from tests.system.vms import Vms
from tests.system.watcher import Watcher

# No survey but the first: a test tells what events alone make of a VM, every time the same.
SETTINGS = """
survey_interval = "1h"
[stop]
press_interval = "1s"
"""


@pytest.fixture(scope="session")
def libvirtd() -> Iterator[PrivateLibvirtd]:
    """The shared libvirtd; tests leave it running and without guests."""
    try:
        check_machine()
    except CannotRunError as why:
        pytest.skip(str(why))
    with PrivateLibvirtd() as private:
        private.connection.getCapabilities()  # fills the cache that `own_libvirtd` copies
        yield private


@pytest.fixture
def own_libvirtd(libvirtd: PrivateLibvirtd) -> Iterator[PrivateLibvirtd]:
    """A libvirtd of the test's own, to stop, kill or freeze."""
    with PrivateLibvirtd(libvirtd.cache) as private:
        yield private


@pytest.fixture(scope="session")
def roms(libvirtd: PrivateLibvirtd) -> Roms:
    """The guests' ROMs, where every QEMU may read them and where nothing stays behind."""
    directory = libvirtd.directory / "roms"
    directory.mkdir(mode=0o755)
    return Roms(directory)


@pytest.fixture
def virt(libvirtd: PrivateLibvirtd) -> libvirt_api.virConnect:
    """A raw connection to the shared libvirtd: what virsh would do."""
    return libvirtd.connection


@pytest.fixture
def guest(libvirtd: PrivateLibvirtd, roms: Roms) -> Iterator[Guests]:
    """Makes guests on the shared libvirtd: `guest(Spec(Behaviour.SLOW, 2.0))`."""
    guests = Guests(libvirtd, roms)
    yield guests
    guests.remove_all()


@pytest.fixture
def own_guest(own_libvirtd: PrivateLibvirtd, roms: Roms) -> Guests:
    """Makes guests on the test's own libvirtd; they end with it."""
    return Guests(own_libvirtd, roms)


@pytest.fixture
def recorder(libvirtd: PrivateLibvirtd, tmp_path: Path) -> Iterator[Recorder]:
    """Records the events of the shared libvirtd during the test."""
    with Recorder(libvirtd.uri, tmp_path / "events.jsonl") as running:
        yield running


@pytest.fixture(scope="session")
def daemon(libvirtd: PrivateLibvirtd) -> Iterator[Daemon]:
    """The shared daemon on the shared libvirtd; tests leave it running."""
    with Daemon(libvirtd.uri, libvirtd.directory, settings=SETTINGS) as running:
        yield running


@pytest.fixture
def own_daemon(libvirtd: PrivateLibvirtd) -> Iterator[Daemon]:
    """A daemon of the test's own on the shared libvirtd, to end in whatever way."""
    with Daemon(libvirtd.uri, libvirtd.directory, settings=SETTINGS) as running:
        yield running


@pytest.fixture
def watcher(daemon: Daemon) -> Iterator[Watcher]:
    """A client that watches the shared daemon; what it saw is checked after the test."""
    with Watcher(daemon.target) as watching:
        yield watching
        check_history(daemon.stub, watching)


@pytest.fixture
def vms(guest: Guests, daemon: Daemon, watcher: Watcher) -> Vms:
    """Makes guests that the shared daemon knows."""
    return Vms(guest, daemon, watcher)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item,
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Show with each failure what the daemons of the test have said."""
    report = yield
    if report.failed and isinstance(item, pytest.Function):
        for name, value in item.funcargs.items():
            if isinstance(value, Daemon):
                report.sections.append((f"log of {name}", value.log_tail()))
    return report
