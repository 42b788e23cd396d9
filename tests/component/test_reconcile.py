"""When libvirt is asked though nobody did; libvirt is played by plain functions."""

from __future__ import annotations

import asyncio
import logging
import sqlite3
from contextlib import asynccontextmanager, closing
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

import pytest

from tests.component.hypervisor.host import until
from tests.component.journal.facts import SECOND, event, query, sighting, survey, uuid
from vmagentd.errors import LibvirtBusy, LibvirtUnreachable
from vmagentd.model import EventKind, VmState
from vmagentd.reconcile import Surveys

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable
    from pathlib import Path

    from vmagentd.journal.store import Journal
    from vmagentd.model import Query, Survey, VmUuid

SELDOM = 3600 * SECOND


@dataclass
class Libvirt:
    """Answers as a test says, and keeps what it was asked."""

    surveys: int = 0
    asked: list[VmUuid] = field(default_factory=list)
    failures: list[Exception] = field(default_factory=list)
    # what answers for a VM; others run, as of the newest event
    answers: dict[VmUuid, Callable[[], Awaitable[Query]]] = field(default_factory=dict)
    events: int = 0

    async def survey(self) -> Survey:
        self.surveys += 1
        if self.failures:
            raise self.failures.pop(0)
        return survey(sighting(1), sighting(2), after_event=self.events, link=1000 + self.surveys)

    async def look_up(self, vm: VmUuid) -> Query:
        self.asked.append(vm)
        if vm in self.answers:
            return await self.answers[vm]()
        number = int(vm[:8], 16)
        return query(sighting(number), number, after_event=self.events)


def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    ours = [r for r in caplog.records if r.name.startswith("vmagentd")]
    return [r.getMessage() for r in ours if r.levelno >= logging.WARNING]


@asynccontextmanager
async def running(
    journal: Journal, libvirt: Libvirt, *, interval: timedelta = SELDOM
) -> AsyncIterator[Surveys]:
    surveys = Surveys(journal, survey=libvirt.survey, look_up=libvirt.look_up, interval=interval)
    task = asyncio.create_task(surveys.run())
    try:
        yield surveys
        assert not task.done()
    finally:
        task.cancel()
        await asyncio.wait([task])


class TestSurveys:
    async def test_the_first_one_comes_when_the_link_does(self, journal: Journal) -> None:
        libvirt = Libvirt()
        async with running(journal, libvirt) as surveys:
            await asyncio.sleep(0)
            assert (libvirt.surveys, surveys.first_done.is_set()) == (0, False)
            surveys.want()
            await surveys.first_done.wait()
            assert libvirt.surveys == 1
            assert journal.link.connected  # it is committed
            assert set(journal.vms) == {uuid(1), uuid(2)}

    async def test_each_link_has_one(self, journal: Journal) -> None:
        libvirt = Libvirt()
        async with running(journal, libvirt) as surveys:
            surveys.want()
            await until(lambda: libvirt.surveys == 1, "the first survey")
            surveys.want()
            await until(lambda: libvirt.surveys == 2, "the second survey")

    async def test_and_so_has_each_interval(self, journal: Journal) -> None:
        libvirt = Libvirt()
        async with running(journal, libvirt, interval=timedelta(milliseconds=20)):
            await until(lambda: libvirt.surveys >= 4, "the fourth survey")

    async def test_one_that_failed_is_tried_again_soon(
        self, journal: Journal, caplog: pytest.LogCaptureFixture
    ) -> None:
        libvirt = Libvirt(failures=[LibvirtBusy(None, 68, 10, "another job")])
        async with running(journal, libvirt) as surveys:
            surveys.want()
            async with asyncio.timeout(10):
                await surveys.first_done.wait()
        assert libvirt.surveys == 2
        assert [r.levelname for r in caplog.records if "survey failed" in r.message] == ["WARNING"]

    async def test_blindness_is_no_failure_of_its_own(
        self, journal: Journal, caplog: pytest.LogCaptureFixture
    ) -> None:
        libvirt = Libvirt(failures=[LibvirtUnreachable("it ended")])
        async with running(journal, libvirt) as surveys:
            surveys.want()
            await until(lambda: libvirt.surveys == 1, "the first survey")
            assert not surveys.first_done.is_set()
            surveys.want()  # the next link
            await surveys.first_done.wait()
        assert libvirt.surveys == 2
        assert warnings(caplog) == []

    async def test_a_libvirt_that_does_not_answer_is_told_once(
        self, journal: Journal, caplog: pytest.LogCaptureFixture
    ) -> None:
        """It does answer keepalive: no link is lost, and nobody else would tell."""
        silent, since = LibvirtUnreachable("no answer in 60 s"), datetime.now(UTC)
        libvirt = Libvirt(failures=[silent] * 3)
        async with running(journal, libvirt) as surveys:
            surveys.want()
            async with asyncio.timeout(30):
                await surveys.first_done.wait()
            assert warnings(caplog) == [f"no survey: {silent}"]
            # a link that breaks in the middle of one, and blindness after it
            libvirt.failures = [silent, *[LibvirtUnreachable("it ended", since)] * 2, silent]
            surveys.want()
            await until(lambda: libvirt.surveys == 9, "a survey after them", within_s=30)
        assert len(warnings(caplog)) == 1

    async def test_a_link_that_comes_during_a_survey_has_one_of_its_own(
        self, journal: Journal
    ) -> None:
        libvirt = Libvirt()
        gate = asyncio.Event()
        ask = libvirt.survey

        async def slow() -> Survey:
            answer = await ask()
            await gate.wait()
            return answer

        surveys = Surveys(journal, survey=slow, look_up=libvirt.look_up, interval=SELDOM)
        task = asyncio.create_task(surveys.run())
        surveys.want()
        await until(lambda: libvirt.surveys == 1, "the first survey")
        surveys.want()
        gate.set()
        await until(lambda: libvirt.surveys == 2, "the second survey")
        task.cancel()
        await asyncio.wait([task])


