"""vmagentctl with the real daemon, on libvirt's test driver."""

from __future__ import annotations

import asyncio
import json
import os
import socket
import subprocess
import sys
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING

import pytest
from google.protobuf import json_format
from vmagent.v1.access_pb2 import AuditKind
from vmagent.v1.operation_pb2 import OperationOutcome, OperationPhase
from vmagent.v1.vm_agent_service_pb2 import (
    GetOperationResponse,
    ListAuditRecordsResponse,
    ListOperationsResponse,
    ListTransitionsResponse,
    ListVmsResponse,
    StopResponse,
    WatchStatusResponse,
)
from vmagent.v1.vm_pb2 import VmState

from tests.component.ctl.terminal import DEADLINE_S, line, started, vmagentctl

if TYPE_CHECKING:
    from asyncio.subprocess import Process
    from collections.abc import Iterator
    from pathlib import Path


@contextmanager
def vmagentd(target: Path) -> Iterator[subprocess.Popen[bytes]]:
    """Run the daemon until the block ends; its journal is beside its socket."""
    command = [sys.executable, "-m", "vmagentd", "--libvirt-uri", "test:///default"]
    command += ["--socket", str(target), "--state-dir", str(target.parent / "state")]
    with (
        (target.parent / "log").open("ab") as log,
        subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log) as process,
    ):
        try:
            deadline = time.monotonic() + DEADLINE_S
            while not _listens(target):
                assert process.poll() is None, (target.parent / "log").read_text()
                assert time.monotonic() < deadline, (target.parent / "log").read_text()
                time.sleep(0.02)
            yield process
        finally:
            process.kill()


def _listens(target: Path) -> bool:
    with socket.socket(socket.AF_UNIX) as probe:
        return probe.connect_ex(str(target)) == 0


@pytest.fixture
def daemon(target: Path) -> Iterator[subprocess.Popen[bytes]]:
    with vmagentd(target) as process:
        yield process


async def response(watcher: Process) -> WatchStatusResponse:
    return json_format.Parse(await line(watcher.stdout), WatchStatusResponse())


async def history(target: Path) -> ListTransitionsResponse:
    done = await vmagentctl(target, "history", "--oldest-first", "--limit", "0", "-o", "json")
    return json_format.Parse(done.out, ListTransitionsResponse())


@pytest.mark.usefixtures("daemon")
class TestOneDaemon:
    async def test_the_test_drivers_vm_runs(self, target: Path) -> None:
        listed = json_format.Parse(
            (await vmagentctl(target, "list", "-o", "json")).out, ListVmsResponse()
        )
        assert [(v.name, v.state) for v in listed.vms] == [("test", VmState.VM_STATE_RUNNING)]
        assert listed.link.libvirt_connected
        shown = await vmagentctl(target, "show", "test")
        assert f"UUID:             {listed.vms[0].uuid}\n" in shown.out

    async def test_stop_and_start_and_their_repeats(self, target: Path) -> None:
        outcomes = []
        for verb in ("stop", "stop", "start", "start"):
            done = await vmagentctl(target, verb, "test", "-o", "json")
            assert (done.code, done.err) == (0, "")
            outcomes.append(json.loads(done.out)["operation"]["outcome"])
        once, again = (f"OPERATION_OUTCOME_{name}" for name in ("DONE", "ALREADY_DONE"))
        assert outcomes == [once, again, once, again]

    async def test_a_stop_is_told_step_by_step(self, target: Path) -> None:
        done = await vmagentctl(target, "stop", "test", "-o", "jsonl")
        steps = [json_format.Parse(text, StopResponse()) for text in done.out.splitlines()]
        assert steps[0].operation.phase == OperationPhase.OPERATION_PHASE_ACCEPTED
        assert steps[-1].operation.outcome == OperationOutcome.OPERATION_OUTCOME_DONE
        assert steps[-1].vm.state == VmState.VM_STATE_STOPPED
        told = [transition.revision for transition in (await history(target)).transitions]
        assert steps[-1].vm.revision in told

    async def test_what_was_asked_is_listed_and_shown(self, target: Path) -> None:
        words = []
        for verb in ("pause", "resume", "stop"):
            done = await vmagentctl(target, verb, "test", "--request-id", verb)
            assert (done.code, done.err) == (0, "")
            words.append(done.out.splitlines()[-1].split(" after ")[0])
        assert words == [
            "test: PAUSED (paused by user)",
            "test: RUNNING (unpaused)",
            "test: STOPPED (clean shutdown)",
        ]
        again = await vmagentctl(target, "stop", "test", "--request-id", "stop", "-o", "json")
        listed = json_format.Parse(
            (await vmagentctl(target, "operations", "-o", "json")).out, ListOperationsResponse()
        )
        assert [each.request_id for each in listed.operations] == ["stop", "resume", "pause"]
        newest = listed.operations[0]
        assert json_format.Parse(again.out, StopResponse()).operation == newest
        shown = await vmagentctl(target, "operation", newest.operation_id[:8], "-o", "json")
        assert json_format.Parse(shown.out, GetOperationResponse()).operation == newest
        late = await vmagentctl(target, "cancel", newest.operation_id[:8])
        assert (late.code, late.out) == (1, "")
        assert late.err.endswith(" was over before: succeeded\n")

    @pytest.mark.parametrize("verb", ["show", "start", "stop", "pause", "history"])
    async def test_a_vm_that_is_not_there_is_not_found(self, target: Path, verb: str) -> None:
        done = await vmagentctl(target, verb, "no-such-vm")
        assert (done.code, done.out) == (3, "")
        assert done.err.startswith("vmagentctl: no VM 'no-such-vm' on this host")
        assert done.err.endswith(" [VM_NOT_FOUND]\n")

    @pytest.mark.parametrize(
        "arguments",
        [("stop", "test", "--grace", "2h"), ("show", ""), ("watch", "--heartbeat", "1ms")],
    )
    async def test_what_the_daemon_cannot_take_is_bad_usage(
        self, target: Path, arguments: tuple[str, ...]
    ) -> None:
        done = await vmagentctl(target, *arguments)
        assert (done.code, done.out) == (2, "")
        assert done.err.endswith(" [INVALID_FIELD]\n")

    async def test_a_wrong_journal_is_told_and_the_watch_goes_on(self, target: Path) -> None:
        place = "00000000-0000-0000-0000-000000000000:1"
        async with started(target, "watch", "-o", "jsonl", "--resume-from", place) as watcher:
            assert "[JOURNAL_REPLACED]: taking a fresh snapshot" in await line(watcher.stderr)
            assert (await response(watcher)).vms[0].name == "test"

    async def test_host_tells_of_the_link_and_the_journal(self, target: Path) -> None:
        done = await vmagentctl(target, "host")
        assert "libvirt URI:      test:///default\n" in done.out
        assert "libvirt link:     up\n" in done.out
        assert "Journal writable: yes\n" in done.out


