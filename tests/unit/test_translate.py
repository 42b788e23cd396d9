"""The tables against every constant of the libvirt that is installed."""

import errno
import re

import libvirt
import pytest
from vmagent.v1.error_reason_pb2 import ErrorReason

from vmagentd.api import status
from vmagentd.errors import (
    HostExhausted,
    LibvirtBusy,
    LibvirtDenied,
    LibvirtInvalidState,
    LibvirtRefused,
    LibvirtUnreachable,
    LibvirtUnsupported,
    OutcomeUnknown,
    VmagentdError,
    VmNotFound,
)
from vmagentd.hypervisor.translate import (
    ERRORS,
    EVENTS,
    NO_DOMAIN,
    NO_LINK,
    STATES,
    event_kind,
    libvirt_errors,
    refusal,
    state_and_reason,
)
from vmagentd.model import EventKind, Reason, VmState, VmUuid

VM = VmUuid("c7a5fdbd-edaf-9455-926a-d65c16db1809")
ALL = {name: number for name, number in vars(libvirt).items() if isinstance(number, int)}


def family(prefix: str) -> dict[str, int]:
    """Return the constants `PREFIX_*` by what follows the prefix."""
    found = {
        name.removeprefix(prefix): number
        for name, number in ALL.items()
        if name.startswith(prefix)
    }
    assert found, f"libvirt has no {prefix}*"
    return found


# `VIR_DOMAIN_EVENT_ID_*` and names with a further word are other families of numbers.
EVENT_NUMBERS = {
    name: ALL[f"VIR_DOMAIN_EVENT_{name}"]
    for name in (
        [
            "DEFINED",
            "UNDEFINED",
            "STARTED",
            "SUSPENDED",
            "RESUMED",
            "STOPPED",
            "SHUTDOWN",
            "PMSUSPENDED",
            "CRASHED",
        ]
    )
}
STATE_NUMBERS = {
    name: ALL[f"VIR_DOMAIN_{name}"]
    for name in [
        "NOSTATE",
        "RUNNING",
        "BLOCKED",
        "PAUSED",
        "SHUTDOWN",
        "SHUTOFF",
        "CRASHED",
        "PMSUSPENDED",
    ]
}
# Flags of virDomainShutdownFlags, not reasons of the state SHUTDOWN.
NOT_A_REASON = {
    f"VIR_DOMAIN_SHUTDOWN_{name}"
    for name in ["DEFAULT", "ACPI_POWER_BTN", "GUEST_AGENT", "INITCTL", "SIGNAL", "PARAVIRT"]
} | {"VIR_DOMAIN_PMSUSPENDED_DISK_UNKNOWN"}  # of a state that never was

DETAILS = [
    pytest.param(number, detail, id=f"{event}_{name}")
    for event, number in EVENT_NUMBERS.items()
    for name, detail in family(f"VIR_DOMAIN_EVENT_{event}_").items()
]
REASONS = [
    pytest.param(number, reason, id=f"{state}_{name}")
    for state, number in STATE_NUMBERS.items()
    for name, reason in family(f"VIR_DOMAIN_{state}_").items()
    if f"VIR_DOMAIN_{state}_{name}" not in NOT_A_REASON
]
CODES = {
    name: number
    for name, number in family("VIR_ERR_").items()
    if name not in {"NONE", "WARNING", "ERROR"}  # levels, not numbers of errors
}


@pytest.mark.parametrize(("event", "detail"), DETAILS)
def test_every_event_has_a_row(event: int, detail: int) -> None:
    assert event_kind(event, detail) is not EventKind.UNRECOGNIZED


def test_every_event_number_of_libvirt_is_known() -> None:
    last = max(EVENT_NUMBERS.values())
    assert sorted(EVENT_NUMBERS.values()) == sorted(EVENTS) == list(range(last + 1))


