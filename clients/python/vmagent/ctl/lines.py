"""Transitions as lines, for history and for watch."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.cells import cell_len
from rich.text import Text

from vmagent.ctl.vms import definition_size, name_of, state_and_reason, styled_state
from vmagent.ctl.words import (
    NOTHING,
    fine_clock,
    initiator_words,
    length,
    moment_of,
    phase_word,
    plain,
    short,
    source_word,
    value_name,
)
from vmagent.v1.transition_pb2 import TransitionKind

if TYPE_CHECKING:
    from collections.abc import Iterator
    from datetime import datetime

    from vmagent.v1.host_pb2 import BlindInterval
    from vmagent.v1.transition_pb2 import Transition
    from vmagent.v1.vm_agent_service_pb2 import ListTransitionsResponse

_REVISION_WIDTH = 7
_NAME_WIDTH = 16
_DATE_LENGTH = len("2026-01-31 ")


def transition_line(transition: Transition) -> Text:
    """Return one transition: revision, time, VM, what changed, by whom, how it was learned."""
    name = name_of(transition.vm)
    line = Text.assemble(
        (f"{transition.revision:>{_REVISION_WIDTH}}", "bold"),
        f"  {fine_clock(transition.time)}  ",
        name + " " * (_NAME_WIDTH - cell_len(name)) + "  ",
        change(transition),
    )
    if transition.source:
        line.append(f"  [{source_word(transition.source)}]", style="dim")
    if transition.late:
        line.append(f"  late{_unseen(transition)}", style="yellow")
    return line


def _unseen(transition: Transition) -> str:
    """Return the time in which a late change happened."""
    if not transition.HasField("earliest_time"):
        return ""
    begin, end = fine_clock(transition.earliest_time), fine_clock(transition.time)
    return f": between {begin} and {end.removeprefix(begin[:_DATE_LENGTH])}"


def change(transition: Transition) -> Text:
    """Return what a transition changed."""
    vm, kind = transition.vm, transition.kind
    if kind == TransitionKind.TRANSITION_KIND_OPERATION:
        phase = phase_word(transition.operation_phase)
        return Text(f"operation {short(transition.operation_id)} {phase}")
    if kind == TransitionKind.TRANSITION_KIND_DEFINITION:
        kept = "persistent" if vm.persistent else "transient"
        return Text(f"definition: {kept}, {definition_size(vm)}")
    if kind == TransitionKind.TRANSITION_KIND_RESPONSIVENESS:
        if vm.HasField("unresponsive"):
            return Text(f"does not answer libvirt, job {plain(vm.unresponsive.job)}", "yellow")
        return Text("answers libvirt again")
    text = _states(transition)
    if kind not in (
        TransitionKind.TRANSITION_KIND_STATE,
        TransitionKind.TRANSITION_KIND_REBOOT,
    ):
        text.append(f"  {value_name(TransitionKind.DESCRIPTOR, kind)}")
    who = initiator_words(vm.initiator)
    if who != NOTHING:
        text.append(f" by {who}")
    if vm.initiator.operation_id:
        text.append(f", operation {short(vm.initiator.operation_id)}")
    return text


def _states(transition: Transition) -> Text:
    text = Text()
    if transition.previous_state:
        text.append_text(styled_state(transition.previous_state)).append(" → ")
    return text.append_text(state_and_reason(transition.vm))


def history_lines(history: ListTransitionsResponse, *, oldest_first: bool) -> Iterator[Text]:
    """Yield the lines of a history, with the blind times where they belong."""
    blind = sorted(history.blind_intervals, key=_begin, reverse=not oldest_first)
    for transition in history.transitions:
        # Before (oldest first) or after the changes that were found when they were over.
        time = moment_of(transition.time)
        while blind and (_begin(blind[0]) < time if oldest_first else _begin(blind[0]) >= time):
            yield blind_line(blind.pop(0))
        yield transition_line(transition)
    yield from map(blind_line, blind)


def _begin(interval: BlindInterval) -> datetime:
    return moment_of(interval.begin_time)


def blind_line(interval: BlindInterval) -> Text:
    """Return a time during which libvirt could not be asked."""
    text = f"{'':>{_REVISION_WIDTH}}  {fine_clock(interval.begin_time)}  libvirt "
    if interval.HasField("end_time"):
        lasted = moment_of(interval.end_time) - moment_of(interval.begin_time)
        text += f"could not be asked for {length(lasted)}"
    else:
        text += "cannot be asked since then"
    return Text(f"{text}: {plain(interval.cause)}", style="bold yellow")
