"""A minute of fuzzing, the same each time; `make fuzz` goes on for longer."""

from __future__ import annotations

import time

import pytest

from tests.fuzz.lane import Fuzz

SECONDS = 40.0


@pytest.mark.timeout(180)
def test_nothing_that_is_sent_does_harm() -> None:
    with Fuzz(seed=1) as fuzz:
        end, number = time.monotonic() + SECONDS, 0
        while time.monotonic() < end:
            fuzz.round(number)
            number += 1
        fuzz.target.end()
