"""What watchers are sent, as bytes: encoded once, however many watchers it goes to.

Every part is a `WatchStatusResponse` of its own. Protobuf merges repeated fields, so joined
parts are one response again: writing costs more than anything else here, and one write of many
parts costs what one part does.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from vmagent.v1.vm_agent_service_pb2 import WatchStatusResponse

from vmagentd.api import convert
from vmagentd.model import Cursor, Revision

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Iterator

    from vmagentd.model import Link, Transition, Vm, VmUuid

# Far below the 4 MiB that clients accept: what a message holds is lost in flight as one.
MAX_BYTES = 256 * 1024

# A snapshot may have to be encoded anew, which holds the loop up; each part some 10 ms.
MAX_SNAPSHOT_BYTES = 64 * 1024

# How many transitions stay encoded. Watchers are close to the head or far behind: those far
# behind share nothing with others.
KEPT = 4096

# How many records of VMs stay encoded beyond twice those of the largest snapshot. More are of VMs
# that are gone, and all are encoded anew.
SPARE = 1024


class Frames:
    """Makes the messages of all watchers."""

    def __init__(self) -> None:
        # the slot of a revision is its remainder; an older one never displaces a newer one
        self._transitions: list[tuple[Revision, bytes]] = [(Revision(-1), b"")] * KEPT
        # a VM's record is replaced, never changed, so its bytes hold while it is the same object
        self._vms: dict[VmUuid, tuple[Vm, bytes]] = {}
        # how many VMs the largest snapshot held
        self._largest = 0

    def snapshot(self, vms: Collection[Vm]) -> Iterator[bytes]:
        """Yield messages that hold *vms*, in their order."""
        self._largest = max(self._largest, len(vms))
        if len(self._vms) > 2 * self._largest + SPARE:
            self._vms.clear()
        return _joined((self._vm(vm) for vm in vms), MAX_SNAPSHOT_BYTES)

    def snapshot_end(self, cursor: Cursor) -> bytes:
        """Return the message that ends a snapshot."""
        return WatchStatusResponse(snapshot_end=convert.cursor(cursor)).SerializeToString()

    def changes(self, transitions: Iterable[Transition]) -> Iterator[bytes]:
        """Yield messages that hold *transitions*, in their order."""
        return _joined((self._transition(each) for each in transitions), MAX_BYTES)

    def heartbeat(self, revision: Revision, link: Link, *, journal_writable: bool) -> bytes:
        """Return a sign of life."""
        beat = convert.heartbeat(revision, link, journal_writable=journal_writable)
        return WatchStatusResponse(heartbeat=beat).SerializeToString()

    def _transition(self, of: Transition) -> bytes:
        slot = of.revision % KEPT
        kept, encoded = self._transitions[slot]
        if kept == of.revision:
            return encoded
        encoded = WatchStatusResponse(transitions=[convert.transition(of)]).SerializeToString()
        if of.revision > kept:
            self._transitions[slot] = (of.revision, encoded)
        return encoded

    def _vm(self, of: Vm) -> bytes:
        kept = self._vms.get(of.uuid)
        if kept is not None and kept[0] is of:
            return kept[1]
        encoded = WatchStatusResponse(vms=[convert.vm(of)]).SerializeToString()
        self._vms[of.uuid] = (of, encoded)
        return encoded


def _joined(parts: Iterable[bytes], limit: int) -> Iterator[bytes]:
    """Yield *parts* joined to messages of at most *limit*, or of one part if that is longer."""
    batch: list[bytes] = []
    size = 0
    for part in parts:
        if batch and size + len(part) > limit:
            yield b"".join(batch)
            batch.clear()
            size = 0
        batch.append(part)
        size += len(part)
    if batch:
        yield b"".join(batch)
