"""What operations are carried out with."""

from __future__ import annotations

import time
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    from vmagentd.hypervisor.domains import Domains
    from vmagentd.journal.store import Journal
    from vmagentd.model import Operation
    from vmagentd.operations.starts import Starts


def _now() -> datetime:
    return datetime.now(UTC)


def _since_boot() -> timedelta:
    # not the monotonic clock, which stands still while the host sleeps
    return timedelta(seconds=time.clock_gettime(time.CLOCK_BOOTTIME))


@dataclass(frozen=True, slots=True, kw_only=True)
class Clock:
    """The host's two clocks: one that people read and set, and one that nobody can set."""

    # the kernel's identity of the present boot: `since_boot` of another one says nothing
    boot_id: str
    now: Callable[[], datetime] = _now
    since_boot: Callable[[], timedelta] = _since_boot

    def left(self, operation: Operation) -> timedelta:
        """Return the time that *operation* has until its deadline.

        In the boot in which it was accepted by the clock that nobody sets, else by the wall clock.
        """
        boot = operation.deadline_boot
        if boot is not None and boot.boot_id == self.boot_id:
            left = boot.since_boot - self.since_boot()
        else:
            left = operation.deadline_time - self.now()
        return max(left, timedelta())


@dataclass(frozen=True, slots=True, kw_only=True)
class Times:
    """How often a guest is asked, and how long what is forced may take."""

    press_interval: timedelta
    force_timeout: timedelta


@dataclass(slots=True, kw_only=True)
class Means:
    """What operations are carried out with. `times` may be replaced: it holds for new ones."""

    # where operations are kept and VMs are watched
    journal: Journal
    # asks libvirt
    domains: Domains
    times: Times
    # which Starts may go ahead
    starts: Starts
    clock: Clock
