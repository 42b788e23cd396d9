from __future__ import annotations

import grpc
import pytest
from vmagent.ctl.failures import ExitCode, Failure, exit_code, outcome
from vmagent.v1.error_reason_pb2 import ErrorReason
from vmagent.v1.operation_pb2 import OperationError

CODES = {
    "INVALID_FIELD": ExitCode.USAGE,
    "MALFORMED_REQUEST": ExitCode.USAGE,
    "VM_NOT_FOUND": ExitCode.NOT_FOUND,
    "OPERATION_NOT_FOUND": ExitCode.NOT_FOUND,
    "SHUTTING_DOWN": ExitCode.UNREACHABLE,
}
REASONS = [name.removeprefix("ERROR_REASON_") for name in ErrorReason.keys()[1:]]


@pytest.mark.parametrize("reason", REASONS)
@pytest.mark.parametrize("status", [grpc.StatusCode.NOT_FOUND, grpc.StatusCode.UNAVAILABLE])
def test_the_reason_decides_whatever_the_status(reason: str, status: grpc.StatusCode) -> None:
    assert exit_code(status, reason) is CODES.get(reason, ExitCode.FAILED)


@pytest.mark.parametrize("status", list(grpc.StatusCode))
def test_a_reason_of_a_newer_daemon_goes_by_the_status(status: grpc.StatusCode) -> None:
    known = {
        grpc.StatusCode.INVALID_ARGUMENT: ExitCode.USAGE,
        grpc.StatusCode.NOT_FOUND: ExitCode.NOT_FOUND,
    }
    assert exit_code(status, "TOO_NEW") is known.get(status, ExitCode.FAILED)


def test_without_a_reason_it_is_the_way_to_the_daemon() -> None:
    assert exit_code(grpc.StatusCode.UNAVAILABLE, "") is ExitCode.UNREACHABLE
    assert exit_code(grpc.StatusCode.DEADLINE_EXCEEDED, "") is ExitCode.UNREACHABLE
    assert exit_code(grpc.StatusCode.INTERNAL, "") is ExitCode.FAILED


def test_a_failure_is_one_line_with_the_reason_in_brackets() -> None:
    failure = Failure("VM a\nb is\x1b[2J paused", ExitCode.FAILED, "VM_PAUSED")
    assert str(failure) == "VM a\\nb is\\x1b[2J paused [VM_PAUSED]"


def test_what_failed_in_an_operation_is_told_like_the_status_of_a_call() -> None:
    error = OperationError(code=9, reason="VM_PAUSED", message="VM a is paused")
    failure = outcome(error)
    assert (str(failure), failure.code) == ("VM a is paused [VM_PAUSED]", ExitCode.FAILED)


def test_an_operation_that_is_kept_proves_that_the_daemon_was_reached() -> None:
    unavailable = grpc.StatusCode.UNAVAILABLE.value[0]
    assert outcome(OperationError(code=unavailable)).code is ExitCode.FAILED
    assert outcome(OperationError(code=5, reason="VM_NOT_FOUND")).code is ExitCode.NOT_FOUND
