"""The connection to libvirt: up, or blind with a cause; and the way of every event.

Owns the events link and the `libvirt-link` threads that open and close links. `Connection.keep`
is the only one who reconnects. Events are numbered and recorded in the `libvirt-events` thread,
all else is on the event loop. A callback from libvirt never calls libvirt back, never logs and
never raises: what goes wrong in it is handed to the loop as fatal.
"""

from __future__ import annotations

import asyncio
import logging
import random
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Never

from vmagentd import messages
from vmagentd.errors import LibvirtUnreachable
from vmagentd.model import Event, EventKind, LinkLost, RawPair, VmUuid
from vmagentd.pool import NotRun, Pool

from . import eventloop
from .links import Links

if TYPE_CHECKING:
    from collections.abc import Callable
    from concurrent.futures import Future

    from vmagentd.model import HypervisorFacts

    from .events import VirDomain

log = logging.getLogger(__name__)

# A libvirtd that is back is found within a second: an attempt at a local socket costs little.
_FIRST_DELAY_S, _LONGEST_DELAY_S = 0.05, 0.8
# A link that broke sooner than this counts as one more failure, not as a fresh start.
_STEADY_S = 10.0
# How long an open may take until we say that libvirt does not answer; it is waited for on.
_PATIENCE_S = 10.0
_CLOSE_DEADLINE = timedelta(seconds=2)


