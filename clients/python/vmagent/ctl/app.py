"""The commands of vmagentctl and their options."""

from __future__ import annotations

import asyncio
from datetime import datetime
from typing import TYPE_CHECKING, Annotated

import typer

from vmagent.ctl import commands, leaving
from vmagent.ctl.auditing import audit
from vmagent.ctl.doctor import doctor
from vmagent.ctl.durations import parse_duration
from vmagent.ctl.failures import ExitCode, Failure
from vmagent.ctl.follow import Follower
from vmagent.ctl.moments import parse_moment
from vmagent.ctl.operations import cancel, operation, operations
from vmagent.ctl.options import (
    STATES,
    CaOption,
    CertOption,
    Common,
    KeyOption,
    LimitOption,
    OutputOption,
    ServerNameOption,
    Target,
    VmArgument,
    parse_place,
    parse_state,
    read,
)
from vmagent.ctl.pki import pki
from vmagent.ctl.screen import tell
from vmagent.ctl.targets import TlsFiles
from vmagent.ctl.verbs import pause, reboot, resume, start, stop
from vmagent.ctl.whoami import whoami
from vmagent.ctl.words import plain
from vmagent.v1.vm_agent_service_pb2 import ListTransitionsRequest

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
    except SystemExit:  # typer's answer to a closed pipe, which its own words met, as of --help
        leaving.reader_gone()
    except OSError as error:  # a full disk under stdout; all others are told where they belong
        leaving.give_up_stdout()
        tell(f"cannot write the answer: {error.strerror}")
        for sentence in getattr(error, "__notes__", ()):
            tell(sentence)
        return ExitCode.FAILED
    return code or ExitCode.DONE


def _usage(error: typer.TyperException) -> str:
    # typer knows the command for most of these, but promises no type that says so.
    context = getattr(error, "ctx", None)
    command = context.command_path if context else "vmagentctl"
    message = " ".join(error.format_message().split()).rstrip(".")
    message = message.replace("Value error, ", "", 1)  # whose error it was is of no interest
    if context and any(
        getattr(error, "option_name", None) in parameter.opts
        for parameter in context.find_root().command.params
    ):
        message += "; write it before the command"
    return f"{plain(message)} (see {command} --help)"


@app.callback(invoke_without_command=True)
def vmagentctl(
    context: typer.Context,
    *,
    target: Target = None,
    cert: CertOption = None,
    key: KeyOption = None,
    ca: CaOption = None,
    server_name: ServerNameOption = None,
    output: OutputOption = None,
    version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False,
) -> None:
    """Look at the VMs of a host, follow them, start and stop them and more, through vmagentd.

    Exit status: 0 done, 1 failed, 2 bad usage, 3 not found, 4 vmagentd cannot be reached,
    130 interrupted, 141 nobody reads what it prints.
    """
    files = TlsFiles(cert=cert, key=key, ca=ca, server_name=server_name)
    context.obj = Common(target=target, tls=files, output=output)
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
        list[str] | None,
        typer.Option(metavar="STATE", help=f"Only VMs in this state: {STATES}. May be repeated."),
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
            common.daemon(target), common.form(output), states, name, with_gone=everything
        )
    )


@app.command()
def show(
    context: typer.Context, *, vm: VmArgument, target: Target = None, output: OutputOption = None
) -> ExitCode:
    """Show all that is known of one VM."""
    common: Common = context.obj
    return asyncio.run(commands.show_vm(common.daemon(target), common.form(output), vm))


for _command in (start, stop, reboot, pause, resume, operations, operation, cancel):
    app.command()(_command)


@app.command()
def watch(
    context: typer.Context,
    *,
    vms: Annotated[
        list[str] | None,
        typer.Argument(metavar="VM", help="Only these VMs, also once they come to be."),
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
        daemon=common.daemon(target),
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
    vm: Annotated[str, typer.Argument(metavar="VM", help="Only this VM.")] = "",
    limit: LimitOption = 100,
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
        case 0:  # which would be no limit
            raise typer.BadParameter("revisions begin with 1", param_hint="--until")
        case int(revision):
            request.max_revision = revision
        case datetime() as time:
            request.max_time.FromDatetime(time)
        case None:
            pass
    return asyncio.run(
        commands.show_history(common.daemon(target), common.form(output), request, limit)
    )


app.command()(audit)
app.command()(pki)
app.command()(doctor)
app.command()(whoami)


@app.command()
def host(
    context: typer.Context, *, target: Target = None, output: OutputOption = None
) -> ExitCode:
    """Show the host: its link to libvirt, its journal, versions and capacity."""
    common: Common = context.obj
    return asyncio.run(commands.show_host(common.daemon(target), common.form(output)))


@app.command("version")
def version_(
    context: typer.Context, *, target: Target = None, output: OutputOption = None
) -> ExitCode:
    """Show the versions of vmagentctl, vmagentd, libvirt and the hypervisor."""
    common: Common = context.obj
    return asyncio.run(commands.show_version(common.daemon(target), common.form(output)))


def _moment(option: str, text: str | None) -> int | datetime | None:
    if text is None:
        return None
    return read(option, text, lambda said: parse_moment(said, commands.now()))
