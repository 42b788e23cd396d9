"""`vmagentctl doctor`: looks from outside at all that must be right, and says what to do."""

from __future__ import annotations

import asyncio
import ctypes
import grp
import os
import pwd
import stat
import time
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Final

import typer  # noqa: TC002 - typer reads the annotations of commands
from google.protobuf.struct_pb2 import Struct

from vmagent.ctl import tls
from vmagent.ctl.channel import ANSWER_TIMEOUT_S, connect
from vmagent.ctl.commands import own_version
from vmagent.ctl.failures import ExitCode, Failure
from vmagent.ctl.options import Common, OutputOption, Target  # noqa: TC001 - likewise
from vmagent.ctl.screen import Output, Screen, print_json
from vmagent.ctl.words import moment_of, plain, size, span, value_name
from vmagent.v1.access_pb2 import CallerOrigin, Role
from vmagent.v1.vm_agent_service_pb2 import GetHostRequest, WhoAmIRequest

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

    from vmagent.ctl.targets import Daemon, Remote
    from vmagent.v1.access_pb2 import Caller
    from vmagent.v1.host_pb2 import Host

# Where the journal is, unless the daemon's settings say otherwise: they are not asked.
_STATE_DIR: Final = Path("/var/lib/vmagentd")
_LITTLE_ROOM: Final = 1 << 30
_SLOW_S: Final = 1.0
_OLD_SURVEY: Final = timedelta(minutes=10)
_SKEW: Final = timedelta(seconds=2)
_SOON: Final = timedelta(days=30)
_BUILT: Final = datetime(2025, 1, 1, tzinfo=UTC)
_CLOCK_IS_FREE: Final = 5  # TIME_ERROR of adjtimex(2)


class Verdict(StrEnum):
    """What is thought of something; a later one is worse."""

    OK = "ok"
    WARN = "warn"
    FAIL = "fail"


_STYLES: Final = {Verdict.OK: "green", Verdict.WARN: "yellow", Verdict.FAIL: "bold red"}


@dataclass(frozen=True, slots=True)
class Check:
    """One thing that was looked at; what to do only if it is not well."""

    name: str
    verdict: Verdict
    said: str
    todo: str = ""
    code: ExitCode = ExitCode.FAILED


def doctor(
    context: typer.Context, *, target: Target = None, output: OutputOption = None
) -> ExitCode:
    """Check from outside whether all is well with vmagentd, and say what to do if it is not.

    Exit status: 0 all is well, perhaps with warnings; 1 something fails; 2 bad usage; 4 vmagentd
    cannot be reached.
    """
    common: Common = context.obj
    return asyncio.run(_report(common.daemon(target), common.form(output)))


async def _report(daemon: Daemon, output: Output) -> ExitCode:
    code, checks, screen = ExitCode.DONE, list[Check](), Screen()
    async for check in examined(daemon):
        checks.append(check)
        if check.verdict is Verdict.FAIL:
            code = max(code, check.code)
        if output is Output.TABLE:
            verdict = (f"{check.verdict:<5} ", _STYLES[check.verdict])
            todo = f"; {check.todo}" if check.todo else ""
            screen.line(verdict, f"{check.name:<12} {plain(check.said + todo)}")
    if output is not Output.TABLE:
        report = Struct()
        found = [
            {"name": c.name, "verdict": str(c.verdict), "message": c.said, "action": c.todo}
            for c in checks
        ]
        report.update({"checks": found})
        print_json(report, output)
    return code


async def examined(daemon: Daemon) -> AsyncIterator[Check]:
    """Yield all checks, those first on which others rest."""
    yield Check("client", Verdict.OK, f"vmagentctl {own_version()}, for {daemon.name}")
    if isinstance(daemon.at, Path):
        for check in _socket(daemon.at):
            yield check
        for here in (_disk(_STATE_DIR), _set_aside(_STATE_DIR), _host_clock()):
            if here is not None:
                yield here
    else:
        yield await asyncio.to_thread(_server_certificate, daemon.at)
    async for check in _asked(daemon):
        yield check