class _Life:
    """One attempt to be connected, from its open to the loss; tells late callbacks apart."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.broken: asyncio.Future[None] = loop.create_future()
        # Set from the loop, read in libvirt's threads. Cleared before the next open: an event
        # of an old link that comes later yet is older than the next survey.
        self.listening = True


class Connection:
    """libvirt as the rest of the daemon sees it: connected or not, and its events recorded."""

    def __init__(
        self,
        uri: str,
        *,
        record: Callable[[Event | LinkLost], None],
        on_up: Callable[[], None],
        fatal: Callable[[BaseException], None],
        jitter: Callable[[float], float] = lambda longest: random.uniform(0, longest),  # noqa: S311
        keepalive_s: int = 5,
    ) -> None:
        """Prepare; `keep` does the work.

        Args:
            uri: libvirt's connection URI.
            record: takes events, called in the `libvirt-events` thread, and losses of the link,
                called on the loop, one for each loss however many attempts fail after it.
            on_up: called on the loop when a link is up and its events are registered.
            fatal: called on the loop with an exception of a callback or of libvirt's event
                loop: the daemon cannot go on.
            jitter: returns how many seconds to wait, given the longest that it may be.
            keepalive_s: a libvirtd that says nothing for four times as long is given up.
        """
        self._uri = uri
        self._record = record
        self._on_up = on_up
        self._fatal = fatal
        self._jitter = jitter
        self._keepalive_s = keepalive_s
        self._pool = Pool("libvirt-link", 2)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._life: _Life | None = None
        self._links: Links | None = None
        self._blind_since: datetime | None = None
        self._loss_told = False
        # Number of the last event taken. Written in the `libvirt-events` thread after the event
        # is recorded: who reads n knows that the events up to n are on their way to the journal.
        self.events_taken = 0
        # Links are counted from 1; this is the present one, or the last.
        self.link = 0
        self.connected = False
        self.cause: str | None = "not connected yet"
        self.facts: HypervisorFacts | None = None

    def links(self) -> Links:
        """Return the open links.

        Raises:
            LibvirtUnreachable: blind.
        """
        if self._links is None or not self.connected:
            raise LibvirtUnreachable(self.cause or "connecting", self._blind_since)
        return self._links

    def lost(self) -> asyncio.Future[None] | None:
        """Return what is done once the present links are found broken; do not change it."""
        return None if self._life is None else self._life.broken

    async def keep(self) -> Never:
        """Connect, wait until the link breaks, connect again; run this as one task."""
        self._loop = asyncio.get_running_loop()
        self._blind_since = _now()
        eventloop.start().add_done_callback(self._event_loop_ended)
        failures = 0
        while True:
            life = self._life = _Life(self._loop)
            try:
                await self._open(life)
            except LibvirtUnreachable as error:
                self._blind(error.cause)
            else:
                up_at = self._loop.time()
                await life.broken
                if self._loop.time() - up_at > _STEADY_S:
                    failures = 0
                await self._let_go()
            life.listening = False
            await asyncio.sleep(self._jitter(min(_LONGEST_DELAY_S, _FIRST_DELAY_S * 2**failures)))
            failures = min(failures + 1, 10)

    async def close(self) -> None:
        """Deregister callbacks and close the links, within 2 s even if libvirtd hangs.

        Call it when the task of `keep` has ended. No event is recorded after it.
        """
        await self._let_go()
        if self._life is not None:
            self._life.listening = False
        self._pool.close()
        self.connected = False
        self.cause = "closed"

    async def _open(self, life: _Life) -> None:
        assert self._loop is not None  # noqa: S101  (keep has set it)
        # An open can hang for as long as a stopped libvirtd does. It is not given up: its thread
        # could not be, and a second one would only hang beside it.
        impatience = self._loop.call_later(_PATIENCE_S, self._blind, "libvirt does not answer")
        try:
            links = await self._pool.run(lambda _: self._connect(life))
        except asyncio.CancelledError:
            life.listening = False
            raise
        finally:
            impatience.cancel()
        self._links = links
        if life.broken.done():
            return
        self.facts = links.facts
        self.link += 1
        self.connected, self.cause, self._loss_told = True, None, False
        self._blind_since = None
        log.info(
            "libvirt %s at %s: connected",
            links.facts.libvirt_version,
            self._uri,
            extra={"MESSAGE_ID": messages.LIBVIRT_BACK},
        )
        self._on_up()

    def _connect(self, life: _Life) -> Links:
        """Open the links; in a `libvirt-link` thread."""

        def event(domain: VirDomain, kind: EventKind, raw: RawPair) -> None:
            if life.listening:
                self._take(domain, kind, raw)

        def closed(cause: str) -> None:
            self._on_loop(self._broken, life, _now(), cause)

        def raised(error: BaseException) -> None:
            self._on_loop(self._fatal, error)

        links = Links(
            self._uri,
            keepalive_s=self._keepalive_s,
            on_event=event,
            on_close=closed,
            on_raise=raised,
        )
        if not life.listening:  # nobody waits any more
            links.close()
        return links

    def _take(self, domain: VirDomain, kind: EventKind, raw: RawPair) -> None:
        """Number and record an event; in the `libvirt-events` thread. UUID, name, id are local."""
        number = self.events_taken + 1
        run_id = domain.ID()
        self._record(
            Event(
                number=number,
                vm=VmUuid(domain.UUIDString()),
                name=domain.name(),
                kind=kind,
                raw=raw,
                run_id=None if run_id == -1 else run_id,
                observe_time=_now(),
            )
        )
        self.events_taken = number

    def _broken(self, life: _Life, time: datetime, cause: str) -> None:
        if life.broken.done() or life is not self._life:
            return
        life.broken.set_result(None)
        if self.connected:
            self._blind_since = time
        self._blind(cause)

    def _blind(self, cause: str) -> None:
        self.connected, self.cause = False, cause
        if not self._loss_told:
            self._loss_told = True
            log.warning(
                "libvirt at %s: %s", self._uri, cause, extra={"MESSAGE_ID": messages.LIBVIRT_LOST}
            )
            time = self._blind_since or _now()
            self._record(LinkLost(time=time, cause=cause, link=self.link))

    async def _let_go(self) -> None:
        links, self._links = self._links, None
        if links is not None:
            # What hangs here goes on in its thread, and ends with libvirtd or with this process.
            with suppress(NotRun, TimeoutError):
                await self._pool.run(lambda _: links.close(), deadline=_CLOSE_DEADLINE)

    def _event_loop_ended(self, ended: Future[None]) -> None:
        error = ended.exception()
        if error is not None:
            self._on_loop(self._fatal, error)

    def _on_loop(self, call: Callable[..., None], *args: object) -> None:
        assert self._loop is not None  # noqa: S101  (keep has set it)
        with suppress(RuntimeError):  # the loop is closed, and so is the daemon
            self._loop.call_soon_threadsafe(call, *args)


def _now() -> datetime:
    return datetime.now(UTC)
