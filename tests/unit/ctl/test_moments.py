from __future__ import annotations

from datetime import UTC, datetime, timedelta, timezone

import pytest
from vmagent.ctl.moments import parse_moment

HERE = timezone(timedelta(hours=2))
NOW = datetime(2026, 1, 31, 12, 0, tzinfo=HERE)


@pytest.mark.parametrize(
    ("text", "moment"),
    [
        ("1200", 1200),
        ("2h30m", datetime(2026, 1, 31, 9, 30, tzinfo=HERE)),
        ("1.5s", NOW - timedelta(seconds=1.5)),
        ("23:59", datetime(2026, 1, 31, 23, 59, tzinfo=HERE)),
        ("08:00:01", datetime(2026, 1, 31, 8, 0, 1, tzinfo=HERE)),
        ("2026-01-30", datetime(2026, 1, 30, tzinfo=HERE)),
        ("2026-01-30T08:00", datetime(2026, 1, 30, 8, tzinfo=HERE)),
        ("2026-01-30 08:00", datetime(2026, 1, 30, 8, tzinfo=HERE)),
        ("2026-01-30T08:00:00Z", datetime(2026, 1, 30, 8, tzinfo=UTC)),
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
