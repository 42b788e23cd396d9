"""Pause, Resume and Reboot, each from every state; and what CancelOperation ends."""

from __future__ import annotations

import asyncio
import sqlite3
from contextlib import closing
from dataclasses import replace
from datetime import UTC, datetime

import pytest

from tests.component.hypervisor.host import until
from tests.component.operations.gates import Gate, until_joined
from tests.component.operations.site import (
    DEADLINE_S,
    FORCED,
    PAUSE,
    REBOOT,
    RESET,
    RESUME,
    SECOND,
    START,
    STOP,
    Daemon,
    Site,
    for_ever,
    nothing,
    somebody,
)
from vmagentd.errors import (
    LibvirtRefused,
    LibvirtUnreachable,
    OperationInProgress,
    OperationNotFound,
    OutcomeUnknown,
)
from vmagentd.model import (
    Event,
    EventKind,
    InitiatorKind,
    LinkLost,
    OnGraceExpired,
    Operation,
    OperationId,
    OperationOutcome,
    OperationPhase,
    Parameters,
    RawPair,
    Reason,
    RebootParameters,
    VmState,
)

DONE, ALREADY_DONE = OperationOutcome.DONE, OperationOutcome.ALREADY_DONE


def phases(steps: list[Operation]) -> list[str]:
    return [str(step.phase) for step in steps]


def error_of(operation: Operation) -> str:
    assert operation.failure is not None
    return operation.failure.error


class TestRefused:
    @pytest.mark.parametrize(
        ("call", "wish", "error"),
        [
            ("shutdown", STOP, None),
            ("destroy", FORCED, None),
            ("reboot", REBOOT, "VmInState"),
            ("reset", RESET, "VmInState"),
            ("pause", PAUSE, "VmInState"),
        ],
    )
    async def test_it_goes_off_while_libvirt_is_asked(
        self, here: Site, daemon: Daemon, call: str, wish: Parameters, error: str | None
    ) -> None:
        """Libvirt then tells how its connection to the process broke, and not that it is off."""

        async def breaks() -> None:
            here.domain("a").destroy()
            raise LibvirtRefused(here.uuid("a"), 38, 10, "Unable to read from monitor")

        here.domains.instead[call] = breaks
        operation = await daemon.done("a", wish)
        assert (operation.failure.error if operation.failure else None) == error
        assert daemon.vm("a").state is VmState.STOPPED

    @pytest.mark.parametrize(("call", "wish"), [("shutdown", STOP), ("destroy", FORCED)])
    async def test_libvirt_refuses_while_it_stays_up(
        self, here: Site, daemon: Daemon, call: str, wish: Parameters
    ) -> None:
        async def refuse() -> None:
            raise LibvirtRefused(here.uuid("a"), 1, 10, "it does not like to")

        here.domains.instead[call] = refuse
        assert error_of(await daemon.done("a", wish)) == "LibvirtRefused"
        assert daemon.vm("a").state is VmState.RUNNING


