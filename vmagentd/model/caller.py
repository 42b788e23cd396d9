"""Whoever asks for something."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from enum import auto
from fnmatch import fnmatchcase

from typing_extensions import override  # typing has it since 3.12

from vmagentd.model.names import Name


class Role(Name):
    """What a caller may do; each role may do what those before it may."""

    VIEWER = auto()
    OPERATOR = auto()
    ADMIN = auto()

    def includes(self, other: Role) -> bool:
        """Return whether whoever has this role may do what *other* may."""
        order = tuple(Role)
        return order.index(self) >= order.index(other)


class CallerOrigin(Name):
    """How a caller is connected."""

    LOCAL = auto()
    REMOTE = auto()


@dataclass(frozen=True, slots=True, kw_only=True)
class Grant:
    """A role, and the VMs that it holds for."""

    role: Role
    # names of VMs; empty: all
    vm_globs: tuple[str, ...] = ()

    def covers(self, vm_name: str) -> bool:
        """Return whether it holds for a VM of that name."""
        return not self.vm_globs or any(fnmatchcase(vm_name, glob) for glob in self.vm_globs)


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    """Whoever is one of these has the grant."""

    grant: Grant
    # names of the host's users, or `uid:NUMBER`
    users: frozenset[str] = frozenset()
    # names of the host's groups; one that does not exist has no members
    groups: frozenset[str] = frozenset()
    # what certificates name: URIs, or `dns:NAME`
    subjects: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True, kw_only=True)
class LocalPeer:
    """The process that connected to the Unix socket, as the kernel tells."""

    uid: int
    # all of its groups
    gids: frozenset[int]
    # for people only: another process may bear the number by now
    pid: int
    # None if nobody has this number
    user: str | None

    @override
    def __str__(self) -> str:
        """Return it as audit records show it."""
        return f"uid {self.uid}, pid {self.pid}"


@dataclass(frozen=True, slots=True, kw_only=True)
class RemotePeer:
    """The holder of a client certificate that was verified."""

    # the URI of its certificate, or `dns:NAME`
    subject: str
    address: str
    serial: int
    # SHA-256 in hexadecimal digits
    fingerprint: str
    end_time: datetime

    @override
    def __str__(self) -> str:
        """Return it as audit records show it."""
        return self.address


@dataclass(frozen=True, slots=True, kw_only=True)
class Caller:
    """Whoever makes a call; see the contract's `Caller` for what each field promises."""

    # stable and unambiguous: request ids are remembered by it
    actor: str
    grants: tuple[Grant, ...] = ()
    origin: CallerOrigin
    peer: str
    certificate_fingerprint: str | None = None
    certificate_end_time: datetime | None = None

    @property
    def role(self) -> Role | None:
        """The most that it may do, to some VMs at least; None: nothing."""
        return max((grant.role for grant in self.grants), key=tuple(Role).index, default=None)

    @property
    def vm_globs(self) -> tuple[str, ...]:
        """Names of the VMs that it sees; empty: all."""
        if all(grant.vm_globs for grant in self.grants):
            return tuple(dict.fromkeys(glob for each in self.grants for glob in each.vm_globs))
        return ()

    def has(self, role: Role) -> bool:
        """Return whether it has *role* for some VMs at least."""
        return any(grant.role.includes(role) for grant in self.grants)

    def has_for_all(self, role: Role) -> bool:
        """Return whether it has *role*, and not for some VMs only."""
        return any(grant.role.includes(role) and not grant.vm_globs for grant in self.grants)

    def has_for(self, role: Role, vm_name: str) -> bool:
        """Return whether it has *role* for a VM of that name."""
        return any(grant.role.includes(role) and grant.covers(vm_name) for grant in self.grants)

    def sees(self, vm_name: str) -> bool:
        """Return whether a VM of that name exists for it."""
        return any(grant.covers(vm_name) for grant in self.grants)
