"""Clients that watch, come and go, and resume where they were or earlier; and one that reads."""

from collections.abc import Sequence
from random import Random
from threading import Event
from typing import Final

import grpc
from vmagent.v1 import vm_agent_service_pb2 as pb
from vmagent.v1.transition_pb2 import Cursor
from vmagent.v1.vm_agent_service_pb2_grpc import VmAgentServiceStub

from tests.system.calls import refusal
from tests.system.chaos.players import Player
from tests.system.chaos.record import Record, Session
from tests.system.daemon import channel
from tests.system.watcher import Watcher

# Part of the trial: how long a client waits before it looks for the daemon again, and how often
# it looks whether its stream has ended.
_RETRY_S: Final = 0.2
_GLANCE_S: Final = 0.05
_SLOWEST_S: Final = 20.0


class Watching:
    """One client that watches in one session after the other, and the places it has been at.

    Args:
        lane: its name.
        target: where the daemon is.
        players: whom there is to watch.
        random: settles whom it watches, for how long, and from where.
        picks: it does not always watch all.
        since: a place from which the journal can be checked, None for its beginning.
    """

    def __init__(
        self,
        lane: str,
        target: str,
        players: Sequence[Player],
        random: Random,
        since: int,
        *,
        picks: bool,
    ) -> None:
        self._picks = picks
        self._lane = lane
        self._target = target
        self._players = players
        self._random = random
        self._since = since
        self._vms: Sequence[str] = ()
        self._cursor: Cursor | None = None
        self._sessions = 0

    def run(self, record: Record, over: Event) -> None:
        """Watch until the round is *over*."""
        while not over.wait(_RETRY_S):
            resume = self._place()
            stays_s, heartbeat_s = self._random.expovariate(0.8), self._random.uniform(0.1, 1)
            watcher = Watcher(self._target, resume=resume, vms=self._vms, heartbeat_s=heartbeat_s)
            with watcher:
                self._stay(watcher, over, stays_s)
            self._end(watcher, record)

    def catch_up(self, record: Record, head: int) -> None:
        """Resume once more, until the journal's end was seen."""
        with Watcher(self._target, resume=self._cursor, vms=self._vms, heartbeat_s=0.1) as watcher:
            watcher.until(
                lambda: watcher.heartbeats[-1:] and watcher.heartbeats[-1].revision >= head,
                f"{self._lane} at revision {head}",
                within_s=_SLOWEST_S,
            )
        self._end(watcher, record)

    def _place(self) -> Cursor | None:
        """Choose where to begin: mostly where it was, else anew, or long ago."""
        dice, back = self._random.random(), self._random.random()
        whom = self._random.choice((0, 1, 2, 4)) if self._picks else 0
        chosen = self._random.sample(self._players, whom)
        if self._cursor is None or dice < 0.15:
            self._vms = [self._random.choice((p.uuid, *p.names)) for p in chosen]
            self._cursor = None
        elif dice < 0.25:
            been = self._cursor.revision - self._since
            earlier = self._since + round(back * max(been, 0))
            return Cursor(journal_id=self._cursor.journal_id, revision=earlier)
        return self._cursor

    def _stay(self, watcher: Watcher, over: Event, stays_s: float) -> None:
        for _ in range(max(1, round(stays_s / _GLANCE_S))):
            if watcher.ended is not None or over.wait(_GLANCE_S):
                return

    def _end(self, watcher: Watcher, record: Record) -> None:
        self._sessions += 1
        session = Session.of(watcher, lane=self._lane, number=self._sessions, vms=tuple(self._vms))
        record.sessions.append(session)
        self._cursor = session.cursor or self._cursor


def read(target: str, random: Random, record: Record, over: Event) -> None:
    """List VMs and history every now and then until the round is *over*."""
    while not over.wait(random.expovariate(8)):
        newest = random.randrange(1, 50)
        with channel(target) as line:
            stub = VmAgentServiceStub(line)
            try:
                record.listings.append(stub.ListVms(pb.ListVmsRequest(), timeout=_SLOWEST_S))
                request = pb.ListTransitionsRequest(page_size=newest)
                page = stub.ListTransitions(request, timeout=_SLOWEST_S).transitions
            except grpc.RpcError as error:
                if refusal(error).code != "UNAVAILABLE":
                    raise
            else:
                record.pages.append([*page])
