"""What a run of facts makes of the journal, before it is written.

Belongs to the writer's thread. Holds the VMs as they are committed and whatever else the next
fact is judged by; applies each fact to them through `lifecycle`, in the order they came. Touches
no file: a batch that cannot be committed is dropped, and nothing has happened.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Final, TypeAlias

from vmagentd.lifecycle.events import on_event
from vmagentd.lifecycle.sightings import confirm, on_absence, on_host_boot, on_sighting
from vmagentd.lifecycle.steps import on_operation
from vmagentd.lifecycle.trails import NO_TRAIL, TRACES, Trail, after_stop, follow
from vmagentd.model import (
    Event,
    EventKind,
    HostBooted,
    HostGoingDown,
    JoinedRequest,
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

Fact: TypeAlias = (
    Event | LinkLost | Survey | Query | Operation | JoinedRequest | HostBooted | HostGoingDown
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Context:
    """What the next fact on a VM is judged by, beside the VM itself."""

    # the one under way
    operation: Operation | None = None
    # what was heard of its hypervisor process, if it is active
    trail: Trail = NO_TRAIL
    # its definition was removed while somebody listened
    undefined: bool = False
    # number of its last event: a query that began before it knows less
    last_event: int = 0
    # in which time without a break of the link `trail` and `undefined` were learned
    era: int = 0


_NO_CONTEXT: Final = Context()


@dataclass(slots=True, kw_only=True)
class Batch:
    """What some facts make of the journal; nothing of it holds before it is committed."""

    head: Revision
    link: Link
    # counts the links that were lost: what was heard before the last loss proves nothing now
    era: int
    # the youngest link that was lost: a survey that went through it ends no blindness
    lost_link: int
    # whether QEMU's own events are heard, and were since a survey
    heard: bool
    # the host's boot; None before it was told
    boot_id: str | None
    host_going_down: bool
    transitions: list[Transition] = field(default_factory=list)
    # VMs that a transition or a query touched, as they are after it
    vms: dict[VmUuid, Vm] = field(default_factory=dict)
    operations: dict[OperationId, Operation] = field(default_factory=dict)
    joined: list[JoinedRequest] = field(default_factory=list)
    # VMs that libvirt is to be asked about
    doubts: set[VmUuid] = field(default_factory=set)
    contexts: dict[VmUuid, Context] = field(default_factory=dict)
    # every link in between: a blind time that begins and ends in here has been all the same
    links: list[Link] = field(default_factory=list)


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
    ) -> None:
        self.head = head
        self.link = link
        self.boot_id = boot_id
        self._vms = {vm.uuid: vm for vm in vms}
        self._contexts = {
            operation.vm: Context(operation=operation)  # at most one per VM
            for operation in operations
        }
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
                    self._on_operation(fact, batch)
                case JoinedRequest():
                    batch.joined.append(fact)
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
        self._era, self._lost_link, self._heard = batch.era, batch.lost_link, batch.heard
        self.boot_id, self._host_going_down = batch.boot_id, batch.host_going_down

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
        trail = replace(trail, host_going_down=batch.host_going_down)
        verdict = on_event(self._vm(event.vm, batch), event, operation, trail)
        for change in verdict.changes:
            self._append(batch, change, event.observe_time, Source.EVENT, raw_event=event.raw)
        if verdict.doubt:
            batch.doubts.add(event.vm)

    def _on_query(self, query: Query, batch: Batch) -> None:
        context = self._context(query.vm, batch)
        if context.last_event > query.after_event:
            batch.doubts.add(query.vm)  # an event is younger than the answer: ask again
            return
        vm, seen, time = self._vm(query.vm, batch), query.sighting, query.begin_time
        operation = context.operation
        if seen is not None:
            verdict = on_sighting(vm, seen, time=time, source=query.source, operation=operation)
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
            for vm in [*(self._vms | batch.vms).values()]:
                for change in on_host_boot(vm, time=boot.time).changes:
                    self._append(batch, change, boot.time, Source.SURVEY)
        batch.boot_id = boot.boot_id

    def _on_operation(self, operation: Operation, batch: Batch) -> None:
        batch.operations[operation.id] = operation
        context = self._context(operation.vm, batch)
        context = replace(context, operation=None if operation.phase.final else operation)
        vm = self._vm(operation.vm, batch)
        if vm is None:
            message = f"operation {operation.id} on VM {operation.vm}, which was never recorded"
            raise AssertionError(message)
        time = operation.steps[-1].time
        if operation.verb is OperationVerb.STOP and operation.phase.final and vm.active:
            context = replace(context, trail=after_stop(context.trail, time=time))
        batch.contexts[operation.vm] = context
        change = on_operation(vm, operation, time=time)
        if change is not None:
            self._append(batch, change, time, Source.OPERATION, operation=operation)

    def _vm(self, uuid: VmUuid, batch: Batch) -> Vm | None:
        return batch.vms.get(uuid) or self._vms.get(uuid)

    def _context(self, uuid: VmUuid, batch: Batch) -> Context:
        context = batch.contexts.get(uuid) or self._contexts.get(uuid) or _NO_CONTEXT
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
        if not vm.active:
            batch.contexts[vm.uuid] = replace(context, trail=NO_TRAIL)
        elif before is None or vm.incarnation != before.incarnation:
            # a process that came up since a survey did not see it
            batch.contexts[vm.uuid] = replace(context, trail=Trail(whole=batch.heard))
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