class TestPauseAndResume:
    async def test_there_and_back(self, here: Site, daemon: Daemon) -> None:
        steps = await daemon.steps("a", PAUSE)
        assert phases(steps) == ["ACCEPTED", "APPLYING", "SUCCEEDED"]
        vm = daemon.vm("a")
        assert (vm.state, vm.reason) == (VmState.PAUSED, Reason.PAUSED_BY_USER)
        assert (vm.initiator.actor, vm.initiator.operation_id) == ("tester", steps[0].id)
        resumed = await daemon.done("a", RESUME)
        vm = daemon.vm("a")
        assert (vm.state, vm.reason) == (VmState.RUNNING, Reason.UNPAUSED)
        assert vm.initiator.operation_id == resumed.id
        assert here.domains.calls == ["pause", "resume"]

    async def test_as_it_is_already(self, here: Site, daemon: Daemon) -> None:
        assert (await daemon.done("a", RESUME)).outcome is ALREADY_DONE
        here.domain("a").suspend()
        await daemon.until_state("a", VmState.PAUSED)
        assert (await daemon.done("a", PAUSE)).outcome is ALREADY_DONE
        assert here.domains.calls == []
        assert daemon.vm("a").initiator.kind is InitiatorKind.OUT_OF_BAND

    async def test_as_it_is_without_our_knowledge(self, here: Site, daemon: Daemon) -> None:
        await here.in_silence(here.domain("a").suspend)
        assert daemon.vm("a").state is VmState.RUNNING  # so it was thought
        assert (await daemon.done("a", RESUME)).outcome is DONE
        here.domain("a").suspend()
        await daemon.until_state("a", VmState.PAUSED)
        await here.in_silence(here.domain("a").resume)
        assert (await daemon.done("a", RESUME)).outcome is ALREADY_DONE
        assert daemon.vm("a").state is VmState.RUNNING

    @pytest.mark.parametrize("wish", [PAUSE, RESUME, REBOOT, RESET])
    async def test_of_a_vm_that_is_off(self, daemon: Daemon, wish: Parameters) -> None:
        operation = await daemon.done("off", wish)
        assert error_of(operation) == "VmInState"
        assert operation.failure is not None
        assert operation.failure.facts["state"] == "STOPPED"

    @pytest.mark.parametrize("wish", [PAUSE, RESUME, REBOOT, RESET])
    async def test_of_a_vm_that_is_gone(
        self, here: Site, daemon: Daemon, wish: Parameters
    ) -> None:
        await here.in_silence(here.domain("off").undefine)
        assert error_of(await daemon.done("off", wish)) == "VmNotFound"
        assert daemon.vm("off").state is VmState.GONE

    async def test_libvirt_does_not_answer_and_did_it(self, here: Site, daemon: Daemon) -> None:
        async def pause() -> None:
            here.domain("a").suspend()
            raise OutcomeUnknown(here.uuid("a"), "suspend", "no answer")

        here.domains.instead["pause"] = pause
        steps = await daemon.steps("a", PAUSE)
        assert phases(steps) == ["ACCEPTED", "APPLYING", "WAITING", "SUCCEEDED"]

    async def test_libvirt_does_not_answer_in_time(self, here: Site, daemon: Daemon) -> None:
        here.domains.instead["pause"] = for_ever
        operation = await daemon.done("a", replace(PAUSE, timeout=0.2 * SECOND))
        assert error_of(operation) == "OperationTimedOut"
        assert daemon.vm("a").state is VmState.RUNNING

    async def test_it_goes_off_instead(self, here: Site, daemon: Daemon) -> None:
        async def destroy() -> None:
            here.domain("a").destroy()

        here.domains.before["pause"] = destroy
        assert error_of(await daemon.done("a", PAUSE)) == "VmInState"

    async def test_one_goes_on_in_the_next_daemon(self, here: Site) -> None:
        here.domains.instead["pause"] = for_ever
        async with here.daemon() as daemon:
            pause_id, caller = await daemon.under_way("a", PAUSE, OperationPhase.APPLYING)
        await asyncio.wait([caller])
        del here.domains.instead["pause"]
        async with here.daemon() as daemon:
            operation = await over(daemon, "a", pause_id)
            assert operation.outcome is DONE
            assert daemon.vm("a").initiator.operation_id == pause_id

    @pytest.mark.parametrize(
        ("wish", "call", "state"),
        [(PAUSE, "pause", VmState.RUNNING), (RESUME, "resume", VmState.PAUSED)],
    )
    async def test_one_whose_time_is_over_is_not_done_late_by_the_next_daemon(
        self, here: Site, wish: Parameters, call: str, state: VmState
    ) -> None:
        if state is VmState.PAUSED:
            here.domain("a").suspend()
        here.domains.instead[call] = for_ever
        async with here.daemon() as daemon:
            operation_id, caller = await daemon.under_way("a", wish, OperationPhase.APPLYING)
        await asyncio.wait([caller])
        here.domains.instead.clear()
        here.domains.calls.clear()
        since_boot = here.clock.since_boot
        here.clock = replace(here.clock, since_boot=lambda: since_boot() + 60 * SECOND)
        async with here.daemon() as daemon:
            assert error_of(await over(daemon, "a", operation_id)) == "OperationTimedOut"
            assert here.domains.calls == []
            assert daemon.vm("a").state is state


