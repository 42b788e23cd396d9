"""The checks themselves: a history that is right passes, and each way to break it is found."""

from collections.abc import Callable

import pytest
from vmagent.v1 import vm_agent_service_pb2 as pb
from vmagent.v1.operation_pb2 import Operation, OperationPhase
from vmagent.v1.transition_pb2 import Cursor, Transition, TransitionKind
from vmagent.v1.vm_pb2 import Initiator, InitiatorKind, RawPair, Source, Vm, VmReason, VmState

from tests.system.calls import Outcome, Refusal
from tests.system.chaos.model import Model
from tests.system.chaos.plan import deeds, stream
from tests.system.chaos.promises import History
from tests.system.chaos.record import Call, Record, Session

STATE = TransitionKind.TRANSITION_KIND_STATE
OPERATION = TransitionKind.TRANSITION_KIND_OPERATION


class Story:
    """A VM that is defined, started by an operation and forced off, and all that was seen."""

    def __init__(self) -> None:
        self.vm = Vm(uuid="u", name="n", persistent=True)
        self.transitions: list[Transition] = []
        self._step("STOPPED", "DEFINED")
        self._operation("a", OperationPhase.OPERATION_PHASE_ACCEPTED)
        by_client = Initiator(
            kind=InitiatorKind.INITIATOR_KIND_CLIENT, actor="me", operation_id="a"
        )
        self._step("RUNNING", "BOOTED", active=True, incarnation=1, initiator=by_client)
        self._operation("a", OperationPhase.OPERATION_PHASE_SUCCEEDED)
        self._step("STOPPED", "FORCED", active=False, initiator=Initiator())
        self.session = Session(
            lane="watcher",
            number=1,
            vms=(),
            resumed=None,
            snapshot={"u": self._at(1)},
            snapshot_end=Cursor(journal_id="j", revision=1),
            transitions=[copy(t) for t in self.transitions[1:]],
            heartbeats=[pb.Heartbeat(revision=1), pb.Heartbeat(revision=5)],
            ended=None,
        )
        operation = Operation(
            operation_id="a",
            request_id="r",
            phase=OperationPhase.OPERATION_PHASE_SUCCEEDED,
            steps=[{"phase": OperationPhase.OPERATION_PHASE_SUCCEEDED}],  # type: ignore[list-item]
            start={},  # type: ignore[arg-type]
        )
        self.response = pb.StartResponse(operation=operation, vm=self._at(4))

    def wrong(self) -> list[str]:
        record = Record(
            sessions=[self.session],
            calls=[
                Call(
                    lane="lane",
                    verb="Start",
                    vm="u",
                    request=pb.StartRequest(request_id="r"),
                    outcomes=[Outcome(responses=[self.response])],
                )
            ],
        )
        history = History("j", 0, self.transitions, Model())
        return [violation.what for violation in history.check(record)]

    def _at(self, revision: int) -> Vm:
        return copy(self.transitions[revision - 1]).vm

    def _step(self, state: str, reason: str, **more: object) -> None:
        before = self.vm.state
        self.vm.state = VmState.Value(f"VM_STATE_{state}")
        self.vm.reason = VmReason.Value(f"VM_REASON_{reason}")
        for name, value in more.items():
            if name == "initiator":
                self.vm.initiator.CopyFrom(value)  # type: ignore[arg-type]
            else:
                setattr(self.vm, name, value)
        raw = RawPair(major=1, minor=1)
        self._add(
            Transition(
                kind=STATE, previous_state=before, source=Source.SOURCE_EVENT, raw_event=raw
            )
        )

    def _operation(self, operation: str, phase: OperationPhase.ValueType) -> None:
        ends = phase == OperationPhase.OPERATION_PHASE_SUCCEEDED
        self.vm.active_operation_id = "" if ends else operation
        self._add(
            Transition(
                kind=OPERATION,
                previous_state=self.vm.state,
                source=Source.SOURCE_OPERATION,
                operation_id=operation,
                operation_phase=phase,
            )
        )

    def _add(self, transition: Transition) -> None:
        self.vm.revision = transition.revision = len(self.transitions) + 1
        transition.vm.CopyFrom(self.vm)
        self.transitions.append(transition)


def copy(transition: Transition) -> Transition:
    other = Transition()
    other.CopyFrom(transition)
    return other


def test_what_is_right_passes() -> None:
    assert not Story().wrong()


def drop_from_the_journal(story: Story) -> None:
    del story.transitions[2]


def change_what_was_acknowledged(story: Story) -> None:
    story.transitions[4].vm.reason = VmReason.VM_REASON_CLEAN_SHUTDOWN


def lose_the_end(story: Story) -> None:
    del story.transitions[-1]


def end_twice(story: Story) -> None:
    story.transitions[4] = copy(story.transitions[3])
    story.transitions[4].revision = story.transitions[4].vm.revision = 5


def never_run(story: Story) -> None:
    story.transitions[2].vm.state = VmState.VM_STATE_STARTING


def boot_twice(story: Story) -> None:
    story.transitions[2].vm.incarnation = 2


def forget_the_previous_state(story: Story) -> None:
    story.transitions[4].previous_state = VmState.VM_STATE_PAUSED


def repeat(story: Story) -> None:
    story.session.transitions[2:2] = story.session.transitions[1:2]  # type: ignore[index]


def skip(story: Story) -> None:
    del story.session.transitions[1]  # type: ignore[attr-defined]


def swap(story: Story) -> None:
    story.session.transitions.reverse()  # type: ignore[attr-defined]


def promise_too_much(story: Story) -> None:
    story.session.heartbeats[-1].revision = 6


def hide_from_the_snapshot(story: Story) -> None:
    story.session.snapshot.clear()


def answer_before_the_end(story: Story) -> None:
    story.response.vm.CopyFrom(story.transitions[2].vm)


def answer_another_outcome(story: Story) -> None:
    phase = OperationPhase.OPERATION_PHASE_FAILED
    story.response.operation.phase = story.response.operation.steps[0].phase = phase


def refuse_the_watch(story: Story) -> None:
    object.__setattr__(
        story.session, "ended", Refusal("FAILED_PRECONDITION", "JOURNAL_REPLACED", "", {})
    )


@pytest.mark.parametrize(
    "breaks",
    [
        drop_from_the_journal,
        change_what_was_acknowledged,
        lose_the_end,
        end_twice,
        never_run,
        boot_twice,
        forget_the_previous_state,
        repeat,
        skip,
        swap,
        promise_too_much,
        hide_from_the_snapshot,
        answer_before_the_end,
        answer_another_outcome,
        refuse_the_watch,
    ],
)
def test_what_is_wrong_is_found(breaks: Callable[[Story], None]) -> None:
    story = Story()
    breaks(story)
    assert story.wrong()


def test_the_plan_follows_from_the_seed() -> None:
    def begin(seed: int) -> list[object]:
        plan = deeds(stream(seed, "lane", 0), range(3))
        return [next(plan) for _ in range(200)]

    assert begin(7) == begin(7)
    assert begin(7) != begin(8)