class TestDoubts:
    async def test_a_doubt_is_settled(self, journal: Journal) -> None:
        libvirt = Libvirt(events=1)
        async with running(journal, libvirt):
            # STARTED says that there is a process; whether the guest runs, a query tells
            await journal.append(event(1, kind=EventKind.STARTED_BOOTED))
            await until(lambda: journal.vms[uuid(1)].state is VmState.RUNNING, "the answer")
            assert libvirt.asked == [uuid(1)]
            assert journal.vms[uuid(1)].vcpus == 2

    async def test_it_is_asked_about_a_moment_later(self, journal: Journal) -> None:
        """What libvirt tells of a VM comes in bursts: then once is enough."""
        libvirt, loop = Libvirt(events=1), asyncio.get_running_loop()
        asked_at = loop.create_future()

        async def answer() -> Query:
            asked_at.set_result(loop.time())
            return query(sighting(1), after_event=1)

        libvirt.answers[uuid(1)] = answer
        async with running(journal, libvirt):
            changed = journal.changed
            journal.record(event(1, kind=EventKind.STARTED_BOOTED))
            await changed.wait()
            shown_at = loop.time()
            assert await asked_at - shown_at > 0.005

    async def test_an_answer_that_came_too_late_is_asked_for_again(self, journal: Journal) -> None:
        libvirt = Libvirt(events=1)
        gate = asyncio.Event()

        async def late() -> Query:
            answer = query(sighting(1), after_event=libvirt.events)
            await gate.wait()
            return answer

        libvirt.answers[uuid(1)] = late
        async with running(journal, libvirt):
            await journal.append(event(1, kind=EventKind.STARTED_BOOTED))
            await until(lambda: libvirt.asked == [uuid(1)], "the question")
            libvirt.events = 2
            await journal.append(event(2, kind=EventKind.STARTED_BOOTED))
            gate.set()
            await until(lambda: journal.vms[uuid(1)].state is VmState.RUNNING, "the answer")
            assert libvirt.asked == [uuid(1), uuid(1)]

    async def test_one_that_hangs_delays_no_other(self, journal: Journal) -> None:
        libvirt = Libvirt(events=99)
        hang = asyncio.Event()

        async def hung() -> Query:
            await hang.wait()
            return query(sighting(1), after_event=libvirt.events)

        libvirt.answers[uuid(1)] = hung
        async with running(journal, libvirt):
            for vm in range(1, 11):
                await journal.append(event(vm, vm, EventKind.STARTED_BOOTED))
            others = [uuid(vm) for vm in range(2, 11)]
            await until(
                lambda: all(journal.vms[vm].state is VmState.RUNNING for vm in others),
                "the answers about all others",
            )
            assert journal.vms[uuid(1)].state is VmState.STARTING
            hang.set()
            await until(lambda: journal.vms[uuid(1)].state is VmState.RUNNING, "its own")

    @pytest.mark.parametrize(
        "error", [LibvirtBusy(uuid(1), 68, 10, "another job"), LibvirtUnreachable("it ended")]
    )
    async def test_one_that_fails_ends_nothing_and_can_come_again(
        self, journal: Journal, error: Exception
    ) -> None:
        libvirt = Libvirt(events=1)

        async def fail() -> Query:
            raise error

        libvirt.answers[uuid(1)] = fail
        async with running(journal, libvirt):
            await journal.append(event(1, kind=EventKind.STARTED_BOOTED))
            await until(lambda: libvirt.asked == [uuid(1)], "the question")
            del libvirt.answers[uuid(1)]
            libvirt.events = 2
            await journal.append(event(2, kind=EventKind.STOPPED_FAILED))
            await until(lambda: len(libvirt.asked) == 2, "the next question")

    async def test_one_that_could_not_be_asked_about_is_kept_while_the_link_is_up(
        self, journal: Journal
    ) -> None:
        """No thread was free, or there was no answer in time: no new link comes, nor a survey."""
        libvirt = Libvirt(events=1)

        async def busy() -> Query:
            del libvirt.answers[uuid(1)]
            raise LibvirtUnreachable("no libvirt-observe thread was free in time")

        libvirt.answers[uuid(1)] = busy
        async with running(journal, libvirt) as surveys:
            surveys.want()
            await surveys.first_done.wait()
            await journal.append(event(1, kind=EventKind.STOPPED_DESTROYED))
            await until(lambda: journal.vms[uuid(1)].state is VmState.RUNNING, "the answer")
            assert libvirt.asked == [uuid(1), uuid(1)]
            assert libvirt.surveys == 1

    async def test_one_without_a_link_is_left_to_the_survey(self, journal: Journal) -> None:
        libvirt = Libvirt(events=1, failures=[LibvirtUnreachable("it ended")] * 3)

        async def blind() -> Query:
            raise LibvirtUnreachable("it ended")

        libvirt.answers[uuid(1)] = blind
        async with running(journal, libvirt) as surveys:
            await journal.append(event(1, kind=EventKind.STOPPED_DESTROYED))
            surveys.want()
            # as often as the doubt would have been asked about again
            await until(lambda: libvirt.surveys == 3, "more surveys", within_s=30)
            assert libvirt.asked == [uuid(1)]


