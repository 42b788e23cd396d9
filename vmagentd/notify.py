"""What systemd is told: that the daemon is ready, how it is, that it is alive.

Where nobody listens (no NOTIFY_SOCKET) all of this does nothing. Runs on the event loop.

sd_notify(3) by hand: systemd-python's notify() holds the interpreter while it waits for a systemd
that does not read (seen with 235), and then the whole daemon hangs.
"""

from __future__ import annotations

import asyncio
import logging
import os
import re
import socket
import time
from collections import Counter
from typing import TYPE_CHECKING, Final, Never

from vmagentd import messages
from vmagentd.model import VmState

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable

    from vmagentd.journal.store import Journal
    from vmagentd.model import Link, Vm

log = logging.getLogger(__name__)

# A watchdog is fed four times in its time: one late beat is no reason to be killed.
_BEATS: Final = 4
# The status line is told at once when the journal or the link changes, but not more often than
# this; what else it says is at most so old.
_RESPITE_S, _REFRESH_S = 1.0, 5.0
# How long the loop may wait to tell what systemd must know: it reads at once, or is in trouble.
_PATIENCE_S: Final = 1.0


def ready() -> None:
    """Tell that calls are answered; also that a reload is over."""
    _tell("READY=1", patience_s=_PATIENCE_S)


def reloading() -> None:
    """Tell that the settings are being read again, until `ready`."""
    now_us = time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000
    _tell("RELOADING=1", f"MONOTONIC_USEC={now_us}", patience_s=_PATIENCE_S)


def stopping() -> None:
    """Tell that the daemon ends."""
    _tell("STOPPING=1", "STATUS=Ending: calls under way are let finish", patience_s=_PATIENCE_S)


def opening() -> None:
    """Tell why it takes a moment until `ready`."""
    _tell("STATUS=Opening the journal, then looking at all VMs")


async def keep_status(journal: Journal, watchers: Callable[[], int]) -> Never:
    """Keep the status line true; run this as one task."""
    told: object = None
    while True:
        changed = journal.changed
        count, link = watchers(), journal.link
        trouble = None if journal.writable else journal.cause
        # what the line is made of, without counting all VMs
        present = (journal.head, count, link, trouble)
        if present != told:
            line = status_line(journal.vms.values(), watchers=count, link=link, trouble=trouble)
            if _tell(f"STATUS={line}"):
                told = present
        await asyncio.sleep(_RESPITE_S)
        try:
            async with asyncio.timeout(_REFRESH_S):
                await changed.wait()
        except TimeoutError:
            pass


def status_line(vms: Iterable[Vm], *, watchers: int, link: Link, trouble: str | None) -> str:
    """Return what `systemctl status` shows: first what is wrong, if anything is."""
    counts = Counter(vm.state for vm in vms if vm.state is not VmState.GONE)
    parts = []
    if trouble is not None:
        parts.append(f"JOURNAL CANNOT BE WRITTEN: {trouble}")
    if not link.connected:
        since = f" since {link.blind_since:%F %T %Z}" if link.blind_since else ""
        parts.append(f"BLIND{since}: {link.cause}")
    running = counts[VmState.RUNNING]
    parts += [f"{counted(counts.total(), 'VM')}, {running} running", counted(watchers, "watcher")]
    return "; ".join(parts).replace("\n", " ")


async def feed_watchdog(beat: Callable[[], Awaitable[None]]) -> None:
    """Feed systemd's watchdog for as long as *beat* returns in time; run this as one task.

    That this runs shows that the event loop does; *beat* is to show what else must.
    Returns at once if there is no watchdog.
    """
    allowed_s = _watchdog_s()
    if allowed_s is None:
        return
    every_s = allowed_s / _BEATS
    late = False
    while True:
        try:
            async with asyncio.timeout(every_s):
                await beat()
        except TimeoutError:
            if not late:
                log.error(  # noqa: TRY400 - where it hangs is in another thread
                    "the journal's writer hangs: systemd starts vmagentd again %g s from the last "
                    "sign of life",
                    allowed_s,
                    extra={"MESSAGE_ID": messages.WRITER_HANGS},
                )
            late = True
        else:
            late = False
            _tell("WATCHDOG=1")
            await asyncio.sleep(every_s)


def _watchdog_s() -> float | None:
    """Return how long systemd waits for a sign of life, as sd_watchdog_enabled(3) has it."""
    allowed, owner = os.environ.get("WATCHDOG_USEC", ""), os.environ.get("WATCHDOG_PID")
    if not allowed.isdecimal() or int(allowed) == 0:
        return None
    if owner is not None and owner != str(os.getpid()):
        return None
    return int(allowed) / 1e6


def counted(count: int, what: str) -> str:
    """Return a number and its noun: `1 VM`, `2 VMs`."""
    return f"{count} {what}" if count == 1 else f"{count} {what}s"


def _tell(*lines: str, patience_s: float = 0.0) -> bool:
    """Return whether systemd was told; wait no longer than that for room."""
    address = os.environ.get("NOTIFY_SOCKET", "")
    if not address:
        return True
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as way:
            way.settimeout(patience_s)
            # an address that begins with @ is no file's
            way.sendto("\n".join(lines).encode(), re.sub("^@", "\0", address))
    except OSError:  # full, or nobody listens any more
        return False
    return True
