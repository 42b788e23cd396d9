"""A request that survives the daemon.

It has an identity: repeated under that, it joins the operation that it led to, or is told how that
went. So when the daemon goes away, for an upgrade say, the request is repeated until the next
daemon takes it up, or patience is over.
"""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING

import grpc
import grpc.aio

from vmagent.ctl.channel import open_channel
from vmagent.ctl.failures import ExitCode, Failure, broken, exit_code, reason_of, refusal
from vmagent.ctl.words import ENDED, plain, short, span, verb_word
from vmagent.v1.operation_pb2 import OperationVerb
from vmagent.v1.vm_agent_service_pb2 import (
    GetOperationRequest,
    PauseRequest,
    RebootRequest,
    ResumeRequest,
    StartRequest,
    StopRequest,
)
from vmagent.v1.vm_agent_service_pb2_grpc import VmAgentServiceStub

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable
    from datetime import timedelta
    from types import TracebackType
    from typing import Self

    from grpc.aio import AioRpcError

    from vmagent.ctl.targets import Daemon
    from vmagent.v1.operation_pb2 import Operation
    from vmagent.v1.vm_agent_service_pb2 import (
        PauseResponse,
        RebootResponse,
        ResumeResponse,
        StartResponse,
        StopResponse,
    )
    from vmagent.v1.vm_agent_service_pb2_grpc import VmAgentServiceAsyncStub

    Request = StartRequest | StopRequest | RebootRequest | PauseRequest | ResumeRequest
    Step = StartResponse | StopResponse | RebootResponse | PauseResponse | ResumeResponse

_FIRST_PAUSE_S = 0.2
_LONGEST_PAUSE_S = 2.0
# What the next daemon goes on with; others it only settles by what has become of the VM.
_GO_ON = {
    OperationVerb.OPERATION_VERB_STOP,
    OperationVerb.OPERATION_VERB_PAUSE,
    OperationVerb.OPERATION_VERB_RESUME,
}
# Why the daemon ends a call for what has become of its caller, not of the operation.
_DISMISSED = {"ACCESS_CHANGED", "CALLER_UNKNOWN", "ROLE_DENIED"}


class Way:
    """The way to a daemon, for all errands of a run: a channel; when it is lost, another one."""

    def __init__(self, daemon: Daemon, patience: timedelta, tell: Callable[[str], None]) -> None:
        """Prepare.

        Args:
            daemon: where it leads.
            patience: how long a daemon that goes away may be away.
            tell: says to the person that it is away, and what keeps one that is back from going
                on, once each time.
        """
        self.daemon, self.patience = daemon, patience
        self._tell = tell
        # since when the daemon is away, by the monotonic clock; None: it is not
        self.lost_at: float | None = None
        self._known = False  # whether anybody was ever there
        self._obstacle = ""  # why one that is back does not go on, as the person was told last

    async def __aenter__(self) -> Self:
        self._open()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self._channel.close()

    def _open(self) -> None:
        self._channel = open_channel(self.daemon)
        self.service: VmAgentServiceAsyncStub = VmAgentServiceStub(self._channel)

    def arrived(self) -> None:
        """Take note that something came from the daemon."""
        self._known, self.lost_at = True, None

    def was_there(self) -> bool:
        """Return whether a call that just broke can have reached somebody."""
        down = grpc.ChannelConnectivity.TRANSIENT_FAILURE
        self._known = self._known or self._channel.get_state() is not down
        return self._known

    def lost(self) -> float:
        """Take note that the daemon went away; return when."""
        if self.lost_at is None:
            self.lost_at, self._obstacle = time.monotonic(), ""
            if self.patience:
                patience = span(self.patience)
                self._tell(f"lost vmagentd at {self.daemon.name}; waiting for it up to {patience}")
        return self.lost_at

    def hindered(self, error: AioRpcError) -> None:
        """Take note of why a daemon that is back does not go on yet."""
        if reason_of(error) != self._obstacle:
            self._obstacle = reason_of(error)
            self._tell(f"vmagentd at {self.daemon.name} is back, but: {refusal(error)}")

    async def renew(self, lost: VmAgentServiceAsyncStub) -> None:
        """Have another channel in place of a lost one, unless another errand had it before."""
        if self.service is not lost:
            return
        old = self._channel
        try:
            self._open()
        except Failure:  # files that are being replaced, one by one
            return
        await old.close()


