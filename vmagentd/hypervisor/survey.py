"""Asks libvirt what is true now: one VM, or all.

Runs in the calling thread, a `libvirt-observe` one, and blocks. Asks only what libvirt answers
from its own memory: a guest that hangs does not delay it. Domain handles never leave a call.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from functools import partial
from typing import TYPE_CHECKING

import libvirt

from vmagentd.errors import LibvirtUnreachable, VmagentdError, VmNotFound
from vmagentd.model import RawPair, Reason, Sighting, Unresponsive, VmState, VmUuid

from .translate import libvirt_errors, state_and_reason

if TYPE_CHECKING:
    from collections.abc import Callable

    from .events import VirConnect, VirDomain

# One reply of libvirtd holds the statistics of 4096 domains at most.
_CHUNK = 1000
_NOT_RUNNING = -1
_SHUTOFF = 5
# virDomainControlState: a monitor command is under way; the monitor is broken
_OCCUPIED, _BROKEN = 2, 3
# Commands take milliseconds; one that takes this long waits for a process that hangs.
_HANGS_AFTER = timedelta(seconds=5)


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
            RawPair(*domain.state()),
            persistent=bool(domain.isPersistent()),
            saved=lambda: bool(domain.hasManagedSaveImage()),
        )


def sight_all(link: VirConnect) -> tuple[tuple[Sighting, ...], tuple[VmUuid, ...]]:
    """Ask for all VMs.

    States, persistence and saved images come in bulk; the size of a VM costs one call each.

    Returns:
        What was seen, and those VMs that libvirt lists and yet does not tell of.
    """
    with libvirt_errors(alive=link.isAlive):
        found = _states(link, link.listAllDomains())
        # of persistent and transient VMs, the latter are few if any
        transient = _listed(link, libvirt.VIR_CONNECT_LIST_DOMAINS_TRANSIENT)
        saved = _listed(link, libvirt.VIR_CONNECT_LIST_DOMAINS_MANAGEDSAVE)
    seen: list[Sighting] = []
    unreadable: list[VmUuid] = []
    for domain, raw in found:
        vm = VmUuid(domain.UUIDString())
        try:
            with libvirt_errors(vm, alive=link.isAlive):
                sighting = _sighting(
                    domain,
                    vm,
                    raw or RawPair(*domain.state()),
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


def _states(link: VirConnect, domains: list[VirDomain]) -> list[tuple[VirDomain, RawPair | None]]:
    """Return the domains with their states, None for those that libvirt left out.

    Of all statistics only this one takes no job and asks no guest, so it needs no NOWAIT.
    """
    found: list[tuple[VirDomain, RawPair | None]] = [
        (domain, RawPair(stats["state.state"], stats["state.reason"]))
        for first in range(0, len(domains), _CHUNK)
        for domain, stats in link.domainListGetStats(
            domains[first : first + _CHUNK], libvirt.VIR_DOMAIN_STATS_STATE
        )
        if "state.reason" in stats
    ]
    if len(found) < len(domains):
        told = {domain.UUIDString() for domain, _ in found}
        found += [(domain, None) for domain in domains if domain.UUIDString() not in told]
    return found


def _sighting(
    domain: VirDomain, vm: VmUuid, raw: RawPair, *, persistent: bool, saved: Callable[[], bool]
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
    _, memory_kib, _, vcpus, _ = domain.info()
    return Sighting(
        vm=vm,
        name=domain.name(),
        state=state,
        reason=reason,
        raw=raw,
        active=active,
        persistent=persistent,
        run_id=run_id if active and run_id != _NOT_RUNNING else None,
        vcpus=vcpus,
        memory_bytes=memory_kib << 10,
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
