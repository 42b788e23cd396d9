"""What gRPC logs as errors although a client did no more than send nonsense, or leave.

Any client may, as often as it likes, and nobody must act on it: it stays out of the log. What
follows from it, if anything does, is told by `server.py`.
"""

from __future__ import annotations

import asyncio
import logging
from typing import Final

from grpc import aio

# gRPC's own; and asyncio's, for a task of gRPC's that ended by one: see `Server._keep_serving`.
_LOGGERS: Final = ("grpc._cython.cygrpc", "asyncio")
# a text that is not UTF-8; an answer to a call whose client has gone; a call that ended before it
# began to be served
_HARMLESS: Final = (UnicodeDecodeError, aio.InternalError, asyncio.CancelledError)


def _matters(record: logging.LogRecord) -> bool:
    error = record.exc_info[1] if record.exc_info else None
    # of the text that ends its loop gRPC logs the error as the message
    return not isinstance(error, _HARMLESS) and not isinstance(record.msg, _HARMLESS)


def keep_out() -> None:
    """Keep such records out of the log. Harmless when repeated."""
    for name in _LOGGERS:
        logging.getLogger(name).addFilter(_matters)
