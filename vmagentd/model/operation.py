"""An operation from acceptance to outcome, and what each verb can be asked to do."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime, timedelta
from enum import auto
from typing import Literal, TypeAlias

from vmagentd.model.names import Name, OperationId, VmUuid


class OperationVerb(Name):
    """What an operation does."""

    START = auto()
    STOP = auto()
    REBOOT = auto()
    PAUSE = auto()
    RESUME = auto()


class OperationPhase(Name):
    """Where an operation stands."""

    ACCEPTED = auto()
    QUEUED = auto()
    STARTING = auto()
    SIGNALLED = auto()
    WAITING = auto()
    FORCING = auto()
    APPLYING = auto()
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


class RebootMode(Name):
    """Ask the guest, or reset it at once."""

    GRACEFUL = auto()
    FORCE = auto()


class OnGraceExpired(Name):
    """What happens when the grace period is over and the guest has not done what was asked."""

    FAIL = auto()
    FORCE = auto()


# What each verb can be asked to do. `verb` also tells records of the journal apart that have
# the same fields.


@dataclass(frozen=True, slots=True, kw_only=True)
class StartParameters:
    """What a Start was asked to do."""

    verb: Literal[OperationVerb.START] = OperationVerb.START
    paused: bool = False
    discard_saved_state: bool = False
    force: bool = False
    timeout: timedelta


@dataclass(frozen=True, slots=True, kw_only=True)
class StopParameters:
    """What a Stop was asked to do; the last two only matter to a GRACEFUL one."""

    verb: Literal[OperationVerb.STOP] = OperationVerb.STOP
    mode: StopMode
    grace_period: timedelta
    on_grace_expired: OnGraceExpired


@dataclass(frozen=True, slots=True, kw_only=True)
class RebootParameters:
    """What a Reboot was asked to do; the last two only matter to a GRACEFUL one."""

    verb: Literal[OperationVerb.REBOOT] = OperationVerb.REBOOT
    mode: RebootMode
    grace_period: timedelta
    on_grace_expired: OnGraceExpired


@dataclass(frozen=True, slots=True, kw_only=True)
class PauseParameters:
    """What a Pause was asked to do."""

    verb: Literal[OperationVerb.PAUSE] = OperationVerb.PAUSE
    timeout: timedelta


@dataclass(frozen=True, slots=True, kw_only=True)
class ResumeParameters:
    """What a Resume was asked to do."""

    verb: Literal[OperationVerb.RESUME] = OperationVerb.RESUME
    timeout: timedelta


# The order matters to records of before `verb`: they are a Start or a Stop.
Parameters: TypeAlias = (
    StartParameters | StopParameters | RebootParameters | PauseParameters | ResumeParameters
)


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
    """A request that became part of an operation which was under way, or that cancelled it.

    One with an id is remembered by it, with its parameters.
    """

    operation: OperationId
    vm: VmUuid
    vm_name: str
    # name of the RPC
    method: str
    time: datetime
    actor: str
    request_id: str | None = None
    parameters: Parameters | None = None
    # from where it was called, see `Caller`
    peer: str = ""
    certificate_fingerprint: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class BootTime:
    """A time by the clock that counts from the host's boot, and that nobody sets."""

    boot_id: str
    since_boot: timedelta


@dataclass(frozen=True, slots=True, kw_only=True)
class Operation:
    """One operation from acceptance to outcome."""

    id: OperationId
    vm: VmUuid
    vm_name: str
    actor: str
    # from where the actor called, see `Caller`
    peer: str = ""
    certificate_fingerprint: str | None = None
    request_id: str | None
    parameters: Parameters
    phase: OperationPhase
    steps: tuple[OperationStep, ...]
    accept_time: datetime
    deadline_time: datetime
    # the same; None for one of before it was kept
    deadline_boot: BootTime | None = None
    # the boot of its VM that it is for, see `Vm.incarnation`: that of when it was accepted or last
    # joined; None if the VM was off, or for one of before this was kept: it is for any boot then
    incarnation: int | None = None
    # somebody who joined it asked for force
    escalated: bool = False
    end_time: datetime | None = None
    outcome: OperationOutcome | None = None
    failure: OperationFailure | None = None
    # among those that wait for their turn, from 1; a fact of the moment, never stored
    queue_place: int = 0

    @property
    def verb(self) -> OperationVerb:
        """What it does; follows from the parameters."""
        return self.parameters.verb

    @property
    def method(self) -> str:
        """Name of the RPC that asks for it: `Start`."""
        return self.verb.capitalize()


@dataclass(frozen=True, slots=True, kw_only=True)
class OperationFilter:
    """Which operations to read; `max_accept_time` is excluded. None, or no choice, means all."""

    vm: VmUuid | None = None
    actor: str | None = None
    verbs: frozenset[OperationVerb] = frozenset()
    phases: frozenset[OperationPhase] = frozenset()
    outcomes: frozenset[OperationOutcome] = frozenset()
    min_accept_time: datetime | None = None
    max_accept_time: datetime | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class OperationPlace:
    """A place in the list of all operations: that of one of them."""

    accept_time: datetime
    id: OperationId