class TestReboot:
    @pytest.mark.parametrize(
        ("wish", "phase", "call"), [(REBOOT, "SIGNALLED", "reboot"), (RESET, "FORCING", "reset")]
    )
    async def test_a_driver_without_an_event_for_it(
        self, here: Site, daemon: Daemon, wish: Parameters, phase: str, call: str
    ) -> None:
        before = daemon.vm("a")
        steps = await daemon.steps("a", wish)
        assert phases(steps) == ["ACCEPTED", phase, "SUCCEEDED"]
        assert steps[-1].outcome is DONE
        assert here.domains.calls == [call]
        assert daemon.vm("a").incarnation == before.incarnation

    async def test_a_deaf_guest_is_left_running(self, here: Site, daemon: Daemon) -> None:
        async def deaf() -> None:
            daemon.let_time_pass()

        here.domains.instead["reboot"] = deaf
        operation = await daemon.done("a", REBOOT)
        assert error_of(operation) == "GraceExpired"
        assert here.domains.calls == ["reboot"]

    async def test_a_deaf_guest_is_reset_if_so_wished(self, here: Site, daemon: Daemon) -> None:
        async def deaf() -> None:
            daemon.let_time_pass()

        here.domains.instead["reboot"] = deaf
        wish = replace(REBOOT, on_grace_expired=OnGraceExpired.FORCE)
        steps = await daemon.steps("a", wish)
        assert phases(steps) == ["ACCEPTED", "SIGNALLED", "FORCING", "SUCCEEDED"]

    async def test_force_escalates(self, here: Site, daemon: Daemon) -> None:
        here.domains.deaf()
        graceful_id, graceful = await daemon.under_way("a", REBOOT, OperationPhase.SIGNALLED)
        forced = await daemon.done("a", RESET)
        assert (forced.id, forced.outcome) == (graceful_id, DONE)
        assert await graceful == forced

    async def test_force_escalates_while_the_guest_is_being_asked(
        self, here: Site, daemon: Daemon
    ) -> None:
        here.domains.instead["reboot"] = for_ever
        _, graceful = await daemon.under_way("a", REBOOT, OperationPhase.SIGNALLED)
        await until(lambda: "reboot" in here.domains.calls, "the guest is being asked")
        assert (await daemon.done("a", RESET)).outcome is DONE
        await graceful

    async def test_a_guest_that_goes_off_instead(self, here: Site, daemon: Daemon) -> None:
        here.domains.deaf()
        _, reboot = await daemon.under_way("a", REBOOT, OperationPhase.SIGNALLED)
        here.domain("a").destroy()
        async with asyncio.timeout(DEADLINE_S):
            operation = await reboot
        assert error_of(operation) == "VmInState"
        assert operation.failure is not None
        assert operation.failure.facts["state"] == "STOPPED"

    @pytest.mark.parametrize("wish", [REBOOT, RESET])
    async def test_of_a_paused_guest(self, here: Site, daemon: Daemon, wish: Parameters) -> None:
        here.domain("a").suspend()
        await daemon.until_state("a", VmState.PAUSED)
        assert error_of(await daemon.done("a", wish)) == "VmPaused"
        assert here.domains.calls == []

    @pytest.mark.parametrize("then", OnGraceExpired)
    async def test_one_that_may_have_come_while_nobody_looked_is_not_made_twice(
        self, here: Site, daemon: Daemon, then: OnGraceExpired
    ) -> None:
        here.domains.deaf()
        wish = replace(REBOOT, on_grace_expired=then)
        _, reboot = await daemon.under_way("a", wish, OperationPhase.SIGNALLED)
        await until(lambda: here.domains.calls == ["reboot"], "the guest was asked")
        lost = LinkLost(time=datetime.now(UTC), cause="it ended", link=0)
        await daemon.journal.append(lost)
        await daemon.journal.append(await here.domains.survey())
        assert daemon.journal.link.connected
        daemon.let_time_pass()._interrupt()  # it waits
        async with asyncio.timeout(DEADLINE_S):
            assert error_of(await reboot) == "OutcomeUnknown"
        assert here.domains.calls == ["reboot"]

    async def test_one_that_comes_while_the_next_press_waits_for_the_disk_is_not_made_twice(
        self, here: Site
    ) -> None:
        here.domains.deaf()
        here.times = replace(here.times, press_interval=SECOND)
        async with here.daemon() as daemon:
            _, reboot = await daemon.under_way("a", REBOOT, OperationPhase.SIGNALLED)
            await until(lambda: here.domains.calls == ["reboot"], "the guest was asked")
            (run,) = daemon.operations._runs.values()
            path = here.state_dir / "journal.db"
            with closing(sqlite3.connect(path, isolation_level=None)) as other:
                other.execute("BEGIN IMMEDIATE")
                here.take(
                    Event(
                        number=here.connection.events_taken + 1,
                        vm=here.uuid("a"),
                        name="a",
                        kind=EventKind.REBOOT,
                        raw=RawPair(-1, 0),
                        run_id=here.domain("a").ID(),
                        observe_time=datetime.now(UTC),
                    )
                )
                await until(lambda: run.operation.steps[-1].attempt == 2, "the next press waits")
            async with asyncio.timeout(DEADLINE_S):
                assert (await reboot).outcome is DONE
            assert here.domains.calls == ["reboot"]

    @pytest.mark.parametrize("force_wanted", [False, True])
    async def test_it_is_not_asked_again_by_the_next_daemon(
        self, here: Site, *, force_wanted: bool
    ) -> None:
        here.domains.deaf()
        async with here.daemon() as daemon:
            reboot_id, caller = await daemon.under_way("a", REBOOT, OperationPhase.SIGNALLED)
            if force_wanted:
                (run,) = daemon.operations._runs.values()
                await run.join(RESET, caller=somebody())  # it has not come to it yet
        await asyncio.wait([caller])
        here.domains.calls.clear()
        since_boot = here.clock.since_boot
        here.clock = replace(here.clock, since_boot=lambda: since_boot() + 58 * SECOND)
        async with here.daemon() as daemon:
            assert error_of(await over(daemon, "a", reboot_id)) == "OutcomeUnknown"
            assert here.domains.calls == []

    @pytest.mark.parametrize(("wish", "call"), [(REBOOT, "reboot"), (RESET, "reset")])
    async def test_nobody_knows_of_one_that_ended_with_its_daemon_in_the_call(
        self, here: Site, wish: RebootParameters, call: str
    ) -> None:
        in_call = asyncio.Event()

        async def hang() -> None:
            in_call.set()
            await for_ever()

        here.domains.instead[call] = hang
        async with here.daemon() as daemon:
            reboot_id, caller = await daemon.under_way("a", wish, OperationPhase.ACCEPTED)
            async with asyncio.timeout(DEADLINE_S):
                await in_call.wait()
            stored = await daemon.journal.operation(reboot_id)
            assert stored is not None
            assert stored.phase is not OperationPhase.ACCEPTED
        await asyncio.wait([caller])
        here.domains.calls.clear()
        since_boot = here.clock.since_boot
        here.clock = replace(here.clock, since_boot=lambda: since_boot() + 60 * SECOND)
        async with here.daemon() as daemon:
            assert error_of(await over(daemon, "a", reboot_id)) == "OutcomeUnknown"
            assert here.domains.calls == []

    @pytest.mark.parametrize(
        ("wish", "phase"),
        [(REBOOT, OperationPhase.SIGNALLED), (RESET, OperationPhase.FORCING)],
    )
    @pytest.mark.parametrize("wanted_before", [False, True])
    async def test_one_of_an_earlier_daemon_is_forced_by_who_wants_that_now(
        self, here: Site, wish: RebootParameters, phase: OperationPhase, *, wanted_before: bool
    ) -> None:
        here.domains.instead["reboot"] = here.domains.instead["reset"] = for_ever
        async with here.daemon() as daemon:
            reboot_id, caller = await daemon.under_way("a", wish, phase)
            if wanted_before:
                (run,) = daemon.operations._runs.values()
                await run.join(RESET, caller=somebody())
        await asyncio.wait([caller])
        here.domains.instead.clear()
        here.domains.calls.clear()
        async with here.daemon() as daemon:
            assert here.domains.calls == []
            forced = await daemon.done("a", RESET)
            assert (forced.id, forced.outcome) == (reboot_id, DONE)
            assert here.domains.calls == ["reset"]

    @pytest.mark.parametrize("wish", [REBOOT, RESET])
    async def test_one_that_had_not_begun_is_forced_by_who_wants_that_now(
        self, here: Site, wish: RebootParameters
    ) -> None:
        here.domains.before["look_up"] = look = Gate()
        async with here.daemon() as daemon:
            reboot_id, caller = await daemon.under_way("a", wish, OperationPhase.ACCEPTED)
        await asyncio.wait([caller])
        async with here.daemon() as daemon, asyncio.timeout(DEADLINE_S):
            forced = asyncio.create_task(daemon.done("a", RESET, actor="other"))
            await until_joined(daemon, "other")
            look.open.set()
            operation = await forced
            assert (operation.id, operation.outcome) == (reboot_id, DONE)
            assert here.domains.calls == ["reset"]

    @pytest.mark.parametrize("wish", [REBOOT, RESET])
    async def test_one_that_had_not_begun_is_not_begun(
        self, here: Site, wish: RebootParameters
    ) -> None:
        here.domains.before["look_up"] = for_ever
        async with here.daemon() as daemon:
            reboot_id, caller = await daemon.under_way("a", wish, OperationPhase.ACCEPTED)
        await asyncio.wait([caller])
        del here.domains.before["look_up"]
        async with here.daemon() as daemon:
            operation = await over(daemon, "a", reboot_id)
            assert operation.phase is OperationPhase.INTERRUPTED
            assert here.domains.calls == []


