"""One VM's story: facts told one by one, and what the journal would have made of them.

Facts go through `Fold`, which is where a fact meets the ones before it; it is as pure as the
tables it applies.
"""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

from vmagentd.journal.fold import Fold
from vmagentd.lifecycle.steps import end, is_forced, step
from vmagentd.model import (
    Answered,
    Event,
    EventKind,
    EventsLost,
    HostBooted,
    HostGoingDown,
    Link,
    LinkLost,
    Operation,
    OperationFailure,
    OperationId,
    OperationOutcome,
    OperationPhase,
    OperationStep,
    Parameters,
    PauseParameters,
    Query,
    RawPair,
    Reason,
    RebootMode,
    RebootParameters,
    ResumeParameters,
    Revision,
    Sighting,
    Source,
    StartParameters,
    StopMode,
    StopParameters,
    Survey,
    Transition,
    TransitionKind,
    Vm,
    VmState,
    VmUuid,
)
from vmagentd.model.operation import OnGraceExpired

if TYPE_CHECKING:
    from vmagentd.journal.batch import Batch, Fact

VM = VmUuid("11111111-2222-4333-8444-555555555555")
BEGIN = datetime(2026, 1, 1, tzinfo=UTC)
SECOND = timedelta(seconds=1)

START = StartParameters(timeout=60 * SECOND)
STOP = StopParameters(
    mode=StopMode.GRACEFUL, grace_period=60 * SECOND, on_grace_expired=OnGraceExpired.FAIL
)
FORCED_STOP = replace(STOP, mode=StopMode.FORCE)
REBOOT = RebootParameters(
    mode=RebootMode.GRACEFUL, grace_period=60 * SECOND, on_grace_expired=OnGraceExpired.FAIL
)
FORCED_REBOOT = replace(REBOOT, mode=RebootMode.FORCE)
PAUSE = PauseParameters(timeout=60 * SECOND)
RESUME = ResumeParameters(timeout=60 * SECOND)

OFF = frozenset({VmState.STOPPED, VmState.SAVED, VmState.MIGRATED_AWAY, VmState.GONE})


