"""Threads of our own that make calls, one after the other.

They are daemon threads: a ThreadPoolExecutor joins its threads at exit, so that one call that
hangs would keep the process from ending.
"""

from __future__ import annotations

from threading import Thread
from typing import TYPE_CHECKING, Any, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Callable
    from concurrent.futures import Future
    from queue import SimpleQueue

# calls, each with the future that its result or its error goes to; None ends a thread
Calls: TypeAlias = "SimpleQueue[tuple[Future[Any], Callable[..., Any]] | None]"


def start(name: str, calls: Calls, *arguments: object) -> None:
    """Start a thread of that name that makes each of *calls*, with *arguments*.

    One whose future was cancelled before its turn is never made. Several threads may share calls.
    """
    Thread(target=_work, args=(calls, arguments), name=name, daemon=True).start()


def _work(calls: Calls, arguments: tuple[object, ...]) -> None:
    while (next_one := calls.get()) is not None:
        future, call = next_one
        if future.set_running_or_notify_cancel():
            try:
                result = call(*arguments)
            except BaseException as error:  # noqa: BLE001 - a thread's border: handed on
                future.set_exception(error)
            else:
                future.set_result(result)
                del result
        # an idle thread keeps nothing alive: a connection closes with its last reference
        del next_one, future, call
