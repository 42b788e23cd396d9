"""The calls about the host, and about who asks."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from vmagent.v1 import host_pb2
from vmagent.v1 import vm_agent_service_pb2 as pb

from vmagentd.api import access, convert

if TYPE_CHECKING:
    from collections.abc import Callable
    from datetime import datetime

    from grpc import aio

    from vmagentd.journal.store import Journal
    from vmagentd.model import HypervisorFacts
    from vmagentd.operations.starts import Starts

    _Context = aio.ServicerContext[Any, Any]

_HOST_BLIND_INTERVALS = 20


@dataclass(frozen=True, slots=True, kw_only=True)
class HostFacts:
    """What GetHost tells beside the journal."""

    name: str
    daemon_version: str
    libvirt_uri: str
    boot_id: str
    start_time: datetime
    # None before the daemon is ready
    ready_time: Callable[[], datetime | None]
    # None before the first connection
    hypervisor: Callable[[], HypervisorFacts | None]
    starts: Starts


class Hosting:
    """Serves GetHost and WhoAmI."""

    def __init__(self, journal: Journal, host: HostFacts) -> None:
        self._journal = journal
        self._host = host

    async def GetHost(self, _request: pb.GetHostRequest, _context: _Context) -> pb.GetHostResponse:
        """Return the host."""
        journal, host = self._journal, self._host
        blind = await journal.blind_intervals(limit=_HOST_BLIND_INTERVALS)
        caller, facts = access.caller(), host.hypervisor()
        vms = [vm for vm in journal.vms.values() if caller.sees(vm.name)]
        return pb.GetHostResponse(
            host=host_pb2.Host(
                name=host.name,
                daemon_version=host.daemon_version,
                libvirt_version=facts.libvirt_version if facts else "",
                hypervisor_version=facts.hypervisor_version if facts else "",
                libvirt_uri=host.libvirt_uri,
                boot_id=host.boot_id,
                journal_id=journal.id,
                head_revision=journal.head,
                oldest_revision=journal.oldest,
                journal_writable=journal.writable,
                link=convert.link(journal.link),
                blind_intervals=map(convert.blind_interval, blind),
                state_counts=convert.state_counts(vms),
                capacity=convert.capacity(vms, facts, host.starts),
                ready_time=convert.timestamp(host.ready_time()),
                start_time=convert.timestamp(host.start_time),
            )
        )

    async def WhoAmI(self, _request: pb.WhoAmIRequest, _context: _Context) -> pb.WhoAmIResponse:
        """Return who asks."""
        return pb.WhoAmIResponse(caller=convert.caller(access.caller()))
