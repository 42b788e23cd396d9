"""At rest: what the journal says of every VM must be what libvirt says.

The table from libvirt's states to ours is this module's own; it knows the contract and libvirt's
manual, not the daemon.
"""

import contextlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Final

import libvirt
from vmagent.v1.transition_pb2 import Transition, TransitionKind
from vmagent.v1.vm_pb2 import Vm, VmReason, VmState

from tests.system.chaos.model import state
from tests.system.chaos.players import RESTLESS, Player

# Off, by libvirt's reasons: our state, and our reasons. Of the first one libvirt knows nothing.
_OFF: Mapping[int, tuple[frozenset[str], frozenset[str]]] = MappingProxyType(
    {
        reason: (frozenset(states.split()), frozenset(reasons.split()))
        for reason, states, reasons in (
            (libvirt.VIR_DOMAIN_SHUTOFF_UNKNOWN, "STOPPED CRASHED", ""),
            (
                libvirt.VIR_DOMAIN_SHUTOFF_SHUTDOWN,
                "STOPPED",
                "CLEAN_SHUTDOWN KILLED_BY_HOST_SIGNAL",
            ),
            (libvirt.VIR_DOMAIN_SHUTOFF_DESTROYED, "STOPPED", "FORCED"),
            (libvirt.VIR_DOMAIN_SHUTOFF_CRASHED, "CRASHED", "PROCESS_DIED GUEST_PANIC"),
            (libvirt.VIR_DOMAIN_SHUTOFF_SAVED, "STOPPED", "SAVED"),
            (libvirt.VIR_DOMAIN_SHUTOFF_FAILED, "STOPPED", "START_FAILED"),
            (libvirt.VIR_DOMAIN_SHUTOFF_DAEMON, "STOPPED", "STOPPED_BY_LIBVIRTD"),
        )
    }
)
# Up, by libvirt's states and reasons; a reason that is not there leaves ours open.
_PAUSED: Mapping[int, tuple[str, str]] = MappingProxyType(
    {
        libvirt.VIR_DOMAIN_PAUSED_STARTING_UP: ("STARTING", ""),
        # RESTORED: it came back paused, then it was resumed and paused again while nobody
        # listened; the daemon keeps what it knew of the pause before
        libvirt.VIR_DOMAIN_PAUSED_USER: ("PAUSED", "PAUSED_BY_USER RESTORED"),
        libvirt.VIR_DOMAIN_PAUSED_CRASHED: ("PAUSED CRASHED", "GUEST_PANIC"),
        libvirt.VIR_DOMAIN_PAUSED_IOERROR: ("PAUSED", "IO_ERROR"),
    }
)
_STARTS: Final = (libvirt.VIR_DOMAIN_PAUSED, libvirt.VIR_DOMAIN_PAUSED_STARTING_UP)
_ACTIVE: Final = MappingProxyType(
    {
        libvirt.VIR_DOMAIN_RUNNING: "RUNNING",
        libvirt.VIR_DOMAIN_BLOCKED: "RUNNING",
        libvirt.VIR_DOMAIN_SHUTDOWN: "STOPPING",
        libvirt.VIR_DOMAIN_CRASHED: "CRASHED",
        libvirt.VIR_DOMAIN_PMSUSPENDED: "SLEEPING",
    }
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Truth:
    """A VM as libvirt has it."""

    uuid: str
    name: str
    raw: tuple[int, int]
    active: bool
    persistent: bool
    saved: bool


@dataclass(frozen=True, slots=True)
class Difference:
    """Something that libvirt and the journal do not agree on."""

    vm: str
    what: str


def truths(connection: Any) -> dict[str, Truth]:  # noqa: ANN401 - libvirt has no types
    """Ask libvirt for every VM.

    Raises:
        libvirtError: one went meanwhile.
    """
    found = (
        Truth(
            uuid=domain.UUIDString(),
            name=domain.name(),
            raw=tuple(domain.state()),
            active=bool(domain.isActive()),
            persistent=bool(domain.isPersistent()),
            saved=bool(domain.hasManagedSaveImage()),
        )
        for domain in connection.listAllDomains()
    )
    return {truth.uuid: truth for truth in found}


def differences(
    truths: Mapping[str, Truth], vms: Iterable[Vm], *, surveyed: bool
) -> list[Difference]:
    """Compare libvirt with what the daemon lists.

    Args:
        truths: what libvirt says.
        vms: what the daemon lists.
        surveyed: the daemon has looked; what no event tells it must know too.
    """
    listed = {vm.uuid: vm for vm in vms}
    found = []
    for uuid in truths.keys() | listed.keys():
        if uuid not in listed:
            found.append(Difference(uuid, f"not listed; libvirt has {truths[uuid]}"))
        elif uuid not in truths:
            found.append(Difference(uuid, f"listed as {_told(listed[uuid])}; libvirt has it not"))
        else:
            found += [
                Difference(uuid, what)
                for what in _differ(truths[uuid], listed[uuid], surveyed=surveyed)
            ]
    return found


def told_by_no_event(transition: Transition) -> bool:
    """Whether only a look could find that: another size since a guest's end; what is not saved."""
    dropped = transition.previous_state == VmState.VM_STATE_SAVED
    resized = transition.kind == TransitionKind.TRANSITION_KIND_DEFINITION
    return resized or (dropped and not transition.vm.active)


def calm(connection: Any, players: Iterable[Player]) -> bool:  # noqa: ANN401
    """Pause every guest that would act by itself; return whether there was nothing to wait for.

    What libvirt still starts, for a caller who took his wish back, is waited for too.
    """
    restless = {player.uuid for player in players if player.behaviour in RESTLESS}
    found = False
    for domain in connection.listAllDomains(libvirt.VIR_CONNECT_LIST_DOMAINS_ACTIVE):
        with contextlib.suppress(libvirt.libvirtError):  # off by now, or gone
            major, minor = domain.state()
            if (major, minor) == _STARTS:
                found = True
            elif major == libvirt.VIR_DOMAIN_RUNNING and domain.UUIDString() in restless:
                found = True
                domain.suspend()
    return not found


def _differ(truth: Truth, vm: Vm, *, surveyed: bool) -> Iterator[str]:
    states, reasons = _expected(truth)
    off = not truth.active and not truth.saved
    if off and not surveyed and state(vm) == "SAVED":  # no event tells that it was dropped
        return
    if state(vm) not in states:
        yield f"{_told(vm)}; libvirt has {truth}"
    reason = VmReason.Name(vm.reason).removeprefix("VM_REASON_")
    if reasons and reason not in reasons:
        yield f"for reason {_told(vm)}; libvirt has {truth}"
    if reason == "UNKNOWN" and truth.raw[1] and truth.raw[0] != libvirt.VIR_DOMAIN_CRASHED:
        yield f"for no reason {_told(vm)}; libvirt has {truth}"
    for name in ("name", "active", "persistent"):
        if getattr(vm, name) != getattr(truth, name):
            yield f"{name} {getattr(vm, name)}; libvirt has {truth}"


def _expected(truth: Truth) -> tuple[frozenset[str], frozenset[str]]:
    """Return which states, and which reasons if any, fit what libvirt says."""
    major, minor = truth.raw
    if major == libvirt.VIR_DOMAIN_SHUTOFF:
        if truth.saved:
            return frozenset({"SAVED"}), frozenset({"SAVED"})
        return _OFF[minor]
    if major == libvirt.VIR_DOMAIN_PAUSED:
        states, reasons = _PAUSED.get(minor, ("PAUSED", ""))
        return frozenset(states.split()), frozenset(reasons.split())
    return frozenset({_ACTIVE[major]}), frozenset()


def _told(vm: Vm) -> str:
    reason = VmReason.Name(vm.reason).removeprefix("VM_REASON_")
    return f"{vm.name} {state(vm)}/{reason} at {vm.revision}"
