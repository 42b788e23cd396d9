"""Values of the model for hypothesis: everything that its types allow."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from hypothesis import strategies as st

from vmagentd import model
from vmagentd.api import status
from vmagentd.model import (
    Operation,
    OperationFailure,
    OperationId,
    Revision,
    StartParameters,
    StopParameters,
    Transition,
    Vm,
    VmUuid,
)

TIMES = st.datetimes(timezones=st.just(UTC))
SPANS = st.timedeltas(timedelta(seconds=-315_576_000_000), timedelta(seconds=315_576_000_000))
INT32 = st.integers(-(2**31), 2**31 - 1)
INT64 = st.integers(0, 2**63 - 1)
UUIDS = st.uuids().map(str)
REVISIONS = INT64.map(Revision)
# An empty text and None are the same on the wire, and never differ in the model.
TEXTS = st.text(min_size=1)
OPERATION_IDS = UUIDS.map(OperationId)
PAIRS = st.builds(model.RawPair, INT32, INT32)

INITIATORS = st.builds(
    model.Initiator,
    kind=st.sampled_from(model.InitiatorKind),
    actor=st.none() | TEXTS,
    operation_id=st.none() | OPERATION_IDS,
)

VMS = st.builds(
    Vm,
    uuid=UUIDS.map(VmUuid),
    name=TEXTS,
    state=st.sampled_from(model.VmState),
    reason=st.sampled_from(model.Reason),
    initiator=INITIATORS,
    source=st.sampled_from(model.Source),
    state_time=TIMES,
    earliest_time=st.none() | TIMES,
    verify_time=st.none() | TIMES,
    persistent=st.booleans(),
    active=st.booleans(),
    incarnation=INT64,
    crash_count=INT64,
    run_id=st.none(),  # never shown
    unresponsive=st.none() | st.builds(model.Unresponsive, job=st.text(), since_time=TIMES),
    active_operation_id=st.none() | OPERATION_IDS,
    vcpus=INT32,
    memory_bytes=INT64,
    last_start_error=st.none()
    | st.builds(model.StartError, libvirt_code=INT32, message=st.text(), fail_time=TIMES),
    raw_state=st.none() | PAIRS,
    revision=REVISIONS,
)

TRANSITIONS = st.builds(
    Transition,
    revision=REVISIONS,
    kind=st.sampled_from(model.TransitionKind),
    vm=VMS,
    previous_state=st.none() | st.sampled_from(model.VmState),
    time=TIMES,
    source=st.sampled_from(model.Source),
    earliest_time=st.none() | TIMES,
    raw_event=st.none() | PAIRS,
    operation_id=st.none() | OPERATION_IDS,
    operation_phase=st.none() | st.sampled_from(model.OperationPhase),
)

FAILURES = st.builds(
    OperationFailure,
    error=st.sampled_from(sorted(error.__name__ for error in status.TABLE)),
    message=st.text(),
    facts=st.dictionaries(st.text(), st.text()),
)

PARAMETERS = st.one_of(
    st.builds(
        StartParameters,
        paused=st.booleans(),
        discard_saved_state=st.booleans(),
        force=st.booleans(),
        timeout=SPANS,
    ),
    st.builds(
        StopParameters,
        mode=st.sampled_from(model.StopMode),
        grace_period=SPANS,
        on_grace_expired=st.sampled_from(model.OnGraceExpired),
    ),
    st.builds(
        model.RebootParameters,
        mode=st.sampled_from(model.RebootMode),
        grace_period=SPANS,
        on_grace_expired=st.sampled_from(model.OnGraceExpired),
    ),
    st.builds(model.PauseParameters, timeout=SPANS),
    st.builds(model.ResumeParameters, timeout=SPANS),
)

OPERATIONS = st.builds(
    Operation,
    id=OPERATION_IDS,
    vm=UUIDS.map(VmUuid),
    vm_name=TEXTS,
    actor=TEXTS,
    request_id=st.none() | TEXTS,
    parameters=PARAMETERS,
    phase=st.sampled_from(model.OperationPhase),
    steps=st.lists(
        st.builds(
            model.OperationStep,
            phase=st.sampled_from(model.OperationPhase),
            time=TIMES,
            attempt=INT32,
        )
    ).map(tuple),
    accept_time=TIMES,
    deadline_time=TIMES,
    end_time=st.none() | TIMES,
    outcome=st.none() | st.sampled_from(model.OperationOutcome),
    failure=st.none() | FAILURES,
)

AUDIT_RECORDS = st.builds(
    model.AuditRecord,
    sequence=INT64,
    kind=st.sampled_from(model.AuditKind),
    time=TIMES,
    end_time=st.none() | TIMES,
    actor=st.text(),
    peer=st.text(),
    certificate_fingerprint=st.none() | TEXTS,
    method=st.text(),
    vm=st.none() | UUIDS.map(VmUuid),
    vm_name=st.text(),
    operation=st.none() | OPERATION_IDS,
    phase=st.none() | st.sampled_from(model.OperationPhase),
    failure=st.none() | FAILURES,
    count=st.integers(1, 2**31 - 1),
)

A_TIME = datetime(2026, 1, 31, 23, 59, 59, 123456, tzinfo=UTC)


def a_vm(name: str = "web", *, number: int = 1, **fields: object) -> Vm:
    """Return some VM; *number* makes its UUID."""
    known: dict[str, object] = {
        "uuid": VmUuid(f"{number:08x}-0000-4000-8000-000000000000"),
        "name": name,
        "state": model.VmState.RUNNING,
        "reason": model.Reason.BOOTED,
        "initiator": model.UNKNOWN_INITIATOR,
        "source": model.Source.SURVEY,
        "state_time": A_TIME,
        "active": True,
        "revision": Revision(number),
    }
    return Vm(**{**known, **fields})  # type: ignore[arg-type]


def a_transition(revision: int, vm: Vm) -> Transition:
    """Return some transition."""
    return Transition(
        revision=Revision(revision),
        kind=model.TransitionKind.STATE,
        vm=vm,
        previous_state=None,
        time=A_TIME,
        source=model.Source.SURVEY,
    )
