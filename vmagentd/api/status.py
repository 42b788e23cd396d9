"""Errors → gRPC status: one table, from which every answer that is no success is made.

A status says the same whether its error has just been raised or was stored with an operation
days ago, because both are built from the error's type, sentence and facts alone.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING

import grpc
from google.protobuf import any_pb2, duration_pb2
from google.rpc import error_details_pb2, status_pb2
from vmagent.v1 import operation_pb2

from vmagentd import errors
from vmagentd.errors import RequestError, VmagentdError
from vmagentd.model import OperationFailure

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from google.protobuf.message import Message

DOMAIN = "vmagentd"

# A status travels in HTTP/2 trailers, three times over: as text, as details and, percent-encoded,
# up to threefold. grpc clients refuse trailers from 8 KiB on and then show that refusal instead
# of the status, so a long text of libvirt's must not make it longer.
_MAX_MESSAGE = 800
_MAX_FACT = 400


class MalformedRequest(RequestError):
    """The bytes of the request are not a message of the method's type."""

    def __init__(self, expected: str, problem: str) -> None:
        super().__init__(f"the request is not a {expected}: {problem}", expected=expected)


class NotServed(RequestError):
    """The method does not exist, or not yet."""

    def __init__(self, method: str) -> None:
        super().__init__(
            f"{method} is not served by this version of the daemon; ask its server reflection "
            "for what is",
            method=method,
        )


class Fault(VmagentdError):
    """A fault of the daemon. Its own text stays in the log: it may hold anything."""

    def __init__(self, fault_id: str) -> None:
        super().__init__(
            f"a fault of the daemon; its log tells more of fault {fault_id}", fault_id=fault_id
        )


class OperationFailed(Exception):
    """The operation that the call followed did not succeed; the call ends with what is stored."""

    def __init__(self, failure: OperationFailure) -> None:
        super().__init__(failure.message)
        self.failure = failure


@dataclass(frozen=True, slots=True)
class Row:
    """How one type of error is told."""

    code: grpc.StatusCode
    # a name of the contract's `ErrorReason` without its prefix
    reason: str
    # after this time the same call may well succeed; None where only something else helps
    retry: timedelta | None = None


_SOON = timedelta(seconds=1)
_LATER = timedelta(seconds=5)

_C = grpc.StatusCode

# The order is that of the tree in errors.py.
TABLE: Mapping[type[VmagentdError], Row] = {
    errors.InvalidField: Row(_C.INVALID_ARGUMENT, "INVALID_FIELD"),
    MalformedRequest: Row(_C.INVALID_ARGUMENT, "MALFORMED_REQUEST"),
    NotServed: Row(_C.UNIMPLEMENTED, "NOT_SERVED"),
    errors.VmNotFound: Row(_C.NOT_FOUND, "VM_NOT_FOUND"),
    errors.OperationNotFound: Row(_C.NOT_FOUND, "OPERATION_NOT_FOUND"),
    errors.VmPaused: Row(_C.FAILED_PRECONDITION, "VM_PAUSED"),
    errors.VmSleeping: Row(_C.FAILED_PRECONDITION, "VM_SLEEPING"),
    errors.VmCrashed: Row(_C.FAILED_PRECONDITION, "VM_CRASHED"),
    errors.VmMigratedAway: Row(_C.FAILED_PRECONDITION, "VM_MIGRATED_AWAY"),
    errors.VmInState: Row(_C.FAILED_PRECONDITION, "VM_STATE"),
    errors.NoShutdownMethod: Row(_C.FAILED_PRECONDITION, "NO_SHUTDOWN_METHOD"),
    errors.OperationInProgress: Row(_C.ABORTED, "OPERATION_IN_PROGRESS", _SOON),
    errors.RequestIdReused: Row(_C.ALREADY_EXISTS, "REQUEST_ID_REUSED"),
    errors.RevisionCompacted: Row(_C.OUT_OF_RANGE, "REVISION_COMPACTED"),
    errors.JournalReplaced: Row(_C.FAILED_PRECONDITION, "JOURNAL_REPLACED"),
    errors.WatcherTooSlow: Row(_C.RESOURCE_EXHAUSTED, "WATCHER_TOO_SLOW", _SOON),
    errors.CallerUnknown: Row(_C.UNAUTHENTICATED, "CALLER_UNKNOWN"),
    errors.RoleDenied: Row(_C.PERMISSION_DENIED, "ROLE_DENIED"),
    errors.AccessChanged: Row(_C.ABORTED, "ACCESS_CHANGED", _SOON),
    errors.LimitReached: Row(_C.RESOURCE_EXHAUSTED, "LIMIT_REACHED", _SOON),
    errors.ShutOut: Row(_C.RESOURCE_EXHAUSTED, "LIMIT_REACHED", _LATER),
    errors.StartFailed: Row(_C.FAILED_PRECONDITION, "START_FAILED"),
    errors.HostLimitReached: Row(_C.RESOURCE_EXHAUSTED, "LIMIT_REACHED", _LATER),
    errors.StartTimedOut: Row(_C.DEADLINE_EXCEEDED, "START_TIMED_OUT"),
    errors.GraceExpired: Row(_C.DEADLINE_EXCEEDED, "GRACE_EXPIRED"),
    errors.ForceTimedOut: Row(_C.DEADLINE_EXCEEDED, "FORCE_TIMED_OUT"),
    errors.OperationTimedOut: Row(_C.DEADLINE_EXCEEDED, "OPERATION_TIMED_OUT"),
    errors.CancelledByStop: Row(_C.ABORTED, "CANCELLED_BY_STOP"),
    errors.OperationCancelled: Row(_C.ABORTED, "OPERATION_CANCELLED"),
    errors.OperationInterrupted: Row(_C.ABORTED, "OPERATION_INTERRUPTED", _SOON),
    errors.LibvirtUnreachable: Row(_C.UNAVAILABLE, "LIBVIRT_UNREACHABLE", _LATER),
    # No retry: the call may still take effect, and the event or the next query tells.
    errors.OutcomeUnknown: Row(_C.UNAVAILABLE, "LIBVIRT_TIMED_OUT"),
    errors.LibvirtInvalidState: Row(_C.FAILED_PRECONDITION, "VM_STATE"),
    errors.LibvirtBusy: Row(_C.ABORTED, "LIBVIRT_BUSY", _SOON),
    errors.LibvirtDenied: Row(_C.PERMISSION_DENIED, "LIBVIRT_DENIED"),
    errors.LibvirtUnsupported: Row(_C.UNIMPLEMENTED, "LIBVIRT_UNSUPPORTED"),
    errors.HostExhausted: Row(_C.RESOURCE_EXHAUSTED, "HOST_EXHAUSTED"),
    errors.LibvirtRefused: Row(_C.FAILED_PRECONDITION, "LIBVIRT_REFUSED"),
    errors.JournalUnwritable: Row(_C.UNAVAILABLE, "JOURNAL_UNWRITABLE", _LATER),
    errors.ShuttingDown: Row(_C.UNAVAILABLE, "SHUTTING_DOWN", _SOON),
    Fault: Row(_C.INTERNAL, "FAULT"),
}

