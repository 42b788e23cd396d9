"""The figures that Prometheus reads, from a daemon that has something to tell."""

from __future__ import annotations

import asyncio
import json
import re
import shutil
import socket
import subprocess
from contextlib import aclosing
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from grpc import aio
from vmagent.v1 import vm_agent_service_pb2 as pb

from tests.component.hypervisor.host import until
from tests.component.journal.facts import DEADLINE_S as SOON_S
from tests.component.journal.facts import SECOND, event, operation, sighting, survey
from tests.component.process import DEADLINE_S, ENDS_WITHIN_S, daemon, started
from vmagentd import errors
from vmagentd.lifecycle.steps import end
from vmagentd.metrics import exposition
from vmagentd.metrics.figures import Figures
from vmagentd.model import Cursor, OperationFailure, OperationOutcome, OperationPhase, Revision
from vmagentd.watch import Changes, Heartbeat, Watch

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Mapping

    from vmagentd.journal.store import Journal
    from vmagentd.watch import WatchItem

PACKAGING = Path(__file__).parents[2] / "packaging"
RULES = PACKAGING / "prometheus" / "vmagentd.rules.yml"
DASHBOARD = PACKAGING / "grafana" / "vmagentd.json"
# what Prometheus makes of a histogram, and of a counter
_SUFFIXES = ("_bucket", "_sum", "_count")


def listening(folder: Path) -> Path:
    """Have the daemon serve its figures, and return at which socket."""
    place = folder / "metrics"
    (folder / "vmagentd.toml").write_text(f'[metrics]\nlisten = "unix:{place}"\n')
    return place


async def read(place: Path, request: str = "GET /metrics HTTP/1.1\r\n\r\n") -> str:
    async with asyncio.timeout(DEADLINE_S):
        reader, writer = await asyncio.open_unix_connection(place)
        writer.write(request.encode())
        answer = await reader.read()
        writer.close()
        await writer.wait_closed()
    return answer.decode()


async def figures(place: Path) -> str:
    head, _, body = (await read(place)).partition("\r\n\r\n")
    assert head.startswith("HTTP/1.1 200 OK\r\n")
    return body


def values(text: str) -> Mapping[str, float]:
    lines = (line.rpartition(" ") for line in text.splitlines() if not line.startswith("#"))
    return {name: float(value) for name, _, value in lines}


