"""Somebody may not do what was asked, or not now; nothing was changed by it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vmagentd.errors.base import VmagentdError

if TYPE_CHECKING:
    from vmagentd.model import Caller, Role


class AccessError(VmagentdError):
    """Somebody may not do what was asked, or not now; nothing was changed by it."""


class CallerUnknown(AccessError):
    """Nobody can tell who calls, or the certificate that tells is not accepted."""

    def __init__(self, why: str, *, fingerprint: str | None = None) -> None:
        super().__init__(
            f"the caller is not known: {why}; connect to the daemon's socket on its host, or "
            "from elsewhere with a certificate that it accepts",
            why=why,
        )
        # of a certificate that names nobody
        self.fingerprint = fingerprint


class RoleDenied(AccessError):
    """The caller is known, and has no role that allows this."""

    def __init__(self, caller: Caller, needed: Role, *, vm_name: str | None = None) -> None:
        where = "on this host" if vm_name is None else f"for VM {vm_name!r}"
        has = caller.role or "no role"
        super().__init__(
            f"{caller.actor} may not do this: it needs the role {needed} {where} and has {has}; "
            "ask the host's administrator for membership in one of the daemon's groups, or for "
            "a grant in its settings",
            actor=caller.actor,
            needed=needed,
            role=caller.role,
            vm=vm_name,
        )


class AccessChanged(AccessError):
    """What the caller may see or do is not what it was when the call began."""

    def __init__(self, caller: Caller) -> None:
        super().__init__(
            f"what {caller.actor} may see or do on this host has changed; call again, "
            "and watch from a snapshot",
            actor=caller.actor,
        )


class LimitReached(AccessError):
    """The caller asks for more than one caller may have."""

    def __init__(self, subject: str, limit: str, allowed: float) -> None:
        super().__init__(
            f"{subject} has reached the limit of {allowed:g} {limit}; ask less often, or for "
            "less at once",
            subject=subject,
            limit=limit,
            allowed=f"{allowed:g}",
        )


class ShutOut(AccessError):
    """Calls of the user have done harm, or may have: he may not connect for a while."""

    def __init__(self, subject: str, seconds: float) -> None:
        super().__init__(
            f"{subject} may not connect for {seconds:.0f} s: a call of one of these connections "
            "has ended the server that took it, as one does whose method is not UTF-8; try again "
            "later",
            subject=subject,
            limit="connections",
            allowed=0,
        )
