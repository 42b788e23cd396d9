"""The whole daemon: how it starts, ends, and goes on where it ended."""

from __future__ import annotations

import asyncio
import os
import signal
import sqlite3
import subprocess
import sys
from contextlib import closing
from typing import TYPE_CHECKING

import grpc
import pytest
from grpc import aio
from vmagent.v1 import vm_agent_service_pb2 as pb
from vmagent.v1.operation_pb2 import OperationOutcome
from vmagent.v1.vm_pb2 import VmState

from tests.component.hypervisor.host import until
from tests.component.process import (
    DEADLINE_S,
    ENDS_WITHIN_S,
    Running,
    daemon,
    described,
    started,
)

if TYPE_CHECKING:
    from pathlib import Path

# the time that a journal is given to close, and some
CLOSES_WITHIN_S = 17.0


def blind_causes(folder: Path) -> list[str]:
    with closing(sqlite3.connect(folder / "state" / "journal.db")) as db:
        return [cause for (cause,) in db.execute("SELECT cause FROM blind ORDER BY id")]


async def test_what_it_serves_is_known_already(folder: Path) -> None:
    """The first survey is committed before the first client is answered."""
    async with daemon(folder) as running:
        vms = await running.stub.ListVms(pb.ListVmsRequest())
        assert [(vm.name, vm.state) for vm in vms.vms] == [
            ("a", VmState.VM_STATE_RUNNING),
            ("b", VmState.VM_STATE_RUNNING),
        ]
        assert vms.link.libvirt_connected


async def watch_and_signal(running: Running, number: signal.Signals) -> None:
    """Signal the daemon when a watcher has all there is, and watch on."""
    async for response in running.stub.WatchStatus(pb.WatchStatusRequest()):
        if response.HasField("heartbeat"):
            running.process.send_signal(number)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_a_signal_ends_it(folder: Path, number: signal.Signals) -> None:
    async with daemon(folder) as running:
        with pytest.raises(aio.AioRpcError) as caught:
            await watch_and_signal(running, number)
        assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
        assert await running.ended() == 0
        log = running.log.read_text()
        assert f"ending: {number.name}" in log
        assert "Traceback" not in log
    assert not (folder / "s").exists()
    # that nobody looks from now on was the last thing to be written down
    assert blind_causes(folder)[-1] == "vmagentd was stopped"


async def test_damage_that_is_found_at_its_end_is_told(folder: Path) -> None:
    async with daemon(folder) as running:
        file = folder / "state" / "journal.db"
        with closing(sqlite3.connect(file)) as db:
            db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        with file.open("r+b") as pages:
            pages.seek(4096)
            pages.write(b"\xa5" * (file.stat().st_size - 4096))
        running.process.terminate()
        assert await running.ended() == 1
        log = running.log.read_text()
        assert "found damaged while in use" in log
        (aside,) = file.parent.glob("journal.db.corrupt-*Z")
        assert str(aside) in log
        assert "Traceback" not in log


async def test_a_journal_that_hangs_does_not_keep_it_from_ending(folder: Path) -> None:
    async with daemon(folder) as running:
        with closing(sqlite3.connect(folder / "state" / "journal.db")) as db:
            db.execute(
                "CREATE VIEW endless AS WITH RECURSIVE n (n) AS "
                "(SELECT 1 UNION ALL SELECT n + 1 FROM n) SELECT count(*) FROM n"
            )
            # what is written last is that nobody looks any more
            db.execute(
                "CREATE TRIGGER endless BEFORE INSERT ON blind BEGIN SELECT * FROM endless; END"
            )
        running.process.terminate()
        async with asyncio.timeout(CLOSES_WITHIN_S + ENDS_WITHIN_S):
            assert await running.process.wait() == 1
        (line,) = [line for line in running.log.read_text().splitlines() if "answered" in line]
        assert line.endswith(
            "its disk has not answered for 12 s, 1 fact is not written; the next start asks "
            "libvirt what is true"
        )