async def _asked(daemon: Daemon) -> AsyncIterator[Check]:
    """Yield what the daemon says of itself."""
    begin = time.monotonic()
    try:
        async with connect(daemon) as service:
            answer = await service.WhoAmI(WhoAmIRequest(), timeout=ANSWER_TIMEOUT_S)
    except Failure as failure:
        yield Check("daemon", Verdict.FAIL, str(failure), code=failure.code)
        return
    took_s = time.monotonic() - begin
    slow = took_s > _SLOW_S
    yield Check(
        "daemon",
        Verdict.WARN if slow else Verdict.OK,
        f"answers within {1000 * took_s:.0f} ms",
        "the host is busy, or its network" if slow else "",
    )
    for check in _caller(answer.caller):
        yield check
    if not answer.caller.role:
        return
    try:
        async with connect(daemon) as service:
            host = (await service.GetHost(GetHostRequest(), timeout=ANSWER_TIMEOUT_S)).host
    except Failure as failure:
        yield Check("host", Verdict.FAIL, str(failure), code=failure.code)
        return
    now = datetime.now(UTC)
    for check in (_versions(host), _link(host, now), _survey(host, now), _journal(host)):
        yield check
    yield _skew(host, now)


def _socket(path: Path) -> Iterator[Check]:
    """Look at the socket's file; who may do what is asked of the daemon itself."""
    try:
        found = path.stat()
    except OSError:
        return  # the call says what is in the way, and what to do
    if not stat.S_ISSOCK(found.st_mode):
        return
    said = f"of {_user(found.st_uid)}:{_group(found.st_gid)}, mode {found.st_mode & 0o777:04o}"
    if os.access(path, os.W_OK):
        yield Check("socket", Verdict.OK, f"{path} {said}")
    else:
        todo = "become root, or a member of that group"
        yield Check("socket", Verdict.FAIL, f"{path} {said}: not for you", todo)


def _user(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)


def _group(gid: int) -> str:
    try:
        return grp.getgrgid(gid).gr_name
    except KeyError:
        return str(gid)


def _disk(state_dir: Path) -> Check | None:
    try:
        disk = os.statvfs(state_dir)
    except OSError:
        return None  # it is somewhere else, or not to be seen
    return _room(disk, state_dir)


def _room(disk: os.statvfs_result, state_dir: Path) -> Check:
    free = disk.f_bavail * disk.f_frsize
    said = f"{size(free)} free in {state_dir}, where the journal is unless state_dir is set"
    if free >= _LITTLE_ROOM and (disk.f_favail or not disk.f_files):  # btrfs counts no files
        return Check("disk", Verdict.OK, said)
    # No more than that: the daemon itself tells whether it can write.
    todo = "if it is there, make room: without it no operation is accepted"
    return Check("disk", Verdict.WARN, said, todo)


def _set_aside(state_dir: Path) -> Check | None:
    """Look for journals that the daemon found damaged; it tells no client of them."""
    try:
        found = sorted(
            {
                path.name.removesuffix("-wal").removesuffix("-shm")
                for path in state_dir.glob("journal.db.corrupt-*")
            }
        )
    except OSError:
        return None  # only root may look
    if not found:
        return None
    which = "a journal was" if len(found) == 1 else f"{len(found)} journals were"
    said = f"{which} found damaged, the last is kept as {state_dir / found[-1]}"
    todo = (
        "what happened before is only in there: see why with journalctl -u vmagentd -p err, and "
        "move it away when it was looked at"
    )
    return Check("damage", Verdict.WARN, said, todo)


def _host_clock() -> Check:
    now = datetime.now(UTC)
    if now < _BUILT:
        return Check("clock", Verdict.FAIL, f"it is said to be {now:%F %T}", "set the clock")
    # struct timex is smaller; all zeros asks and sets nothing
    return _synchronised(ctypes.CDLL(None).adjtimex(ctypes.create_string_buffer(512)))


def _synchronised(state: int) -> Check:
    """Look at what adjtimex(2) answered."""
    if state < 0:  # in some containers one may not ask
        said = "whether this host's clock is synchronised is not known"
        return Check("clock", Verdict.WARN, said, "see timedatectl")
    if state == _CLOCK_IS_FREE:
        todo = "run an NTP service (timedatectl set-ntp true), or times in the journal mislead"
        return Check("clock", Verdict.WARN, "this host's clock is not synchronised", todo)
    return Check("clock", Verdict.OK, "this host's clock is synchronised")


