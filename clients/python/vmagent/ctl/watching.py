"""A watch as text: the snapshot as a table, then a line per transition."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vmagent.ctl.lines import transition_line
from vmagent.ctl.vms import blindness, print_table
from vmagent.ctl.words import counted, fine_clock, plain
from vmagent.v1.host_pb2 import Link

if TYPE_CHECKING:
    from collections.abc import Callable
    from datetime import datetime

    from vmagent.ctl.screen import Screen
    from vmagent.v1.transition_pb2 import Cursor
    from vmagent.v1.vm_agent_service_pb2 import Heartbeat, WatchStatusResponse
    from vmagent.v1.vm_pb2 import Vm


class WatchPrinter:
    """Prints a watch's responses as they come."""

    def __init__(self, screen: Screen, now: Callable[[], datetime]) -> None:
        self._screen, self._now = screen, now
        self._snapshot: dict[str, Vm] = {}  # what came of one that is not complete yet
        self._connected = True  # what the person was told last
        self._writable = True

    def print(self, response: WatchStatusResponse, *, begins: bool) -> None:
        """Print one response; a heartbeat only if it says something new.

        Args:
            response: what came.
            begins: it is the first of its connection; a snapshot that the one before did not
                complete is void.
        """
        if begins:
            self._snapshot = {}
        self._snapshot.update({vm.uuid: vm for vm in response.vms})
        if response.HasField("snapshot_end"):
            self._print_snapshot(response.snapshot_end)
        for transition in response.transitions:
            self._screen.line(transition_line(transition))
        if response.HasField("heartbeat"):
            self._print_news(response.heartbeat)

    def _print_snapshot(self, end: Cursor) -> None:
        vms = sorted(self._snapshot.values(), key=lambda vm: (vm.name, vm.uuid))
        self._snapshot = {}
        # A snapshot does not tell of the link: a blind daemon's first heartbeat does.
        print_table(self._screen, vms, Link(libvirt_connected=True), self._now())
        where = f"journal {plain(end.journal_id)}, revision {end.revision}"
        self._screen.line((f"-- {counted(len(vms), 'VM')} at {where}; changes follow", "dim"))

    def _print_news(self, heartbeat: Heartbeat) -> None:
        if heartbeat.libvirt_connected != self._connected:
            self._connected = heartbeat.libvirt_connected
            self._screen.line((f"-- {self._link_news(heartbeat)}", "bold yellow"))
        if heartbeat.journal_writable != self._writable:
            self._writable = heartbeat.journal_writable
            news = "can be written again" if self._writable else "cannot be written: disk full?"
            self._screen.line((f"-- the journal {news}", "bold yellow"))

    def _link_news(self, heartbeat: Heartbeat) -> str:
        if not heartbeat.libvirt_connected:
            link = Link()
            for name in ("blind_since", "last_survey_time"):
                if heartbeat.HasField(name):
                    getattr(link, name).CopyFrom(getattr(heartbeat, name))
            return blindness(link, self._now())
        survey = heartbeat.last_survey_time
        when = f", all VMs surveyed at {fine_clock(survey)}" if survey.seconds else ""
        return f"libvirt can be asked again{when}"
