"""What the measured parts of the daemon call: plain callables, so that they know no metrics."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from vmagentd.model import Operation, Transition


def _nobody(*_: object) -> None:
    """Nobody measures."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Observers:
    """Each is cheap and never waits; by default nothing is measured."""

    # seconds and facts of a commit; in the writer's thread
    commit: Callable[[float, int], None] = _nobody
    # name, `ok` or the name of its error, and seconds of a call to libvirt
    call: Callable[[str, str, float], None] = _nobody
    # libvirt is connected
    connect: Callable[[], None] = _nobody
    # transitions that gRPC has taken together for a watcher who had all before them
    delivered: Callable[[Sequence[Transition]], None] = _nobody
    # why a caller was refused
    refusal: Callable[[BaseException], None] = _nobody
    # an operation has ended
    operation: Callable[[Operation], None] = _nobody
