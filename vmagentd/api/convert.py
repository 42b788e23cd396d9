"""Model → protobuf: what the daemon tells, as the contract words it.

Total: every value of the model has its message. The way back, from what a client asks, is in
`requests.py`; both go through the choices below.
"""

from __future__ import annotations

from collections import Counter
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from typing import TYPE_CHECKING, Generic, TypeVar

from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp
from vmagent.v1 import (
    access_pb2,
    host_pb2,
    operation_pb2,
    transition_pb2,
    vm_agent_service_pb2,
    vm_pb2,
)

from vmagentd import model
from vmagentd.api import status

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable

    from google.protobuf.internal.enum_type_wrapper import _EnumTypeWrapper

    from vmagentd.operations.starts import Starts

_Member = TypeVar("_Member", bound=StrEnum)
_Number = TypeVar("_Number", bound=int)


class Choice(Generic[_Member, _Number]):
    """A choice of the model and the enum of the contract: the same names, there with a prefix."""

    def __init__(
        self, members: type[_Member], enum: _EnumTypeWrapper[_Number], prefix: str
    ) -> None:
        self._unspecified = enum.Value(f"{prefix}_UNSPECIFIED")
        self._numbers = {member: enum.Value(f"{prefix}_{member}") for member in members}
        self._members: dict[int, _Member] = {n: member for member, n in self._numbers.items()}

    def number(self, member: _Member | None) -> _Number:
        """Return the number of *member*; None is unspecified."""
        return self._unspecified if member is None else self._numbers[member]

    def member(self, number: int) -> _Member | None:
        """Return the member of that number, None for unspecified and for unknown ones."""
        return self._members.get(number)


VM_STATE = Choice(model.VmState, vm_pb2.VmState, "VM_STATE")
VM_REASON = Choice(model.Reason, vm_pb2.VmReason, "VM_REASON")
INITIATOR_KIND = Choice(model.InitiatorKind, vm_pb2.InitiatorKind, "INITIATOR_KIND")
SOURCE = Choice(model.Source, vm_pb2.Source, "SOURCE")
TRANSITION_KIND = Choice(model.TransitionKind, transition_pb2.TransitionKind, "TRANSITION_KIND")
OPERATION_VERB = Choice(model.OperationVerb, operation_pb2.OperationVerb, "OPERATION_VERB")
OPERATION_PHASE = Choice(model.OperationPhase, operation_pb2.OperationPhase, "OPERATION_PHASE")
OPERATION_OUTCOME = Choice(
    model.OperationOutcome, operation_pb2.OperationOutcome, "OPERATION_OUTCOME"
)
STOP_MODE = Choice(model.StopMode, operation_pb2.StopMode, "STOP_MODE")
STOP_ON_GRACE_EXPIRED = Choice(
    model.OnGraceExpired, operation_pb2.StopOnGraceExpired, "STOP_ON_GRACE_EXPIRED"
)
REBOOT_MODE = Choice(model.RebootMode, operation_pb2.RebootMode, "REBOOT_MODE")
REBOOT_ON_GRACE_EXPIRED = Choice(
    model.OnGraceExpired, operation_pb2.RebootOnGraceExpired, "REBOOT_ON_GRACE_EXPIRED"
)
AUDIT_KIND = Choice(model.AuditKind, access_pb2.AuditKind, "AUDIT_KIND")
ROLE = Choice(model.Role, access_pb2.Role, "ROLE")
CALLER_ORIGIN = Choice(model.CallerOrigin, access_pb2.CallerOrigin, "CALLER_ORIGIN")

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_DAY_S = 24 * 60 * 60


def timestamp(time: datetime | None) -> Timestamp | None:
    """Return *time*, exact: both sides of the contract have at least microseconds."""
    if time is None:
        return None
    since = time - _EPOCH
    return Timestamp(seconds=since.days * _DAY_S + since.seconds, nanos=since.microseconds * 1000)