async def test_a_watch_survives_a_kill_without_gap_or_repeat(target: Path) -> None:
    with vmagentd(target) as first:
        async with started(target, "watch", "-o", "jsonl") as watcher:
            place = 0
            while not place:
                place = (await response(watcher)).snapshot_end.revision
            assert (await vmagentctl(target, "stop", "test")).code == 0
            acknowledged = (await history(target)).transitions[-1].revision
            first.kill()
            first.wait()
            assert "connecting again" in await line(watcher.stderr)
            with vmagentd(target):
                # while it is away, each new reason why is told too
                while "connecting again" in (told := await line(watcher.stderr)):
                    pass
                assert "connected again, going on after" in told
                kept = (await history(target)).transitions
                seen: list[int] = []
                async with asyncio.timeout(DEADLINE_S):
                    while not seen or seen[-1] < kept[-1].revision:
                        seen += [t.revision for t in (await response(watcher)).transitions]
    assert seen == list(range(place + 1, kept[-1].revision + 1))
    # The test driver died with the daemon: its VM runs again, and nobody looked as it happened.
    assert kept[-1].revision > acknowledged
    assert kept[-1].late
    assert kept[-1].vm.state == VmState.VM_STATE_RUNNING


@pytest.mark.usefixtures("daemon")
async def test_the_audit_tells_of_what_was_done_and_refused(target: Path) -> None:
    assert (await vmagentctl(target, "stop", "test", "--force")).code == 0
    assert (await vmagentctl(target, "stop", "nobody")).code == 3
    done = await vmagentctl(target, "audit", "-o", "json")
    assert done.code == 0
    refused, operation = json_format.Parse(done.out, ListAuditRecordsResponse()).records
    assert (refused.kind, refused.method) == (AuditKind.AUDIT_KIND_REFUSAL, "Stop")
    assert (refused.vm_name, refused.reason) == ("nobody", "VM_NOT_FOUND")
    assert (operation.kind, operation.vm_name) == (AuditKind.AUDIT_KIND_OPERATION, "test")
    assert operation.phase == OperationPhase.OPERATION_PHASE_SUCCEEDED
    assert operation.actor == refused.actor
    assert operation.peer.startswith(f"uid {os.getuid()}, pid ")
    shown = await vmagentctl(target, "audit", "--vm", "test")
    assert f"operation {operation.operation_id[:8]} succeeded" in shown.out
