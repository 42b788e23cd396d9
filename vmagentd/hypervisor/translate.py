"""libvirt's numbers and errors in our words: three total tables and the border of the package.

Runs in any thread; pure but for the errors it raises. Never judges by an error's text: wording
changes between versions, numbers never do. The tables name libvirt's numbers as its public
headers do, since an older libvirt-python lacks some names; tests compare with those it has.
"""

from __future__ import annotations

import errno
from contextlib import contextmanager
from typing import TYPE_CHECKING, TypeAlias

import libvirt

from vmagentd.errors import (
    HostExhausted,
    HypervisorError,
    LibvirtBusy,
    LibvirtDenied,
    LibvirtInvalidState,
    LibvirtRefused,
    LibvirtUnreachable,
    LibvirtUnsupported,
    OutcomeUnknown,
    VmNotFound,
)
from vmagentd.model import EventKind, Reason, VmState

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from vmagentd.model import VmUuid

# An event's number, then its details by their numbers, from 0.
EVENTS: dict[int, tuple[EventKind, ...]] = {
    # DEFINED: ADDED, UPDATED, RENAMED, FROM_SNAPSHOT
    0: (
        EventKind.DEFINED,
        EventKind.DEFINED,
        EventKind.DEFINED_RENAMED,
        EventKind.DEFINED,
    ),
    # UNDEFINED
    1: (EventKind.UNDEFINED, EventKind.UNDEFINED_RENAMED),
    # STARTED
    2: (
        EventKind.STARTED_BOOTED,
        EventKind.STARTED_MIGRATED,
        EventKind.STARTED_RESTORED,
        EventKind.STARTED_FROM_SNAPSHOT,
        EventKind.STARTED_WAKEUP,
    ),
    # SUSPENDED
    3: (
        EventKind.SUSPENDED_PAUSED,
        EventKind.SUSPENDED_MIGRATED,
        EventKind.SUSPENDED_IOERROR,
        EventKind.SUSPENDED_WATCHDOG,
        EventKind.SUSPENDED_RESTORED,
        EventKind.SUSPENDED_FROM_SNAPSHOT,
        EventKind.SUSPENDED_API_ERROR,
        EventKind.SUSPENDED_POSTCOPY,
        EventKind.SUSPENDED_POSTCOPY_FAILED,
    ),
    # RESUMED
    4: (
        EventKind.RESUMED_UNPAUSED,
        EventKind.RESUMED_MIGRATED,
        EventKind.RESUMED_FROM_SNAPSHOT,
        EventKind.RESUMED_POSTCOPY,
        EventKind.RESUMED_POSTCOPY_FAILED,
    ),
    # STOPPED
    5: (
        EventKind.STOPPED_SHUTDOWN,
        EventKind.STOPPED_DESTROYED,
        EventKind.STOPPED_CRASHED,
        EventKind.STOPPED_MIGRATED,
        EventKind.STOPPED_SAVED,
        EventKind.STOPPED_FAILED,
        EventKind.STOPPED_FROM_SNAPSHOT,
    ),
    # SHUTDOWN: FINISHED is what hypervisors say that do not tell the guest from the host
    6: (EventKind.SHUTDOWN_GUEST, EventKind.SHUTDOWN_GUEST, EventKind.SHUTDOWN_HOST),
    # PMSUSPENDED
    7: (EventKind.PMSUSPENDED_MEMORY, EventKind.PMSUSPENDED_DISK),
    # CRASHED
    8: (EventKind.CRASHED_PANICKED, EventKind.CRASHED_CRASHLOADED),
}

_UNKNOWN_STOP = (VmState.STOPPED, Reason.UNKNOWN)

