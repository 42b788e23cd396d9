"""libvirt's own event loop: without it no event, no keepalive, no close callback.

Owns the thread `libvirt-events`. libvirt has one event loop in a process: it must be registered
before the first connection is opened, cannot be replaced, and must then run for ever, even when
all connections are closed. So it is started once, and only the end of the process ends it.
The thread runs libvirt's loop and, in it, the callbacks; it never does anything else.
"""

from __future__ import annotations

import threading
from concurrent.futures import Future
from functools import cache

import libvirt


@cache
def start() -> Future[None]:
    """Start the event loop, if this process has not; call it before opening a connection.

    Returns:
        A future, the same each time, which only ever ends with the exception that ended the
        loop. Its callbacks then run in the `libvirt-events` thread.
    """
    # libvirt prints every error to stderr unless it is told not to
    libvirt.registerErrorHandler(_silent, None)
    libvirt.virEventRegisterDefaultImpl()
    ended: Future[None] = Future()
    threading.Thread(target=_run, args=(ended,), name="libvirt-events", daemon=True).start()
    return ended


def _silent(_context: object, _error: object) -> None:
    """Print nothing: each error is raised where it happened."""


def _run(ended: Future[None]) -> None:
    try:
        while True:
            libvirt.virEventRunDefaultImpl()
    except BaseException as error:  # noqa: BLE001  (a thread's main function)
        ended.set_exception(error)
