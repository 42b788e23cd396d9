"""Protobuf → model: what a client asks, parsed once.

Nothing of a request is believed before it has passed here, and nothing is checked again behind
it. Whatever is wrong is one `InvalidField` with the field's path as the contract writes it.
"""

from __future__ import annotations

import fnmatch
import re
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, TypeVar

from vmagentd.api import convert
from vmagentd.api.pages import Pages
from vmagentd.errors import InvalidField
from vmagentd.model import (
    Cursor,
    HistoryFilter,
    JournalId,
    OnGraceExpired,
    Revision,
    StartParameters,
    StopMode,
    StopParameters,
    VmState,
)

if TYPE_CHECKING:
    from collections.abc import Callable
    from enum import StrEnum

    from google.protobuf.duration_pb2 import Duration
    from google.protobuf.timestamp_pb2 import Timestamp
    from vmagent.v1.transition_pb2 import Cursor as CursorMessage
    from vmagent.v1.vm_agent_service_pb2 import (
        ListTransitionsRequest,
        ListVmsRequest,
        StartRequest,
        StopRequest,
        WatchStatusRequest,
    )

_Member = TypeVar("_Member", bound="StrEnum")
_Number = TypeVar("_Number", bound=int)

# What a client may have meant: the reference in its one true spelling and, where that differs
# from what it wrote, also what it wrote, since a VM's name may look like a UUID.
Reference = tuple[str, ...]

MAX_NAME_BYTES = 255
MAX_WATCHED_VMS = 1000
MAX_PAGE_SIZE = 1000
MAX_REVISION = 2**63 - 1

_TIMEOUT = timedelta(seconds=120)
_GRACE_PERIOD = timedelta(seconds=60)
_HEARTBEAT_INTERVAL = timedelta(seconds=10)
_SECOND = timedelta(seconds=1)
_HOUR = timedelta(hours=1)
_SHORTEST_HEARTBEAT_INTERVAL = timedelta(milliseconds=100)

_MAX_NANOS = 999_999_999
_SECOND_MICROS = 1_000_000

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_FIRST_S = int((datetime.min.replace(tzinfo=UTC) - _EPOCH).total_seconds())
_LAST_S = int((datetime.max.replace(tzinfo=UTC, microsecond=0) - _EPOCH).total_seconds())

_UUID = re.compile(r"[0-9a-fA-F]{8}(-?)(?:[0-9a-fA-F]{4}\1){3}[0-9a-fA-F]{12}")
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]")
_REQUEST_ID = re.compile(r"[ -~]{1,128}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Start:
    """A parsed StartRequest."""

    vm: Reference
    request_id: str | None
    parameters: StartParameters


@dataclass(frozen=True, slots=True, kw_only=True)
class Stop:
    """A parsed StopRequest."""

    vm: Reference
    request_id: str | None
    parameters: StopParameters


@dataclass(frozen=True, slots=True, kw_only=True)
class Watch:
    """A parsed WatchStatusRequest."""

    vms: tuple[str, ...]
    resume: Cursor | None
    heartbeat_interval: timedelta


@dataclass(frozen=True, slots=True, kw_only=True)
class ListVms:
    """A parsed ListVmsRequest; `after` is name and UUID of the last VM of the page before."""

    states: frozenset[VmState]
    matches: Callable[[str], object]
    page_size: int
    after: tuple[str, str] | None
    pages: Pages


@dataclass(frozen=True, slots=True, kw_only=True)
class History:
    """A parsed ListTransitionsRequest; `which` still lacks the VM, which is in `vm`."""

    vm: Reference | None
    which: HistoryFilter
    page_size: int
    after: Revision | None
    pages: Pages


def start(request: StartRequest) -> Start:
    """Parse what to start."""
    timeout = request.timeout if request.HasField("timeout") else None
    return Start(
        vm=reference("vm", request.vm),
        request_id=_request_id(request.request_id),
        parameters=StartParameters(
            paused=request.paused,
            discard_saved_state=request.discard_saved_state,
            force=request.force,
            timeout=_span("timeout", timeout, _TIMEOUT, shortest=_SECOND),
        ),
    )


def stop(request: StopRequest) -> Stop:
    """Parse what to stop."""
    mode = _choice("mode", request.mode, convert.STOP_MODE, StopMode.GRACEFUL)
    # The contract: ignored by FORCE. So it is not even looked at, and a repeat with another
    # one is still the same request.
    asked = mode is not StopMode.FORCE and request.HasField("grace_period")
    grace_period = request.grace_period if asked else None
    return Stop(
        vm=reference("vm", request.vm),
        request_id=_request_id(request.request_id),
        parameters=StopParameters(
            mode=mode,
            grace_period=_span("grace_period", grace_period, _GRACE_PERIOD, shortest=_SECOND),
            on_grace_expired=_choice(
                "on_grace_expired",
                request.on_grace_expired,
                convert.ON_GRACE_EXPIRED,
                OnGraceExpired.FAIL,
            ),
        ),
    )


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
        resume=_cursor("resume", request.resume) if request.HasField("resume") else None,
        heartbeat_interval=_span(
            "heartbeat_interval",
            interval,
            _HEARTBEAT_INTERVAL,
            shortest=_SHORTEST_HEARTBEAT_INTERVAL,
        ),
    )


def list_vms(request: ListVmsRequest) -> ListVms:
    """Parse which VMs to list."""
    states = set()
    for i, number in enumerate(request.states):
        state = convert.VM_STATE.member(number)
        if state is None:
            raise InvalidField(f"states[{i}]", f"no state has the number {number}")
        states.add(state)
    pages = Pages(request)
    key = pages.after(request.page_token)
    return ListVms(
        states=frozenset(states or set(VmState) - {VmState.GONE}),
        matches=_glob("name_glob", request.name_glob),
        page_size=_page_size(request.page_size, MAX_PAGE_SIZE),
        after=None if key is None else (key[36:], key[:36]),
        pages=pages,
    )


