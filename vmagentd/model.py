"""The words of the daemon as types: VM, fact, transition, operation.

Pure values: frozen, without behaviour beyond what follows from their own fields. They cross
threads freely. Names of states, reasons and phases are those of the protobuf contract without
their prefix.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime, timedelta
from enum import StrEnum, auto
from typing import NewType

VmUuid = NewType("VmUuid", str)
Revision = NewType("Revision", int)
OperationId = NewType("OperationId", str)
JournalId = NewType("JournalId", str)


class _Name(StrEnum):
    """A choice whose value is its own name, as it stands in the contract and in the journal."""

    @staticmethod
    def _generate_next_value_(name: str, *_: object) -> str:
        return name


class VmState(_Name):
    """What a VM is doing: a fact, never an intent."""

    STARTING = auto()
    RUNNING = auto()
    PAUSED = auto()
    SLEEPING = auto()
    STOPPING = auto()
    STOPPED = auto()
    SAVED = auto()
    CRASHED = auto()
    MIGRATING_IN = auto()
    MIGRATED_AWAY = auto()
    GONE = auto()
    UNRECOGNIZED = auto()


class Reason(_Name):
    """Why a VM is in its state; which reason goes with which state is in the contract."""

    UNKNOWN = auto()
    BOOTED = auto()
    RESTORED = auto()
    REVERTED = auto()
    UNPAUSED = auto()
    MIGRATED_IN = auto()
    MIGRATION_CANCELED = auto()
    SAVE_CANCELED = auto()
    WOKE_UP = auto()
    REBOOTED = auto()
    RESTARTED_AFTER_PANIC = auto()
    POSTCOPY = auto()
    POSTCOPY_FAILED = auto()
    PAUSED_BY_USER = auto()
    MIGRATING = auto()
    SAVING = auto()
    DUMPING = auto()
    IO_ERROR = auto()
    WATCHDOG = auto()
    SNAPSHOTTING = auto()
    SHUTTING_DOWN = auto()
    API_ERROR = auto()
    STARTING_UP = auto()
    GUEST_SHUTDOWN = auto()
    HOST_TERMINATION = auto()
    CLEAN_SHUTDOWN = auto()
    FORCED = auto()
    KILLED_BY_HOST_SIGNAL = auto()
    START_FAILED = auto()
    STOPPED_BY_LIBVIRTD = auto()
    HOST_REBOOTED = auto()
    DEFINED = auto()
    SAVED = auto()
    PROCESS_DIED = auto()
    GUEST_PANIC = auto()
    GUEST_CRASHLOADED = auto()
    MIGRATED_AWAY = auto()
    SUSPENDED_TO_RAM = auto()
    SUSPENDED_TO_DISK = auto()
    UNDEFINED = auto()
    MISSING = auto()


class InitiatorKind(_Name):
    """Kind of party that caused something."""

    CLIENT = auto()
    GUEST = auto()
    OUT_OF_BAND = auto()
    HOST_SHUTDOWN = auto()
    LIBVIRT = auto()
    UNKNOWN = auto()


class Source(_Name):
    """How the daemon learned of something."""

    EVENT = auto()
    SURVEY = auto()
    OPERATION = auto()


@dataclass(frozen=True, slots=True, kw_only=True)
class Initiator:
    """Who caused something; actor and operation only with CLIENT."""

    kind: InitiatorKind
    actor: str | None = None
    operation_id: OperationId | None = None


UNKNOWN_INITIATOR = Initiator(kind=InitiatorKind.UNKNOWN)


@dataclass(frozen=True, slots=True)
class RawPair:
    """Two numbers as libvirt said them: event and detail, or state and reason."""

    major: int
    minor: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Unresponsive:
    """A hypervisor that does not answer libvirt."""

    job: str
    since_time: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class StartError:
    """A start that failed: libvirt's number and text, and when."""

    libvirt_code: int
    message: str
    fail_time: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class Vm:
    """One VM as the journal has it; see the contract's `Vm` for what each field promises."""

    uuid: VmUuid
    name: str
    state: VmState
    reason: Reason
    initiator: Initiator
    source: Source
    state_time: datetime
    # set = late: the state began between this time and state_time
    earliest_time: datetime | None = None
    verify_time: datetime | None = None
    persistent: bool = False
    active: bool = False
    incarnation: int = 0
    crash_count: int = 0
    # libvirt's number of the running hypervisor process: another one means a start that no event
    # told of. Never shown; None while not active or not known.
    run_id: int | None = None
    unresponsive: Unresponsive | None = None
    active_operation_id: OperationId | None = None
    vcpus: int = 0
    memory_bytes: int = 0
    last_start_error: StartError | None = None
    raw_state: RawPair | None = None
    # 0 only before the writer has numbered it
    revision: Revision = Revision(0)


