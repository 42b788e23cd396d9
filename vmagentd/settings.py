"""Settings → what the parts of the daemon are given: they know nothing of the file."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vmagentd.api.gate import DESCRIPTORS, Connections
from vmagentd.api.limits import CallerLimits
from vmagentd.api.server import spare_descriptors
from vmagentd.journal.retention import Limits

if TYPE_CHECKING:
    from vmagentd.config import Config


def retention(config: Config) -> Limits:
    """How much the journal keeps."""
    keep = config.retention
    return Limits(
        transitions=keep.transitions_max,
        age=keep.age_max,
        operations_age=keep.operations_age,
        audit_age=config.audit.age_max,
        audit_records=config.audit.records_max,
    )


def connections(config: Config) -> Connections:
    """How many local connections there may be."""
    limits = config.limits
    return Connections(
        each=limits.user_connections,
        total=min(limits.connections, spare_descriptors() // DESCRIPTORS),
    )


def caller_limits(config: Config) -> CallerLimits:
    """What one caller may have."""
    limits = config.limits
    return CallerLimits(
        calls_per_second=limits.calls_per_second,
        streams=limits.streams,
        calls_at_once=limits.calls_at_once,
        call_timeout=limits.call_timeout,
        stall_timeout=limits.stall_timeout,
    )
