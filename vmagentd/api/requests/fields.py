"""Single fields of requests, parsed: each either means something, or is one `InvalidField`."""

from __future__ import annotations

import fnmatch
import re
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, TypeVar

from vmagentd.errors import InvalidField
from vmagentd.model import Cursor, JournalId, OperationId, OperationPlace, Revision

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from enum import StrEnum

    from google.protobuf.duration_pb2 import Duration
    from google.protobuf.message import Message
    from google.protobuf.timestamp_pb2 import Timestamp
    from vmagent.v1.transition_pb2 import Cursor as CursorMessage

    from vmagentd.api import convert

_Member = TypeVar("_Member", bound="StrEnum")
_Number = TypeVar("_Number", bound=int)

# What a client may have meant: the reference in its one true spelling and, where that differs
# from what it wrote, also what it wrote, since a VM's name may look like a UUID.
Reference = tuple[str, ...]

MAX_NAME_BYTES = 255
MAX_WATCHED_VMS = 1000
# more than there are of any kind, also in newer versions
MAX_CHOICES = 100
MAX_PAGE_SIZE = 1000
MAX_REVISION = 2**63 - 1

SECOND = timedelta(seconds=1)
_HOUR = timedelta(hours=1)

_MAX_NANOS = 999_999_999
_SECOND_MICROS = 1_000_000

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_FIRST_S = int((datetime.min.replace(tzinfo=UTC) - _EPOCH).total_seconds())
_LAST_S = int((datetime.max.replace(tzinfo=UTC, microsecond=0) - _EPOCH).total_seconds())

_UUID = re.compile(r"[0-9a-fA-F]{8}(-?)(?:[0-9a-fA-F]{4}\1){3}[0-9a-fA-F]{12}")
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]")
# microseconds since 1970: so many digits reach to the year 5138, more may overflow
_OPERATION_PLACE = re.compile(r"([0-9]{1,17}):(.{1,64})")
_REQUEST_ID = re.compile(r"[ -~]{1,128}")


def reference(field: str, text: str) -> Reference:
    """Parse a UUID, in any case and with or without dashes, or a name."""
    name(field, text)
    if not text:
        raise InvalidField(field, "is required: the UUID or the name of a VM")
    if not _UUID.fullmatch(text):
        return (text,)
    digits = text.replace("-", "").lower()
    uuid = "-".join((digits[:8], digits[8:12], digits[12:16], digits[16:20], digits[20:]))
    return (uuid,) if uuid == text else (uuid, text)


def name(field: str, text: str) -> None:
    """Check a name: at most MAX_NAME_BYTES of UTF-8, no control characters."""
    size = len(text.encode())
    if size > MAX_NAME_BYTES:
        raise InvalidField(field, f"{size} bytes are more than {MAX_NAME_BYTES}")
    control = _CONTROL.search(text)
    if control:
        raise InvalidField(
            field,
            f"has the control character U+{ord(control[0]):04X} at position {control.start()}",
        )


def request_id(text: str) -> str | None:
    """Parse a client's identity for a request; empty is none."""
    if text and not _REQUEST_ID.fullmatch(text):
        raise InvalidField("request_id", "must be 1 to 128 printable ASCII characters")
    return text or None


def operation_id(field: str, text: str) -> OperationId:
    """Parse the identity of an operation: a UUID, in any case and with or without dashes."""
    if not text:
        raise InvalidField(field, "is required: the UUID of an operation")
    if not _UUID.fullmatch(text):
        raise InvalidField(field, "is no UUID")
    return OperationId(reference(field, text)[0])


def choice(
    field: str, number: int, choice: convert.Choice[_Member, _Number], default: _Member
) -> _Member:
    """Parse an enum value; 0 is *default*."""
    if number == 0:
        return default
    member = choice.member(number)
    if member is None:
        raise InvalidField(field, f"no value has the number {number}")
    return member


def choices(
    field: str, numbers: Sequence[int], choice: convert.Choice[_Member, _Number]
) -> frozenset[_Member]:
    """Parse a list of enum values, at most MAX_CHOICES; an empty one means all."""
    if len(numbers) > MAX_CHOICES:
        raise InvalidField(field, f"{len(numbers)} values are more than {MAX_CHOICES}")
    members = set()
    for i, number in enumerate(numbers):
        member = choice.member(number)
        if member is None:
            raise InvalidField(f"{field}[{i}]", f"no value has the number {number}")
        members.add(member)
    return frozenset(members)


def interval(request: Message, first: str, last: str) -> tuple[datetime | None, datetime | None]:
    """Parse the two fields that say from when on, and before when; either may be unset."""
    since, until = (
        time(field, getattr(request, field)) if request.HasField(field) else None
        for field in (first, last)
    )
    if since and until and since > until:
        raise InvalidField(first, f"is later than {last}")
    return since, until


def span(
    field: str, message: Duration | None, default: timedelta, *, shortest: timedelta
) -> timedelta:
    """Parse a duration from *shortest* to an hour; one that is not there is *default*."""
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


def time(field: str, message: Timestamp) -> datetime:
    """Parse a time, rounded up to what the journal's times have."""
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


def revision(field: str, number: int) -> Revision:
    """Parse a revision; 0 is none."""
    if number < 0:
        raise InvalidField(field, f"{number} is negative")
    return Revision(number)


def cursor(field: str, message: CursorMessage) -> Cursor:
    """Parse a place in a journal."""
    if not message.journal_id:
        raise InvalidField(f"{field}.journal_id", "is required: as it came with the revision")
    if not _UUID.fullmatch(message.journal_id):
        raise InvalidField(f"{field}.journal_id", "is no UUID")
    return Cursor(
        journal_id=JournalId(reference(f"{field}.journal_id", message.journal_id)[0]),
        revision=revision(f"{field}.revision", message.revision),
    )


def page_size(number: int, default: int) -> int:
    """Parse a page size; 0 is *default*."""
    if not 0 <= number <= MAX_PAGE_SIZE:
        raise InvalidField("page_size", f"must be from 0 to {MAX_PAGE_SIZE}, is {number}")
    return number or default


def after_revision(key: str | None) -> Revision | None:
    """Parse the revision in a page token."""
    if key is None:
        return None
    # It is one of ours, but may be one of another version's.
    if not re.fullmatch(r"[0-9]{1,19}", key) or int(key) > MAX_REVISION:
        raise InvalidField("page_token", "is not a token of this list")
    return Revision(int(key))


def after_operation(key: str | None) -> OperationPlace | None:
    """Parse the place in a page token."""
    if key is None:
        return None
    found = _OPERATION_PLACE.fullmatch(key)
    if found is None:
        raise InvalidField("page_token", "is not a token of this list")
    micros, operation = found.groups()
    time = _EPOCH + timedelta(microseconds=int(micros))
    return OperationPlace(accept_time=time, id=OperationId(operation))


def operation_key(place: OperationPlace) -> str:
    """Return what a page token says of the place behind which the next page begins."""
    return f"{(place.accept_time - _EPOCH) // timedelta(microseconds=1)}:{place.id}"


def glob(field: str, pattern: str) -> Callable[[str], object]:
    """Parse a pattern for names; empty matches all."""
    name(field, pattern)
    if not pattern:
        return lambda _: True
    # Not fnmatchcase: it keeps its 32,768 latest patterns, whoever sent them.
    return re.compile(fnmatch.translate(pattern)).match
