"""What can be told afterwards: who asked for what, from where, and how it ended."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from enum import auto

from vmagentd.model.names import Name, OperationId, VmUuid
from vmagentd.model.operation import OperationFailure, OperationPhase


class AuditKind(Name):
    """What an audit record tells of."""

    OPERATION = auto()
    JOINED = auto()
    REFUSAL = auto()


@dataclass(frozen=True, slots=True, kw_only=True)
class Refusal:
    """A call or a connection that was refused, and how often it was by now.

    A later one with the same `id` takes its place.
    """

    id: str
    # of the first one, of the last one
    time: datetime
    end_time: datetime
    # empty if nobody could tell
    actor: str
    peer: str
    certificate_fingerprint: str | None = None
    # empty for a connection that came to no call
    method: str
    vm: VmUuid | None = None
    # its name, or the reference that was given
    vm_name: str = ""
    failure: OperationFailure
    count: int = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class AuditRecord:
    """One thing that was asked for, or refused; see the contract's `AuditRecord`."""

    sequence: int
    kind: AuditKind
    time: datetime
    end_time: datetime | None
    actor: str
    peer: str
    certificate_fingerprint: str | None
    method: str
    vm: VmUuid | None
    vm_name: str
    operation: OperationId | None
    phase: OperationPhase | None
    failure: OperationFailure | None
    count: int


@dataclass(frozen=True, slots=True, kw_only=True)
class AuditFilter:
    """Which audit records to read. None and empty mean no bound; `max_time` is not included."""

    vm: VmUuid | None = None
    # beside `vm`: how a VM may have been called by those who were told nothing of it
    vm_names: tuple[str, ...] = ()
    actor: str | None = None
    kinds: frozenset[AuditKind] = frozenset()
    min_time: datetime | None = None
    max_time: datetime | None = None
