"""What the next fact on a VM is judged by, beside the VM itself."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final

from vmagentd.lifecycle.moves import give_up, to_come
from vmagentd.lifecycle.trails import NO_TRAIL, GivenUp, Trail, after_operation, left_open
from vmagentd.model import OperationPhase, TransitionKind

if TYPE_CHECKING:
    from vmagentd.journal.era import Era
    from vmagentd.model import Operation, OperationId, Vm


@dataclass(frozen=True, slots=True, kw_only=True)
class Context:
    """What is kept of one VM for that."""

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
    # events of it were lost, and no query has told since what came of it
    lost: bool = False
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
                whole=vm.active and heard and not self.lost,
                run_id=vm.run_id,
                ended_run_id=_ended_run(trail, before, vm, seen=seen),
            )
        return replace(self, given_up=given_up, trail=trail)

    def after_step(self, operation: Operation, vm: Vm, *, boot_id: str | None) -> Context:
        """Return it as it is after a step of *operation* on *vm*, its acceptance or its end.

        In the host's boot of that id, if it was told.
        """
        given_up, trail, time = self.given_up, self.trail, operation.steps[-1].time
        if self.operation is not None and left_open(operation, boot_id=boot_id):
            given_up = give_up(given_up, self.operation, time=time)
        if not operation.phase.final:
            # what is said of a guest that was asked says nothing of one that is forced off
            answered = self.answered and operation.phase is not OperationPhase.FORCING
            return replace(self, operation=operation, answered=answered, given_up=given_up)
        if vm.active:
            trail = after_operation(trail, operation, time=time)
        return replace(
            self,
            operation=None,
            answered=False,
            ended=operation.id,
            given_up=given_up,
            trail=trail,
        )

    def after_loss(self, until_event: int) -> Context:
        """Return it as it is once events, up to the one of that number, were lost.

        As after a break of the link, what was heard before proves nothing now.
        """
        last_event = max(self.last_event, until_event)
        return replace(self, trail=NO_TRAIL, undefined=False, last_event=last_event, lost=True)

    def within(self, era: Era) -> Context:
        """Return it as far as it counts in *era*."""
        if self.era == era.number:
            return self
        return replace(self, trail=NO_TRAIL, undefined=False, era=era.number)


NO_CONTEXT: Final = Context()


def _ended_run(trail: Trail, before: Vm | None, vm: Vm, *, seen: bool) -> int | None:
    """Return the number of the process that has ended before *vm* became what it is.

    One that was told before this era may be another process's in it, or the next one's.
    """
    ended = trail.ended_run_id
    if before is not None and before.active and (seen or before.run_id == trail.run_id):
        ended = before.run_id
    return None if ended == vm.run_id else ended
