"""`vmagentctl whoami`: whom the daemon takes the caller for, and what he may do."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import typer  # noqa: TC002 - it reads the annotations

from vmagent.ctl.channel import ANSWER_TIMEOUT_S, connect
from vmagent.ctl.failures import ExitCode
from vmagent.ctl.options import Common, OutputOption, Target  # noqa: TC001 - typer reads them
from vmagent.ctl.screen import Output, Screen, print_json
from vmagent.ctl.words import clock, plain, value_name
from vmagent.v1.access_pb2 import CallerOrigin, Role
from vmagent.v1.vm_agent_service_pb2 import WhoAmIRequest

if TYPE_CHECKING:
    from collections.abc import Iterator

    from vmagent.ctl.targets import Daemon
    from vmagent.v1.access_pb2 import Caller

_ORIGINS = {
    CallerOrigin.CALLER_ORIGIN_LOCAL: "this host",
    CallerOrigin.CALLER_ORIGIN_REMOTE: "the network",
}


def whoami(
    context: typer.Context, *, target: Target = None, output: OutputOption = None
) -> ExitCode:
    """Show whom the daemon takes you for, and what you may do."""
    common: Common = context.obj
    return asyncio.run(_show(common.daemon(target), common.form(output)))


async def _show(daemon: Daemon, output: Output) -> ExitCode:
    async with connect(daemon) as service:
        answer = await service.WhoAmI(WhoAmIRequest(), timeout=ANSWER_TIMEOUT_S)
    if output is not Output.TABLE:
        print_json(answer, output)
        return ExitCode.DONE
    screen = Screen()
    for title, value in _facts(answer.caller):
        screen.line((f"{title + ':':<13}", "bold"), value)
    return ExitCode.DONE


def _facts(caller: Caller) -> Iterator[tuple[str, str]]:
    yield "You are", plain(caller.actor)
    role = value_name(Role.DESCRIPTOR, caller.role).lower() if caller.role else ""
    yield "Role", role or "none: nothing but this question is answered"
    if role:
        globs = ", ".join(map(plain, caller.vm_globs))
        yield "For", f"VMs named {globs}" if globs else "all VMs"
    if len(caller.grants) > 1:
        for grant in caller.grants:
            name = value_name(Role.DESCRIPTOR, grant.role).lower()
            vms = ", ".join(map(plain, grant.vm_globs))
            yield "As", f"{name} for " + (f"VMs named {vms}" if vms else "all VMs")
    origin = _ORIGINS.get(caller.origin, "?")
    yield "From", f"{origin}, {plain(caller.peer)}"
    if caller.certificate_fingerprint:
        yield "Certificate", f"SHA-256 {plain(caller.certificate_fingerprint)}"
    if caller.HasField("certificate_end_time"):
        yield "It ends", clock(caller.certificate_end_time)
