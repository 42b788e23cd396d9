"""The line that `systemctl status` shows."""

from __future__ import annotations

from datetime import UTC, datetime

from vmagentd.model import Link
from vmagentd.notify import status_line

NOON = datetime(2026, 1, 2, 12, tzinfo=UTC)


def test_all_is_well() -> None:
    line = status_line([], watchers=1, link=Link(connected=True), trouble=None)
    assert line == "0 VMs, 0 running; 1 watcher"


def test_what_is_wrong_comes_first_and_in_one_line() -> None:
    link = Link(connected=False, blind_since=NOON, cause="connection\nreset")
    line = status_line([], watchers=2, link=link, trouble="disk full")
    assert line == (
        "JOURNAL CANNOT BE WRITTEN: disk full; BLIND since 2026-01-02 12:00:00 UTC: connection "
        "reset; 0 VMs, 0 running; 2 watchers"
    )