def _server_certificate(remote: Remote) -> Check:
    try:
        end = tls.server_certificate_end(remote)
    except Failure as failure:
        return Check("certificate", Verdict.FAIL, f"of {remote.address}: {failure}")
    return _certificate(f"of {remote.address}", end)


def _certificate(whose: str, end: datetime) -> Check:
    left = end - datetime.now(UTC)
    said = f"{whose} ends at {end:%F %TZ}"
    if left < timedelta(0):
        return Check("certificate", Verdict.FAIL, said, "get a new one")
    if left < _SOON:
        return Check("certificate", Verdict.WARN, said, f"get a new one within {span(left)}")
    return Check("certificate", Verdict.OK, said)


def _caller(caller: Caller) -> Iterator[Check]:
    who = f"you are {caller.actor}"
    if not caller.role:
        todo = (
            "have an administrator add you to the group vmagentd-viewer, vmagentd-operator or "
            "vmagentd-admin, then log in again; or give you a role under [access]"
        )
        yield Check("role", Verdict.FAIL, f"{who}, without any role", todo)
    else:
        role = value_name(Role.DESCRIPTOR, caller.role).lower()
        some = f" of VMs named {', '.join(caller.vm_globs)}" if caller.vm_globs else ""
        yield Check("role", Verdict.OK, f"{who}, {role}{some}")
    if caller.origin == CallerOrigin.CALLER_ORIGIN_REMOTE:
        yield _certificate("of yours", moment_of(caller.certificate_end_time))


def _versions(host: Host) -> Check:
    said = f"vmagentd {host.daemon_version}, libvirt {host.libvirt_version or 'unknown'}"
    if host.hypervisor_version:
        said += f", {host.hypervisor_version}"
    if host.daemon_version == own_version():
        return Check("versions", Verdict.OK, said)
    todo = f"vmagentctl is {own_version()}: install the same"
    return Check("versions", Verdict.WARN, said, todo)


def _link(host: Host, now: datetime) -> Check:
    if host.link.libvirt_connected:
        return Check("libvirt", Verdict.OK, f"connected to {host.libvirt_uri}")
    since = span(now - moment_of(host.link.blind_since))
    cause = host.blind_intervals[0].cause if host.blind_intervals else "cause not known"
    todo = "on that host see systemctl status libvirtd, and virsh -c " + host.libvirt_uri
    return Check("libvirt", Verdict.FAIL, f"cannot be asked for {since}: {cause}", todo)


def _survey(host: Host, now: datetime) -> Check:
    if not host.link.HasField("last_survey_time"):
        return Check("survey", Verdict.WARN, "VMs were never looked at", "see libvirt")
    old = now - moment_of(host.link.last_survey_time)
    said = f"all VMs were last looked at {span(old)} ago"
    if old > _OLD_SURVEY and host.link.libvirt_connected:
        todo = (
            "unless survey_interval is as long, see why in the log: journalctl -u vmagentd "
            "-p warning"
        )
        return Check("survey", Verdict.WARN, said, todo)
    return Check("survey", Verdict.OK, said)


def _journal(host: Host) -> Check:
    if host.journal_writable:
        return Check("journal", Verdict.OK, f"written up to revision {host.head_revision}")
    todo = "make room on its disk, or make it writable; the log tells the cause"
    return Check("journal", Verdict.FAIL, "cannot be written: operations are refused", todo)


def _skew(host: Host, now: datetime) -> Check:
    """Compare clocks, as far as what has happened cannot be in the future."""
    latest = max(moment_of(host.ready_time), moment_of(host.link.last_survey_time))
    ahead = latest - now
    if ahead > _SKEW:
        said = f"the host's is at least {span(ahead)} ahead of this machine's"
        return Check("clocks", Verdict.WARN, said, "synchronise both by NTP")
    return Check("clocks", Verdict.OK, "nothing of the host's is in the future here")
