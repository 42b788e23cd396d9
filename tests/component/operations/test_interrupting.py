"""Cancellations and force that come while an operation waits for something, or for nothing."""

from __future__ import annotations

import asyncio
import sqlite3
from contextlib import closing
from dataclasses import replace

import pytest

from tests.component.hypervisor.host import until
from tests.component.operations.gates import Gate, turns, until_joined
from tests.component.operations.site import (
    DEADLINE_S,
    FORCED,
    REBOOT,
    RESET,
    SECOND,
    START,
    STOP,
    Daemon,
    Site,
    for_ever,
    somebody,
)
from vmagentd.errors import NoShutdownMethod
from vmagentd.model import (
    OnGraceExpired,
    OperationId,
    OperationOutcome,
    OperationPhase,
    Parameters,
    RebootParameters,
    StopParameters,
    VmState,
)
from vmagentd.operations.bound import Bound
from vmagentd.operations.starts import HostLimits

DONE, ALREADY_DONE = OperationOutcome.DONE, OperationOutcome.ALREADY_DONE


class TestBound:
    @pytest.mark.parametrize("later", range(5))
    async def test_it_is_ended_by_two_one_after_the_other(self, later: int) -> None:
        bound = Bound(asyncio.get_running_loop().time() + DEADLINE_S)

        async def end(after: int) -> None:
            await turns(after)
            bound.end()

        async with asyncio.TaskGroup() as ending:
            ending.create_task(end(1))
            ending.create_task(end(1 + later))
            async with bound:
                await for_ever()

    @pytest.mark.parametrize("later", range(5))
    async def test_it_is_ended_when_its_time_has_come(self, later: int) -> None:
        loop = asyncio.get_running_loop()
        bound = Bound(loop.time())
        async with asyncio.TaskGroup() as ending:

            async def end() -> None:
                await turns(later)
                bound.end()

            ending.create_task(end())
            async with bound:
                await for_ever()


class TestCancelled:
    @pytest.mark.parametrize("by_stop", [False, True])
    async def test_before_it_waits_for_its_turn(self, here: Site, *, by_stop: bool) -> None:
        here.define("o1", "o2")
        here.limits = HostLimits(starts_at_once=1)
        async with here.daemon() as daemon, asyncio.timeout(DEADLINE_S):
            here.domains.before["start"] = for_ever
            first = asyncio.create_task(daemon.done("o1", START))
            await until(lambda: daemon.starts.running == 1, "it is being started")
            here.domains.before["look_up"] = look = Gate()
            start_id, second = await daemon.under_way("o2", START, OperationPhase.ACCEPTED)
            await look.reached.wait()
            ending = asyncio.create_task(
                daemon.done("o2", STOP) if by_stop else cancel(daemon, start_id)
            )
            await (turns(20) if by_stop else until_joined(daemon, "other"))
            look.open.set()
            await ending
            assert (await second).phase is OperationPhase.CANCELLED
            assert (daemon.starts.running, daemon.starts.queued) == (1, 0)
            first.cancel()

    @pytest.mark.parametrize("waits", [False, True])
    async def test_a_reboot_of_an_earlier_daemon(self, here: Site, *, waits: bool) -> None:
        here.domains.deaf()
        async with here.daemon() as daemon:
            reboot_id, caller = await daemon.under_way("a", REBOOT, OperationPhase.SIGNALLED)
        await asyncio.wait([caller])
        async with here.daemon(recover=False) as daemon, asyncio.timeout(DEADLINE_S):
            here.domains.before["look_up"] = look = Gate()
            daemon.operations.recover()
            await look.reached.wait()
            if waits:
                look.open.set()
                await turns(20)
            ending = asyncio.create_task(cancel(daemon, reboot_id))
            await until_joined(daemon, "other")
            look.open.set()
            await ending
            operation = await daemon.journal.operation(reboot_id)
            assert operation is not None
            assert operation.phase is OperationPhase.CANCELLED

    async def test_a_start_is_not_broken_off_any_more(self, here: Site, daemon: Daemon) -> None:
        """The cancellation is committed just before the step that tells of the force."""
        here.domains.before["start"] = libvirt = Gate()
        _, start = await daemon.under_way("off", START, OperationPhase.STARTING)
        async with asyncio.timeout(DEADLINE_S):
            stop_id, stop = await daemon.under_way("off", STOP, OperationPhase.ACCEPTED)
            await start
            (run,) = daemon.operations._runs.values()
            with closing(sqlite3.connect(here.state_dir / "journal.db")) as other:
                other.execute("BEGIN IMMEDIATE")  # nothing is committed while this lasts
                ending = asyncio.create_task(cancel(daemon, stop_id))
                await turns(20)
                run.escalate()
                await until(
                    lambda: run.operation.phase is OperationPhase.FORCING, "it comes to force"
                )
            await ending
            libvirt.open.set()
            assert (await stop).phase is OperationPhase.CANCELLED
            await daemon.until_state("off", VmState.RUNNING)
        assert here.domains.calls == ["start"]

    async def test_by_two_stops_at_once_it_names_the_one_that_is(
        self, here: Site, daemon: Daemon
    ) -> None:
        here.domains.before["start"] = libvirt = Gate()
        _, start = await daemon.under_way("off", START, OperationPhase.STARTING)
        async with asyncio.timeout(DEADLINE_S):
            stops = asyncio.gather(daemon.done("off", STOP), daemon.done("off", FORCED))
            cancelled = await start
            libvirt.open.set()
            stopped, forced = await stops
        assert cancelled.failure is not None
        assert cancelled.failure.facts["operation_id"] == stopped.id == forced.id

    @pytest.mark.parametrize("wish", [STOP, START])
    async def test_who_asks_then_asks_for_something_of_his_own(
        self, here: Site, daemon: Daemon, wish: Parameters
    ) -> None:
        ref, phase = ("a", OperationPhase.SIGNALLED)
        here.domains.deaf()
        here.domains.before["start"] = libvirt = Gate()
        if wish is START:
            ref, phase = ("off", OperationPhase.STARTING)
        operation_id, first = await daemon.under_way(ref, wish, phase)
        here.domains.before["look_up"] = look = Gate()
        async with asyncio.timeout(DEADLINE_S):
            cancelling = asyncio.create_task(cancel(daemon, operation_id))
            await look.reached.wait()
            here.domains.instead.clear()
            mine = asyncio.create_task(daemon.done(ref, wish, actor="third"))
            await turns(20)
            look.open.set()
            await cancelling
            assert (await first).phase is OperationPhase.CANCELLED
            libvirt.open.set()
            assert (await mine).phase is OperationPhase.SUCCEEDED
        assert (await mine).id != operation_id


