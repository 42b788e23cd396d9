"""What can be changed in a daemon that runs, and how: for each key of the settings its applier.

A key that has none holds after a restart. Runs on the loop.
"""

from __future__ import annotations

import logging
from functools import partial
from typing import TYPE_CHECKING

from vmagentd import logs, settings
from vmagentd.reload import AFTER_RESTART

if TYPE_CHECKING:
    from vmagentd.api.access import Access
    from vmagentd.api.gate import Gate
    from vmagentd.api.network import Network
    from vmagentd.api.server import Server
    from vmagentd.api.servicer import Servicer
    from vmagentd.api.socketfile import SocketFile
    from vmagentd.config import Config
    from vmagentd.journal.store import Journal
    from vmagentd.operations.means import Means
    from vmagentd.reconcile import Surveys
    from vmagentd.reload import Reload


log = logging.getLogger(__name__)


def of_socket(reload: Reload, place: SocketFile, config: Config) -> None:
    """Tell of what does nothing, if systemd listens for the daemon; also now."""
    if not place.is_adopted:
        return

    def path(new: Config) -> str | None:
        return place.why_not_at(new.socket)

    def mode(new: Config) -> str | None:
        return place.why_not_for(new.socket_mode)

    for key, why_not in (("socket", path), ("socket_mode", mode)):
        reload.on(key, why_not)
        why = why_not(config)
        # a default is systemd's to change
        if why is not None and key in config.model_fields_set:
            log.warning("%s: %s", key, why)


def of_work(
    reload: Reload, journal: Journal, surveys: Surveys, means: Means, server: Server
) -> None:
    """Apply how the daemon does its work."""

    def drain(new: Config) -> None:
        server.grace = new.drain_timeout

    def stop(new: Config) -> None:
        means.times = new.stop.times

    reload.on("log_level", lambda new: logs.set_level(new.log_level))
    reload.on("survey_interval", lambda new: surveys.survey_every(new.survey_interval))
    reload.on("drain_timeout", drain)
    reload.on("stop", stop)
    reload.on("host_limits", lambda new: means.starts.limit(new.host_limits.limits))
    for table in ("retention", "audit"):
        reload.on(table, lambda new: journal.limit(settings.retention(new)))


def of_access(
    reload: Reload, access: Access, gate: Gate, server: Server, servicer: Servicer
) -> None:
    """Apply who may do what, and how much."""

    async def rules(new: Config) -> None:
        await access.apply(new.access.rules)
        server.recheck()

    def limits(new: Config) -> None:
        gate.limits = settings.connections(new)
        server.limit(settings.caller_limits(new))
        servicer.watching.stall_timeout = new.limits.stall_timeout

    # always: which groups exist, and whose number each is, may have changed too
    reload.on("access", rules, always=True)
    reload.on("limits", limits)


def of_tls(reload: Reload, network: Network, server: Server) -> None:
    """Apply who is denied, and then what is shown: neither waits for the other to be good.

    A port that is turned off is there until a restart. What the settings still say of it holds
    until then, and of what they do not say any more nothing is taken back.
    """
    if not network.on:
        return

    def deny(key: str, new: Config) -> str | None:
        off = new.remote.listen is None
        network.deny(new.remote.denied, beside=off)
        server.recheck()
        return AFTER_RESTART if off and not getattr(new.remote, key) else None

    async def deny_by(new: Config) -> str | None:
        file = new.remote.deny_file
        if new.remote.listen is None and file is None:
            return AFTER_RESTART
        await network.deny_by(file)
        server.recheck()
        return None

    async def show(new: Config) -> str | None:
        files = new.remote.files
        if files is None:
            return AFTER_RESTART
        await network.show(files)
        return None

    for key in ("deny_serials", "deny_fingerprints"):
        reload.on(f"remote.{key}", partial(deny, key), always=True)
    # always: the files may have changed, even if the watch over them has not seen it yet
    reload.on("remote.deny_file", deny_by, always=True)
    reload.on("remote.certificate", show, always=True)
    for key in ("key", "client_ca"):
        reload.on(f"remote.{key}", show)
