from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

import pytest
from google.protobuf.timestamp_pb2 import Timestamp
from hypothesis import given
from hypothesis import strategies as st
from vmagent.ctl.words import (
    age,
    initiator_words,
    outcome_word,
    phase_word,
    plain,
    reason_words,
    size,
    source_word,
    span,
    state_word,
    verb_word,
)
from vmagent.v1.operation_pb2 import OperationOutcome, OperationPhase, OperationVerb
from vmagent.v1.vm_pb2 import Initiator, InitiatorKind, Source, VmReason, VmState

if TYPE_CHECKING:
    from collections.abc import Callable

    from google.protobuf.descriptor import EnumDescriptor


@given(st.text())
def test_nothing_that_a_terminal_obeys_passes(text: str) -> None:
    assert plain(text).isprintable()
    if text.isprintable():
        assert plain(text) == text


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("wéb-1 [bold]", "wéb-1 [bold]"),
        ("\x1b[31mred\x1b[0m", "\\x1b[31mred\\x1b[0m"),
        ("two\nlines\t", "two\\nlines\\t"),
        ("txt\u202egpj", "txt\\u202egpj"),  # would be written from right to left
        ("\x9b31m", "\\x9b31m"),  # the eight-bit form of ESC [
    ],
)
def test_what_it_would_obey_is_shown(name: str, shown: str) -> None:
    assert plain(name) == shown


@pytest.mark.parametrize(
    ("word", "expected"),
    [
        (state_word(VmState.VM_STATE_MIGRATED_AWAY), "MIGRATED_AWAY"),
        (state_word(0), "-"),
        (state_word(99), "99"),
        (reason_words(VmReason.VM_REASON_CLEAN_SHUTDOWN), "clean shutdown"),
        (reason_words(VmReason.VM_REASON_UNKNOWN), "-"),
        (reason_words(99), "99"),
        (source_word(Source.SOURCE_SURVEY), "survey"),
    ],
)
def test_a_value_is_its_word_and_a_newer_one_its_number(word: str, expected: str) -> None:
    assert word == expected


@pytest.mark.parametrize(
    ("word", "enum"),
    [
        (state_word, VmState.DESCRIPTOR),
        (reason_words, VmReason.DESCRIPTOR),
        (source_word, Source.DESCRIPTOR),
        (phase_word, OperationPhase.DESCRIPTOR),
        (verb_word, OperationVerb.DESCRIPTOR),
        (outcome_word, OperationOutcome.DESCRIPTOR),
    ],
)
def test_every_value_has_its_word(word: Callable[[int], str], enum: EnumDescriptor) -> None:
    words = [word(number) for number in enum.values_by_number if number]
    assert len(words) == len(set(words))
    assert not any(each.isdigit() for each in words)


@pytest.mark.parametrize(
    ("initiator", "words"),
    [
        (Initiator(kind=InitiatorKind.INITIATOR_KIND_CLIENT, actor="al\x07ice"), "al\\x07ice"),
        (Initiator(kind=InitiatorKind.INITIATOR_KIND_CLIENT), "client"),
        (Initiator(kind=InitiatorKind.INITIATOR_KIND_OUT_OF_BAND), "out of band"),
        (Initiator(kind=InitiatorKind.INITIATOR_KIND_UNKNOWN), "-"),
        (Initiator(), "-"),
        (Initiator(kind=InitiatorKind.ValueType(42)), "42"),
    ],
)
def test_a_client_is_named_and_others_are_a_kind(initiator: Initiator, words: str) -> None:
    assert initiator_words(initiator) == words


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (-3, "0s"),
        (0.9, "0s"),
        (59, "59s"),
        (60, "1m"),
        (3599, "59m59s"),
        (3600, "1h"),
        (11_520, "3h12m"),
        (86_400, "1d"),
        (90_000, "1d1h"),
        (864_000 + 3600, "10d"),
    ],
)
def test_a_span_has_its_two_largest_units(seconds: float, words: str) -> None:
    assert span(timedelta(seconds=seconds)) == words


def test_an_age_is_the_span_until_now() -> None:
    assert age(Timestamp(seconds=1000), datetime.fromtimestamp(1090, UTC)) == "1m30s"


@pytest.mark.parametrize(
    ("count", "words"),
    [(0, "0 B"), (1023, "1023 B"), (1024, "1 KiB"), (3 << 29, "1.5 GiB"), (1 << 55, "32768 TiB")],
)
def test_a_size_is_in_its_largest_unit(count: int, words: str) -> None:
    assert size(count) == words