def checked(*arguments: str, stdin: str | None = None) -> None:
    """Have promtool look at something; it must find nothing."""
    promtool = shutil.which("promtool")
    if promtool is None:
        pytest.skip("promtool is missing (Debian: prometheus)")
    done = subprocess.run(
        [promtool, "check", *arguments], input=stdin, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert not done.stderr


async def test_what_happens_is_counted(folder: Path) -> None:
    place = listening(folder)
    async with daemon(folder) as running:
        watching = running.stub.WatchStatus(pb.WatchStatusRequest())
        await watching.read()
        async for _ in running.stub.Stop(pb.StopRequest(vm="a")):
            pass
        with pytest.raises(aio.AioRpcError):
            await running.stub.GetVm(pb.GetVmRequest(vm="c"))
        seen = values(await figures(place))

        async def told() -> None:
            nonlocal seen
            while not seen.get("vmagentd_event_delivery_seconds_count"):
                seen = values(await figures(place))
                assert await watching.read()

        async with asyncio.timeout(DEADLINE_S):
            await told()
        expected = {
            'vmagentd_vms{state="RUNNING"}': 1,
            'vmagentd_vms{state="STOPPED"}': 1,
            'vmagentd_operations_total{outcome="DONE",verb="STOP"}': 1,
            'vmagentd_operation_seconds_count{verb="STOP"}': 1,
            "vmagentd_libvirt_connected": 1,
            "vmagentd_libvirt_connects_total": 1,
            'vmagentd_libvirt_calls_total{call="shutdown",result="ok"}': 1,
            "vmagentd_journal_writable": 1,
            "vmagentd_watchers": 1,
            "vmagentd_connections": 1,
            "vmagentd_operations_running": 0,
        }
        assert expected.items() <= seen.items()
        assert seen["vmagentd_event_commit_seconds_count"] >= 1
        assert seen["vmagentd_journal_commit_seconds_count"] >= 3
        assert seen["process_resident_memory_bytes"] > 0
        watching.cancel()
        running.process.terminate()
        assert await running.ended() == 0
    assert not place.exists()


async def test_the_time_without_libvirt_is_counted(folder: Path) -> None:
    place = listening(folder)
    async with daemon(folder, "qemu:///system?socket=/no/such/socket"):
        first = values(await figures(place))
        assert first["vmagentd_libvirt_connected"] == 0
        again = values(await figures(place))
        blind = "vmagentd_libvirt_blind_seconds_total"
        assert again[blind] > first[blind]


async def test_promtool_finds_nothing(folder: Path) -> None:
    place = listening(folder)
    async with daemon(folder) as running:
        async for _ in running.stub.Stop(pb.StopRequest(vm="a")):
            pass
        checked("metrics", stdin=await figures(place))


async def test_what_is_no_request_is_answered_or_hung_up_on(folder: Path) -> None:
    place = listening(folder)
    async with daemon(folder):
        assert "405" in await read(place, "POST /metrics HTTP/1.1\r\n\r\n")
        assert "404" in await read(place, "GET /etc/passwd HTTP/1.1\r\n\r\n")
        assert await read(place, "x" * 100_000) == ""
        silent = [await asyncio.open_unix_connection(place) for _ in range(20)]
        async with asyncio.timeout(DEADLINE_S):
            for reader, _ in silent:  # all are hung up on, and there is room again
                assert await reader.read() == b""
        for _, writer in silent:
            writer.close()
        assert "vmagentd_vms" in await figures(place)


async def test_whatever_a_reader_accepts_he_gets_the_figures(folder: Path) -> None:
    place = listening(folder)
    async with daemon(folder) as running:
        for accepted in (
            "text/plain;version=x",
            "application/openmetrics-text;version=1.x",
            f"text/plain;version={'9' * 5000}",
            "text/plain;version=1.0.0;escaping=x,*/*",
        ):
            answer = await read(place, f"GET / HTTP/1.1\r\nAccept: {accepted}\r\n\r\n")
            assert answer.startswith("HTTP/1.1 200 OK\r\n"), accepted
            assert "vmagentd_vms" in answer, accepted
        assert "Traceback" not in running.log.read_text()


async def test_a_reading_that_fails_is_one_line_in_the_log(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def fail() -> bytes:
        raise ValueError("x" * 10_000)

    place = folder / "metrics"
    async with exposition.served(
        f"unix:{place}", look=lambda: None, encoding=lambda _: ("text/plain", fail)
    ):
        assert await read(place) == ""
    (record,) = (each for each in caplog.records if each.levelname == "ERROR")
    assert record.exc_info is None
    assert len(record.getMessage()) < 500


async def test_who_reads_without_end_is_read_for_twice_a_second(folder: Path) -> None:
    """Whatever he accepts; and everybody is told what is so when he asks."""
    asked = told = readings = 0

    def look() -> None:
        nonlocal told, readings
        told, readings = asked, readings + 1

    async def read_on(accepted: str) -> None:
        nonlocal asked
        for _ in range(3):
            asked = mine = asked + 1
            answer = await read(place, f"GET / HTTP/1.1\r\nAccept: {accepted}\r\n\r\n")
            assert int(answer.rpartition("\n")[2]) >= mine

    place, clock = folder / "metrics", asyncio.get_running_loop().time
    async with exposition.served(
        f"unix:{place}", look=look, encoding=lambda accepted: (accepted, lambda: b"%d" % told)
    ):
        begin = clock()
        await asyncio.gather(*(read_on(accepted) for accepted in "abcdefghij"))
        assert readings <= 1 + (clock() - begin) / 0.5


async def test_who_says_nothing_keeps_nobody_from_reading(folder: Path) -> None:
    """Not for a moment: the longest silent one is hung up on, whoever reads is let in."""
    place = listening(folder)
    async with daemon(folder):
        silent = [await asyncio.open_unix_connection(place) for _ in range(300)]
        assert "vmagentd_vms" in await figures(place)
        async with asyncio.timeout(DEADLINE_S):
            assert await silent[0][0].read() == b""
        assert not silent[-1][0].at_eof()
        for _, writer in silent:
            writer.close()


async def test_a_place_that_is_taken_ends_it_in_one_line(folder: Path) -> None:
    async with await asyncio.start_server(lambda *_: None, "127.0.0.1", 0) as other:
        port = other.sockets[0].getsockname()[1]
        settings = f'[metrics]\nlisten = "127.0.0.1:{port}"\n'
        (folder / "vmagentd.toml").write_text(settings)
        process = await started(folder, f"test://{folder}/host.xml")
        async with asyncio.timeout(DEADLINE_S + ENDS_WITHIN_S):
            assert await process.wait() == 1
    errors = [line for line in (folder / "log").read_text().splitlines() if "ERROR" in line]
    assert len(errors) == 1
    assert f"metrics at 127.0.0.1:{port}" in errors[0]


def nothing(_accepted: str) -> tuple[str, Callable[[], bytes]]:
    return "text/plain", bytes


def listens(place: Path) -> socket.socket:
    """Return a socket of somebody else's that listens there."""
    other = socket.socket(socket.AF_UNIX)
    other.bind(str(place))
    other.listen()
    return other


def is_served(place: Path) -> bool:
    with socket.socket(socket.AF_UNIX) as probe:
        return probe.connect_ex(str(place)) == 0


async def test_a_socket_is_not_taken_from_who_serves_it(folder: Path) -> None:
    place = folder / "metrics"
    with listens(place):
        with pytest.raises(errors.MetricsUnavailable, match="another process serves it"):
            async with exposition.served(f"unix:{place}", look=lambda: None, encoding=nothing):
                pass
        assert is_served(place)
    # it is nobody's now
    async with exposition.served(f"unix:{place}", look=lambda: None, encoding=nothing):
        assert (await read(place)).startswith("HTTP/1.1 200 OK")
    assert not place.exists()


async def test_a_socket_of_somebody_else_is_left_in_the_end(folder: Path) -> None:
    place = folder / "metrics"
    async with exposition.served(f"unix:{place}", look=lambda: None, encoding=nothing):
        place.unlink()
        other = listens(place)
    with other:
        assert is_served(place)


async def test_what_is_no_socket_is_left_alone(folder: Path) -> None:
    place = folder / "metrics"
    place.write_text("notes")
    with pytest.raises(errors.MetricsUnavailable, match="no socket"):
        async with exposition.served(f"unix:{place}", look=lambda: None, encoding=nothing):
            pass
    assert place.read_text() == "notes"


async def test_by_default_nothing_is_served(folder: Path) -> None:
    async with daemon(folder) as running:
        await until(lambda: "serving" in running.log.read_text(), "it serves")
        assert "metrics" not in running.log.read_text()


class TestWatchers:
    """How they are measured, and how far they are behind."""

    @staticmethod
    async def until(items: AsyncIterator[WatchItem], kind: type[WatchItem]) -> WatchItem:
        """Go on up to the next item of that *kind*; what came before it is delivered then."""
        async with asyncio.timeout(SOON_S):
            async for item in items:
                if isinstance(item, kind):
                    return item
        raise AssertionError("a watcher's items do not end")

    @staticmethod
    def delivered(figures: Figures) -> float:
        seen = values(figures.encoding("")[1]().decode())
        return seen["vmagentd_event_delivery_seconds_count"]

    async def test_what_happened_before_they_were_there_is_no_delivery(
        self, journal: Journal
    ) -> None:
        """A watcher that resumes is told of yesterday: the daemon did not take a day for it."""
        await journal.append(survey(sighting()))
        await journal.append(event(1))
        figures = Figures()
        watch = Watch(journal, on_delivered=figures.observers.delivered)
        begin = Cursor(journal_id=journal.id, revision=Revision(0))
        async with aclosing(
            watch.follow(vms=(), resume=begin, heartbeat_interval=0.01 * SECOND)
        ) as items:
            await self.until(items, Heartbeat)
            await self.until(items, Heartbeat)
            assert self.delivered(figures) == 0
            await journal.append(event(2))
            await self.until(items, Changes)
            await self.until(items, Heartbeat)
            assert self.delivered(figures) == 1

    async def test_an_event_is_measured_whatever_comes_with_it(self, journal: Journal) -> None:
        """The end of an operation mostly does, and behind it."""
        await journal.append(survey(sighting()))
        figures = Figures()
        watch = Watch(journal, on_delivered=figures.observers.delivered)
        async with aclosing(
            watch.follow(vms=(), resume=None, heartbeat_interval=0.01 * SECOND)
        ) as items:
            await self.until(items, Heartbeat)
            journal.record(event(1))
            await journal.append(operation(1))
            changes = await self.until(items, Changes)
            assert isinstance(changes, Changes)
            assert [each.source for each in changes.transitions] == ["EVENT", "OPERATION"]
            await self.until(items, Heartbeat)
            assert self.delivered(figures) == 1

    async def test_one_that_was_told_nothing_yet_is_behind(self, journal: Journal) -> None:
        await journal.append(survey(sighting(1), sighting(2)))
        figures, watch = Figures(), Watch(journal)
        lag = "vmagentd_watcher_lag_revisions"
        figures.look(journal, watch, connections=0)
        assert values(figures.encoding("")[1]().decode())[lag] == 0
        begin = Cursor(journal_id=journal.id, revision=Revision(0))
        async with aclosing(
            watch.follow(vms=(), resume=begin, heartbeat_interval=SECOND)
        ) as items:
            await self.until(items, Changes)
            figures.look(journal, watch, connections=0)
            assert values(figures.encoding("")[1]().decode())[lag] == journal.head


class TestPackaging:
    def test_the_rules_are_sound(self) -> None:
        checked("rules", str(RULES))

    async def test_all_that_they_and_the_dashboard_name_is_there(self, folder: Path) -> None:
        place = listening(folder)
        async with daemon(folder):
            text = await figures(place)
        there = set(re.findall(r"^# TYPE (\w+) ", text, re.MULTILINE))
        shown = json.loads(DASHBOARD.read_text())
        told = json.dumps(shown["panels"]) + RULES.read_text()
        named = set(re.findall(r"\b(?:vmagentd|process)_\w+", told))
        bare = {re.sub(rf"(?:{'|'.join(_SUFFIXES)})$", "", name) for name in named}
        assert len(bare) > 20
        assert bare - there == set()

    def test_the_labels_that_they_look_for_occur(self) -> None:
        names = {
            name
            for name, kind in vars(errors).items()
            if isinstance(kind, type) and issubclass(kind, errors.VmagentdError)
        }
        occur = {
            "outcome": {*OperationOutcome} | names,
            "result": {"ok", "TimeoutError", "Occupied"} | names,
        }
        matchers = re.findall(r'(\w+)[=!][=~]?"([^"]*)"', RULES.read_text())
        looked_for = {label: set[str]() for label in occur}
        for label, pattern in matchers:
            if label in occur:
                looked_for[label] |= set(pattern.split("|"))
        assert all(looked_for.values())
        for label, there in occur.items():
            assert looked_for[label] - there == set()

    def test_an_operation_that_was_cancelled_is_no_failure(self) -> None:
        (but,) = re.findall(r'vmagentd_operations_total\{outcome!~"([^"]*)"', RULES.read_text())
        figures, one = Figures(), operation(1)
        for error, phase in (
            (errors.OperationCancelled, OperationPhase.CANCELLED),
            (errors.CancelledByStop, OperationPhase.CANCELLED),
            (errors.GraceExpired, OperationPhase.FAILED),
        ):
            failure = OperationFailure(error=error.__name__, message="")
            figures.observers.operation(end(one, phase, time=one.accept_time, failure=failure))
        text = figures.encoding("")[1]().decode()
        outcomes = re.findall(r'^vmagentd_operations_total\{outcome="(\w+)"', text, re.MULTILINE)
        assert len(outcomes) == 3
        assert [each for each in outcomes if not re.fullmatch(but, each)] == ["GraceExpired"]
