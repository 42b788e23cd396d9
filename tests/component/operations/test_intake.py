"""What becomes of requests whose callers leave, or whose daemon does not last."""

from __future__ import annotations

import asyncio
import sqlite3
from contextlib import closing
from datetime import UTC, datetime

import pytest

from tests.component.hypervisor.host import until
from tests.component.operations.gates import Gate, turns, until_joined
from tests.component.operations.site import (
    DEADLINE_S,
    FORCED,
    START,
    STOP,
    Daemon,
    Site,
    somebody,
)
from vmagentd.errors import (
    JournalUnwritable,
    LibvirtRefused,
    LibvirtUnreachable,
    ShuttingDown,
    VmagentdError,
)
from vmagentd.model import (
    AuditFilter,
    LinkLost,
    Operation,
    OperationFilter,
    OperationId,
    OperationOutcome,
    OperationPhase,
    OperationStep,
    OperationVerb,
    VmState,
)
from vmagentd.operations.run import Run

DONE, ALREADY_DONE = OperationOutcome.DONE, OperationOutcome.ALREADY_DONE


def not_yet_accepted(daemon: Daemon) -> Run:
    """Return a Stop of `a` that nobody carries out."""
    now = datetime.now(UTC)
    asked = Operation(
        id=OperationId("op"),
        vm=daemon.vm("a").uuid,
        vm_name="a",
        actor="tester",
        request_id=None,
        parameters=STOP,
        phase=OperationPhase.ACCEPTED,
        steps=(OperationStep(phase=OperationPhase.ACCEPTED, time=now),),
        accept_time=now,
        deadline_time=now,
    )
    return Run(asked, daemon.operations._means)


async def leave(caller: asyncio.Task[object]) -> None:
    caller.cancel()
    await asyncio.wait([caller])


class TestForce:
    async def test_it_comes_too_late_for_a_stop_that_has_failed(
        self, here: Site, daemon: Daemon
    ) -> None:
        """It is written down after the end of that one, which nobody knew of before."""
        asked = Gate()

        async def refuse() -> None:
            await asked()
            raise LibvirtRefused(here.uuid("a"), 1, 10, "no")

        here.domains.instead["shutdown"] = refuse
        _, graceful = await daemon.under_way("a", STOP, OperationPhase.SIGNALLED)
        (run,) = daemon.operations._runs.values()
        async with asyncio.timeout(DEADLINE_S):
            await asked.reached.wait()
            with closing(sqlite3.connect(here.state_dir / "journal.db")) as other:
                other.execute("BEGIN IMMEDIATE")  # nothing is committed while this lasts
                asked.open.set()
                await until(lambda: run.operation.phase.final, "its end is written down")
                forced = asyncio.create_task(daemon.done("a", FORCED, request_id="r"))
                await turns(200)
            failed, stopped = await graceful, await forced
        assert failed.phase is OperationPhase.FAILED
        assert stopped.outcome is DONE
        assert stopped.id != failed.id
        assert await daemon.done("a", FORCED, request_id="r") == stopped

    @pytest.mark.parametrize("request_id", ["r", None])
    async def test_the_next_daemon_knows_of_what_its_daemon_did_not_come_to(
        self, here: Site, request_id: str | None
    ) -> None:
        here.domains.deaf()
        async with here.daemon() as daemon:
            stop_id, graceful = await daemon.under_way("a", STOP, OperationPhase.SIGNALLED)
            # what is committed of a forced Stop before its daemon is killed
            (run,) = daemon.operations._runs.values()
            await run.join(FORCED, caller=somebody(), request_id=request_id)
        await asyncio.wait([graceful])
        assert here.domain("a").isActive()
        async with here.daemon() as daemon, asyncio.timeout(DEADLINE_S):
            await daemon.until_state("a", VmState.STOPPED)
            await until(lambda: daemon.vm("a").active_operation_id is None, "its end")
            stopped = await daemon.journal.operation(stop_id)
            assert stopped is not None
            assert stopped.outcome is DONE
            if request_id is not None:
                assert await daemon.done("a", FORCED, request_id=request_id) == stopped

    async def test_it_joins_in_the_journal_too_what_is_only_being_accepted(
        self, daemon: Daemon
    ) -> None:
        """Of two Stops that waited for the end of a Start the second finds the first like that."""
        run = not_yet_accepted(daemon)
        joining = asyncio.create_task(run.join(FORCED, caller=somebody()))
        await turns(20)
        async with asyncio.timeout(DEADLINE_S):
            await run.accept()
            await joining
            accepted = await daemon.journal.operation(run.operation.id)
        assert accepted is not None
        assert accepted.escalated

    @pytest.mark.parametrize("why", [JournalUnwritable("it was full"), ShuttingDown()])
    @pytest.mark.parametrize("before", [False, True])
    async def test_it_does_not_join_what_could_not_be_accepted(
        self, daemon: Daemon, why: VmagentdError, *, before: bool
    ) -> None:
        run = not_yet_accepted(daemon)
        if before:
            run.abandon(why)
        joining = asyncio.create_task(run.join(FORCED, caller=somebody("other"), request_id="r"))
        await turns(20)
        run.abandon(why)
        async with asyncio.timeout(DEADLINE_S):
            with pytest.raises(type(why)) as caught:
                await joining
            assert caught.value is why
            assert not await daemon.journal.audit_records(AuditFilter(), limit=1)
            # nor is it taken for a repeat: it is a request like any other
            assert (await daemon.done("a", FORCED, actor="other", request_id="r")).outcome is DONE


