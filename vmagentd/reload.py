"""SIGHUP: the settings are read again, and what can be changed in a daemon that runs is.

A file with anything wrong in it changes nothing. For each key that is different it is said in
the log whether it holds from now on or after a restart. Runs on the event loop; the file is read
in a thread of its own: how large it is, and how quick its disk, is not ours to know. One whose
reading does not end is given up: the next SIGHUP may be for another one in its place.
"""

from __future__ import annotations

import asyncio
import logging
import signal
from datetime import timedelta
from typing import TYPE_CHECKING, Final, Never

from pydantic import BaseModel

from vmagentd import messages, notify
from vmagentd.errors import ConfigError, ConfigProblem, VmagentdError
from vmagentd.pool import NotRun, Pool

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping

    from vmagentd.config import Config

    # returns what to say of the new value if it does not hold
    Apply = Callable[[Config], Awaitable[str | None] | str | None]

log = logging.getLogger(__name__)

_PATIENCE: Final = timedelta(seconds=5)
AFTER_RESTART: Final = "the new value holds after a restart"


class Reload:
    """Reads the settings again whenever it is asked to; knows which are in use."""

    def __init__(self, config: Config, load: Callable[[], Config]) -> None:
        """Take SIGHUP from here on; it is heeded once `run` runs.

        Args:
            config: the settings in use.
            load: reads them again, in a thread; raises ConfigError if they are wrong.
        """
        self._load = load
        self._used = flattened(config)
        self._appliers: dict[str, Apply] = {}
        self._always: dict[str, Apply] = {}
        self._wanted = asyncio.Event()
        asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, self._wanted.set)

    def on(self, key: str, apply: Apply, *, always: bool = False) -> None:
        """Have *apply* called with the new settings when *key* differs.

        It may raise a VmagentdError: then it has changed nothing.

        Args:
            key: a key or a table: `survey_interval`, `stop`.
            apply: makes the new value hold.
            always: call it at each reload: what the settings name, a file, may be different.
        """
        self._appliers[key] = apply
        if always:
            self._always[key] = apply

    async def run(self) -> Never:
        """Reload whenever SIGHUP comes; run this as one task."""
        while True:
            await self._wanted.wait()
            self._wanted.clear()
            notify.reloading()
            await self._reload()
            notify.ready()

    async def _reload(self) -> None:
        try:
            config = await self._loaded()
        except ConfigError as error:
            for line in error.lines:
                log.error(  # noqa: TRY400 - the sentence says it all
                    "settings are left as they were: %s",
                    line,
                    extra={"MESSAGE_ID": messages.SETTINGS_REFUSED},
                )
            return
        new = flattened(config)
        changed = {key for key in new | self._used if new.get(key) != self._used.get(key)}
        self._keep_old(changed)
        due = dict.fromkeys([*self._always, *(self._owner(key) for key in sorted(changed))])
        for owner in due:
            if owner is not None:
                await self._apply(
                    owner, config, new, {k for k in changed if self._owner(k) == owner}
                )
        log.info("settings were read again", extra={"MESSAGE_ID": messages.SETTINGS_RELOADED})

    async def _loaded(self) -> Config:
        """Read the settings; once cancelled, nobody waits for the thread that does so.

        Raises:
            ConfigError: they are wrong, or there is no end to it.
        """
        pool = Pool("settings", 1)
        try:
            return await pool.run(lambda _: self._load(), deadline=_PATIENCE)
        except (TimeoutError, NotRun) as error:
            raise ConfigError("the file", [ConfigProblem("its reading does not end")]) from error
        finally:
            pool.close()

    def _keep_old(self, changed: set[str]) -> None:
        for key in sorted(changed):
            if self._owner(key) is None:
                log.warning("%s: %s", key, AFTER_RESTART)

    async def _apply(
        self, owner: str, config: Config, new: Mapping[str, object], changed: set[str]
    ) -> None:
        try:
            done = self._appliers[owner](config)
            if done is not None and not isinstance(done, str):
                done = await done
        except VmagentdError as error:
            log.error(  # noqa: TRY400 - the sentence says it all
                "%s is left as it was: %s",
                owner,
                error,
                extra={"MESSAGE_ID": messages.SETTINGS_REFUSED},
            )
            return
        for key in sorted(changed):
            if isinstance(done, str):
                log.warning("%s: %s", key, done)
                continue
            if key in new:
                self._used[key] = new[key]
            else:
                self._used.pop(key, None)
            log.info("%s: the new value holds from now on", key)

    def _owner(self, key: str) -> str | None:
        """Return the key, or the table around it, that something can be done about."""
        while key:
            if key in self._appliers:
                return key
            key = key.rpartition(".")[0]
        return None


def flattened(table: BaseModel, within: str = "") -> dict[str, object]:
    """Return all settings by their dotted keys; a list is one value."""
    found: dict[str, object] = {}
    for name in type(table).model_fields:
        value = getattr(table, name)
        if isinstance(value, BaseModel):
            found |= flattened(value, f"{within}{name}.")
        else:
            found[within + name] = value
    return found
