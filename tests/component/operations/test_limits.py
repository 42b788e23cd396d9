"""Starts that wait for their turn, and those for which the host has no room."""

from __future__ import annotations

import asyncio
import re
from contextlib import aclosing
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from tests.component.hypervisor.host import until
from tests.component.operations.gates import Gate
from tests.component.operations.site import (
    DEADLINE_S,
    SECOND,
    START,
    STOP,
    Daemon,
    Site,
    for_ever,
    site,
    somebody,
)
from vmagentd.errors import LibvirtRefused
from vmagentd.model import Operation, OperationOutcome, OperationPhase, VmState
from vmagentd.operations.starts import HostLimits

if TYPE_CHECKING:
    from pathlib import Path

DONE, ALREADY_DONE = OperationOutcome.DONE, OperationOutcome.ALREADY_DONE
NAMES = ("o1", "o2", "o3", "o4")


@pytest.fixture
def narrow(here: Site) -> Site:
    """A host with VMs that are off, on which one start goes on at a time."""
    here.define(*NAMES)
    here.limits = HostLimits(starts_at_once=1)
    return here


def error_of(operation: Operation) -> str:
    assert operation.failure is not None
    return operation.failure.error


def message_of(operation: Operation) -> str:
    assert operation.failure is not None
    return operation.failure.message


async def refused() -> None:
    raise LibvirtRefused(None, 1, 10, "no disk")