async def test_the_next_one_goes_on_where_it_ended(folder: Path) -> None:
    async with daemon(folder) as first:
        answers = [answer async for answer in first.stub.Stop(pb.StopRequest(vm="a"))]
        assert answers[-1].operation.outcome == OperationOutcome.OPERATION_OUTCOME_DONE
        before = await first.stub.GetHost(pb.GetHostRequest())
        first.process.terminate()
        assert await first.ended() == 0
    async with daemon(folder) as second:
        after = await second.stub.GetHost(pb.GetHostRequest())
        assert after.host.journal_id == before.host.journal_id
        history = await second.stub.ListTransitions(pb.ListTransitionsRequest(oldest_first=True))
        revisions = [t.revision for t in history.transitions]
        assert revisions == list(range(1, len(revisions) + 1))
        assert len(revisions) > before.host.head_revision
        # the test driver's world is new in each process: `a` runs again, and nobody saw it start
        assert history.transitions[-1].late


async def test_what_ended_with_the_host_is_known_before_it_serves(folder: Path) -> None:
    async with daemon(folder) as first:
        first.process.terminate()
        assert await first.ended() == 0
    with closing(sqlite3.connect(folder / "state" / "journal.db")) as db, db:
        db.execute("UPDATE meta SET value = 'another' WHERE key = 'boot_id'")
        # a slow disk: each transition takes a second or so
        db.execute(
            "CREATE VIEW slow AS WITH RECURSIVE n (n) AS "
            "(SELECT 1 UNION ALL SELECT n + 1 FROM n LIMIT 1000000) SELECT count(*) FROM n"
        )
        db.execute(
            "CREATE TRIGGER slow BEFORE INSERT ON 'transition' BEGIN SELECT * FROM slow; END"
        )
    async with daemon(folder, "test:///no/such.xml") as second:
        answer = await second.stub.ListVms(pb.ListVmsRequest())
        assert not answer.link.libvirt_connected
        assert [vm.state for vm in answer.vms] == [VmState.VM_STATE_STOPPED] * 2


@pytest.mark.parametrize("uri", ["test:///no/such.xml", "qemu:///system?socket=/no/such/socket"])
async def test_without_libvirt_it_serves_and_says_so(folder: Path, uri: str) -> None:
    async with daemon(folder, uri) as running:
        answer = await running.stub.GetHost(pb.GetHostRequest())
        assert not answer.host.link.libvirt_connected
        assert answer.host.link.HasField("blind_since")
        with pytest.raises(aio.AioRpcError) as caught:
            async for _ in running.stub.Stop(pb.StopRequest(vm="a")):
                pass
        assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
        assert "libvirt cannot be asked" in (caught.value.details() or "")
        running.process.terminate()
        assert await running.ended() == 0


async def test_it_sees_when_libvirt_comes_up(folder: Path) -> None:
    late = folder / "late.xml"
    async with daemon(folder, f"test://{late}") as running:
        late.write_text(described(["a"]))
        async with asyncio.timeout(DEADLINE_S):
            async for response in running.stub.WatchStatus(pb.WatchStatusRequest()):
                # in the snapshot, if the daemon is faster than the watch
                names = {t.vm.name for t in response.transitions}
                names |= {vm.name for vm in response.vms}
                if "a" in names:
                    break


async def test_it_ends_before_it_has_begun_to_serve(folder: Path) -> None:
    process = await started(folder, f"test://{folder}/host.xml")
    journal = folder / "state" / "journal.db"
    await until(journal.exists, "the journal", within_s=DEADLINE_S)
    process.terminate()
    async with asyncio.timeout(ENDS_WITHIN_S):
        assert await process.wait() == 0


async def test_a_journal_of_a_newer_daemon_ends_it_in_one_line(folder: Path) -> None:
    (folder / "state").mkdir()
    with closing(sqlite3.connect(folder / "state" / "journal.db")) as db:
        db.execute("PRAGMA user_version = 1000")
    process = await started(folder, f"test://{folder}/host.xml")
    async with asyncio.timeout(DEADLINE_S):
        assert await process.wait() == 1
    (line,) = (folder / "log").read_text().splitlines()
    assert "version 1000" in line


def test_what_is_seldom_needed_is_not_loaded() -> None:
    """Each is several MiB: for remote clients, for metrics, for a terminal."""
    code = "import sys, vmagentd.daemon; print(*{name.partition('.')[0] for name in sys.modules})"
    env = {**os.environ, "GRPC_VERBOSITY": "NONE"}
    done = subprocess.run(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, check=True, env=env
    )
    loaded = set(done.stdout.decode().split())
    assert loaded >= {"grpc", "libvirt", "peewee"}
    assert loaded.isdisjoint({"cryptography", "prometheus_client", "rich", "typer"})
