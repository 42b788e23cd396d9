from __future__ import annotations

import asyncio
import fcntl
import signal
import subprocess
import sys
import termios
from contextlib import asynccontextmanager
from datetime import timedelta
from typing import TYPE_CHECKING

import grpc
import pytest
from google.protobuf import json_format
from vmagent.ctl.failures import ExitCode, Failure
from vmagent.ctl.follow import Follower
from vmagent.ctl.targets import Daemon
from vmagent.v1.vm_agent_service_pb2 import (
    Heartbeat,
    WatchStatusRequest,
    WatchStatusResponse,
)

from tests.component.ctl.scripted import (
    JOURNAL,
    cursor,
    get_host,
    refuse,
    serving,
    transition,
    vm,
)
from tests.component.ctl.terminal import DEADLINE_S, ended, line, started, vmagentctl

if TYPE_CHECKING:
    from asyncio.subprocess import Process
    from collections.abc import AsyncIterator
    from pathlib import Path

    from vmagent.v1.transition_pb2 import Cursor

    from tests.component.ctl.scripted import Context

PIPE_BUFFER = 1 << 16
ALIVE = Heartbeat(libvirt_connected=True, journal_writable=True)


class Journal:
    """A journal that is watched: it grows, is served, taken away and served again."""

    def __init__(self, head: int) -> None:
        self.head = head
        self.asked: list[WatchStatusRequest] = []
        self._news = asyncio.Condition()

    async def grow(self, count: int) -> None:
        async with self._news:
            self.head += count
            self._news.notify_all()

    async def watch(
        self, request: WatchStatusRequest, _context: Context
    ) -> AsyncIterator[WatchStatusResponse]:
        self.asked.append(request)
        seen = request.resume.revision
        if not request.HasField("resume"):
            seen = self.head
            yield WatchStatusResponse(vms=[vm("a")])
            yield WatchStatusResponse(vms=[vm("b")], snapshot_end=cursor(seen))
        while True:
            fresh = [transition(n) for n in range(seen + 1, self.head + 1)]
            seen = self.head
            heartbeat = Heartbeat(revision=seen, libvirt_connected=True, journal_writable=True)
            yield WatchStatusResponse(transitions=fresh, heartbeat=heartbeat)
            async with self._news:
                while self.head == seen:
                    await self._news.wait()


@pytest.fixture
def journal() -> Journal:
    return Journal(head=3)


async def response(process: Process) -> WatchStatusResponse:
    return json_format.Parse(await line(process.stdout), WatchStatusResponse())


async def test_each_response_is_a_line_in_a_pipe_as_it_comes(
    target: Path, journal: Journal
) -> None:
    async with (
        serving(target, WatchStatus=journal.watch),
        started(target, "watch", "-o", "jsonl", "--heartbeat", "3s") as process,
    ):
        assert (await response(process)).vms[0].name == "a"
        assert (await response(process)).snapshot_end == cursor(3)
        assert (await response(process)).heartbeat.revision == 3
        await journal.grow(2)
        assert [t.revision for t in (await response(process)).transitions] == [4, 5]
    assert journal.asked[0].heartbeat_interval.seconds == 3


async def test_as_text_it_is_a_table_then_a_line_per_change(
    target: Path, journal: Journal
) -> None:
    async with (
        serving(target, WatchStatus=journal.watch),
        started(target, "watch", "a", "b") as process,
    ):
        lines = [await line(process.stdout) for _ in range(4)]
        assert [text.split()[0] for text in lines] == ["NAME", "a", "b", "--"]
        assert f"2 VMs at journal {JOURNAL}, revision 3" in lines[3]
        await journal.grow(1)
        assert (await line(process.stdout)).startswith("      4  2026-01-31 12:00:00.123  web1 ")
    assert journal.asked[0].vms == ["a", "b"]


