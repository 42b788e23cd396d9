"""What the contract's methods do: decode, call, encode.

Each method belongs to one part; every one may raise errors of ours, see `boundary.py`.

    operating   does something to a VM
    reading     reads what the journal has
    watching    streams what there is and what changes
    hosting     tells of the host, and of who asks
    auditing    tells who did what
"""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING

from vmagent.v1 import vm_agent_service_pb2 as pb

from vmagentd.api.servicer.auditing import Auditing
from vmagentd.api.servicer.hosting import HostFacts, Hosting
from vmagentd.api.servicer.operating import Operating
from vmagentd.api.servicer.reading import Reading
from vmagentd.api.servicer.watching import Watching

if TYPE_CHECKING:
    from vmagentd.journal.store import Journal
    from vmagentd.operations.engine import Operations
    from vmagentd.watch import Watch

__all__ = ["SERVICE", "HostFacts", "Servicer"]

SERVICE = pb.DESCRIPTOR.services_by_name["VmAgentService"]


class Servicer:
    """Answers for VmAgentService."""

    def __init__(
        self,
        *,
        journal: Journal,
        operations: Operations,
        watch: Watch,
        host: HostFacts,
        stall_timeout: timedelta = timedelta(seconds=30),
    ) -> None:
        """Prepare.

        Args:
            journal: what is known.
            operations: does something to VMs.
            watch: what watchers see.
            host: what is told of the host beside that.
            stall_timeout: how long a watcher may leave unread what it was sent.
        """
        self.watching = Watching(watch, stall_timeout=stall_timeout)
        # each has the methods that it is named for; together they have all
        self.parts = (
            Operating(journal, operations),
            Reading(journal, host.starts),
            self.watching,
            Hosting(journal, host),
            Auditing(journal),
        )
