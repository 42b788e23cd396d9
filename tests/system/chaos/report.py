"""A violation in words: the transitions around it, who saw them, and what was done meanwhile."""

from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from typing import Final

from vmagent.v1.transition_pb2 import Transition

from tests.system.chaos.model import line
from tests.system.chaos.promises import History, Violation
from tests.system.chaos.record import Act, Record, Session

_TRANSITIONS_AROUND: Final = 8
_SECONDS_AROUND: Final = 1.5
_SHOWN: Final = 5


def tell(violations: Sequence[Violation], history: History | None, record: Record) -> str:
    """Return the first few violations with what happened around them."""
    lines = [f"{len(violations)} violations"]
    for violation in violations[:_SHOWN]:
        lines += ["", violation.what]
        if history is not None:
            lines += _around(violation, history, record)
    lines += ["", *(violation.what for violation in violations[_SHOWN : 10 * _SHOWN])]
    return "\n".join(lines)


def _around(violation: Violation, history: History, record: Record) -> Iterator[str]:
    of_vm = [t for t in history.transitions if t.vm.uuid == violation.vm]
    before = sum(t.revision < violation.revision for t in of_vm)
    if not violation.revision:
        before = len(of_vm)
    shown = of_vm[max(before - _TRANSITIONS_AROUND, 0) : before + _TRANSITIONS_AROUND]
    for transition in shown:
        yield f"  {_clock(_seconds(transition))} {line(transition)}{_operation(transition)}"
        yield f"      seen by {_seen(transition, record.sessions) or 'nobody'}"
    if not shown:
        return
    begin = _seconds(shown[0]) - _SECONDS_AROUND
    end = _seconds(shown[-1]) + _SECONDS_AROUND
    for act in sorted(record.acts, key=lambda act: act.began_s):
        concerns = act.target in {violation.vm, "daemon", "libvirtd"}
        if concerns and act.began_s < end and (act.ended_s or end) > begin:
            yield f"  {_act(act)}"


def _act(act: Act) -> str:
    return f"{_clock(act.began_s)} - {_clock(act.ended_s)} {act.lane}: {act.what}: {act.outcome}"


def _seen(transition: Transition, sessions: Sequence[Session]) -> str:
    return ", ".join(s.name for s in sessions if transition in s.transitions)


def _operation(transition: Transition) -> str:
    if not transition.operation_id:
        return ""
    return f" ({transition.operation_id} {transition.operation_phase})"


def _seconds(transition: Transition) -> float:
    return transition.time.ToNanoseconds() / 1e9


def _clock(seconds: float) -> str:
    return f"{datetime.fromtimestamp(seconds, tz=UTC):%H:%M:%S.%f}"[:-3]
