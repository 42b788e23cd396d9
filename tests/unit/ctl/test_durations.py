from __future__ import annotations

from datetime import timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st
from vmagent.ctl.durations import parse_duration


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("30s", 30),
        ("1m30s", 90),
        ("500ms", 0.5),
        ("2h", 7200),
        ("1d", 86400),
        ("1h0m1s", 3601),
        ("1.5h", 5400),
        ("90", 90),
        ("0.25", 0.25),
        ("0", 0),
    ],
)
def test_a_duration_is_what_people_write(text: str, seconds: float) -> None:
    assert parse_duration(text) == timedelta(seconds=seconds)


@pytest.mark.parametrize(
    "text",
    ["", " ", "x", "5x", "-5s", "+5", "1e3", "inf", "nan", "s", "5 s", "1m 30s", ".5", "5.", "٣s"],
)
def test_anything_else_is_refused_by_name(text: str) -> None:
    with pytest.raises(ValueError, match="is not a duration") as error:
        parse_duration(text)
    assert repr(text) in str(error.value)


@pytest.mark.parametrize("text", ["36501d", "9" * 400, "9" * 400 + "d"])
def test_no_number_is_large_enough_to_break_it(text: str) -> None:
    with pytest.raises(ValueError, match="is longer than"):
        parse_duration(text)


@given(st.text(max_size=20))
def test_it_understands_or_refuses(text: str) -> None:
    try:
        assert parse_duration(text) >= timedelta(0)
    except ValueError as error:
        assert "duration" in str(error) or "longer" in str(error)  # noqa: PT017  # not always
