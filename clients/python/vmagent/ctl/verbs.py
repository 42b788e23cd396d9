"""The commands that do something to VMs, and their options."""

from __future__ import annotations

import asyncio
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated

import typer

from vmagent.ctl import commands, leaving
from vmagent.ctl.durations import parse_duration
from vmagent.ctl.errand import Way
from vmagent.ctl.failures import ExitCode  # noqa: TC001 - typer reads annotations
from vmagent.ctl.operate import Operations
from vmagent.ctl.options import (
    Common,
    OutputOption,
    RequestIdOption,
    Target,
    VmsArgument,
    duration,
    read,
)
from vmagent.ctl.screen import tell
from vmagent.v1.operation_pb2 import (
    RebootMode,
    RebootOnGraceExpired,
    StopMode,
    StopOnGraceExpired,
)
from vmagent.v1.vm_agent_service_pb2 import (
    PauseRequest,
    RebootRequest,
    ResumeRequest,
    StartRequest,
    StopRequest,
)

if TYPE_CHECKING:
    from vmagent.ctl.errand import Request


class GraceExpired(StrEnum):
    """What is done when the guest takes too long."""

    FAIL = "fail"
    FORCE = "force"


_STOP_ON_GRACE_EXPIRED = {
    GraceExpired.FAIL: StopOnGraceExpired.STOP_ON_GRACE_EXPIRED_FAIL,
    GraceExpired.FORCE: StopOnGraceExpired.STOP_ON_GRACE_EXPIRED_FORCE,
}
_REBOOT_ON_GRACE_EXPIRED = {
    GraceExpired.FAIL: RebootOnGraceExpired.REBOOT_ON_GRACE_EXPIRED_FAIL,
    GraceExpired.FORCE: RebootOnGraceExpired.REBOOT_ON_GRACE_EXPIRED_FORCE,
}

GraceOption = Annotated[
    str | None, typer.Option(metavar="DURATION", help="How long the guest may take [60s].")
]
GraceExpiredOption = Annotated[
    GraceExpired, typer.Option(help="What to do when the guest takes longer.")
]
ReconnectTimeoutOption = Annotated[
    str,
    typer.Option(
        metavar="DURATION",
        help="How long vmagentd may be away meanwhile, as when it restarts: the next one tells "
        "the end; else vmagentctl ends with 4, or with 1 if that one cannot go on.",
    ),
]
TimeoutOption = Annotated[
    str | None, typer.Option(metavar="DURATION", help="How long it may take [60s].")
]


def start(
    context: typer.Context,
    *,
    vms: VmsArgument,
    paused: Annotated[bool, typer.Option("--paused", help="Create it paused.")] = False,
    discard_saved_state: Annotated[
        bool, typer.Option("--discard-saved-state", help="Boot afresh, drop saved memory.")
    ] = False,
    force: Annotated[
        bool, typer.Option("--force", help="Also if it was migrated away; it must not run there.")
    ] = False,
    timeout: Annotated[
        str | None, typer.Option(metavar="DURATION", help="How long it may take [120s].")
    ] = None,
    request_id: RequestIdOption = "",
    reconnect_timeout: ReconnectTimeoutOption = "60s",
    target: Target = None,
    output: OutputOption = None,
) -> ExitCode:
    """Start VMs and wait until they run. A VM that runs is left alone."""
    request = StartRequest(
        request_id=request_id,
        paused=paused,
        discard_saved_state=discard_saved_state,
        force=force,
        timeout=duration("--timeout", timeout),
    )
    return _operate(
        context.obj, request, vms=vms, target=target, output=output, wait=reconnect_timeout
    )


def stop(
    context: typer.Context,
    *,
    vms: VmsArgument,
    force: Annotated[bool, typer.Option("--force", help="Pull the plug at once.")] = False,
    grace: GraceOption = None,
    on_grace_expired: GraceExpiredOption = GraceExpired.FAIL,
    request_id: RequestIdOption = "",
    reconnect_timeout: ReconnectTimeoutOption = "60s",
    target: Target = None,
    output: OutputOption = None,
) -> ExitCode:
    """Ask guests to shut down and wait until they are off. A VM that is off is left alone."""
    request = StopRequest(
        request_id=request_id,
        mode=StopMode.STOP_MODE_FORCE if force else StopMode.STOP_MODE_GRACEFUL,
        grace_period=duration("--grace", grace),
        on_grace_expired=_STOP_ON_GRACE_EXPIRED[on_grace_expired],
    )
    return _operate(
        context.obj, request, vms=vms, target=target, output=output, wait=reconnect_timeout
    )


def reboot(
    context: typer.Context,
    *,
    vms: VmsArgument,
    force: Annotated[bool, typer.Option("--force", help="Reset it at once.")] = False,
    grace: GraceOption = None,
    on_grace_expired: GraceExpiredOption = GraceExpired.FAIL,
    request_id: RequestIdOption = "",
    reconnect_timeout: ReconnectTimeoutOption = "60s",
    target: Target = None,
    output: OutputOption = None,
) -> ExitCode:
    """Ask guests to reboot and wait until they have."""
    request = RebootRequest(
        request_id=request_id,
        mode=RebootMode.REBOOT_MODE_FORCE if force else RebootMode.REBOOT_MODE_GRACEFUL,
        grace_period=duration("--grace", grace),
        on_grace_expired=_REBOOT_ON_GRACE_EXPIRED[on_grace_expired],
    )
    return _operate(
        context.obj, request, vms=vms, target=target, output=output, wait=reconnect_timeout
    )


def pause(
    context: typer.Context,
    *,
    vms: VmsArgument,
    timeout: TimeoutOption = None,
    request_id: RequestIdOption = "",
    reconnect_timeout: ReconnectTimeoutOption = "60s",
    target: Target = None,
    output: OutputOption = None,
) -> ExitCode:
    """Take the CPU from VMs until they are resumed. A VM that is paused is left alone."""
    request = PauseRequest(request_id=request_id, timeout=duration("--timeout", timeout))
    return _operate(
        context.obj, request, vms=vms, target=target, output=output, wait=reconnect_timeout
    )


def resume(
    context: typer.Context,
    *,
    vms: VmsArgument,
    timeout: TimeoutOption = None,
    request_id: RequestIdOption = "",
    reconnect_timeout: ReconnectTimeoutOption = "60s",
    target: Target = None,
    output: OutputOption = None,
) -> ExitCode:
    """Resume VMs that are paused, wake up those that sleep. A VM that runs is left alone."""
    request = ResumeRequest(request_id=request_id, timeout=duration("--timeout", timeout))
    return _operate(
        context.obj, request, vms=vms, target=target, output=output, wait=reconnect_timeout
    )


def _operate(
    common: Common,
    request: Request,
    *,
    vms: list[str],
    target: str | None,
    output: OutputOption,
    wait: str,
) -> ExitCode:
    """Do one thing to VMs, each by a copy of *request*."""
    if request.request_id and len(set(vms)) > 1:
        raise typer.BadParameter("it is of one request: name one VM", param_hint="--request-id")
    patience = read("--reconnect-timeout", wait, parse_duration)
    daemon = common.daemon(target)
    operations = Operations(common.form(output), daemon)
    leaving.on_interrupt(operations.last_words)
    way = Way(daemon, patience, tell)
    try:
        return asyncio.run(commands.operate(way, operations, vms, request))
    except OSError as error:  # stdout cannot be written to
        for sentence in operations.last_words():
            error.add_note(sentence)
        raise