class TestUnsettled:
    async def test_one_is_asked_about_until_it_has_settled(self, journal: Journal) -> None:
        libvirt = Libvirt(events=2)
        libvirt.answers[uuid(1)] = stopping
        async with running(journal, libvirt):
            await journal.append(event(1, kind=EventKind.STARTED_BOOTED))
            await until(
                lambda: libvirt.asked.count(uuid(1)) == 3, "the third question", within_s=30
            )
            del libvirt.answers[uuid(1)]
            await until(
                lambda: journal.vms[uuid(1)].state is VmState.RUNNING, "the answer", within_s=30
            )

    async def test_not_again_while_the_answer_waits_for_the_disk(
        self, journal: Journal, tmp_path: Path
    ) -> None:
        libvirt = Libvirt(events=2)
        libvirt.answers[uuid(1)] = stopping

        async def fail() -> Query:
            raise LibvirtBusy(uuid(2), 68, 10, "another job")

        libvirt.answers[uuid(2)] = fail  # has no answer that could wait
        async with running(journal, libvirt):
            for vm in (1, 2):
                await journal.append(event(vm, vm, EventKind.STARTED_BOOTED))
            with closing(sqlite3.connect(tmp_path / "state/journal.db")) as other:
                other.execute("BEGIN IMMEDIATE")
                journal.record(event(3, vm=3))  # all later ones wait behind it
                asked, rounds = libvirt.asked.count(uuid(1)), libvirt.asked.count(uuid(2)) + 4
                await until(
                    lambda: libvirt.asked.count(uuid(2)) >= rounds, "more rounds", within_s=30
                )
                assert libvirt.asked.count(uuid(1)) <= asked + 1
            await until(
                lambda: libvirt.asked.count(uuid(1)) > asked + 1, "the next one", within_s=30
            )


async def stopping() -> Query:
    return query(replace(sighting(1), state=VmState.STOPPING), after_event=2)