# A state's number, then what it means with each of its reasons by their numbers, from 0.
STATES: dict[int, tuple[tuple[VmState, Reason], ...]] = {
    # NOSTATE: the hypervisor itself does not know
    0: ((VmState.UNRECOGNIZED, Reason.UNKNOWN),),
    # RUNNING
    1: (
        (VmState.RUNNING, Reason.UNKNOWN),
        (VmState.RUNNING, Reason.BOOTED),
        (VmState.RUNNING, Reason.MIGRATED_IN),
        (VmState.RUNNING, Reason.RESTORED),
        (VmState.RUNNING, Reason.REVERTED),
        (VmState.RUNNING, Reason.UNPAUSED),
        (VmState.RUNNING, Reason.MIGRATION_CANCELED),
        (VmState.RUNNING, Reason.SAVE_CANCELED),
        (VmState.RUNNING, Reason.WOKE_UP),
        (VmState.RUNNING, Reason.RESTARTED_AFTER_PANIC),
        (VmState.RUNNING, Reason.POSTCOPY),
        (VmState.RUNNING, Reason.POSTCOPY_FAILED),
    ),
    # BLOCKED: runs, and waits for something at this instant (Xen)
    2: ((VmState.RUNNING, Reason.UNKNOWN),),
    # PAUSED
    3: (
        (VmState.PAUSED, Reason.UNKNOWN),
        (VmState.PAUSED, Reason.PAUSED_BY_USER),
        (VmState.PAUSED, Reason.MIGRATING),
        (VmState.PAUSED, Reason.SAVING),
        (VmState.PAUSED, Reason.DUMPING),
        (VmState.PAUSED, Reason.IO_ERROR),
        (VmState.PAUSED, Reason.WATCHDOG),
        (VmState.PAUSED, Reason.REVERTED),
        (VmState.PAUSED, Reason.SHUTTING_DOWN),
        (VmState.PAUSED, Reason.SNAPSHOTTING),
        (VmState.PAUSED, Reason.GUEST_PANIC),
        # QEMU exists and has not run an instruction: every start passes here
        (VmState.STARTING, Reason.STARTING_UP),
        (VmState.PAUSED, Reason.POSTCOPY),
        (VmState.PAUSED, Reason.POSTCOPY_FAILED),
        (VmState.PAUSED, Reason.API_ERROR),
    ),
    # SHUTDOWN: the guest is off or going off, the process is still there
    4: ((VmState.STOPPING, Reason.UNKNOWN), (VmState.STOPPING, Reason.GUEST_SHUTDOWN)),
    # SHUTOFF
    5: (
        _UNKNOWN_STOP,
        (VmState.STOPPED, Reason.CLEAN_SHUTDOWN),
        (VmState.STOPPED, Reason.FORCED),
        (VmState.CRASHED, Reason.PROCESS_DIED),
        (VmState.MIGRATED_AWAY, Reason.MIGRATED_AWAY),
        (VmState.SAVED, Reason.SAVED),
        (VmState.STOPPED, Reason.START_FAILED),
        (VmState.STOPPED, Reason.REVERTED),
        (VmState.STOPPED, Reason.STOPPED_BY_LIBVIRTD),
    ),
    # CRASHED: the guest panicked, the process was kept; without a reason it is the same
    6: ((VmState.CRASHED, Reason.UNKNOWN), (VmState.CRASHED, Reason.GUEST_PANIC)),
    # PMSUSPENDED
    7: ((VmState.SLEEPING, Reason.UNKNOWN),),
}

Refusal: TypeAlias = (
    LibvirtInvalidState
    | LibvirtBusy
    | LibvirtDenied
    | LibvirtUnsupported
    | HostExhausted
    | LibvirtRefused
)

NO_DOMAIN = 42
# The call was not made: NO_CONNECT, no driver takes the URI; INVALID_CONN, the link was closed.
NO_LINK = frozenset({5, 6})
# What every other error number means. One without a row here is a LibvirtRefused: its text says
# more than any type of ours would.
ERRORS: dict[int, type[Refusal]] = {
    55: LibvirtInvalidState,  # OPERATION_INVALID
    68: LibvirtBusy,  # OPERATION_TIMEOUT: the VM's job lock could not be had within 30 s
    83: LibvirtBusy,  # BLOCK_COPY_ACTIVE: a job on the VM's disk excludes the call
    87: LibvirtBusy,  # RESOURCE_BUSY
    29: LibvirtDenied,  # OPERATION_DENIED: read-only connection
    45: LibvirtDenied,  # AUTH_FAILED: polkit or SASL said no
    79: LibvirtDenied,  # AUTH_CANCELLED
    88: LibvirtDenied,  # ACCESS_DENIED: the driver's own access control
    94: LibvirtDenied,  # AUTH_UNAVAILABLE: nobody there to ask, e.g. no polkit agent
    3: LibvirtUnsupported,  # NO_SUPPORT: the driver lacks the call
    8: LibvirtUnsupported,  # INVALID_ARG: so drivers answer a flag they lack; ours are well-formed
    67: LibvirtUnsupported,  # CONFIG_UNSUPPORTED: the driver or QEMU lacks what the VM wants
    74: LibvirtUnsupported,  # ARGUMENT_UNSUPPORTED: e.g. agent shutdown without an agent device
    84: LibvirtUnsupported,  # OPERATION_UNSUPPORTED
    91: LibvirtUnsupported,  # CPU_INCOMPATIBLE: this host's CPU cannot be what the VM wants
    2: HostExhausted,  # NO_MEMORY
}

