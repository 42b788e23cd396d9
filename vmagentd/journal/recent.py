"""The newest of what was committed, in memory. Belongs to the loop."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from vmagentd.model import Operation, OperationId, Revision, Transition

# The newest transitions are kept in memory: a watcher that keeps up never touches SQLite.
RECENT: Final = 2048
# Most transitions that a follower gets at once.
PAGE: Final = 256


class RecentTransitions:
    """The newest transitions, without a gap."""

    def __init__(self) -> None:
        self._kept: list[Transition] = []

    def __len__(self) -> int:
        return len(self._kept)

    @property
    def oldest(self) -> Revision | None:
        """The first revision that is kept."""
        return self._kept[0].revision if self._kept else None

    def add(self, transitions: Iterable[Transition]) -> None:
        """Take in what follows on the newest."""
        self._kept += transitions
        if len(self._kept) > 2 * RECENT:
            del self._kept[:-RECENT]

    def page(self, after: Revision) -> tuple[Transition, ...] | None:
        """Return the next ones after *after*; None if that was too long ago."""
        oldest = self.oldest
        if oldest is None or oldest > after + 1:
            return None
        begin = after + 1 - oldest
        return tuple(self._kept[begin : begin + PAGE])


class EndedOperations:
    """Operations whose end is committed, until whoever carried them out has taken note of it."""

    def __init__(self) -> None:
        self._kept: dict[OperationId, Operation] = {}
        self._calls: dict[OperationId, Callable[[], object]] = {}

    def __contains__(self, operation_id: OperationId) -> bool:
        return operation_id in self._kept

    def on_end(self, operation_id: OperationId, call: Callable[[], object]) -> None:
        """Have *call* called as that operation's end is shown, before who waits for it is told."""
        self._calls[operation_id] = call

    def add(self, operations: Iterable[Operation]) -> None:
        """Take in those of *operations* that are over."""
        for each in operations:
            if each.phase.final:
                self._kept[each.id] = each
                self._calls.pop(each.id, lambda: None)()

    def take(self, operation_id: OperationId) -> Operation:
        """Return an operation as it ended, and keep it no longer."""
        return self._kept.pop(operation_id)
