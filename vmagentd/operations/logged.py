"""What the log tells of an operation beside its message."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from vmagentd.model import Operation


def log_fields(operation: Operation) -> dict[str, object]:
    """Return the fields of a log record that is about *operation*."""
    return {
        "VM_UUID": operation.vm,
        "VM_NAME": operation.vm_name,
        "OPERATION_ID": operation.id,
        "ACTOR": operation.actor,
    }
