"""Bytes that are no message: what is wrong with them, so that their sender finds it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, TypeVar

from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.empty_pb2 import Empty
from google.protobuf.message import DecodeError, Message
from google.protobuf.unknown_fields import UnknownFieldSet

from vmagentd.api.status import MalformedRequest
from vmagentd.errors import InvalidField

if TYPE_CHECKING:
    from collections.abc import Iterator

    from google.protobuf.descriptor import Descriptor

_Request = TypeVar("_Request", bound=Message)

_LENGTH_DELIMITED = 2

# The search for a bad text takes 1 ms per KiB, on the loop, and needs no role to ask for. So long
# is no request but a WatchStatus for many VMs.
_SEARCHED_BYTES: Final = 4096


def parsed(request: type[_Request], raw: bytes) -> _Request:
    """Return the message in *raw*.

    Raises:
        InvalidField: a text in it is not UTF-8, which protobuf's own error does not tell from
            any other damage.
        MalformedRequest: it is not a message of this type; or it is long, and a text is not UTF-8.
    """
    try:
        return request.FromString(raw)
    except DecodeError:
        pass
    descriptor: Any = request.DESCRIPTOR
    if len(raw) > _SEARCHED_BYTES:
        problem = "its bytes cannot be parsed, or a text in it is not UTF-8"
        raise MalformedRequest(descriptor.full_name, problem)
    try:
        for path in _texts_not_utf8(descriptor, raw):
            raise InvalidField(path, "is not UTF-8")
    except DecodeError:
        pass
    raise MalformedRequest(descriptor.full_name, "its bytes cannot be parsed")


def _texts_not_utf8(descriptor: Descriptor, raw: bytes) -> Iterator[str]:
    """Yield the path of every text below *descriptor* that is not UTF-8."""
    seen: dict[int, int] = {}
    # To a message without fields every field is unknown, and none is looked into.
    unknown = UnknownFieldSet(Empty.FromString(raw))
    for found in map(unknown.__getitem__, range(len(unknown))):
        field = descriptor.fields_by_number.get(found.field_number)
        if field is None or found.wire_type != _LENGTH_DELIMITED:
            continue
        index = seen.get(field.number, 0)
        seen[field.number] = index + 1
        path = f"{field.name}[{index}]" if field.is_repeated else field.name
        if field.type == FieldDescriptor.TYPE_STRING and not _is_utf8(found.data):
            yield path
        elif field.message_type is not None:
            for inner in _texts_not_utf8(field.message_type, found.data):
                yield f"{path}.{inner}"


def _is_utf8(text: bytes) -> bool:
    try:
        text.decode()
    except UnicodeDecodeError:
        return False
    return True
