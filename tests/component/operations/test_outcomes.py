"""How a Start or a Stop ends.

At each end `Daemon.steps` checks that the journal tells the truth.
"""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from tests.component.hypervisor.host import until
from tests.component.operations.site import (
    DEADLINE_S,
    FORCED,
    PAUSE,
    SECOND,
    START,
    STOP,
    TIMES,
    Daemon,
    Site,
    for_ever,
    nothing,
    site,
    unreachable,
)
from vmagentd.errors import LibvirtRefused, LibvirtUnreachable, OutcomeUnknown, VmNotFound
from vmagentd.model import (
    InitiatorKind,
    LinkLost,
    OnGraceExpired,
    Operation,
    OperationOutcome,
    OperationPhase,
    Parameters,
    Reason,
    Revision,
    Source,
    StopParameters,
    Transition,
    TransitionKind,
    VmState,
    VmUuid,
)

if TYPE_CHECKING:
    from pathlib import Path

DONE, ALREADY_DONE = OperationOutcome.DONE, OperationOutcome.ALREADY_DONE
MISSING = VmUuid("12345678-0000-4000-8000-000000000000")


def phases(steps: list[Operation]) -> list[str]:
    return [step.phase for step in steps]


def error_of(operation: Operation) -> str:
    assert operation.phase is OperationPhase.FAILED
    assert operation.failure is not None
    return operation.failure.error


class TestDone:
    async def test_a_stop_asks_the_guest(self, daemon: Daemon) -> None:
        steps = await daemon.steps("a", STOP)
        assert phases(steps) in (
            ["ACCEPTED", "SIGNALLED", "SUCCEEDED"],
            ["ACCEPTED", "SIGNALLED", "WAITING", "SUCCEEDED"],
        )
        assert steps[-1].outcome is DONE
        vm = daemon.vm("a")
        assert vm.state is VmState.STOPPED
        assert vm.initiator.kind is InitiatorKind.CLIENT
        assert (vm.initiator.actor, vm.initiator.operation_id) == ("tester", steps[0].id)
        assert daemon.site.domains.calls == ["shutdown"]

    async def test_a_forced_stop_does_not_ask(self, daemon: Daemon) -> None:
        steps = await daemon.steps("a", FORCED)
        assert phases(steps) == ["ACCEPTED", "FORCING", "SUCCEEDED"]
        assert steps[-1].outcome is DONE
        vm = daemon.vm("a")
        assert (vm.state, vm.reason) == (VmState.STOPPED, Reason.FORCED)
        assert vm.initiator.operation_id == steps[0].id
        assert daemon.site.domains.calls == ["destroy"]

    async def test_a_start(self, daemon: Daemon) -> None:
        steps = await daemon.steps("off", START)
        assert phases(steps) == ["ACCEPTED", "STARTING", "SUCCEEDED"]
        assert steps[-1].outcome is DONE
        vm = daemon.vm("off")
        assert (vm.state, vm.reason, vm.incarnation) == (VmState.RUNNING, Reason.BOOTED, 1)
        assert vm.initiator.operation_id == steps[0].id

    @pytest.mark.parametrize(
        ("ref", "wish", "step"), [("off", START, "STARTING"), ("a", FORCED, "FORCING")]
    )
    async def test_what_the_journal_knows_is_not_asked_again(
        self, here: Site, daemon: Daemon, ref: str, wish: Parameters, step: str
    ) -> None:
        here.domains.before["look_up"] = for_ever
        before = daemon.journal.head
        steps = await daemon.steps(ref, wish)
        assert phases(steps) == ["ACCEPTED", step, "SUCCEEDED"]
        assert steps[-1].outcome is DONE
        # accepted as such, though the first step was committed with it
        accepted = (await daemon.journal.page(before))[0]
        assert (accepted.operation_id, accepted.operation_phase) == (steps[0].id, "ACCEPTED")

    async def test_by_uuid_in_any_spelling(self, daemon: Daemon) -> None:
        ref = daemon.site.uuid("a").upper()
        assert (await daemon.done(ref, STOP)).outcome is DONE

    async def test_the_whole_story_is_in_the_journal(self, daemon: Daemon) -> None:
        before = daemon.journal.head
        operation = await daemon.done("a", FORCED)
        story = await daemon.journal.page(before)
        assert [(t.kind, t.vm.state) for t in story] == [
            (TransitionKind.OPERATION, VmState.RUNNING),
            (TransitionKind.STATE, VmState.STOPPED),
            (TransitionKind.OPERATION, VmState.STOPPED),
        ]
        assert [t.vm.active_operation_id for t in story] == [operation.id, operation.id, None]
        assert [t.operation_phase for t in story] == ["ACCEPTED", None, "SUCCEEDED"]
        assert await daemon.journal.operation(operation.id) == operation

    async def test_each_step_is_committed_when_it_is_told(self, daemon: Daemon) -> None:
        async for step in daemon.ask("a", FORCED):
            stored = await daemon.journal.operation(step.id)
            assert stored is not None
            assert stored.steps[: len(step.steps)] == step.steps

    async def test_a_transient_vm_ends_stopped_then_gone(self, here: Site, daemon: Daemon) -> None:
        here.domain("a").undefine()
        asked = daemon.vm("a").verify_time
        await until(
            lambda: not daemon.vm("a").persistent and daemon.vm("a").verify_time != asked,
            "the look-up after the event",
        )
        before = daemon.journal.head
        operation = await daemon.done("a", FORCED)
        assert operation.outcome is DONE
        states = [
            t.vm.state
            for t in await daemon.journal.page(before)
            if t.kind is TransitionKind.STATE and t.vm.name == "a"
        ]
        assert states == [VmState.STOPPED, VmState.GONE]


