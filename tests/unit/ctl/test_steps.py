"""Every step of an operation that the daemon takes is a sentence."""

from __future__ import annotations

import pytest
from vmagent.ctl.operate import step_words
from vmagent.ctl.words import ENDED
from vmagent.v1.operation_pb2 import Operation, OperationPhase, OperationStep, OperationVerb

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
