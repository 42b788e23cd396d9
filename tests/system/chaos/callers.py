"""Clients that have VMs started and stopped, and repeat what the daemon died over."""

from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from threading import Event
from types import MappingProxyType
from typing import Any, Final

import grpc
from vmagent.v1 import vm_agent_service_pb2 as pb
from vmagent.v1.vm_agent_service_pb2_grpc import VmAgentServiceStub

from tests.system.calls import FORCE, GRACEFUL, THEN_FORCE, Outcome, duration, finished
from tests.system.chaos.plan import Deed, Verb
from tests.system.chaos.players import Player
from tests.system.chaos.record import Call, Record
from tests.system.daemon import channel

# Before a request is made again: a client that does not hammer. Part of the trial.
_RETRY_S: Final = 0.5
# How long a Start or a forced Stop may take.
_ALLOWED_S: Final = 15.0
# All operations are over long before it; a call that is not hangs.
_HANGS_S: Final = 60.0

_MORE: Mapping[Verb, dict[str, Any]] = MappingProxyType({
    Verb.START_PAUSED: {"paused": True},
    Verb.START_AFRESH: {"discard_saved_state": True},
    Verb.STOP: {"mode": GRACEFUL},
    Verb.STOP_THEN_FORCE: {"mode": GRACEFUL, "on_grace_expired": THEN_FORCE},
    Verb.FORCE_OFF: {"mode": FORCE},
})  # fmt: skip


class Callers:
    """Makes requests, each in a thread of its own so that no lane waits for an answer.

    Args:
        target: where the daemon is.
        record: takes what they are answered.
        over: set when no request is to be repeated any more.
    """

    def __init__(self, target: str, record: Record, over: Event) -> None:
        self._target = target
        self._record = record
        self._over = over
        self._pool = ThreadPoolExecutor(24, thread_name_prefix="caller")
        self._made: list[Future[None]] = []

    def make(self, deed: Deed, player: Player, lane: str) -> None:
        """Make a request; returns at once."""
        request_id = f"{lane}-{deed.number}"
        call = Call(
            lane=lane,
            verb=deed.verb,
            vm=player.uuid,
            request=_request(deed, player, request_id),
        )
        self._record.calls.append(call)
        self._made.append(self._pool.submit(self._see_through, call, deed))

    def join(self) -> None:
        """Wait until all are answered."""
        self._pool.shutdown()
        for made in self._made:
            made.result()

    def _see_through(self, call: Call, deed: Deed) -> None:
        for _ in range(1 + deed.repeats):
            with self._record.act(call.lane, deed.verb, call.vm) as act:
                outcome = ask(self._target, call.request, hangs_up=deed.hangs_up)
                call.outcomes.append(outcome)
                act.outcome = _told(outcome)
            refused = outcome.refusal
            if refused is None or refused.code != "UNAVAILABLE" or self._over.wait(_RETRY_S):
                return


def ask(
    target: str, request: pb.StartRequest | pb.StopRequest, *, hangs_up: bool = False
) -> Outcome:
    """Make a request and read its answers, to the end unless the caller *hangs_up*."""
    with channel(target) as line:
        stub = VmAgentServiceStub(line)
        if isinstance(request, pb.StartRequest):
            steps: Any = stub.Start(request, timeout=_HANGS_S)
        else:
            steps = stub.Stop(request, timeout=_HANGS_S)
        if not hangs_up:
            return finished(steps)
        outcome = Outcome()
        try:
            outcome.responses.append(next(steps))
        except grpc.RpcError:
            return finished(steps, outcome)
        steps.cancel()
        return outcome


def _request(deed: Deed, player: Player, request_id: str) -> pb.StartRequest | pb.StopRequest:
    more = _MORE.get(deed.verb, {})
    if deed.verb in {Verb.START, Verb.START_PAUSED, Verb.START_AFRESH}:
        return pb.StartRequest(
            vm=player.uuid, request_id=request_id, timeout=duration(_ALLOWED_S), **more
        )
    return pb.StopRequest(
        vm=player.uuid, request_id=request_id, grace_period=duration(1 + 2 * deed.dice), **more
    )


def _told(outcome: Outcome) -> str:
    phases = " ".join(outcome.phases) if outcome.responses else "nothing"
    refused = outcome.refusal
    return "done" if refused is None else f"{phases}; {refused.code} {refused.reason}"
