"""Who leaves too much of what gRPC has for him, and who takes it."""

from __future__ import annotations

import asyncio
import math
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

from vmagentd.api.underway import Call, Calls
from vmagentd.model import Caller, CallerOrigin

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

CALLER = Caller(actor="user:a", grants=(), origin=CallerOrigin.LOCAL, peer="uid 1, pid 1")
PATIENCE_S = 60.0


def never(_: str) -> float:
    return -math.inf


@asynccontextmanager
async def made(*connections: str, told: bool) -> AsyncIterator[tuple[Calls, float]]:
    """Calls of one caller, each on one of the connections, who is given something; and when."""
    calls, over = Calls(), asyncio.Event()
    given = 0.0

    async def make(connection: str) -> None:
        nonlocal given
        call = Call(
            method="/x/Y", role=None, streams=False, connection=connection, peer=CALLER.peer
        )
        call.caller = CALLER
        calls.begin(call)
        call.given = given = asyncio.get_running_loop().time()
        if told:
            calls.told(call)
            given = call.given
        await over.wait()

    async with asyncio.TaskGroup() as tasks:
        for connection in connections:
            tasks.create_task(make(connection))
        await asyncio.sleep(0)  # each begins
        assert len(calls) == len(connections)
        yield calls, given
        over.set()


def stuck(
    calls: Calls, now: float, *, most: int = 9, flowed: Callable[[str], float] = never
) -> set[str]:
    return calls.stuck(now, patience_s=PATIENCE_S, most=most, flowed=flowed)


async def test_an_answer_has_its_time_and_longer_while_something_is_taken() -> None:
    async with made("a", "b", told=True) as (calls, given):
        assert stuck(calls, given + PATIENCE_S - 1) == set()
        assert stuck(calls, given + PATIENCE_S + 1) == {"a", "b"}
        taking = {"a": given + 2.0, "b": given + 100.0}.__getitem__
        assert stuck(calls, given + PATIENCE_S + 1, flowed=taking) == set()
        assert stuck(calls, given + PATIENCE_S + 3, flowed=taking) == {"a"}


async def test_a_message_of_a_stream_has_its_time_whatever_else_is_taken() -> None:
    async with made("a", told=False) as (calls, given):
        late = given + PATIENCE_S + 1
        assert stuck(calls, late, flowed=lambda _: late) == {"a"}


async def test_many_ends_are_too_many_once_there_was_time_to_take_them() -> None:
    async with made("a", "a", "b", told=True) as (calls, given):
        assert stuck(calls, given, most=2) == set()
        assert stuck(calls, given + 1, most=2) == {"a", "b"}
        assert stuck(calls, given + 1, most=3) == set()
    async with made("a", "a", "b", told=False) as (calls, given):
        assert stuck(calls, given + 1, most=2) == set()
