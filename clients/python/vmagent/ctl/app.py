"""The commands of vmagentctl and their options."""

from __future__ import annotations

import asyncio
from datetime import datetime
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated

import typer
from google.protobuf.duration_pb2 import Duration

from vmagent.ctl import commands, leaving
from vmagent.ctl.durations import parse_duration
from vmagent.ctl.failures import ExitCode, Failure
from vmagent.ctl.follow import Follower
from vmagent.ctl.moments import parse_moment
from vmagent.ctl.operate import Operations
from vmagent.ctl.options import (
    Common,
    OutputOption,
    Target,
    VmArgument,
    VmsArgument,
    parse_place,
    parse_state,
    read,
)
from vmagent.ctl.screen import tell
from vmagent.ctl.words import plain
from vmagent.v1.operation_pb2 import StopMode, StopOnGraceExpired
from vmagent.v1.vm_agent_service_pb2 import ListTransitionsRequest, StartRequest, StopRequest

if TYPE_CHECKING:
    from collections.abc import Sequence

app = typer.Typer(add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False)


def run(arguments: Sequence[str]) -> int:
    """Carry out a command line and return the exit code; every error is told in one line."""
    try:
        code: int | None = app(arguments, prog_name="vmagentctl", standalone_mode=False)
    except Failure as failure:
        tell(str(failure))
        return failure.code
    except typer.TyperException as error:  # bad usage
        tell(_usage(error))
        return ExitCode.USAGE
    except UnicodeEncodeError as error:
        tell(f"{error.object!a} is not UTF-8, as all names are")
        return ExitCode.USAGE
    except OSError as error:  # a full disk under stdout; all others are told where they belong
        leaving.give_up_stdout()
        tell(f"cannot write the answer: {error.strerror}")
        return ExitCode.FAILED
    return code or ExitCode.DONE


def _usage(error: typer.TyperException) -> str:
    # typer knows the command for most of these, but promises no type that says so.
    context = getattr(error, "ctx", None)
    command = context.command_path if context else "vmagentctl"
    message = " ".join(error.format_message().split()).rstrip(".")
    return f"{plain(message)} (see {command} --help)"


class GraceExpired(StrEnum):
    """What a stop does when the guest takes too long."""

    FAIL = "fail"
    FORCE = "force"


_ON_GRACE_EXPIRED = {
    GraceExpired.FAIL: StopOnGraceExpired.STOP_ON_GRACE_EXPIRED_FAIL,
    GraceExpired.FORCE: StopOnGraceExpired.STOP_ON_GRACE_EXPIRED_FORCE,
}


@app.callback(invoke_without_command=True)
def vmagentctl(
    context: typer.Context,
    *,
    target: Target = None,
    output: OutputOption = None,
    version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False,
) -> None:
    """Look at the VMs of a host, follow them, start and stop them, through vmagentd.

    Exit status: 0 done, 1 failed, 2 bad usage, 3 not found, 4 vmagentd cannot be reached,
    130 interrupted.
    """
    context.obj = Common(target=target, output=output)
    if version:
        typer.echo(f"vmagentctl {commands.own_version()}")
        raise typer.Exit
    if context.invoked_subcommand is None:
        typer.echo(context.get_help(), err=True)
        raise typer.Exit(ExitCode.USAGE)


@app.command("list")
def list_(
    context: typer.Context,
    *,
    state: Annotated[
        list[str] | None, typer.Option(help="Only VMs in this state. May be repeated.")
    ] = None,
    name: Annotated[str, typer.Option(metavar="GLOB", help="Only VMs of such a name.")] = "",
    everything: Annotated[bool, typer.Option("--all", help="Also VMs that are gone.")] = False,
    target: Target = None,
    output: OutputOption = None,
) -> ExitCode:
    """List VMs and their states."""
    common: Common = context.obj
    states = [read("--state", text, parse_state) for text in state or ()]
    return asyncio.run(
        commands.list_vms(
            common.path(target), common.form(output), states, name, with_gone=everything
        )
    )


@app.command()
def show(
    context: typer.Context, *, vm: VmArgument, target: Target = None, output: OutputOption = None
) -> ExitCode:
    """Show all that is known of one VM."""
    common: Common = context.obj
    return asyncio.run(commands.show_vm(common.path(target), common.form(output), vm))


@app.command()
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
    target: Target = None,
    output: OutputOption = None,
) -> ExitCode:
    """Start VMs and wait until they run. A VM that runs is left alone."""
    request = StartRequest(
        paused=paused,
        discard_saved_state=discard_saved_state,
        force=force,
        timeout=_duration("--timeout", timeout),
    )
    return _operate(context.obj, target, output, vms, request)