class TestAlreadyDone:
    @pytest.mark.parametrize(("ref", "wish"), [("a", START), ("off", STOP), ("off", FORCED)])
    async def test_it_is_as_wished(self, daemon: Daemon, ref: str, wish: Parameters) -> None:
        steps = await daemon.steps(ref, wish)
        assert phases(steps) == ["ACCEPTED", "SUCCEEDED"]
        assert steps[-1].outcome is ALREADY_DONE
        assert daemon.site.domains.calls == []

    @pytest.mark.parametrize("wish", [STOP, FORCED])
    async def test_the_journal_is_brought_in_line(
        self, here: Site, daemon: Daemon, wish: StopParameters
    ) -> None:
        await here.in_silence(lambda: (here.domain("a").destroy(), here.domain("off").create()))
        assert daemon.vm("a").state is VmState.RUNNING  # so it was thought
        before = daemon.journal.head
        assert (await daemon.done("a", wish)).outcome is ALREADY_DONE
        assert (await daemon.done("off", START)).outcome is ALREADY_DONE
        found = [t for t in await daemon.journal.page(before) if t.kind is TransitionKind.STATE]
        assert [(t.vm.name, t.vm.state) for t in found] == [
            ("a", VmState.STOPPED),
            ("off", VmState.RUNNING),
        ]
        assert {t.source for t in found} == {Source.OPERATION}


class TestNotThere:
    @pytest.mark.parametrize("wish", [START, STOP, FORCED])
    @pytest.mark.parametrize("ref", ["nobody", MISSING])
    async def test_never_heard_of(self, daemon: Daemon, ref: str, wish: Parameters) -> None:
        before = daemon.journal.head
        with pytest.raises(VmNotFound) as caught:
            await daemon.done(ref, wish)
        assert caught.value.last is None
        assert daemon.journal.head == before

    @pytest.mark.parametrize("by", ["name", "uuid"])
    async def test_not_heard_of_yet(self, here: Site, daemon: Daemon, by: str) -> None:
        await here.in_silence(lambda: here.define("new"))
        assert daemon.journal.find("new") is None
        ref = "new" if by == "name" else here.uuid("new")
        assert (await daemon.done(ref, START)).outcome is DONE
        assert daemon.vm("new").state is VmState.RUNNING

    @pytest.mark.parametrize("name", ["a", "off"])
    async def test_undefined_behind_our_back_a_start_fails(
        self, here: Site, daemon: Daemon, name: str
    ) -> None:
        await here.in_silence(lambda: vanish(here, name))
        before = daemon.journal.head
        operation = await daemon.done(name, START)
        assert error_of(operation) == "VmNotFound"
        assert operation.failure is not None
        assert "must be recreated" in operation.failure.message
        assert operation.failure.facts["last_state"] == "GONE"
        gone = [t for t in await daemon.journal.page(before) if t.kind is TransitionKind.STATE]
        assert [t.vm.state for t in gone] == [VmState.GONE]
        # and again: it is known to be gone now
        assert error_of(await daemon.done(name, START)) == "VmNotFound"

    @pytest.mark.parametrize("wish", [STOP, FORCED])
    async def test_undefined_behind_our_back_a_stop_holds(
        self, here: Site, daemon: Daemon, wish: StopParameters
    ) -> None:
        await here.in_silence(lambda: vanish(here, "a"))
        assert (await daemon.done("a", wish)).outcome is ALREADY_DONE
        assert daemon.vm("a").state is VmState.GONE
        assert (await daemon.done("a", wish)).outcome is ALREADY_DONE

    async def test_it_vanishes_between_the_look_and_the_start(
        self, here: Site, daemon: Daemon
    ) -> None:
        async def meddle() -> None:
            await here.in_silence(here.domain("off").undefine)

        here.domains.before["start"] = meddle
        assert error_of(await daemon.done("off", START)) == "VmNotFound"
        assert daemon.vm("off").state is VmState.GONE