async def test_a_heartbeat_is_a_line_only_if_it_is_news(target: Path) -> None:
    async def watch(
        _request: WatchStatusRequest, _context: Context
    ) -> AsyncIterator[WatchStatusResponse]:
        yield WatchStatusResponse(snapshot_end=cursor(3), heartbeat=ALIVE)
        yield WatchStatusResponse(heartbeat=ALIVE)
        blind = Heartbeat(journal_writable=True)
        blind.blind_since.FromJsonString("2026-01-31T12:00:00Z")
        yield WatchStatusResponse(heartbeat=blind)
        yield WatchStatusResponse(heartbeat=blind)
        yield WatchStatusResponse(heartbeat=ALIVE)
        yield WatchStatusResponse(heartbeat=Heartbeat(libvirt_connected=True))

    async with serving(target, WatchStatus=watch):
        done = await vmagentctl(target, "watch", "--no-reconnect")
    assert [text[:50].split(" since")[0] for text in done.out.splitlines()[2:]] == [
        "-- libvirt cannot be asked",
        "-- libvirt can be asked again",
        "-- the journal cannot be written: disk full?",
    ]


async def test_it_resumes_after_the_daemon_came_back_without_gap_or_repeat(
    target: Path, journal: Journal
) -> None:
    revisions: list[int] = []
    async with (
        serving(target, WatchStatus=journal.watch) as server,
        started(target, "watch", "-o", "jsonl", "--resume-from", f"{JOURNAL}:0") as process,
    ):
        revisions += [t.revision for t in (await response(process)).transitions]
        await server.stop(None)
        assert "connecting again" in await line(process.stderr)
        await journal.grow(4)
        async with serving(target, WatchStatus=journal.watch) as second:
            revisions += [t.revision for t in (await response(process)).transitions]
            assert await line(process.stderr) == (
                "vmagentctl: connected again, going on after revision 3"
            )
            await second.stop(None)
            assert "connecting again" in await line(process.stderr)
        async with serving(target, WatchStatus=journal.watch):
            # Nothing happened meanwhile: no repeat either.
            assert not (await response(process)).transitions
            await journal.grow(1)
            revisions += [t.revision for t in (await response(process)).transitions]
    assert revisions == list(range(1, 9))
    assert [request.resume for request in journal.asked] == [cursor(0), cursor(3), cursor(7)]


async def test_a_vm_of_a_snapshot_that_was_cut_is_not_in_the_next(target: Path) -> None:
    asked = []

    async def watch(
        request: WatchStatusRequest, context: Context
    ) -> AsyncIterator[WatchStatusResponse]:
        asked.append(request)
        if len(asked) == 1:
            yield WatchStatusResponse(vms=[vm("undefined-meanwhile")])
            await context.abort(grpc.StatusCode.UNAVAILABLE, "gone")
        yield WatchStatusResponse(vms=[vm("a")])
        yield WatchStatusResponse(vms=[vm("b")], snapshot_end=cursor(6))
        await asyncio.sleep(DEADLINE_S)

    async with serving(target, WatchStatus=watch), started(target, "watch") as process:
        lines = [await line(process.stdout) for _ in range(4)]
    assert [text.split()[0] for text in lines] == ["NAME", "a", "b", "--"]


async def test_without_reconnect_it_ends(target: Path, journal: Journal) -> None:
    async with (
        serving(target, WatchStatus=journal.watch) as server,
        started(target, "watch", "--no-reconnect") as process,
    ):
        await line(process.stdout)
        await server.stop(None)
        done = await ended(process)
    assert done.code == 4
    assert done.err.count("\n") == 1


