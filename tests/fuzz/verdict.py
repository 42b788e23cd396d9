"""What a client may be told: a status that is meant, and nothing of the daemon's inside."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    import grpc

# What a status says of a fault, and where no other fits.
_UNKNOWN, _INTERNAL, _DATA_LOSS = 2, 13, 15
_FAULTS: Final = frozenset({_UNKNOWN, _INTERNAL, _DATA_LOSS})
# gRPC's core ends calls that never came to the daemon's code with INTERNAL, and bears no details.
DETAILS: Final = "grpc-status-details-bin"

# Texts of Python's, and places in its memory or its files.
_LEAK: Final = re.compile(
    r"Traceback|<class '|File \"|\.py\b|object at 0x|Unexpected <|peewee|sqlite3\.|"
    r"(Type|Value|Key|Index|Attribute|Assertion|Runtime|Decode|Unicode\w*)Error"
)


class Leak(AssertionError):
    """A client was told what it must not be told."""


def judge(code: int, text: str, *, typed: bool) -> None:
    """Check how a call ended; *typed* tells whether it had details, as all our errors have.

    Raises:
        Leak: by a fault, or with a text that is not for clients.
    """
    if _LEAK.search(text):
        raise Leak(f"a client was told {code}: {text!r}")
    if code in _FAULTS and (typed or code != _INTERNAL):
        raise Leak(f"a client was told of a fault, {code}: {text!r}")


def judge_error(error: grpc.RpcError) -> None:
    """Check how a call of gRPC's client ended."""
    told: Any = error
    typed = any(key == DETAILS for key, _ in told.trailing_metadata() or ())
    judge(told.code().value[0], told.details() or "", typed=typed)