def test_an_event_says_what_its_name_says() -> None:
    """The table is by position: a row too many would shift all that follow."""
    odd = {"DEFINED_ADDED", "DEFINED_UPDATED", "DEFINED_FROM_SNAPSHOT", "UNDEFINED_REMOVED"}
    odd |= {"SHUTDOWN_FINISHED"}
    for event, number in EVENT_NUMBERS.items():
        for name, detail in family(f"VIR_DOMAIN_EVENT_{event}_").items():
            if f"{event}_{name}" not in odd:
                assert event_kind(number, detail) == f"{event}_{name}"
    assert event_kind(0, libvirt.VIR_DOMAIN_EVENT_DEFINED_UPDATED) is EventKind.DEFINED
    assert event_kind(6, libvirt.VIR_DOMAIN_EVENT_SHUTDOWN_FINISHED) is EventKind.SHUTDOWN_GUEST


@pytest.mark.parametrize(("event", "detail"), [(99, 0), (-1, 0), (5, 99), (5, -1)])
def test_a_new_event_is_unrecognized(event: int, detail: int) -> None:
    assert event_kind(event, detail) is EventKind.UNRECOGNIZED


@pytest.mark.parametrize(("state", "reason"), REASONS)
def test_every_state_and_reason_has_a_row(state: int, reason: int) -> None:
    assert reason < len(STATES[state])
    assert (state_and_reason(state, reason)[0] is VmState.UNRECOGNIZED) == (state == 0)


SAME_NAME = [
    "RUNNING_BOOTED", "RUNNING_RESTORED", "RUNNING_UNPAUSED", "RUNNING_MIGRATION_CANCELED",
    "RUNNING_SAVE_CANCELED", "RUNNING_POSTCOPY", "RUNNING_POSTCOPY_FAILED", "PAUSED_WATCHDOG",
    "PAUSED_SHUTTING_DOWN", "PAUSED_POSTCOPY", "PAUSED_POSTCOPY_FAILED",
]  # fmt: skip
OTHER_NAME = {
    "NOSTATE_UNKNOWN": (VmState.UNRECOGNIZED, Reason.UNKNOWN),
    "RUNNING_MIGRATED": (VmState.RUNNING, Reason.MIGRATED_IN),
    "RUNNING_FROM_SNAPSHOT": (VmState.RUNNING, Reason.REVERTED),
    "RUNNING_WAKEUP": (VmState.RUNNING, Reason.WOKE_UP),
    "RUNNING_CRASHED": (VmState.RUNNING, Reason.RESTARTED_AFTER_PANIC),
    "BLOCKED_UNKNOWN": (VmState.RUNNING, Reason.UNKNOWN),
    "PAUSED_USER": (VmState.PAUSED, Reason.PAUSED_BY_USER),
    "PAUSED_MIGRATION": (VmState.PAUSED, Reason.MIGRATING),
    "PAUSED_SAVE": (VmState.PAUSED, Reason.SAVING),
    "PAUSED_DUMP": (VmState.PAUSED, Reason.DUMPING),
    "PAUSED_IOERROR": (VmState.PAUSED, Reason.IO_ERROR),
    "PAUSED_FROM_SNAPSHOT": (VmState.PAUSED, Reason.REVERTED),
    "PAUSED_SNAPSHOT": (VmState.PAUSED, Reason.SNAPSHOTTING),
    "PAUSED_CRASHED": (VmState.PAUSED, Reason.GUEST_PANIC),
    "PAUSED_STARTING_UP": (VmState.STARTING, Reason.STARTING_UP),
    "SHUTDOWN_UNKNOWN": (VmState.STOPPING, Reason.UNKNOWN),
    "SHUTDOWN_USER": (VmState.STOPPING, Reason.GUEST_SHUTDOWN),
    "SHUTOFF_UNKNOWN": (VmState.STOPPED, Reason.UNKNOWN),
    "SHUTOFF_SHUTDOWN": (VmState.STOPPED, Reason.CLEAN_SHUTDOWN),
    "SHUTOFF_DESTROYED": (VmState.STOPPED, Reason.FORCED),
    "SHUTOFF_CRASHED": (VmState.CRASHED, Reason.PROCESS_DIED),
    "SHUTOFF_MIGRATED": (VmState.MIGRATED_AWAY, Reason.MIGRATED_AWAY),
    "SHUTOFF_SAVED": (VmState.SAVED, Reason.SAVED),
    "SHUTOFF_FAILED": (VmState.STOPPED, Reason.START_FAILED),
    "SHUTOFF_FROM_SNAPSHOT": (VmState.STOPPED, Reason.REVERTED),
    "SHUTOFF_DAEMON": (VmState.STOPPED, Reason.STOPPED_BY_LIBVIRTD),
    "CRASHED_UNKNOWN": (VmState.CRASHED, Reason.UNKNOWN),
    "CRASHED_PANICKED": (VmState.CRASHED, Reason.GUEST_PANIC),
    "PMSUSPENDED_UNKNOWN": (VmState.SLEEPING, Reason.UNKNOWN),
}