async def test_a_plain_revision_is_one_of_the_present_journal(
    target: Path, journal: Journal
) -> None:
    async with (
        serving(target, WatchStatus=journal.watch, GetHost=get_host),
        started(target, "watch", "-o", "jsonl", "--resume-from", "2") as process,
    ):
        assert [t.revision for t in (await response(process)).transitions] == [3]
    assert journal.asked[0].resume == cursor(2)


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        (grpc.StatusCode.FAILED_PRECONDITION, "JOURNAL_REPLACED"),
        (grpc.StatusCode.OUT_OF_RANGE, "REVISION_COMPACTED"),
        (grpc.StatusCode.ABORTED, "ACCESS_CHANGED"),  # which VMs he sees is another matter now
    ],
)
async def test_a_void_place_is_told_and_a_fresh_snapshot_taken(
    target: Path, journal: Journal, code: grpc.StatusCode, reason: str
) -> None:
    async def watch(
        request: WatchStatusRequest, context: Context
    ) -> AsyncIterator[WatchStatusResponse]:
        if request.HasField("resume"):
            await refuse(context, code, reason, "it is gone")
        async for response_ in journal.watch(request, context):
            yield response_

    async with (
        serving(target, WatchStatus=watch),
        started(target, "watch", "-o", "jsonl", "--resume-from", f"{JOURNAL}:1") as process,
    ):
        assert (await response(process)).vms[0].name == "a"
        told = await line(process.stderr)
    assert told == f"vmagentctl: it is gone [{reason}]: taking a fresh snapshot"


async def test_a_refusal_is_no_reason_to_come_again(target: Path) -> None:
    async def watch(
        _request: WatchStatusRequest, context: Context
    ) -> AsyncIterator[WatchStatusResponse]:
        yield WatchStatusResponse(snapshot_end=cursor(1))
        await refuse(context, grpc.StatusCode.PERMISSION_DENIED, "ROLE_DENIED", "not any more")

    async with serving(target, WatchStatus=watch):
        done = await vmagentctl(target, "watch")
    assert (done.code, done.err) == (1, "vmagentctl: not any more [ROLE_DENIED]\n")


async def test_an_interrupt_ends_it_at_once_and_quietly(target: Path, journal: Journal) -> None:
    async with (
        serving(target, WatchStatus=journal.watch),
        started(target, "watch") as process,
    ):
        await line(process.stdout)
        process.send_signal(signal.SIGINT)
        done = await ended(process)
    assert (done.code, done.err) == (130, "")


async def test_an_interrupt_ends_it_while_nobody_reads(target: Path, journal: Journal) -> None:
    await journal.grow(10_000)  # far more than a pipe holds
    async with serving(target, WatchStatus=journal.watch):
        command = [sys.executable, "-m", "vmagent.ctl", "--target", f"unix:{target}"]
        with subprocess.Popen(  # noqa: ASYNC220  # does not wait; asyncio's would read the pipe
            [*command, "watch", "-o", "jsonl", "--resume-from", f"{JOURNAL}:0"],
            stdout=subprocess.PIPE,
        ) as process:
            assert process.stdout is not None
            async with asyncio.timeout(DEADLINE_S):
                while unread(process.stdout.fileno()) < PIPE_BUFFER:  # noqa: ASYNC110
                    await asyncio.sleep(0.02)  # a full pipe tells nobody
            process.send_signal(signal.SIGINT)
            assert await asyncio.to_thread(process.wait, DEADLINE_S) == 130


def unread(pipe: int) -> int:
    """Return how many bytes lie in a pipe."""
    answer = fcntl.ioctl(pipe, termios.FIONREAD, bytes(4))
    return int.from_bytes(answer, sys.byteorder)


