"""Bytes that are no request: told what is wrong with them, never more."""

from __future__ import annotations

from contextlib import suppress

import pytest
from grpc_reflection.v1alpha.reflection_pb2 import ServerReflectionRequest
from hypothesis import given
from hypothesis import strategies as st
from vmagent.v1 import transition_pb2
from vmagent.v1 import vm_agent_service_pb2 as pb

from vmagentd.api.malformed import parsed
from vmagentd.api.status import MalformedRequest
from vmagentd.errors import InvalidField

BAD = b"\xff\xfe"


def field(number: int, content: bytes) -> bytes:
    """Return a length-delimited field as it stands on the wire."""
    return bytes([number << 3 | 2, len(content)]) + content


def test_a_message_is_parsed() -> None:
    request = pb.StartRequest(vm="web", paused=True)
    assert parsed(pb.StartRequest, request.SerializeToString()) == request


def test_fields_of_a_newer_client_are_passed_over() -> None:
    assert parsed(pb.StartRequest, field(1, b"web") + field(15, BAD)).vm == "web"


@pytest.mark.parametrize(
    ("message", "raw", "path"),
    [
        (pb.StartRequest, field(1, BAD), "vm"),
        (pb.StartRequest, field(1, b"web") + field(2, BAD), "request_id"),
        (pb.StartRequest, field(15, BAD) + field(1, BAD), "vm"),
        (pb.WatchStatusRequest, field(1, b"a") + field(1, BAD), "vms[1]"),
        (pb.WatchStatusRequest, field(2, field(1, BAD)), "resume.journal_id"),
        (pb.StartResponse, field(1, field(9, field(4, field(2, BAD)))), None),
        (pb.StartResponse, field(1, field(9, field(2, BAD))), "operation.error.reason"),
        (
            pb.ListTransitionsResponse,
            field(1, b"") + field(1, field(3, field(5, field(2, BAD)))),
            "transitions[1].vm.initiator.actor",
        ),
        (ServerReflectionRequest, field(3, BAD), "file_by_filename"),
    ],
)
def test_a_text_that_is_not_utf8_is_named(message: type, raw: bytes, path: str | None) -> None:
    with pytest.raises(InvalidField) as caught:
        parsed(message, raw)
    assert caught.value.field == (path or "operation.error.metadata[0].value")


def test_a_long_one_is_not_searched() -> None:
    """Field by field that would hold everybody else up, for whoever likes to send it."""
    texts = field(1, b"") * 3000
    with pytest.raises(MalformedRequest, match="or a text in it is not UTF-8") as caught:
        parsed(pb.WatchStatusRequest, texts + field(1, BAD))
    assert caught.value.facts == {"expected": "vmagent.v1.WatchStatusRequest"}
    assert len(parsed(pb.WatchStatusRequest, texts).vms) == 3000


@pytest.mark.parametrize(
    "raw",
    [
        b"\xff",
        b"\x0a\x05a",
        b"\x0b",
        b"\x0c",
        b"\x00",
        field(2, b"\x0a\x05a"),
        field(2, b"\xff"),
        b"\x08" + b"\xff" * 11,
    ],
)
def test_damaged_bytes_are_no_message(raw: bytes) -> None:
    with pytest.raises(MalformedRequest) as caught:
        parsed(pb.WatchStatusRequest, raw)
    assert caught.value.facts == {"expected": "vmagent.v1.WatchStatusRequest"}


@given(st.binary(max_size=200))
def test_any_bytes_are_a_message_or_told_off(raw: bytes) -> None:
    for message in (pb.WatchStatusRequest, transition_pb2.Transition):
        with suppress(InvalidField, MalformedRequest):
            parsed(message, raw)


@given(st.recursive(st.binary(max_size=8), lambda inner: st.lists(inner, max_size=3)))
def test_any_nesting_is_a_message_or_told_off(tree: bytes | list[object]) -> None:
    def wire(node: object) -> bytes:
        if isinstance(node, bytes):
            return node
        assert isinstance(node, list)
        return b"".join(field(1 + i, wire(each)[:100]) for i, each in enumerate(node))

    with suppress(InvalidField, MalformedRequest):
        parsed(pb.ListTransitionsResponse, wire(tree))
