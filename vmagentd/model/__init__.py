"""The words of the daemon as types: VM, fact, transition, operation.

Pure values: frozen, without behaviour beyond what follows from their own fields. They cross
threads freely. Names of states, reasons and phases are those of the protobuf contract without
their prefix. One vocabulary, so it is imported from one place: here.
"""

from vmagentd.model.facts import (
    Event,
    EventKind,
    HostBooted,
    HostGoingDown,
    HypervisorFacts,
    LinkLost,
    Query,
    Sighting,
    Survey,
)
from vmagentd.model.journal import BlindInterval, Cursor, HistoryFilter, Link
from vmagentd.model.names import JournalId, OperationId, Revision, VmUuid
from vmagentd.model.operation import (
    JoinedRequest,
    OnGraceExpired,
    Operation,
    OperationFailure,
    OperationOutcome,
    OperationPhase,
    OperationStep,
    OperationVerb,
    StartParameters,
    StopMode,
    StopParameters,
)
from vmagentd.model.vm import (
    UNKNOWN_INITIATOR,
    Initiator,
    InitiatorKind,
    RawPair,
    Reason,
    Source,
    StartError,
    Transition,
    TransitionKind,
    Unresponsive,
    Vm,
    VmState,
)

__all__ = [
    "UNKNOWN_INITIATOR",
    "BlindInterval",
    "Cursor",
    "Event",
    "EventKind",
    "HistoryFilter",
    "HostBooted",
    "HostGoingDown",
    "HypervisorFacts",
    "Initiator",
    "InitiatorKind",
    "JoinedRequest",
    "JournalId",
    "Link",
    "LinkLost",
    "OnGraceExpired",
    "Operation",
    "OperationFailure",
    "OperationId",
    "OperationOutcome",
    "OperationPhase",
    "OperationStep",
    "OperationVerb",
    "Query",
    "RawPair",
    "Reason",
    "Revision",
    "Sighting",
    "Source",
    "StartError",
    "StartParameters",
    "StopMode",
    "StopParameters",
    "Survey",
    "Transition",
    "TransitionKind",
    "Unresponsive",
    "Vm",
    "VmState",
    "VmUuid",
]