class TestInTheWay:
    async def test_a_paused_vm_is_neither_started_nor_asked(
        self, here: Site, daemon: Daemon
    ) -> None:
        here.domain("a").suspend()
        await daemon.until_state("a", VmState.PAUSED)
        assert error_of(await daemon.done("a", START)) == "VmPaused"
        assert error_of(await daemon.done("a", STOP)) == "VmPaused"
        assert daemon.vm("a").state is VmState.PAUSED
        assert here.domains.calls == []
        assert (await daemon.done("a", FORCED)).outcome is DONE

    async def test_while_blind_nothing_is_accepted(self, daemon: Daemon) -> None:
        time = daemon.vm("a").state_time
        await daemon.journal.append(LinkLost(time=time, cause="it ended", link=1))
        before = daemon.journal.head
        for wish in (START, STOP):
            with pytest.raises(LibvirtUnreachable, match="it ended"):
                await daemon.done("a", wish)
        assert daemon.journal.head == before

    async def test_libvirt_refuses_the_start(self, here: Site, daemon: Daemon) -> None:
        async def refuse() -> None:
            raise LibvirtRefused(here.uuid("off"), 1, 10, "no such disk")

        here.domains.instead["start"] = refuse
        operation = await daemon.done("off", START)
        assert error_of(operation) == "StartFailed"
        error = daemon.vm("off").last_start_error
        assert error is not None
        assert (error.libvirt_code, error.message) == (1, "no such disk")
        del here.domains.instead["start"]
        await daemon.done("off", START)
        assert daemon.vm("off").last_start_error is None

    async def test_what_the_driver_cannot_do_is_told_as_such(self, daemon: Daemon) -> None:
        operation = await daemon.done("off", replace(START, paused=True))
        assert error_of(operation) == "LibvirtUnsupported"
        assert daemon.vm("off").state is VmState.STOPPED

    async def test_somebody_else_starts_it_first(self, here: Site, daemon: Daemon) -> None:
        async def meddle() -> None:
            here.domain("off").create()

        here.domains.before["start"] = meddle
        assert (await daemon.done("off", START)).outcome is ALREADY_DONE
        assert daemon.vm("off").incarnation == 1

    async def test_somebody_else_stops_it_first(self, here: Site, daemon: Daemon) -> None:
        async def meddle() -> None:
            here.domain("a").destroy()

        here.domains.before["shutdown"] = here.domains.before["destroy"] = meddle
        assert (await daemon.done("a", STOP)).outcome is DONE
        here.domains.before["destroy"] = lambda: destroy(here, "b")
        assert (await daemon.done("b", FORCED)).outcome is ALREADY_DONE


class TestTime:
    async def test_a_deaf_guest_is_left_running(self, here: Site, daemon: Daemon) -> None:
        here.domains.deaf()
        operation = await daemon.done("a", replace(STOP, grace_period=0.2 * SECOND))
        assert error_of(operation) == "GraceExpired"
        assert daemon.vm("a").state is VmState.RUNNING
        assert here.domain("a").isActive()
        assert "destroy" not in here.domains.calls

    async def test_a_deaf_guest_is_forced_if_so_wished(self, here: Site, daemon: Daemon) -> None:
        async def deaf() -> None:
            daemon.let_time_pass()

        here.domains.instead["shutdown"] = deaf
        wish = replace(STOP, on_grace_expired=OnGraceExpired.FORCE)
        steps = await daemon.steps("a", wish)
        assert phases(steps) == ["ACCEPTED", "SIGNALLED", "FORCING", "SUCCEEDED"]
        assert daemon.vm("a").initiator.operation_id == steps[0].id

    async def test_a_start_that_does_not_come_up_in_time(self, here: Site, daemon: Daemon) -> None:
        here.domains.instead["start"] = for_ever
        operation = await daemon.done("off", replace(START, timeout=0.2 * SECOND))
        assert error_of(operation) == "StartTimedOut"
        assert daemon.vm("off").state is VmState.STOPPED


