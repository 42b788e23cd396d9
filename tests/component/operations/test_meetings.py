"""Operations that meet, callers that come twice, leave, or outlive the daemon."""

from __future__ import annotations

import asyncio
from contextlib import aclosing
from dataclasses import replace
from functools import partial

import pytest

from tests.component.hypervisor.host import until
from tests.component.operations.site import (
    DEADLINE_S,
    FORCED,
    PAUSE,
    REBOOT,
    RESUME,
    SECOND,
    START,
    STOP,
    Daemon,
    Site,
    for_ever,
)
from vmagentd.errors import LibvirtRefused, OperationInProgress, RequestIdReused, ShuttingDown
from vmagentd.model import (
    Operation,
    OperationId,
    OperationOutcome,
    OperationPhase,
    Parameters,
    VmState,
)

DONE, ALREADY_DONE = OperationOutcome.DONE, OperationOutcome.ALREADY_DONE


class TestMeeting:
    @pytest.mark.parametrize(("ref", "wish"), [("off", START), ("a", STOP), ("a", FORCED)])
    async def test_the_same_verb_joins(self, daemon: Daemon, ref: str, wish: Parameters) -> None:
        both = await asyncio.gather(daemon.done(ref, wish), daemon.done(ref, wish))
        assert both[0] == both[1]
        assert both[0].outcome is DONE
        assert len(daemon.site.domains.calls) == 1

    async def test_who_joins_late_is_told_where_it_stands(
        self, here: Site, daemon: Daemon
    ) -> None:
        here.domains.deaf()
        first_id, first = await daemon.under_way("a", STOP, OperationPhase.SIGNALLED)
        async with aclosing(daemon.ask("a", STOP)) as joined:
            step = await anext(joined)
            assert (step.id, step.phase) == (first_id, OperationPhase.SIGNALLED)
        here.domain("a").destroy()  # it hears it at last, so to speak
        assert (await first).outcome is DONE

    async def test_force_escalates(self, here: Site, daemon: Daemon) -> None:
        here.domains.deaf()
        graceful_id, graceful = await daemon.under_way("a", STOP, OperationPhase.SIGNALLED)
        forced = await daemon.done("a", FORCED)
        assert (forced.id, forced.outcome) == (graceful_id, DONE)
        assert [s.phase for s in forced.steps][-2:] == ["FORCING", "SUCCEEDED"]
        assert await graceful == forced
        assert daemon.vm("a").initiator.operation_id == graceful_id

    async def test_force_escalates_also_while_a_press_is_being_written_down(
        self, here: Site, daemon: Daemon
    ) -> None:
        here.domains.deaf()
        forced: list[asyncio.Task[object]] = []

        async def meddle() -> None:
            # takes effect after the press, before its step is committed
            forced.append(asyncio.ensure_future(daemon.done("a", FORCED)))

        here.domains.instead["shutdown"] = meddle
        assert (await daemon.done("a", STOP)).outcome is DONE
        await forced[0]

    async def test_a_stop_cancels_a_start(self, here: Site, daemon: Daemon) -> None:
        gate = asyncio.Event()
        here.domains.before["start"] = gate.wait
        _, start = await daemon.under_way("off", START, OperationPhase.STARTING)
        stop = asyncio.create_task(daemon.done("off", STOP))
        async with asyncio.timeout(DEADLINE_S):
            cancelled = await start
        assert cancelled.phase is OperationPhase.CANCELLED
        assert cancelled.failure is not None
        assert cancelled.failure.error == "CancelledByStop"
        # the Stop waits for libvirt's answer: before that the VM may be off and still come up
        done, _ = await asyncio.wait([stop], timeout=0.2)
        assert not done
        gate.set()
        async with asyncio.timeout(DEADLINE_S):
            stopped = await stop
        assert cancelled.failure.facts["operation_id"] == stopped.id
        assert stopped.outcome in {DONE, ALREADY_DONE}
        assert not here.domain("off").isActive()
        assert daemon.vm("off").state is VmState.STOPPED

    async def test_force_breaks_a_start_off_also_if_libvirt_refuses_meanwhile(
        self, here: Site, daemon: Daemon
    ) -> None:
        """Libvirt does when the process ends while it is spoken to: it then says nothing of it."""
        gate, refused = asyncio.Event(), asyncio.Event()

        async def refuse() -> None:
            here.domains.instead.pop("destroy")
            refused.set()
            raise LibvirtRefused(here.uuid("off"), 38, 10, "Unable to read from monitor")

        here.domains.before["start"] = gate.wait
        here.domains.instead["destroy"] = refuse
        _, start = await daemon.under_way("off", START, OperationPhase.STARTING)
        stop = asyncio.create_task(daemon.done("off", FORCED))
        async with asyncio.timeout(DEADLINE_S):
            await start
            await refused.wait()
            gate.set()
            stopped = await stop
        assert stopped.phase is OperationPhase.SUCCEEDED, stopped.failure
        assert not here.domain("off").isActive()
        assert daemon.vm("off").state is VmState.STOPPED

    async def test_a_start_during_a_stop_is_refused(self, here: Site, daemon: Daemon) -> None:
        here.domains.deaf()
        stop_id, stop = await daemon.under_way("a", STOP, OperationPhase.SIGNALLED)
        with pytest.raises(OperationInProgress) as caught:
            await daemon.done("a", START)
        assert caught.value.facts["operation_id"] == stop_id
        assert daemon.vm("a").active_operation_id == stop_id
        await daemon.done("a", FORCED)
        await stop

    async def test_other_vms_are_not_met(self, here: Site, daemon: Daemon) -> None:
        here.domains.before["start"] = for_ever
        _, start = await daemon.under_way("off", START, OperationPhase.STARTING)
        assert (await daemon.done("a", STOP)).outcome is DONE
        start.cancel()


