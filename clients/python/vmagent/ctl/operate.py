"""Start and Stop: several VMs side by side, each step told as it comes."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import grpc.aio

from vmagent.ctl.channel import failure_of
from vmagent.ctl.failures import ExitCode, Failure, outcome
from vmagent.ctl.screen import Output, Screen, print_json, tell
from vmagent.ctl.vms import name_of, state_and_reason
from vmagent.ctl.words import clock, length, moment_of, phase_word, plain
from vmagent.v1.operation_pb2 import Operation, OperationOutcome, OperationPhase, OperationVerb

if TYPE_CHECKING:
    from collections.abc import AsyncIterable, Callable, Iterable
    from pathlib import Path

    from rich.text import Text

    from vmagent.v1.operation_pb2 import OperationStep
    from vmagent.v1.vm_agent_service_pb2 import StartResponse, StopResponse

    Step = StartResponse | StopResponse

_AT_ONCE = 64  # more wait for their turn: the daemon bounds what one caller may have open
_STEP_WORDS = {
    OperationPhase.OPERATION_PHASE_STARTING: "libvirt starts it",
    OperationPhase.OPERATION_PHASE_SIGNALLED: "guest asked to shut down",
    OperationPhase.OPERATION_PHASE_FORCING: "forcing it off",
}
_ENDED = {
    OperationPhase.OPERATION_PHASE_SUCCEEDED,
    OperationPhase.OPERATION_PHASE_FAILED,
    OperationPhase.OPERATION_PHASE_CANCELLED,
    OperationPhase.OPERATION_PHASE_INTERRUPTED,
}


class Operations:
    """Carries out one verb on several VMs and prints what happens."""

    def __init__(self, output: Output, path: Path) -> None:
        self._output, self._path = output, path
        self._screen = Screen()
        self._open: dict[str, Operation] = {}  # by what the user called the VM
        self._told: set[str] = set()

    async def run(
        self, vms: Iterable[str], call: Callable[[str], AsyncIterable[Step]]
    ) -> ExitCode:
        """Call for every VM and return the worst of their ends."""
        turn = asyncio.Semaphore(_AT_ONCE)

        async def one(vm: str) -> ExitCode:
            async with turn:
                return await self._one(vm, call(vm))

        return max(await asyncio.gather(*map(one, dict.fromkeys(vms))))

    def last_words(self) -> str:
        """Return what a person who leaves early should know."""
        lines = (
            f"vmagentctl: operation {operation.operation_id} on {plain(operation.vm_name)} "
            "goes on in the daemon\n"
            for operation in list(self._open.values())
        )
        return "".join(lines)

    async def _one(self, vm: str, steps: AsyncIterable[Step]) -> ExitCode:
        try:
            last = await self._follow(vm, steps)
        except grpc.aio.AioRpcError as error:
            failure = failure_of(error, self._path)
            if failure.code is ExitCode.UNREACHABLE and vm in self._open:
                failure = self._lost(self._open[vm])
            return self._fail(failure)
        finally:
            self._open.pop(vm, None)
        if last is None or last.operation.phase not in _ENDED:
            sentence = f"{vm}: the daemon ended the call without saying how it went"
            return self._fail(Failure(sentence, ExitCode.FAILED))
        if last.operation.phase != OperationPhase.OPERATION_PHASE_SUCCEEDED:
            return self._fail(outcome(last.operation.error))
        return ExitCode.DONE

    async def _follow(self, vm: str, steps: AsyncIterable[Step]) -> Step | None:
        """Print an operation's steps and return the last message; JSON has it also on failure."""
        last, seen = None, 0
        try:
            async for last in steps:
                ended = last.operation.phase in _ENDED
                if ended:
                    self._open.pop(vm, None)
                else:
                    self._open[vm] = last.operation
                if self._output is Output.JSONL:
                    print_json(last, self._output)
                elif self._output is Output.TABLE:
                    self._print_steps(last, seen)
                seen = len(last.operation.steps)
        finally:
            if self._output is Output.JSON and last is not None:
                print_json(last, self._output)
        return last

    def _print_steps(self, response: Step, seen: int) -> None:
        """Print the steps that were not printed yet: a joined operation brings several."""
        operation = response.operation
        name = plain(operation.vm_name) or name_of(response.vm)
        for step in operation.steps[seen:]:
            if step.phase not in _ENDED:
                self._screen.line((f"{name}: ", "bold"), step_words(step, operation))
        if operation.phase == OperationPhase.OPERATION_PHASE_SUCCEEDED:
            self._screen.line((f"{name}: ", "bold"), result(response))

    def _lost(self, operation: Operation) -> Failure:
        verb = "start" if operation.verb == OperationVerb.OPERATION_VERB_START else "stop"
        return Failure(
            f"lost vmagentd at unix:{self._path} during {verb} operation "
            f"{operation.operation_id} on {operation.vm_name}; how it went is in the journal: "
            "see `vmagentctl history` once the daemon is back",
            ExitCode.UNREACHABLE,
        )

    def _fail(self, failure: Failure) -> ExitCode:
        sentence = str(failure)
        if sentence not in self._told:  # when the daemon is away it is so for every VM
            self._told.add(sentence)
            tell(sentence)
        return failure.code


def step_words(step: OperationStep, operation: Operation) -> str:
    """Return one step of an operation as a line."""
    if step.phase == OperationPhase.OPERATION_PHASE_ACCEPTED:
        verb = "start" if operation.verb == OperationVerb.OPERATION_VERB_START else "stop"
        return f"{verb} accepted, operation {plain(operation.operation_id)}"
    if step.phase == OperationPhase.OPERATION_PHASE_WAITING:
        up = operation.verb == OperationVerb.OPERATION_VERB_START
        return f"waiting for it to be {'up' if up else 'off'}"
    words = _STEP_WORDS.get(step.phase, phase_word(step.phase))
    return f"{words} (attempt {step.attempt})" if step.attempt > 1 else words


def result(response: Step) -> Text:
    """Return how an operation succeeded: the state that holds now, and since when."""
    operation, vm = response.operation, response.vm
    text = state_and_reason(vm)
    if operation.outcome == OperationOutcome.OPERATION_OUTCOME_ALREADY_DONE:
        since = f" since {clock(vm.state_time)}" if vm.HasField("state_time") else ""
        return text.append(f" already{since}, nothing was done")
    if operation.HasField("end_time"):
        took = moment_of(operation.end_time) - moment_of(operation.accept_time)
        text.append(f" after {length(took)}")
    return text