class TestMeeting:
    @pytest.mark.parametrize("stop", [STOP, FORCED])
    @pytest.mark.parametrize(
        ("wish", "phase"),
        [(PAUSE, OperationPhase.APPLYING), (REBOOT, OperationPhase.SIGNALLED)],
    )
    async def test_a_stop_cancels(
        self,
        daemon: Daemon,
        stop: Parameters,
        wish: Parameters,
        phase: OperationPhase,
    ) -> None:
        instead = daemon.site.domains.instead
        instead["reboot"], instead["pause"] = nothing, for_ever
        _, first = await daemon.under_way("a", wish, phase)
        assert (await daemon.done("a", stop)).outcome is DONE
        assert error_of(await first) == "CancelledByStop"

    async def test_others_are_refused(self, here: Site, daemon: Daemon) -> None:
        here.domains.deaf()
        first_id, first = await daemon.under_way("a", REBOOT, OperationPhase.SIGNALLED)
        for wish in (START, PAUSE, RESUME):
            with pytest.raises(OperationInProgress):
                await daemon.done("a", wish)
        await daemon.operations.cancel(first_id, caller=somebody("other"))
        await first


class TestMigratedAway:
    async def test_a_start_needs_force(self, here: Site, daemon: Daemon) -> None:
        left = Event(
            number=1,
            vm=here.uuid("off"),
            name="off",
            kind=EventKind.STOPPED_MIGRATED,
            raw=RawPair(5, 3),
            run_id=None,
            observe_time=daemon.vm("off").state_time,
        )
        await daemon.journal.append(replace(left, kind=EventKind.STARTED_RUNNING))
        await daemon.journal.append(left)
        assert daemon.vm("off").state is VmState.MIGRATED_AWAY
        assert error_of(await daemon.done("off", START)) == "VmMigratedAway"
        assert not here.domain("off").isActive()
        assert (await daemon.done("off", STOP)).outcome is ALREADY_DONE
        assert (await daemon.done("off", replace(START, force=True))).outcome is DONE
        assert daemon.vm("off").state is VmState.RUNNING


