"""Every step of an operation that the daemon takes is a sentence, and so is its end."""

from __future__ import annotations

import pytest
from google.protobuf.timestamp_pb2 import Timestamp
from vmagent.ctl.operate import result, step_words
from vmagent.ctl.words import ENDED, clock
from vmagent.v1.operation_pb2 import (
    Operation,
    OperationOutcome,
    OperationPhase,
    OperationStep,
    OperationVerb,
)
from vmagent.v1.vm_agent_service_pb2 import StopResponse
from vmagent.v1.vm_pb2 import Vm, VmState

from vmagentd import model
from vmagentd.api import convert

FINAL = [convert.OPERATION_PHASE.number(phase) for phase in model.OperationPhase if phase.final]
# phases that only these verbs have
OF_VERBS = {
    OperationPhase.OPERATION_PHASE_QUEUED: {"START"},
    OperationPhase.OPERATION_PHASE_STARTING: {"START"},
    OperationPhase.OPERATION_PHASE_SIGNALLED: {"STOP", "REBOOT"},
    OperationPhase.OPERATION_PHASE_FORCING: {"STOP", "REBOOT"},
    OperationPhase.OPERATION_PHASE_APPLYING: {"PAUSE", "RESUME"},
}


def test_the_ends_are_the_daemons() -> None:
    assert set(FINAL) == ENDED


@pytest.mark.parametrize("verb", model.OperationVerb)
@pytest.mark.parametrize("phase", [p for p in model.OperationPhase if not p.final])
def test_every_step_of_every_verb(verb: model.OperationVerb, phase: model.OperationPhase) -> None:
    number = convert.OPERATION_PHASE.number(phase)
    if verb not in OF_VERBS.get(number, set(model.OperationVerb)):
        return
    operation = Operation(verb=convert.OPERATION_VERB.number(verb))
    assert " " in step_words(OperationStep(phase=number, attempt=1), operation)


def test_a_step_that_is_repeated_is_counted() -> None:
    stop = Operation(verb=OperationVerb.OPERATION_VERB_STOP)
    step = OperationStep(phase=OperationPhase.OPERATION_PHASE_SIGNALLED, attempt=3)
    assert step_words(step, stop) == "guest asked to shut down (attempt 3)"


def test_what_a_newer_daemon_does_is_its_number() -> None:
    step = OperationStep(phase=OperationPhase.ValueType(77), attempt=1)
    assert step_words(step, Operation()) == "77"


BEGIN, END, LATER = (Timestamp(seconds=1_769_860_800 + each) for each in (0, 2, 60))


@pytest.mark.parametrize(
    ("state_time", "outcome", "told"),
    [
        (END, "DONE", "RUNNING after 2.000 s"),
        (BEGIN, "ALREADY_DONE", f"RUNNING already since {clock(BEGIN)}, nothing was done"),
        # It is told again, and the VM was started meanwhile.
        (LATER, "DONE", f"stop done at {clock(END)}; since {clock(LATER)} it is RUNNING"),
        (
            LATER,
            "ALREADY_DONE",
            f"stop already done at {clock(END)}; since {clock(LATER)} it is RUNNING",
        ),
    ],
)
def test_an_end_does_not_mix_then_and_now(state_time: Timestamp, outcome: str, told: str) -> None:
    operation = Operation(
        verb=OperationVerb.OPERATION_VERB_STOP,
        accept_time=BEGIN,
        end_time=END,
        outcome=OperationOutcome.Value(f"OPERATION_OUTCOME_{outcome}"),
    )
    vm = Vm(state=VmState.VM_STATE_RUNNING, state_time=state_time)
    assert str(result(StopResponse(operation=operation, vm=vm))) == told
