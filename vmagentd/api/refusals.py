"""Tells of whoever is refused: in the log, and to the journal for the audit.

The same refusal of the same caller within a minute is one record that is counted up, and there
are only so many records a minute, of one caller and of all: whoever is refused ten thousand times
in a row costs what one does. Nobody waits for it. Runs on the loop.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Final, Self, TypeAlias
from uuid import uuid4

from vmagentd import messages
from vmagentd.api import status
from vmagentd.errors import CallerUnknown
from vmagentd.model import OperationFailure, Refusal

if TYPE_CHECKING:
    from collections.abc import Callable

    from vmagentd.errors import VmagentdError
    from vmagentd.model import Caller, Vm

log = logging.getLogger(__name__)

# In this time the same refusals of the same caller are one.
MINUTE_S: Final = 60.0
# How old a count in the journal may be.
_FLUSH_S: Final = 5.0
# In a minute: different records of one caller, then all others of it are one.
OF_ONE: Final = 10
# In a minute, of all; others are only counted, in the log.
OF_ALL: Final = 200
# The method of a record for refusals of which each by itself would be too many.
SEVERAL: Final = "several"
_MAX_TEXT: Final = 255
_MAX_MESSAGE: Final = 1000

# who, from where, what, which VM, why
_Key: TypeAlias = tuple[str, str, str, str, str]


@dataclass(slots=True)
class _Counted:
    refusal: Refusal
    begin: float
    # what the journal was told last
    told: int = 1


class Refusals:
    """Those of the last minute."""

    def __init__(
        self,
        record: Callable[[Refusal], object],
        *,
        find: Callable[[str], Vm | None],
        minute_s: float = MINUTE_S,
    ) -> None:
        """Prepare.

        Args:
            record: hands a refusal to the journal; one with the same id takes its place.
            find: returns the VM that a client means.
            minute_s: how long the same refusals are one.
        """
        self._record = record
        self._find = find
        self._minute_s = minute_s
        self._counted: dict[_Key, _Counted] = {}
        self._of: Counter[tuple[str, str]] = Counter()
        self._too_many = 0
        self._timer: asyncio.TimerHandle | None = None

    def note(self, caller: Caller | None, peer: str, method: str, error: VmagentdError) -> None:
        """Tell of one."""
        loop = asyncio.get_running_loop()
        actor, place = caller.actor if caller else "", _place(peer)
        method = method.removeprefix("/vmagent.v1.VmAgentService/").removeprefix("/")[:_MAX_TEXT]
        vm_name = error.facts.get("vm", "")[:_MAX_TEXT]
        reason = type(error).__name__
        key = (actor, place, method, vm_name, reason)
        if key not in self._counted and self._of[actor, place] >= OF_ONE:
            method, vm_name = SEVERAL, ""
            key = (actor, place, method, vm_name, reason)
        known = self._counted.get(key)
        if known is not None:
            again = {"count": known.refusal.count + 1, "end_time": datetime.now(UTC)}
            known.refusal = replace(known.refusal, **again)  # type: ignore[arg-type]
        elif len(self._counted) >= OF_ALL:
            self._too_many += 1
        else:
            refusal = self._refusal(caller, peer, method, vm_name, error)
            self._of[actor, place] += 1
            self._counted[key] = _Counted(refusal, loop.time())
            self._record(refusal)
            _tell(refusal)
        if self._timer is None:
            self._timer = loop.call_later(min(_FLUSH_S, self._minute_s), self._flush)

    async def __aenter__(self) -> Self:
        """Nothing to begin."""
        return self

    async def __aexit__(self, *_: object) -> None:
        """Hand over what is counted; none may come after it."""
        if self._timer is not None:
            self._timer.cancel()
        self._hand_over()

    def _refusal(
        self, caller: Caller | None, peer: str, method: str, vm_name: str, error: VmagentdError
    ) -> Refusal:
        vm = self._find(vm_name) if vm_name else None
        now = datetime.now(UTC)
        return Refusal(
            id=str(uuid4()),
            time=now,
            end_time=now,
            actor=caller.actor if caller else "",
            peer=peer,
            certificate_fingerprint=_fingerprint(caller, error),
            method=method,
            vm=vm.uuid if vm else None,
            vm_name=vm.name if vm else vm_name,
            failure=OperationFailure(
                error=type(error).__name__, message=str(error)[:_MAX_MESSAGE]
            ),
        )

    def _flush(self) -> None:
        """Hand over what was counted, and let go of what is a minute old."""
        self._timer = None
        self._hand_over()
        loop = asyncio.get_running_loop()
        old = loop.time() - self._minute_s
        for key, counted in list(self._counted.items()):
            if counted.begin <= old:
                del self._counted[key]
                self._of[key[:2]] -= 1
                if not self._of[key[:2]]:
                    del self._of[key[:2]]
        if self._counted:
            self._timer = loop.call_later(min(_FLUSH_S, self._minute_s), self._flush)

    def _hand_over(self) -> None:
        for counted in self._counted.values():
            if counted.refusal.count != counted.told:
                counted.told = counted.refusal.count
                self._record(counted.refusal)
        if self._too_many:
            log.warning("audit: %d more refusals were not noted", self._too_many)
            self._too_many = 0


def _fingerprint(caller: Caller | None, error: VmagentdError) -> str | None:
    if caller is not None:
        return caller.certificate_fingerprint
    return error.fingerprint if isinstance(error, CallerUnknown) else None


def _place(peer: str) -> str:
    """Return where *peer* is without what differs from one connection to the next."""
    return peer.partition(", pid ")[0] if peer.startswith("uid ") else peer.rpartition(":")[0]


def _tell(refusal: Refusal) -> None:
    unknown = refusal.failure.error == CallerUnknown.__name__
    kind = messages.CERTIFICATE_REFUSED if unknown else messages.CALLER_REFUSED
    log.warning(
        "refused: %s (%s) %s: %s",
        refusal.actor or "?",
        refusal.peer,
        refusal.method or "connect",
        refusal.failure.message,
        extra={
            "MESSAGE_ID": kind,
            "ACTOR": refusal.actor or None,
            "PEER": refusal.peer,
            "METHOD": refusal.method or None,
            "VM_UUID": refusal.vm,
            "VM_NAME": refusal.vm_name or None,
            "REASON": status.operation_error(refusal.failure).reason,
        },
    )
