"""What went wrong, as one line for people and an exit code for scripts.

The daemon's typed reason decides the exit code, never a text. A status without a reason does not
come from the daemon's own logic but from the way to it.
"""

from __future__ import annotations

from enum import IntEnum
from typing import TYPE_CHECKING, TypeVar, cast

import grpc
from google.rpc.error_details_pb2 import ErrorInfo, RetryInfo
from grpc_status import rpc_status

from vmagent.ctl.words import plain
from vmagent.v1.error_reason_pb2 import ErrorReason

if TYPE_CHECKING:
    from datetime import timedelta

    from google.protobuf.message import Message
    from grpc.aio import AioRpcError

    from vmagent.v1.operation_pb2 import OperationError


class ExitCode(IntEnum):
    """How vmagentctl ends. Of several results the highest number wins."""

    DONE = 0
    FAILED = 1
    USAGE = 2
    NOT_FOUND = 3
    UNREACHABLE = 4


class Failure(Exception):
    """Ends a command: one line that says why, and the exit code."""

    def __init__(self, sentence: str, code: ExitCode, reason: str = "") -> None:
        super().__init__(plain(sentence) + (f" [{plain(reason)}]" if reason else ""))
        self.code = code


_BY_REASON = {
    ErrorReason.ERROR_REASON_INVALID_FIELD: ExitCode.USAGE,
    ErrorReason.ERROR_REASON_MALFORMED_REQUEST: ExitCode.USAGE,
    ErrorReason.ERROR_REASON_VM_NOT_FOUND: ExitCode.NOT_FOUND,
    ErrorReason.ERROR_REASON_OPERATION_NOT_FOUND: ExitCode.NOT_FOUND,
    ErrorReason.ERROR_REASON_SHUTTING_DOWN: ExitCode.UNREACHABLE,
}
_BY_STATUS = {
    grpc.StatusCode.INVALID_ARGUMENT: ExitCode.USAGE,
    grpc.StatusCode.NOT_FOUND: ExitCode.NOT_FOUND,
}
_NO_ANSWER = {
    grpc.StatusCode.UNAVAILABLE,
    grpc.StatusCode.DEADLINE_EXCEEDED,  # our own: those of the daemon come with a reason
    grpc.StatusCode.CANCELLED,
}
# What a connection that breaks looks like, too.
_BROKEN = _NO_ANSWER | {grpc.StatusCode.INTERNAL, grpc.StatusCode.UNKNOWN}
_STATUS_BY_NUMBER = {code.value[0]: code for code in grpc.StatusCode}
_Detail = TypeVar("_Detail", bound="Message")


def exit_code(status: grpc.StatusCode, reason: str) -> ExitCode:
    """Return how vmagentctl ends after a call that ended like this."""
    value = ErrorReason.DESCRIPTOR.values_by_name.get(f"ERROR_REASON_{reason}")
    if value is not None:
        return _BY_REASON.get(ErrorReason.ValueType(value.number), ExitCode.FAILED)
    if not reason and status in _NO_ANSWER:
        return ExitCode.UNREACHABLE
    return _BY_STATUS.get(status, ExitCode.FAILED)  # also a newer daemon's reasons


def reason_of(error: AioRpcError) -> str:
    """Return the daemon's reason; empty if the status is not its own."""
    info = _detail(error, ErrorInfo)
    return info.reason if info else ""


def broken(error: AioRpcError) -> bool:
    """Return whether a call may have ended because its connection broke."""
    return error.code() in _BROKEN and not reason_of(error)


def retry_delay_of(error: AioRpcError) -> timedelta | None:
    """Return how long the daemon wants to be left alone; None if it said nothing of it."""
    retry = _detail(error, RetryInfo)
    return retry.retry_delay.ToTimedelta() if retry else None


def refusal(error: AioRpcError) -> Failure:
    """Return what the daemon said as it ended a call."""
    reason = reason_of(error)
    sentence = error.details() or error.code().name
    return Failure(sentence, exit_code(error.code(), reason), reason)


def outcome(error: OperationError) -> Failure:
    """Return why an operation did not succeed, as it is kept with the operation."""
    status = _STATUS_BY_NUMBER.get(error.code, grpc.StatusCode.UNKNOWN)
    code = exit_code(status, error.reason)
    if code is ExitCode.UNREACHABLE:  # the error is kept, so the daemon was reached
        code = ExitCode.FAILED
    return Failure(error.message or "the operation failed", code, error.reason)


def _detail(error: AioRpcError, kind: type[_Detail]) -> _Detail | None:
    try:
        # The error has the three methods of a call that this reads.
        status = rpc_status.from_call(cast("grpc.Call", error))
    except ValueError:  # code or text differ from the status beside them: not made by the daemon
        return None
    for packed in status.details if status else ():
        detail = kind()
        if packed.Unpack(detail):
            return detail
    return None
