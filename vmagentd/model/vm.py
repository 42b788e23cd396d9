"""A VM, and a transition of it."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import auto

from vmagentd.model.names import NO_REVISION, Name, OperationId, Revision, VmUuid
from vmagentd.model.operation import OperationPhase


class VmState(Name):
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


class Reason(Name):
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


class InitiatorKind(Name):
    """Kind of party that caused something."""

    CLIENT = auto()
    GUEST = auto()
    OUT_OF_BAND = auto()
    HOST_SHUTDOWN = auto()
    LIBVIRT = auto()
    UNKNOWN = auto()


class Source(Name):
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
    # what that process had used of all CPUs when a query last found it: one that has used less is
    # another one, whatever its number. Never shown; older in the file than in memory.
    cpu_time: timedelta | None = None
    unresponsive: Unresponsive | None = None
    active_operation_id: OperationId | None = None
    vcpus: int = 0
    memory_bytes: int = 0
    last_start_error: StartError | None = None
    raw_state: RawPair | None = None
    # 0 only before the writer has numbered it
    revision: Revision = NO_REVISION


class TransitionKind(Name):
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
    # set if it changed the name. For ourselves: whoever sees one of both names is shown this
    # transition, and may not see the other
    previous_name: str | None = None
    time: datetime
    source: Source
    # set = late: it happened between this time and `time`
    earliest_time: datetime | None = None
    raw_event: RawPair | None = None
    operation_id: OperationId | None = None
    operation_phase: OperationPhase | None = None
