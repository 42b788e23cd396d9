"""Every error has one status, and every reason of the contract one error."""

from __future__ import annotations

import inspect
import re
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING

import grpc
import pytest
from google.rpc import error_details_pb2, status_pb2
from hypothesis import given
from hypothesis import strategies as st
from vmagent.v1.error_reason_pb2 import ErrorReason

from vmagentd import errors
from vmagentd.api import status
from vmagentd.errors import StartupError, VmagentdError
from vmagentd.model import (
    Caller,
    CallerOrigin,
    JournalId,
    OperationFailure,
    OperationId,
    OperationVerb,
    Revision,
    Role,
    VmUuid,
)

from .values import A_TIME, FAILURES, a_vm

if TYPE_CHECKING:
    from google.protobuf.message import Message

README = Path(__file__).parents[3] / "README.md"
PROTO = Path(__file__).parents[3] / "protos/vmagent/v1/error_reason.proto"
SERVICE = PROTO.with_name("vm_agent_service.proto")

UUID = VmUuid("00000001-0000-4000-8000-000000000000")
OPERATION = OperationId("0a000000-0000-4000-8000-000000000000")
VM = a_vm()
CALLER = Caller(actor="user:alice", origin=CallerOrigin.LOCAL, peer="uid 1000, pid 7")

EXAMPLES: list[VmagentdError] = [
    errors.InvalidField("resume.journal_id", "is no UUID"),
    status.MalformedRequest("vmagent.v1.StartRequest", "its bytes cannot be parsed"),
    status.NotServed("GetOperation"),
    errors.VmNotFound("web"),
    errors.OperationNotFound(OPERATION),
    errors.VmPaused(VM),
    errors.VmSleeping(VM),
    errors.VmCrashed(VM),
    errors.VmMigratedAway(VM),
    errors.VmInState(VM),
    errors.NoShutdownMethod(UUID, "no ACPI"),
    errors.OperationInProgress(VM, OPERATION, "STOP"),
    errors.RequestIdReused("r", OPERATION),
    errors.RevisionCompacted(Revision(3), Revision(9)),
    errors.JournalReplaced(JournalId(UUID), Revision(7)),
    errors.WatcherTooSlow(Revision(5)),
    errors.CallerUnknown("nobody can tell"),
    errors.RoleDenied(CALLER, Role.OPERATOR, vm_name="web"),
    errors.AccessChanged(CALLER),
    errors.LimitReached("user:alice", "calls per second", 2.5),
    errors.ShutOut("uid:1000", 4.0),
    errors.StartFailed(VM, 1, 10, "no such disk"),
    errors.HostLimitReached(VM, "running VMs", allowed=4),
    errors.StartTimedOut(VM, timedelta(seconds=2)),
    errors.StartTimedOut(VM, timedelta(seconds=2), asked=False),
    errors.GraceExpired(VM, OperationVerb.STOP, timedelta(seconds=60)),
    errors.ForceTimedOut(VM),
    errors.OperationTimedOut(VM, OperationVerb.PAUSE, timedelta(seconds=2)),
    errors.CancelledByStop(VM, OPERATION),
    errors.OperationCancelled(VM, OPERATION, "user:alice"),
    errors.OperationInterrupted(VM, OPERATION),
    errors.LibvirtUnreachable("no socket", A_TIME),
    errors.OutcomeUnknown(UUID, "virDomainCreate", "no answer within 30 s"),
    errors.OutcomeUnknown(VM, "stop", "no answer within 30 s"),
    errors.LibvirtInvalidState(UUID, 55, 10, "domain is not running"),
    errors.LibvirtBusy(UUID, 68, 10, "cannot acquire state change lock"),
    errors.LibvirtDenied(UUID, 88, 47, "access denied"),
    errors.LibvirtUnsupported(UUID, 3, 10, "not supported"),
    errors.HostExhausted(UUID, 2, 10, "cannot allocate memory"),
    errors.LibvirtRefused(UUID, 67, 10, "unsupported configuration"),
    errors.JournalUnwritable("disk full"),
    errors.ShuttingDown(),
    status.Fault("f"),
]


