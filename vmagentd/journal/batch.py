"""Facts, and what a run of them makes of the journal."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Final, TypeAlias

from vmagentd.lifecycle.moves import to_come
from vmagentd.lifecycle.steps import told_phase
from vmagentd.lifecycle.trails import NO_TRAIL, GivenUp, Trail
from vmagentd.model import (
    Answered,
    Event,
    HostBooted,
    HostGoingDown,
    JoinedRequest,
    Link,
    LinkLost,
    Operation,
    Query,
    Refusal,
    Revision,
    Survey,
    Transition,
    TransitionKind,
    Vm,
    VmUuid,
)

if TYPE_CHECKING:
    from datetime import datetime

    from vmagentd.journal.era import Era
    from vmagentd.lifecycle.moves import Change
    from vmagentd.model import OperationId, RawPair, Source

Fact: TypeAlias = (
    Event
    | LinkLost
    | Survey
    | Query
    | Operation
    | Answered
    | JoinedRequest
    | Refusal
    | HostBooted
    | HostGoingDown
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Context:
    """What the next fact on a VM is judged by, beside the VM itself."""

    # the one under way
    operation: Operation | None = None
    # libvirt has done what that asked for last
    answered: bool = False
    # the one that ended last: a step of it may have been on its way
    ended: OperationId | None = None
    # what was heard of its hypervisor process, if it is active
    trail: Trail = NO_TRAIL
    # what libvirt was asked for by earlier ones may come yet, in whichever process
    given_up: tuple[GivenUp, ...] = ()
    # its definition was removed while somebody listened
    undefined: bool = False
    # number of its last event: a query that began before it knows less
    last_event: int = 0
    # number of the era in which `trail` and `undefined` were learned
    era: int = 0

    def after(
        self, before: Vm | None, kind: TransitionKind, vm: Vm, *, heard: bool, seen: bool
    ) -> Context:
        """Return it as it is after a transition from *before* to *vm*.

        Args:
            before: the VM before it.
            kind: what it changed.
            vm: the VM after it.
            heard: whether QEMU's own events are heard, and were since a survey.
            seen: whether a query found *before* in this era.
        """
        given_up, trail = self.given_up, self.trail
        if kind is TransitionKind.STATE:
            given_up = to_come(given_up, vm)
        if not vm.active or before is None or vm.incarnation != before.incarnation:
            # whole: a process that came up since a survey did not see it
            trail = Trail(
                whole=vm.active and heard,
                run_id=vm.run_id,
                ended_run_id=_ended_run(trail, before, vm, seen=seen),
            )
        return replace(self, given_up=given_up, trail=trail)


def _ended_run(trail: Trail, before: Vm | None, vm: Vm, *, seen: bool) -> int | None:
    """Return the number of the process that has ended before *vm* became what it is.

    One that was told before this era may be another process's in it, or the next one's.
    """
    ended = trail.ended_run_id
    if before is not None and before.active and (seen or before.run_id == trail.run_id):
        ended = before.run_id
    return None if ended == vm.run_id else ended


NO_CONTEXT: Final = Context()


@dataclass(slots=True, kw_only=True)
class Batch:
    """What some facts make of the journal; nothing of it holds before it is committed."""

    head: Revision
    link: Link
    era: Era
    # the host's boot; None before it was told
    boot_id: str | None
    host_going_down: bool
    transitions: list[Transition] = field(default_factory=list)
    # VMs that a transition or a query touched, as they are after it
    vms: dict[VmUuid, Vm] = field(default_factory=dict)
    operations: dict[OperationId, Operation] = field(default_factory=dict)
    joined: list[JoinedRequest] = field(default_factory=list)
    refusals: list[Refusal] = field(default_factory=list)
    # VMs that libvirt is to be asked about
    doubts: set[VmUuid] = field(default_factory=set)
    contexts: dict[VmUuid, Context] = field(default_factory=dict)
    # Number of the last query on a VM that was believed: one that began before it may know less.
    # Not part of its context, which is only copied to change: a survey queries every VM.
    queried: dict[VmUuid, int] = field(default_factory=dict)
    # every link in between: a blind time that begins and ends in here has been all the same
    links: list[Link] = field(default_factory=list)

    def add(
        self,
        change: Change,
        before: Vm | None,
        *,
        time: datetime,
        source: Source,
        raw_event: RawPair | None,
        operation: Operation | None,
    ) -> Vm:
        """Give *change* the next revision, and return the VM as it is then."""
        self.head = Revision(self.head + 1)
        vm = replace(change.vm, revision=self.head)
        self.vms[vm.uuid] = vm
        self.transitions.append(
            Transition(
                revision=self.head,
                kind=change.kind,
                vm=vm,
                previous_state=before.state if before else None,
                previous_name=before.name if before and before.name != vm.name else None,
                time=time,
                source=source,
                earliest_time=change.earliest_time,
                raw_event=raw_event,
                operation_id=operation.id if operation else None,
                operation_phase=told_phase(operation) if operation else None,
            )
        )
        return vm

    def link_up(self, survey: Survey) -> None:
        """Libvirt has answered in full, through a link."""
        if survey.link > self.era.lost_link:
            self.link = Link(connected=True, last_survey_time=survey.begin_time)
            self.links.append(self.link)
            self.era = replace(self.era, heard=survey.monitored)

    def link_lost(self, lost: LinkLost) -> None:
        """Libvirt cannot be asked any more."""
        self.era = self.era.after_loss(lost.link)
        if self.link.connected:
            self.link = replace(
                self.link, connected=False, blind_since=lost.time, cause=lost.cause
            )
            self.links.append(self.link)
        else:
            # the blind time goes on; what is in the way now is the better answer to why
            self.link = replace(self.link, cause=lost.cause)