@app.command()
def stop(
    context: typer.Context,
    *,
    vms: VmsArgument,
    force: Annotated[bool, typer.Option("--force", help="Pull the plug at once.")] = False,
    grace: Annotated[
        str | None,
        typer.Option(metavar="DURATION", help="How long the guest may take [60s]."),
    ] = None,
    on_grace_expired: Annotated[
        GraceExpired, typer.Option(help="What to do when the guest takes longer.")
    ] = GraceExpired.FAIL,
    target: Target = None,
    output: OutputOption = None,
) -> ExitCode:
    """Ask guests to shut down and wait until they are off. A VM that is off is left alone."""
    request = StopRequest(
        mode=StopMode.STOP_MODE_FORCE if force else StopMode.STOP_MODE_GRACEFUL,
        grace_period=_duration("--grace", grace),
        on_grace_expired=_ON_GRACE_EXPIRED[on_grace_expired],
    )
    return _operate(context.obj, target, output, vms, request)


@app.command()
def watch(
    context: typer.Context,
    *,
    vms: Annotated[
        list[str] | None, typer.Argument(metavar="[VM]", help="Only these VMs.")
    ] = None,
    resume_from: Annotated[
        str | None,
        typer.Option(
            metavar="[JOURNAL:]REV", help="Go on after this revision, without a snapshot first."
        ),
    ] = None,
    heartbeat: Annotated[
        str, typer.Option(metavar="DURATION", help="Longest silence of the daemon.")
    ] = "10s",
    no_reconnect: Annotated[
        bool, typer.Option("--no-reconnect", help="End with 4 when the daemon goes away.")
    ] = False,
    target: Target = None,
    output: OutputOption = None,
) -> ExitCode:
    """Show the VMs, then every change as it happens, also across restarts of the daemon."""
    common: Common = context.obj
    place = read("--resume-from", resume_from, parse_place) if resume_from is not None else None
    follower = Follower(
        path=common.path(target),
        vms=vms or (),
        heartbeat=read("--heartbeat", heartbeat, parse_duration),
        place=place,
        reconnect=not no_reconnect,
        tell=tell,
    )
    return asyncio.run(commands.watch(follower, common.form(output)))


@app.command()
def history(
    context: typer.Context,
    *,
    vm: Annotated[str, typer.Argument(metavar="[VM]", help="Only this VM.")] = "",
    limit: Annotated[int, typer.Option(min=0, help="How many at most; 0 shows all.")] = 100,
    oldest_first: Annotated[
        bool, typer.Option("--oldest-first", help="Oldest first instead of newest first.")
    ] = False,
    since: Annotated[
        str | None,
        typer.Option(metavar="TIME|REV", help="From this time, age (2h) or revision on."),
    ] = None,
    until: Annotated[
        str | None,
        typer.Option(metavar="TIME|REV", help="Before this time or age, or up to this revision."),
    ] = None,
    target: Target = None,
    output: OutputOption = None,
) -> ExitCode:
    """Show what happened, newest first."""
    common: Common = context.obj
    request = ListTransitionsRequest(vm=vm, oldest_first=oldest_first)
    match _moment("--since", since):
        case int(revision):
            request.min_revision = revision
        case datetime() as time:
            request.min_time.FromDatetime(time)
        case None:
            pass
    match _moment("--until", until):
        case int(revision):
            request.max_revision = revision
        case datetime() as time:
            request.max_time.FromDatetime(time)
        case None:
            pass
    return asyncio.run(
        commands.show_history(common.path(target), common.form(output), request, limit)
    )


@app.command()
def host(
    context: typer.Context, *, target: Target = None, output: OutputOption = None
) -> ExitCode:
    """Show the host: its link to libvirt, its journal, versions and capacity."""
    common: Common = context.obj
    return asyncio.run(commands.show_host(common.path(target), common.form(output)))


@app.command("version")
def version_(
    context: typer.Context, *, target: Target = None, output: OutputOption = None
) -> ExitCode:
    """Show the versions of vmagentctl, vmagentd, libvirt and the hypervisor."""
    common: Common = context.obj
    return asyncio.run(commands.show_version(common.path(target), common.form(output)))


def _operate(
    common: Common,
    target: str | None,
    output: OutputOption,
    vms: list[str],
    request: StartRequest | StopRequest,
) -> ExitCode:
    """Start or stop VMs, each by a copy of *request*."""
    path = common.path(target)
    operations = Operations(common.form(output), path)
    leaving.on_interrupt(operations.last_words)
    return asyncio.run(commands.operate(path, operations, vms, request))


def _duration(option: str, text: str | None) -> Duration | None:
    if text is None:
        return None
    duration = Duration()
    duration.FromTimedelta(read(option, text, parse_duration))
    return duration


def _moment(option: str, text: str | None) -> int | datetime | None:
    if text is None:
        return None
    return read(option, text, lambda said: parse_moment(said, commands.now()))