_INTERNAL_ERROR = 1
_SYSTEM_ERROR = 38
_RPC = 39
_FROM_RPC = 7
_FROM_TEST = 12
# Pairs of number and libvirt domain that need more than the number. libvirt's test driver calls
# a start of what already runs an internal error.
_PAIRS: dict[tuple[int, int], type[Refusal]] = {
    (_INTERNAL_ERROR, _FROM_TEST): LibvirtInvalidState,
}
# With these the link may be dead. It need not be: libvirtd forwards the same pairs from its own
# connections, e.g. to virtlogd. Only the link itself knows.
_LINK_PAIRS = frozenset({(_INTERNAL_ERROR, _FROM_RPC), (_SYSTEM_ERROR, _FROM_RPC)})
# `int1` of a SYSTEM_ERROR is an errno
_EXHAUSTED = frozenset({
    errno.ENOMEM, errno.ENOSPC, errno.EDQUOT, errno.EMFILE, errno.ENFILE, errno.EAGAIN,
})  # fmt: skip


def event_kind(event: int, detail: int, *, says_resumed: bool = True) -> EventKind:
    """Return what a lifecycle event means; UNRECOGNIZED for numbers newer than this table.

    Args:
        event: libvirt's number of the event.
        detail: libvirt's number of its detail.
        says_resumed: whether the driver says RESUMED when the guest of a start runs. QEMU's
            does, before STARTED, so one without it was started paused. Others say STARTED alone.
    """
    details = EVENTS.get(event, ())
    kind = details[detail] if 0 <= detail < len(details) else EventKind.UNRECOGNIZED
    if kind is EventKind.STARTED_BOOTED and not says_resumed:
        return EventKind.STARTED_RUNNING
    return kind


def state_and_reason(state: int, reason: int) -> tuple[VmState, Reason]:
    """Return what a state and its reason mean.

    A new reason of a known state leaves the state as it is known, with reason UNKNOWN; a new
    state is UNRECOGNIZED.
    """
    reasons = STATES.get(state)
    if reasons is None:
        return VmState.UNRECOGNIZED, Reason.UNKNOWN
    return reasons[reason] if 0 <= reason < len(reasons) else (reasons[0][0], Reason.UNKNOWN)


def refusal(code: int, domain: int, int1: int = 0) -> type[Refusal]:
    """Return what an error means that libvirt answered with; total over every number."""
    if code == _SYSTEM_ERROR and int1 in _EXHAUSTED:
        return HostExhausted
    return _PAIRS.get((code, domain)) or ERRORS.get(code, LibvirtRefused)


@contextmanager
def libvirt_errors(
    vm: VmUuid | None = None, *, alive: Callable[[], bool], effect: str | None = None
) -> Iterator[None]:
    """Turn an error of libvirt into one of ours; used around every call.

    Args:
        vm: the VM that the call is about.
        alive: whether the link still works; asked only when the error could be the link's.
        effect: name of the call, if it changes something: broken off in the middle, nobody
            knows whether it did.
    """
    try:
        yield
    except libvirt.libvirtError as error:
        raise _translated(error, vm, alive, effect) from error


def _translated(
    error: libvirt.libvirtError, vm: VmUuid | None, alive: Callable[[], bool], effect: str | None
) -> HypervisorError | VmNotFound:
    if error.err is None:  # the call failed and libvirt did not say why
        return LibvirtRefused(vm, 0, 0, str(error))
    code, domain, message = error.err[0], error.err[1], str(error.err[2])
    broken = code == _RPC or ((code, domain) in _LINK_PAIRS and not alive())
    if broken and effect is not None:
        return OutcomeUnknown(vm, effect, f"the link to libvirt broke: {message}")
    if broken or code in NO_LINK:
        return LibvirtUnreachable(message)
    if code == NO_DOMAIN:
        return VmNotFound(vm or message)
    return refusal(code, domain, error.err[7] or 0)(vm, code, domain, message)
