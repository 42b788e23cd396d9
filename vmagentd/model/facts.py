"""What libvirt says and answers: the facts that transitions are made of."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import auto

from vmagentd.model.names import Name, OperationId, VmUuid
from vmagentd.model.vm import RawPair, Reason, Source, Unresponsive, VmState


class EventKind(Name):
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
    # something in libvirt's control of the process failed: a start, for one. It tells no state.
    CONTROL_ERROR = auto()
    # These tell who, not what; see `lifecycle.trails`. AGENT is libvirt's, the others QEMU's own.
    AGENT_CONNECTED = auto()
    POWER_BUTTON = auto()
    GUEST_FINISHED = auto()
    RESET_BY_GUEST = auto()
    RESET_BY_HOST = auto()
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
    # what its hypervisor process has used of all CPUs so far; None if there is none, or
    # libvirt does not tell
    cpu_time: timedelta | None = None
    # set if its hypervisor process does not answer libvirt
    unresponsive: Unresponsive | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Survey:
    """The answer of one complete listing: VMs that are not in it are not in libvirt."""

    sightings: tuple[Sighting, ...]
    # VMs that are there and could not be read: neither seen nor missing
    unreadable: tuple[VmUuid, ...] = ()
    # counts the surveys and queries of this process as they begin, from 1: of two answers on a VM
    # the one that began first may be older
    number: int
    # number of the last event taken before it began
    after_event: int
    begin_time: datetime
    # number of the link that it went through
    link: int
    # whether QEMU's own events are heard through that link beside libvirt's
    monitored: bool = False

    def query(self, vm: VmUuid, sighting: Sighting | None) -> Query:
        """Return it as the answer on one VM."""
        return Query(
            vm=vm,
            sighting=sighting,
            number=self.number,
            after_event=self.after_event,
            begin_time=self.begin_time,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Query:
    """The answer of one look-up: `sighting` is None if libvirt does not know the VM."""

    vm: VmUuid
    sighting: Sighting | None
    # both as in `Survey`
    number: int
    after_event: int
    begin_time: datetime
    # why it was asked: OPERATION if an operation did, else SURVEY
    source: Source = Source.SURVEY


@dataclass(frozen=True, slots=True, kw_only=True)
class Answered:
    """libvirt says that it has done what an operation asked it for last."""

    vm: VmUuid
    operation: OperationId
    time: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class LinkLost:
    """libvirt cannot be asked from this time on."""

    time: datetime
    cause: str
    # links are counted from 1; 0: there was none yet
    link: int


@dataclass(frozen=True, slots=True, kw_only=True)
class EventsLost:
    """Some events of a VM could not be kept, up to the one of that number."""

    vm: VmUuid
    until_event: int


@dataclass(frozen=True, slots=True, kw_only=True)
class HostBooted:
    """The host's present boot, by the kernel's name for it.

    Another one than before proves that every hypervisor process of before has ended.
    """

    time: datetime
    boot_id: str


@dataclass(frozen=True, slots=True, kw_only=True)
class HostGoingDown:
    """Whether the host is going down, from this time on."""

    time: datetime
    going_down: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class HypervisorFacts:
    """What the present connection says of itself; sizes of the host as libvirt counts them."""

    libvirt_version: str
    hypervisor_version: str
    host_cpus: int
    host_memory_bytes: int
