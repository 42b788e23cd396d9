"""Whoever asks for an operation, joins it or cancels it is told of afterwards."""

from __future__ import annotations

import asyncio
from contextlib import aclosing
from typing import TYPE_CHECKING

from tests.component.operations.site import DEADLINE_S, FORCED, STOP, somebody
from vmagentd.model import AuditFilter, AuditKind, OperationPhase

if TYPE_CHECKING:
    from tests.component.operations.site import Daemon, Site
    from vmagentd.model import AuditRecord

OPERATION, JOINED = AuditKind.OPERATION, AuditKind.JOINED


async def records(daemon: Daemon) -> list[AuditRecord]:
    """Return all records, oldest first."""
    return list(reversed(await daemon.journal.audit_records(AuditFilter(), limit=100)))


async def test_an_operation(daemon: Daemon) -> None:
    done = await daemon.done("a", FORCED)
    (record,) = await records(daemon)
    assert (record.kind, record.operation, record.vm) == (OPERATION, done.id, done.vm)
    assert (record.actor, record.peer) == ("tester", "uid 1000, pid 1")
    assert (record.method, record.phase) == ("Stop", OperationPhase.SUCCEEDED)
    assert (record.time, record.end_time) == (done.accept_time, done.end_time)


async def test_who_joins_escalates_and_cancels(here: Site, daemon: Daemon) -> None:
    here.domains.deaf()
    stop_id, stop = await daemon.under_way("a", STOP, OperationPhase.SIGNALLED)
    async with aclosing(daemon.ask("a", STOP, actor="bob")) as joined:
        await anext(joined)
    told = [(r.kind, r.actor, r.method, r.phase) for r in await records(daemon)]
    assert told == [
        (OPERATION, "tester", "Stop", OperationPhase.SIGNALLED),
        (JOINED, "bob", "Stop", OperationPhase.SIGNALLED),
    ]
    async with asyncio.timeout(DEADLINE_S):
        await daemon.operations.cancel(stop_id, caller=somebody("eve"))
        await stop
    after = await records(daemon)
    assert [(r.kind, r.actor, r.method) for r in after] == [
        (OPERATION, "tester", "Stop"),
        (JOINED, "bob", "Stop"),
        (JOINED, "eve", "CancelOperation"),
    ]
    assert {r.phase for r in after} == {OperationPhase.CANCELLED}
    assert {r.operation for r in after} == {stop_id}


async def test_a_repeat_of_the_same_request_is_the_same_request(daemon: Daemon) -> None:
    first = await daemon.done("a", FORCED, request_id="r")
    assert await daemon.done("a", FORCED, request_id="r") == first
    assert len(await records(daemon)) == 1


async def test_who_forces_is_on_record_before_anything_is_forced(
    here: Site, daemon: Daemon
) -> None:
    here.domains.deaf()
    seen: list[AuditRecord] = []

    async def look() -> None:
        seen.extend(await records(daemon))

    here.domains.before["destroy"] = look
    stop_id, stop = await daemon.under_way("a", STOP, OperationPhase.SIGNALLED)
    await daemon.done("a", FORCED, actor="eve")
    await stop
    assert [(r.kind, r.actor, r.operation) for r in seen] == [
        (OPERATION, "tester", stop_id),
        (JOINED, "eve", stop_id),
    ]
    assert {r.phase for r in await records(daemon)} == {OperationPhase.SUCCEEDED}
