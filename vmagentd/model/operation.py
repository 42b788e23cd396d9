"""A Start or Stop from acceptance to outcome."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime, timedelta
from enum import auto

from vmagentd.model.names import Name, OperationId, VmUuid


class OperationVerb(Name):
    """What an operation does."""

    START = auto()
    STOP = auto()


class OperationPhase(Name):
    """Where an operation stands."""

    ACCEPTED = auto()
    STARTING = auto()
    SIGNALLED = auto()
    WAITING = auto()
    FORCING = auto()
    SUCCEEDED = auto()
    FAILED = auto()
    CANCELLED = auto()
    INTERRUPTED = auto()

    @property
    def final(self) -> bool:
        """Whether an operation in this phase is over."""
        return self in _FINAL_PHASES


_FINAL_PHASES = frozenset({
    OperationPhase.SUCCEEDED,
    OperationPhase.FAILED,
    OperationPhase.CANCELLED,
    OperationPhase.INTERRUPTED,
})  # fmt: skip


class OperationOutcome(Name):
    """How an operation succeeded."""

    DONE = auto()
    ALREADY_DONE = auto()


class StopMode(Name):
    """Ask the guest, or force the VM off at once."""

    GRACEFUL = auto()
    FORCE = auto()


class OnGraceExpired(Name):
    """What happens when the grace period is over and the VM is not off."""

    FAIL = auto()
    FORCE = auto()


@dataclass(frozen=True, slots=True, kw_only=True)
class StartParameters:
    """What a Start was asked to do."""

    paused: bool = False
    discard_saved_state: bool = False
    force: bool = False
    timeout: timedelta


@dataclass(frozen=True, slots=True, kw_only=True)
class StopParameters:
    """What a Stop was asked to do; the last two only matter to a GRACEFUL one."""

    mode: StopMode
    grace_period: timedelta
    on_grace_expired: OnGraceExpired


@dataclass(frozen=True, slots=True, kw_only=True)
class OperationStep:
    """One step of an operation; `attempt` counts the steps of its phase, from 1."""

    phase: OperationPhase
    time: datetime
    attempt: int = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class OperationFailure:
    """Why an operation did not succeed, as it is stored and told again later.

    `error` is the name of a class in `errors`; `facts` are that error's facts as text, so that a
    status built from a stored failure equals the one built when it happened.
    """

    error: str
    message: str
    facts: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class JoinedRequest:
    """A request with an id of its own that became part of an operation which was under way."""

    operation: OperationId
    actor: str
    request_id: str
    parameters: StartParameters | StopParameters


@dataclass(frozen=True, slots=True, kw_only=True)
class Operation:
    """One Start or Stop from acceptance to outcome."""

    id: OperationId
    vm: VmUuid
    vm_name: str
    actor: str
    request_id: str | None
    parameters: StartParameters | StopParameters
    phase: OperationPhase
    steps: tuple[OperationStep, ...]
    accept_time: datetime
    deadline_time: datetime
    end_time: datetime | None = None
    outcome: OperationOutcome | None = None
    failure: OperationFailure | None = None

    @property
    def verb(self) -> OperationVerb:
        """What it does; follows from the parameters."""
        match self.parameters:
            case StartParameters():
                return OperationVerb.START
            case StopParameters():
                return OperationVerb.STOP
