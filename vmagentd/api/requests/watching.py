"""Requests to watch: which VMs, and from where on."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING

from vmagentd.api.requests.fields import MAX_WATCHED_VMS, cursor, reference, span
from vmagentd.errors import InvalidField

if TYPE_CHECKING:
    from vmagent.v1.vm_agent_service_pb2 import WatchStatusRequest

    from vmagentd.model import Cursor

_HEARTBEAT_INTERVAL = timedelta(seconds=10)
_SHORTEST_HEARTBEAT_INTERVAL = timedelta(milliseconds=100)


@dataclass(frozen=True, slots=True, kw_only=True)
class Watch:
    """A parsed WatchStatusRequest."""

    vms: tuple[str, ...]
    resume: Cursor | None
    heartbeat_interval: timedelta


def watch(request: WatchStatusRequest) -> Watch:
    """Parse what to watch, and from where."""
    if len(request.vms) > MAX_WATCHED_VMS:
        raise InvalidField(
            "vms", f"{len(request.vms)} VMs are more than {MAX_WATCHED_VMS}; watch all instead"
        )
    spellings = (
        spelling for i, vm in enumerate(request.vms) for spelling in reference(f"vms[{i}]", vm)
    )
    interval = request.heartbeat_interval if request.HasField("heartbeat_interval") else None
    return Watch(
        vms=tuple(dict.fromkeys(spellings)),
        resume=cursor("resume", request.resume) if request.HasField("resume") else None,
        heartbeat_interval=span(
            "heartbeat_interval",
            interval,
            _HEARTBEAT_INTERVAL,
            shortest=_SHORTEST_HEARTBEAT_INTERVAL,
        ),
    )
