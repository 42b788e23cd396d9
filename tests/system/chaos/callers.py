"""Clients that have things done to VMs, cancel some, and repeat what the daemon died over."""

import contextlib
import sys
import traceback
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from threading import Event, Thread
from types import MappingProxyType
from typing import Any, Final

import grpc
from vmagent.v1 import operation_pb2
from vmagent.v1 import vm_agent_service_pb2 as pb
from vmagent.v1.vm_agent_service_pb2_grpc import VmAgentServiceStub

from tests.system.calls import FORCE, GRACEFUL, THEN_FORCE, Outcome, Request, duration, finished
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
# gRPC itself ends a call at its deadline; one that it has not ended by then it never will.
_LOST_S: Final = _HANGS_S + 15.0

_MORE: Mapping[Verb, dict[str, Any]] = MappingProxyType({
    Verb.START_PAUSED: {"paused": True},
    Verb.START_AFRESH: {"discard_saved_state": True},
    Verb.STOP: {"mode": GRACEFUL},
    Verb.STOP_THEN_FORCE: {"mode": GRACEFUL, "on_grace_expired": THEN_FORCE},
    Verb.FORCE_OFF: {"mode": FORCE},
    Verb.REBOOT_THEN_RESET: {"on_grace_expired": operation_pb2.REBOOT_ON_GRACE_EXPIRED_FORCE},
    Verb.RESET_GUEST: {"mode": operation_pb2.REBOOT_MODE_FORCE},
})  # fmt: skip
_METHODS: Mapping[type[Request], Callable[[VmAgentServiceStub], Any]] = MappingProxyType({
    pb.StartRequest: lambda stub: stub.Start,
    pb.StopRequest: lambda stub: stub.Stop,
    pb.RebootRequest: lambda stub: stub.Reboot,
    pb.PauseRequest: lambda stub: stub.Pause,
    pb.ResumeRequest: lambda stub: stub.Resume,
})  # fmt: skip


class LostCallError(Exception):
    """The client library never ended a call, not at the call's own deadline either.

    Seen once in some thousands of calls. No server is needed for a deadline, so it tells nothing
    of the daemon: such a caller is one that has hung up.
    """


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
                try:
                    outcome = ask(
                        self._target,
                        call.request,
                        hangs_up=deed.hangs_up,
                        is_cancelled=deed.is_cancelled,
                    )
                except LostCallError as error:
                    self._record.lost_calls += 1
                    act.outcome = str(error)
                    return
                call.outcomes.append(outcome)
                act.outcome = _told(outcome)
            refused = outcome.refusal
            if refused is None or refused.code != "UNAVAILABLE" or self._over.wait(_RETRY_S):
                return


def ask(
    target: str, request: Request, *, hangs_up: bool = False, is_cancelled: bool = False
) -> Outcome:
    """Make a request and read its answers, to the end unless the caller *hangs_up*.

    Raises:
        LostCallError: the client library never ended it.
    """
    answered: Future[Outcome] = Future()

    def make() -> None:
        try:
            answered.set_result(
                _ask(target, request, hangs_up=hangs_up, is_cancelled=is_cancelled)
            )
        except Exception as error:  # noqa: BLE001 - it is raised where it is waited for
            answered.set_exception(error)

    # nobody waits for a thread that is a daemon: the run ends though a call is lost
    making = Thread(target=make, name="asks", daemon=True)
    making.start()
    try:
        return answered.result(_LOST_S)
    except TimeoutError:
        frame = sys._current_frames().get(making.ident or 0)
        sys.stderr.write("".join(traceback.format_stack(frame)))
        raise LostCallError(f"not over {_LOST_S:.0f} s after it was made: {request}") from None


def _ask(target: str, request: Request, *, hangs_up: bool, is_cancelled: bool) -> Outcome:
    with channel(target) as line:
        stub = VmAgentServiceStub(line)
        steps: Any = _METHODS[type(request)](stub)(request, timeout=_HANGS_S)
        if not (hangs_up or is_cancelled):
            return finished(steps)
        outcome = Outcome()
        try:
            outcome.responses.append(next(steps))
        except grpc.RpcError:
            return finished(steps, outcome)
        if is_cancelled:
            with contextlib.suppress(grpc.RpcError):  # the daemon is killed meanwhile
                stub.CancelOperation(
                    pb.CancelOperationRequest(operation_id=outcome.operation.operation_id),
                    timeout=_HANGS_S,
                )
            return finished(steps, outcome)
        steps.cancel()
        return outcome


def _request(deed: Deed, player: Player, request_id: str) -> Request:
    who: dict[str, Any] = {"vm": player.uuid, "request_id": request_id}
    who |= _MORE.get(deed.verb, {})
    allowed, grace = duration(_ALLOWED_S), duration(1 + 2 * deed.dice)
    match deed.verb:
        case Verb.START | Verb.START_PAUSED | Verb.START_AFRESH:
            return pb.StartRequest(timeout=allowed, **who)
        case Verb.PAUSE:
            return pb.PauseRequest(timeout=allowed, **who)
        case Verb.RESUME_GUEST:
            return pb.ResumeRequest(timeout=allowed, **who)
        case Verb.REBOOT_GUEST | Verb.REBOOT_THEN_RESET | Verb.RESET_GUEST:
            return pb.RebootRequest(grace_period=grace, **who)
        case _:
            return pb.StopRequest(grace_period=grace, **who)


def _told(outcome: Outcome) -> str:
    phases = " ".join(outcome.phases) if outcome.responses else "nothing"
    refused = outcome.refusal
    return "done" if refused is None else f"{phases}; {refused.code} {refused.reason}"
