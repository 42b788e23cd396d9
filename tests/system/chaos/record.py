"""What was done in one round, and what every client saw."""

import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Self

from vmagent.v1 import vm_agent_service_pb2 as pb
from vmagent.v1.transition_pb2 import Cursor, Transition
from vmagent.v1.vm_pb2 import Vm

from tests.system.calls import Outcome, Refusal, Request
from tests.system.watcher import Watcher


@dataclass(slots=True, kw_only=True)
class Act:
    """Something that was done, by whom and to what; times are the host's clock's."""

    lane: str
    what: str
    # UUID of a guest, "daemon" or "libvirtd"
    target: str
    began_s: float
    ended_s: float = 0.0
    outcome: str = "under way"


@dataclass(frozen=True, slots=True, kw_only=True)
class Session:
    """One watch from its beginning to its end, whoever ended it."""

    lane: str
    number: int
    vms: Sequence[str]
    resumed: Cursor | None
    snapshot: dict[str, Vm]
    snapshot_end: Cursor | None
    transitions: Sequence[Transition]
    heartbeats: Sequence[pb.Heartbeat]
    # None if the client itself ended it
    ended: Refusal | None

    @classmethod
    def of(cls, watcher: Watcher, *, lane: str, number: int, vms: Sequence[str]) -> Self:
        """Return what *watcher*, which is over, has seen."""
        return cls(
            lane=lane,
            number=number,
            vms=vms,
            resumed=watcher.resumed,
            snapshot=watcher.snapshot,
            snapshot_end=watcher.snapshot_end,
            transitions=watcher.transitions,
            heartbeats=watcher.heartbeats,
            # CANCELLED is what the library tells the client that ended the call itself
            ended=watcher.ended if watcher.ended and watcher.ended.code != "CANCELLED" else None,
        )

    @property
    def began(self) -> Cursor | None:
        """The place after which its transitions follow; None if it never got there."""
        return self.resumed or self.snapshot_end

    @property
    def cursor(self) -> Cursor | None:
        """The place up to which it has seen everything."""
        if self.began is None:
            return None
        return Cursor(
            journal_id=self.began.journal_id,
            revision=max(
                [
                    self.began.revision,
                    *(t.revision for t in self.transitions[-1:]),
                    *(beat.revision for beat in self.heartbeats[-1:]),
                ]
            ),
        )

    @property
    def name(self) -> str:
        return f"{self.lane} #{self.number}"


@dataclass(slots=True, kw_only=True)
class Call:
    """One request to the daemon, made once or again under the same id."""

    lane: str
    verb: str
    vm: str
    request: Request
    outcomes: list[Outcome] = field(default_factory=list)


@dataclass(slots=True)
class Record:
    """One round. Filled from many threads, by appending; read when they are done."""

    acts: list[Act] = field(default_factory=list)
    sessions: list[Session] = field(default_factory=list)
    calls: list[Call] = field(default_factory=list)
    listings: list[pb.ListVmsResponse] = field(default_factory=list)
    pages: list[list[Transition]] = field(default_factory=list)
    # calls that the client library never ended
    lost_calls: int = 0

    @contextmanager
    def act(self, lane: str, what: str, target: str) -> Iterator[Act]:
        """Note what is done inside; it went well unless the outcome is set to something else."""
        act = Act(lane=lane, what=what, target=target, began_s=time.time())
        self.acts.append(act)
        yield act
        act.ended_s = time.time()
        if act.outcome == "under way":
            act.outcome = "done"

    def counts(self) -> Counter[str]:
        """Return how much of what there was."""
        counts: Counter[str] = Counter()
        for act in self.acts:
            counts[f"act {act.what}"] += 1
            counts["refused"] += act.outcome != "done"
        watched = [session for session in self.sessions if session.heartbeats]
        counts["watches"] = len(watched)
        counts["resumes"] = sum(session.resumed is not None for session in watched)
        counts["transitions watched"] = sum(len(s.transitions) for s in self.sessions)
        counts["requests"] = len(self.calls)
        counts["requests repeated"] = sum(len(call.outcomes) > 1 for call in self.calls)
        counts["calls lost by the client library"] = self.lost_calls
        counts["listings"] = len(self.listings)
        return counts