class Errand:
    """One request, repeated until it is known how its operation ended."""

    def __init__(self, way: Way, request: Request) -> None:
        self._way, self._request = way, request
        self.operation: Operation | None = None  # that it led to, as it was told last
        # since when the daemon is away, or is back and does not go on; None: neither
        self._lost_at: float | None = None
        self._hindrance: AioRpcError | None = None  # the latter's reason

    async def responses(self) -> AsyncIterator[Step]:
        """Yield what the daemon sends, and after a loss the next daemon, until the call is over.

        Raises:
            AioRpcError: the daemon refuses, the operation did not succeed, or there is no daemon.
            Failure: the daemon went away, and was not back in time or has forgotten it.
        """
        self._lost_at = self._way.lost_at
        if self._left_s() == 0:
            problem = f"lost vmagentd at {self._way.daemon.name}; it was not asked for other VMs"
            raise Failure(problem, ExitCode.UNREACHABLE)
        pause_s = _FIRST_PAUSE_S
        while True:
            service = self._way.service
            try:
                async for step in self._steps(service):
                    pause_s = _FIRST_PAUSE_S
                    yield step
            except TimeoutError:
                raise self._given_up() from None
            except grpc.aio.AioRpcError as error:
                if self._ended and (self._is_lost(error) or reason_of(error) in _DISMISSED):
                    return  # only the call's end was lost
                if reason_of(error) == "ACCESS_CHANGED":
                    continue  # at once: whether it may go on is told to whoever asks again
                if not self._passes(error):
                    raise
            else:
                return
            if self._left_s() == 0:
                raise self._given_up()
            await asyncio.sleep(pause_s)
            pause_s = min(pause_s * 2, _LONGEST_PAUSE_S)
            if self._hindrance is None:
                await self._way.renew(service)

    async def _steps(self, service: VmAgentServiceAsyncStub) -> AsyncIterator[Step]:
        """Yield what comes through one channel."""
        if self.operation is not None:
            await self._look_up(self.operation, service)
        steps = self._call(service)
        while True:
            async with asyncio.timeout(self._left_s()):
                step = await anext(steps, None)
            if step is None:
                return
            self.operation, self._lost_at = step.operation, None
            self._hindrance = None
            self._way.arrived()
            yield step

    async def _look_up(self, operation: Operation, service: VmAgentServiceAsyncStub) -> None:
        """Make sure that it is known there: else the repeated request would be a new one."""
        asked = GetOperationRequest(operation_id=operation.operation_id)
        try:
            async with asyncio.timeout(self._left_s()):
                await service.GetOperation(asked)
        except grpc.aio.AioRpcError as error:
            if reason_of(error) != "OPERATION_NOT_FOUND":
                raise
            self._way.arrived()
            back = "is back and " if self._lost_at is not None else ""
            sentence = (
                f"vmagentd at {self._way.daemon.name} {back}tells nothing of {_words(operation)}: "
                "you may not see this VM any more (`vmagentctl whoami`), or it has another "
                "journal; look at the VM before you ask again"
            )
            raise Failure(sentence, ExitCode.FAILED) from error
        self._way.arrived()

    def _call(self, service: VmAgentServiceAsyncStub) -> AsyncIterator[Step]:
        match self._request:
            case StartRequest():
                return aiter(service.Start(self._request))
            case StopRequest():
                return aiter(service.Stop(self._request))
            case RebootRequest():
                return aiter(service.Reboot(self._request))
            case PauseRequest():
                return aiter(service.Pause(self._request))
            case ResumeRequest():
                return aiter(service.Resume(self._request))

    @property
    def _ended(self) -> bool:
        return self.operation is not None and self.operation.phase in ENDED

    def _is_lost(self, error: AioRpcError) -> bool:
        """Return whether a call ended because the daemon went away."""
        if reason_of(error) == "SHUTTING_DOWN":
            return True
        return broken(error) and self._way.was_there()

    def _passes(self, error: AioRpcError) -> bool:
        """Take note of why a call ended; return whether it is worth waiting until that is over."""
        if self._is_lost(error):
            self._lost_at, self._hindrance = self._lost_at or self._way.lost(), None
            return True
        if not reason_of(error):
            return False
        self._way.arrived()
        # A daemon that has just started cannot go on before it can ask libvirt.
        if self._lost_at is None or error.code() is not grpc.StatusCode.UNAVAILABLE:
            return False
        self._hindrance = error
        self._way.hindered(error)
        return True

    def _left_s(self) -> float | None:
        """Return how long the daemon may be away yet; None while it is not."""
        if self._lost_at is None:
            return None
        return max(0, self._lost_at + self._way.patience.total_seconds() - time.monotonic())

    def last_words(self) -> str:
        """Return what a person who leaves now should know of it; empty if it is over."""
        operation = self.operation
        if operation is None:
            vm = plain(self._request.vm)
            return f"vmagentd has not told what becomes of {vm}; {self._again}"
        if self._ended:
            return ""
        name = plain(operation.vm_name)
        return f"operation {operation.operation_id} on {name} {self._future(operation)}"

    def _given_up(self) -> Failure:
        """Return how it ends when patience is over."""
        operation, hindrance = self.operation, self._hindrance
        todo = self._again
        if operation is not None:
            todo = f"see `vmagentctl operation {short(operation.operation_id)}`, or {todo}"
        if hindrance is not None:
            sentence, reason = hindrance.details() or "", reason_of(hindrance)
            if operation is not None:
                sentence += f"; {_words(operation)} {self._future(operation)}"
            return Failure(f"{sentence}; {todo}", exit_code(hindrance.code(), reason), reason)
        lost = f"lost vmagentd at {self._way.daemon.name}"
        if operation is None:
            sentence = f"{lost} before it told what becomes of {self._request.vm}; {todo}"
        else:
            sentence = (
                f"{lost} during {_words(operation)}, which {self._future(operation)}: {todo}"
            )
        return Failure(sentence, ExitCode.UNREACHABLE)

    @property
    def _again(self) -> str:
        return f"ask again with --request-id {plain(self._request.request_id)}"

    def _future(self, operation: Operation) -> str:
        """Return what becomes of an operation that is not over."""
        if self._lost_at is None:
            return "goes on in the daemon"
        when = "vmagentd is back" if self._hindrance is None else "that is over"
        return f"{'goes on' if operation.verb in _GO_ON else 'is settled'} when {when}"


def _words(operation: Operation) -> str:
    verb = verb_word(operation.verb)
    return f"{verb} operation {operation.operation_id} on {operation.vm_name}"
