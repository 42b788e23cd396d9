"""Asks libvirt what is true now: one VM, or all.

Runs in the calling thread, a `libvirt-observe` one, and blocks. Asks only what libvirt answers
from its own memory: a guest that hangs does not delay it. Domain handles never leave a call.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from functools import partial
from typing import TYPE_CHECKING, NamedTuple, TypeVar

import libvirt

from vmagentd.errors import LibvirtUnreachable, VmagentdError, VmNotFound
from vmagentd.model import RawPair, Reason, Sighting, Unresponsive, VmState, VmUuid

from .translate import libvirt_errors, state_and_reason

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from .events import VirConnect, VirDomain

R = TypeVar("R")

# Of how many domains libvirtd tells the statistics in one reply, at most of 4096. More in one are
# no faster, and 1,000 left the process 1 MiB larger for good (measured).
_CHUNK = 100
# What is asked of domains that are off, and then of all others. Of these it is their state only:
# with its size libvirt tells what it asks the process for, and one that hangs does not answer.
# NOWAIT passes over those that somebody waits for already, but would be the first to wait.
_ASKED = (
    (
        libvirt.VIR_DOMAIN_STATS_STATE
        | libvirt.VIR_DOMAIN_STATS_BALLOON
        | libvirt.VIR_DOMAIN_STATS_VCPU,
        libvirt.VIR_CONNECT_GET_ALL_DOMAINS_STATS_INACTIVE
        | libvirt.VIR_CONNECT_GET_ALL_DOMAINS_STATS_NOWAIT,
    ),
    (libvirt.VIR_DOMAIN_STATS_STATE, 0),
)
_NOT_RUNNING = -1
_SHUTOFF = 5
# virDomainControlState: a monitor command is under way; the monitor is broken
_OCCUPIED, _BROKEN = 2, 3
# Commands take milliseconds; one that takes this long waits for a process that hangs.
_HANGS_AFTER = timedelta(seconds=5)


class _Size(NamedTuple):
    """How many vCPUs it has, the most memory that it may have, and what it has used of CPUs."""

    vcpus: int
    memory_kib: int
    cpu_time: timedelta | None = None


def find(link: VirConnect, vm: VmUuid) -> VirDomain:
    """Return the handle of a VM; only for the call that asks, for it dies with its link.

    Raises:
        VmNotFound: libvirt says that it does not know the VM.
    """
    with libvirt_errors(vm, alive=link.isAlive):
        return link.lookupByUUIDString(vm)


def find_name(link: VirConnect, name: str) -> VirDomain | None:
    """Return the handle of the VM that bears a name now, or None."""
    try:
        with libvirt_errors(alive=link.isAlive):
            return link.lookupByName(name)
    except VmNotFound:
        return None


def sight(link: VirConnect, domain: VirDomain) -> Sighting:
    """Ask for one VM.

    Raises:
        VmNotFound: it is gone since its handle was got.
    """
    vm = VmUuid(domain.UUIDString())
    with libvirt_errors(vm, alive=link.isAlive):
        return _sighting(
            domain,
            vm,
            _raw(domain, {}),
            size=_size(domain, {}),
            persistent=bool(domain.isPersistent()),
            saved=lambda: bool(domain.hasManagedSaveImage()),
        )


def seen(
    link: VirConnect, find_it: Callable[[VirConnect, R], VirDomain | None], ref: R
) -> Sighting | None:
    """Ask for the VM that is found by *ref*; None if libvirt does not know it."""
    try:
        domain = find_it(link, ref)
        return None if domain is None else sight(link, domain)
    except VmNotFound:
        return None


def sight_all(link: VirConnect) -> tuple[tuple[Sighting, ...], tuple[VmUuid, ...]]:
    """Ask for all VMs.

    All comes in bulk, but for the size of each VM that is not off, and whether it hangs.

    Returns:
        What was seen, and those VMs that libvirt lists and yet does not tell of.
    """
    with libvirt_errors(alive=link.isAlive):
        found = _stats(link, link.listAllDomains())
        # of persistent and transient VMs, the latter are few if any
        transient = _listed(link, libvirt.VIR_CONNECT_LIST_DOMAINS_TRANSIENT)
        saved = _listed(link, libvirt.VIR_CONNECT_LIST_DOMAINS_MANAGEDSAVE)
    seen: list[Sighting] = []
    unreadable: list[VmUuid] = []
    for vm, domain, stats in found:
        try:
            with libvirt_errors(vm, alive=link.isAlive):
                sighting = _sighting(
                    domain,
                    vm,
                    _raw(domain, stats),
                    size=_size(domain, stats),
                    persistent=vm not in transient,
                    saved=partial(saved.__contains__, vm),
                )
        except VmNotFound:  # gone since it was listed: so it is not in libvirt
            continue
        except LibvirtUnreachable:
            raise
        except VmagentdError:  # whatever ails one VM must not hide the others
            unreadable.append(vm)
        else:
            seen.append(sighting)
    return tuple(seen), tuple(unreadable)


def _listed(link: VirConnect, flag: int) -> frozenset[str]:
    return frozenset(domain.UUIDString() for domain in link.listAllDomains(flag))


def _stats(
    link: VirConnect, domains: list[VirDomain]
) -> list[tuple[VmUuid, VirDomain, Mapping[str, int]]]:
    """Return the domains with what libvirt tells of them in bulk: nothing, if it left one out."""
    found: list[tuple[VmUuid, VirDomain, Mapping[str, int]]] = []
    left = {VmUuid(domain.UUIDString()): domain for domain in domains}
    for stats, flags in _ASKED:
        asked = [*left.values()]
        for first in range(0, len(asked), _CHUNK):
            chunk = asked[first : first + _CHUNK]
            for domain, told in link.domainListGetStats(chunk, stats, flags):
                vm = VmUuid(domain.UUIDString())
                if "state.reason" in told and left.pop(vm, None) is not None:
                    found.append((vm, domain, told))
    return found + [(vm, domain, {}) for vm, domain in left.items()]


def _raw(domain: VirDomain, stats: Mapping[str, int]) -> RawPair:
    if not stats:
        return RawPair(*domain.state())
    return RawPair(stats["state.state"], stats["state.reason"])


def _size(domain: VirDomain, stats: Mapping[str, int]) -> _Size:
    if "vcpu.current" in stats and "balloon.maximum" in stats:  # it is off
        return _Size(stats["vcpu.current"], stats["balloon.maximum"])
    _, memory_kib, _, vcpus, nanoseconds = domain.info()
    # 0 is not told: libvirt says so where it does not find the process, of a VM too that it has
    # not yet noticed to be off. As a time it would be that of another process, just begun.
    cpu_time = timedelta(microseconds=nanoseconds // 1000) if nanoseconds else None
    return _Size(vcpus, memory_kib, cpu_time)


def _sighting(
    domain: VirDomain,
    vm: VmUuid,
    raw: RawPair,
    *,
    size: _Size,
    persistent: bool,
    saved: Callable[[], bool],
) -> Sighting:
    state, reason = state_and_reason(raw.major, raw.minor)
    # Why it is off does not tell whether there is an image that the next start resumes: libvirt
    # says SAVED for an image in any file, and another reason when a start from one has failed.
    if raw.major == _SHUTOFF and saved():
        state, reason = VmState.SAVED, Reason.SAVED
    elif state is VmState.SAVED:
        state = VmState.STOPPED
    run_id = domain.ID()
    active = run_id != _NOT_RUNNING if state is VmState.UNRECOGNIZED else raw.major != _SHUTOFF
    return Sighting(
        vm=vm,
        name=domain.name(),
        state=state,
        reason=reason,
        raw=raw,
        active=active,
        persistent=persistent,
        run_id=run_id if active and run_id != _NOT_RUNNING else None,
        vcpus=size.vcpus,
        memory_bytes=size.memory_kib << 10,
        cpu_time=size.cpu_time if active else None,
        unresponsive=_unresponsive(domain) if active else None,
    )


def _unresponsive(domain: VirDomain) -> Unresponsive | None:
    """Return what libvirt has been waiting for in vain. It tells so without asking the process."""
    try:
        state, _details, milliseconds = domain.controlInfo()
    except libvirt.libvirtError:  # not QEMU, or not active any more
        return None
    lasting = timedelta(milliseconds=milliseconds)
    if state == _BROKEN:
        return Unresponsive(job="monitor connection", since_time=datetime.now(UTC) - lasting)
    if state == _OCCUPIED and lasting >= _HANGS_AFTER:
        return Unresponsive(job="monitor command", since_time=datetime.now(UTC) - lasting)
    return None
