"""What the daemon knows arrives in the messages whole and unbent."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta, timezone
from typing import Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st
from vmagent.v1 import access_pb2, host_pb2, operation_pb2, transition_pb2, vm_pb2

from vmagentd import model
from vmagentd.api import convert
from vmagentd.operations.starts import HostLimits, Starts

from . import reading, values

Members = Any  # one of the model's enumerations
Enum = Any  # one of the contract's

CHOICES: list[tuple[Members, Enum, convert.Choice[Any, Any], str]] = [
    (model.VmState, vm_pb2.VmState, convert.VM_STATE, "VM_STATE"),
    (model.Reason, vm_pb2.VmReason, convert.VM_REASON, "VM_REASON"),
    (model.InitiatorKind, vm_pb2.InitiatorKind, convert.INITIATOR_KIND, "INITIATOR_KIND"),
    (model.Source, vm_pb2.Source, convert.SOURCE, "SOURCE"),
    (
        model.TransitionKind,
        transition_pb2.TransitionKind,
        convert.TRANSITION_KIND,
        "TRANSITION_KIND",
    ),
    (
        model.OperationVerb,
        operation_pb2.OperationVerb,
        convert.OPERATION_VERB,
        "OPERATION_VERB",
    ),
    (
        model.OperationPhase,
        operation_pb2.OperationPhase,
        convert.OPERATION_PHASE,
        "OPERATION_PHASE",
    ),
    (
        model.OperationOutcome,
        operation_pb2.OperationOutcome,
        convert.OPERATION_OUTCOME,
        "OPERATION_OUTCOME",
    ),
    (model.StopMode, operation_pb2.StopMode, convert.STOP_MODE, "STOP_MODE"),
    (
        model.OnGraceExpired,
        operation_pb2.StopOnGraceExpired,
        convert.STOP_ON_GRACE_EXPIRED,
        "STOP_ON_GRACE_EXPIRED",
    ),
    (model.RebootMode, operation_pb2.RebootMode, convert.REBOOT_MODE, "REBOOT_MODE"),
    (
        model.OnGraceExpired,
        operation_pb2.RebootOnGraceExpired,
        convert.REBOOT_ON_GRACE_EXPIRED,
        "REBOOT_ON_GRACE_EXPIRED",
    ),
    (model.AuditKind, access_pb2.AuditKind, convert.AUDIT_KIND, "AUDIT_KIND"),
    (model.Role, access_pb2.Role, convert.ROLE, "ROLE"),
    (model.CallerOrigin, access_pb2.CallerOrigin, convert.CALLER_ORIGIN, "CALLER_ORIGIN"),
]


@pytest.mark.parametrize(("members", "enum", "choice", "prefix"), CHOICES)
def test_every_member_has_its_number_and_every_number_its_member(
    members: Members, enum: Enum, choice: convert.Choice[Any, Any], prefix: str
) -> None:
    there = {name: number for name, number in enum.items() if number != 0}
    assert {f"{prefix}_{member}": choice.number(member) for member in members} == there
    assert {choice.member(number): number for number in there.values()} == {
        member: choice.number(member) for member in members
    }


@pytest.mark.parametrize(("members", "enum", "choice", "prefix"), CHOICES)
def test_nothing_told_is_unspecified_and_other_numbers_are_nobody(
    members: Members, enum: Enum, choice: convert.Choice[Any, Any], prefix: str
) -> None:
    assert choice.number(None) == enum.Value(f"{prefix}_UNSPECIFIED") == 0
    assert choice.member(0) is None
    assert choice.member(len(members) + 1) is None
    assert choice.member(-1) is None


def test_every_enum_of_the_contract_is_a_choice() -> None:
    files = (vm_pb2, operation_pb2, transition_pb2, host_pb2, access_pb2)
    there = {name for file in files for name in file.DESCRIPTOR.enum_types_by_name}
    assert there | {"AuditKind"} == {enum.DESCRIPTOR.name for _, enum, _, _ in CHOICES}


@given(values.VMS)
def test_a_vm_survives(vm: model.Vm) -> None:
    message = vm_pb2.Vm.FromString(convert.vm(vm).SerializeToString())
    assert reading.vm(message) == vm


@given(values.TRANSITIONS)
def test_a_transition_survives(transition: model.Transition) -> None:
    encoded = convert.transition(transition).SerializeToString()
    assert reading.transition(transition_pb2.Transition.FromString(encoded)) == transition


@given(values.OPERATIONS)
def test_an_operation_survives(operation: model.Operation) -> None:
    encoded = convert.operation(operation).SerializeToString()
    message = operation_pb2.Operation.FromString(encoded)
    assert reading.operation(message, operation.failure) == operation


@given(values.AUDIT_RECORDS)
def test_an_audit_record_survives(record: model.AuditRecord) -> None:
    encoded = convert.audit_record(record).SerializeToString()
    message = access_pb2.AuditRecord.FromString(encoded)
    assert reading.audit_record(message, record.failure) == record


@given(values.TIMES)
def test_times_are_what_protobuf_itself_makes_of_them(time: datetime) -> None:
    message = convert.timestamp(time)
    assert message is not None
    assert message.ToDatetime(tzinfo=UTC) == time


def test_a_time_in_another_zone_is_the_same_time() -> None:
    there = values.A_TIME.astimezone(timezone(timedelta(hours=-11)))
    assert convert.timestamp(there) == convert.timestamp(values.A_TIME)


@given(values.SPANS)
def test_spans_are_what_protobuf_itself_makes_of_them(span: timedelta) -> None:
    assert convert.duration(span).ToTimedelta() == span


def test_the_number_of_the_process_is_never_shown() -> None:
    one, other = values.a_vm(run_id=None), values.a_vm(run_id=4711)
    assert convert.vm(one) == convert.vm(other)


@given(st.lists(values.VMS, max_size=20))
def test_states_are_counted_and_those_that_do_not_occur_are_left_out(
    vms: list[model.Vm],
) -> None:
    counts = convert.state_counts(vms)
    assert sum(each.count for each in counts) == len(vms)
    assert all(each.count > 0 for each in counts)
    assert len({each.state for each in counts}) == len(counts)


def test_only_active_vms_use_the_host() -> None:
    vms = [
        values.a_vm(number=1, vcpus=2, memory_bytes=1 << 30),
        values.a_vm(number=2, vcpus=4, memory_bytes=1 << 31),
        values.a_vm(number=3, vcpus=64, memory_bytes=1 << 40, active=False),
    ]
    starts = Starts(cast("Any", None), HostLimits(starts_at_once=0))
    assert convert.capacity(vms, None, starts) == host_pb2.Capacity(
        active_vms=2, used_vcpus=6, used_memory_bytes=3 << 30
    )
    facts = model.HypervisorFacts(
        libvirt_version="9.0.0", hypervisor_version="QEMU 7.2.0", host_cpus=8, host_memory_bytes=9
    )
    starts.limit(HostLimits(starts_at_once=2, running_vms=3, vcpus=4, memory_bytes=5))
    assert convert.capacity([], facts, starts) == host_pb2.Capacity(
        host_cpus=8,
        host_memory_bytes=9,
        running_starts_limit=2,
        active_vms_limit=3,
        vcpus_limit=4,
        memory_limit_bytes=5,
    )


def test_the_link_is_told_by_time_only_while_it_is_lost() -> None:
    up = convert.link(model.Link(connected=True, last_survey_time=values.A_TIME))
    assert up.libvirt_connected
    assert not up.HasField("blind_since")
    down = convert.link(model.Link(connected=False, blind_since=values.A_TIME, cause="gone"))
    assert not down.libvirt_connected
    assert reading.time(down.blind_since) == values.A_TIME
