"""Asks libvirt what is true now: one VM, or all.

Runs in the calling thread, a `libvirt-observe` one, and blocks. Asks only what libvirt answers
from its own memory: a guest that hangs does not delay it. Domain handles never leave a call.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import libvirt

from vmagentd.errors import LibvirtUnreachable, VmagentdError, VmNotFound
from vmagentd.model import RawPair, Reason, Sighting, VmState, VmUuid

from .translate import libvirt_errors, state_and_reason

if TYPE_CHECKING:
    from collections.abc import Callable

    from .links import VirConnect, VirDomain

# One reply of libvirtd holds the statistics of 4096 domains at most.
_CHUNK = 1000
_NOT_RUNNING = -1
_SHUTOFF = 5
_FORGOTTEN = RawPair(_SHUTOFF, 0)


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
    with libvirt_errors(VmUuid(domain.UUIDString()), alive=link.isAlive):
        return _sighting(
            domain,
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
        domains = link.listAllDomains()
        persistent = _listed(link, libvirt.VIR_CONNECT_LIST_DOMAINS_PERSISTENT)
        raws = _states(link, domains)
        # only after libvirtd forgot why its VMs are off is this needed, then for nearly all
        saved = (
            _listed(link, libvirt.VIR_CONNECT_LIST_DOMAINS_MANAGEDSAVE)
            if _FORGOTTEN in raws.values()
            else frozenset()
        )
    seen: list[Sighting] = []
    unreadable: list[VmUuid] = []
    for domain in domains:
        vm = VmUuid(domain.UUIDString())
        try:
            with libvirt_errors(vm, alive=link.isAlive):
                seen.append(
                    _sighting(
                        domain,
                        raws.get(vm) or RawPair(*domain.state()),
                        persistent=vm in persistent,
                        saved=partial(saved.__contains__, vm),
                    )
                )
        except VmNotFound:  # gone since it was listed: so it is not in libvirt
            continue
        except LibvirtUnreachable:
            raise
        except VmagentdError:  # whatever ails one VM must not hide the others
            unreadable.append(vm)
    return tuple(seen), tuple(unreadable)


def _listed(link: VirConnect, flag: int) -> frozenset[str]:
    return frozenset(domain.UUIDString() for domain in link.listAllDomains(flag))


def _states(link: VirConnect, domains: list[VirDomain]) -> dict[str, RawPair]:
    """Return the states in bulk, without those that are gone or that libvirt left out.

    Of all statistics only this one takes no job and asks no guest, so it needs no NOWAIT.
    """
    return {
        domain.UUIDString(): RawPair(stats["state.state"], stats["state.reason"])
        for first in range(0, len(domains), _CHUNK)
        for domain, stats in link.domainListGetStats(
            domains[first : first + _CHUNK], libvirt.VIR_DOMAIN_STATS_STATE
        )
        if "state.reason" in stats
    }


def _sighting(
    domain: VirDomain, raw: RawPair, *, persistent: bool, saved: Callable[[], bool]
) -> Sighting:
    state, reason = state_and_reason(raw.major, raw.minor)
    if raw == _FORGOTTEN and saved():
        state, reason = VmState.SAVED, Reason.SAVED
    run_id = domain.ID()
    active = run_id != _NOT_RUNNING if state is VmState.UNRECOGNIZED else raw.major != _SHUTOFF
    _, memory_kib, _, vcpus, _ = domain.info()
    return Sighting(
        vm=VmUuid(domain.UUIDString()),
        name=domain.name(),
        state=state,
        reason=reason,
        raw=raw,
        active=active,
        persistent=persistent,
        run_id=run_id if active and run_id != _NOT_RUNNING else None,
        vcpus=vcpus,
        memory_bytes=memory_kib << 10,
    )
