"""What goes on to its end though whoever asked for it leaves."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, TypeVar

from vmagentd.errors import ShuttingDown, VmagentdError

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

T = TypeVar("T")


async def outlast(
    work: Coroutine[None, None, T],
    *,
    tasks: asyncio.TaskGroup,
    name: str,
    on_over: Callable[[], object] = lambda: None,
) -> T:
    """Do *work* in a task of its own and return what it returns; the caller may be gone by then.

    Args:
        work: what is done.
        tasks: owns the task.
        name: of the task.
        on_over: called when it is over, however it ended.

    Raises:
        VmagentdError: what *work* raises, or `ShuttingDown`: the daemon has ended it.
    """
    task = tasks.create_task(_answer(work), name=name)
    task.add_done_callback(lambda _: on_over())
    await asyncio.wait([task])
    if task.cancelled():
        raise ShuttingDown
    answer = task.result()
    if isinstance(answer, VmagentdError):
        raise answer
    return answer


async def _answer(work: Coroutine[None, None, T]) -> T | VmagentdError:
    """Return what *work* returns or raises: an error of a task would end all others."""
    try:
        return await work
    except VmagentdError as error:
        return error
