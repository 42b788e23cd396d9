"""What the journal's writer tells, in its thread."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable

    from vmagentd.journal.batch import Batch
    from vmagentd.model import Link, Revision

Waiters: TypeAlias = "list[asyncio.Future[None]]"


@dataclass(frozen=True, slots=True, kw_only=True)
class Told:
    """What the writer tells; each is called in its thread."""

    # after each commit, with those who wait for it
    committed: Callable[[Batch, Waiters], object]
    # how many seconds that took, for how many facts
    measured: Callable[[float, int], object]
    # nothing can be committed: the cause, the link as it is by now, who is refused. Again when
    # the link changes.
    unwritable: Callable[[str, Link, Waiters], object]
    # it can again, and what waited is: the link as it is by now
    writable: Callable[[Link], object]
    # history up to there is not complete any more
    compacted: Callable[[Revision], object]
    # its last act, with the error that ended it, if any
    ended: Callable[[BaseException | None], object]
