"""Lets local clients in: accepts their connections, knows who they are, relays them to gRPC.

gRPC cannot tell who is behind a Unix socket. The kernel can, so connections are accepted here,
and each is relayed to gRPC's own socket through one that is bound to a name of its own, which
gRPC shows with every call. gRPC's own socket lies in a directory that nobody else may enter.

Names are random: those that the kernel gives by itself are few and come again. A name's entry
goes before its socket does. Runs on the loop.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import math
import secrets
import socket
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from vmagentd.api.directory import DirectorySilent
from vmagentd.api.pace import Passage
from vmagentd.api.peercred import credentials
from vmagentd.api.relay import Relay
from vmagentd.api.suspects import Suspects
from vmagentd.errors import CallerUnknown, LimitReached, ShutOut
from vmagentd.model import LocalPeer

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from vmagentd.api.directory import Directory
    from vmagentd.api.pace import Paces
    from vmagentd.errors import AccessError

log = logging.getLogger(__name__)

_SCHEME: Final = "unix-abstract:"

# Connections taken at a time, before others on the loop have their turn.
_AT_ONCE: Final = 16
# After which time accepting is tried again where descriptors or memory lacked.
_PAUSE_S: Final = 0.1
_LACKING: Final = {errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM}

# How long gRPC may take to accept: it may be starting anew.
_CONNECT_S: Final = 5.0
_RETRY_S: Final = 0.01
_BUFFER_BYTES: Final = 64 * 1024
# Names of connections that have ended, kept for calls that begin as their client goes.
_ENDED: Final = 1024
# What each connection needs: the client's, and both ends of the one to gRPC.
DESCRIPTORS: Final = 3

# To a client that is not let in: an empty SETTINGS and a GOAWAY with ENHANCE_YOUR_CALM.
_SETTINGS: Final = bytes.fromhex("000000040000000000")
_GOAWAY: Final = bytes.fromhex("0700000000000000000000000b")


@dataclass(frozen=True, slots=True, kw_only=True)
class Connections:
    """How many connections there may be."""

    # of one user
    each: int
    # of all; root is let in beyond that
    total: int


@dataclass(frozen=True, slots=True)
class _Connection:
    """One that is relayed."""

    peer: LocalPeer
    relay: Relay
    passage: Passage


class ClientGone(Exception):
    """The connection of a call ended before the call began: nobody is there to be told."""


class Gate:
    """The connections of local clients, and who is behind each."""

    def __init__(
        self,
        *,
        directory: Directory,
        limits: Connections,
        on_refusal: Callable[[str, AccessError], None],
        tasks: asyncio.TaskGroup,
    ) -> None:
        """Prepare.

        Args:
            directory: knows the names of users.
            limits: how many may be connected.
            on_refusal: told of every connection that is not let in: from where, and why.
            tasks: own what a connection needs until it is relayed.
        """
        self._directory = directory
        self.limits = limits
        self._on_refusal = on_refusal
        self._tasks = tasks
        self._listener: socket.socket | None = None
        self._pause: asyncio.TimerHandle | None = None
        self._private = ""
        self._counts: Counter[int] = Counter()
        # those that are not let in yet
        self._coming: set[asyncio.Task[None]] = set()
        # by gRPC's names for them
        self._connections: dict[str, _Connection] = {}
        self._ended: dict[str, _Connection] = {}
        # those of whom calls had not arrived when gRPC took no more
        self._lost: list[_Connection] = []
        self._buffer = memoryview(bytearray(_BUFFER_BYTES))

    def __len__(self) -> int:
        """Return how many connections there are."""
        return self._counts.total()

    def open(self, listener: socket.socket, private: Path, paces: Paces) -> None:
        """Accept from *listener*, relay to gRPC's socket at *private*, no faster than *paces*."""
        loop = asyncio.get_running_loop()
        self._listener, self._private, self._paces = listener, str(private), paces
        self._suspects = Suspects(has_role=paces.has_role, clock=loop.time)
        listener.settimeout(0)
        loop.add_reader(listener, self._accept)

    def shut(self) -> None:
        """Accept no more, nor let in who has not been yet; those who are in stay."""
        if self._listener is None:
            return
        asyncio.get_running_loop().remove_reader(self._listener)
        if self._pause is not None:
            self._pause.cancel()
        self._listener.close()
        self._listener = None
        for task in self._coming:
            task.cancel()

    def hush(self) -> None:
        """Take nothing more from those who are in; what is meant for them still reaches them."""
        for connection in self._connections.values():
            connection.relay.hush()

    async def close(self) -> None:
        """End all connections, each once its client has taken what was meant for it."""
        self.shut()
        relays = [connection.relay for connection in self._connections.values()]
        for relay in relays:
            relay.end()
        waits = [asyncio.ensure_future(relay.ended.wait()) for relay in relays]
        if waits:
            await asyncio.wait(waits, timeout=1)
        for relay, wait in zip(relays, waits, strict=True):
            wait.cancel()
            relay.abort()
        await asyncio.gather(*(relay.ended.wait() for relay in relays))

    def peer(self, name: str) -> LocalPeer:
        """Return who is behind a connection from which a call has come, by gRPC's name for it.

        Raises:
            ClientGone: it has ended.
            CallerUnknown: it did not come through here.
        """
        connection = self._connections.get(name)
        if connection is not None:
            connection.passage.arrived()
            return connection.peer
        if name in self._ended:
            self._ended[name].passage.arrived()
            raise ClientGone
        raise CallerUnknown("it is not connected through the daemon's socket")

    def cut(self, name: str) -> bool:
        """End a connection at once, by gRPC's name for it; return whether there is one."""
        connection = self._connections.get(name)
        if connection is not None:
            connection.relay.abort()
        return connection is not None

    def lost(self) -> None:
        """End all connections at once, as gRPC takes no calls any more.

        Else a call that has reached it and not yet us is told CANCELLED, and nobody tries that
        again.
        """
        known = (*self._connections.values(), *self._ended.values())
        self._lost = [connection for connection in known if connection.passage.lacks()]
        for connection in [*self._connections.values()]:
            connection.relay.abort()

    def accuse(self) -> None:
        """Shut out for a while those who may have brought that about.

        To be called when all calls have arrived that gRPC had taken before.
        """
        peers = [connection.peer for connection in self._lost if connection.passage.lacks()]
        self._lost = []
        for peer, why in self._suspects.suspect(peers):
            self._on_refusal(str(peer), why)

    def tidy(self) -> None:
        """Forget what is known of users who are gone, and see which clients take what is sent."""
        self._paces.forget_idle(self._counts)
        for connection in self._connections.values():
            connection.relay.look()

    def flowed(self, name: str) -> float:
        """Return when a client was last seen to take what it is sent, by the loop's clock."""
        connection = self._connections.get(name)
        return -math.inf if connection is None else connection.relay.flowed

    def _accept(self) -> None:
        for _ in range(_AT_ONCE):
            if self._listener is None:
                return
            try:
                client, _ = self._listener.accept()
            except (BlockingIOError, ConnectionAbortedError):
                return
            except OSError as error:
                if error.errno not in _LACKING:
                    raise
                # Whoever waits goes on waiting, in the kernel's queue.
                log.warning("no more connections for now: %s", error.strerror)
                loop = asyncio.get_running_loop()
                loop.remove_reader(self._listener)
                self._pause = loop.call_later(_PAUSE_S, self._go_on, self._listener)
                return
            client.settimeout(0)
            try:
                pid, uid, gids = credentials(client)
            except OSError as error:
                log.error("nobody tells who connected: %s", error)  # noqa: TRY400 - says it all
                client.close()
                continue
            refusal = self._refusal(uid)
            if refusal is not None:
                self._on_refusal(f"uid {uid}, pid {pid}", refusal)
                _turn_away(client, str(refusal))
                continue
            self._counts[uid] += 1
            task = self._tasks.create_task(self._let_in(client, pid, uid, gids), name="gate")
            self._coming.add(task)
            task.add_done_callback(self._coming.discard)

    def _go_on(self, listener: socket.socket) -> None:
        if self._listener is listener:
            asyncio.get_running_loop().add_reader(listener, self._accept)

    def _refusal(self, uid: int) -> LimitReached | None:
        if self._counts[uid] >= self.limits.each:
            return LimitReached(f"uid:{uid}", "connections", self.limits.each)
        # So that others cannot keep root out.
        if uid != 0 and self._counts.total() >= self.limits.total:
            return LimitReached("the daemon", "connections", self.limits.total)
        return None

    async def _let_in(
        self, client: socket.socket, pid: int, uid: int, gids: frozenset[int]
    ) -> None:
        """Relay one connection; returns when it has begun."""
        name = f"vmagentd-{secrets.token_hex(16)}"
        ours = f"{_SCHEME}{name}"

        def inner_end() -> None:
            self._ended[ours] = self._connections.pop(ours)
            if len(self._ended) > _ENDED:
                del self._ended[next(iter(self._ended))]
            self._leave(uid)

        inner: socket.socket | None = None
        try:
            user = await self._directory.user(uid)
            peer = LocalPeer(uid=uid, gids=gids, pid=pid, user=user)
            passage = Passage(self._paces, peer)
            await passage.begin()
            inner = await self._connected(name)
            self._suspects.check(peer)
            relay = Relay(self._buffer, on_inner_end=inner_end, passage=passage)
            relay.join(client, inner)
            self._connections[ours] = _Connection(peer, relay, passage)
        except (DirectorySilent, ShutOut) as error:
            self._leave(uid)
            if inner is not None:
                inner.close()
            _turn_away(client, str(error))
            if isinstance(error, ShutOut):
                self._on_refusal(f"uid {uid}, pid {pid}", error)
            log.debug("not let in: %s", error)
        except BaseException as error:
            self._leave(uid)
            client.close()
            if inner is not None:
                inner.close()
            if not isinstance(error, OSError | TimeoutError):
                raise
            log.warning("a connection of uid %d cannot be relayed: %s", uid, error)

    async def _connected(self, name: str) -> socket.socket:
        """Return a socket of that name that is connected to gRPC."""
        made = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        try:
            made.bind(f"\0{name}")
            async with asyncio.timeout(_CONNECT_S):
                while True:
                    try:
                        made.connect(self._private)
                    except (BlockingIOError, ConnectionRefusedError, FileNotFoundError):
                        # It has a full queue, or is starting anew. No event tells when.
                        await asyncio.sleep(_RETRY_S)
                    else:
                        return made
        except BaseException:
            made.close()
            raise

    def _leave(self, uid: int) -> None:
        self._counts[uid] -= 1
        if not self._counts[uid]:
            del self._counts[uid]


def _turn_away(client: socket.socket, why: str) -> None:
    """Tell in HTTP/2 why a client is not let in, as far as it takes that at once."""
    text = why.encode()[:200]
    goaway = (8 + len(text)).to_bytes(3) + _GOAWAY + text
    with client, suppress(OSError):
        client.send(_SETTINGS + goaway)
