"""Keeps the journal in line with libvirt where no event does.

Asks libvirt for all VMs when a link comes up, then every so often, and for one VM whenever a fact
left a doubt. Runs on the event loop.
"""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, Final, Never

from vmagentd.errors import HypervisorError, LibvirtUnreachable
from vmagentd.model import VmState

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from datetime import timedelta

    from vmagentd.journal.store import Journal
    from vmagentd.model import Query, Revision, Survey, VmUuid

log = logging.getLogger(__name__)

# After a survey or a query that failed though the link is up.
_RETRY_S: Final = 1.0
# After so many surveys in a row without an answer, though the link is up, it is told.
_SILENT_AFTER: Final = 2
# How often VMs are looked at that no event may bring on: those that do not answer libvirt, and
# those that should be on their way. A start that fails ends without one.
_UNSETTLED_S: Final = 1.0
_ON_THEIR_WAY: Final = frozenset({VmState.STARTING, VmState.MIGRATING_IN, VmState.STOPPING})
# A doubt is left alone for so long: of one VM libvirt tells several things at once, and a look at
# it is wanted after the last. Nor is it looked at while whoever stopped it gets his answer.
_MOMENT_S: Final = 0.01
# Queries about single VMs that wait for libvirt at once.
_QUERIES: Final = 4


class Surveys:
    """The surveys and queries that nobody asked for."""

    def __init__(
        self,
        journal: Journal,
        *,
        survey: Callable[[], Awaitable[Survey]],
        look_up: Callable[[VmUuid], Awaitable[Query]],
        interval: timedelta,
    ) -> None:
        """Prepare; `run` does the work.

        Args:
            journal: where the answers go.
            survey: asks libvirt for all VMs.
            look_up: asks libvirt for one.
            interval: longest time between two surveys.
        """
        self._journal = journal
        self._survey = survey
        self._look_up = look_up
        self._interval = interval
        self._wanted = asyncio.Event()
        self._slots = asyncio.Semaphore(_QUERIES)
        self._asking: set[VmUuid] = set()
        # their answers wait for the journal
        self._telling: set[VmUuid] = set()
        # set once a survey of this daemon's is committed
        self.first_done = asyncio.Event()

    def want(self) -> None:
        """Ask for all VMs now: a link came up."""
        self._wanted.set()

    def survey_every(self, interval: timedelta) -> None:
        """Let no more than *interval* pass between two surveys, the present time included."""
        self._interval = interval
        self._wanted.set()

    async def run(self) -> Never:
        """Survey and settle doubts for ever."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._settle_doubts(tasks), name="doubts")
            tasks.create_task(self._look_after_unsettled(tasks), name="unsettled")
            await self._survey_for_ever()

    async def _survey_for_ever(self) -> Never:
        wait_s = self._interval.total_seconds()
        unanswered = 0  # in a row
        while True:
            try:
                async with asyncio.timeout(wait_s):
                    await self._wanted.wait()
            except TimeoutError:
                pass
            self._wanted.clear()
            wait_s = _RETRY_S
            try:
                await self._journal.append(await self._survey())
            except LibvirtUnreachable as error:
                # Who is blind has told so already, or does by the next try. A link that is not
                # lost and brings no answer is kept: events still come by it, and a new one would
                # have to be opened by a libvirt that does not answer.
                unanswered = unanswered + 1 if error.blind_since is None else 0
                level = logging.WARNING if unanswered == _SILENT_AFTER else logging.DEBUG
                log.log(level, "no survey: %s", error)
            except HypervisorError as error:
                log.warning("survey failed, next try in %g s: %s", _RETRY_S, error)
            else:
                wait_s, unanswered = self._interval.total_seconds(), 0
                self.first_done.set()

    async def _settle_doubts(self, tasks: asyncio.TaskGroup) -> Never:
        while True:
            changed = self._journal.changed
            self._ask(self._journal.take_doubts(), tasks)
            await changed.wait()
            await asyncio.sleep(_MOMENT_S)

    async def _look_after_unsettled(self, tasks: asyncio.TaskGroup) -> Never:
        """Look often at VMs that no event may bring on."""
        unsettled: set[VmUuid] = set()
        head: Revision | None = None
        while True:
            changed = self._journal.changed
            if head != self._journal.head:  # else they are the same ones
                head = self._journal.head
                unsettled = {
                    vm.uuid
                    for vm in self._journal.vms.values()
                    if vm.unresponsive is not None or vm.state in _ON_THEIR_WAY
                }
            # the journal may be long over an answer, and each one that waits takes memory
            self._ask(unsettled - self._telling, tasks)
            if not unsettled:
                await changed.wait()
            await asyncio.sleep(_UNSETTLED_S)

    def _ask(self, vms: set[VmUuid], tasks: asyncio.TaskGroup) -> None:
        for vm in vms - self._asking:
            self._asking.add(vm)
            tasks.create_task(self._settle(vm), name=f"doubt {vm}")

    async def _settle(self, vm: VmUuid) -> None:
        """Ask about *vm*. An event younger than the answer brings the doubt back by itself."""
        try:
            query = await self._answer(vm)
        except HypervisorError as error:
            log.warning(
                "VM %s: query failed, left to the next survey: %s",
                vm,
                error,
                extra={"VM_UUID": vm},
            )
            return
        finally:
            # a doubt that comes from here on is younger than the answer
            self._asking.discard(vm)
        if query is None:
            return  # the survey after the next connect settles it
        self._telling.add(vm)
        try:
            await self._journal.append(query)
        finally:
            self._telling.discard(vm)

    async def _answer(self, vm: VmUuid) -> Query | None:
        """Return libvirt's answer about *vm*, however long it takes; None: the link is down.

        Raises:
            HypervisorError: libvirt refused.
        """
        while True:
            try:
                async with self._slots:
                    return await self._look_up(vm)
            except LibvirtUnreachable as error:
                if not self._journal.link.connected:
                    return None
                # No thread was free, or the answer was not there in time: no new link will come,
                # nor a survey with it. If the link is lost, the journal knows by the next try.
                log.debug("VM %s: no answer: %s", vm, error, extra={"VM_UUID": vm})
            await asyncio.sleep(_RETRY_S)
