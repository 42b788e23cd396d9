"""What each command does, once its options are understood."""

from __future__ import annotations

import copy
import uuid
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError
from importlib.metadata import version as version_of
from typing import TYPE_CHECKING

from google.protobuf.struct_pb2 import Struct

from vmagent.ctl.channel import ANSWER_TIMEOUT_S, connect
from vmagent.ctl.errand import Errand
from vmagent.ctl.failures import ExitCode
from vmagent.ctl.host import print_host
from vmagent.ctl.lines import history_lines
from vmagent.ctl.listing import print_pages
from vmagent.ctl.pages import (
    history_pages,
    list_requests,
    vm_pages,
    whole_history,
    whole_list,
)
from vmagent.ctl.screen import Output, Screen, print_json
from vmagent.ctl.vms import print_page, print_table
from vmagent.ctl.watching import WatchPrinter
from vmagent.ctl.words import NOTHING, plain
from vmagent.v1.vm_agent_service_pb2 import (
    GetHostRequest,
    GetVmRequest,
)

if TYPE_CHECKING:
    from collections.abc import Iterable

    from vmagent.ctl.errand import Request, Way
    from vmagent.ctl.follow import Follower
    from vmagent.ctl.operate import Operations
    from vmagent.ctl.targets import Daemon
    from vmagent.v1.vm_agent_service_pb2 import (
        ListTransitionsRequest,
        ListTransitionsResponse,
    )
    from vmagent.v1.vm_pb2 import VmState


def now() -> datetime:
    """Return the present time in this machine's zone."""
    return datetime.now(UTC).astimezone()


async def list_vms(
    daemon: Daemon,
    output: Output,
    states: Iterable[VmState.ValueType],
    name_glob: str,
    *,
    with_gone: bool,
) -> ExitCode:
    """List VMs."""
    requests = list_requests(states, name_glob, with_gone=with_gone)
    return await print_pages(
        daemon,
        output,
        lambda service: vm_pages(service, requests),
        whole_list,
        lambda screen, answer: print_table(screen, answer.vms, answer.link, now()),
    )


async def show_vm(daemon: Daemon, output: Output, vm: str) -> ExitCode:
    """Show one VM."""
    async with connect(daemon) as service:
        answer = await service.GetVm(GetVmRequest(vm=vm), timeout=ANSWER_TIMEOUT_S)
    if output is Output.TABLE:
        print_page(Screen(), answer.vm, answer.link, now())
    else:
        print_json(answer, output)
    return ExitCode.DONE


async def show_history(
    daemon: Daemon, output: Output, request: ListTransitionsRequest, limit: int
) -> ExitCode:
    """Print history."""

    def show(screen: Screen, answer: ListTransitionsResponse) -> None:
        if not answer.transitions and not answer.blind_intervals:
            screen.line("no history")
        for line in history_lines(answer, oldest_first=request.oldest_first):
            screen.line(line)

    return await print_pages(
        daemon,
        output,
        lambda service: history_pages(service, request, limit),
        whole_history,
        show,
        rest="newer" if request.oldest_first else "older",
    )


async def show_host(daemon: Daemon, output: Output) -> ExitCode:
    """Show the host."""
    async with connect(daemon) as service:
        answer = await service.GetHost(GetHostRequest(), timeout=ANSWER_TIMEOUT_S)
    if output is Output.TABLE:
        print_host(Screen(), answer.host, now())
    else:
        print_json(answer, output)
    return ExitCode.DONE


async def show_version(daemon: Daemon, output: Output) -> ExitCode:
    """Show the versions of this program and of the daemon, as far as it can be reached."""
    screen = Screen()
    if output is Output.TABLE:  # at once: it is known without the daemon
        screen.line(f"vmagentctl  {own_version()}")
    async with connect(daemon) as service:
        answer = await service.GetHost(GetHostRequest(), timeout=ANSWER_TIMEOUT_S)
    host = answer.host
    if output is Output.TABLE:
        screen.line(f"vmagentd    {plain(host.daemon_version)} on {plain(host.name)}")
        screen.line(f"libvirt     {plain(host.libvirt_version) or NOTHING}")
        screen.line(f"hypervisor  {plain(host.hypervisor_version) or NOTHING}")
        return ExitCode.DONE
    versions = Struct()
    versions.update(
        {
            "clientVersion": own_version(),
            "daemonVersion": host.daemon_version,
            "libvirtVersion": host.libvirt_version,
            "hypervisorVersion": host.hypervisor_version,
        }
    )
    print_json(versions, output)
    return ExitCode.DONE


def own_version() -> str:
    """Return the version of this program."""
    try:
        return version_of("vmagentd-client")
    except PackageNotFoundError:  # run from a source tree that is not installed
        return "unknown"


async def watch(follower: Follower, output: Output) -> ExitCode:
    """Watch, until interrupted or refused; a place without a journal is in the present one."""
    if follower.place is not None and not follower.place.journal_id:
        follower.place.journal_id = await _present_journal(follower.daemon)
    printer = WatchPrinter(Screen(), now)
    async for response in follower.responses():
        if output is Output.TABLE:
            printer.print(response, begins=follower.begins)
        else:
            print_json(response, output)
    return ExitCode.DONE


async def _present_journal(daemon: Daemon) -> str:
    async with connect(daemon) as service:
        answer = await service.GetHost(GetHostRequest(), timeout=ANSWER_TIMEOUT_S)
    return answer.host.journal_id


async def operate(
    way: Way, operations: Operations, vms: Iterable[str], request: Request
) -> ExitCode:
    """Do something to VMs, each by a copy of *request*, if need be with an identity of its own."""
    async with way:

        def errand(vm: str) -> Errand:
            own = copy.deepcopy(request)
            own.vm = vm
            own.request_id = request.request_id or str(uuid.uuid4())
            return Errand(way, own)

        return await operations.run(vms, errand)
