"""Values of the contract as words: enum values, times, sizes, and names nobody can trust.

A newer daemon may send an enum value that is not known here: it shows as its number.
"""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

from google.protobuf.duration_pb2 import Duration

from vmagent.v1.operation_pb2 import OperationOutcome, OperationPhase, OperationVerb
from vmagent.v1.vm_pb2 import InitiatorKind, Source, VmReason, VmState

if TYPE_CHECKING:
    from collections.abc import Iterator

    from google.protobuf.descriptor import EnumDescriptor
    from google.protobuf.message import Message
    from google.protobuf.timestamp_pb2 import Timestamp

    from vmagent.v1.operation_pb2 import Operation
    from vmagent.v1.vm_pb2 import Initiator

NOTHING = "-"
# The phases of an operation that is over.
ENDED = {
    OperationPhase.OPERATION_PHASE_SUCCEEDED,
    OperationPhase.OPERATION_PHASE_FAILED,
    OperationPhase.OPERATION_PHASE_CANCELLED,
    OperationPhase.OPERATION_PHASE_INTERRUPTED,
}
_KIBI = 1024
_MINUTE = timedelta(minutes=1)
_HOURS_MATTER_DAYS = 10
_WORD_START = re.compile(r"(?<=[a-z])(?=[A-Z])")


def plain(text: str) -> str:
    """Return *text* on one line and without anything that a terminal would obey.

    A VM's name may hold any character: what is not printable (control characters, line ends,
    changes of writing direction) is shown escaped.
    """
    if text.isprintable():
        return text
    return "".join(
        c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text
    )


def value_name(enum: EnumDescriptor, number: int) -> str:
    """Return the name of an enum's value without the enum's prefix, or its number."""
    value = enum.values_by_number.get(number)
    if value is None:
        return str(number)
    return value.name.removeprefix(_WORD_START.sub("_", enum.name).upper() + "_")


def value_names(enum: EnumDescriptor) -> str:
    """Return the names of all values of an enum, as they may be written: `done, already_done`."""
    return ", ".join(value_name(enum, n).lower() for n in enum.values_by_number if n)


def _words(enum: EnumDescriptor, number: int) -> str:
    return value_name(enum, number).lower().replace("_", " ") if number else NOTHING


def state_word(state: int) -> str:
    """Return a VM state as it stands in the contract: `RUNNING`."""
    return value_name(VmState.DESCRIPTOR, state) if state else NOTHING


def reason_words(reason: int) -> str:
    """Return why a VM is in its state: `clean shutdown`. Not told and not known are alike."""
    return NOTHING if reason == VmReason.VM_REASON_UNKNOWN else _words(VmReason.DESCRIPTOR, reason)


def source_word(source: int) -> str:
    """Return how the daemon learned of something: `event`."""
    return _words(Source.DESCRIPTOR, source)


def phase_word(phase: int) -> str:
    """Return where an operation stands: `accepted`."""
    return _words(OperationPhase.DESCRIPTOR, phase)


def verb_word(verb: int) -> str:
    """Return what an operation does: `stop`."""
    return _words(OperationVerb.DESCRIPTOR, verb)


def outcome_word(outcome: int) -> str:
    """Return how an operation succeeded: `already done`."""
    return _words(OperationOutcome.DESCRIPTOR, outcome)


def parameter_words(operation: Operation) -> Iterator[tuple[str, str]]:
    """Yield what an operation was asked for, by name: `Grace period`, `1m`. Unset is not told."""
    chosen = operation.WhichOneof("parameters")
    if chosen is None:
        return
    parameters: Message = getattr(operation, chosen)
    for field, value in parameters.ListFields():
        name = field.name.replace("_", " ").capitalize()
        if isinstance(value, Duration):
            yield name, length(value.ToTimedelta())
        elif field.enum_type is not None:
            yield name, _words(field.enum_type, value)
        else:
            yield name, "yes" if value is True else plain(str(value))


def initiator_words(initiator: Initiator) -> str:
    """Return who caused something: a client by its own identity, others by their kind."""
    if initiator.kind == InitiatorKind.INITIATOR_KIND_CLIENT:
        return plain(initiator.actor) or "client"
    if initiator.kind == InitiatorKind.INITIATOR_KIND_UNKNOWN:
        return NOTHING
    return _words(InitiatorKind.DESCRIPTOR, initiator.kind)


def short(operation_id: str) -> str:
    """Return the part of an operation's identity that people compare."""
    return plain(operation_id[:8])


def moment_of(stamp: Timestamp) -> datetime:
    """Return a timestamp as an aware time."""
    return stamp.ToDatetime(tzinfo=UTC)


def clock(stamp: Timestamp) -> str:
    """Return a time on this machine's clock, to the second."""
    return f"{moment_of(stamp).astimezone():%F %T}"


def fine_clock(stamp: Timestamp) -> str:
    """Return a time on this machine's clock, to the millisecond."""
    return f"{clock(stamp)}.{stamp.nanos // 1_000_000:03d}"


def age(stamp: Timestamp, now: datetime) -> str:
    """Return how long ago a time is, in its two largest units; a future one is now."""
    return span(now - moment_of(stamp))


def ago(stamp: Timestamp, now: datetime) -> str:
    """Return a time twice: on the clock, and how long ago."""
    return f"{clock(stamp)} ({age(stamp, now)} ago)"


def span(interval: timedelta) -> str:
    """Return a length of time in its two largest units: `3h12m`, `45s`, `12d`."""
    seconds = max(0, int(interval.total_seconds()))
    days, hours, minutes = seconds // 86_400, seconds // 3_600 % 24, seconds // 60 % 60
    if days:
        return f"{days}d{hours}h" if hours and days < _HOURS_MATTER_DAYS else f"{days}d"
    if hours:
        return f"{hours}h{minutes}m" if minutes else f"{hours}h"
    if minutes:
        return f"{minutes}m{seconds % 60}s" if seconds % 60 else f"{minutes}m"
    return f"{seconds}s"


def length(interval: timedelta) -> str:
    """Return a length of time as exactly as it matters: `0.012 s`, `3h12m`."""
    return f"{interval.total_seconds():.3f} s" if interval < _MINUTE else span(interval)


def size(count: int) -> str:
    """Return a number of bytes in its largest binary unit: `1.5 GiB`."""
    amount, unit = float(count), "B"
    for larger in ("KiB", "MiB", "GiB", "TiB"):
        if amount < _KIBI:
            break
        amount, unit = amount / _KIBI, larger
    return f"{amount:.1f}".removesuffix(".0") + f" {unit}"


def counted(count: int, noun: str) -> str:
    """Return a number and its noun: `1 VM`, `2 VMs`."""
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"
