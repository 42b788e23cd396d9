"""What a run of facts makes of the journal, before it is written.

Belongs to the writer's thread. Holds the VMs as they are committed and whatever else the next
fact is judged by; applies each fact to them through `lifecycle`, in the order they came. Touches
no file: a batch that cannot be committed is dropped, and nothing has happened.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, TypeAlias

from vmagentd.lifecycle.events import on_event
from vmagentd.lifecycle.sightings import confirm, on_absence, on_sighting
from vmagentd.lifecycle.steps import on_operation
from vmagentd.lifecycle.trails import NO_TRAIL, TRACES, Trail, after_stop, follow
from vmagentd.model import (
    Event,
    EventKind,
    Link,
    LinkLost,
    Operation,
    OperationVerb,
    Query,
    RawPair,
    Revision,
    Source,
    Survey,
    Transition,
    Vm,
    VmState,
    VmUuid,
)

if TYPE_CHECKING:
    from collections.abc import Iterable
    from datetime import datetime

    from vmagentd.lifecycle.moves import Change
    from vmagentd.model import OperationId

Fact: TypeAlias = Event | LinkLost | Survey | Query | Operation


@dataclass(slots=True, kw_only=True)
class Batch:
    """What some facts make of the journal; nothing of it holds before it is committed."""

    head: Revision
    link: Link
    transitions: list[Transition] = field(default_factory=list)
    # VMs that a transition or a query touched, as they are after it
    vms: dict[VmUuid, Vm] = field(default_factory=dict)
    operations: dict[OperationId, Operation] = field(default_factory=dict)
    # VMs that libvirt is to be asked about
    doubts: set[VmUuid] = field(default_factory=set)


class Fold:
    """The journal as it is committed, as far as the next fact cares."""

    def __init__(
        self, *, head: Revision, link: Link, vms: Iterable[Vm], operations: Iterable[Operation]
    ) -> None:
        self.head = head
        self.link = link
        self._vms = {vm.uuid: vm for vm in vms}
        # those under way; at most one per VM
        self._operations = {operation.vm: operation for operation in operations}
        # what was heard of each active VM's hypervisor process
        self._trails: dict[VmUuid, Trail] = {}
        # whether QEMU's own events are heard, and were since a survey
        self._heard = False
        # VMs whose definition was removed while somebody listened
        self._undefined: set[VmUuid] = set()
        # number of the last event of each VM: a query that began before it knows less
        self._last_event: dict[VmUuid, int] = {}
        # the youngest link that was lost: a survey that went through it ends no blindness
        self._lost_link = -1

    def apply(self, facts: Iterable[Fact]) -> Batch:
        """Return what *facts* make of the journal as it is committed."""
        batch = Batch(head=self.head, link=self.link)
        for fact in facts:
            match fact:
                case Event():
                    self._on_event(fact, batch)
                case Query():
                    self._on_query(fact, batch)
                case Survey():
                    self._on_survey(fact, batch)
                case LinkLost():
                    self._on_link_lost(fact, batch)
                case Operation():
                    self._on_operation(fact, batch)
        return batch

    def commit(self, batch: Batch) -> None:
        """Take over *batch*: it is durable now."""
        self.head, self.link = batch.head, batch.link
        self._vms |= batch.vms

    def _on_event(self, event: Event, batch: Batch) -> None:
        operation = self._operations.get(event.vm)
        trail = self._trails.get(event.vm, NO_TRAIL)
        if event.kind in TRACES:
            self._trails[event.vm] = follow(trail, event, operation)
            return
        self._last_event[event.vm] = event.number
        if event.kind is EventKind.UNDEFINED:
            self._undefined.add(event.vm)
        elif event.kind is EventKind.DEFINED:
            self._undefined.discard(event.vm)
        verdict = on_event(self._vm(event.vm, batch), event, operation, trail)
        for change in verdict.changes:
            self._append(batch, change, event.observe_time, Source.EVENT, raw_event=event.raw)
        if verdict.doubt:
            batch.doubts.add(event.vm)

    def _on_query(self, query: Query, batch: Batch) -> None:
        if self._last_event.get(query.vm, 0) > query.after_event:
            batch.doubts.add(query.vm)  # an event is younger than the answer: ask again
            return
        vm, seen, time = self._vm(query.vm, batch), query.sighting, query.begin_time
        operation = self._operations.get(query.vm)
        if seen is not None:
            verdict = on_sighting(vm, seen, time=time, source=query.source, operation=operation)
        elif vm is not None:
            verdict = on_absence(
                vm,
                time=time,
                source=query.source,
                operation=operation,
                undefined=query.vm in self._undefined,
            )
        else:
            return  # never heard of, and not there
        for change in verdict.changes:
            self._append(batch, change, time, query.source)
        after = self._vm(query.vm, batch)
        if after is not None:
            batch.vms[query.vm] = confirm(after, seen, time=time)

    def _on_survey(self, survey: Survey, batch: Batch) -> None:
        """What a complete listing shows is there, what it does not show is gone."""
        seen = {sighting.vm: sighting for sighting in survey.sightings}
        known = {vm for vm in self._vms | batch.vms if not self._gone(vm, batch)}
        for vm in [*seen, *(known - seen.keys() - set(survey.unreadable))]:
            query = Query(
                vm=vm,
                sighting=seen.get(vm),
                after_event=survey.after_event,
                begin_time=survey.begin_time,
            )
            self._on_query(query, batch)
        batch.doubts.update(survey.unreadable)
        if survey.link > self._lost_link:
            batch.link = Link(connected=True, last_survey_time=survey.begin_time)
            self._heard = survey.monitored

    def _on_link_lost(self, lost: LinkLost, batch: Batch) -> None:
        self._lost_link = max(self._lost_link, lost.link)
        # from here on something may go unheard
        self._heard = False
        self._trails.clear()
        self._undefined.clear()
        if batch.link.connected:
            batch.link = replace(
                batch.link, connected=False, blind_since=lost.time, cause=lost.cause
            )

    def _on_operation(self, operation: Operation, batch: Batch) -> None:
        batch.operations[operation.id] = operation
        if operation.phase.final:
            self._operations.pop(operation.vm, None)
        else:
            self._operations[operation.vm] = operation
        vm = self._vm(operation.vm, batch)
        if vm is None:
            message = f"operation {operation.id} on VM {operation.vm}, which was never recorded"
            raise AssertionError(message)
        time = operation.steps[-1].time
        if operation.verb is OperationVerb.STOP and operation.phase.final and vm.active:
            trail = self._trails.get(vm.uuid, NO_TRAIL)
            self._trails[vm.uuid] = after_stop(trail, time=time)
        change = on_operation(vm, operation, time=time)
        if change is not None:
            self._append(batch, change, time, Source.OPERATION, operation=operation)

    def _vm(self, uuid: VmUuid, batch: Batch) -> Vm | None:
        return batch.vms.get(uuid) or self._vms.get(uuid)

    def _gone(self, uuid: VmUuid, batch: Batch) -> bool:
        vm = self._vm(uuid, batch)
        return vm is None or vm.state is VmState.GONE

    def _append(
        self,
        batch: Batch,
        change: Change,
        time: datetime,
        source: Source,
        *,
        raw_event: RawPair | None = None,
        operation: Operation | None = None,
    ) -> None:
        """Give *change* the next revision."""
        before = self._vm(change.vm.uuid, batch)
        batch.head = Revision(batch.head + 1)
        vm = replace(change.vm, revision=batch.head)
        batch.vms[vm.uuid] = vm
        if not vm.active:
            self._trails.pop(vm.uuid, None)
        elif before is None or vm.incarnation != before.incarnation:
            # a process that came up since a survey did not see it
            self._trails[vm.uuid] = Trail(whole=self._heard)
        batch.transitions.append(
            Transition(
                revision=batch.head,
                kind=change.kind,
                vm=vm,
                previous_state=before.state if before else None,
                time=time,
                source=source,
                earliest_time=change.earliest_time,
                raw_event=raw_event,
                operation_id=operation.id if operation else None,
                operation_phase=operation.phase if operation else None,
            )
        )
