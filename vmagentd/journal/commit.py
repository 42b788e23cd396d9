"""What one commit writes.

A plain function over a connection: who calls it owns that and its transaction.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from vmagentd.journal.audit import note
from vmagentd.journal.rows import (
    BOOT_HEAD,
    BOOT_ID,
    insert_transitions,
    write_joined,
    write_link,
    write_meta,
    write_operations,
    write_vms,
)

if TYPE_CHECKING:
    from peewee import SqliteDatabase

    from vmagentd.journal.batch import Batch


def write_batch(db: SqliteDatabase, batch: Batch, *, booted: bool) -> None:
    """Write all that *batch* changes; the host's boot only if it is *booted* since."""
    changed = batch.confirmed | {transition.vm.uuid for transition in batch.transitions}
    insert_transitions(db, batch.transitions)
    write_vms(db, (batch.vms[vm] for vm in changed))
    write_operations(db, batch.operations.values())
    write_joined(db, batch.joined)
    note(db, batch.operations.values(), batch.joined, batch.refusals)
    for link in batch.links:
        write_link(db, link)
    if booted and batch.boot_id is not None:
        write_meta(db, BOOT_ID, batch.boot_id)
        write_meta(db, BOOT_HEAD, str(batch.head))
