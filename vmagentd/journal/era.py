"""A time without a break of the link to libvirt.

What was heard before it proves nothing in it: something may have gone unheard, and libvirtd may
be another one, which counts hypervisor processes from 1 again if it found none.
"""

from __future__ import annotations

from dataclasses import dataclass, replace


@dataclass(frozen=True, slots=True, kw_only=True)
class Era:
    """One such time; the first is that of a daemon that has no link yet."""

    # counts the links that were lost
    number: int = 0
    # the youngest link that was lost: a survey that went through it ends no blindness
    lost_link: int = -1
    # whether QEMU's own events are heard, and were since a survey
    heard: bool = False
    # number of the youngest query that was believed, and of the youngest one before this era
    last_query: int = 0
    last_query_before: int = 0

    def after_loss(self, link: int) -> Era:
        """Return the era that begins as *link* is lost."""
        return Era(
            number=self.number + 1,
            lost_link=max(self.lost_link, link),
            last_query=self.last_query,
            last_query_before=self.last_query,
        )

    def after_query(self, number: int) -> Era:
        """Return it after the query of that *number* was believed."""
        return replace(self, last_query=number) if number > self.last_query else self

    def has(self, query: int) -> bool:
        """Whether the query of that number, the last one of its VM, was believed in this era."""
        return query > self.last_query_before
