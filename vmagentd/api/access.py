"""Who calls, and which roles that gives.

A call's caller is found out once, as the call begins, and kept in its context: gRPC's own
context must not be read after the call is over, which kills the process. Runs on the loop.
"""

from __future__ import annotations

import os
from contextvars import ContextVar
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, TypeAlias
from urllib.parse import unquote

from vmagentd.errors import CallerUnknown
from vmagentd.model import Caller, CallerOrigin, Grant, LocalPeer, RemotePeer, Role, Rule

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from vmagentd.api.directory import Directory

    # what TLS tells of the other side, by gRPC's names for it
    Auth: TypeAlias = Mapping[str, Iterable[bytes]]

Identity: TypeAlias = LocalPeer | RemotePeer

_CALLER: ContextVar[Caller] = ContextVar("caller")


def caller() -> Caller:
    """Return who makes the present call, as it was when the call began."""
    return _CALLER.get()


def keep(caller: Caller) -> None:
    """Have `caller` return this one for the rest of the present call."""
    _CALLER.set(caller)


def place(connection: str) -> str:
    """Return where a connection comes from, by gRPC's name for it, as audit records show it."""
    kind, _, address = connection.partition(":")
    # gRPC writes `ipv6:%5B::1%5D:52364`
    return unquote(address) if kind in ("ipv4", "ipv6") else connection


def holder(identity: Identity, grants: tuple[Grant, ...] = ()) -> Caller:
    """Return *identity* as a caller who has these roles; whether he is let in is not asked."""
    match identity:
        case LocalPeer():
            actor = f"uid:{identity.uid}"
            if identity.user is not None:
                actor = f"user:{identity.user}"
            return Caller(
                actor=actor, grants=grants, origin=CallerOrigin.LOCAL, peer=str(identity)
            )
        case RemotePeer():
            return Caller(
                actor=identity.subject,
                grants=grants,
                origin=CallerOrigin.REMOTE,
                peer=str(identity),
                certificate_fingerprint=identity.fingerprint,
                certificate_end_time=identity.end_time,
            )


def _nobody_from_elsewhere(peer: str, _auth: Auth) -> RemotePeer:
    raise CallerUnknown(f"{peer} is none of the connections that the daemon accepted")


def _admitted(_peer: RemotePeer) -> None:
    """Admit everybody whose certificate was verified."""


class Access:
    """Who calls, by the rules that hold now."""

    def __init__(
        self,
        *,
        directory: Directory,
        local: Callable[[str], LocalPeer],
        remote: Callable[[str, Auth], RemotePeer] = _nobody_from_elsewhere,
        admit: Callable[[RemotePeer], None] = _admitted,
    ) -> None:
        """Prepare; `apply` rules before the first call: without any, root alone has a role.

        Args:
            directory: knows the host's groups.
            local: returns the process behind a local connection, by gRPC's name for it, or
                raises CallerUnknown.
            remote: returns the holder of the certificate, or raises CallerUnknown.
            admit: raises CallerUnknown if that certificate is not, or no longer, accepted.
        """
        self._rules: tuple[Rule, ...] = ()
        self._own_uid = os.geteuid()
        self._directory = directory
        self._local = local
        self._remote = remote
        self._admit = admit

    async def apply(self, rules: Iterable[Rule]) -> None:
        """Go by these rules from now on. Calls under way: see `Boundary.recheck`."""
        rules = tuple(rules)
        await self._directory.want(group for rule in rules for group in rule.groups)
        self._rules = rules

    def identify(self, peer: str, auth: Callable[[], Auth]) -> Identity:
        """Return who is behind a connection, by gRPC's name for it.

        Raises:
            CallerUnknown: nobody can tell.
        """
        if peer.startswith("unix"):
            return self._local(peer)
        return self._remote(peer, auth())

    def caller_of(self, identity: Identity) -> Caller:
        """Return *identity* as a caller, by the rules that hold now.

        Raises:
            CallerUnknown: its certificate is not accepted.
        """
        match identity:
            case LocalPeer():
                return holder(identity, tuple(self._local_grants(identity)))
            case RemotePeer():
                self._admit(identity)
                return holder(identity, tuple(self._remote_grants(identity)))

    def has_role(self, peer: LocalPeer) -> bool:
        """Return whether somebody may do anything at all, by the rules that hold now."""
        return next(iter(self._local_grants(peer)), None) is not None

    def _local_grants(self, peer: LocalPeer) -> Iterable[Grant]:
        if peer.uid in (0, self._own_uid):  # can do anything to the daemon anyway
            yield Grant(role=Role.ADMIN)
        gids = self._directory.gids
        for rule in self._rules:
            if (
                peer.user in rule.users
                or f"uid:{peer.uid}" in rule.users
                or any(gids.get(group) in peer.gids for group in rule.groups)
            ):
                yield rule.grant

    def _remote_grants(self, peer: RemotePeer) -> Iterable[Grant]:
        for rule in self._rules:
            if any(fnmatchcase(peer.subject, glob) for glob in rule.subjects):
                yield rule.grant
