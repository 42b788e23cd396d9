"""Names of the host's users and groups.

Asked in threads of their own: whoever answers may be a server that does not. What is not answered
is not taken for "there is none". Runs on the loop.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from threading import Thread
from typing import TYPE_CHECKING, Final, TypeVar

from vmagentd.api import nss

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable, Iterable, Mapping

log = logging.getLogger(__name__)

_T = TypeVar("_T")

# What was asked this long ago is asked again.
_FRESH_S: Final = 1.0
# Users that are remembered; the oldest are forgotten first.
_USERS: Final = 1024
# How often it is told that there are no answers.
_REMIND_S: Final = 60.0
# Questions that wait for an answer at a time, each in a thread; and that wait for their turn.
_AT_ONCE: Final = 16
_WAITING: Final = 4096


class DirectorySilent(Exception):
    """Nobody tells how a user is called, so nobody knows who he is."""

    def __init__(self, uid: int) -> None:
        super().__init__(
            f"the host's directory of users does not tell how uid {uid} is called; try again later"
        )


@dataclass(slots=True)
class _Question:
    """A look-up that is under way, or waits for its turn."""

    about: Hashable
    # asks, and returns what is to be done with the answer; called in a thread
    ask: Callable[[], Callable[[], None]]
    # done with the answer, or with none if asking failed, and never cancelled
    answered: asyncio.Future[None]
    # by the loop's clock: when it came, and when its turn came
    time: float
    begun: bool = False


class Directory:
    """Users by number, groups by name; what is known is as old as the newest connection."""

    def __init__(
        self,
        *,
        name_of: Callable[[int], str | None] | None = None,
        gids_of: Callable[[Iterable[str]], Mapping[str, int | None]] | None = None,
        limit_s: float = 2.0,
    ) -> None:
        """Prepare.

        Args:
            name_of: returns the name of a user, None if there is none; called in a thread.
                Whatever it raises is no answer.
            gids_of: returns the number of each group, None if there is none, and nothing of
                those that are not answered for; called in a thread.
            limit_s: how long an answer is waited for, once it has been asked for.
        """
        # of the groups that are asked for, those that exist
        self.gids: Mapping[str, int] = {}
        self._name_of = name_of or nss.user_name
        self._gids_of = gids_of or _gids_of
        self._limit_s = limit_s
        self._groups: frozenset[str] = frozenset()
        self._users: dict[int, tuple[str | None, float]] = {}
        self._open: dict[Hashable, _Question] = {}
        # of those the ones that have no thread yet: first come, first served
        self._waiting: deque[_Question] = deque()
        # by the loop's clock: when something was answered last
        self._answered = 0.0
        self._next_warning = 0.0

    async def want(self, groups: Iterable[str]) -> None:
        """Ask for exactly these groups from now on; they are known on return, if answered.

        One that is not answered for is what it was.
        """
        self._groups = frozenset(groups)
        await self._look_groups_up()

    async def user(self, uid: int) -> str | None:
        """Return the name of a user, None if there is none, and look at the groups again.

        Without an answer it is the name that he had.

        Raises:
            DirectorySilent: there is no answer, and there never was one.
        """
        if uid == 0:  # whatever happens, root gets in
            return "root"
        loop = asyncio.get_running_loop()
        name, asked = self._users.get(uid, (None, -_FRESH_S))
        if loop.time() - asked < _FRESH_S:
            return name

        def keep(name: str | None) -> None:
            self._users.pop(uid, None)
            self._users[uid] = (name, loop.time())
            while len(self._users) > _USERS:
                del self._users[next(iter(self._users))]

        await self._ask(uid, lambda: self._name_of(uid), keep)
        known = self._users.get(uid)
        if known is None:
            raise DirectorySilent(uid)
        await self._look_groups_up()
        return known[0]

    async def _look_groups_up(self) -> None:
        groups = self._groups
        if not groups:
            self.gids = {}
            return

        def keep(told: Mapping[str, int | None]) -> None:
            if silent := sorted(groups - told.keys()):
                self._warn(f"does not tell of {', '.join(silent)}: left as they were")
            if groups == self._groups:
                gids = {group: told.get(group, self.gids.get(group)) for group in groups}
                self.gids = {group: gid for group, gid in gids.items() if gid is not None}

        await self._ask(groups, lambda: self._gids_of(groups), keep)

    async def _ask(
        self, question: Hashable, ask: Callable[[], _T], keep: Callable[[_T], None]
    ) -> None:
        """Have a thread ask, unless one does so already, and keep its answer, however late.

        Returns without one if there is none in time, or asking fails, or too many wait.
        """
        asked = self._open.get(question)
        if asked is None:
            if len(self._waiting) >= _WAITING:
                self._warn("has been asked too much; users whom it never named cannot connect")
                return
            asked = self._put(question, lambda: partial(keep, ask()))
        # One that is late already holds up nobody else.
        while (left_s := self._left_s(asked)) > 0 and not asked.answered.done():
            await asyncio.wait([asked.answered], timeout=left_s)
        if not asked.answered.done():
            self._warn("does not answer; users whom it never named cannot connect")

    def _left_s(self, asked: _Question) -> float:
        """Return how long an answer is still waited for: before its turn, as others get some."""
        since = asked.time if asked.begun else max(asked.time, self._answered)
        return since + self._limit_s - asyncio.get_running_loop().time()

    def _warn(self, problem: str) -> None:
        """Tell in the log, though not as often as anybody connects."""
        now = asyncio.get_running_loop().time()
        if now >= self._next_warning:
            self._next_warning = now + _REMIND_S
            log.warning("the host's directory of users %s", problem)

    def _put(self, about: Hashable, ask: Callable[[], Callable[[], None]]) -> _Question:
        """Have it asked in its turn."""
        loop = asyncio.get_running_loop()
        question = self._open[about] = _Question(about, ask, loop.create_future(), loop.time())
        self._waiting.append(question)
        self._go_on()
        return question

    def _go_on(self) -> None:
        """Ask what may be asked by now."""
        while self._waiting and len(self._open) - len(self._waiting) < _AT_ONCE:
            self._begin(self._waiting.popleft())

    def _begin(self, question: _Question) -> None:
        loop = asyncio.get_running_loop()
        question.begun, question.time = True, loop.time()

        def told(hear: Callable[[], None]) -> None:
            del self._open[question.about]
            self._answered = loop.time()
            hear()
            question.answered.set_result(None)
            self._go_on()

        def run() -> None:
            try:
                hear = question.ask()
            except Exception as error:  # noqa: BLE001 - else it would be under way for ever
                hear = partial(self._warn, f"cannot be asked: {error!r}")
            with suppress(RuntimeError):  # the daemon has ended meanwhile
                loop.call_soon_threadsafe(told, hear)

        try:
            # A thread of an executor would hold up the end of the process.
            Thread(target=run, name="names", daemon=True).start()
        except RuntimeError as error:  # there can be no more
            del self._open[question.about]
            self._warn(f"cannot be asked: {error}")
            question.answered.set_result(None)


def _gids_of(groups: Iterable[str]) -> Mapping[str, int | None]:
    gids = {}
    for group in groups:
        with suppress(OSError):
            gids[group] = nss.group_id(group)
    return gids
