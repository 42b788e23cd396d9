"""Users who may have ended gRPC's loop that takes calls, and who do not get in for a while.

What ends it is in a call that it takes, and nothing tells whose that was. So everybody is
suspected of whom a call had gone to gRPC and has not arrived, and does not get in for a second,
then for twice as long each time, up to a minute. Nobody who has a role is suspected where there is
somebody without one.

One user can be many. When users without a role whom nobody suspected before do it one after the
other, none without a role gets in for a while. Root always does. Runs on the loop.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from vmagentd.errors import ShutOut

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from vmagentd.model import LocalPeer

_FIRST_S: Final = 1.0
_LONGEST_S: Final = 60.0
# Who was let in again and has been good for so long is not suspected more than others.
_FORGET_S: Final = 60.0

# Stands for all users without a role.
_ALL: Final = -1


@dataclass(slots=True)
class _Term:
    """How long somebody does not get in."""

    seconds: float
    until: float


class Suspects:
    """Those of the last minutes."""

    def __init__(
        self, *, has_role: Callable[[LocalPeer], bool], clock: Callable[[], float]
    ) -> None:
        """Prepare.

        Args:
            has_role: by the rules that hold now.
            clock: in seconds, only goes forward.
        """
        self._has_role = has_role
        self._clock = clock
        # they can do anything to the daemon anyway
        self._trusted = {0, os.geteuid()}
        self._terms: dict[int, _Term] = {}

    def suspect(self, peers: Iterable[LocalPeer]) -> list[tuple[LocalPeer, ShutOut]]:
        """Shut out whoever of *peers* may have been it; return one of each user, and why."""
        self._forget()
        users = {peer.uid: peer for peer in peers if peer.uid not in self._trusted}
        without_role = {uid for uid, peer in users.items() if not self._has_role(peer)}
        told = []
        for uid in without_role or users:
            new = uid not in self._terms
            told.append((users[uid], self._shut_out(uid, f"uid:{uid}")))
            if new and without_role:
                self._shut_out(_ALL, "")
        return told

    def check(self, peer: LocalPeer) -> None:
        """Let in whoever is not shut out.

        Raises:
            ShutOut: he is, or all are who have no role.
        """
        if peer.uid in self._trusted:
            return
        self._check(peer.uid, f"uid:{peer.uid}")
        if _ALL in self._terms and not self._has_role(peer):
            self._check(_ALL, "whoever has no role")

    def _check(self, uid: int, subject: str) -> None:
        term = self._terms.get(uid)
        left = term.until - self._clock() if term else 0.0
        if left > 0:
            raise ShutOut(subject, max(left, 1.0))

    def _shut_out(self, uid: int, subject: str) -> ShutOut:
        now = self._clock()
        before = self._terms.get(uid)
        # the first of many may be the only one
        first = 0.0 if uid == _ALL else _FIRST_S
        seconds = min(max(2 * before.seconds, _FIRST_S), _LONGEST_S) if before else first
        self._terms[uid] = _Term(seconds, now + seconds)
        return ShutOut(subject, seconds)

    def _forget(self) -> None:
        before = self._clock() - _FORGET_S
        for uid in [uid for uid, term in self._terms.items() if term.until < before]:
            del self._terms[uid]
