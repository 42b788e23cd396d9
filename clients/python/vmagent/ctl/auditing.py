"""`vmagentctl audit`: who asked for what, from where, and how it ended."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated

import typer
from rich.text import Text

from vmagent.ctl.failures import ExitCode  # noqa: TC001 - typer reads the annotations
from vmagent.ctl.listing import print_pages
from vmagent.ctl.moments import parse_time
from vmagent.ctl.options import Common, LimitOption, OutputOption, Target, read
from vmagent.ctl.pages import audit_pages, joined
from vmagent.ctl.words import NOTHING, clock, phase_word, plain, short
from vmagent.v1.access_pb2 import AuditKind
from vmagent.v1.vm_agent_service_pb2 import ListAuditRecordsRequest

if TYPE_CHECKING:
    from vmagent.ctl.screen import Screen
    from vmagent.v1.access_pb2 import AuditRecord
    from vmagent.v1.vm_agent_service_pb2 import ListAuditRecordsResponse

_TITLES = ("SEQUENCE", "TIME", "ACTOR", "FROM", "WHAT", "VM", "HOW")


class Kind(StrEnum):
    """What a record tells of."""

    OPERATION = "operation"
    JOINED = "joined"
    REFUSAL = "refusal"


_KINDS = {
    Kind.OPERATION: AuditKind.AUDIT_KIND_OPERATION,
    Kind.JOINED: AuditKind.AUDIT_KIND_JOINED,
    Kind.REFUSAL: AuditKind.AUDIT_KIND_REFUSAL,
}


def audit(
    context: typer.Context,
    *,
    vm: Annotated[str, typer.Option(metavar="VM", help="Only what concerns this VM.")] = "",
    actor: Annotated[
        str, typer.Option(metavar="ACTOR", help="Only what this actor did, like user:root.")
    ] = "",
    kind: Annotated[
        list[Kind] | None,
        typer.Option(metavar="|".join(Kind), help="Only records of this kind. May be repeated."),
    ] = None,
    since: Annotated[
        str | None, typer.Option(metavar="TIME", help="From this time or age (2h) on.")
    ] = None,
    until: Annotated[
        str | None, typer.Option(metavar="TIME", help="Before this time or age.")
    ] = None,
    limit: LimitOption = 100,
    target: Target = None,
    output: OutputOption = None,
) -> ExitCode:
    """Show who asked for what and who was refused, newest first. For administrators."""
    common: Common = context.obj
    request = ListAuditRecordsRequest(
        vm=vm, actor=actor, kinds=[_KINDS[each] for each in kind or ()]
    )
    if since is not None:
        request.min_time.FromDatetime(read("--since", since, _time))
    if until is not None:
        request.max_time.FromDatetime(read("--until", until, _time))
    return asyncio.run(
        print_pages(
            common.daemon(target),
            common.form(output),
            lambda service: audit_pages(service, request, limit),
            joined,
            _print_table,
        )
    )


def _time(text: str) -> datetime:
    return parse_time(text, datetime.now(UTC).astimezone())


def _print_table(screen: Screen, answer: ListAuditRecordsResponse) -> None:
    screen.table(_TITLES, map(_row, answer.records), nothing="no audit records")


def _row(record: AuditRecord) -> list[str | Text]:
    return [
        str(record.sequence),
        clock(record.time),
        plain(record.actor) or NOTHING,
        plain(record.peer) or NOTHING,
        plain(record.method) or "connect",
        plain(record.vm_name or record.vm_uuid) or NOTHING,
        _how(record),
    ]


def _how(record: AuditRecord) -> Text:
    text = Text()
    if record.kind == AuditKind.AUDIT_KIND_REFUSAL:
        text.append("refused", style="bold red")
    else:
        joined = record.kind == AuditKind.AUDIT_KIND_JOINED
        text.append("joined " if joined else "")
        text.append(f"operation {short(record.operation_id)} {phase_word(record.phase)}")
    if record.reason:
        text.append(f": {plain(record.reason)}")
    if record.count > 1:
        text.append(f", {record.count} times until {clock(record.end_time)}")
    return text