class TestRequestId:
    async def test_a_repeat_of_a_finished_one_is_that_one(
        self, here: Site, daemon: Daemon
    ) -> None:
        first = await daemon.done("off", START, request_id="r")
        here.domain("off").destroy()
        await daemon.until_state("off", VmState.STOPPED)
        head = daemon.journal.head
        steps = await daemon.steps("off", START, request_id="r")
        assert steps == [first]
        assert daemon.journal.head == head
        assert not here.domain("off").isActive()

    async def test_a_repeat_in_the_next_daemon_too(self, here: Site) -> None:
        async with here.daemon() as daemon:
            first = await daemon.done("a", FORCED, request_id="r")
        async with here.daemon() as daemon:
            assert await daemon.done("a", FORCED, request_id="r") == first

    async def test_a_repeat_of_one_under_way_joins_it(self, daemon: Daemon) -> None:
        asked = [daemon.done("a", STOP, request_id="r") for _ in range(5)]
        assert len({operation.id for operation in await asyncio.gather(*asked)}) == 1

    async def test_an_id_belongs_to_who_used_it(self, daemon: Daemon) -> None:
        first = await daemon.done("a", FORCED, request_id="r", actor="one")
        other = await daemon.done("b", FORCED, request_id="r", actor="two")
        assert first.id != other.id

    @pytest.mark.parametrize(
        ("ref", "wish"),
        [("b", FORCED), ("a", STOP), ("a", START), ("a", replace(FORCED, grace_period=SECOND))],
    )
    async def test_with_anything_else_it_is_refused(
        self, daemon: Daemon, ref: str, wish: Parameters
    ) -> None:
        first = await daemon.done("a", FORCED, request_id="r")
        head = daemon.journal.head
        with pytest.raises(RequestIdReused) as caught:
            await daemon.done(ref, wish, request_id="r")
        assert caught.value.facts["operation_id"] == first.id
        assert daemon.journal.head == head

    async def test_by_name_or_uuid_it_is_the_same(self, here: Site, daemon: Daemon) -> None:
        first = await daemon.done("a", FORCED, request_id="r")
        assert await daemon.done(here.uuid("a"), FORCED, request_id="r") == first


