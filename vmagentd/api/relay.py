"""Carries bytes between two sockets, both ways, no faster than either side takes them.

Every call of a local client passes here twice, so there is little between what is read and what
is sent at once: asyncio's transports cost more than the two system calls. What of a client's is
more than may go on stays here, and then nothing more of it is read. Runs on the loop.
"""

from __future__ import annotations

import asyncio
import math
import select
from typing import TYPE_CHECKING, Final

from typing_extensions import override  # typing has it since 3.12

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable

    from vmagentd.api.pace import Passage

# How long a side may take for what is left, when the other has ended.
_LAST_BYTES_S: Final = 5.0
# What the outer side takes from one look to the next if it takes an answer. Who takes none still
# takes gRPC's pings and what it returns for his own, one a second of 17 bytes, or the heartbeats
# of a watch.
_FLOW_BYTES: Final = 1024


class Relay:
    """Two sockets, joined while both last: the end of either is the end of both."""

    def __init__(
        self,
        buffer: memoryview,
        *,
        on_inner_end: Callable[[], None],
        passage: Passage | None = None,
    ) -> None:
        """Prepare.

        Args:
            buffer: what is received is put there for a moment; relays of one loop may share it.
                Its size is also the most that is kept for a side that does not read, beside
                what the kernel holds.
            on_inner_end: called before the inner socket is closed.
            passage: tells how much of what comes from the outer side may go on; None: all.
        """
        self._buffer = buffer
        self._on_inner_end = on_inner_end
        self._passage = passage
        self._give_up: asyncio.TimerHandle | None = None
        # when the outer side was last seen to take more than a few bytes, by the loop's clock
        self.flowed = -math.inf
        self._seen = 0
        self.ended = asyncio.Event()

    def join(self, outer: socket.socket, inner: socket.socket) -> None:
        """Take both sockets, which must not block, and begin; this relay closes them.

        Raises:
            OSError: the loop takes no more sockets; both are still the caller's.
        """
        self._outer = (
            _End(outer, self._buffer, self._on_end)
            if self._passage is None
            else _HeldEnd(outer, self._buffer, self._on_end, self._passage)
        )
        self._inner = _End(inner, self._buffer, self._on_end)
        self._outer.other, self._inner.other = self._inner, self._outer
        self._outer.listen()
        try:
            self._inner.listen()
        except OSError:
            self._outer.pause()
            raise

    def look(self) -> None:
        """See whether the outer side takes what is sent to it; to be called about each second."""
        if self._outer.taken - self._seen >= _FLOW_BYTES:
            self.flowed = asyncio.get_running_loop().time()
        self._seen = self._outer.taken

    def hush(self) -> None:
        """Take nothing more from the outer side; what is meant for it still goes there."""
        self._outer.mute()

    def end(self) -> None:
        """Take nothing more in, and close both when each has got what was meant for it."""
        self._outer.close()
        self._inner.close()

    def abort(self) -> None:
        """Close both at once."""
        self._outer.abort()
        self._inner.abort()

    def _on_end(self, end: _End) -> None:
        if end is self._inner:
            self._on_inner_end()
        if not end.other.ended:
            loop = asyncio.get_running_loop()
            self._give_up = loop.call_later(_LAST_BYTES_S, end.other.abort)
            end.other.close()
            return
        if self._give_up is not None:
            self._give_up.cancel()
        self.ended.set()


class _End:
    """One side of a relay.

    It is read only while the other has taken all that came before, so one buffer is the most
    that waits.
    """

    other: _End

    def __init__(
        self, itself: socket.socket, buffer: memoryview, on_end: Callable[[_End], None]
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._socket = itself
        self._buffer = buffer
        self._on_end = on_end
        # what this side has not taken yet; it is watched for room while there is any
        self._left = memoryview(b"")
        # how many bytes it has
        self.taken = 0
        self._closing = False
        self._muted = False
        self.ended = False

    @property
    def full(self) -> bool:
        """Whether it has not taken all that was sent to it."""
        return bool(self._left)

    def listen(self) -> None:
        if not (self._closing or self._muted):
            self._loop.add_reader(self._socket, self._read)

    def mute(self) -> None:
        """Read no more for good, and send on."""
        if not self._closing:
            self._muted = True
            self.pause()

    def pause(self) -> None:
        self._loop.remove_reader(self._socket)

    def close(self) -> None:
        """Read no more, and end once all is sent."""
        if self._closing:
            return
        self._closing = True
        self.pause()
        if not self._left:
            self._end()

    def abort(self) -> None:
        if self.ended:
            return
        if not self._closing:
            self._closing = True
            self.pause()
        self._drop()
        self._end()

    def _read(self) -> None:
        try:
            size = self._socket.recv_into(self._buffer)
        except BlockingIOError:
            return
        except OSError:
            self.abort()
            return
        if size:
            self._pass_on(self._buffer[:size])
        else:
            self.close()  # kept half open, connections were never given up

    def _pass_on(self, data: memoryview) -> None:
        self.other.send(data)

    def send(self, data: memoryview) -> None:
        try:
            sent = self._socket.send(data)
        except BlockingIOError:
            sent = 0
        except OSError:
            self.abort()
            return
        self.taken += sent
        if sent < len(data):
            self._left = memoryview(bytes(data[sent:]))
            self._loop.add_writer(self._socket, self._send_left)
            self.other.pause()

    def _send_left(self) -> None:
        try:
            sent = self._socket.send(self._left)
        except BlockingIOError:
            return
        except OSError:
            self.abort()
            return
        self.taken += sent
        self._left = self._left[sent:]
        if self._left:
            return
        self._drop()
        if self._closing:
            self._end()
        else:
            self.other.listen()

    def _drop(self) -> None:
        self._left = memoryview(b"")
        self._loop.remove_writer(self._socket)

    def _end(self) -> None:
        self.ended = True
        self._on_end(self)
        self._socket.close()


class _HeldEnd(_End):
    """The side of somebody of whom only so much may go on at a time."""

    def __init__(
        self,
        itself: socket.socket,
        buffer: memoryview,
        on_end: Callable[[_End], None],
        passage: Passage,
    ) -> None:
        super().__init__(itself, buffer, on_end)
        self._passage = passage
        # what has come and may not go on yet; nothing more is read while there is any
        self._held = memoryview(b"")

    @override
    def listen(self) -> None:
        if not self._held:
            super().listen()
        elif not (self._closing or self._muted):
            self._passage.wait(self._go_on)

    @override
    def _pass_on(self, data: memoryview) -> None:
        passed = self._passage.through(data)
        if passed == len(data):
            self.other.send(data)
            return
        self._held = data[passed:] if data.readonly else memoryview(bytes(data[passed:]))
        self.pause()
        if passed:
            self.other.send(data[:passed])
        if not self.other.full:  # else that has this side listen, once it is not
            self.listen()

    def _go_on(self) -> None:
        """Have a turn."""
        held = self._held
        if not held or self._closing or self._muted:
            return
        if _gone(self._socket):  # what it asked for is of no use to anybody
            self.abort()
            return
        self._held = memoryview(b"")
        self._pass_on(held)
        if not (self._held or self.other.full):
            self.listen()

    @override
    def _end(self) -> None:
        self._held = memoryview(b"")
        super()._end()


def _gone(peer: socket.socket) -> bool:
    """Return whether nobody is at the other end, whatever is still to be read."""
    hung_up = select.poll()
    hung_up.register(peer, 0)
    return bool(hung_up.poll(0))