def leaves(error: type[VmagentdError]) -> set[type[VmagentdError]]:
    """Return the types below *error* that can be raised: those that have none below them."""
    below: set[type[VmagentdError]] = set()
    for inner in error.__subclasses__():
        if inner is not StartupError:
            below |= leaves(inner) or {inner}
    return below


def details(of: status_pb2.Status) -> dict[str, Message]:
    """Return the details of a status by the name of their type."""
    found: dict[str, Message] = {}
    for packed in of.details:
        name = packed.TypeName().rpartition(".")[2]
        detail: Message = getattr(error_details_pb2, name)()
        assert packed.Unpack(detail)
        assert name not in found
        found[name] = detail
    return found


def info(of: status_pb2.Status) -> error_details_pb2.ErrorInfo:
    """Return what every status must carry."""
    found = details(of)["ErrorInfo"]
    assert isinstance(found, error_details_pb2.ErrorInfo)
    return found


def contract() -> dict[str, grpc.StatusCode]:
    """Return the code of each reason, as its comment in the contract says."""
    text = PROTO.read_text()
    found = re.findall(r"// `([A-Z_]+)`:[^=]*?\n  ERROR_REASON_([A-Z_]+) =", text)
    return {reason: grpc.StatusCode[code] for code, reason in found}


def test_every_error_has_a_row() -> None:
    assert leaves(VmagentdError) == set(status.TABLE)


def test_every_row_has_an_example_here() -> None:
    assert {type(example) for example in EXAMPLES} == set(status.TABLE)


def test_every_reason_of_the_contract_has_a_row() -> None:
    there = {name.removeprefix("ERROR_REASON_") for name in ErrorReason.keys()}  # noqa: SIM118
    sent = {row.reason for row in status.TABLE.values()}
    assert there == {"UNSPECIFIED"} | sent


def test_codes_are_those_of_the_contract() -> None:
    said = contract()
    assert len(said) == len(ErrorReason.keys()) - 1
    assert {row.reason: row.code for row in status.TABLE.values()} == said


def test_every_reason_is_told_of_where_it_can_come() -> None:
    told = set(re.findall(r"`([A-Z_]+)`", SERVICE.read_text()))
    assert contract().keys() <= told


@pytest.mark.parametrize("verb", ["Start", "Stop", "Reboot", "Pause"])
def test_every_verb_tells_how_libvirt_may_refuse(verb: str) -> None:
    """Resume does as Pause."""
    comment = SERVICE.read_text().partition(f"  rpc {verb}(")[0].rpartition("\n\n")[2]
    for reason in ("LIBVIRT_DENIED", "LIBVIRT_UNSUPPORTED", "LIBVIRT_REFUSED", "LIBVIRT_BUSY"):
        assert f"`{reason}`" in comment, reason


def test_the_readme_has_a_row_for_every_reason() -> None:
    rows = re.findall(r"^\| `([A-Z_]+)` \| `([A-Z_]+)` \|", README.read_text(), re.MULTILINE)
    assert {reason: grpc.StatusCode[code] for reason, code in rows} == contract()
    assert len(rows) == len(contract())


@pytest.mark.parametrize("error", EXAMPLES, ids=lambda error: type(error).__name__)
def test_a_status_has_the_sentence_and_the_facts(error: VmagentdError) -> None:
    assert status.tells(error)
    made = status.status_of(error)
    row = status.TABLE[type(error)]
    assert made.code == row.code.value[0]
    assert made.message == str(error)
    assert info(made) == error_details_pb2.ErrorInfo(
        reason=row.reason, domain="vmagentd", metadata=error.facts
    )
    assert ("RetryInfo" in details(made)) == (row.retry is not None)


OF_OPERATIONS = [
    error
    for error in EXAMPLES
    if isinstance(error, errors.OperationEnded | errors.OperationInProgress)
]


