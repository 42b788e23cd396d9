from __future__ import annotations

import time
from datetime import UTC, datetime, timedelta, timezone
from typing import TYPE_CHECKING

import pytest
from vmagent.ctl.moments import parse_moment

if TYPE_CHECKING:
    from collections.abc import Iterator

WINTER = timezone(timedelta(hours=1))
SUMMER = timezone(timedelta(hours=2))
NOW = datetime(2026, 1, 31, 0, 30, tzinfo=WINTER)


@pytest.fixture(autouse=True)
def _in_berlin(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    with monkeypatch.context() as patch:
        patch.setenv("TZ", "CET-1CEST,M3.5.0,M10.5.0/3")  # its rules: a host may not know its name
        time.tzset()
        yield
    time.tzset()


@pytest.mark.parametrize(
    ("text", "moment"),
    [
        ("1200", 1200),
        ("2h30m", datetime(2026, 1, 30, 22, 0, tzinfo=WINTER)),
        ("1.5s", NOW - timedelta(seconds=1.5)),
        ("23:59", datetime(2026, 1, 31, 23, 59, tzinfo=WINTER)),
        ("08:00:01", datetime(2026, 1, 31, 8, 0, 1, tzinfo=WINTER)),
        ("23:00Z", datetime(2026, 1, 30, 23, tzinfo=UTC)),
        ("2026-01-30", datetime(2026, 1, 30, tzinfo=WINTER)),
        ("2026-01-30T08:00", datetime(2026, 1, 30, 8, tzinfo=WINTER)),
        ("2026-01-30 08:00", datetime(2026, 1, 30, 8, tzinfo=WINTER)),
        ("2026-01-30T08:00:00Z", datetime(2026, 1, 30, 8, tzinfo=UTC)),
        # what the clock on the wall showed then, not what it would show now
        ("2025-07-30", datetime(2025, 7, 30, tzinfo=SUMMER)),
        ("2025-07-30T08:00", datetime(2025, 7, 30, 8, tzinfo=SUMMER)),
    ],
)
def test_a_place_in_history_is_a_revision_a_time_or_an_age(
    text: str, moment: int | datetime
) -> None:
    assert parse_moment(text, NOW) == moment


@pytest.mark.parametrize("text", ["", "yesterday", "-5", "25:00", "2026-13-01", "5 h", "9" * 19])
def test_anything_else_is_refused_by_name(text: str) -> None:
    with pytest.raises(ValueError, match="neither a revision nor a time") as error:
        parse_moment(text, NOW)
    assert repr(text) in str(error.value)


@pytest.mark.parametrize(
    "text",
    [
        "0001-01-01",
        "0001-01-01T00:00+14:00",
        "9999-12-31T23:59:59-12:00",
        "9999-12-31T23:59:59-01",
    ],
)
def test_a_time_that_utc_has_no_year_for_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="is not within the years 1 to 9999"):
        parse_moment(text, NOW)