_BY_NAME = {error.__name__: row for error, row in TABLE.items()}


def tells(error: BaseException) -> bool:
    """Return whether *error* is one that a client is told of; any other is a fault of ours."""
    return type(error) in TABLE or isinstance(error, OperationFailed)


def status_of(error: BaseException) -> status_pb2.Status:
    """Return the status that ends a call because of *error*, one that `tells`."""
    if isinstance(error, OperationFailed):
        return _status(error.failure)
    facts = error.facts if isinstance(error, VmagentdError) else {}
    return _status(OperationFailure(error=type(error).__name__, message=str(error), facts=facts))


def operation_error(failure: OperationFailure) -> operation_pb2.OperationError:
    """Return why an operation did not succeed: the facts of the status that ended its call."""
    row, failure = _row(failure)
    return operation_pb2.OperationError(
        code=row.code.value[0],
        reason=row.reason,
        message=failure.message,
        metadata=failure.facts,
    )


def _row(failure: OperationFailure) -> tuple[Row, OperationFailure]:
    row = _BY_NAME.get(failure.error)
    if row is not None:
        return row, failure
    # Stored by a version with other errors, or no error of ours at all: then its text is not
    # for clients.
    told = f"the operation ended by a fault of the daemon ({failure.error}); its log tells more"
    return TABLE[Fault], OperationFailure(error=Fault.__name__, message=told)


def _status(failure: OperationFailure) -> status_pb2.Status:
    row, failure = _row(failure)
    return status_pb2.Status(
        code=row.code.value[0],
        message=_clipped(failure.message, _MAX_MESSAGE),
        details=[_any(detail) for detail in _details(row, failure)],
    )


def _details(row: Row, failure: OperationFailure) -> Iterator[Message]:
    facts = {name: _clipped(fact, _MAX_FACT) for name, fact in failure.facts.items()}
    yield error_details_pb2.ErrorInfo(reason=row.reason, domain=DOMAIN, metadata=facts)
    if row.retry is not None:
        delay = duration_pb2.Duration()
        delay.FromTimedelta(row.retry)
        yield error_details_pb2.RetryInfo(retry_delay=delay)
    if failure.error == errors.InvalidField.__name__:
        field = facts.get("field", "")
        problem = failure.message.removeprefix(f"{field}: ")
        yield error_details_pb2.BadRequest(
            field_violations=[
                error_details_pb2.BadRequest.FieldViolation(
                    field=field, description=_clipped(problem, _MAX_FACT)
                )
            ]
        )
    quota = _quota(failure.error, facts)
    if quota is not None:
        yield error_details_pb2.QuotaFailure(violations=[quota])


def _quota(
    error: str, facts: Mapping[str, str]
) -> error_details_pb2.QuotaFailure.Violation | None:
    match error:
        case errors.HostExhausted.__name__:
            subject, description = "host", facts.get("libvirt_message", "")
        case (
            errors.LimitReached.__name__
            | errors.ShutOut.__name__
            | errors.HostLimitReached.__name__
        ):
            subject = facts.get("subject", "")
            description = f"{facts.get('allowed', '')} {facts.get('limit', '')}"
        case _:
            return None
    return error_details_pb2.QuotaFailure.Violation(subject=subject, description=description)


def _any(detail: Message) -> any_pb2.Any:
    packed = any_pb2.Any()
    packed.Pack(detail)
    return packed


def _clipped(text: str, limit: int) -> str:
    """Return *text* in at most *limit* bytes of UTF-8."""
    if len(text.encode()) <= limit:
        return text
    return text.encode()[: limit - 3].decode(errors="ignore") + "…"