class TestForced:
    async def test_more_force_does_not_interrupt_force(self, here: Site, daemon: Daemon) -> None:
        here.domains.deaf()
        here.domains.before["reset"] = libvirt = Gate()
        _, reboot = await daemon.under_way("a", REBOOT, OperationPhase.SIGNALLED)
        async with asyncio.timeout(DEADLINE_S):
            forced = asyncio.create_task(daemon.done("a", RESET, actor="one"))
            await libvirt.reached.wait()
            more = asyncio.create_task(daemon.done("a", RESET, actor="two"))
            await until_joined(daemon, "two")
            libvirt.open.set()
            assert (await reboot).outcome is DONE
            assert await forced == await more == await reboot
        assert here.domains.calls.count("reset") == 1

    @pytest.mark.parametrize(("wish", "force"), [(STOP, FORCED), (REBOOT, RESET)])
    async def test_what_is_failing_uses_it(
        self,
        here: Site,
        daemon: Daemon,
        wish: StopParameters | RebootParameters,
        force: Parameters,
    ) -> None:
        """Its grace period is over, and libvirt is asked how the VM is."""
        look = Gate()

        async def first() -> None:
            here.domains.before["look_up"] = look

        here.domains.deaf()
        here.domains.before["look_up"] = first
        soon = replace(wish, grace_period=0.1 * SECOND, on_grace_expired=OnGraceExpired.FAIL)
        operation_id, graceful = await daemon.under_way("a", soon, OperationPhase.ACCEPTED)
        async with asyncio.timeout(DEADLINE_S):
            await look.reached.wait()
            forced = asyncio.create_task(daemon.done("a", force, actor="other"))
            await until_joined(daemon, "other")
            look.open.set()
            assert ((await forced).id, (await forced).outcome) == (operation_id, DONE)
            assert await graceful == await forced

    async def test_what_has_failed_uses_it_before_that_is_told(
        self, here: Site, daemon: Daemon
    ) -> None:
        """Libvirt has refused, and is asked a last time how the VM is."""
        look = Gate()

        async def refuse() -> None:
            here.domains.before["look_up"] = look
            raise NoShutdownMethod(daemon.vm("a").uuid, "no ACPI")

        here.domains.instead["shutdown"] = refuse
        stop_id, graceful = await daemon.under_way("a", STOP, OperationPhase.SIGNALLED)
        async with asyncio.timeout(DEADLINE_S):
            await look.reached.wait()
            forced = asyncio.create_task(daemon.done("a", FORCED, actor="other"))
            await until_joined(daemon, "other")
            look.open.set()
            assert ((await forced).id, (await forced).outcome) == (stop_id, DONE)
            assert await graceful == await forced

    async def test_after_a_cancellation_it_is_an_operation_of_its_own(
        self, here: Site, daemon: Daemon
    ) -> None:
        here.domains.deaf()
        stop_id, graceful = await daemon.under_way("a", STOP, OperationPhase.SIGNALLED)
        here.domains.before["look_up"] = look = Gate()
        async with asyncio.timeout(DEADLINE_S):
            cancelling = asyncio.create_task(cancel(daemon, stop_id))
            await look.reached.wait()
            forced = asyncio.create_task(daemon.done("a", FORCED, actor="third"))
            await until_joined(daemon, "third")
            look.open.set()
            await cancelling
            assert (await graceful).phase is OperationPhase.CANCELLED
            stopped = await forced
        assert stopped.id != stop_id
        assert stopped.outcome is DONE
        assert not here.domain("a").isActive()


async def cancel(daemon: Daemon, operation_id: OperationId) -> None:
    await daemon.operations.cancel(operation_id, caller=somebody("other"))
