"""Facts that wait for the disk.

Kept in order up to a bound. Of what comes after it a VM's events are folded into one fact: that
they were lost. Once the disk is back libvirt is asked about that VM, and the difference is
recorded, late. Refusals beyond a bound of their own are only counted. What tells the same again
is not kept. All other facts have somebody who waits for them, and so their own bound.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, replace
from itertools import islice
from typing import TYPE_CHECKING, Final

from vmagentd.model import Event, EventsLost, HostGoingDown, LinkLost, Refusal

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Iterator

    from vmagentd.journal.batch import Fact
    from vmagentd.model import VmUuid

# About half a KiB each.
MAX_EVENTS: Final = 10_000
MAX_REFUSALS: Final = 1_000


@dataclass(frozen=True, slots=True)
class Entry:
    """A fact in the inbox, and the future that its commit resolves."""

    fact: Fact
    done: asyncio.Future[None] | None = None
    # is refused, not kept, while nothing can be committed
    now_or_never: bool = False


class Backlog:
    """The facts that wait, and the VMs of which some could not be kept."""

    def __init__(self, *, max_events: int = MAX_EVENTS) -> None:
        self._max_events = max_events
        self._entries: deque[Entry] = deque()
        self._events = 0
        # the last event of each VM that was dropped: none of the VM's is kept after the first
        self._lost: dict[VmUuid, int] = {}
        self._refusals = 0
        # how many could not be kept
        self.lost_refusals = 0
        # as the last one told that was kept
        self._going_down: bool | None = None

    def __len__(self) -> int:
        return len(self._entries)

    @property
    def lost(self) -> list[EventsLost]:
        """What could not be kept. It comes after all that waits."""
        return [EventsLost(vm=vm, until_event=number) for vm, number in self._lost.items()]

    @property
    def facts(self) -> Iterator[Fact]:
        """All facts that wait, in order."""
        return (entry.fact for entry in self._entries)

    def add(self, entry: Entry) -> None:
        """Keep *entry*, or what is to be remembered of it."""
        match entry.fact:
            case Event() as event if event.vm in self._lost or self._events >= self._max_events:
                self._lost[event.vm] = event.number
                return
            case Event():
                self._events += 1
            case Refusal() if self._refusals >= MAX_REFUSALS:
                self.lost_refusals += 1
                return
            case Refusal():
                self._refusals += 1
            case HostGoingDown(going_down=going_down) if going_down is self._going_down:
                return
            case HostGoingDown(going_down=going_down):
                self._going_down = going_down
            case LinkLost() as lost if entry.done is None and self._merges(lost):
                return
            case _:
                pass
        self._entries.append(entry)

    def next(self, most: int) -> list[Entry]:
        """Return the first entries, at most that many; they stay."""
        return [self._entries[place] for place in range(min(most, len(self._entries)))]

    def remove(self, count: int) -> None:
        """Forget the first *count* entries: they are committed."""
        for _ in range(count):
            fact = self._entries.popleft().fact
            self._events -= isinstance(fact, Event)
            self._refusals -= isinstance(fact, Refusal)

    def _merges(self, lost: LinkLost) -> bool:
        """Fold *lost* into the last of two right before it.

        One blind time has one beginning, which the first of them tells; the last one tells why it
        goes on.
        """
        match [entry.fact for entry in islice(reversed(self._entries), 2)]:
            case [LinkLost() as last, LinkLost()]:
                self._entries[-1] = Entry(replace(lost, link=max(last.link, lost.link)))
                return True
            case _:
                return False
