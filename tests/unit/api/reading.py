"""Messages → model, as a client that knows the contract would read them.

The daemon never needs this direction; the tests do, to prove that nothing is lost or bent.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, TypeVar

from vmagentd import model
from vmagentd.api import convert
from vmagentd.model import (
    Initiator,
    Operation,
    OperationFailure,
    OperationId,
    OperationStep,
    Parameters,
    PauseParameters,
    RawPair,
    RebootParameters,
    ResumeParameters,
    Revision,
    StartError,
    StartParameters,
    StopParameters,
    Transition,
    Unresponsive,
    Vm,
    VmUuid,
)

if TYPE_CHECKING:
    from google.protobuf.duration_pb2 import Duration
    from google.protobuf.message import Message
    from google.protobuf.timestamp_pb2 import Timestamp
    from vmagent.v1 import access_pb2, operation_pb2, transition_pb2, vm_pb2

_T = TypeVar("_T")


def known(value: _T | None) -> _T:
    assert value is not None
    return value


def time(message: Timestamp) -> datetime:
    assert message.nanos % 1000 == 0
    return datetime(1970, 1, 1, tzinfo=UTC) + timedelta(
        seconds=message.seconds, microseconds=message.nanos // 1000
    )


def time_of(message: Message, field: str) -> datetime | None:
    return time(getattr(message, field)) if message.HasField(field) else None


def span(message: Duration) -> timedelta:
    return timedelta(seconds=message.seconds, microseconds=message.nanos // 1000)


def pair_of(message: Message, field: str) -> RawPair | None:
    if not message.HasField(field):
        return None
    found: vm_pb2.RawPair = getattr(message, field)
    return RawPair(found.major, found.minor)


def earliest_time(message: vm_pb2.Vm | transition_pb2.Transition) -> datetime | None:
    assert message.late == message.HasField("earliest_time")
    return time_of(message, "earliest_time")


def vm(message: vm_pb2.Vm) -> Vm:
    return Vm(
        uuid=VmUuid(message.uuid),
        name=message.name,
        state=known(convert.VM_STATE.member(message.state)),
        reason=known(convert.VM_REASON.member(message.reason)),
        initiator=Initiator(
            kind=known(convert.INITIATOR_KIND.member(message.initiator.kind)),
            actor=message.initiator.actor or None,
            operation_id=OperationId(message.initiator.operation_id) or None,
        ),
        source=known(convert.SOURCE.member(message.source)),
        state_time=time(message.state_time),
        earliest_time=earliest_time(message),
        verify_time=time_of(message, "verify_time"),
        persistent=message.persistent,
        active=message.active,
        incarnation=message.incarnation,
        crash_count=message.crash_count,
        unresponsive=Unresponsive(
            job=message.unresponsive.job, since_time=time(message.unresponsive.since_time)
        )
        if message.HasField("unresponsive")
        else None,
        active_operation_id=OperationId(message.active_operation_id) or None,
        vcpus=message.vcpus,
        memory_bytes=message.memory_bytes,
        last_start_error=StartError(
            libvirt_code=message.last_start_error.libvirt_code,
            message=message.last_start_error.message,
            fail_time=time(message.last_start_error.fail_time),
        )
        if message.HasField("last_start_error")
        else None,
        raw_state=pair_of(message, "raw_state"),
        revision=Revision(message.revision),
    )


def transition(message: transition_pb2.Transition) -> Transition:
    return Transition(
        revision=Revision(message.revision),
        kind=known(convert.TRANSITION_KIND.member(message.kind)),
        vm=vm(message.vm),
        previous_state=convert.VM_STATE.member(message.previous_state),
        time=time(message.time),
        source=known(convert.SOURCE.member(message.source)),
        earliest_time=earliest_time(message),
        raw_event=pair_of(message, "raw_event"),
        operation_id=OperationId(message.operation_id) or None,
        operation_phase=convert.OPERATION_PHASE.member(message.operation_phase),
    )


def parameters(message: operation_pb2.Operation) -> Parameters:
    match message.WhichOneof("parameters"):
        case "start":
            return StartParameters(
                paused=message.start.paused,
                discard_saved_state=message.start.discard_saved_state,
                force=message.start.force,
                timeout=span(message.start.timeout),
            )
        case "stop":
            expired = message.stop.on_grace_expired
            return StopParameters(
                mode=known(convert.STOP_MODE.member(message.stop.mode)),
                grace_period=span(message.stop.grace_period),
                on_grace_expired=known(convert.STOP_ON_GRACE_EXPIRED.member(expired)),
            )
        case "reboot":
            return RebootParameters(
                mode=known(convert.REBOOT_MODE.member(message.reboot.mode)),
                grace_period=span(message.reboot.grace_period),
                on_grace_expired=known(
                    convert.REBOOT_ON_GRACE_EXPIRED.member(message.reboot.on_grace_expired)
                ),
            )
        case "pause":
            return PauseParameters(timeout=span(message.pause.timeout))
        case "resume":
            return ResumeParameters(timeout=span(message.resume.timeout))
        case None:
            raise AssertionError


def operation(message: operation_pb2.Operation, failure: OperationFailure | None) -> Operation:
    """Read an operation; *failure* is the one it was made with, told by code and reason alone."""
    assert message.HasField("error") == (failure is not None)
    if failure is not None:
        assert message.error.message == failure.message
        assert dict(message.error.metadata) == failure.facts
    read = Operation(
        id=OperationId(message.operation_id),
        vm=VmUuid(message.vm_uuid),
        vm_name=message.vm_name,
        actor=message.actor,
        request_id=message.request_id or None,
        parameters=parameters(message),
        phase=known(convert.OPERATION_PHASE.member(message.phase)),
        steps=tuple(
            OperationStep(
                phase=known(convert.OPERATION_PHASE.member(step.phase)),
                time=time(step.time),
                attempt=step.attempt,
            )
            for step in message.steps
        ),
        accept_time=time(message.accept_time),
        deadline_time=time(message.deadline_time),
        end_time=time_of(message, "end_time"),
        outcome=convert.OPERATION_OUTCOME.member(message.outcome),
        failure=failure,
    )
    assert convert.OPERATION_VERB.member(message.verb) is read.verb
    return read


def audit_record(
    message: access_pb2.AuditRecord, failure: OperationFailure | None
) -> model.AuditRecord:
    """Read a record; *failure* is the one it was made with, told by code and reason alone."""
    assert (message.code, message.reason) == (0, "") or failure is not None
    if failure is not None:
        assert message.code
        assert message.reason
        assert message.message == failure.message
    return model.AuditRecord(
        sequence=message.sequence,
        kind=known(convert.AUDIT_KIND.member(message.kind)),
        time=time(message.time),
        end_time=time_of(message, "end_time"),
        actor=message.actor,
        peer=message.peer,
        certificate_fingerprint=message.certificate_fingerprint or None,
        method=message.method,
        vm=VmUuid(message.vm_uuid) or None,
        vm_name=message.vm_name,
        operation=OperationId(message.operation_id) or None,
        phase=convert.OPERATION_PHASE.member(message.phase),
        failure=failure,
        count=message.count,
    )
