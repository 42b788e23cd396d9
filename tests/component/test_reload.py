"""SIGHUP: what holds from now on, what holds after a restart, what is refused."""

from __future__ import annotations

import asyncio
import os
import signal
from typing import IO, TYPE_CHECKING

from vmagent.v1 import vm_agent_service_pb2 as pb

from tests.component.hypervisor.host import until
from tests.component.process import DEADLINE_S, Running, daemon

if TYPE_CHECKING:
    from pathlib import Path

    from tests.component.systemd import Systemd


async def reloaded(running: Running, folder: Path, settings: str, end: str) -> list[str]:
    """Reload *settings*, and return what the daemon says of it, up to *end*."""
    # it says so a moment after it does
    await until(lambda: "serving" in running.log.read_text(), "serving", within_s=DEADLINE_S)
    before = len(running.log.read_text())
    (folder / "vmagentd.toml").write_text(settings)
    running.process.send_signal(signal.SIGHUP)

    def said() -> str:
        return running.log.read_text()[before:]

    await until(lambda: end in said(), end, within_s=DEADLINE_S)
    return [line.split(maxsplit=1)[1] for line in said().splitlines()]


async def test_each_key_is_told_of(folder: Path) -> None:
    async with daemon(folder) as running:
        settings = 'log_level = "debug"\nlibvirt_uri = "test:///default"\nsocket_mode = "0600"\n'
        settings += '[stop]\npress_interval = "1s"\n[retention]\ntransitions_max = 1000\n'
        said = await reloaded(running, folder, settings, "settings were read again")
        # the command line, which is over the file, says where libvirt is
        assert said == [
            "WARNING socket_mode: the new value holds after a restart",
            "INFO    log_level: the new value holds from now on",
            "INFO    retention.transitions_max: the new value holds from now on",
            "INFO    stop.press_interval: the new value holds from now on",
            "INFO    settings were read again",
        ]
        again = await reloaded(running, folder, settings, "settings were read again")
        assert again[0] == "WARNING socket_mode: the new value holds after a restart"
        assert not any("from now on" in line for line in again)
        await running.stub.GetHost(pb.GetHostRequest(), timeout=DEADLINE_S)


async def test_a_file_that_is_wrong_changes_nothing(folder: Path) -> None:
    async with daemon(folder) as running:
        wrong = 'log_level = "debug"\nsurvey_interval = 5\n[stop]\npres_interval = "5s"\n'
        said = await reloaded(running, folder, wrong, "pres_interval")
        assert [line.split(": ")[1].rpartition(":")[2] for line in said] == ["2", "4"]
        assert not any("from now on" in line for line in said)
        said = await reloaded(running, folder, 'log_level = "debug"', "settings were read again")
        assert said[0] == "INFO    log_level: the new value holds from now on"


async def test_nobody_waits_while_the_file_is_read(folder: Path) -> None:
    file = folder / "vmagentd.toml"
    async with daemon(folder) as running:
        file.unlink()
        os.mkfifo(file)
        running.process.send_signal(signal.SIGHUP)
        with await opened(file) as settings:
            await running.stub.GetHost(pb.GetHostRequest(), timeout=DEADLINE_S)
            settings.write('log_level = "debug"')

        def done() -> bool:
            return "settings were read again" in running.log.read_text()

        await until(done, "the new settings", within_s=DEADLINE_S)


async def test_a_file_whose_reading_does_not_end_is_given_up(folder: Path) -> None:
    file = folder / "vmagentd.toml"
    async with daemon(folder) as running:
        await until(lambda: "serving" in running.log.read_text(), "serving", within_s=DEADLINE_S)
        file.unlink()
        os.mkfifo(file)
        running.process.send_signal(signal.SIGHUP)
        with await opened(file):
            why = "settings are left as they were: the file: its reading does not end"
            await until(lambda: why in running.log.read_text(), why, within_s=DEADLINE_S)
            file.unlink()
            said = await reloaded(running, folder, 'log_level = "debug"', "read again")
        assert said[0] == "INFO    log_level: the new value holds from now on"


async def test_nobody_waits_for_the_file_at_the_end(folder: Path) -> None:
    file = folder / "vmagentd.toml"
    async with daemon(folder) as running:
        file.unlink()
        os.mkfifo(file)
        running.process.send_signal(signal.SIGHUP)
        with await opened(file):
            running.process.send_signal(signal.SIGTERM)
            assert await running.ended() == 0


async def opened(fifo: Path) -> IO[str]:
    """Open *fifo* for writing, once somebody reads it."""
    async with asyncio.timeout(DEADLINE_S):
        while True:
            try:
                return os.fdopen(os.open(fifo, os.O_WRONLY | os.O_NONBLOCK), "w")
            except OSError:
                await asyncio.sleep(0.01)


async def test_systemd_is_told(folder: Path, systemd: Systemd) -> None:
    async with daemon(folder, env=systemd.environment) as running:
        await systemd.until("READY=1")
        running.process.send_signal(signal.SIGHUP)
        assert await systemd.until("RELOADING=1")
        assert systemd.heard[-1].startswith("MONOTONIC_USEC=")
        await systemd.until("READY=1")