class Story:
    """What happened so far, and what came of it."""

    def __init__(
        self, vms: tuple[Vm, ...] = (), *, uuid: VmUuid = VM, boot_id: str | None = None
    ) -> None:
        self.now = BEGIN
        self.head = Revision(max((vm.revision for vm in vms), default=0))
        self.uuid = uuid
        self.transitions: list[Transition] = []
        self.doubts: set[VmUuid] = set()
        self.events = 0
        self.operations = 0
        # as the journal has each
        self.kept: dict[OperationId, Operation] = {}
        self.queries = 0
        self.link = 1
        self._vms = {vm.uuid: vm for vm in vms}
        self._fold = Fold(
            head=self.head,
            link=Link(connected=True),
            boot_id=boot_id,
            vms=vms,
            operations=(),
            given_up={},
        )

    @property
    def vm(self) -> Vm:
        return self._vms[self.uuid]

    @property
    def known(self) -> bool:
        return self.uuid in self._vms

    @property
    def blind(self) -> bool:
        return not self._fold.link.connected

    def hear(
        self,
        kind: EventKind | str,
        run_id: int | None = None,
        *,
        name: str = "a",
        after: timedelta = SECOND,
    ) -> list[Transition]:
        """Tell an event, *after* the fact before it."""
        self.now += after
        self.events += 1
        return self._tell(
            Event(
                number=self.events,
                vm=self.uuid,
                name=name,
                kind=EventKind(kind),
                raw=RawPair(0, 0),
                run_id=run_id,
                observe_time=self.now,
            )
        )

    def sighting(
        self,
        state: VmState | str,
        reason: Reason | str,
        run_id: int | None = None,
        *,
        active: bool | None = None,
        persistent: bool = True,
        name: str = "a",
        cpu_s: float | None = None,
    ) -> Sighting:
        state = VmState(state)
        if active is None:
            active = state not in OFF and (state is not VmState.CRASHED or run_id is not None)
        return Sighting(
            vm=self.uuid,
            name=name,
            state=state,
            reason=Reason(reason),
            raw=RawPair(0, 0),
            active=active,
            persistent=persistent,
            run_id=run_id if active else None,
            vcpus=2,
            memory_bytes=1 << 30,
            cpu_time=cpu_s * SECOND if active and cpu_s is not None else None,
        )

    def see(
        self,
        state: VmState | str,
        reason: Reason | str,
        run_id: int | None = None,
        *,
        active: bool | None = None,
        persistent: bool = True,
        name: str = "a",
        cpu_s: float | None = None,
        since_event: int | None = None,
        number: int | None = None,
        source: Source = Source.SURVEY,
    ) -> list[Transition]:
        """Tell what a look-up found.

        It began after the event numbered *since_event*, and is the one of that *number*, if it is
        not the last one of all.
        """
        seen = self.sighting(
            state,
            reason,
            run_id,
            active=active,
            persistent=persistent,
            name=name,
            cpu_s=cpu_s,
        )
        return self.ask(seen, since_event=since_event, number=number, source=source)

    def miss(
        self,
        *,
        since_event: int | None = None,
        number: int | None = None,
        source: Source = Source.SURVEY,
    ) -> list[Transition]:
        """Tell that a look-up found nothing."""
        return self.ask(None, since_event=since_event, number=number, source=source)

    def begin_query(self) -> int:
        """Begin a query that comes back later; return its number."""
        self.queries += 1
        return self.queries

    def ask(
        self,
        seen: Sighting | None,
        *,
        since_event: int | None = None,
        number: int | None = None,
        source: Source = Source.SURVEY,
    ) -> list[Transition]:
        self.now += SECOND
        after_event = self.events if since_event is None else since_event
        return self._tell(
            Query(
                vm=self.uuid,
                sighting=seen,
                number=self.begin_query() if number is None else number,
                after_event=after_event,
                begin_time=self.now,
                source=source,
            )
        )

    def survey(
        self,
        *sightings: Sighting,
        unreadable: tuple[VmUuid, ...] = (),
        link: int | None = None,
        number: int | None = None,
        monitored: bool = False,
    ) -> list[Transition]:
        self.now += SECOND
        return self._tell(
            Survey(
                sightings=sightings,
                unreadable=unreadable,
                number=self.begin_query() if number is None else number,
                after_event=self.events,
                begin_time=self.now,
                link=self.link if link is None else link,
                monitored=monitored,
            )
        )

    def lose_link(self) -> None:
        self.now += SECOND
        self._tell(LinkLost(time=self.now, cause="it ended", link=self.link))
        self.link += 1

    def lose_events(self, count: int = 1) -> None:
        """Have so many events come that cannot be kept."""
        self.events += count
        self._tell(EventsLost(vm=self.uuid, until_event=self.events))

    def boot_host(self, boot_id: str) -> list[Transition]:
        self.now += SECOND
        return self._tell(HostBooted(time=self.now, boot_id=boot_id))

    def shut_host_down(self, *, going_down: bool = True) -> None:
        self.now += SECOND
        self._tell(HostGoingDown(time=self.now, going_down=going_down))

    def accept(self, parameters: Parameters) -> Operation:
        self.now += SECOND
        self.operations += 1
        operation = Operation(
            id=OperationId(f"op-{self.operations}"),
            vm=self.uuid,
            vm_name="a",
            actor="tester",
            request_id=None,
            parameters=parameters,
            phase=OperationPhase.ACCEPTED,
            steps=(OperationStep(phase=OperationPhase.ACCEPTED, time=self.now),),
            accept_time=self.now,
            deadline_time=self.now + 60 * SECOND,
        )
        self._tell(operation)
        return operation

    def begin(self, parameters: Parameters) -> Operation:
        """Accept an operation, and let it come to where libvirt is asked."""
        match parameters:
            case StartParameters():
                phase = OperationPhase.STARTING
            case PauseParameters() | ResumeParameters():
                phase = OperationPhase.APPLYING
            case _ if is_forced(parameters):
                phase = OperationPhase.FORCING
            case _:
                phase = OperationPhase.SIGNALLED
        return self.take_step(self.accept(parameters), phase)

    def take_step(self, operation: Operation, phase: OperationPhase) -> Operation:
        self.now += SECOND
        operation = step(operation, phase, time=self.now)
        self._tell(operation)
        return operation

    def answer(self, operation: Operation) -> list[Transition]:
        """Have libvirt say that it did what *operation* asked for."""
        self.now += SECOND
        return self._tell(Answered(vm=self.uuid, operation=operation.id, time=self.now))

    def finish(
        self, operation: Operation, *, failure: OperationFailure | None = None
    ) -> list[Transition]:
        self.now += SECOND
        if failure is None:
            done = OperationOutcome.DONE
            ended = end(operation, OperationPhase.SUCCEEDED, time=self.now, outcome=done)
        else:
            cancelled = failure.error == "OperationCancelled"
            phase = OperationPhase.CANCELLED if cancelled else OperationPhase.FAILED
            ended = end(operation, phase, time=self.now, failure=failure)
        return self._tell(ended)

    def _tell(self, fact: Fact) -> list[Transition]:
        batch: Batch = self._fold.apply([fact])
        self._fold.commit(batch)
        self._vms |= batch.vms
        self.kept |= batch.operations
        self.head = batch.head
        self.transitions += batch.transitions
        self.doubts = batch.doubts
        return batch.transitions


def told(transitions: list[Transition]) -> list[str]:
    """Return transitions in words: `RUNNING/BOOTED on #1`, with crashes if there were any."""
    return [_words(transition) for transition in transitions]


def _words(transition: Transition) -> str:
    vm = transition.vm
    kind = "" if transition.kind is TransitionKind.STATE else f"{transition.kind}: "
    on = "on" if vm.active else "off"
    crashes = f" crashes={vm.crash_count}" if vm.crash_count else ""
    return f"{kind}{vm.state}/{vm.reason} {on} #{vm.incarnation}{crashes}"
