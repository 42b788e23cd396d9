"""What the journal tells beside VMs, transitions and operations."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from vmagentd.model.names import JournalId, Revision, VmUuid


@dataclass(frozen=True, slots=True, kw_only=True)
class Link:
    """Whether libvirt can be asked; `blind_since` and `cause` only while it cannot."""

    connected: bool
    blind_since: datetime | None = None
    cause: str | None = None
    # when the last complete survey began
    last_survey_time: datetime | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class BlindInterval:
    """A time during which libvirt could not be asked; `end_time` None while it lasts."""

    begin_time: datetime
    end_time: datetime | None
    # why it began; and what was in the way last, if that is something else
    cause: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Cursor:
    """A place in a journal: everything up to `revision` has been seen."""

    journal_id: JournalId
    revision: Revision


@dataclass(frozen=True, slots=True, kw_only=True)
class HistoryFilter:
    """Which transitions to read. None means no bound; all bounds but `max_time` are included."""

    vm: VmUuid | None = None
    min_revision: Revision | None = None
    max_revision: Revision | None = None
    min_time: datetime | None = None
    max_time: datetime | None = None
    oldest_first: bool = False
