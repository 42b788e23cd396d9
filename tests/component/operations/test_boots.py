"""What was asked for one boot of a VM is not done to the next, which nobody asked it for."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import pytest

from tests.component.hypervisor.host import until
from tests.component.operations.gates import Gate, busy_disk, forcing, long_in_hand, until_joined
from tests.component.operations.site import (
    DEADLINE_S,
    FORCED,
    PAUSE,
    REBOOT,
    RESUME,
    SECOND,
    STOP,
    STOP_OR_FORCE,
    TIMES,
    Daemon,
    Site,
    for_ever,
    nothing,
    somebody,
    unreachable,
)
from vmagentd.errors import NoShutdownMethod
from vmagentd.model import (
    HostBooted,
    LinkLost,
    OnGraceExpired,
    Operation,
    OperationId,
    OperationOutcome,
    OperationPhase,
    Parameters,
    RebootMode,
    VmState,
)

if TYPE_CHECKING:
    from collections.abc import Callable

DONE, ALREADY_DONE = OperationOutcome.DONE, OperationOutcome.ALREADY_DONE
REBOOT_OR_FORCE = replace(REBOOT, on_grace_expired=OnGraceExpired.FORCE)
RESET = replace(REBOOT_OR_FORCE, mode=RebootMode.FORCE)


def reboot(here: Site, name: str = "a") -> None:
    """Let a VM end, and start it again, as the host does or somebody by virsh."""
    here.domain(name).destroy()
    here.domain(name).create()


async def left_open(here: Site, name: str, wish: Parameters, phase: OperationPhase) -> OperationId:
    """Let a daemon end that has come to *phase* of an operation."""
    async with here.daemon() as daemon:
        await daemon.journal.append(HostBooted(time=datetime.now(UTC), boot_id="one"))
        operation_id, caller = await daemon.under_way(name, wish, phase)
    await asyncio.wait([caller])
    here.domains.instead.clear()
    here.domains.before.clear()
    here.domains.calls.clear()
    return operation_id


async def left_joined(
    here: Site,
    wish: Parameters,
    joining: Parameters,
    *,
    before: Callable[[], object] | None = None,
) -> OperationId:
    """Let a daemon be killed right after it has committed that somebody joined an operation.

    Args:
        here: the host.
        wish: the operation, on `a`; the guest has been asked.
        joining: what is asked for then.
        before: starts the VM anew, before that.
    """
    async with here.daemon() as daemon:
        operation_id, caller = await daemon.under_way("a", wish, OperationPhase.SIGNALLED)
        await until(lambda: here.domains.calls != [], "the guest is asked")
        if before is not None:
            first = daemon.vm("a").incarnation
            before()
            await until(lambda: daemon.vm("a").incarnation > first, "the next boot")
        (run,) = daemon.operations._runs.values()
        await run.join(joining, caller=somebody(), request_id="r")
    await asyncio.wait([caller])
    here.domains.instead.clear()
    here.domains.calls.clear()
    return operation_id


async def over(daemon: Daemon, name: str, operation_id: OperationId) -> Operation:
    await until(lambda: daemon.vm(name).active_operation_id is None, "its end")
    operation = await daemon.journal.operation(operation_id)
    assert operation is not None
    return operation


async def unseen(here: Site, daemon: Daemon, act: Callable[[], object]) -> None:
    """Do something while a daemon is blind."""
    lost = LinkLost(time=datetime.now(UTC), cause="it ended", link=0)
    await daemon.journal.append(lost)
    await here.in_silence(act)
    await daemon.journal.append(await here.domains.survey())
    assert daemon.journal.link.connected


class TestOfAnEarlierDaemon:
    @pytest.mark.parametrize(
        ("wish", "phase", "call"),
        [
            (STOP, OperationPhase.SIGNALLED, "shutdown"),
            (STOP_OR_FORCE, OperationPhase.SIGNALLED, "shutdown"),
            (FORCED, OperationPhase.FORCING, "destroy"),
        ],
    )
    @pytest.mark.parametrize("late", [False, True])
    @pytest.mark.parametrize("host_too", [False, True])
    async def test_a_stop_is_done(  # noqa: PLR0917  (each is another case)
        self,
        here: Site,
        wish: Parameters,
        phase: OperationPhase,
        call: str,
        late: bool,  # noqa: FBT001
        host_too: bool,  # noqa: FBT001
    ) -> None:
        here.domains.instead[call] = for_ever
        stop_id = await left_open(here, "a", wish, phase)
        reboot(here)
        if late:
            since_boot = here.clock.since_boot
            here.clock = replace(here.clock, since_boot=lambda: since_boot() + 60 * SECOND)
        async with here.daemon(recover=False) as daemon:
            if host_too:
                await daemon.journal.append(HostBooted(time=datetime.now(UTC), boot_id="two"))
                await daemon.journal.append(await here.domains.survey())
            daemon.operations.recover()
            assert (await over(daemon, "a", stop_id)).outcome is DONE
            assert here.domains.calls == []
            assert daemon.vm("a").state is VmState.RUNNING

    @pytest.mark.parametrize(
        ("wish", "force", "phase"),
        [
            (STOP, FORCED, OperationPhase.SUCCEEDED),
            (REBOOT_OR_FORCE, RESET, OperationPhase.INTERRUPTED),
        ],
    )
    async def test_force_that_it_had_not_come_to_is_not_used(
        self, here: Site, wish: Parameters, force: Parameters, phase: OperationPhase
    ) -> None:
        here.domains.deaf()
        operation_id = await left_joined(here, wish, force)
        reboot(here)
        async with here.daemon() as daemon:
            assert (await over(daemon, "a", operation_id)).phase is phase
            assert here.domains.calls == []
            assert daemon.vm("a").state is VmState.RUNNING

    @pytest.mark.parametrize("wish", [STOP, FORCED])
    async def test_who_had_joined_meant_the_boot_of_then(
        self, here: Site, wish: Parameters
    ) -> None:
        here.domains.instead["shutdown"] = for_ever
        stop_id = await left_joined(here, STOP, wish, before=lambda: reboot(here))
        async with here.daemon() as daemon:
            assert (await over(daemon, "a", stop_id)).outcome is DONE
            assert here.domains.calls == ["shutdown" if wish is STOP else "destroy"]
            assert daemon.vm("a").state is VmState.STOPPED

    @pytest.mark.parametrize("wish", [STOP, REBOOT_OR_FORCE, RESET])
    async def test_one_that_had_not_begun_is_not_begun(self, here: Site, wish: Parameters) -> None:
        here.domains.before["look_up"] = for_ever
        operation_id = await left_open(here, "a", wish, OperationPhase.ACCEPTED)
        reboot(here)
        async with here.daemon() as daemon:
            operation = await over(daemon, "a", operation_id)
            assert operation.phase is OperationPhase.INTERRUPTED
            assert here.domains.calls == []

    @pytest.mark.parametrize(
        ("wish", "phase", "call"),
        [
            (PAUSE, OperationPhase.APPLYING, "pause"),
            (RESUME, OperationPhase.APPLYING, "resume"),
            (REBOOT_OR_FORCE, OperationPhase.SIGNALLED, "reboot"),
            (RESET, OperationPhase.FORCING, "reset"),
        ],
    )
    async def test_another_one_is_interrupted(
        self, here: Site, wish: Parameters, phase: OperationPhase, call: str
    ) -> None:
        paused = wish is RESUME
        if paused:
            here.domain("a").suspend()
        here.domains.instead[call] = for_ever
        operation_id = await left_open(here, "a", wish, phase)
        reboot(here)
        if paused:
            here.domain("a").suspend()
        async with here.daemon() as daemon:
            operation = await over(daemon, "a", operation_id)
            assert operation.phase is OperationPhase.INTERRUPTED
            assert operation.failure is not None
            assert "started anew" in operation.failure.message
            assert here.domains.calls == []
            assert daemon.vm("a").state is (VmState.PAUSED if paused else VmState.RUNNING)

    async def test_a_stop_of_a_vm_that_was_off_goes_on(self, here: Site) -> None:
        """It was asked for while a Start was under way, perhaps."""
        here.domains.before["look_up"] = for_ever
        stop_id = await left_open(here, "off", STOP, OperationPhase.ACCEPTED)
        here.domain("off").create()
        async with here.daemon() as daemon:
            assert (await over(daemon, "off", stop_id)).outcome is DONE
            assert daemon.vm("off").state is VmState.STOPPED

    async def test_a_stop_of_a_vm_that_is_gone_is_done(self, here: Site) -> None:
        here.domains.instead["shutdown"] = for_ever
        stop_id = await left_open(here, "a", STOP, OperationPhase.SIGNALLED)
        reboot(here)
        here.domain("a").destroy()
        here.domain("a").undefine()
        async with here.daemon() as daemon:
            assert (await over(daemon, "a", stop_id)).outcome is DONE
            assert daemon.vm("a").state is VmState.GONE


class TestInARunningDaemon:
    @pytest.mark.parametrize("then", OnGraceExpired)
    async def test_a_stop_is_done_when_it_is_seen(
        self, here: Site, daemon: Daemon, then: OnGraceExpired
    ) -> None:
        here.domains.deaf()
        wish = replace(STOP, on_grace_expired=then)
        _, stop = await daemon.under_way("a", wish, OperationPhase.SIGNALLED)
        await unseen(here, daemon, lambda: reboot(here))
        assert (await stop).outcome is DONE
        assert here.domains.calls == ["shutdown"]
        assert daemon.vm("a").state is VmState.RUNNING

    async def test_force_that_was_not_answered_is_not_used_on_the_next_boot(
        self, here: Site, daemon: Daemon
    ) -> None:
        async def blind() -> None:
            here.domains.before["look_up"] = unreachable
            await unreachable()

        here.domains.instead["destroy"] = blind
        _, stop = await daemon.under_way("a", FORCED, OperationPhase.FORCING)
        await until(lambda: "destroy" in here.domains.calls, "the call")
        # its calls fail from now on, and then they would not
        await unseen(here, daemon, lambda: reboot(here))
        assert (await stop).outcome is DONE
        assert here.domain("a").isActive()

    @pytest.mark.parametrize("wish", [STOP, FORCED])
    async def test_what_the_journal_does_not_know_yet_is_meant_all_the_same(
        self, here: Site, daemon: Daemon, wish: Parameters
    ) -> None:
        await here.in_silence(lambda: reboot(here))
        assert (await daemon.done("a", wish)).outcome is DONE
        assert daemon.vm("a").state is VmState.STOPPED

    @pytest.mark.parametrize("wish", [PAUSE, RESUME])
    async def test_likewise_if_it_can_be_only_by_what_the_journal_does_not_know(
        self, here: Site, daemon: Daemon, wish: Parameters
    ) -> None:
        if wish is PAUSE:
            here.domain("a").suspend()
            await daemon.until_state("a", VmState.PAUSED)
        await here.in_silence(lambda: reboot(here))
        if wish is RESUME:
            await here.in_silence(here.domain("a").suspend)
        assert (await daemon.done("a", wish)).outcome is DONE
        assert here.domains.calls == [wish.verb.lower()]

    @pytest.mark.parametrize("wish", [STOP, FORCED])
    async def test_who_joins_a_stop_means_the_boot_that_there_is(
        self, here: Site, wish: Parameters
    ) -> None:
        here.times = replace(TIMES, press_interval=0.1 * SECOND)
        async with here.daemon() as daemon:
            gate = asyncio.Event()
            here.domains.instead["shutdown"] = gate.wait
            _, stop = await daemon.under_way("a", STOP, OperationPhase.SIGNALLED)
            await until(lambda: "shutdown" in here.domains.calls, "the press, which hangs")
            first = daemon.vm("a").incarnation
            reboot(here)
            await until(lambda: daemon.vm("a").incarnation > first, "the next boot")
            here.domains.instead.clear()
            joined = asyncio.create_task(daemon.done("a", wish, actor="other"))
            await until_joined(daemon, "other")
            gate.set()
            assert (await joined).outcome is DONE
            assert await stop == await joined
            assert not here.domain("a").isActive()

    @pytest.mark.parametrize(
        ("wish", "force", "call", "phase"),
        [
            (STOP, FORCED, "shutdown", OperationPhase.SUCCEEDED),
            (REBOOT, RESET, "reboot", OperationPhase.INTERRUPTED),
        ],
    )
    async def test_force_for_what_has_failed_is_not_used_on_the_next_boot(  # noqa: PLR0917
        self,
        here: Site,
        daemon: Daemon,
        wish: Parameters,
        force: Parameters,
        call: str,
        phase: OperationPhase,
    ) -> None:
        """It has joined while libvirt, which has refused, is asked a last time how the VM is."""
        look = Gate()

        async def refuse() -> None:
            here.domains.before["look_up"] = look
            raise NoShutdownMethod(daemon.vm("a").uuid, "no ACPI")

        here.domains.instead[call] = refuse
        operation_id, graceful = await daemon.under_way("a", wish, OperationPhase.SIGNALLED)
        async with asyncio.timeout(DEADLINE_S):
            await look.reached.wait()
            forced = asyncio.create_task(daemon.done("a", force, actor="other"))
            await until_joined(daemon, "other")
            await here.in_silence(lambda: reboot(here))
            look.open.set()
            operation = await forced
            assert await graceful == operation
        assert (operation.id, operation.phase) == (operation_id, phase)
        assert here.domains.calls == [call]
        assert here.domain("a").isActive()


async def reboot_unshown(here: Site) -> None:
    """Start a VM anew; that is known once something can be committed."""
    before = here.connection.events_taken
    reboot(here)
    await until(lambda: here.connection.events_taken >= before + 2, "its events")


class TestTheDiskIsBusy:
    """What is to be done is committed first, and meanwhile the VM is started anew."""

    @pytest.mark.parametrize("answered", [False, True])
    @pytest.mark.parametrize(
        ("wish", "phase"), [(STOP, OperationPhase.SUCCEEDED), (REBOOT, OperationPhase.INTERRUPTED)]
    )
    async def test_force(
        self,
        here: Site,
        daemon: Daemon,
        wish: Parameters,
        phase: OperationPhase,
        *,
        answered: bool,
    ) -> None:
        call = wish.verb.lower().replace("stop", "shutdown")
        here.domains.instead[call] = nothing if answered else unreachable
        _, stop = await daemon.under_way("a", wish, OperationPhase.SIGNALLED)
        await until(lambda: here.domains.calls == [call], "the guest is asked")
        (run,) = daemon.operations._runs.values()
        with busy_disk(here):
            await reboot_unshown(here)
            await forcing(run)
        await asyncio.wait([stop], timeout=DEADLINE_S)
        assert run.operation.phase is phase
        assert here.domains.calls == [call]
        assert here.domain("a").isActive()

    @pytest.mark.parametrize(
        ("wish", "phase"), [(STOP, OperationPhase.SUCCEEDED), (REBOOT, OperationPhase.FAILED)]
    )
    async def test_the_next_press(
        self, here: Site, wish: Parameters, phase: OperationPhase
    ) -> None:
        call = wish.verb.lower().replace("stop", "shutdown")
        here.times = replace(TIMES, press_interval=0 * SECOND)
        here.domains.instead[call] = libvirt = Gate()
        async with here.daemon() as daemon:
            _, stop = await daemon.under_way("a", wish, OperationPhase.SIGNALLED)
            await libvirt.reached.wait()
            (run,) = daemon.operations._runs.values()
            with busy_disk(here):
                await reboot_unshown(here)
                libvirt.open.set()
                await until(lambda: len(run.operation.steps) > 2, "the step")
            await asyncio.wait([stop], timeout=DEADLINE_S)
            assert run.operation.phase is phase
            assert here.domains.calls == [call]
            assert here.domain("a").isActive()

    @pytest.mark.parametrize("wish", [FORCED, PAUSE])
    async def test_an_acceptance(self, here: Site, daemon: Daemon, wish: Parameters) -> None:
        """Libvirt is asked right after it."""
        with busy_disk(here):
            await reboot_unshown(here)
            asking = asyncio.create_task(daemon.done("a", wish))
            await until(lambda: daemon.operations._runs, "it waits for its acceptance")
        async with asyncio.timeout(DEADLINE_S):
            assert (await asking).phase is OperationPhase.INTERRUPTED
        assert here.domains.calls == []

    async def test_what_happens_only_while_that_is_written(
        self, here: Site, daemon: Daemon
    ) -> None:
        here.domains.instead["shutdown"] = unreachable
        _, stop = await daemon.under_way("a", STOP, OperationPhase.SIGNALLED)
        await until(lambda: here.domains.calls == ["shutdown"], "the guest is asked")
        (run,) = daemon.operations._runs.values()
        with busy_disk(here):
            await forcing(run)
            await long_in_hand(daemon)
            await reboot_unshown(here)
        async with asyncio.timeout(DEADLINE_S):
            assert (await stop).outcome is DONE
        assert here.domains.calls == ["shutdown"]

    @pytest.mark.parametrize("wish", [FORCED, PAUSE])
    async def test_or_only_while_the_acceptance_is(
        self, here: Site, daemon: Daemon, wish: Parameters
    ) -> None:
        with busy_disk(here):
            asking = asyncio.create_task(daemon.done("a", wish))
            await until(lambda: daemon.operations._runs, "it waits for its acceptance")
            await long_in_hand(daemon)
            await reboot_unshown(here)
        async with asyncio.timeout(DEADLINE_S):
            assert (await asking).phase is OperationPhase.INTERRUPTED
        assert here.domains.calls == []
