"""A watch that survives the daemon.

The follower remembers the place in the journal up to which everything has come. When the daemon
goes away it connects again and resumes there, so nothing is missed and nothing comes twice.
"""

from __future__ import annotations

import asyncio
import random
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import grpc.aio

from vmagent.ctl.channel import failure_of, open_channel
from vmagent.ctl.failures import ExitCode, Failure, broken, reason_of, refusal, retry_delay_of
from vmagent.v1.transition_pb2 import Cursor
from vmagent.v1.vm_agent_service_pb2 import WatchStatusRequest, WatchStatusResponse
from vmagent.v1.vm_agent_service_pb2_grpc import VmAgentServiceStub

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Sequence
    from datetime import timedelta

    from grpc.aio import AioRpcError

    from vmagent.ctl.targets import Daemon

_FIRST_DELAY_S = 0.2
_LONGEST_DELAY_S = 10.0
_PLACE_IS_VOID = {"JOURNAL_REPLACED", "REVISION_COMPACTED", "ACCESS_CHANGED"}


@dataclass(kw_only=True)
class Follower:
    """Follows what a daemon says of its VMs, across the daemon's restarts."""

    daemon: Daemon
    vms: Sequence[str] = ()
    heartbeat: timedelta
    place: Cursor | None = None  # everything up to here has come; None: a snapshot is needed
    reconnect: bool = True
    tell: Callable[[str], None]  # remarks for the person who watches
    slack_s: float = 5  # a heartbeat may be late by this
    # whether the response that was yielded last is the first of its connection
    begins: bool = field(default=True, init=False)
    _connected: bool = field(default=False, init=False)  # ever
    _away: bool = field(default=False, init=False)
    _obstacle: str | None = field(default=None, init=False)  # as the person was told last
    _delay_s: float = field(default=_FIRST_DELAY_S, init=False)

    async def responses(self) -> AsyncIterator[WatchStatusResponse]:
        """Yield what the daemon sends, for ever.

        After a loss without a resumable place a fresh snapshot comes, as the first one did.

        Raises:
            Failure: the daemon cannot be reached the first time, or says nothing, or refuses; or
                it went away and there is to be no second time.
        """
        while True:
            try:
                async for response in self._stream():
                    yield response
                why, delay = "the daemon ended the stream", None
            except TimeoutError:
                why, delay = f"no sign of life for {self._patience_s:g} s", None
            except grpc.aio.AioRpcError as error:
                if reason_of(error) in _PLACE_IS_VOID and self.place is not None:
                    self.place = None
                    self.tell(f"{refusal(error)}: taking a fresh snapshot")
                    continue
                why, delay = self._reason_to_go_on(error), retry_delay_of(error)
            except Failure as failure:
                if not self._connected:
                    raise
                why, delay = str(failure), None  # files that are being replaced, one by one
            if not (self.reconnect and self._connected):
                raise Failure(f"the watch is over: {why}", ExitCode.UNREACHABLE)
            await self._pause(why, delay)

    async def _stream(self) -> AsyncIterator[WatchStatusResponse]:
        """Yield what comes through one connection."""
        request = WatchStatusRequest(vms=self.vms, resume=self.place)
        request.heartbeat_interval.FromTimedelta(self.heartbeat)
        async with open_channel(self.daemon) as channel:
            call = VmAgentServiceStub(channel).WatchStatus(request)
            self.begins = True
            while True:
                async with asyncio.timeout(self._patience_s):
                    response = await call.read()
                if not isinstance(response, WatchStatusResponse):  # grpc.aio.EOF; errors raise
                    return
                self._arrived(response)
                yield response
                self.begins = False

    @property
    def _patience_s(self) -> float:
        """How long a daemon that promised heartbeats may say nothing at all."""
        return 2 * self.heartbeat.total_seconds() + self.slack_s

    def _arrived(self, response: WatchStatusResponse) -> None:
        if self._away:
            place = f" after revision {self.place.revision}" if self.place else " with a snapshot"
            self.tell(f"connected again, going on{place}")
        self._connected, self._away, self._delay_s = True, False, _FIRST_DELAY_S
        self._obstacle = None
        if response.HasField("snapshot_end"):
            self.place = Cursor()  # a copy: it will go on, and the response is printed yet
            self.place.CopyFrom(response.snapshot_end)
        if self.place is None:
            return
        for transition in response.transitions:
            self.place.revision = transition.revision
        # The heartbeat stands for what a filter kept back, so it may be further.
        self.place.revision = max(self.place.revision, response.heartbeat.revision)

    def _reason_to_go_on(self, error: AioRpcError) -> str:
        """Return what happened if it is worth another attempt, else raise it."""
        failure = failure_of(error, self.daemon)
        reason = reason_of(error)
        worth = (
            reason == "WATCHER_TOO_SLOW"
            or error.code() is grpc.StatusCode.UNAVAILABLE
            or broken(error)
            or retry_delay_of(error) is not None
        )
        if not self._connected or not worth:
            raise failure from error
        return str(failure)

    async def _pause(self, why: str, wanted: timedelta | None) -> None:
        if why != self._obstacle:
            self.tell(f"{why}; connecting again")
        self._away, self._obstacle = True, why
        # Half of it is chance, so that many watchers do not return in step.
        delay_s = self._delay_s * random.uniform(0.5, 1)  # noqa: S311  # no secret
        await asyncio.sleep(max(delay_s, wanted.total_seconds() if wanted else 0))
        self._delay_s = min(self._delay_s * 2, _LONGEST_DELAY_S)