class TestLeaving:
    async def test_who_stops_listening_stops_nothing(self, here: Site, daemon: Daemon) -> None:
        async with aclosing(daemon.ask("a", FORCED)) as steps:
            first = await anext(steps)
        await daemon.until_state("a", VmState.STOPPED)
        await until(lambda: daemon.vm("a").active_operation_id is None, "its end")
        stored = await daemon.journal.operation(first.id)
        assert stored is not None
        assert stored.outcome is DONE
        assert not here.domain("a").isActive()

    @pytest.mark.parametrize("turns", range(12))
    async def test_whenever_a_caller_is_cancelled_the_vm_is_free_in_the_end(
        self, daemon: Daemon, turns: int
    ) -> None:
        """It was not accepted, or it is carried out; nothing in between."""
        caller = asyncio.create_task(daemon.done("a", FORCED))
        for _ in range(turns):  # of the loop: each leaves it at another place
            await asyncio.sleep(0)
        caller.cancel()
        await asyncio.wait([caller])
        await until(lambda: daemon.vm("a").active_operation_id is None, "no operation under way")
        assert (await daemon.done("a", FORCED)).outcome in {DONE, ALREADY_DONE}


class TestTheNextDaemon:
    async def test_a_stop_goes_on(self, here: Site) -> None:
        here.domains.deaf()
        async with here.daemon() as daemon:
            stop_id, caller = await daemon.under_way("a", STOP, OperationPhase.SIGNALLED)
            deadline = (await stored(daemon, stop_id)).deadline_time
        assert isinstance((await asyncio.gather(caller, return_exceptions=True))[0], ShuttingDown)
        assert here.domain("a").isActive()  # left alone
        del here.domains.instead["shutdown"]
        async with here.daemon() as daemon:
            await daemon.until_state("a", VmState.STOPPED)
            await until(lambda: daemon.vm("a").active_operation_id is None, "its end")
            operation = await stored(daemon, stop_id)
            assert (operation.outcome, operation.deadline_time) == (DONE, deadline)
            assert daemon.vm("a").initiator.operation_id == stop_id
            assert (await daemon.done("a", STOP)).id != stop_id

    async def test_a_stop_that_had_come_to_force_does_not_ask_again(self, here: Site) -> None:
        here.domains.deaf()
        here.domains.instead["destroy"] = for_ever
        async with here.daemon() as daemon:
            stop_id, caller = await daemon.under_way("a", STOP, OperationPhase.SIGNALLED)
            forced = asyncio.create_task(daemon.done("a", FORCED))
            await until(lambda: here.domains.calls.count("destroy") > 0, "it is forced")
        await asyncio.gather(caller, forced, return_exceptions=True)
        del here.domains.instead["destroy"]
        async with here.daemon() as daemon:
            await daemon.until_state("a", VmState.STOPPED)
            await until(lambda: daemon.vm("a").active_operation_id is None, "its end")
            assert (await stored(daemon, stop_id)).outcome is DONE

    async def test_a_stop_whose_vm_went_off_meanwhile_is_done(self, here: Site) -> None:
        here.domains.deaf()
        async with here.daemon() as daemon:
            stop_id, caller = await daemon.under_way("a", STOP, OperationPhase.SIGNALLED)
        await asyncio.wait([caller])
        assert isinstance(caller.exception(), ShuttingDown)
        here.domain("a").destroy()
        async with here.daemon() as daemon:
            await until(lambda: daemon.vm("a").active_operation_id is None, "its end")
            assert (await stored(daemon, stop_id)).phase is OperationPhase.SUCCEEDED
            assert daemon.vm("a").state is VmState.STOPPED

    @pytest.mark.parametrize(
        ("wish", "phase", "call"),
        [
            (STOP, OperationPhase.SIGNALLED, "shutdown"),
            (FORCED, OperationPhase.FORCING, "destroy"),
            (PAUSE, OperationPhase.APPLYING, "pause"),
            (RESUME, OperationPhase.APPLYING, "resume"),
        ],
    )
    async def test_one_that_goes_on_looks_once_before_it_does(
        self, here: Site, wish: Parameters, phase: OperationPhase, call: str
    ) -> None:
        if wish is RESUME:
            here.domain("a").suspend()
        here.domains.instead[call] = for_ever
        async with here.daemon() as daemon:
            operation_id, caller = await daemon.under_way("a", wish, phase)
        await asyncio.wait([caller])
        del here.domains.instead[call]
        made: list[str] = []

        async def make(what: str) -> None:
            made.append(what)

        async with here.daemon(recover=False) as daemon:
            here.domains.before["look_up"] = partial(make, "look_up")
            here.domains.before[call] = partial(make, call)
            daemon.operations.recover()
            await until(lambda: daemon.vm("a").active_operation_id is None, "its end")
            assert (await stored(daemon, operation_id)).outcome is DONE
        assert made[: made.index(call)] == ["look_up"]

    async def test_a_start_that_had_not_begun_is_not_begun(self, here: Site) -> None:
        here.domains.before["start"] = for_ever
        async with here.daemon() as daemon:
            start_id, caller = await daemon.under_way("off", START, OperationPhase.ACCEPTED)
            await asyncio.sleep(0)
        await asyncio.wait([caller])
        here.domains.before.clear()
        here.domains.calls.clear()
        async with here.daemon() as daemon:
            await until(lambda: daemon.vm("off").active_operation_id is None, "its end")
            operation = await stored(daemon, start_id)
            assert operation.phase is OperationPhase.INTERRUPTED
            assert operation.failure is not None
            assert operation.failure.error == "OperationInterrupted"
            assert here.domains.calls == []
            assert daemon.vm("off").state is VmState.STOPPED
            assert (await daemon.done("off", START)).outcome is DONE

    async def test_a_start_that_took_effect_meanwhile_is_done(self, here: Site) -> None:
        here.domains.before["start"] = for_ever
        async with here.daemon() as daemon:
            start_id, caller = await daemon.under_way("off", START, OperationPhase.STARTING)
        await asyncio.wait([caller])
        here.domain("off").create()
        here.domains.calls.clear()
        async with here.daemon() as daemon:
            await until(lambda: daemon.vm("off").active_operation_id is None, "its end")
            assert (await stored(daemon, start_id)).outcome is DONE
            assert here.domains.calls == []

    async def test_before_recovery_nothing_meets_what_was_left_open(self, here: Site) -> None:
        here.domains.deaf()
        async with here.daemon() as daemon:
            stop_id, caller = await daemon.under_way("a", STOP, OperationPhase.SIGNALLED)
        await asyncio.wait([caller])
        async with here.daemon(recover=False) as daemon:
            forced = asyncio.create_task(daemon.done("a", FORCED))
            done, _ = await asyncio.wait([forced], timeout=0.2)
            assert not done
            daemon.operations.recover()
            async with asyncio.timeout(DEADLINE_S):
                assert (await forced).id == stop_id  # it escalated that one

    async def test_of_several_on_one_vm_each_comes_to_its_end(self, here: Site) -> None:
        here.domains.deaf()
        async with here.daemon() as daemon:
            reboot_id, caller = await daemon.under_way("a", REBOOT, OperationPhase.SIGNALLED)
            reboot = await stored(daemon, reboot_id)
            later = reboot.accept_time + SECOND
            stop = replace(reboot, id=OperationId("stop"), parameters=STOP, accept_time=later)
            await daemon.journal.append(stop)
        await asyncio.wait([caller])
        del here.domains.instead["shutdown"]
        async with here.daemon() as daemon:
            assert [each.id for each in daemon.journal.left_open] == [reboot_id, stop.id]
            async with asyncio.timeout(DEADLINE_S):
                for each in daemon.journal.left_open:
                    while (await stored(daemon, each.id)).end_time is None:
                        pass
            assert (await stored(daemon, stop.id)).outcome is DONE
            assert not here.domain("a").isActive()


async def stored(daemon: Daemon, operation_id: OperationId) -> Operation:
    operation = await daemon.journal.operation(operation_id)
    assert operation is not None
    return operation
