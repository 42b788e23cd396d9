"""What the daemon can do to a VM: one row for each verb.

How two operations on a VM meet is in `lifecycle.steps`, what each can be asked in
`model.operation`.
"""

from __future__ import annotations

from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from vmagentd.lifecycle.steps import is_forced
from vmagentd.model import (
    OperationVerb,
    Parameters,
    PauseParameters,
    RebootParameters,
    ResumeParameters,
    StartParameters,
    StopParameters,
)
from vmagentd.operations.pause import (
    go_on_pause,
    go_on_resume,
    open_pause,
    open_resume,
    pause,
    resume,
)
from vmagentd.operations.reboot import go_on_reboot, reboot
from vmagentd.operations.start import go_on_start, open_start, start
from vmagentd.operations.stop import go_on_stop, open_stop, stop

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping
    from datetime import timedelta

    from vmagentd.model import OperationOutcome, OperationPhase
    from vmagentd.operations.means import Times
    from vmagentd.operations.run import Run

P = TypeVar("P", bound=Parameters)


@dataclass(frozen=True, slots=True, kw_only=True)
class Verb(Generic[P]):
    """How one verb is carried out. Its procedures return once the journal has what was asked."""

    # how long it may take, by what was asked
    allowed: Callable[[P, Times], timedelta]
    carry_out: Callable[[Run, P], Awaitable[OperationOutcome]]
    # goes on with one that an earlier daemon began, or with force where that comes in late
    go_on: Callable[[Run, P], Awaitable[OperationOutcome]]
    # The step that is committed with the acceptance, so that libvirt can be asked right after it;
    # None if more has to be found out before. It goes by what the journal knows: where that is
    # behind, libvirt refuses, and is asked for the truth then.
    opening: Callable[[Run, P], OperationPhase | None] = lambda *_: None


def _timeout(
    parameters: StartParameters | PauseParameters | ResumeParameters, _times: Times
) -> timedelta:
    return parameters.timeout


def _grace_period(parameters: StopParameters | RebootParameters, times: Times) -> timedelta:
    return times.force_timeout if is_forced(parameters) else parameters.grace_period


VERBS: Mapping[OperationVerb, Verb[Any]] = MappingProxyType({
    OperationVerb.START: Verb(
        allowed=_timeout, opening=open_start, carry_out=start, go_on=go_on_start
    ),
    OperationVerb.STOP: Verb(
        allowed=_grace_period, opening=open_stop, carry_out=stop, go_on=go_on_stop
    ),
    OperationVerb.REBOOT: Verb(allowed=_grace_period, carry_out=reboot, go_on=go_on_reboot),
    OperationVerb.PAUSE: Verb(
        allowed=_timeout, opening=open_pause, carry_out=pause, go_on=go_on_pause
    ),
    OperationVerb.RESUME: Verb(
        allowed=_timeout, opening=open_resume, carry_out=resume, go_on=go_on_resume
    ),
})  # fmt: skip
