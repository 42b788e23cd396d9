"""What the daemon tells systemd, heard on a socket like systemd's."""

from __future__ import annotations

import signal
from typing import TYPE_CHECKING

import pytest
from vmagent.v1 import vm_agent_service_pb2 as pb

from tests.component.hypervisor.host import until
from tests.component.journal_faults import disks
from tests.component.process import DEADLINE_S, daemon

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.component.journal_faults.disks import Disk
    from tests.component.systemd import Systemd


async def test_it_is_ready_once_it_has_looked(folder: Path, systemd: Systemd) -> None:
    async with daemon(folder, env=systemd.environment) as running:
        await systemd.until("READY=1")
        assert await systemd.until("STATUS=") == "STATUS=2 VMs, 2 running; 0 watchers"
        assert "WATCHDOG=1" not in systemd.heard[: systemd.heard.index("READY=1")]
        async for response in running.stub.WatchStatus(pb.WatchStatusRequest()):
            if response.HasField("heartbeat"):
                await systemd.until("; 1 watcher")
                break
        running.process.terminate()
        await systemd.until("STOPPING=1")
        assert await running.ended() == 0


async def test_a_blind_one_is_ready_and_says_so(folder: Path, systemd: Systemd) -> None:
    uri = "qemu:///system?socket=/no/such/socket"
    async with daemon(folder, uri, env=systemd.environment):
        await systemd.until("READY=1")
        assert (await systemd.until("BLIND since ")).endswith("; 0 VMs, 0 running; 0 watchers")


async def test_it_does_without_anybody_who_listens(folder: Path) -> None:
    async with daemon(folder, env={"NOTIFY_SOCKET": str(folder / "nobody")}) as running:
        await running.stub.GetHost(pb.GetHostRequest(), timeout=DEADLINE_S)


async def test_a_systemd_that_does_not_read_holds_nobody_up(
    folder: Path, systemd: Systemd
) -> None:
    often = systemd.environment | {"WATCHDOG_USEC": "100000"}
    async with daemon(folder, env=often) as running:
        await until(systemd.is_full, "no room for a word", within_s=DEADLINE_S)
        await running.stub.GetHost(pb.GetHostRequest(), timeout=DEADLINE_S)
        await systemd.until("WATCHDOG=1")
        running.process.terminate()
        await systemd.until("STOPPING=1")


async def test_the_watchdog_is_not_fed_while_the_process_is_stopped(
    folder: Path, systemd: Systemd
) -> None:
    async with daemon(folder, env=systemd.environment) as running:
        await systemd.until("WATCHDOG=1")
        running.process.send_signal(signal.SIGSTOP)
        await systemd.silence()
        running.process.send_signal(signal.SIGCONT)
        await systemd.until("WATCHDOG=1")


@pytest.fixture
def slow_disk(folder: Path) -> Iterator[Disk]:
    """A disk for the daemon's journal that can be made to hang."""
    try:
        disks.enter_namespace()
        with disks.thin(folder / "state", 24 * disks.MIB, 32 * disks.MIB) as disk:
            yield disk
    except disks.CannotMountError as why:
        pytest.skip(str(why))


async def test_the_watchdog_is_not_fed_while_the_disk_hangs(
    folder: Path, systemd: Systemd, slow_disk: Disk
) -> None:
    async with daemon(folder, env=systemd.environment) as running:
        await systemd.until("WATCHDOG=1")
        with disks.hanging(slow_disk):
            stopping = running.stub.Stop(pb.StopRequest(vm="a"))
            await systemd.silence()
            # of the daemon's threads only the writer hangs
            await running.stub.GetVm(pb.GetVmRequest(vm="a"), timeout=DEADLINE_S)
        await systemd.until("WATCHDOG=1")
        assert [answer async for answer in stopping]
        assert "writer hangs" in running.log.read_text()
