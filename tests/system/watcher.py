"""A client that watches, and keeps all that it was sent."""

import threading
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Self

import grpc
from vmagent.v1 import vm_agent_service_pb2 as pb
from vmagent.v1.transition_pb2 import Cursor, Transition
from vmagent.v1.vm_agent_service_pb2_grpc import VmAgentServiceStub

from tests.system.calls import Refusal, duration, refusal
from tests.system.daemon import channel
from tests.system.deadline import NeverHappenedError

if TYPE_CHECKING:
    from vmagent.v1.vm_pb2 import Vm


class Watcher:
    """Watches from entry to exit, or until the stream ends. Reads in a thread of its own.

    Args:
        target: of the daemon.
        resume: where to go on; None: with a snapshot.
        vms: what to watch; empty: all.
        heartbeat_s: the longest silence.
    """

    def __init__(
        self,
        target: str,
        *,
        resume: Cursor | None = None,
        vms: Sequence[str] = (),
        heartbeat_s: float = 0.5,
    ) -> None:
        self._target = target
        self._request = pb.WatchStatusRequest(
            vms=vms,
            resume=resume,
            heartbeat_interval=duration(heartbeat_s),
        )
        self.resumed = resume
        self.snapshot: dict[str, Vm] = {}
        self.snapshot_end: Cursor | None = None
        self.transitions: list[Transition] = []
        self.heartbeats: list[pb.Heartbeat] = []
        # every VM as it is after all of these, also those that are gone
        self.vms: dict[str, Vm] = {}
        # how the stream ended; None while it goes on, or after the watcher ended it
        self.ended: Refusal | None = None
        self._said = threading.Condition()

    def __enter__(self) -> Self:
        self._channel = channel(self._target)
        self._call = VmAgentServiceStub(self._channel).WatchStatus(self._request)
        self._thread = threading.Thread(target=self._read, name="watcher", daemon=True)
        self._thread.start()
        self.until(lambda: self.heartbeats or self.ended, "the watch is at its place")
        return self

    def __exit__(self, *_: object) -> None:
        self._call.cancel()
        self._thread.join(10)
        self._channel.close()

    @property
    def began(self) -> Cursor:
        """The place after which the transitions follow."""
        cursor = self.resumed or self.snapshot_end
        if cursor is None:
            raise AssertionError("the snapshot has not come")
        return cursor

    @property
    def revision(self) -> int:
        """The newest revision that was seen."""
        return self.transitions[-1].revision if self.transitions else self.began.revision

    @property
    def cursor(self) -> Cursor:
        """Where another watcher goes on."""
        return Cursor(journal_id=self.began.journal_id, revision=self.revision)

    def of(self, uuid: str, *, after: int = 0) -> list[Transition]:
        """Return the transitions of one VM, those after a revision."""
        return [t for t in [*self.transitions] if t.vm.uuid == uuid and t.revision > after]

    def until(self, fact: Callable[[], object], what: str, *, within_s: float = 30.0) -> None:
        """Wait until something holds after one of the daemon's messages.

        Raises:
            NeverHappenedError: the deadline passed, or the stream ended and it does not hold.
        """
        deadline = time.monotonic() + within_s
        with self._said:
            while not fact():
                left = deadline - time.monotonic()
                if left <= 0:
                    raise NeverHappenedError(what, within_s)
                self._said.wait(left)

    def until_ended(self, *, within_s: float = 30.0) -> Refusal:
        """Wait until the daemon ends the stream, and return its reason."""
        self.until(lambda: self.ended, "the stream ended", within_s=within_s)
        if self.ended is None:
            raise AssertionError
        return self.ended

    def _read(self) -> None:
        try:
            for response in self._call:
                self._take(response)
        except grpc.RpcError as error:
            with self._said:
                self.ended = refusal(error)
                self._said.notify_all()

    def _take(self, response: pb.WatchStatusResponse) -> None:
        with self._said:
            for vm in response.vms:
                self.snapshot[vm.uuid] = self.vms[vm.uuid] = vm
            if response.HasField("snapshot_end"):
                self.snapshot_end = response.snapshot_end
            for transition in response.transitions:
                self.transitions.append(transition)
                self.vms[transition.vm.uuid] = transition.vm
            if response.HasField("heartbeat"):
                self.heartbeats.append(response.heartbeat)
            self._said.notify_all()