def numbers(name: str) -> tuple[int, int]:
    return ALL[f"VIR_DOMAIN_{name.partition('_')[0]}"], ALL[f"VIR_DOMAIN_{name}"]


@pytest.mark.parametrize("name", SAME_NAME)
def test_a_reason_of_the_same_name(name: str) -> None:
    state, _, reason = name.partition("_")
    assert state_and_reason(*numbers(name)) == (VmState(state), Reason(reason))


@pytest.mark.parametrize(("name", "meaning"), OTHER_NAME.items())
def test_a_reason_of_another_name(name: str, meaning: tuple[VmState, Reason]) -> None:
    assert state_and_reason(*numbers(name)) == meaning


def test_a_new_state_is_unrecognized_and_a_new_reason_leaves_the_state() -> None:
    assert state_and_reason(99, 0) == (VmState.UNRECOGNIZED, Reason.UNKNOWN)
    assert state_and_reason(-1, 0) == (VmState.UNRECOGNIZED, Reason.UNKNOWN)
    assert state_and_reason(1, 99) == (VmState.RUNNING, Reason.UNKNOWN)
    assert state_and_reason(5, -1) == (VmState.STOPPED, Reason.UNKNOWN)


def libvirt_error(code: int, domain: int = 10, int1: int = 0) -> libvirt.libvirtError:
    error = libvirt.libvirtError("call failed")
    error.err = (code, domain, "why", 2, None, None, None, int1, -1)
    return error


def translated(
    error: libvirt.libvirtError, *, alive: bool = True, effect: str | None = None
) -> VmagentdError:
    with (
        pytest.raises(VmagentdError) as raised,
        libvirt_errors(VM, alive=lambda: alive, effect=effect),
    ):
        raise error
    assert raised.value.__cause__ is error
    return raised.value


