"""The call that streams what there is and what changes."""

from __future__ import annotations

import asyncio
from contextlib import aclosing
from typing import TYPE_CHECKING, Any, assert_never

from vmagentd.api import access, limits, requests
from vmagentd.api.frames import Frames
from vmagentd.errors import WatcherTooSlow
from vmagentd.watch import Changes, Heartbeat, Snapshot, SnapshotEnd

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterable
    from datetime import timedelta

    from grpc import aio
    from vmagent.v1 import vm_agent_service_pb2 as pb

    from vmagentd.model import Revision
    from vmagentd.watch import Watch, WatchItem

    _Context = aio.ServicerContext[Any, Any]


class Watching:
    """Serves WatchStatus."""

    def __init__(self, watch: Watch, *, stall_timeout: timedelta) -> None:
        self._watch = watch
        self._frames = Frames()
        # how long a watcher may leave unread what it was sent
        self.stall_timeout = stall_timeout

    async def WatchStatus(
        self, request: pb.WatchStatusRequest, _context: _Context
    ) -> AsyncIterator[bytes]:
        """Stream what there is and what changes, as frames."""
        asked = requests.watch(request)
        caller = access.caller()
        seen = self._watch.follow(
            vms=asked.vms,
            resume=asked.resume,
            heartbeat_interval=asked.heartbeat_interval,
            shortest_interval=limits.usage().pause,
            sees=caller.sees if caller.vm_globs else None,
        )
        clock = asyncio.get_running_loop().time
        slow = False
        async with aclosing(seen):
            async for item in seen:
                for frame in self._framed(item):
                    given = clock()
                    yield frame  # until the client has room for it
                    slow |= clock() - given > self.stall_timeout.total_seconds()
                # in the middle of something it could not be told where to go on
                if slow and (place := _place(item)) is not None:
                    raise WatcherTooSlow(place)

    def _framed(self, item: WatchItem) -> Iterable[bytes]:
        match item:
            case Changes(transitions=transitions):
                return self._frames.changes(transitions)
            case Heartbeat(revision=revision, link=link, journal_writable=writable):
                return (self._frames.heartbeat(revision, link, journal_writable=writable),)
            case Snapshot(vms=vms):
                return self._frames.snapshot(vms)
            case SnapshotEnd(cursor=cursor):
                return (self._frames.snapshot_end(cursor),)
            case _:
                assert_never(item)


def _place(item: WatchItem) -> Revision | None:
    """Return up to where a watcher has everything once it has *item*."""
    match item:
        case Changes(transitions=transitions):
            return transitions[-1].revision
        case Heartbeat(revision=revision):
            return revision
        case SnapshotEnd(cursor=cursor):
            return cursor.revision
        case Snapshot():
            return None
        case _:
            assert_never(item)
