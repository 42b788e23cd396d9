"""Which role each RPC needs: one table, total over all that is served.

Whether a caller has the role for the VM that is meant is asked where the VM is known, see
`servicer/references.py`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from vmagentd.errors import AccessError, HypervisorError, RequestError, RoleDenied
from vmagentd.model import Role

if TYPE_CHECKING:
    from collections.abc import Mapping

    from vmagentd.errors import VmagentdError
    from vmagentd.model import Caller

# None: whoever is known, and be it without any role.
NEEDED: Final[Mapping[str, Mapping[str, Role | None]]] = {
    "vmagent.v1.VmAgentService": {
        "Start": Role.OPERATOR,
        "Stop": Role.OPERATOR,
        "Reboot": Role.OPERATOR,
        "Pause": Role.OPERATOR,
        "Resume": Role.OPERATOR,
        "CancelOperation": Role.OPERATOR,
        "WatchStatus": Role.VIEWER,
        "GetVm": Role.VIEWER,
        "ListVms": Role.VIEWER,
        "ListTransitions": Role.VIEWER,
        "GetOperation": Role.VIEWER,
        "ListOperations": Role.VIEWER,
        "GetHost": Role.VIEWER,
        "WhoAmI": None,
        "ListAuditRecords": Role.ADMIN,
    },
    "grpc.health.v1.Health": {
        "Check": Role.VIEWER,
        "List": Role.VIEWER,
        "Watch": Role.VIEWER,
    },
    "grpc.reflection.v1alpha.ServerReflection": {"ServerReflectionInfo": Role.VIEWER},
    "grpc.channelz.v1.Channelz": {
        "GetTopChannels": Role.ADMIN,
        "GetServers": Role.ADMIN,
        "GetServer": Role.ADMIN,
        "GetServerSockets": Role.ADMIN,
        "GetChannel": Role.ADMIN,
        "GetSubchannel": Role.ADMIN,
        "GetSocket": Role.ADMIN,
    },
}


def needed(method: str) -> Role | None:
    """Return the role that `/package.Service/Method` needs, one that is served."""
    service, _, name = method.removeprefix("/").partition("/")
    return NEEDED[service][name]


def check(role: Role | None, caller: Caller, *, vm_name: str | None = None) -> None:
    """Refuse a caller without *role*; *vm_name* tells what for, as far as that is known.

    What needs an admin concerns the whole host, so one for some VMs only is none.

    Raises:
        RoleDenied: it has it for no VM, or has to have it for all.
    """
    if role is None:
        return
    has = caller.has_for_all(role) if role is Role.ADMIN else caller.has(role)
    if not has:
        raise RoleDenied(caller, role, vm_name=vm_name)


def same(role: Role | None, before: Caller, now: Caller) -> bool:
    """Return whether a call that needs *role* shows and does the same for both.

    It shows what they see, and may do something to what they have *role* for. Which rules say
    so, and in which order, does not matter.
    """
    needed = {Role.VIEWER, role or Role.VIEWER}
    return all(_globs(before, each) == _globs(now, each) for each in needed)


def _globs(caller: Caller, role: Role) -> frozenset[str] | None:
    """Return names of the VMs that *caller* has *role* for; None: all."""
    if caller.has_for_all(role):
        return None
    grants = (grant for grant in caller.grants if grant.role.includes(role))
    return frozenset(glob for grant in grants for glob in grant.vm_globs)


def refuses(role: Role | None, error: VmagentdError) -> bool:
    """Return whether *error* refuses a call that needs *role*, so that the audit tells of it.

    Of what only shows something it tells who may not see it; of an operation also why it was not
    accepted. One that was accepted and failed has its own record.
    """
    operates = role is Role.OPERATOR and isinstance(error, RequestError | HypervisorError)
    return operates or isinstance(error, AccessError)
