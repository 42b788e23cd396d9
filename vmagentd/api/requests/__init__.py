"""Protobuf → model: what a client asks, parsed once.

Nothing of a request is believed before it has passed here, and nothing is checked again behind
it. Whatever is wrong is one `InvalidField` with the field's path as the contract writes it.

    auditing    what was asked for, and what was refused
    fields      what a single field may be
    operating   operations: Start, Stop and the other verbs
    reading     lists and their pages
    watching    watches
"""

from vmagentd.api.requests.auditing import AuditRecords, audit_records
from vmagentd.api.requests.fields import (
    MAX_NAME_BYTES,
    MAX_PAGE_SIZE,
    MAX_REVISION,
    MAX_WATCHED_VMS,
    Reference,
    operation_id,
    operation_key,
    reference,
)
from vmagentd.api.requests.operating import Asked, pause, reboot, resume, start, stop
from vmagentd.api.requests.reading import (
    History,
    ListOperations,
    ListVms,
    history,
    list_operations,
    list_vms,
)
from vmagentd.api.requests.watching import Watch, watch

__all__ = [
    "MAX_NAME_BYTES",
    "MAX_PAGE_SIZE",
    "MAX_REVISION",
    "MAX_WATCHED_VMS",
    "Asked",
    "AuditRecords",
    "History",
    "ListOperations",
    "ListVms",
    "Reference",
    "Watch",
    "audit_records",
    "history",
    "list_operations",
    "list_vms",
    "operation_id",
    "operation_key",
    "pause",
    "reboot",
    "reference",
    "resume",
    "start",
    "stop",
    "watch",
]
