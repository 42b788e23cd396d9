"""The link to libvirt breaks for a moment: what is under way goes on when it is back."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from tests.component.hypervisor.host import until
from tests.component.operations.gates import Gate
from tests.component.operations.site import (
    DEADLINE_S,
    FORCED,
    PAUSE,
    REBOOT,
    RESUME,
    SECOND,
    START,
    STOP,
    STOP_OR_FORCE,
    TIMES,
    Daemon,
    Site,
    for_ever,
    somebody,
    unreachable,
)
from vmagentd.errors import LibvirtRefused
from vmagentd.model import (
    Operation,
    OperationId,
    OperationOutcome,
    OperationPhase,
    Parameters,
    StopParameters,
    VmState,
)

if TYPE_CHECKING:
    from datetime import timedelta

DONE, ALREADY_DONE = OperationOutcome.DONE, OperationOutcome.ALREADY_DONE


def blink(here: Site, call: str) -> asyncio.Event:
    """Let libvirt not be reached by the next call of that name; return what tells that it was."""
    blinked = asyncio.Event()

    async def once() -> None:
        del here.domains.before[call]
        blinked.set()
        await unreachable()

    here.domains.before[call] = once
    return blinked


async def left_open(
    here: Site, ref: str, wish: Parameters, call: str, *, ago: timedelta = 0 * SECOND
) -> OperationId:
    """Let a daemon end, that long ago, whose operation has libvirt busy."""
    here.domains.instead[call] = for_ever
    async with here.daemon() as daemon:
        operation_id, caller = await daemon.under_way(ref, wish, OperationPhase.ACCEPTED)
        await until(lambda: call in here.domains.calls, "libvirt is asked")
    await asyncio.wait([caller])
    here.domains.instead.clear()
    here.domains.calls.clear()
    since_boot = here.clock.since_boot
    here.clock = replace(here.clock, since_boot=lambda: since_boot() + ago)
    return operation_id


async def over(daemon: Daemon, ref: str, operation_id: OperationId) -> Operation:
    await until(lambda: daemon.vm(ref).active_operation_id is None, "its end")
    operation = await daemon.journal.operation(operation_id)
    assert operation is not None
    return operation


def error_of(operation: Operation) -> str:
    assert operation.failure is not None
    return operation.failure.error


@pytest.mark.parametrize("call", ["destroy", "look_up"])
async def test_a_stop_of_a_start_that_was_cancelled(here: Site, daemon: Daemon, call: str) -> None:
    here.domains.before["start"] = libvirt = Gate()
    start_id, start = await daemon.under_way("off", START, OperationPhase.STARTING)
    async with asyncio.timeout(DEADLINE_S):
        await libvirt.reached.wait()
        await daemon.operations.cancel(start_id, caller=somebody())
        await start
        blinked = blink(here, call)
        stop = asyncio.create_task(daemon.done("off", FORCED))
        if call == "look_up":
            await until(lambda: "destroy" in here.domains.calls, "it is forced")
        else:
            await blinked.wait()
        libvirt.open.set()
        assert (await stop).outcome is DONE
        assert blinked.is_set()
    assert not here.domain("off").isActive()


class TestFirstLook:
    """Of the next daemon, which goes on with what the last one left open."""

    @pytest.mark.parametrize(
        ("ref", "wish", "call"),
        [
            ("a", STOP, "shutdown"),
            ("a", FORCED, "destroy"),
            ("a", PAUSE, "pause"),
            ("a", RESUME, "resume"),
            ("off", START, "start"),
        ],
    )
    async def test_it_goes_on(self, here: Site, ref: str, wish: Parameters, call: str) -> None:
        if wish is RESUME:
            here.domain("a").suspend()
        operation_id = await left_open(here, ref, wish, call)
        if wish is START:  # libvirt has done it
            here.domain("off").create()
        async with here.daemon(recover=False) as daemon:
            blinked = blink(here, "look_up")
            daemon.operations.recover()
            assert (await over(daemon, ref, operation_id)).outcome is DONE
            assert blinked.is_set()

    async def test_nor_is_a_reboot_told_to_have_failed(self, here: Site) -> None:
        reboot_id = await left_open(here, "a", REBOOT, "reboot")
        async with here.daemon(recover=False) as daemon:
            blinked = blink(here, "look_up")
            daemon.operations.recover()
            await blinked.wait()
            cancelled = await daemon.operations.cancel(reboot_id, caller=somebody())
            assert cancelled.phase is OperationPhase.CANCELLED

    @pytest.mark.parametrize("wish", [FORCED, STOP_OR_FORCE])
    async def test_force_goes_on_though_its_time_is_over(
        self, here: Site, wish: StopParameters
    ) -> None:
        call = "destroy" if wish is FORCED else "shutdown"
        stop_id = await left_open(here, "a", wish, call, ago=60 * SECOND)
        async with here.daemon(recover=False) as daemon:
            blinked = blink(here, "look_up")
            daemon.operations.recover()
            assert (await over(daemon, "a", stop_id)).outcome is DONE
            assert blinked.is_set()
            assert here.domains.calls == ["destroy"]

    @pytest.mark.parametrize(
        ("ref", "wish", "call"),
        [("a", STOP, "shutdown"), ("a", PAUSE, "pause"), ("off", START, "start")],
    )
    async def test_when_its_time_is_over_nobody_knows(
        self, here: Site, ref: str, wish: Parameters, call: str
    ) -> None:
        operation_id = await left_open(here, ref, wish, call, ago=59 * SECOND)
        async with here.daemon(recover=False) as daemon:
            here.domains.before["look_up"] = unreachable
            daemon.operations.recover()
            assert error_of(await over(daemon, ref, operation_id)) == "OutcomeUnknown"
            assert here.domains.calls == []


class TestInTheMiddle:
    @pytest.mark.parametrize(("wish", "call"), [(STOP, "shutdown"), (FORCED, "destroy")])
    @pytest.mark.parametrize("refused", [False, True])
    async def test_a_stop_that_libvirt_refuses_because_it_is_off(
        self, here: Site, wish: StopParameters, call: str, *, refused: bool
    ) -> None:
        here.times = replace(TIMES, press_interval=0.1 * SECOND)
        blinked = asyncio.Event()

        async def meddle() -> None:
            nonlocal blinked
            del here.domains.before[call]
            await here.in_silence(here.domain("a").destroy)
            blinked = blink(here, "look_up")
            if refused:
                raise LibvirtRefused(here.uuid("a"), 38, 10, "Unable to read from monitor")

        async with here.daemon() as daemon:
            here.domains.before[call] = meddle
            assert (await daemon.done("a", wish)).outcome in {DONE, ALREADY_DONE}
            assert blinked.is_set()
            assert daemon.vm("a").state is VmState.STOPPED

    async def test_a_pause_that_somebody_else_made(self, here: Site, daemon: Daemon) -> None:
        async def meddle() -> None:
            await here.in_silence(here.domain("a").suspend)
            blink(here, "look_up")

        here.domains.before["pause"] = meddle
        assert (await daemon.done("a", PAUSE)).outcome is ALREADY_DONE

    async def test_a_start_that_somebody_else_made(self, here: Site, daemon: Daemon) -> None:
        async def meddle() -> None:
            await here.in_silence(here.domain("off").create)
            blink(here, "look_up")

        here.domains.before["start"] = meddle
        assert (await daemon.done("off", START)).outcome is ALREADY_DONE

    async def test_libvirts_reason_for_not_starting_it_is_not_lost(
        self, here: Site, daemon: Daemon
    ) -> None:
        async def refuse() -> None:
            blink(here, "look_up")
            raise LibvirtRefused(here.uuid("off"), 1, 10, "no such disk")

        here.domains.instead["start"] = refuse
        assert error_of(await daemon.done("off", START)) == "StartFailed"
