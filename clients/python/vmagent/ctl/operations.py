"""`vmagentctl operations`, `operation` and `cancel`: what was asked for, and how it went."""

from __future__ import annotations

import asyncio
import re
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated

import typer
from rich.text import Text

from vmagent.ctl.channel import ANSWER_TIMEOUT_S, connect
from vmagent.ctl.failures import ExitCode, Failure
from vmagent.ctl.listing import print_pages
from vmagent.ctl.moments import parse_time
from vmagent.ctl.operate import step_words
from vmagent.ctl.options import (
    Common,
    LimitOption,
    OutputOption,
    Target,
    parse_value,
    read,
)
from vmagent.ctl.pages import joined, operation_pages
from vmagent.ctl.screen import Output, Screen, print_json
from vmagent.ctl.words import (
    ENDED,
    NOTHING,
    ago,
    clock,
    fine_clock,
    length,
    moment_of,
    outcome_word,
    parameter_words,
    phase_word,
    plain,
    short,
    value_names,
    verb_word,
)
from vmagent.v1.operation_pb2 import OperationOutcome, OperationPhase, OperationVerb
from vmagent.v1.vm_agent_service_pb2 import (
    CancelOperationRequest,
    GetOperationRequest,
    ListOperationsRequest,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

    from vmagent.ctl.targets import Daemon
    from vmagent.v1.operation_pb2 import Operation
    from vmagent.v1.vm_agent_service_pb2 import ListOperationsResponse
    from vmagent.v1.vm_agent_service_pb2_grpc import VmAgentServiceAsyncStub

_PHASES = value_names(OperationPhase.DESCRIPTOR)
_VERBS = value_names(OperationVerb.DESCRIPTOR)
_OUTCOMES = value_names(OperationOutcome.DESCRIPTOR)
_REPEATED = "May be repeated."
_TITLES = ("OPERATION", "VERB", "VM", "ACTOR", "ACCEPTED", "PHASE", "TOOK", "NOTE")
_STYLES = {
    OperationPhase.OPERATION_PHASE_SUCCEEDED: "green",
    OperationPhase.OPERATION_PHASE_FAILED: "bold red",
    OperationPhase.OPERATION_PHASE_CANCELLED: "yellow",
    OperationPhase.OPERATION_PHASE_INTERRUPTED: "yellow",
}
_FEWEST_DIGITS = 8  # what other commands print of an operation
_ALL_DIGITS = 32
_DIGITS = re.compile(r"[0-9a-f]{8,32}")
_SHOWN = 3  # of several that may be meant

OperationArgument = Annotated[
    str, typer.Argument(metavar="ID", help="The operation, by its first 8 characters or more.")
]


def operations(
    context: typer.Context,
    *,
    vm: Annotated[str, typer.Option(metavar="VM", help="Only those on this VM.")] = "",
    actor: Annotated[
        str, typer.Option(metavar="ACTOR", help="Only those this actor asked for, like user:root.")
    ] = "",
    phase: Annotated[
        list[str] | None,
        typer.Option(metavar="PHASE", help=f"Only those in this phase: {_PHASES}. {_REPEATED}"),
    ] = None,
    verb: Annotated[
        list[str] | None,
        typer.Option(metavar="VERB", help=f"Only those of this verb: {_VERBS}. {_REPEATED}"),
    ] = None,
    outcome: Annotated[
        list[str] | None,
        typer.Option(
            metavar="OUTCOME", help=f"Only those that succeeded so: {_OUTCOMES}. {_REPEATED}"
        ),
    ] = None,
    since: Annotated[
        str | None, typer.Option(metavar="TIME", help="Accepted from this time or age (2h) on.")
    ] = None,
    until: Annotated[
        str | None, typer.Option(metavar="TIME", help="Accepted before this time or age.")
    ] = None,
    limit: LimitOption = 100,
    target: Target = None,
    output: OutputOption = None,
) -> ExitCode:
    """Show what was asked of VMs and how it went, newest first."""
    common: Common = context.obj
    request = ListOperationsRequest(
        vm=vm,
        actor=actor,
        phases=[read("--phase", text, _parse_phase) for text in phase or ()],
        verbs=[read("--verb", text, _parse_verb) for text in verb or ()],
        outcomes=[read("--outcome", text, _parse_outcome) for text in outcome or ()],
    )
    if since is not None:
        request.min_accept_time.FromDatetime(read("--since", since, _parse_time))
    if until is not None:
        request.max_accept_time.FromDatetime(read("--until", until, _parse_time))
    return asyncio.run(
        print_pages(
            common.daemon(target),
            common.form(output),
            lambda service: operation_pages(service, request, limit),
            joined,
            _print_table,
        )
    )


def operation(
    context: typer.Context,
    *,
    operation: OperationArgument,
    target: Target = None,
    output: OutputOption = None,
) -> ExitCode:
    """Show one operation, step by step."""
    common: Common = context.obj
    digits = read("ID", operation, _parse_digits)
    return asyncio.run(_show(common.daemon(target), common.form(output), digits))


def cancel(
    context: typer.Context,
    *,
    operation: OperationArgument,
    target: Target = None,
    output: OutputOption = None,
) -> ExitCode:
    """Cancel an operation that is not over. What the guest was asked for may still come.

    One that ended otherwise before counts as failed.
    """
    common: Common = context.obj
    digits = read("ID", operation, _parse_digits)
    return asyncio.run(_cancel(common.daemon(target), common.form(output), digits))


def _parse_phase(text: str) -> OperationPhase.ValueType:
    return OperationPhase.ValueType(parse_value(text, OperationPhase.DESCRIPTOR, "phase"))


def _parse_verb(text: str) -> OperationVerb.ValueType:
    return OperationVerb.ValueType(parse_value(text, OperationVerb.DESCRIPTOR, "verb"))


def _parse_outcome(text: str) -> OperationOutcome.ValueType:
    return OperationOutcome.ValueType(parse_value(text, OperationOutcome.DESCRIPTOR, "outcome"))


def _parse_time(text: str) -> datetime:
    return parse_time(text, _now())


def _now() -> datetime:
    return datetime.now(UTC).astimezone()


def _parse_digits(text: str) -> str:
    """Return the first digits of an operation's identity, or all of them."""
    digits = text.replace("-", "").lower()
    if not _DIGITS.fullmatch(digits):
        raise ValueError(
            f"{text!r} is not an operation; write its first {_FEWEST_DIGITS} characters or more, "
            "as `vmagentctl operations` shows them"
        )
    return digits


def _print_table(screen: Screen, answer: ListOperationsResponse) -> None:
    screen.table(_TITLES, map(_row, answer.operations), nothing="no operations")


async def _show(daemon: Daemon, output: Output, digits: str) -> ExitCode:
    async with connect(daemon) as service:
        request = GetOperationRequest(operation_id=await _whole_id(service, digits))
        answer = await service.GetOperation(request, timeout=ANSWER_TIMEOUT_S)
    if output is not Output.TABLE:
        print_json(answer, output)
        return ExitCode.DONE
    screen = Screen()
    for title, value in _facts(answer.operation):
        screen.line((f"{title + ':':<18}", "bold"), value)
    return ExitCode.DONE


async def _cancel(daemon: Daemon, output: Output, digits: str) -> ExitCode:
    async with connect(daemon) as service:
        request = CancelOperationRequest(operation_id=await _whole_id(service, digits))
        answer = await service.CancelOperation(request, timeout=ANSWER_TIMEOUT_S)
    found = answer.operation
    cancelled = found.phase == OperationPhase.OPERATION_PHASE_CANCELLED
    what = f"{verb_word(found.verb)} operation {plain(found.operation_id)}"
    if output is not Output.TABLE:
        print_json(answer, output)
    elif cancelled:
        Screen().line((f"{plain(found.vm_name)}: ", "bold"), f"{what} is cancelled")
    if not cancelled:
        sentence = f"{found.vm_name}: {what} was over before: {phase_word(found.phase)}"
        raise Failure(sentence, ExitCode.FAILED)
    return ExitCode.DONE


async def _whole_id(service: VmAgentServiceAsyncStub, digits: str) -> str:
    """Return the identity that begins with *digits*.

    Raises:
        Failure: there is none, or more than one.
    """
    if len(digits) == _ALL_DIGITS:
        return digits
    found: list[str] = []
    async for page in operation_pages(service, ListOperationsRequest(), 0):
        ids = (each.operation_id for each in page.operations)
        found += (each for each in ids if each.replace("-", "").startswith(digits))
    if not found:
        sentence = f"no operation {digits}; operations are kept for days, not for ever"
        raise Failure(sentence, ExitCode.NOT_FOUND)
    if len(found) > 1:
        more = ", …" if len(found) > _SHOWN else ""
        sentence = f"{digits} can be any of {', '.join(found[:_SHOWN])}{more}; write more of it"
        raise Failure(sentence, ExitCode.USAGE)
    return found[0]


def _row(operation: Operation) -> list[str | Text]:
    return [
        short(operation.operation_id),
        verb_word(operation.verb),
        plain(operation.vm_name or operation.vm_uuid),
        plain(operation.actor) or NOTHING,
        clock(operation.accept_time),
        _phase(operation),
        _took(operation),
        _note(operation),
    ]


def _phase(operation: Operation) -> Text:
    return Text(phase_word(operation.phase), style=_STYLES.get(operation.phase, "cyan"))


def _took(operation: Operation) -> str:
    if not operation.HasField("end_time"):
        return NOTHING
    return length(moment_of(operation.end_time) - moment_of(operation.accept_time))


def _note(operation: Operation) -> str:
    if operation.HasField("error"):
        return plain(operation.error.reason)
    if operation.outcome == OperationOutcome.OPERATION_OUTCOME_ALREADY_DONE:
        return outcome_word(operation.outcome)
    if operation.queue_place:
        return f"place {operation.queue_place}"
    return ""


def _facts(operation: Operation) -> Iterator[tuple[str, str | Text]]:
    now = _now()
    yield "Operation", plain(operation.operation_id)
    yield "Verb", verb_word(operation.verb)
    yield "VM", f"{plain(operation.vm_name)} ({plain(operation.vm_uuid)})"
    yield "Asked by", plain(operation.actor) or NOTHING
    if operation.request_id:
        yield "Request", plain(operation.request_id)
    yield from parameter_words(operation)
    yield "Phase", _phase(operation)
    if operation.outcome:
        yield "Outcome", outcome_word(operation.outcome)
    if operation.HasField("error"):
        yield "Error", f"{plain(operation.error.message)} [{plain(operation.error.reason)}]"
    yield "Accepted", ago(operation.accept_time, now)
    if operation.phase not in ENDED:
        yield "Deadline", clock(operation.deadline_time)
    if operation.HasField("end_time"):
        yield "Ended", f"{ago(operation.end_time, now)}, after {_took(operation)}"
    for step in operation.steps:
        yield "Step", f"{fine_clock(step.time)}  {step_words(step, operation)}"