class TestLeaving:
    @pytest.mark.parametrize("after", range(1, 6))
    async def test_a_stop_that_has_cancelled_a_start_takes_place(
        self, here: Site, daemon: Daemon, after: int
    ) -> None:
        here.domains.before["start"] = libvirt = Gate()
        _, start = await daemon.under_way("off", START, OperationPhase.STARTING)
        async with asyncio.timeout(DEADLINE_S):
            caller = asyncio.create_task(daemon.done("off", STOP))
            await turns(after)
            await leave(caller)
            started = await start
            assert started.failure is not None
            stop_id = OperationId(started.failure.facts["operation_id"])
            await until(lambda: daemon.vm("off").active_operation_id == stop_id, "the Stop")
            libvirt.open.set()
            await until(lambda: daemon.vm("off").active_operation_id is None, "its end")
            stop = await daemon.journal.operation(stop_id)
        assert stop is not None
        assert (stop.verb, stop.phase) == (OperationVerb.STOP, OperationPhase.SUCCEEDED)
        assert daemon.vm("off").state is VmState.STOPPED

    async def test_and_its_repeat_is_the_same_one(self, here: Site, daemon: Daemon) -> None:
        here.domains.before["start"] = libvirt = Gate()
        here.domains.before["look_up"] = look = Gate()  # a Start that is cancelled looks
        look.open.set()
        _, start = await daemon.under_way("off", START, OperationPhase.STARTING)
        look.open.clear()
        look.reached.clear()
        async with asyncio.timeout(DEADLINE_S):
            caller = asyncio.create_task(daemon.done("off", STOP, request_id="r"))
            await look.reached.wait()
            await leave(caller)
            repeat = asyncio.create_task(daemon.done("off", STOP, request_id="r"))
            await turns(20)
            look.open.set()
            await start
            libvirt.open.set()
            stopped = await repeat
        operations = await daemon.journal.operations(OperationFilter(), limit=10)
        assert [o.id for o in operations if o.verb is OperationVerb.STOP] == [stopped.id]
        assert len(await daemon.journal.audit_records(AuditFilter(), limit=10)) == 2

    @pytest.mark.parametrize("after", range(3))
    async def test_what_is_said_to_be_cancelled_is(
        self, here: Site, daemon: Daemon, after: int
    ) -> None:
        here.domains.deaf()
        stop_id, stop = await daemon.under_way("a", STOP, OperationPhase.SIGNALLED)
        async with asyncio.timeout(DEADLINE_S):
            caller = asyncio.create_task(
                daemon.operations.cancel(stop_id, caller=somebody("other"))
            )
            await turns(1 + after)  # it is handed over, and not yet committed
            await leave(caller)
            await until_joined(daemon, "other")
            assert (await stop).phase is OperationPhase.CANCELLED


class TestRepeatBeforeRecovery:
    async def test_it_is_told_the_end(self, here: Site) -> None:
        here.domains.deaf()
        async with here.daemon() as daemon:
            caller = asyncio.create_task(daemon.done("a", STOP, request_id="r"))
            await until(lambda: "shutdown" in here.domains.calls, "the guest is asked")
        await asyncio.wait([caller])
        here.domains.instead.clear()
        async with here.daemon(recover=False) as daemon, asyncio.timeout(DEADLINE_S):
            repeat = asyncio.create_task(daemon.done("a", STOP, request_id="r"))
            done, _ = await asyncio.wait([repeat], timeout=0.2)
            assert not done
            daemon.operations.recover()
            assert (await repeat).outcome is DONE

    async def test_while_libvirt_cannot_be_asked_it_is_told_so(self, here: Site) -> None:
        here.domains.deaf()
        async with here.daemon() as daemon:
            caller = asyncio.create_task(daemon.done("a", STOP, request_id="r"))
            await until(lambda: "shutdown" in here.domains.calls, "the guest is asked")
        await asyncio.wait([caller])
        async with here.daemon(recover=False) as daemon:
            lost = LinkLost(time=datetime.now(UTC), cause="it ended", link=0)
            await daemon.journal.append(lost)
            with pytest.raises(LibvirtUnreachable):
                await daemon.done("a", STOP, request_id="r")
