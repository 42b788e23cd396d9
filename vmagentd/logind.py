"""Whether the host is going down, as logind tells on the system bus.

Runs as one task on the event loop. A host without logind, or without a system bus, goes down
unannounced: then a stop by the host's shutdown cannot be told from any other, and is not.
"""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, Final, Never

from jeepney import DBusAddress, MatchRule, Properties, message_bus
from jeepney.io.asyncio import open_dbus_router
from jeepney.io.common import RouterClosed
from jeepney.wrappers import DBusErrorResponse, unwrap_msg

if TYPE_CHECKING:
    from collections.abc import Callable

    from jeepney import Message
    from jeepney.io.asyncio import DBusRouter

log = logging.getLogger(__name__)

_RETRY_S: Final = 30.0
_MANAGER: Final = DBusAddress(
    "/org/freedesktop/login1", "org.freedesktop.login1", "org.freedesktop.login1.Manager"
)
_SIGNAL: Final = {
    "type": "signal",
    "interface": _MANAGER.interface,
    "member": "PrepareForShutdown",
    "path": _MANAGER.object_path,
}
_PREPARING: Final = Properties(_MANAGER).get("PreparingForShutdown")


async def follow(tell: Callable[[bool], None]) -> Never:
    """Tell whether the host is going down: once when logind is found, then at each change.

    Args:
        tell: called on the loop with True when the host begins to go down, and with False when
            it does not, when that was called off, or when logind cannot be asked any more.
    """
    told_why = ""
    while True:
        try:
            async with open_dbus_router("SYSTEM") as router:
                await _listen(router, tell)
        except (OSError, EOFError, RouterClosed, DBusErrorResponse) as error:
            why = str(error) or type(error).__name__
            if why != told_why:
                log.info("the host's shutdown cannot be foreseen, no logind: %s", why)
                told_why = why
        tell(False)  # noqa: FBT003 - what is told has no other name
        await asyncio.sleep(_RETRY_S)


async def _listen(router: DBusRouter, tell: Callable[[bool], None]) -> Never:
    """Tell what logind says, until the bus is gone.

    Raises:
        RouterClosed: it is.
    """
    # no bound: a signal that finds no room would be dropped
    signals: asyncio.Queue[Message] = asyncio.Queue()
    # the bus knows logind by name; what it delivers bears only the number of a connection
    subscription = message_bus.AddMatch(MatchRule(sender=_MANAGER.bus_name, **_SIGNAL))
    with router.filter(MatchRule(**_SIGNAL), queue=signals):
        # first listen, then look: a signal in between is not missed
        unwrap_msg(await router.send_and_get_reply(subscription))
        while True:
            looked = await router.send_and_get_reply(_PREPARING)
            ((_, going_down),) = unwrap_msg(looked)
            tell(bool(going_down))
            try:
                # nothing tells that the bus is gone, so it is asked again
                async with asyncio.timeout(_RETRY_S):
                    while True:
                        (going_down,) = (await signals.get()).body
                        tell(bool(going_down))
            except TimeoutError:
                pass
