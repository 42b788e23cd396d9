"""The virConnects of one life of the connection: one for events, one for each thread that calls.

A link never carries two calls at once, for two reasons seen with libvirt 9.0:

- libvirtd reads no more from a client that has `max_client_requests` (5) calls under way, not
  even keepalive: five calls into guests that hang get a healthy link cut off.
- When keepalive cuts a link off, one waiting thread gets its error; others that wait on the
  same link hang for ever or crash the process. A broken socket (EOF) wakes them all.

libvirt's test driver is the exception: it lives in this process and each virConnect to it may
be a world of its own, so one serves all.

Runs in the pools' threads, never on the event loop. It never reconnects the events link.
"""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING

import libvirt

from vmagentd.errors import LibvirtUnreachable
from vmagentd.model import HypervisorFacts

from .events import Subscription, VirConnect, VirDomain

if TYPE_CHECKING:
    from collections.abc import Callable

    from vmagentd.model import EventKind, RawPair

# A link is cut off after so many intervals of silence, and one.
_KEEPALIVE_COUNT = 3
_NO_SUPPORT = 3
_CLOSE_REASONS = {
    libvirt.VIR_CONNECT_CLOSE_REASON_ERROR: "connection closed: I/O error",
    libvirt.VIR_CONNECT_CLOSE_REASON_EOF: "connection closed: end of file",
    libvirt.VIR_CONNECT_CLOSE_REASON_KEEPALIVE: "connection closed: keepalive timeout",
    libvirt.VIR_CONNECT_CLOSE_REASON_CLIENT: "connection closed by this process",
}


class Links:
    """Open links to one libvirt."""

    def __init__(
        self,
        uri: str,
        *,
        keepalive_s: int,
        on_event: Callable[[VirDomain, EventKind, RawPair], None],
        on_close: Callable[[str], None],
        on_raise: Callable[[BaseException], None],
    ) -> None:
        """Open the events link and register for events; may block for as long as libvirtd hangs.

        Args:
            uri: libvirt's connection URI.
            keepalive_s: interval in which each link is asked whether it is still there.
            on_event: called in the `libvirt-events` thread with each event.
            on_close: called with the cause when the events link is found broken, perhaps more
                than once, in whichever thread finds it.
            on_raise: called with what `on_event` raises; libvirt-python would print it and go on.

        Raises:
            LibvirtUnreachable: for whatever reason.
        """
        self._uri, self._keepalive_s = uri, keepalive_s
        self._events: VirConnect = None
        self._own: dict[tuple[str, int], VirConnect] = {}
        self._shared = uri.partition(":")[0] == "test"
        self._closed = False
        self._on_close = on_close
        self._subscription: Subscription | None = None
        try:
            self._events = _open(uri, keepalive_s)
            self.facts = _facts(self._events)
            _register_close(self._events, on_close)
            self._subscription = Subscription(self._events, on_event=on_event, on_raise=on_raise)
        except libvirt.libvirtError as error:
            self.close()
            raise LibvirtUnreachable(_text(error)) from error

    @property
    def monitored(self) -> bool:
        """Whether QEMU's own events are heard too."""
        return self._subscription is not None and self._subscription.monitored

    def of(self, role: str, number: int) -> VirConnect:
        """Return the link of the calling thread, number *number* of *role*; opened if need be.

        Raises:
            LibvirtUnreachable: it could not be opened.
        """
        if self._shared:
            link = self._events
            if link is None:
                raise LibvirtUnreachable("the connection is closed")
            return link
        link = self._own.get((role, number))
        if link is None or not link.isAlive():
            try:
                link = _open(self._uri, self._keepalive_s)
            except libvirt.libvirtError as error:
                raise LibvirtUnreachable(_text(error)) from error
            self._own[role, number] = link
        if self._closed:  # perhaps after the links were let go
            self._own.clear()
            raise LibvirtUnreachable("the connection is closed")
        return link

    def suspect(self) -> None:
        """Look whether the events link is broken too, after another one was.

        Its close callback tells the same; this is for drivers that have none.
        """
        events = self._events
        if events is not None and not events.isAlive():
            self._on_close("connection closed")

    def close(self) -> None:
        """Deregister and let go of all links; blocks while libvirtd hangs.

        A link closes with its last reference, perhaps that of a call under way in another
        thread: libvirt would free it under that call's feet if it were closed here.
        """
        if self._closed:
            return
        self._closed = True
        events, self._events = self._events, None
        if events is None:  # it was not opened
            return
        with suppress(libvirt.libvirtError):
            events.unregisterCloseCallback()
        if self._subscription is not None:
            self._subscription.end()
        self._own.clear()


def _open(uri: str, keepalive_s: int) -> VirConnect:
    link = libvirt.open(uri)
    try:
        link.setKeepAlive(keepalive_s, _KEEPALIVE_COUNT)
    except libvirt.libvirtError as error:
        _pass_unsupported(error)
    return link


def _register_close(link: VirConnect, on_close: Callable[[str], None]) -> None:
    def closed(_link: VirConnect, reason: int, _opaque: None) -> None:
        on_close(_CLOSE_REASONS.get(reason, f"connection closed: reason {reason}"))

    try:
        link.registerCloseCallback(closed, None)
    except libvirt.libvirtError as error:
        _pass_unsupported(error)


def _pass_unsupported(error: libvirt.libvirtError) -> None:
    """Embedded drivers have no socket that could break."""
    if error.get_error_code() != _NO_SUPPORT:
        raise error


def _facts(link: VirConnect) -> HypervisorFacts:
    _, memory_mib, cpus, *_ = link.getInfo()
    return HypervisorFacts(
        libvirt_version=_version(link.getLibVersion()),
        hypervisor_version=f"{link.getType()} {_version(link.getVersion())}",
        host_cpus=cpus,
        host_memory_bytes=memory_mib << 20,
    )


def _version(number: int) -> str:
    return f"{number // 1_000_000}.{number // 1000 % 1000}.{number % 1000}"


def _text(error: libvirt.libvirtError) -> str:
    return str(error.get_error_message() or error)
