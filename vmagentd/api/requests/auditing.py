"""Requests to read what was asked for, and what was refused."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from vmagentd.api import convert
from vmagentd.api.pages import Pages
from vmagentd.api.requests.fields import (
    Reference,
    after_revision,
    choices,
    interval,
    name,
    page_size,
    reference,
)
from vmagentd.model import AuditFilter

if TYPE_CHECKING:
    from vmagent.v1.vm_agent_service_pb2 import ListAuditRecordsRequest


@dataclass(frozen=True, slots=True, kw_only=True)
class AuditRecords:
    """A parsed ListAuditRecordsRequest; `which` still lacks the VM, which is in `vm`."""

    vm: Reference | None
    which: AuditFilter
    page_size: int
    # sequence number of the last record of the page before
    before: int | None
    pages: Pages


def audit_records(request: ListAuditRecordsRequest, secret: bytes) -> AuditRecords:
    """Parse which records to read; a page token is good where the *secret* is the same."""
    name("actor", request.actor)
    since, until = interval(request, "min_time", "max_time")
    pages = Pages(request, secret)
    return AuditRecords(
        vm=reference("vm", request.vm) if request.vm else None,
        which=AuditFilter(
            actor=request.actor or None,
            kinds=choices("kinds", request.kinds, convert.AUDIT_KIND),
            min_time=since,
            max_time=until,
        ),
        page_size=page_size(request.page_size, 100),
        before=after_revision(pages.after(request.page_token)),
        pages=pages,
    )
