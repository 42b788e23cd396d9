"""Where log lines go: standard error, for a person or for systemd.

Messages are constant with arguments; facts that a program may want are passed as `extra`, in
capitals, the way journald names its fields.
"""

from __future__ import annotations

import logging
import os
import sys

from typing_extensions import override  # typing has it since 3.12

_PRIORITIES = {
    logging.DEBUG: "<7>",
    logging.INFO: "<6>",
    logging.WARNING: "<4>",
    logging.ERROR: "<3>",
    logging.CRITICAL: "<2>",
}


class _ForSystemd(logging.Formatter):
    """A line with its priority in front, as sd-daemon(3) has it; the journal adds the time."""

    @override
    def format(self, record: logging.LogRecord) -> str:
        priority = _PRIORITIES.get(record.levelno, "<6>")
        return "\n".join(priority + line for line in super().format(record).splitlines())


def set_up(level: str) -> None:
    """Send all log records of at least *level* to standard error."""
    handler = logging.StreamHandler(sys.stderr)
    if "JOURNAL_STREAM" in os.environ:
        handler.setFormatter(_ForSystemd("%(message)s"))
    else:
        handler.setFormatter(
            logging.Formatter(
                "{asctime}.{msecs:03.0f} {levelname:<7} {message}", "%H:%M:%S", style="{"
            )
        )
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)
    # peewee logs each statement, asyncio and gRPC how they loop: nobody's business even at DEBUG
    for chatty in ("asyncio", "grpc", "peewee"):
        logging.getLogger(chatty).setLevel(logging.WARNING)