class TestCrashed:
    async def test_a_guest_that_crashes_while_it_is_asked_is_not_waited_for(
        self, here: Site, daemon: Daemon
    ) -> None:
        here.domains.deaf()
        _, stop = await daemon.under_way("a", STOP, OperationPhase.SIGNALLED)
        crash = Event(
            number=here.connection.events_taken + 1,
            vm=here.uuid("a"),
            name="a",
            kind=EventKind.CRASHED_PANICKED,
            raw=RawPair(8, 0),
            run_id=here.domain("a").ID(),
            observe_time=daemon.vm("a").state_time,
        )
        await daemon.journal.append(crash)
        async with asyncio.timeout(DEADLINE_S):
            assert error_of(await stop) == "VmCrashed"


class TestCancel:
    async def test_one_that_waits_for_its_guest(self, here: Site, daemon: Daemon) -> None:
        here.domains.deaf()
        stop_id, stop = await daemon.under_way("a", STOP, OperationPhase.SIGNALLED)
        async with asyncio.timeout(DEADLINE_S):
            operation = await daemon.operations.cancel(stop_id, caller=somebody("other"))
        assert operation.phase is OperationPhase.CANCELLED
        assert error_of(operation) == "OperationCancelled"
        assert operation.failure is not None
        assert operation.failure.facts["actor"] == "other"
        assert await daemon.journal.operation(stop_id) == operation
        assert await stop == operation
        assert daemon.vm("a").state is VmState.RUNNING
        assert daemon.vm("a").active_operation_id is None

    async def test_one_that_libvirt_is_busy_with(self, here: Site, daemon: Daemon) -> None:
        gate = asyncio.Event()
        here.domains.before["start"] = gate.wait
        start_id, start = await daemon.under_way("off", START, OperationPhase.STARTING)
        async with asyncio.timeout(DEADLINE_S):
            operation = await daemon.operations.cancel(start_id, caller=somebody("other"))
        assert operation.phase is OperationPhase.CANCELLED
        assert daemon.vm("off").state is VmState.STOPPED
        gate.set()  # what libvirt does goes on, and the journal tells what comes of it
        await daemon.until_state("off", VmState.RUNNING)
        assert await start == operation

    async def test_one_that_is_over_is_as_it_was(self, daemon: Daemon) -> None:
        done = await daemon.done("a", FORCED)
        assert await daemon.operations.cancel(done.id, caller=somebody("other")) == done

    async def test_one_that_was_never_heard_of(self, daemon: Daemon) -> None:
        with pytest.raises(OperationNotFound):
            await daemon.operations.cancel(OperationId("nobody"), caller=somebody("other"))

    async def test_before_it_is_known_how_the_vms_are(self, here: Site) -> None:
        here.domains.deaf()
        async with here.daemon() as daemon:
            over_id = (await daemon.done("b", FORCED)).id
            stop_id, waits = await daemon.under_way("a", STOP, OperationPhase.SIGNALLED)
        await asyncio.wait([waits])
        async with here.daemon(recover=False) as daemon:
            time = daemon.vm("a").state_time
            await daemon.journal.append(LinkLost(time=time, cause="it ended", link=1))
            over = await daemon.operations.cancel(over_id, caller=somebody("other"))
            assert over.outcome is DONE
            with pytest.raises(LibvirtUnreachable):
                await daemon.operations.cancel(stop_id, caller=somebody("other"))

    async def test_of_an_earlier_daemon(self, here: Site) -> None:
        here.domains.deaf()
        async with here.daemon() as daemon:
            stop_id, caller = await daemon.under_way("a", STOP, OperationPhase.SIGNALLED)
        await asyncio.wait([caller])
        async with here.daemon() as daemon:
            operation = await daemon.operations.cancel(stop_id, caller=somebody("other"))
            assert operation.phase is OperationPhase.CANCELLED


async def over(daemon: Daemon, name: str, operation_id: OperationId) -> Operation:
    await until(lambda: daemon.vm(name).active_operation_id is None, "its end")
    operation = await daemon.journal.operation(operation_id)
    assert operation is not None
    return operation