# Reviewed one by one: these have no better type than "libvirt refused", with libvirt's text.
# Most are about other things than VMs and cannot come from any call of ours.
REFUSED = {
    "AGENT_UNRESPONSIVE", "AGENT_UNSYNCED", "AUTH_CANCELED", "BUILD_FIREWALL", "CALL_FAILED",
    "CHECKPOINT_INCONSISTENT", "CONF_SYNTAX", "DBUS_SERVICE", "DEVICE_MISSING", "DOM_EXIST",
    "DRIVER_FULL", "GET_FAILED", "GNUTLS_ERROR", "HOOK_SCRIPT_FAILED", "HTTP_ERROR",
    "INTERNAL_ERROR", "INVALID_DOMAIN", "INVALID_DOMAIN_CHECKPOINT", "INVALID_DOMAIN_SNAPSHOT",
    "INVALID_INTERFACE", "INVALID_MAC", "INVALID_NETWORK", "INVALID_NETWORK_PORT",
    "INVALID_NODE_DEVICE", "INVALID_NWFILTER", "INVALID_NWFILTER_BINDING", "INVALID_SECRET",
    "INVALID_STORAGE_POOL", "INVALID_STORAGE_VOL", "INVALID_STREAM", "LIBSSH",
    "MIGRATE_FINISH_OK", "MIGRATE_PERSIST_FAILED", "MIGRATE_UNSAFE", "MULTIPLE_DOMAINS",
    "MULTIPLE_INTERFACES", "NETWORK_EXIST", "NETWORK_PORT_EXIST", "NO_CLIENT", "NO_DEVICE",
    "NO_DOMAIN_BACKUP", "NO_DOMAIN_CHECKPOINT", "NO_DOMAIN_METADATA", "NO_DOMAIN_SNAPSHOT",
    "NO_HOSTNAME", "NO_INTERFACE", "NO_KERNEL", "NO_NAME", "NO_NETWORK", "NO_NETWORK_METADATA",
    "NO_NETWORK_PORT", "NO_NODE_DEVICE", "NO_NWFILTER", "NO_NWFILTER_BINDING", "NO_OS",
    "NO_ROOT", "NO_SECRET", "NO_SECURITY_MODEL", "NO_SERVER", "NO_SOURCE", "NO_STORAGE_POOL",
    "NO_STORAGE_VOL", "NO_TARGET", "NO_XEN", "NO_XENSTORE", "OPEN_FAILED", "OPERATION_ABORTED",
    "OPERATION_FAILED", "OS_TYPE", "OVERFLOW", "PARSE_FAILED", "POST_FAILED", "READ_FAILED",
    "SEXPR_SERIAL", "SNAPSHOT_REVERT_RISKY", "SSH", "STORAGE_POOL_BUILT",
    "STORAGE_PROBE_FAILED", "STORAGE_VOL_EXIST", "SYSTEM_ERROR", "UNKNOWN_HOST",
    "WRITE_FAILED", "XEN_CALL", "XML_DETAIL", "XML_ERROR", "XML_INVALID_SCHEMA",
}  # fmt: skip


@pytest.mark.parametrize(("name", "code"), [(n, c) for n, c in CODES.items() if n != "OK"])
def test_every_error_number_was_reviewed(name: str, code: int) -> None:
    link = code in NO_LINK or name == "RPC"
    assert (code in ERRORS) + (code == NO_DOMAIN) + link + (name in REFUSED) == 1
    error = translated(libvirt_error(code))
    assert re.search("why|outcome|no VM", str(error))
    assert isinstance(error, LibvirtRefused) == (name in REFUSED)


@pytest.mark.parametrize(
    ("code", "meaning"),
    [
        (libvirt.VIR_ERR_NO_DOMAIN, VmNotFound),
        (libvirt.VIR_ERR_OPERATION_INVALID, LibvirtInvalidState),
        (libvirt.VIR_ERR_OPERATION_TIMEOUT, LibvirtBusy),
        (libvirt.VIR_ERR_RESOURCE_BUSY, LibvirtBusy),
        (libvirt.VIR_ERR_BLOCK_COPY_ACTIVE, LibvirtBusy),
        (libvirt.VIR_ERR_AUTH_FAILED, LibvirtDenied),
        (libvirt.VIR_ERR_AUTH_UNAVAILABLE, LibvirtDenied),
        (libvirt.VIR_ERR_AUTH_CANCELLED, LibvirtDenied),
        (libvirt.VIR_ERR_ACCESS_DENIED, LibvirtDenied),
        (libvirt.VIR_ERR_OPERATION_DENIED, LibvirtDenied),
        (libvirt.VIR_ERR_NO_SUPPORT, LibvirtUnsupported),
        (libvirt.VIR_ERR_CONFIG_UNSUPPORTED, LibvirtUnsupported),
        (libvirt.VIR_ERR_ARGUMENT_UNSUPPORTED, LibvirtUnsupported),
        (libvirt.VIR_ERR_OPERATION_UNSUPPORTED, LibvirtUnsupported),
        (libvirt.VIR_ERR_INVALID_ARG, LibvirtUnsupported),
        (libvirt.VIR_ERR_CPU_INCOMPATIBLE, LibvirtUnsupported),
        (libvirt.VIR_ERR_NO_MEMORY, HostExhausted),
        (libvirt.VIR_ERR_NO_CONNECT, LibvirtUnreachable),
        (libvirt.VIR_ERR_INVALID_CONN, LibvirtUnreachable),
        (libvirt.VIR_ERR_INTERNAL_ERROR, LibvirtRefused),
        (12345, LibvirtRefused),
    ],
)
def test_an_error_of_a_live_link(code: int, meaning: type[VmagentdError]) -> None:
    assert type(translated(libvirt_error(code), effect="start")) is meaning


