"""What is done to VMs: several side by side, each step told as it comes."""

from __future__ import annotations

import asyncio
import re
from typing import TYPE_CHECKING

import grpc.aio
from rich.text import Text

from vmagent.ctl.channel import failure_of
from vmagent.ctl.failures import ExitCode, Failure, outcome, reason_of, refusal
from vmagent.ctl.screen import Output, Screen, print_json, tell
from vmagent.ctl.vms import name_of, state_and_reason
from vmagent.ctl.words import (
    ENDED,
    clock,
    length,
    moment_of,
    outcome_word,
    phase_word,
    plain,
    verb_word,
)
from vmagent.v1.operation_pb2 import OperationOutcome, OperationPhase, OperationVerb

if TYPE_CHECKING:
    from collections.abc import AsyncIterable, Callable, Iterable

    from grpc.aio import AioRpcError

    from vmagent.ctl.errand import Errand, Step
    from vmagent.ctl.targets import Daemon
    from vmagent.v1.operation_pb2 import Operation, OperationStep
    from vmagent.v1.vm_pb2 import Vm

_AT_ONCE = 64  # more wait for their turn: the daemon bounds what one caller may have open
_START, _STOP = OperationVerb.OPERATION_VERB_START, OperationVerb.OPERATION_VERB_STOP
_REBOOT = OperationVerb.OPERATION_VERB_REBOOT
_PAUSE, _RESUME = OperationVerb.OPERATION_VERB_PAUSE, OperationVerb.OPERATION_VERB_RESUME
_STEP_WORDS = {
    (_START, OperationPhase.OPERATION_PHASE_STARTING): "libvirt starts it",
    (_START, OperationPhase.OPERATION_PHASE_WAITING): "waiting for it to be up",
    (_STOP, OperationPhase.OPERATION_PHASE_SIGNALLED): "guest asked to shut down",
    (_STOP, OperationPhase.OPERATION_PHASE_WAITING): "waiting for it to be off",
    (_STOP, OperationPhase.OPERATION_PHASE_FORCING): "forcing it off",
    (_REBOOT, OperationPhase.OPERATION_PHASE_SIGNALLED): "guest asked to reboot",
    (_REBOOT, OperationPhase.OPERATION_PHASE_WAITING): "waiting for it to come up again",
    (_REBOOT, OperationPhase.OPERATION_PHASE_FORCING): "resetting it",
    (_PAUSE, OperationPhase.OPERATION_PHASE_APPLYING): "libvirt pauses it",
    (_PAUSE, OperationPhase.OPERATION_PHASE_WAITING): "waiting for it to be paused",
    (_RESUME, OperationPhase.OPERATION_PHASE_APPLYING): "libvirt resumes it",
    (_RESUME, OperationPhase.OPERATION_PHASE_WAITING): "waiting for it to run",
}


