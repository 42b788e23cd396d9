"""Whether the host is going down, as logind tells on the system bus.

Runs as one task on the event loop. A host without logind, or without a system bus, goes down
unannounced: then a stop by the host's shutdown cannot be told from any other, and is not.

The bus lets anybody send us what looks like a signal of logind's, and anything else. What the
bus vouches for is the sender of a message, and that whoever replies was asked.
"""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, Final, Never

from jeepney import DBusAddress, HeaderFields, MatchRule, MessageType, Properties, message_bus
from jeepney.io.asyncio import DBusRouter, open_dbus_connection
from jeepney.wrappers import unwrap_msg

if TYPE_CHECKING:
    from collections.abc import Callable

    from jeepney import Message

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
_OWNER: Final = MatchRule(
    type="signal",
    sender=message_bus.bus_name,
    interface=message_bus.interface,
    member="NameOwnerChanged",
    path=message_bus.object_path,
)
_OWNER.add_arg_condition(0, _MANAGER.bus_name)


async def follow(tell: Callable[[bool], None]) -> Never:
    """Tell whether the host is going down: once when logind is found, then at each change.

    Args:
        tell: called on the loop with True when the host begins to go down, and with False when
            it does not, when that was called off, or when logind cannot be asked any more.
    """
    told_why = ""
    while True:
        try:
            # not jeepney's own way to have both: that leaves the socket open when the bus is gone
            async with (
                await open_dbus_connection("SYSTEM") as connection,
                DBusRouter(connection) as router,
            ):
                await _listen(router, tell)
        except Exception as error:  # noqa: BLE001 - jeepney raises of anybody's message what it may
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
        ValueError: somebody else spoke in logind's place.
    """
    # no bound: a signal that finds no room would be dropped
    signals: asyncio.Queue[Message] = asyncio.Queue()
    # the bus knows logind by name; what it delivers bears only the number of a connection
    subscription = MatchRule(sender=_MANAGER.bus_name, **_SIGNAL)
    with (
        router.filter(MatchRule(**_SIGNAL), queue=signals),
        router.filter(_OWNER, queue=signals),
    ):
        # first listen, then look: a signal in between is not missed
        for rule in (subscription, _OWNER):
            unwrap_msg(await router.send_and_get_reply(message_bus.AddMatch(rule)))
        while True:
            looked = await router.send_and_get_reply(_PREPARING)
            ((_, going_down),) = unwrap_msg(looked)
            if looked.header.message_type is not MessageType.method_return:
                raise ValueError("what came is no reply")
            tell(bool(going_down))
            try:
                # nothing tells that the bus is gone, so it is asked again
                async with asyncio.timeout(_RETRY_S):
                    await _heed(signals, _sender(looked), tell)
            except TimeoutError:
                pass


async def _heed(
    signals: asyncio.Queue[Message], manager: str, tell: Callable[[bool], None]
) -> None:
    """Tell what the logind at *manager* signals, until there is another one."""
    while True:
        signal = await signals.get()
        match _sender(signal), signal.body:
            case sender, (bool(going_down),) if sender == manager:
                tell(going_down)
            case message_bus.bus_name, (_, _, new) if new not in {"", manager}:
                return
            case _:
                pass


def _sender(message: Message) -> str:
    sender: str = message.header.fields[HeaderFields.sender]
    return sender