def history(request: ListTransitionsRequest, journal: JournalId) -> History:
    """Parse which transitions to read; a page token is only good for the journal it is from."""
    low, high = (
        _revision("min_revision", request.min_revision),
        _revision("max_revision", request.max_revision),
    )
    if low and high and low > high:
        raise InvalidField("min_revision", f"{low} is greater than max_revision {high}")
    since = _time("min_time", request.min_time) if request.HasField("min_time") else None
    until = _time("max_time", request.max_time) if request.HasField("max_time") else None
    if since and until and since > until:
        raise InvalidField("min_time", "is later than max_time")
    pages = Pages(request, journal)
    return History(
        vm=reference("vm", request.vm) if request.vm else None,
        which=HistoryFilter(
            min_revision=low or None,
            max_revision=high or None,
            min_time=since,
            max_time=until,
            oldest_first=request.oldest_first,
        ),
        page_size=_page_size(request.page_size, 100),
        after=_after_revision(pages.after(request.page_token)),
        pages=pages,
    )


def reference(field: str, text: str) -> Reference:
    """Parse a UUID, in any case and with or without dashes, or a name."""
    _name(field, text)
    if not text:
        raise InvalidField(field, "is required: the UUID or the name of a VM")
    if not _UUID.fullmatch(text):
        return (text,)
    digits = text.replace("-", "").lower()
    uuid = "-".join((digits[:8], digits[8:12], digits[12:16], digits[16:20], digits[20:]))
    return (uuid,) if uuid == text else (uuid, text)


def _name(field: str, text: str) -> None:
    size = len(text.encode())
    if size > MAX_NAME_BYTES:
        raise InvalidField(field, f"{size} bytes are more than {MAX_NAME_BYTES}")
    control = _CONTROL.search(text)
    if control:
        raise InvalidField(
            field,
            f"has the control character U+{ord(control[0]):04X} at position {control.start()}",
        )


def _request_id(text: str) -> str | None:
    if text and not _REQUEST_ID.fullmatch(text):
        raise InvalidField("request_id", "must be 1 to 128 printable ASCII characters")
    return text or None


def _choice(
    field: str, number: int, choice: convert.Choice[_Member, _Number], default: _Member
) -> _Member:
    if number == 0:
        return default
    member = choice.member(number)
    if member is None:
        raise InvalidField(field, f"no value has the number {number}")
    return member


def _span(
    field: str, message: Duration | None, default: timedelta, *, shortest: timedelta
) -> timedelta:
    if message is None:
        return default
    seconds, nanos = message.seconds, message.nanos
    if abs(nanos) > _MAX_NANOS or seconds * nanos < 0:
        raise InvalidField(
            field,
            f"is no duration: nanos ({nanos}) must lie within ±999999999 and have the sign of "
            f"seconds ({seconds})",
        )
    # Compared in nanoseconds: what rounding would let in or shut out is told from the limit.
    total = seconds * 10**9 + nanos
    if not _nanos(shortest) <= total <= _nanos(_HOUR):
        raise InvalidField(
            field,
            f"must be from {shortest.total_seconds():g} s to {_HOUR.total_seconds():g} s, "
            f"is {total / 10**9:.12g} s",
        )
    return timedelta(microseconds=total // 1000)


def _nanos(span: timedelta) -> int:
    return span // timedelta(microseconds=1) * 1000


def _time(field: str, message: Timestamp) -> datetime:
    if not (_FIRST_S <= message.seconds <= _LAST_S and 0 <= message.nanos <= _MAX_NANOS):
        raise InvalidField(
            field, "is no time: it must lie in the years 1 to 9999, with nanos from 0 to 999999999"
        )
    # Rounded up: times in the journal are whole microseconds, so "at or after" and "before"
    # then mean exactly what they say.
    micros = -(-message.nanos // 1000)
    if micros == _SECOND_MICROS and message.seconds == _LAST_S:
        micros -= 1
    return _EPOCH + timedelta(seconds=message.seconds, microseconds=micros)


def _revision(field: str, number: int) -> Revision:
    if number < 0:
        raise InvalidField(field, f"{number} is negative")
    return Revision(number)


def _cursor(field: str, message: CursorMessage) -> Cursor:
    if not message.journal_id:
        raise InvalidField(f"{field}.journal_id", "is required: as it came with the revision")
    if not _UUID.fullmatch(message.journal_id):
        raise InvalidField(f"{field}.journal_id", "is no UUID")
    return Cursor(
        journal_id=JournalId(reference(f"{field}.journal_id", message.journal_id)[0]),
        revision=_revision(f"{field}.revision", message.revision),
    )


def _page_size(number: int, default: int) -> int:
    if not 0 <= number <= MAX_PAGE_SIZE:
        raise InvalidField("page_size", f"must be from 0 to {MAX_PAGE_SIZE}, is {number}")
    return number or default


def _after_revision(key: str | None) -> Revision | None:
    if key is None:
        return None
    # Whoever computes tokens of his own gets an error like anybody else.
    if not re.fullmatch(r"[0-9]{1,19}", key) or int(key) > MAX_REVISION:
        raise InvalidField("page_token", "is not a token of this list")
    return Revision(int(key))


def _glob(field: str, pattern: str) -> Callable[[str], object]:
    _name(field, pattern)
    if not pattern:
        return lambda _: True
    # Not fnmatchcase: it keeps its 32,768 latest patterns, whoever sent them.
    return re.compile(fnmatch.translate(pattern)).match