@pytest.mark.parametrize("error", OF_OPERATIONS, ids=lambda error: type(error).__name__)
def test_what_ends_an_operation_says_on_which_vm_it_was(error: VmagentdError) -> None:
    """Somebody may have asked for several at once."""
    assert f"{VM.name} ({VM.uuid})" in str(error)


@pytest.mark.parametrize("error", EXAMPLES, ids=lambda error: type(error).__name__)
def test_a_stored_failure_tells_the_same(error: VmagentdError) -> None:
    failure = OperationFailure(error=type(error).__name__, message=str(error), facts=error.facts)
    made = status.status_of(status.OperationFailed(failure))
    assert made == status.status_of(error)
    stored = status.operation_error(failure)
    assert (stored.code, stored.message) == (made.code, made.message)
    assert (stored.reason, stored.metadata) == (info(made).reason, info(made).metadata)


def test_a_bad_field_is_named() -> None:
    made = status.status_of(errors.InvalidField("vms[3]", "is empty: why?"))
    assert details(made)["BadRequest"] == error_details_pb2.BadRequest(
        field_violations=[
            error_details_pb2.BadRequest.FieldViolation(
                field="vms[3]", description="is empty: why?"
            )
        ]
    )


def test_what_the_host_lacks_is_a_quota() -> None:
    made = status.status_of(errors.HostExhausted(UUID, 2, 10, "cannot allocate memory"))
    quota = details(made)["QuotaFailure"]
    assert isinstance(quota, error_details_pb2.QuotaFailure)
    assert [each.description for each in quota.violations] == ["cannot allocate memory"]


def test_a_limit_of_the_host_is_a_quota() -> None:
    made = status.status_of(errors.HostLimitReached(VM, "running VMs", allowed=4))
    assert details(made)["QuotaFailure"] == error_details_pb2.QuotaFailure(
        violations=[
            error_details_pb2.QuotaFailure.Violation(subject="host", description="4 running VMs")
        ]
    )


def test_a_limit_is_a_quota_of_whoever_reached_it() -> None:
    found = details(status.status_of(errors.LimitReached("user:alice", "calls per second", 20)))
    assert found["QuotaFailure"] == error_details_pb2.QuotaFailure(
        violations=[
            error_details_pb2.QuotaFailure.Violation(
                subject="user:alice", description="20 calls per second"
            )
        ]
    )
    assert "RetryInfo" in found


def test_a_retry_comes_with_its_time() -> None:
    retry = details(status.status_of(errors.LibvirtUnreachable("x")))["RetryInfo"]
    assert isinstance(retry, error_details_pb2.RetryInfo)
    assert retry.retry_delay.ToTimedelta() == timedelta(seconds=5)


@pytest.mark.parametrize("error", [ValueError("secret"), KeyError("secret"), StartupError("x")])
def test_other_errors_are_not_told(error: Exception) -> None:
    assert not status.tells(error)


def test_a_stored_failure_that_is_no_error_of_ours_says_nothing_of_itself() -> None:
    failure = OperationFailure(error="ValueError", message="secret", facts={"key": "secret"})
    made = status.status_of(status.OperationFailed(failure))
    assert made.code == grpc.StatusCode.INTERNAL.value[0]
    assert info(made).reason == "FAULT"
    assert b"secret" not in made.SerializeToString()
    assert b"secret" not in status.operation_error(failure).SerializeToString()


@given(FAILURES)
def test_any_stored_failure_becomes_a_status(failure: OperationFailure) -> None:
    assert info(status.status_of(status.OperationFailed(failure))).domain == "vmagentd"


@given(st.text(min_size=500, max_size=5000))
def test_a_status_fits_into_the_trailers(text: str) -> None:
    # With the name of the type of each error that repeats a text from outside in two places.
    made = status.status_of(errors.StartFailed(VM, 1, 10, text * 10))
    assert len(made.message.encode()) <= 800
    # Percent-encoded at most threefold; details are base64.
    assert 3 * len(made.message.encode()) + len(made.SerializeToString()) * 4 // 3 < 7 * 1024


def test_every_error_explains_itself() -> None:
    for error in status.TABLE:
        assert inspect.getdoc(error), error
