"""SECURITY.md names tests: they are there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
TESTS = ROOT / "tests"
NAMED = re.findall(
    r"`((?:unit|component|system|fuzz|host)/[\w/.]*)`((?:\s*[(:][^)]*?\))?)",
    (ROOT / "SECURITY.md").read_text(encoding="utf-8"),
)


def test_some_are_named() -> None:
    assert len(NAMED) > 20


@pytest.mark.parametrize(("place", "names"), NAMED, ids=[place for place, _ in NAMED])
def test_what_is_said_to_show_it_is_there(place: str, names: str) -> None:
    path = TESTS / place
    assert path.exists()
    for name in re.findall(r"`(test_\w+)`", names):
        assert re.search(rf"\bdef {name}\b", path.read_text(encoding="utf-8")), name