class TestQueue:
    async def test_in_order_with_their_places(self, narrow: Site, daemon: Daemon) -> None:
        gate = asyncio.Event()
        narrow.domains.before["start"] = gate.wait
        told: dict[str, list[tuple[str, int]]] = {name: [] for name in NAMES}

        async def follow(name: str) -> None:
            async with aclosing(daemon.ask(name, START)) as steps:
                async for step in steps:
                    told[name].append((step.phase, step.queue_place))

        async with asyncio.timeout(DEADLINE_S), asyncio.TaskGroup() as callers:
            for waiting, name in enumerate(NAMES):
                callers.create_task(follow(name))
                await until(lambda: daemon.starts.queued == waiting, "it has its place")  # noqa: B023
            assert (daemon.starts.running, daemon.starts.queued) == (1, 3)
            for name, place in zip(NAMES[1:], (1, 2, 3), strict=True):
                await until(lambda: told[name][-1] == ("QUEUED", place), "its place is told")  # noqa: B023
                assert daemon.vm(name).active_operation_id is not None
            assert [name for name in NAMES if told[name][-1][0] == "STARTING"] == ["o1"]
            gate.set()
        assert told["o1"] == [("ACCEPTED", 0), ("STARTING", 0), ("SUCCEEDED", 0)]
        assert [phase for phase, _ in told["o2"]] == [
            "ACCEPTED",
            "QUEUED",
            "STARTING",
            "SUCCEEDED",
        ]
        places = [place for phase, place in told["o4"] if phase == "QUEUED"]
        assert places == sorted(places, reverse=True)
        assert places[0] == 3
        ups = [daemon.vm(name) for name in NAMES]
        assert [vm.state for vm in ups] == [VmState.RUNNING] * 4
        assert [*sorted(ups, key=lambda vm: vm.state_time)] == ups
        # the last may be over, by the journal, a moment before libvirt's answer is taken
        await until(lambda: daemon.starts.running == 0, "no turn is taken")
        assert daemon.starts.queued == 0

    async def test_what_waits_is_committed_without_its_place(
        self, narrow: Site, daemon: Daemon
    ) -> None:
        narrow.domains.before["start"] = for_ever
        first = asyncio.create_task(daemon.done("o1", START))
        await until(lambda: daemon.starts.running == 1, "it is being started")
        queued_id, second = await daemon.under_way("o2", START, OperationPhase.QUEUED)
        stored = await daemon.journal.operation(queued_id)
        assert stored is not None
        assert (stored.phase, stored.queue_place) == (OperationPhase.QUEUED, 0)
        assert daemon.starts.places == {queued_id: 1}
        first.cancel()
        second.cancel()

    @pytest.mark.parametrize("by_stop", [False, True])
    async def test_one_that_waits_is_cancelled_at_once(
        self, narrow: Site, daemon: Daemon, *, by_stop: bool
    ) -> None:
        gate = asyncio.Event()
        narrow.domains.before["start"] = gate.wait
        first = asyncio.create_task(daemon.done("o1", START))
        await until(lambda: daemon.starts.running == 1, "it is being started")
        queued_id, second = await daemon.under_way("o2", START, OperationPhase.QUEUED)
        _, third = await daemon.under_way("o3", START, OperationPhase.QUEUED)
        async with asyncio.timeout(DEADLINE_S):
            if by_stop:
                assert (await daemon.done("o2", STOP)).outcome is ALREADY_DONE
            else:
                await daemon.operations.cancel(queued_id, caller=somebody("other"))
            assert (await second).phase is OperationPhase.CANCELLED
            assert daemon.starts.queued == 1
            gate.set()
            assert (await first).outcome is (await third).outcome is DONE
        assert daemon.vm("o2").incarnation == 0

    async def test_a_turn_that_comes_too_late(self, narrow: Site, daemon: Daemon) -> None:
        narrow.domains.before["start"] = for_ever
        first = asyncio.create_task(daemon.done("o1", START))
        await until(lambda: daemon.starts.running == 1, "it is being started")
        operation = await daemon.done("o2", replace(START, timeout=0.2 * SECOND))
        assert error_of(operation) == "StartTimedOut"
        assert "libvirt was not asked" in message_of(operation)
        assert narrow.domains.calls == ["start"]
        first.cancel()

    async def test_one_that_libvirt_is_busy_with_keeps_its_place(
        self, narrow: Site, daemon: Daemon
    ) -> None:
        gate = asyncio.Event()
        narrow.domains.before["start"] = gate.wait
        start_id, _ = await daemon.under_way("o1", START, OperationPhase.STARTING)
        await daemon.operations.cancel(start_id, caller=somebody("other"))
        assert daemon.starts.running == 1
        _, second = await daemon.under_way("o2", START, OperationPhase.QUEUED)
        gate.set()
        async with asyncio.timeout(DEADLINE_S):
            assert (await second).outcome is DONE

    async def test_one_that_hangs_keeps_it_for_no_longer_than_its_time(
        self, narrow: Site, daemon: Daemon
    ) -> None:
        narrow.domains.before["start"] = for_ever
        late = await daemon.done("o1", replace(START, timeout=0.2 * SECOND))
        assert error_of(late) == "StartTimedOut"
        del narrow.domains.before["start"]
        assert (await daemon.done("o2", START)).outcome is DONE

    async def test_the_next_daemon_starts_none_of_them(self, narrow: Site) -> None:
        narrow.domains.before["start"] = for_ever
        async with narrow.daemon() as daemon:
            _, first = await daemon.under_way("o1", START, OperationPhase.STARTING)
            queued_id, second = await daemon.under_way("o2", START, OperationPhase.QUEUED)
        await asyncio.wait([first, second])
        narrow.domains.before.clear()
        narrow.domains.calls.clear()
        async with narrow.daemon() as daemon:
            await until(lambda: daemon.vm("o2").active_operation_id is None, "its end")
            operation = await daemon.journal.operation(queued_id)
            assert operation is not None
            assert operation.phase is OperationPhase.INTERRUPTED
            assert narrow.domains.calls == []
            assert (await daemon.done("o2", START)).outcome is DONE


