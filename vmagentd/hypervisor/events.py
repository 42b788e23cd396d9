"""The events that are taken from one link, and what each means.

Beside libvirt's own events these are a few of QEMU's, from its monitor. They tell who began what
libvirt tells the end of: a guest that shuts down by itself and one that obeys a power button look
the same in libvirt. Subscribing to them has no side effect: libvirt neither marks the domain as
tainted nor logs anything (measured, libvirt 9.0). Where they cannot be had, that stays unknown.

Callbacks run in the `libvirt-events` thread.
"""

from __future__ import annotations

import json
from contextlib import suppress
from typing import TYPE_CHECKING, Any, TypeAlias

import libvirt
import libvirt_qemu

from vmagentd.model import EventKind, RawPair

from .translate import event_kind

if TYPE_CHECKING:
    from collections.abc import Callable

# libvirt-python has no types of its own
VirConnect: TypeAlias = Any
VirDomain: TypeAlias = Any

Meaning: TypeAlias = tuple[EventKind, RawPair] | None

# What has no numbers of the lifecycle events; those begin at 0.
_NO_NUMBERS = RawPair(-1, 0)
_AGENT_CONNECTED = 1


def _lifecycle(link: VirConnect, event: int, detail: int) -> Meaning:
    says_resumed = link.getType() == "QEMU"  # known since the open: no call to libvirtd
    return event_kind(event, detail, says_resumed=says_resumed), RawPair(event, detail)


def _reboot(_link: VirConnect) -> Meaning:
    return EventKind.REBOOT, _NO_NUMBERS


def _control_error(_link: VirConnect) -> Meaning:
    return EventKind.CONTROL_ERROR, _NO_NUMBERS


def _agent(_link: VirConnect, state: int, _reason: int) -> Meaning:
    return (EventKind.AGENT_CONNECTED, _NO_NUMBERS) if state == _AGENT_CONNECTED else None


# libvirt's events, each with what it means by what libvirt says beside the domain
_LIBVIRT: tuple[tuple[int, Callable[..., Meaning]], ...] = (
    (libvirt.VIR_DOMAIN_EVENT_ID_AGENT_LIFECYCLE, _agent),
    # the only event of a start that fails
    (libvirt.VIR_DOMAIN_EVENT_ID_CONTROL_ERROR, _control_error),
    (libvirt.VIR_DOMAIN_EVENT_ID_LIFECYCLE, _lifecycle),
    (libvirt.VIR_DOMAIN_EVENT_ID_REBOOT, _reboot),
)


def _powerdown(_details: dict[str, object]) -> EventKind | None:
    return EventKind.POWER_BUTTON


def _shutdown(details: dict[str, object]) -> EventKind | None:
    return EventKind.GUEST_FINISHED if details.get("reason") == "guest-shutdown" else None


def _reset(details: dict[str, object]) -> EventKind | None:
    match details.get("guest"):
        case True:
            return EventKind.RESET_BY_GUEST
        case False:
            return EventKind.RESET_BY_HOST
        case _:
            return None


# QEMU's events by name, each with what it means by its data
_QEMU: tuple[tuple[str, Callable[[dict[str, object]], EventKind | None]], ...] = (
    ("POWERDOWN", _powerdown),
    ("SHUTDOWN", _shutdown),
    ("RESET", _reset),
)


class Subscription:
    """The callbacks that are registered on one link, from its making to `end`."""

    def __init__(
        self,
        link: VirConnect,
        *,
        on_event: Callable[[VirDomain, EventKind, RawPair], None],
        on_raise: Callable[[BaseException], None],
    ) -> None:
        """Register.

        Args:
            link: an open link.
            on_event: called in the `libvirt-events` thread with each event.
            on_raise: called with what `on_event` raises; libvirt-python would print it and go on.
        """
        self._link = link
        self._on_event = on_event
        self._on_raise = on_raise
        self._libvirt: list[int] = []
        self._qemu: list[int] = []
        # whether QEMU's own events are heard too
        self.monitored = self._register_qemu()
        for number, meaning in _LIBVIRT:
            callback = self._from_libvirt(meaning)
            self._libvirt.append(link.domainEventRegisterAny(None, number, callback, None))

    def end(self) -> None:
        """Deregister; errors of a dead link do not matter, its callbacks are freed anyway."""
        for callback in self._libvirt:
            with suppress(libvirt.libvirtError):
                self._link.domainEventDeregisterAny(callback)
        for callback in self._qemu:
            with suppress(libvirt.libvirtError):
                libvirt_qemu.qemuMonitorEventDeregister(self._link, callback)

    def _register_qemu(self) -> bool:
        try:
            for name, meaning in _QEMU:
                callback = self._from_qemu(meaning)
                self._qemu.append(
                    libvirt_qemu.qemuMonitorEventRegister(self._link, None, name, callback, None)
                )
        except libvirt.libvirtError:  # not QEMU, or not allowed
            return False
        return True

    def _from_libvirt(self, meaning: Callable[..., Meaning]) -> Callable[..., None]:
        def dispatch(link: VirConnect, domain: VirDomain, *said: Any) -> None:  # noqa: ANN401
            try:
                meant = meaning(link, *said[:-1])  # the last is libvirt's opaque
                if meant is not None:
                    self._on_event(domain, *meant)
            except BaseException as error:  # noqa: BLE001  (control leaves our code here)
                self._on_raise(error)

        return dispatch

    def _from_qemu(
        self, meaning: Callable[[dict[str, object]], EventKind | None]
    ) -> Callable[..., None]:
        def dispatch(
            _link: VirConnect,
            domain: VirDomain,
            _name: str,
            _seconds: int,
            _microseconds: int,
            details: str | None,
            _opaque: None,
        ) -> None:
            try:
                kind = meaning(json.loads(details) if details else {})
                if kind is not None:
                    self._on_event(domain, kind, _NO_NUMBERS)
            except BaseException as error:  # noqa: BLE001  (control leaves our code here)
                self._on_raise(error)

        return dispatch
