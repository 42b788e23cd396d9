"""Which Starts may have libvirt start their VMs, and when.

So many at once, the others in the order in which they came; and none over what the host's VMs may
use together. A start is counted until its VM is up in the journal, or libvirt has answered that
it is not, so that two that come together cannot both have the last place; by those that came after
it, so that one of them has it.

What libvirt was given and has not answered is known here for longer: whoever does something to
the VM must reckon with it, whatever has become of the operation that it was for.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TypeAlias

from vmagentd.errors import HostLimitReached

if TYPE_CHECKING:
    from collections.abc import Callable

    from vmagentd.errors import VmagentdError
    from vmagentd.journal.store import Journal
    from vmagentd.model import Operation, OperationId, Vm, VmUuid


# libvirt's answer to a start: none but that it did it, or an error
StartCall: TypeAlias = "asyncio.Task[VmagentdError | None]"


@dataclass(frozen=True, slots=True, kw_only=True)
class HostLimits:
    """What all VMs of the host may use together; 0 is no limit."""

    starts_at_once: int = 8
    running_vms: int = 0
    vcpus: int = 0
    memory_bytes: int = 0


@dataclass(eq=False, slots=True)
class Claim:
    """One start, from when it asks for its turn until libvirt is done with it."""

    operation: OperationId
    vm: VmUuid
    # told its place among those that wait, from 1; 0 when its turn has come
    on_place: Callable[[int], None]
    turn: asyncio.Event = field(default_factory=asyncio.Event)


class Starts:
    """The starts of one host that libvirt is busy with, and those that wait for their turn."""

    def __init__(self, journal: Journal, limits: HostLimits) -> None:
        self._journal = journal
        self.limits = limits
        self._busy: list[Claim] = []
        self._queue: list[Claim] = []
        self._calls: dict[VmUuid, StartCall] = {}

    @property
    def running(self) -> int:
        """How many starts libvirt is busy with."""
        return len(self._busy)

    @property
    def queued(self) -> int:
        """How many wait for their turn."""
        return len(self._queue)

    @property
    def free(self) -> bool:
        """Whether a claim's turn comes at once."""
        return not self._queue and self._has_room

    def limit(self, limits: HostLimits) -> None:
        """Replace the limits, for those that come to their turn from now on."""
        self.limits = limits
        self._advance()

    @property
    def places(self) -> dict[OperationId, int]:
        """The place of each that waits for its turn, from 1."""
        return {claim.operation: place for place, claim in enumerate(self._queue, start=1)}

    def claim(
        self, start: Operation, on_place: Callable[[int], None], *, now: bool = False
    ) -> Claim:
        """Claim a turn; it has come at once if there is room, or if it must be *now*."""
        claim = Claim(start.id, start.vm, on_place)
        if now:
            claim.turn.set()
            self._busy.append(claim)
        else:
            self._queue.append(claim)
            self._advance()
        return claim

    def leave(self, claim: Claim) -> None:
        """Let the next one have its turn, or its place."""
        for claims in (self._busy, self._queue):
            if claim in claims:
                claims.remove(claim)
        self._advance()

    def give(self, vm: VmUuid, call: StartCall) -> None:
        """Remember that libvirt is given a start of *vm*, until it has answered that."""

        def answered(_: object) -> None:
            if self._calls.get(vm) is call:
                del self._calls[vm]

        self._calls[vm] = call
        call.add_done_callback(answered)

    def unanswered(self, vm: VmUuid) -> StartCall | None:
        """Return the start of *vm* that libvirt was given and has not answered, if there is one.

        There is never more than one: no Start gives libvirt another one before.
        """
        call = self._calls.get(vm)
        return None if call is None or call.done() else call

    @property
    def _has_room(self) -> bool:
        limit = self.limits.starts_at_once
        return limit == 0 or len(self._busy) < limit

    def _advance(self) -> None:
        while self._queue and self._has_room:
            claim = self._queue.pop(0)
            self._busy.append(claim)
            claim.turn.set()
            claim.on_place(0)
        for place, waiting in enumerate(self._queue, start=1):
            waiting.on_place(place)

    def check(self, vm: Vm) -> None:
        """See whether *vm* may be started beside the VMs that are active or being started.

        Raises:
            HostLimitReached: they would use more than they may.
        """
        limits = self.limits
        if not (limits.running_vms or limits.vcpus or limits.memory_bytes):
            return
        claims = [claim.vm for claim in self._busy]
        before = claims[: claims.index(vm.uuid)] if vm.uuid in claims else claims
        # one that hangs has no turn after its deadline, and may come up all the same
        starting = {vm.uuid, *before, *self._calls}
        with_it = [
            other for other in self._journal.vms.values() if other.active or other.uuid in starting
        ]
        for limit, allowed, wanted in (
            ("running VMs", limits.running_vms, len(with_it)),
            ("vCPUs of running VMs", limits.vcpus, sum(each.vcpus for each in with_it)),
            (
                "bytes of memory of running VMs",
                limits.memory_bytes,
                sum(each.memory_bytes for each in with_it),
            ),
        ):
            if allowed and wanted > allowed:
                raise HostLimitReached(vm, limit, allowed=allowed)
