"""What clients were told in a round, held against the journal's history."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

from vmagent.v1.operation_pb2 import (
    OPERATION_PHASE_FORCING as FORCING,
)
from vmagent.v1.operation_pb2 import Operation, OperationOutcome, OperationPhase, RebootMode
from vmagent.v1.transition_pb2 import Transition
from vmagent.v1.vm_pb2 import Vm

from tests.system.calls import Outcome, Response
from tests.system.chaos.model import FINAL, Course, Model, line, state
from tests.system.chaos.record import Call, Record, Session


@dataclass(frozen=True, slots=True)
class Violation:
    """A promise that was not kept."""

    what: str
    # whose VM, if it is about one
    vm: str = ""
    # where in the journal, if it is about a place
    revision: int = 0


@dataclass(slots=True)
class History:
    """What the journal tells of a round, and the records that follow from it."""

    journal_id: str
    # all before it was checked in earlier rounds
    since: int
    transitions: Sequence[Transition]
    model: Model
    # at each revision at which a client saw a list of VMs: all of them, even those gone
    states: dict[int, dict[str, Vm]] = field(default_factory=dict)

    def check(self, record: Record) -> Iterator[Violation]:
        """Apply every transition, then hold against them what clients saw."""
        wanted = {s.snapshot_end.revision for s in record.sessions if s.snapshot_end}
        wanted |= {listing.cursor.revision for listing in record.listings}
        self._keep(wanted)
        for transition in self.transitions:
            revision, vm = transition.revision, transition.vm.uuid
            for wrong in self.model.apply(transition):
                yield Violation(f"{line(transition)}: {wrong}", vm, revision)
            self._keep(wanted)
        for session in record.sessions:
            yield from self._check_session(session)
        for listing in record.listings:
            yield from self._check_listing("ListVms", listing.vms, listing.cursor.revision, ())
        for page in record.pages:
            yield from self._check_page(page)
        for call in record.calls:
            yield from self._check_call(call)

    def between(self, after: int, upto: int) -> Sequence[Transition]:
        return self.transitions[max(after - self.since, 0) : max(upto - self.since, 0)]

    def _keep(self, wanted: set[int]) -> None:
        if self.model.revision in wanted:
            self.states[self.model.revision] = dict(self.model.vms)

    def _check_session(self, session: Session) -> Iterator[Violation]:
        ended = session.ended
        if ended is not None and ended.code != "UNAVAILABLE":
            where = session.resumed.revision if session.resumed else "a snapshot"
            yield Violation(f"{session.name} from {where} ended: {ended}")
        if session.began is None:
            return
        if session.began.journal_id != self.journal_id:
            yield Violation(f"{session.name}: journal {session.began.journal_id}")
        if session.snapshot_end is not None:
            yield from self._check_listing(
                f"the snapshot of {session.name}",
                session.snapshot.values(),
                session.snapshot_end.revision,
                session.vms,
            )
        begin, beats = session.began.revision, [beat.revision for beat in session.heartbeats]
        if beats != sorted(beats) or (beats and beats[0] < begin):
            yield Violation(f"{session.name}: heartbeats at {beats} after {begin}")
        seen = [t.revision for t in session.transitions]
        upto = max([begin, *beats, *seen])
        if upto > self.since + len(self.transitions):
            yield Violation(f"{session.name} has seen {upto}, which the journal has not")
        kept = [t for t in self.between(begin, upto) if _passes(t.vm, session.vms)]
        yield from _compare(session, kept)

    def _check_listing(
        self, what: str, vms: Iterable[Vm], revision: int, passing: Sequence[str]
    ) -> Iterator[Violation]:
        at = self.states.get(revision)
        if at is None:
            yield Violation(f"{what} at {revision}, which the journal has not", "", revision)
            return
        listed = {vm.uuid: _bytes(vm) for vm in vms}
        there = {
            uuid: _bytes(vm)
            for uuid, vm in at.items()
            if state(vm) != "GONE" and _passes(vm, passing)
        }
        for uuid in listed.keys() | there.keys():
            if listed.get(uuid) != there.get(uuid):
                shown, kept = uuid in listed, uuid in there
                yield Violation(
                    f"{what} at {revision}: shown {shown}, there {kept}, different", uuid, revision
                )

    def _check_page(self, page: Sequence[Transition]) -> Iterator[Violation]:
        revisions = [t.revision for t in page]
        if revisions != list(range(revisions[0], revisions[0] - len(page), -1) if page else ()):
            yield Violation(f"newest page of history: {revisions}")
        for transition in page:
            if transition.revision > self.since:
                yield from self._check_told("history", transition)

    def _check_told(self, by: str, transition: Transition) -> Iterator[Violation]:
        kept = self.between(transition.revision - 1, transition.revision)
        if [transition] != [*kept]:
            now = line(kept[0]) if kept else "nothing"
            yield Violation(
                f"{by} told {line(transition)}; the journal has {now}",
                transition.vm.uuid,
                transition.revision,
            )

    def _check_call(self, call: Call) -> Iterator[Violation]:
        own: set[str] = set()
        for outcome in call.outcomes:
            for response in outcome.responses:
                operation = response.operation
                if operation.request_id == call.request.request_id:
                    own.add(operation.operation_id)
                yield from self._check_vm(call, response.vm)
                yield from self._check_operation(call, operation)
            yield from self._check_end(call, outcome)
        if len(own) > 1:
            yield Violation(f"request {call.request.request_id}: operations {own}", call.vm)

    def _check_vm(self, call: Call, vm: Vm) -> Iterator[Violation]:
        if not self.since < vm.revision:
            return
        kept = self.between(vm.revision - 1, vm.revision)
        if not kept or _bytes(kept[0].vm) != _bytes(vm):
            yield Violation(f"{call.verb} answered a VM at {vm.revision}", call.vm, vm.revision)

    def _check_operation(self, call: Call, operation: Operation) -> Iterator[Violation]:
        course = self.model.courses.get(operation.operation_id)
        name = f"{call.verb} {operation.operation_id}"
        if course is None or course.vm != call.vm:
            yield Violation(f"{name} was accepted, the journal has it not", call.vm)
            return
        phases = [step.phase for step in operation.steps]
        if phases[-1:] != [operation.phase] or any(phase in FINAL for phase in phases[:-1]):
            yield Violation(f"{name} took the steps {phases}", call.vm, course.accepted)
        if operation.phase in FINAL and course.phase != int(operation.phase):
            ended = OperationPhase.Name(operation.phase)
            yield Violation(f"{name} was {ended} for its caller", call.vm, course.ended)

    def _check_end(self, call: Call, outcome: Outcome) -> Iterator[Violation]:
        if not outcome.responses:
            return
        last = outcome.responses[-1]
        operation, course = last.operation, self.model.courses.get(last.operation.operation_id)
        if course is None or operation.phase not in FINAL:
            return
        if last.vm.revision < course.ended:
            yield Violation(
                f"{call.verb} ended at {course.ended}, its VM was answered at {last.vm.revision}",
                call.vm,
                course.ended,
            )
        yield from check_success(operation, course)


def check_success(operation: Operation, course: Course) -> Iterator[Violation]:
    """Check that a VM was what an operation is said to have made of it."""
    if operation.phase != OperationPhase.OPERATION_PHASE_SUCCEEDED:
        return
    states = {name for name, _ in course.states}
    match operation.WhichOneof("parameters"):
        case "stop":
            # it was off in between, though nobody saw it, if it was started anew
            anew = len(course.incarnations) > 1
            held = anew or any(not active for _, active in course.states)
        case "start" if operation.start.paused:
            held = not states.isdisjoint({"RUNNING", "PAUSED"})
        case "pause":
            held = "PAUSED" in states
        case "reboot" if operation.reboot.mode != RebootMode.REBOOT_MODE_FORCE:
            held = course.rebooted or any(step.phase == FORCING for step in operation.steps)
        case _:
            held = "RUNNING" in states
    if not held:
        outcome = OperationOutcome.Name(operation.outcome)
        yield Violation(
            f"operation {operation.operation_id} succeeded, {outcome}, its VM was "
            f"{sorted(course.states)}",
            course.vm,
            course.ended,
        )


def _compare(session: Session, kept: Sequence[Transition]) -> Iterator[Violation]:
    """Yield the first difference between what a watcher saw and what it should have seen."""
    seen = session.transitions
    for saw, has in zip(seen, kept, strict=False):
        if saw != has:
            yield Violation(
                f"{session.name} saw {line(saw)}; the journal has {line(has)}",
                has.vm.uuid,
                has.revision,
            )
            return
    if len(seen) != len(kept):
        first = (seen if len(seen) > len(kept) else kept)[min(len(seen), len(kept))]
        more = "more" if len(seen) > len(kept) else "less"
        yield Violation(
            f"{session.name} saw {more} than there is: {line(first)}",
            first.vm.uuid,
            first.revision,
        )


def _passes(vm: Vm, passing: Sequence[str]) -> bool:
    return not passing or vm.uuid in passing or vm.name in passing


def _bytes(vm: Vm) -> bytes:
    """Return a record as it can be compared: when it was last verified is in no transition."""
    copy = Vm()
    copy.CopyFrom(vm)
    copy.ClearField("verify_time")
    return copy.SerializeToString(deterministic=True)


def answered(call: Call) -> Response | None:
    """Return the last answer that told of an operation made for this very request."""
    responses = [r for outcome in call.outcomes for r in outcome.responses]
    own = [r for r in responses if r.operation.request_id == call.request.request_id]
    return own[-1] if own else None