async def test_it_ends_quietly_when_its_reader_has_gone(target: Path, journal: Journal) -> None:
    async with serving(target, WatchStatus=journal.watch):
        shell = await asyncio.create_subprocess_exec(
            "bash",
            "-c",
            'set -o pipefail; "$0" -m vmagent.ctl --target "$1" watch | head -n 1',
            sys.executable,
            f"unix:{target}",
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        while journal.head < 1000 and shell.returncode is None:
            await journal.grow(1)
            await asyncio.sleep(0.02)
        out, err = await asyncio.wait_for(shell.communicate(), DEADLINE_S)
    assert (shell.returncode, out.count(b"\n"), err) == (141, 1, b"")


class TestFollower:
    """What takes too long to watch from outside."""

    @asynccontextmanager
    async def following(
        self, target: Path, told: list[str], place: Cursor | None = None, slack_s: float = 5
    ) -> AsyncIterator[AsyncIterator[WatchStatusResponse]]:
        follower = Follower(
            daemon=Daemon(target),
            heartbeat=timedelta(milliseconds=50),
            slack_s=slack_s,
            place=place,
            tell=told.append,
        )
        responses = follower.responses()
        async with asyncio.timeout(DEADLINE_S):
            yield responses

    async def test_silence_is_a_loss(self, target: Path) -> None:
        asked = []

        async def watch(
            request: WatchStatusRequest, _context: Context
        ) -> AsyncIterator[WatchStatusResponse]:
            asked.append(request)
            yield WatchStatusResponse(heartbeat=Heartbeat(revision=7 + len(asked)))
            await asyncio.sleep(60)

        told: list[str] = []
        async with (
            serving(target, WatchStatus=watch),
            self.following(target, told, cursor(7), slack_s=2) as responses,
        ):
            assert (await anext(responses)).heartbeat.revision == 8
            assert (await anext(responses)).heartbeat.revision == 9
        # The heartbeat stands for what was filtered out: that is not asked for again.
        assert [request.resume for request in asked] == [cursor(7), cursor(8)]
        assert told == [
            "no sign of life for 2.1 s; connecting again",
            "connected again, going on after revision 8",
        ]

    async def test_silence_from_the_first_is_no_daemon(self, target: Path) -> None:
        async def watch(
            _request: WatchStatusRequest, _context: Context
        ) -> AsyncIterator[WatchStatusResponse]:
            await asyncio.sleep(60)
            yield WatchStatusResponse()

        async with (
            serving(target, WatchStatus=watch),
            self.following(target, [], slack_s=0) as responses,
        ):
            with pytest.raises(Failure, match="no sign of life") as failure:
                await anext(responses)
        assert failure.value.code is ExitCode.UNREACHABLE

    async def test_a_slow_reader_resumes(self, target: Path, journal: Journal) -> None:
        async def watch(
            request: WatchStatusRequest, context: Context
        ) -> AsyncIterator[WatchStatusResponse]:
            if request.resume.revision == 1:
                yield WatchStatusResponse(transitions=[transition(2)])
                await refuse(
                    context, grpc.StatusCode.RESOURCE_EXHAUSTED, "WATCHER_TOO_SLOW", "too slow"
                )
            async for response_ in journal.watch(request, context):
                yield response_

        told: list[str] = []
        async with (
            serving(target, WatchStatus=watch),
            self.following(target, told, cursor(1)) as responses,
        ):
            revisions = [t.revision for _ in "12" for t in (await anext(responses)).transitions]
        assert revisions == [2, 3]
        assert told[0] == "too slow [WATCHER_TOO_SLOW]; connecting again"

    async def test_a_snapshot_that_was_cut_is_taken_anew(self, target: Path) -> None:
        asked = []

        async def watch(
            request: WatchStatusRequest, context: Context
        ) -> AsyncIterator[WatchStatusResponse]:
            asked.append(request)
            # A heartbeat within a snapshot is no place to resume from.
            yield WatchStatusResponse(vms=[vm("a")], heartbeat=Heartbeat(revision=5))
            if len(asked) == 1:
                await context.abort(grpc.StatusCode.UNAVAILABLE, "gone")
            yield WatchStatusResponse(vms=[vm("b")], snapshot_end=cursor(6))

        told: list[str] = []
        async with (
            serving(target, WatchStatus=watch),
            self.following(target, told) as responses,
        ):
            names = [v.name for _ in "123" for v in (await anext(responses)).vms]
        assert names == ["a", "a", "b"]
        assert not any(request.HasField("resume") for request in asked)