def duration(span: timedelta) -> Duration:
    """Return *span*, exact; seconds and nanos never differ in sign, as the type demands."""
    seconds, micros = divmod(abs(span) // timedelta(microseconds=1), 1_000_000)
    sign = -1 if span < timedelta(0) else 1
    return Duration(seconds=sign * seconds, nanos=sign * micros * 1000)


def _pair(pair: model.RawPair | None) -> vm_pb2.RawPair | None:
    return vm_pb2.RawPair(major=pair.major, minor=pair.minor) if pair else None


def _unresponsive(of: model.Unresponsive | None) -> vm_pb2.Unresponsive | None:
    if of is None:
        return None
    return vm_pb2.Unresponsive(job=of.job, since_time=timestamp(of.since_time))


def _start_error(of: model.StartError | None) -> vm_pb2.StartError | None:
    if of is None:
        return None
    return vm_pb2.StartError(
        libvirt_code=of.libvirt_code, message=of.message, fail_time=timestamp(of.fail_time)
    )


def vm(of: model.Vm) -> vm_pb2.Vm:
    """Return the VM's record."""
    return vm_pb2.Vm(
        uuid=of.uuid,
        name=of.name,
        state=VM_STATE.number(of.state),
        reason=VM_REASON.number(of.reason),
        initiator=vm_pb2.Initiator(
            kind=INITIATOR_KIND.number(of.initiator.kind),
            actor=of.initiator.actor or "",
            operation_id=of.initiator.operation_id or "",
        ),
        source=SOURCE.number(of.source),
        late=of.earliest_time is not None,
        earliest_time=timestamp(of.earliest_time),
        state_time=timestamp(of.state_time),
        verify_time=timestamp(of.verify_time),
        persistent=of.persistent,
        active=of.active,
        incarnation=of.incarnation,
        crash_count=of.crash_count,
        unresponsive=_unresponsive(of.unresponsive),
        active_operation_id=of.active_operation_id or "",
        vcpus=of.vcpus,
        memory_bytes=of.memory_bytes,
        last_start_error=_start_error(of.last_start_error),
        raw_state=_pair(of.raw_state),
        revision=of.revision,
    )


def transition(of: model.Transition) -> transition_pb2.Transition:
    """Return one committed change."""
    return transition_pb2.Transition(
        revision=of.revision,
        kind=TRANSITION_KIND.number(of.kind),
        vm=vm(of.vm),
        previous_state=VM_STATE.number(of.previous_state),
        time=timestamp(of.time),
        source=SOURCE.number(of.source),
        late=of.earliest_time is not None,
        earliest_time=timestamp(of.earliest_time),
        raw_event=_pair(of.raw_event),
        operation_id=of.operation_id or "",
        operation_phase=OPERATION_PHASE.number(of.operation_phase),
    )


def operation(of: model.Operation) -> operation_pb2.Operation:
    """Return an operation as it stands."""
    message = operation_pb2.Operation(
        operation_id=of.id,
        verb=OPERATION_VERB.number(of.verb),
        vm_uuid=of.vm,
        vm_name=of.vm_name,
        request_id=of.request_id or "",
        actor=of.actor,
        phase=OPERATION_PHASE.number(of.phase),
        outcome=OPERATION_OUTCOME.number(of.outcome),
        error=status.operation_error(of.failure) if of.failure else None,
        steps=(
            operation_pb2.OperationStep(
                phase=OPERATION_PHASE.number(step.phase),
                time=timestamp(step.time),
                attempt=step.attempt,
            )
            for step in of.steps
        ),
        accept_time=timestamp(of.accept_time),
        deadline_time=timestamp(of.deadline_time),
        end_time=timestamp(of.end_time),
        queue_place=of.queue_place,
    )
    match of.parameters:
        case model.StartParameters() as start:
            message.start.CopyFrom(
                operation_pb2.StartParameters(
                    paused=start.paused,
                    discard_saved_state=start.discard_saved_state,
                    force=start.force,
                    timeout=duration(start.timeout),
                )
            )
        case model.StopParameters() as stop:
            message.stop.CopyFrom(
                operation_pb2.StopParameters(
                    mode=STOP_MODE.number(stop.mode),
                    grace_period=duration(stop.grace_period),
                    on_grace_expired=STOP_ON_GRACE_EXPIRED.number(stop.on_grace_expired),
                )
            )
        case model.RebootParameters() as reboot:
            message.reboot.CopyFrom(
                operation_pb2.RebootParameters(
                    mode=REBOOT_MODE.number(reboot.mode),
                    grace_period=duration(reboot.grace_period),
                    on_grace_expired=REBOOT_ON_GRACE_EXPIRED.number(reboot.on_grace_expired),
                )
            )
        case model.PauseParameters() as pause:
            message.pause.CopyFrom(operation_pb2.PauseParameters(timeout=duration(pause.timeout)))
        case model.ResumeParameters() as resume:
            message.resume.CopyFrom(
                operation_pb2.ResumeParameters(timeout=duration(resume.timeout))
            )
    return message


def audit_record(of: model.AuditRecord) -> access_pb2.AuditRecord:
    """Return one thing that was asked for, or refused."""
    error = status.operation_error(of.failure) if of.failure else operation_pb2.OperationError()
    return access_pb2.AuditRecord(
        sequence=of.sequence,
        kind=AUDIT_KIND.number(of.kind),
        time=timestamp(of.time),
        actor=of.actor,
        peer=of.peer,
        certificate_fingerprint=of.certificate_fingerprint or "",
        method=of.method,
        vm_uuid=of.vm or "",
        vm_name=of.vm_name,
        operation_id=of.operation or "",
        phase=OPERATION_PHASE.number(of.phase),
        code=error.code,
        reason=error.reason,
        message=error.message,
        end_time=timestamp(of.end_time),
        count=of.count,
    )


def caller(of: model.Caller) -> access_pb2.Caller:
    """Return who makes a call."""
    return access_pb2.Caller(
        actor=of.actor,
        role=ROLE.number(of.role),
        vm_globs=of.vm_globs,
        origin=CALLER_ORIGIN.number(of.origin),
        peer=of.peer,
        certificate_fingerprint=of.certificate_fingerprint or "",
        certificate_end_time=timestamp(of.certificate_end_time),
        grants=(
            access_pb2.Grant(role=ROLE.number(grant.role), vm_globs=grant.vm_globs)
            for grant in of.grants
        ),
    )


def cursor(of: model.Cursor) -> transition_pb2.Cursor:
    """Return a place in a journal."""
    return transition_pb2.Cursor(journal_id=of.journal_id, revision=of.revision)


def link(of: model.Link) -> host_pb2.Link:
    """Return whether libvirt can be asked."""
    return host_pb2.Link(
        libvirt_connected=of.connected,
        blind_since=timestamp(of.blind_since),
        last_survey_time=timestamp(of.last_survey_time),
    )


def heartbeat(
    revision: model.Revision, of: model.Link, *, journal_writable: bool
) -> vm_agent_service_pb2.Heartbeat:
    """Return a sign of life."""
    return vm_agent_service_pb2.Heartbeat(
        revision=revision,
        libvirt_connected=of.connected,
        blind_since=timestamp(of.blind_since),
        last_survey_time=timestamp(of.last_survey_time),
        journal_writable=journal_writable,
    )


def blind_interval(of: model.BlindInterval) -> host_pb2.BlindInterval:
    """Return a time during which libvirt could not be asked."""
    return host_pb2.BlindInterval(
        begin_time=timestamp(of.begin_time), end_time=timestamp(of.end_time), cause=of.cause
    )


def state_counts(vms: Iterable[model.Vm]) -> list[host_pb2.StateCount]:
    """Return how many of *vms* are in which state, only states that occur."""
    counts = Counter(each.state for each in vms)
    return [
        host_pb2.StateCount(state=VM_STATE.number(state), count=counts[state])
        for state in model.VmState
        if state in counts
    ]


def capacity(
    vms: Collection[model.Vm], facts: model.HypervisorFacts | None, starts: Starts
) -> host_pb2.Capacity:
    """Return what those of *vms* use that are active, what they may, and what the host has."""
    active = [each for each in vms if each.active]
    return host_pb2.Capacity(
        active_vms=len(active),
        used_vcpus=sum(each.vcpus for each in active),
        used_memory_bytes=sum(each.memory_bytes for each in active),
        host_cpus=facts.host_cpus if facts else 0,
        host_memory_bytes=facts.host_memory_bytes if facts else 0,
        active_vms_limit=starts.limits.running_vms,
        vcpus_limit=starts.limits.vcpus,
        memory_limit_bytes=starts.limits.memory_bytes,
        running_starts=starts.running,
        running_starts_limit=starts.limits.starts_at_once,
        queued_starts=starts.queued,
    )
