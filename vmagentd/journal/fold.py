"""What a run of facts makes of the journal, before it is written.

Belongs to the writer's thread. Holds the VMs as they are committed and whatever else the next
fact is judged by; applies each fact to them through `lifecycle`, in the order they came. Touches
no file: a batch that cannot be committed is dropped, and nothing has happened.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from vmagentd.journal.batch import NO_CONTEXT, Batch, Context
from vmagentd.lifecycle.events import on_event
from vmagentd.lifecycle.moves import give_up, to_come
from vmagentd.lifecycle.sightings import confirm, on_absence, on_host_boot, on_sighting
from vmagentd.lifecycle.steps import joined, on_operation, still_joined, told_phase
from vmagentd.lifecycle.trails import NO_TRAIL, TRACES, Trail, after_operation, follow, left_open
from vmagentd.model import (
    Event,
    EventKind,
    HostBooted,
    HostGoingDown,
    JoinedRequest,
    Link,
    LinkLost,
    Operation,
    Query,
    RawPair,
    Refusal,
    Revision,
    Source,
    Survey,
    Transition,
    TransitionKind,
    Vm,
    VmState,
    VmUuid,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from datetime import datetime

    from vmagentd.journal.batch import Fact
    from vmagentd.lifecycle.moves import Change, Verdict
    from vmagentd.lifecycle.trails import GivenUp


class Fold:
    """The journal as it is committed, as far as the next fact cares."""

    def __init__(
        self,
        *,
        head: Revision,
        link: Link,
        boot_id: str | None,
        vms: Iterable[Vm],
        operations: Iterable[Operation],
        given_up: Mapping[VmUuid, tuple[GivenUp, ...]],
    ) -> None:
        self.head = head
        self.link = link
        self.boot_id = boot_id
        self._vms = {vm.uuid: vm for vm in vms}
        self._contexts = {vm: Context(given_up=each) for vm, each in given_up.items()}
        for operation in operations:  # at most one per VM
            context = self._contexts.get(operation.vm, NO_CONTEXT)
            self._contexts[operation.vm] = replace(context, operation=operation)
        self._queried: dict[VmUuid, int] = {}
        self._era = 0
        self._lost_link = -1
        self._heard = False
        self._host_going_down = False

    def apply(self, facts: Iterable[Fact]) -> Batch:
        """Return what *facts* make of the journal as it is committed."""
        batch = self._begin()
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
                    self._on_operation(self._still_joined(fact, batch), batch)
                case JoinedRequest():
                    self._on_joined(fact, batch)
                case Refusal():
                    batch.refusals.append(fact)
                case HostBooted():
                    self._on_host_booted(fact, batch)
                case HostGoingDown():
                    batch.host_going_down = fact.going_down
        return batch

    def commit(self, batch: Batch) -> None:
        """Take over *batch*: it is durable now."""
        self.head, self.link = batch.head, batch.link
        self._vms |= batch.vms
        self._contexts |= batch.contexts
        self._queried |= batch.queried
        self._era, self._lost_link, self._heard = batch.era, batch.lost_link, batch.heard
        self.boot_id, self._host_going_down = batch.boot_id, batch.host_going_down

    def gone(self, *, after: Revision, until: Revision) -> list[Vm]:
        """Return the VMs that are gone since a revision of that range, and asked for nothing."""
        return [
            vm
            for vm in self._vms.values()
            if vm.state is VmState.GONE
            and after < vm.revision <= until
            and self._contexts.get(vm.uuid, NO_CONTEXT).operation is None
        ]

    def is_at(self, vm: VmUuid, revision: Revision) -> bool:
        """Whether nothing was recorded of *vm* since that revision."""
        return vm in self._vms and self._vms[vm].revision == revision

    def forget(self, vms: Iterable[VmUuid]) -> None:
        """Be as if *vms* had never been heard of."""
        for vm in vms:
            del self._vms[vm]
            self._contexts.pop(vm, None)
            self._queried.pop(vm, None)

    def link_after(self, facts: Iterable[Fact]) -> Link:
        """Return the link as *facts* make it, though no survey counts before its commit."""
        batch = self._begin()
        for fact in facts:
            match fact:
                case LinkLost():
                    self._on_link_lost(fact, batch)
                case Survey():
                    self._on_link_up(fact, batch)
                case _:
                    pass
        return replace(batch.link, last_survey_time=self.link.last_survey_time)

    def _begin(self) -> Batch:
        return Batch(
            head=self.head,
            link=self.link,
            era=self._era,
            lost_link=self._lost_link,
            heard=self._heard,
            boot_id=self.boot_id,
            host_going_down=self._host_going_down,
        )

    def _on_event(self, event: Event, batch: Batch) -> None:
        context = self._context(event.vm, batch)
        operation, trail = context.operation, context.trail
        if event.kind in TRACES:
            trail = follow(trail, event, operation)
            batch.contexts[event.vm] = replace(context, trail=trail)
            return
        undefined = event.kind is EventKind.UNDEFINED or (
            context.undefined and event.kind is not EventKind.DEFINED
        )
        context = replace(context, last_event=event.number, undefined=undefined)
        batch.contexts[event.vm] = context
        trail = replace(trail, host_going_down=batch.host_going_down, given_up=context.given_up)
        verdict = on_event(self._vm(event.vm, batch), event, operation, trail)
        for change in verdict.changes:
            self._append(batch, change, event.observe_time, Source.EVENT, raw_event=event.raw)
        if verdict.doubt:
            batch.doubts.add(event.vm)

    def _on_query(self, query: Query, batch: Batch) -> None:
        context = self._context(query.vm, batch)
        last_query = batch.queried.get(query.vm) or self._queried.get(query.vm, 0)
        if context.last_event > query.after_event or last_query > query.number:
            # An event is younger than the answer, or a query is that came back before it. Which of
            # two queries saw the later state nobody knows: ask again.
            batch.doubts.add(query.vm)
            return
        vm, seen, time = self._vm(query.vm, batch), query.sighting, query.begin_time
        operation = context.operation
        verdict: Verdict | None
        if seen is not None:
            # what was heard before does not tell why it is so now
            trail = Trail(given_up=context.given_up) if context.given_up else NO_TRAIL
            verdict = on_sighting(
                vm, seen, time=time, source=query.source, operation=operation, trail=trail
            )
        elif vm is not None:
            verdict = on_absence(
                vm,
                time=time,
                source=query.source,
                operation=operation,
                undefined=context.undefined,
            )
        else:
            return  # never heard of, and not there
        if verdict is None:
            return
        batch.queried[query.vm] = query.number
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
                number=survey.number,
                after_event=survey.after_event,
                begin_time=survey.begin_time,
            )
            self._on_query(query, batch)
        batch.doubts.update(survey.unreadable)
        self._on_link_up(survey, batch)

    def _on_link_up(self, survey: Survey, batch: Batch) -> None:
        if survey.link > batch.lost_link:
            batch.link = Link(connected=True, last_survey_time=survey.begin_time)
            batch.links.append(batch.link)
            batch.heard = survey.monitored

    def _on_link_lost(self, lost: LinkLost, batch: Batch) -> None:
        batch.lost_link = max(batch.lost_link, lost.link)
        # from here on something may go unheard
        batch.heard = False
        batch.era += 1
        if batch.link.connected:
            batch.link = replace(
                batch.link, connected=False, blind_since=lost.time, cause=lost.cause
            )
            batch.links.append(batch.link)
        else:
            # the blind time goes on; what is in the way now is the better answer to why
            batch.link = replace(batch.link, cause=lost.cause)

    def _on_host_booted(self, boot: HostBooted, batch: Batch) -> None:
        if batch.boot_id not in {None, boot.boot_id}:
            for uuid, context in (self._contexts | batch.contexts).items():
                if context.given_up:  # libvirt has forgotten it with the rest
                    batch.contexts[uuid] = replace(context, given_up=())
            for vm in [*(self._vms | batch.vms).values()]:
                for change in on_host_boot(vm, time=boot.time).changes:
                    self._append(batch, change, boot.time, Source.SURVEY)
        batch.boot_id = boot.boot_id

    def _on_operation(self, operation: Operation, batch: Batch) -> None:
        batch.operations[operation.id] = operation
        context = self._context(operation.vm, batch)
        before = context.operation
        context = replace(context, operation=None if operation.phase.final else operation)
        vm = self._vm(operation.vm, batch)
        if vm is None:
            message = f"operation {operation.id} on VM {operation.vm}, which was never recorded"
            raise AssertionError(message)
        time = operation.steps[-1].time
        if before is not None and left_open(operation):
            given_up = give_up(context.given_up, before, time=time)
            context = replace(context, given_up=given_up)
        if operation.phase.final and vm.active:
            trail = after_operation(context.trail, operation, time=time)
            context = replace(context, trail=trail)
        batch.contexts[operation.vm] = context
        change = on_operation(vm, operation, time=time)
        if change is not None:
            self._append(batch, change, time, Source.OPERATION, operation=operation)

    def _on_joined(self, request: JoinedRequest, batch: Batch) -> None:
        batch.joined.append(request)
        context, vm = self._context(request.vm, batch), self._vm(request.vm, batch)
        before = context.operation
        if request.parameters is None or vm is None:
            return
        if before is not None and before.id == request.operation:
            # with the request, not with the next step, to which its daemon may never come
            operation = joined(before, vm, request.parameters)
            batch.operations[operation.id] = operation
            batch.contexts[request.vm] = replace(context, operation=operation)

    def _still_joined(self, operation: Operation, batch: Batch) -> Operation:
        before = self._context(operation.vm, batch).operation
        same = before is not None and before.id == operation.id
        return still_joined(before, operation) if before and same else operation

    def _vm(self, uuid: VmUuid, batch: Batch) -> Vm | None:
        return batch.vms.get(uuid) or self._vms.get(uuid)

    def _context(self, uuid: VmUuid, batch: Batch) -> Context:
        context = batch.contexts.get(uuid) or self._contexts.get(uuid) or NO_CONTEXT
        if context.era != batch.era:
            context = replace(context, trail=NO_TRAIL, undefined=False, era=batch.era)
        return context

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
        context = self._context(vm.uuid, batch)
        if context.given_up and change.kind is TransitionKind.STATE:
            context = replace(context, given_up=to_come(context.given_up, vm))
            batch.contexts[vm.uuid] = context
        if not vm.active or before is None or vm.incarnation != before.incarnation:
            ended = before.run_id if before and before.active else context.trail.ended_run_id
            # whole: a process that came up since a survey did not see it
            trail = Trail(whole=vm.active and batch.heard, ended_run_id=ended)
            batch.contexts[vm.uuid] = replace(context, trail=trail)
        batch.transitions.append(
            Transition(
                revision=batch.head,
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