class Operations:
    """Carries out one verb on several VMs and prints what happens."""

    def __init__(self, output: Output, daemon: Daemon) -> None:
        self._output, self._daemon = output, daemon
        self._screen = Screen()
        # both by what the user called the VM
        self._unasked: dict[str, None] = {}
        self._under_way: dict[str, Errand] = {}
        self._several = False
        self._told: set[str] = set()
        self._obstacle: asyncio.Task[Failure] | None = None  # on the way to the daemon

    async def run(self, vms: Iterable[str], errand: Callable[[str], Errand]) -> ExitCode:
        """Run an errand for every VM and return the worst of their ends."""
        turn = asyncio.Semaphore(_AT_ONCE)
        self._unasked = dict.fromkeys(vms)
        self._several = len(self._unasked) > 1

        async def one(vm: str) -> ExitCode:
            async with turn:
                del self._unasked[vm]
                self._under_way[vm] = errand(vm)
                code = await self._one(vm, self._under_way[vm])
                del self._under_way[vm]  # not if it was left before its end
                return code

        tasks = [asyncio.create_task(one(vm), name=f"errand {vm}") for vm in self._unasked]
        try:
            return max(await asyncio.gather(*tasks))
        finally:  # one may have met a full disk: the others print no more either
            for task in tasks:
                task.cancel()

    def last_words(self) -> list[str]:
        """Return what a person who leaves early should know."""
        words = [errand.last_words() for errand in list(self._under_way.values())]
        if self._unasked:
            words.append(f"vmagentd was not asked for {', '.join(map(plain, self._unasked))}")
        return list(filter(None, words))

    async def _one(self, vm: str, errand: Errand) -> ExitCode:
        try:
            last = await self._follow(errand.responses())
        except grpc.aio.AioRpcError as error:
            return self._fail(await self._failure(error), errand.operation)
        except Failure as failure:
            return self._fail(failure)
        if last is None or last.operation.phase not in ENDED:
            sentence = f"{vm}: the daemon ended the call without saying how it went"
            return self._fail(Failure(sentence, ExitCode.FAILED))
        if last.operation.phase != OperationPhase.OPERATION_PHASE_SUCCEEDED:
            return self._fail(outcome(last.operation.error), last.operation)
        return ExitCode.DONE

    async def _follow(self, steps: AsyncIterable[Step]) -> Step | None:
        """Print an operation's steps and return the last message; JSON has it also on failure."""
        last, seen = None, 0
        try:
            async for last in steps:
                if self._output is Output.JSONL:
                    print_json(last, self._output)
                elif self._output is Output.TABLE:
                    self._print_steps(last, seen)
                seen = max(seen, len(last.operation.steps))
        finally:
            if self._output is Output.JSON and last is not None:
                print_json(last, self._output)
        return last

    def _print_steps(self, response: Step, seen: int) -> None:
        """Print the steps that were not printed yet: a joined operation brings several.

        One that waits for its turn says so again: its place is another one.
        """
        operation = response.operation
        name = plain(operation.vm_name) or name_of(response.vm)
        begin = min(seen, len(operation.steps) - 1) if operation.queue_place else seen
        for step in operation.steps[begin:]:
            if step.phase not in ENDED:
                self._screen.line((f"{name}: ", "bold"), step_words(step, operation))
        if operation.phase == OperationPhase.OPERATION_PHASE_SUCCEEDED:
            self._screen.line((f"{name}: ", "bold"), result(response))

    async def _failure(self, error: AioRpcError) -> Failure:
        """Return why a call ended.

        If the daemon cannot be reached, the way to it is tried for the first VM only, and in a
        thread: where nobody answers it takes seconds, and steps of others are shown meanwhile.
        """
        failure = refusal(error)
        if failure.code is not ExitCode.UNREACHABLE or reason_of(error):
            return failure
        if self._obstacle is None:
            tried = asyncio.to_thread(failure_of, error, self._daemon)
            self._obstacle = asyncio.create_task(tried, name="obstacle")
        return await self._obstacle

    def _fail(self, failure: Failure, operation: Operation | None = None) -> ExitCode:
        sentence = str(failure)
        if self._several and operation is not None and operation.phase in ENDED:
            # It is this VM's own failure; libvirt's words, say, need not name it.
            name = plain(operation.vm_name)
            if not _names(sentence, name):
                sentence = f"{name}: {sentence}"
        if sentence not in self._told:  # when the daemon is away it is so for every VM
            self._told.add(sentence)
            tell(sentence)
        return failure.code


def _names(sentence: str, vm: str) -> bool:
    """Return whether a sentence speaks of this VM: `web-2` and `web.old` are not `web`."""
    return re.search(rf"(?<![\w.-]){re.escape(vm)}(?![\w-]|\.\w)", sentence) is not None


def step_words(step: OperationStep, operation: Operation) -> str:
    """Return one step of an operation as a line."""
    if step.phase == OperationPhase.OPERATION_PHASE_ACCEPTED:
        return f"{verb_word(operation.verb)} accepted, operation {plain(operation.operation_id)}"
    if step.phase == OperationPhase.OPERATION_PHASE_QUEUED:
        place = f", place {operation.queue_place}" if operation.queue_place else ""
        return f"waits for its turn{place}"
    words = _STEP_WORDS.get((operation.verb, step.phase)) or phase_word(step.phase)
    return f"{words} (attempt {step.attempt})" if step.attempt > 1 else words


def result(response: Step) -> Text:
    """Return how an operation succeeded: the state that holds now, and how long it took."""
    operation, vm = response.operation, response.vm
    text = state_and_reason(vm)
    if _changed_since(vm, operation):  # it is told again: that state is not of its making
        how = f"{verb_word(operation.verb)} {outcome_word(operation.outcome)}"
        then = Text(f"{how} at {clock(operation.end_time)}; since {clock(vm.state_time)} it is ")
        return then.append_text(text)
    if operation.outcome == OperationOutcome.OPERATION_OUTCOME_ALREADY_DONE:
        since = f" since {clock(vm.state_time)}" if vm.HasField("state_time") else ""
        return text.append(f" already{since}, nothing was done")
    if operation.HasField("end_time"):
        took = moment_of(operation.end_time) - moment_of(operation.accept_time)
        text.append(f" after {length(took)}")
    return text


def _changed_since(vm: Vm, operation: Operation) -> bool:
    """Return whether a VM is in its state since a time after an operation's end."""
    if not (vm.HasField("state_time") and operation.HasField("end_time")):
        return False
    return moment_of(vm.state_time) > moment_of(operation.end_time)
