"""What gRPC logs of clients is told from what it logs of itself."""

from __future__ import annotations

import asyncio
import logging

import pytest
from grpc import aio

from vmagentd.api import chatter

GONE = aio.InternalError("execute_batch failed")
NO_TEXT = UnicodeDecodeError("utf-8", b"\xff", 0, 1, "invalid start byte")


@pytest.mark.parametrize("name", ["grpc._cython.cygrpc", "asyncio"])
@pytest.mark.parametrize(
    ("error", "kept"),
    [(GONE, 0), (NO_TEXT, 0), (asyncio.CancelledError(), 0), (ValueError("bug"), 1)],
)
def test_only_what_somebody_must_act_on_is_logged(
    caplog: pytest.LogCaptureFixture, name: str, error: BaseException, kept: int
) -> None:
    chatter.keep_out()
    logging.getLogger(name).error("raised by %s", "a method", exc_info=error)
    assert len(caplog.records) == kept


def test_an_error_that_is_the_message(caplog: pytest.LogCaptureFixture) -> None:
    chatter.keep_out()
    logging.getLogger("grpc._cython.cygrpc").error(NO_TEXT)
    assert not caplog.records