class EventKind(_Name):
    """libvirt's lifecycle events with their details, and those other events that we take."""

    DEFINED = auto()
    DEFINED_RENAMED = auto()
    UNDEFINED = auto()
    UNDEFINED_RENAMED = auto()
    # QEMU: the process is set up; RESUMED, which comes first, tells that the guest runs
    STARTED_BOOTED = auto()
    # drivers that say no RESUMED at a start (libvirt's test driver): the guest runs
    STARTED_RUNNING = auto()
    STARTED_MIGRATED = auto()
    STARTED_RESTORED = auto()
    STARTED_FROM_SNAPSHOT = auto()
    STARTED_WAKEUP = auto()
    SUSPENDED_PAUSED = auto()
    SUSPENDED_MIGRATED = auto()
    SUSPENDED_IOERROR = auto()
    SUSPENDED_WATCHDOG = auto()
    SUSPENDED_RESTORED = auto()
    SUSPENDED_FROM_SNAPSHOT = auto()
    SUSPENDED_API_ERROR = auto()
    SUSPENDED_POSTCOPY = auto()
    SUSPENDED_POSTCOPY_FAILED = auto()
    RESUMED_UNPAUSED = auto()
    RESUMED_MIGRATED = auto()
    RESUMED_FROM_SNAPSHOT = auto()
    RESUMED_POSTCOPY = auto()
    RESUMED_POSTCOPY_FAILED = auto()
    STOPPED_SHUTDOWN = auto()
    STOPPED_DESTROYED = auto()
    STOPPED_CRASHED = auto()
    STOPPED_MIGRATED = auto()
    STOPPED_SAVED = auto()
    STOPPED_FAILED = auto()
    STOPPED_FROM_SNAPSHOT = auto()
    SHUTDOWN_GUEST = auto()
    SHUTDOWN_HOST = auto()
    PMSUSPENDED_MEMORY = auto()
    PMSUSPENDED_DISK = auto()
    CRASHED_PANICKED = auto()
    CRASHED_CRASHLOADED = auto()
    # not a lifecycle event in libvirt's sense: its own event number, no detail
    REBOOT = auto()
    # a number this daemon does not know; `Event.raw` has it
    UNRECOGNIZED = auto()


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """Something libvirt said happened to a VM. A fact of history."""

    # counts the events taken by this process, from 1: a query that began at n knows nothing
    # of later ones
    number: int
    vm: VmUuid
    name: str
    kind: EventKind
    raw: RawPair
    # None where libvirt said -1, which proves nothing: it does so for some stops only
    run_id: int | None
    # host clock, UTC, taken in the callback
    observe_time: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class Sighting:
    """One VM as a query found it. A fact of now."""

    vm: VmUuid
    name: str
    state: VmState
    reason: Reason
    raw: RawPair
    active: bool
    persistent: bool
    run_id: int | None
    vcpus: int
    memory_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Survey:
    """The answer of one complete listing: VMs that are not in it are not in libvirt."""

    sightings: tuple[Sighting, ...]
    # VMs that are there and could not be read: neither seen nor missing
    unreadable: tuple[VmUuid, ...] = ()
    # number of the last event taken before the query began
    after_event: int
    begin_time: datetime
    # number of the link that it went through
    link: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Query:
    """The answer of one look-up: `sighting` is None if libvirt does not know the VM."""

    vm: VmUuid
    sighting: Sighting | None
    after_event: int
    begin_time: datetime
    # why it was asked: OPERATION if an operation did, else SURVEY
    source: Source = Source.SURVEY


@dataclass(frozen=True, slots=True, kw_only=True)
class LinkLost:
    """libvirt cannot be asked from this time on."""

    time: datetime
    cause: str
    # links are counted from 1; 0: there was none yet
    link: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Link:
    """Whether libvirt can be asked; `blind_since` and `cause` only while it cannot."""

    connected: bool
    blind_since: datetime | None = None
    cause: str | None = None
    # when the last complete survey began
    last_survey_time: datetime | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class BlindInterval:
    """A time during which libvirt could not be asked; `end_time` None while it lasts."""

    begin_time: datetime
    end_time: datetime | None
    cause: str


class TransitionKind(_Name):
    """What a transition changed."""

    STATE = auto()
    REBOOT = auto()
    DEFINITION = auto()
    OPERATION = auto()
    RESPONSIVENESS = auto()


@dataclass(frozen=True, slots=True, kw_only=True)
class Transition:
    """One committed change of one VM, with the VM as it was right after."""

    revision: Revision
    kind: TransitionKind
    vm: Vm
    previous_state: VmState | None
    time: datetime
    source: Source
    # set = late: it happened between this time and `time`
    earliest_time: datetime | None = None
    raw_event: RawPair | None = None
    operation_id: OperationId | None = None
    operation_phase: OperationPhase | None = None


class OperationVerb(_Name):
    """What an operation does."""

    START = auto()
    STOP = auto()


class OperationPhase(_Name):
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


class OperationOutcome(_Name):
    """How an operation succeeded."""

    DONE = auto()
    ALREADY_DONE = auto()


class StopMode(_Name):
    """Ask the guest, or force the VM off at once."""

    GRACEFUL = auto()
    FORCE = auto()


class OnGraceExpired(_Name):
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


@dataclass(frozen=True, slots=True, kw_only=True)
class HypervisorFacts:
    """What the present connection says of itself; sizes of the host as libvirt counts them."""

    libvirt_version: str
    hypervisor_version: str
    host_cpus: int
    host_memory_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Cursor:
    """A place in a journal: everything up to `revision` has been seen."""

    journal_id: JournalId
    revision: Revision


@dataclass(frozen=True, slots=True, kw_only=True)
class HistoryFilter:
    """Which transitions to read. None means no bound; all bounds but `max_time` are included."""

    vm: VmUuid | None = None
    min_revision: Revision | None = None
    max_revision: Revision | None = None
    min_time: datetime | None = None
    max_time: datetime | None = None
    oldest_first: bool = False
