"""The call that tells who did what."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from vmagent.v1 import vm_agent_service_pb2 as pb

from vmagentd.api import convert, requests
from vmagentd.model import VmUuid

if TYPE_CHECKING:
    from grpc import aio

    from vmagentd.api.requests import Reference
    from vmagentd.journal.store import Journal
    from vmagentd.model import AuditFilter

    _Context = aio.ServicerContext[Any, Any]


class Auditing:
    """Serves ListAuditRecords."""

    def __init__(self, journal: Journal) -> None:
        self._journal = journal

    async def ListAuditRecords(
        self, request: pb.ListAuditRecordsRequest, _context: _Context
    ) -> pb.ListAuditRecordsResponse:
        """Return a page of audit records."""
        asked = requests.audit_records(request, self._journal.secret)
        which = self._of(asked.vm, asked.which) if asked.vm else asked.which
        # One more than asked for tells whether another page follows.
        rows = await self._journal.audit_records(
            which, limit=asked.page_size + 1, before=asked.before
        )
        page = rows[: asked.page_size]
        more = len(rows) > len(page)
        return pb.ListAuditRecordsResponse(
            records=map(convert.audit_record, page),
            next_page_token=asked.pages.token(str(page[-1].sequence)) if more else "",
        )

    def _of(self, reference: Reference, which: AuditFilter) -> AuditFilter:
        """Narrow *which* to a VM, which may be one that nobody knows any more, or never did."""
        known = (self._journal.find(spelling) for spelling in reference)
        vm = next((vm.uuid for vm in known if vm is not None), VmUuid(reference[0]))
        return replace(which, vm=vm, vm_names=reference)