class TestHostLimits:
    @pytest.mark.parametrize(
        ("limits", "limit"),
        [
            (HostLimits(running_vms=3), "running VMs"),
            (HostLimits(vcpus=6), "vCPUs of running VMs"),
            (HostLimits(memory_bytes=1), "bytes of memory of running VMs"),
        ],
    )
    async def test_a_start_over_them_is_refused_before_libvirt_is_asked(
        self, here: Site, limits: HostLimits, limit: str
    ) -> None:
        here.limits = limits
        here.define("o1", "o2")
        async with here.daemon() as daemon:
            running = sum(vm.active for vm in daemon.journal.vms.values())
            here.limits = limits
            assert running == 2
            first = await daemon.done("o1", START)
            second = await daemon.done("o2", START)
            if "memory" in limit:
                assert error_of(first) == "HostLimitReached"
            else:
                assert first.outcome is DONE
            assert error_of(second) == "HostLimitReached"
            assert second.failure is not None
            assert second.failure.facts["limit"] == limit
            # what all VMs use together is not for everybody who may start one of them
            assert second.failure.facts.keys() == {"vm", "subject", "limit", "allowed"}
            assert set(re.findall(rf"(\d+) {limit}", second.failure.message)) == {
                second.failure.facts["allowed"]
            }
            assert here.domains.calls.count("start") == ("memory" not in limit)
            assert daemon.vm("o2").state is VmState.STOPPED
            # what runs is already done, whatever the limits
            assert (await daemon.done("a", START)).outcome is ALREADY_DONE

    async def test_two_at_once_cannot_both_have_the_last_place(self, here: Site) -> None:
        here.limits = HostLimits(running_vms=3)
        here.define("o1", "o2")
        async with here.daemon() as daemon:
            both = await asyncio.gather(daemon.done("o1", START), daemon.done("o2", START))
            assert sorted(operation.phase for operation in both) == ["FAILED", "SUCCEEDED"]
            assert sum(vm.active for vm in daemon.journal.vms.values()) == 3

    async def test_two_that_get_their_turn_at_once_do_not_keep_each_other_out(
        self, narrow: Site
    ) -> None:
        narrow.limits = HostLimits(starts_at_once=1, running_vms=4)
        narrow.domains.before["start"] = libvirt = Gate()
        async with narrow.daemon() as daemon, asyncio.timeout(DEADLINE_S):
            _, first = await daemon.under_way("o1", START, OperationPhase.STARTING)
            _, second = await daemon.under_way("o2", START, OperationPhase.QUEUED)
            _, third = await daemon.under_way("o3", START, OperationPhase.QUEUED)
            daemon.starts.limit(replace(narrow.limits, starts_at_once=3))
            libvirt.open.set()
            assert (await first).outcome is (await second).outcome is DONE
            assert error_of(await third) == "HostLimitReached"

    async def test_one_that_has_failed_keeps_nobody_out(self, here: Site) -> None:
        here.limits = HostLimits(running_vms=3)
        here.define("o1", "o2")
        here.domains.instead["start"] = refused
        here.domains.before["look_up"] = look = Gate()
        async with here.daemon() as daemon, asyncio.timeout(DEADLINE_S):
            first = asyncio.create_task(daemon.done("o1", START))
            await look.reached.wait()  # libvirt has answered, and is asked how the VM is
            here.domains.instead.clear()
            here.domains.before.clear()
            assert (await daemon.done("o2", START)).outcome is DONE
            look.open.set()
            assert error_of(await first) == "StartFailed"

    async def test_one_that_hangs_beyond_its_time_is_counted(self, here: Site) -> None:
        here.limits = HostLimits(running_vms=3)
        here.define("o1", "o2")
        here.domains.before["start"] = libvirt = Gate()
        async with here.daemon() as daemon, asyncio.timeout(DEADLINE_S):
            late = await daemon.done("o1", replace(START, timeout=0.2 * SECOND))
            assert error_of(late) == "StartTimedOut"
            await until(lambda: daemon.starts.running == 0, "it has no turn any more")
            here.domains.before.clear()
            assert error_of(await daemon.done("o2", START)) == "HostLimitReached"
            libvirt.open.set()
            await daemon.until_state("o1", VmState.RUNNING)
            assert sum(vm.active for vm in daemon.journal.vms.values()) == 3

    async def test_they_can_be_changed(self, here: Site) -> None:
        here.limits = HostLimits(running_vms=2)
        async with here.daemon() as daemon:
            assert error_of(await daemon.done("off", START)) == "HostLimitReached"
            daemon.starts.limit(HostLimits(running_vms=3))
            assert (await daemon.done("off", START)).outcome is DONE


async def test_fifty_starts_at_once(tmp_path: Path) -> None:
    names = [f"vm{number:03}" for number in range(50)]
    async with site(tmp_path, []) as place:
        place.define(*names)
        async with place.daemon() as daemon, asyncio.timeout(DEADLINE_S):
            operations = await asyncio.gather(*(daemon.done(name, START) for name in names))
            assert {operation.outcome for operation in operations} == {DONE}
            assert len(place.raw.listAllDomains(1)) == 50
            await until(lambda: daemon.starts.running == 0, "no turn is taken")
            assert daemon.starts.queued == 0
