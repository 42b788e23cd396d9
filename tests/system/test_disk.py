"""The daemon on a disk that is full: what clients see, and what is left of it afterwards.

On libvirt's test driver: what is tried here lies between the clients and the disk.
"""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

import pytest
from grpc_health.v1 import health_pb2
from grpc_health.v1.health_pb2_grpc import HealthStub

from tests.component.journal_faults import disks
from tests.component.journal_faults.disks import MIB, CannotMountError, Disk
from tests.system.calls import FORCE, finished, start, stop
from tests.system.daemon import Daemon, channel
from tests.system.deadline import until
from tests.system.history import check_history
from tests.system.watcher import Watcher

if TYPE_CHECKING:
    from collections.abc import Iterator

VM = "test"  # the test driver's one


class OnDisk(Daemon):
    """A daemon whose state is on a disk of its own."""

    def __init__(self, within: Path, disk: Disk) -> None:
        super().__init__("test:///default", within)
        self.state_dir = disk.path / "state"


@pytest.fixture(scope="module")
def namespace() -> None:
    try:
        disks.enter_namespace()
    except CannotMountError as why:
        pytest.skip(str(why))


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder whose path is short: a socket's must be."""
    with TemporaryDirectory(prefix="vmagentd-") as path:
        yield Path(path)


@pytest.fixture
def disk(namespace: None, folder: Path) -> Iterator[Disk]:
    with disks.tmpfs(folder / "disk", 24 * MIB) as disk:
        yield disk


@pytest.fixture
def own_daemon(folder: Path, disk: Disk) -> Iterator[Daemon]:
    with OnDisk(folder, disk) as daemon:
        yield daemon


def journal_health(daemon: Daemon) -> str:
    with channel(daemon.target) as connection:
        request = health_pb2.HealthCheckRequest(service="journal")
        check = HealthStub(connection).Check  # type: ignore[attr-defined] # set at run time
        status = check(request, timeout=10).status
    return health_pb2.HealthCheckResponse.ServingStatus.Name(status)


def change_until_full(daemon: Daemon, disk: Disk) -> str:
    """Start and stop the VM until an operation is refused; return the reason."""
    for _ in range(3000):
        disk.fill()
        for steps in (stop(daemon.stub, VM, mode=FORCE), start(daemon.stub, VM)):
            outcome = finished(steps)
            if outcome.refusal is not None:
                return outcome.refusal.reason
    raise AssertionError("the disk was never full")


@pytest.mark.timeout(120)
def test_a_full_disk_and_room_again(own_daemon: Daemon, disk: Disk) -> None:
    daemon = own_daemon
    ballast = daemon.state_dir / "ballast"
    with Watcher(daemon.target, heartbeat_s=0.5) as watcher:
        until(ballast.exists, "there is ballast")
        disk.fill()
        while ballast.exists():  # the last of the log's room is used up
            assert finished(start(daemon.stub, VM)).refusal is None
            # with the ballast gone operators still stop VMs, and that is on record
            assert finished(stop(daemon.stub, VM, mode=FORCE)).result == "DONE"
        assert "its ballast was released: make room on the disk" in daemon.log()
        assert journal_health(daemon) == "SERVING"

        assert change_until_full(daemon, disk) == "JOURNAL_UNWRITABLE"
        watcher.until(lambda: not watcher.heartbeats[-1].journal_writable, "it is told")
        assert journal_health(daemon) == "NOT_SERVING"
        told = len(watcher.heartbeats)
        watcher.until(lambda: len(watcher.heartbeats) > told + 1, "heartbeats go on")
        refused = finished(stop(daemon.stub, VM, mode=FORCE)).refusal
        assert refused is not None
        assert (refused.code, refused.reason) == ("UNAVAILABLE", "JOURNAL_UNWRITABLE")
        host = daemon.host()  # reads go on
        assert not host.journal_writable
        assert host.head_revision >= watcher.revision

        disk.make_room()
        watcher.until(lambda: watcher.heartbeats[-1].journal_writable, "it is written again")
        until(lambda: journal_health(daemon) == "SERVING", "health says so")
        until(ballast.exists, "there is ballast again")
        assert finished(start(daemon.stub, VM)).refusal is None
        assert finished(stop(daemon.stub, VM, mode=FORCE)).result == "DONE"
        head = daemon.host().head_revision
        watcher.until(lambda: watcher.revision >= head, "all is seen")
        check_history(daemon.stub, watcher)
        daemon.restart()
        with Watcher(daemon.target, resume=watcher.cursor) as resumed:
            check_history(daemon.stub, watcher, resumed)


def test_a_kill_on_a_full_disk_loses_nothing(own_daemon: Daemon, disk: Disk) -> None:
    daemon = own_daemon
    with Watcher(daemon.target) as watcher:
        until((daemon.state_dir / "ballast").exists, "there is ballast")
        disk.fill()
        assert finished(stop(daemon.stub, VM, mode=FORCE)).refusal is None
        daemon.kill()
        seen = watcher.cursor
    daemon.start()  # the disk is still full: it takes the ballast
    with Watcher(daemon.target, resume=seen) as resumed:
        head = daemon.host().head_revision
        resumed.until(lambda: resumed.revision >= head, "all is seen")
        assert head > seen.revision  # the test driver's VM runs again
        check_history(daemon.stub, resumed)
