"""Facts, and what a run of them makes of the journal."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, TypeAlias

from vmagentd.lifecycle.steps import told_phase
from vmagentd.model import (
    Answered,
    Event,
    EventsLost,
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
    Vm,
    VmUuid,
)

if TYPE_CHECKING:
    from datetime import datetime

    from vmagentd.journal.context import Context
    from vmagentd.journal.era import Era
    from vmagentd.lifecycle.moves import Change
    from vmagentd.model import OperationId, RawPair, Source

Fact: TypeAlias = (
    Event
    | EventsLost
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
    # those of which more is written than transitions tell
    confirmed: set[VmUuid] = field(default_factory=set)
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

    def confirm(self, known: dict[VmUuid, Vm]) -> None:
        """Have written what queries confirmed of processes, as the link to them is lost.

        Whoever finds processes next, in a later daemon perhaps, knows them by it. While the link
        holds it is not written: it changes with every query.
        """
        if self.link.connected:
            active = {vm.uuid: vm for vm in (known | self.vms).values() if vm.cpu_time is not None}
            self.vms |= active
            self.confirmed |= active.keys()

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
            self.links.append(self.link)
