"""Messages for hypothesis, made from their descriptors: nothing to keep in step."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from google.protobuf import message_factory
from google.protobuf.descriptor import Descriptor, FieldDescriptor
from hypothesis import strategies as st

if TYPE_CHECKING:
    from collections.abc import Callable

    from google.protobuf.message import Message

# VMs of the daemon's, and what is none.
VMS: Final = ("fuzz0", "fuzz1", "fuzz2", "fuzz3")
_NAMES = st.sampled_from([
    *VMS,
    *(f"0000000{n}-0000-4000-8000-000000000000" for n in range(5)),
    "nobody",
    "*",
    "fuzz?",
    "libvirt",
    "vmagent.v1.VmAgentService",
])  # fmt: skip
_TEXTS = _NAMES | st.text(max_size=30) | st.sampled_from(["", "a" * 255, "ä" * 200, "\x00", "é\n"])
_TEXTS |= st.integers(0, 70_000).map(lambda size: "x" * size)


def _integers(low: int, high: int) -> st.SearchStrategy[int]:
    edges = st.sampled_from([0, 1, 2, 3, 100, 1000, low, high, high - 1])
    return edges | st.integers(low, high)


_INT32, _INT64 = _integers(-(2**31), 2**31 - 1), _integers(-(2**63), 2**63 - 1)
_UINT32, _UINT64 = _integers(0, 2**32 - 1), _integers(0, 2**64 - 1)
_FLOATS = st.floats(width=32)

_F = FieldDescriptor
_SCALARS: Final[dict[int, st.SearchStrategy[Any]]] = {
    _F.TYPE_BOOL: st.booleans(),
    _F.TYPE_BYTES: st.binary(max_size=64),
    _F.TYPE_DOUBLE: st.floats(),
    _F.TYPE_FIXED32: _UINT32,
    _F.TYPE_FIXED64: _UINT64,
    _F.TYPE_FLOAT: _FLOATS,
    _F.TYPE_INT32: _INT32,
    _F.TYPE_INT64: _INT64,
    _F.TYPE_SFIXED32: _INT32,
    _F.TYPE_SFIXED64: _INT64,
    _F.TYPE_SINT32: _INT32,
    _F.TYPE_SINT64: _INT64,
    _F.TYPE_STRING: _TEXTS,
    _F.TYPE_UINT32: _UINT32,
    _F.TYPE_UINT64: _UINT64,
}
_DEPTH: Final = 4


def messages(of: Descriptor, depth: int = _DEPTH) -> st.SearchStrategy[Message]:
    """Return any message of that type: each field there or not, sensible or not."""
    fields = [field for field in of.fields if depth or field.type != _F.TYPE_MESSAGE]
    made = st.fixed_dictionaries({}, optional={each.name: _field(each, depth) for each in fields})
    return made.map(_made(message_factory.GetMessageClass(of)))


def _made(kind: type[Message]) -> Callable[[dict[str, Any]], Message]:
    def make(fields: dict[str, Any]) -> Message:
        # of a oneof the last one stays
        return kind(**fields)

    return make


def _field(field: FieldDescriptor, depth: int) -> st.SearchStrategy[Any]:
    kind: Any = field.message_type
    if kind is not None and kind.GetOptions().map_entry:
        key, value = kind.fields
        return st.dictionaries(_field(key, depth), _field(value, depth), max_size=3)
    if kind is not None:
        one = _known(kind) | messages(kind, depth - 1)
    elif field.enum_type is not None:
        known = st.sampled_from([value.number for value in field.enum_type.values])
        one = known | known | _INT32
    else:
        one = _SCALARS[field.type]
    return st.lists(one, max_size=5) if field.is_repeated else one


def _known(kind: Descriptor) -> st.SearchStrategy[Any]:
    """Return messages of that type that are likely to mean something."""
    make = _made(message_factory.GetMessageClass(kind))
    seconds = {
        "google.protobuf.Duration": st.integers(0, 4),
        "google.protobuf.Timestamp": st.integers(1_700_000_000, 2_000_000_000),
    }.get(kind.full_name)
    if seconds is None:
        return st.just(make({}))
    nanos = st.sampled_from([0, 1, 500_000_000, 999_999_999])
    return st.fixed_dictionaries({"seconds": seconds, "nanos": nanos}).map(make)