class TestBlindAtTheEnd:
    """What libvirt cannot be asked is not told as a fact when time is up."""

    async def test_a_forced_stop_does_not_say_that_the_process_hangs(self, here: Site) -> None:
        here.times = replace(TIMES, force_timeout=2 * SECOND)
        here.domains.before["destroy"] = unreachable
        async with here.daemon() as daemon:
            here.domains.before["look_up"] = unreachable
            assert error_of(await daemon.done("a", FORCED)) == "OutcomeUnknown"

    @pytest.mark.parametrize(
        ("ref", "wish", "call"),
        [
            ("a", STOP, "shutdown"),
            ("off", START, "start"),
            ("a", PAUSE, "pause"),
        ],
    )
    async def test_nobody_says_how_the_vm_is(
        self, here: Site, daemon: Daemon, ref: str, wish: Parameters, call: str
    ) -> None:
        async def silent() -> None:
            here.domains.before["look_up"] = unreachable
            daemon.let_time_pass()
            raise OutcomeUnknown(here.uuid(ref), call, "no answer")

        here.domains.instead[call] = silent
        operation = await daemon.done(ref, wish)
        assert error_of(operation) == "OutcomeUnknown"
        assert operation.failure is not None
        assert "libvirt cannot be asked" in operation.failure.message

    async def test_who_wishes_force_gets_it(self, here: Site, daemon: Daemon) -> None:
        async def silent() -> None:
            here.domains.before["look_up"] = unreachable
            daemon.let_time_pass()

        here.domains.instead["shutdown"] = silent
        wish = replace(STOP, on_grace_expired=OnGraceExpired.FORCE)
        assert (await daemon.done("a", wish)).outcome is DONE


class TestUnknownOutcome:
    """libvirt did not answer: what is in its world settles it, the call is not repeated."""

    async def test_of_a_start_that_took_effect(self, here: Site, daemon: Daemon) -> None:
        async def start() -> None:
            here.domain("off").create()
            raise OutcomeUnknown(here.uuid("off"), "start", "no answer")

        here.domains.instead["start"] = start
        operation = await daemon.done("off", START)
        assert operation.outcome is DONE
        assert here.domains.calls == ["start"]

    async def test_of_a_start_that_did_not(self, here: Site, daemon: Daemon) -> None:
        async def start() -> None:
            raise OutcomeUnknown(here.uuid("off"), "start", "no answer")

        here.domains.instead["start"] = start
        operation = await daemon.done("off", replace(START, timeout=0.3 * SECOND))
        assert error_of(operation) == "StartTimedOut"
        assert here.domains.calls == ["start"]

    async def test_of_a_forced_stop_that_took_effect(self, here: Site, daemon: Daemon) -> None:
        async def kill() -> None:
            here.domain("a").destroy()
            raise OutcomeUnknown(here.uuid("a"), "destroy", "no answer")

        here.domains.instead["destroy"] = kill
        assert (await daemon.done("a", FORCED)).outcome is DONE

    async def test_of_a_start_whose_event_was_not_heard(self, here: Site, daemon: Daemon) -> None:
        async def start() -> None:
            await here.in_silence(here.domain("off").create)

        here.domains.instead["start"] = start
        assert (await daemon.done("off", START)).outcome is DONE

    async def test_of_a_stop_whose_event_was_not_heard(self, here: Site, daemon: Daemon) -> None:
        here.domains.instead["destroy"] = lambda: here.in_silence(here.domain("a").destroy)
        assert (await daemon.done("a", FORCED)).outcome is DONE
        assert daemon.vm("a").initiator.kind is InitiatorKind.CLIENT


async def test_two_hundred_at_once(tmp_path: Path) -> None:
    names = [f"vm{number:03}" for number in range(200)]
    async with site(tmp_path, names) as place, place.daemon() as daemon:
        before = daemon.journal.head
        wishes = [daemon.done(name, FORCED if i % 2 else STOP) for i, name in enumerate(names)]
        async with asyncio.timeout(DEADLINE_S):
            operations = await asyncio.gather(*wishes)
        assert [o.vm_name for o in operations] == names
        assert {o.outcome for o in operations} == {DONE}
        assert not place.raw.listAllDomains(1)  # active ones
        for operation in operations:
            vm = daemon.journal.vms[operation.vm]
            assert vm.state is VmState.STOPPED
            assert vm.initiator.operation_id == operation.id
        history: list[Transition] = []
        after = before
        while page := await daemon.journal.page(Revision(after)):
            history += page
            after = page[-1].revision
        assert [t.revision for t in history] == list(range(before + 1, daemon.journal.head + 1))


def vanish(here: Site, name: str) -> None:
    domain = here.domain(name)
    if domain.isActive():
        domain.destroy()
    domain.undefine()


async def destroy(here: Site, name: str) -> None:
    await nothing()
    here.domain(name).destroy()
