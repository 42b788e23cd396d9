"""What the host's own life makes of its VMs."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from tests.component.journal.facts import BEGIN, SECOND, event, sighting, survey, uuid
from vmagentd.journal.backlog import Backlog, Entry
from vmagentd.model import (
    EventKind,
    HostBooted,
    HostGoingDown,
    InitiatorKind,
    Reason,
    Survey,
    TransitionKind,
    VmState,
)

if TYPE_CHECKING:
    from tests.component.journal.conftest import Open
    from vmagentd.journal.store import Journal

LATER = BEGIN + 3600 * SECOND


def booted(boot_id: str) -> HostBooted:
    return HostBooted(time=LATER, boot_id=boot_id)


def going_down(*, going_down: bool) -> HostGoingDown:
    return HostGoingDown(time=BEGIN, going_down=going_down)


class TestBoot:
    async def test_all_that_was_active_stopped_with_the_host(self, opened: Open) -> None:
        async with opened() as journal:
            await journal.append(booted("first"))
            running, off = sighting(1), sighting(2, VmState.STOPPED)
            await journal.append(survey(running, off))
            before = dict(journal.vms)
        async with opened() as journal:
            head = journal.head
            await journal.append(booted("second"))
            (stopped,) = await journal.page(head)
            assert stopped.kind is TransitionKind.STATE
            vm = stopped.vm
            assert (vm.uuid, vm.state, vm.reason) == (
                uuid(1),
                VmState.STOPPED,
                Reason.HOST_REBOOTED,
            )
            assert vm.initiator.kind is InitiatorKind.HOST_SHUTDOWN
            assert (vm.active, vm.run_id) == (False, None)
            assert stopped.earliest_time == vm.earliest_time == before[uuid(1)].verify_time
            assert journal.vms[uuid(2)].revision == before[uuid(2)].revision
            await journal.append(booted("second"))
            assert journal.head == head + 1

    async def test_what_libvirt_started_again_since_is_another_incarnation(
        self, opened: Open
    ) -> None:
        async with opened() as journal:
            await journal.append(booted("first"))
            await journal.append(survey(sighting(1)))
        async with opened() as journal:
            await journal.append(booted("second"))
            # libvirt counts its processes anew at each boot: the number may be the same
            await journal.append(survey(sighting(1)))
            vm = journal.vms[uuid(1)]
            assert (vm.state, vm.incarnation) == (VmState.RUNNING, 2)

    async def test_the_one_that_bears_the_same_number_is_heard(self, opened: Open) -> None:
        async with opened() as journal:
            await journal.append(booted("first"))
            await journal.append(survey(sighting(1)))
        async with opened() as journal:
            await journal.append(booted("second"))
            await journal.append(survey(sighting(1, VmState.STOPPED)))
            head = journal.head
            for number, kind in enumerate(
                (EventKind.RESUMED_UNPAUSED, EventKind.STARTED_BOOTED, EventKind.REBOOT), start=1
            ):
                await journal.append(event(number, kind=kind))
            assert [(t.kind, t.vm.reason) for t in await journal.page(head)] == [
                (TransitionKind.STATE, Reason.BOOTED),
                (TransitionKind.REBOOT, Reason.REBOOTED),
            ]

    async def test_a_restart_of_the_daemon_alone_proves_nothing(self, opened: Open) -> None:
        async with opened() as journal:
            await journal.append(booted("first"))
            await journal.append(survey(sighting(1)))
        async with opened() as journal:
            head = journal.head
            await journal.append(booted("first"))
            assert journal.head == head

    async def test_a_journal_that_never_knew_a_boot_concludes_nothing(
        self, journal: Journal
    ) -> None:
        await journal.append(survey(sighting(1)))
        await journal.append(booted("first"))
        assert journal.vms[uuid(1)].state is VmState.RUNNING


class TestAnotherProcessOfTheSameNumber:
    """It came up while no daemon was there, and libvirtd began to count anew."""

    def used(self, cpu_s: int) -> Survey:
        return survey(replace(sighting(1), cpu_time=cpu_s * SECOND))

    async def test_it_has_used_less_than_the_one_before_had_when_that_was_last_seen(
        self, opened: Open
    ) -> None:
        async with opened() as journal:
            await journal.append(self.used(1))
            await journal.append(self.used(500))
            head = journal.head
        async with opened() as journal:
            assert journal.head == head
            await journal.append(self.used(499))
            (boot,) = await journal.page(head)
            assert (boot.vm.reason, boot.vm.incarnation) == (Reason.BOOTED, 2)
            assert boot.earliest_time is not None

    async def test_the_same_one_goes_on(self, opened: Open) -> None:
        for cpu_s in (1, 1, 500, 501):
            async with opened() as journal:
                await journal.append(self.used(cpu_s))
                assert journal.vms[uuid(1)].incarnation == 1


class TestGoingDown:
    @pytest.mark.parametrize(
        ("kinds", "state"),
        [
            ((EventKind.SHUTDOWN_GUEST, EventKind.STOPPED_SHUTDOWN), VmState.STOPPED),
            ((EventKind.SHUTDOWN_HOST, EventKind.STOPPED_SHUTDOWN), VmState.STOPPED),
            ((EventKind.SHUTDOWN_HOST, EventKind.STOPPED_DESTROYED), VmState.STOPPED),
            ((EventKind.SUSPENDED_PAUSED, EventKind.STOPPED_SAVED), VmState.SAVED),
        ],
    )
    async def test_it_stops_its_vms(
        self, journal: Journal, kinds: tuple[EventKind, ...], state: VmState
    ) -> None:
        await journal.append(survey(sighting(1)))
        await journal.append(going_down(going_down=True))
        for number, kind in enumerate(kinds, start=1):
            await journal.append(event(number, kind=kind))
            assert journal.vms[uuid(1)].initiator.kind is InitiatorKind.HOST_SHUTDOWN
        assert journal.vms[uuid(1)].state is state

    async def test_a_process_that_dies_meanwhile_is_not_blamed_on_it(
        self, journal: Journal
    ) -> None:
        await journal.append(survey(sighting(1)))
        await journal.append(going_down(going_down=True))
        await journal.append(event(1, kind=EventKind.STOPPED_FAILED))
        assert journal.vms[uuid(1)].initiator.kind is InitiatorKind.UNKNOWN

    async def test_a_shutdown_that_was_called_off_stops_nothing(self, journal: Journal) -> None:
        await journal.append(survey(sighting(1)))
        await journal.append(going_down(going_down=True))
        await journal.append(going_down(going_down=False))
        await journal.append(event(1, kind=EventKind.STOPPED_DESTROYED))
        assert journal.vms[uuid(1)].initiator.kind is InitiatorKind.OUT_OF_BAND


def test_while_the_disk_is_full_only_what_is_new_of_the_hosts_shutdown_waits() -> None:
    backlog = Backlog()
    for told in (False, False, True, True, False):
        backlog.add(Entry(going_down(going_down=told)))
        backlog.add(Entry(event(1)))
    waiting = [fact.going_down for fact in backlog.facts if isinstance(fact, HostGoingDown)]
    assert waiting == [False, True, False]
