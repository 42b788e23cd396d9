"""What a client says in HTTP/2, seen from outside: where frames begin, and which begin calls.

Only what kind a frame is and how long is looked at, never what is in it, so a frame costs the
same whatever its size. Who is out of step with HTTP/2 here is so in gRPC too, which then ends the
connection.
"""

from __future__ import annotations

import struct
from typing import Final

# What frames cost: one that begins a call as much as so many others.
FRAME: Final = 1
CALL: Final = 32

_PREFACE_BYTES: Final = 24
_HEADER_BYTES: Final = 9
# Of a header, what is looked at: three bytes of length and one of kind.
_LENGTH_AND_KIND: Final = struct.Struct(">I")
# Also trailers, which no client of gRPC sends. What CONTINUATION adds belongs to the same call.
_HEADERS: Final = 1


class Follower:
    """Keeps the place in what one client says."""

    def __init__(self) -> None:
        # how many calls have begun
        self.calls = 0
        # bytes until the next header; fewer than none: so many of it have come already, these
        self._ahead = _PREFACE_BYTES
        self._come = b""

    def within(self, data: memoryview, budget: int) -> tuple[int, int]:
        """Return up to where *data*, which comes next, costs at most *budget*, and how much.

        What is beyond that comes next again.
        """
        place, cost, size = self._ahead, 0, len(data)
        enough = _LENGTH_AND_KIND.size
        while place + enough <= size:
            if place >= 0:
                (beginning,) = _LENGTH_AND_KIND.unpack_from(data, place)
            else:
                (beginning,) = _LENGTH_AND_KIND.unpack(self._come + data[: place + enough])
            call = beginning & 0xFF == _HEADERS
            price = CALL if call else FRAME
            if cost + price > budget:
                self._ahead = min(place, 0)
                return max(place, 0), cost
            cost += price
            self.calls += call
            place += _HEADER_BYTES + (beginning >> 8)
        if place < size:
            self._come = (self._come if place < 0 else b"") + data[max(place, 0) :]
        self._ahead = place - size
        return size, cost