FROM = family("VIR_FROM_")
DOCUMENTED = {name.removeprefix("ERROR_REASON_") for name in ErrorReason.keys()}  # noqa: SIM118
# What each pair of number and libvirt domain means beside what the number alone does.
OTHER_MEANING = {(libvirt.VIR_ERR_INTERNAL_ERROR, libvirt.VIR_FROM_TEST)}


@pytest.mark.parametrize("effect", [None, "start"])
@pytest.mark.parametrize("alive", [True, False])
def test_every_number_of_every_domain_has_a_documented_reason(
    *, alive: bool, effect: str | None
) -> None:
    pairs = [(code, domain) for code in CODES.values() for domain in FROM.values() if code]
    assert len(pairs) > 100 * 60
    for code, domain in pairs:
        error = translated(libvirt_error(code, domain), alive=alive, effect=effect)
        assert status.tells(error)
        assert status.TABLE[type(error)].reason in DOCUMENTED
        if alive and (code, domain) not in OTHER_MEANING:
            assert type(error) is type(translated(libvirt_error(code), effect=effect))


def test_a_refusal_carries_libvirts_numbers_and_words() -> None:
    error = translated(libvirt_error(libvirt.VIR_ERR_OPERATION_FAILED, 10))
    assert error.facts == {
        "vm": VM,
        "libvirt_code": "9",
        "libvirt_domain": "10",
        "libvirt_message": "why",
    }


def test_the_test_driver_calls_a_second_start_an_internal_error() -> None:
    code = libvirt.VIR_ERR_INTERNAL_ERROR
    assert refusal(code, libvirt.VIR_FROM_TEST) is LibvirtInvalidState
    assert refusal(code, libvirt.VIR_FROM_QEMU) is LibvirtRefused


@pytest.mark.parametrize("number", [errno.ENOMEM, errno.ENOSPC, errno.EMFILE])
def test_what_the_host_lacks_is_known_by_its_errno(number: int) -> None:
    assert refusal(libvirt.VIR_ERR_SYSTEM_ERROR, 0, number) is HostExhausted
    assert refusal(libvirt.VIR_ERR_SYSTEM_ERROR, 0, errno.EACCES) is LibvirtRefused


LINK_PAIRS = [
    (libvirt.VIR_ERR_INTERNAL_ERROR, libvirt.VIR_FROM_RPC),
    (libvirt.VIR_ERR_SYSTEM_ERROR, libvirt.VIR_FROM_RPC),
]


@pytest.mark.parametrize(("code", "domain"), LINK_PAIRS)
def test_a_broken_link_leaves_a_query_unanswered_and_a_change_unknown(
    code: int, domain: int
) -> None:
    error = libvirt_error(code, domain)
    assert type(translated(error, alive=False)) is LibvirtUnreachable
    assert type(translated(error, alive=False, effect="start")) is OutcomeUnknown


@pytest.mark.parametrize(("code", "domain"), LINK_PAIRS)
def test_libvirtds_own_broken_link_is_not_ours(code: int, domain: int) -> None:
    """It says the same when it cannot reach virtlogd."""
    assert type(translated(libvirt_error(code, domain), effect="start")) is LibvirtRefused


def test_after_a_protocol_error_nobody_knows() -> None:
    error = libvirt_error(libvirt.VIR_ERR_RPC, libvirt.VIR_FROM_RPC)
    assert type(translated(error)) is LibvirtUnreachable
    assert type(translated(error, effect="destroy")) is OutcomeUnknown


def test_an_error_without_facts_is_a_refusal() -> None:
    error = libvirt.libvirtError("call failed")
    error.err = None
    assert type(translated(error)) is LibvirtRefused
