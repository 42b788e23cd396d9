"""What a run of facts makes of the journal, before it is written.

Belongs to the writer's thread. Holds the VMs as they are committed and whatever else the next
fact is judged by; applies each fact to them through `lifecycle`, in the order they came. Touches
no file: a batch that cannot be committed is dropped, and nothing has happened.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from vmagentd.failpoints import failpoint
from vmagentd.journal.batch import Batch
from vmagentd.journal.context import NO_CONTEXT, Context
from vmagentd.journal.era import Era
from vmagentd.lifecycle.events import on_event
from vmagentd.lifecycle.sightings import confirm, on_absence, on_host_boot, on_sighting
from vmagentd.lifecycle.steps import concluded, joined, on_operation, still_joined
from vmagentd.lifecycle.trails import NO_TRAIL, TRACES, Trail, follow
from vmagentd.model import (
    Answered,
    Event,
    EventKind,
    EventsLost,
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
        self._era = Era()
        self._host_going_down = False

    def apply(self, facts: Iterable[Fact]) -> Batch:
        """Return what *facts* make of the journal as it is committed."""
        batch = self._begin()
        for fact in facts:
            match fact:
                case Event():
                    self._on_event(fact, batch)
                case EventsLost():
                    context = self._context(fact.vm, batch)
                    batch.contexts[fact.vm] = context.after_loss(fact.until_event)
                    batch.doubts.add(fact.vm)
                case Query():
                    self._on_query(fact, batch)
                case Survey():
                    self._on_survey(fact, batch)
                case LinkLost():
                    batch.confirm(self._vms)
                    batch.link_lost(fact)
                case Operation():
                    self._on_operation(self._still_joined(fact, batch), batch)
                case Answered():
                    self._on_answered(fact, batch)
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
        self._era, self.boot_id = batch.era, batch.boot_id
        self._host_going_down = batch.host_going_down

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
                    batch.link_lost(fact)
                case Survey():
                    batch.link_up(fact)
                case _:
                    pass
        return replace(batch.link, last_survey_time=self.link.last_survey_time)

    def _begin(self) -> Batch:
        return Batch(
            head=self.head,
            link=self.link,
            era=self._era,
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
        if event.run_id not in {None, trail.ended_run_id}:
            trail = replace(trail, run_id=event.run_id)
        context = replace(context, trail=trail, last_event=event.number, undefined=undefined)
        batch.contexts[event.vm] = context
        known = self._beside(trail, context, batch)
        verdict = on_event(self._vm(event.vm, batch), event, operation, known)
        for change in verdict.changes:
            self._append(batch, change, event.observe_time, Source.EVENT, raw_event=event.raw)
        self._conclude(event.vm, event.observe_time, batch)
        if verdict.doubt:
            batch.doubts.add(event.vm)

    def _on_query(self, query: Query, batch: Batch) -> None:
        context = self._context(query.vm, batch)
        if (
            context.last_event > query.after_event
            or self._last_query(query.vm, batch) > query.number
        ):
            # An event is younger than the answer, or a query is that came back before it. Which of
            # two queries saw the later state nobody knows: ask again.
            batch.doubts.add(query.vm)
            return
        verdict = self._verdict(query, context, batch)
        if verdict is None:
            return
        seen, time = query.sighting, query.begin_time
        for change in verdict.changes:
            self._append(batch, change, time, query.source)
        if context.lost:
            context = self._context(query.vm, batch)
            batch.contexts[query.vm] = replace(context, lost=False)
        batch.queried[query.vm] = query.number
        batch.era = batch.era.after_query(query.number)
        self._conclude(query.vm, time, batch)
        after = self._vm(query.vm, batch)
        if after is not None:
            batch.vms[query.vm] = confirm(after, seen, time=time)

    def _verdict(self, query: Query, context: Context, batch: Batch) -> Verdict | None:
        """Return what *query* makes of its VM; None: nothing, and it confirms nothing."""
        vm, time, source = self._vm(query.vm, batch), query.begin_time, query.source
        operation = context.operation
        if query.sighting is not None:
            trail = NO_TRAIL  # what was heard before does not tell why it is so now
            if context.given_up or batch.host_going_down:
                trail = self._beside(trail, context, batch)
            return on_sighting(
                vm,
                query.sighting,
                time=time,
                source=source,
                operation=operation,
                trail=trail,
                first=not batch.era.has(self._last_query(query.vm, batch)),
            )
        if vm is None:
            return None  # never heard of, and not there
        return on_absence(
            vm, time=time, source=source, operation=operation, undefined=context.undefined
        )

    def _on_survey(self, survey: Survey, batch: Batch) -> None:
        """What a complete listing shows is there, what it does not show is gone."""
        seen = {sighting.vm: sighting for sighting in survey.sightings}
        known = {vm for vm in self._vms | batch.vms if not self._gone(vm, batch)}
        for vm in [*seen, *(known - seen.keys() - set(survey.unreadable))]:
            self._on_query(survey.query(vm, seen.get(vm)), batch)
        batch.doubts.update(survey.unreadable)
        batch.link_up(survey)

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
        context = self._context(operation.vm, batch)
        if context.ended == operation.id:
            return
        batch.operations[operation.id] = operation
        vm = self._vm(operation.vm, batch)
        if vm is None:
            message = f"operation {operation.id} on VM {operation.vm}, which was never recorded"
            raise AssertionError(message)
        batch.contexts[operation.vm] = context.after_step(operation, vm, boot_id=batch.boot_id)
        time = operation.steps[-1].time
        change = on_operation(vm, operation, time=time)
        if change is not None:
            self._append(batch, change, time, Source.OPERATION, operation=operation)

    def _on_answered(self, answered: Answered, batch: Batch) -> None:
        context = self._context(answered.vm, batch)
        if context.operation is not None and context.operation.id == answered.operation:
            batch.contexts[answered.vm] = replace(context, answered=True)
            self._conclude(answered.vm, answered.time, batch)

    def _conclude(self, uuid: VmUuid, time: datetime, batch: Batch) -> None:
        """End the operation on a VM if that is now as it wants it: in one commit with that."""
        context, vm = self._context(uuid, batch), self._vm(uuid, batch)
        if context.operation is None or not context.answered or vm is None:
            return
        ended = concluded(context.operation, vm, time=time)
        if ended is not None:
            failpoint("before", ended.phase)
            self._on_operation(ended, batch)

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
        return context.within(batch.era)

    def _beside(self, trail: Trail, context: Context, batch: Batch) -> Trail:
        """Return *trail* with what is not of one process."""
        return replace(trail, host_going_down=batch.host_going_down, given_up=context.given_up)

    def _last_query(self, uuid: VmUuid, batch: Batch) -> int:
        return batch.queried.get(uuid) or self._queried.get(uuid, 0)

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
        vm = batch.add(
            change,
            before,
            time=time,
            source=source,
            raw_event=raw_event,
            operation=operation,
        )
        context = self._context(vm.uuid, batch)
        batch.contexts[vm.uuid] = context.after(
            before,
            change.kind,
            vm,
            heard=batch.era.heard,
            seen=batch.era.has(self._last_query(vm.uuid, batch)),
        )
