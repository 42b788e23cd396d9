"""The border that every call crosses: bytes in, bytes or a status out.

All RPCs of all services pass here, health and reflection too. Inside, code gets a parsed
request and raises errors of ours; whatever else happens becomes a status that says no more than
a client may know. One call's end never touches another.

Who calls is found out here, once, before anything is read; inside, `access.caller` tells.

Runs on the loop. No context is kept: reading one after its call has ended kills the process.
"""

from __future__ import annotations

import asyncio
import logging
from contextlib import aclosing
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any, TypeVar

import grpc
from grpc import aio
from grpc_status import rpc_status

from vmagentd.api import access, faults, limits, rights, status
from vmagentd.api.gate import ClientGone
from vmagentd.api.handlers import answer, asked, not_served, parser, vm_meant
from vmagentd.api.limits import Usage
from vmagentd.errors import (
    AccessChanged,
    AccessError,
    LimitReached,
    RoleDenied,
    ShuttingDown,
    VmagentdError,
)

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable

    from google.protobuf.message import Message

    from vmagentd.api.access import Access, Identity
    from vmagentd.api.handlers import Context as _Context
    from vmagentd.api.handlers import Handler as _Handler
    from vmagentd.api.handlers import Parse as _Parse
    from vmagentd.api.limits import CallerLimits
    from vmagentd.model import Caller, Role

    _Task = asyncio.Task[Any]
    # who, from where, which method, why
    OnRefusal = Callable[[Caller | None, str, str, VmagentdError], None]

log = logging.getLogger(__name__)

_T = TypeVar("_T")

# How long telling a call its end may take.
_LAST_WORDS = timedelta(seconds=1)


@dataclass(slots=True)
class _Call:
    """A call that is under way."""

    method: str
    role: Role | None
    # gRPC's name for its connection
    connection: str
    # where from, as far as is known
    peer: str
    identity: Identity | None = None
    caller: Caller | None = None
    # counted among those that its caller has
    streams: bool = False


class Boundary(aio.ServerInterceptor):
    """Wraps every method; knows the calls that are under way, and ends them."""

    def __init__(self, access: Access, *, limits: CallerLimits, on_refusal: OnRefusal) -> None:
        """Prepare.

        Args:
            access: tells who calls.
            limits: what one caller may have.
            on_refusal: told of everybody who may not do what he asked for.
        """
        self._access = access
        self._on_refusal = on_refusal
        self._usage = Usage(limits)
        self._handlers: dict[str, _Handler] = {}  # wrapped once: a method's never changes
        # calls in our hands: they may be dismissed
        self._unary: set[_Task] = set()
        self._streaming: set[_Task] = set()
        # calls that are writing: they must not be cancelled; and since when they do
        self._writing: dict[_Task, float] = {}
        # calls ended by us, not by their client, and why
        self._dismissed: dict[_Task, VmagentdError] = {}
        # all calls, until gRPC has done with them too
        self._tasks: dict[_Task, _Call] = {}
        self._draining = False
        self._holding = False
        self.begun = 0  # counts calls

    async def intercept_service(  # type: ignore[explicit-override]  # typing has it since 3.12
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[_Handler | None]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> _Handler:
        """Return the method's handler, wrapped."""
        method = handler_call_details.method
        wrapped = self._handlers.get(method)
        if wrapped is None:
            handler = await continuation(handler_call_details)
            wrapped = self._wrapped(method, handler)
            if handler is not None:  # anybody can invent names, so those are not kept
                self._handlers[method] = wrapped
        return wrapped

    async def drain(self, grace: timedelta) -> None:
        """End all calls with SHUTTING_DOWN: streams and new ones at once, others after *grace*.

        Returns when all have been told, or a little after *grace*: a stream whose client does
        not read cannot be told.
        """
        self._draining, self._holding = True, False
        self._dismiss(self._streaming, ShuttingDown())
        await self._wait(grace)
        self._dismiss(self._unary, ShuttingDown())
        await self._wait(_LAST_WORDS)

    def hold(self) -> None:
        """Leave new calls without an answer until the next `drain`; who waits calls no more."""
        self._holding = True

    def limit(self, limits: CallerLimits) -> None:
        """Go by these limits from now on."""
        self._usage.limits = limits

    def recheck(self) -> None:
        """End the calls of callers who may not make them any more, or not as they did.

        After a change of who may do what. A call that shows other VMs than its caller may see by
        now ends with ACCESS_CHANGED, since what it has shown before cannot be taken back; so does
        one that may do something, and to other VMs by now: its request may yet come.
        """
        for task in self._streaming | self._unary:
            call = self._tasks[task]
            if call.identity is None or call.caller is None:
                continue
            try:
                present = self._access.caller_of(call.identity)
                rights.check(call.role, present)
            except AccessError as error:
                self._dismiss({task}, error)
                continue
            if not rights.same(call.role, call.caller, present):
                self._dismiss({task}, AccessChanged(present))

    def tidy(self) -> set[str]:
        """Forget idle callers; return the connections of streams that are stuck, by their names.

        A stream is stuck when its client has not read for twice the time that a watcher may
        take: it was ended after the first half, and does not take that in either.
        """
        now = asyncio.get_running_loop().time()
        self._usage.forget_idle(now)
        before = now - 2 * self._usage.limits.stall_timeout.total_seconds()
        return {
            self._tasks[task].connection for task, since in self._writing.items() if since < before
        }

    async def ended(self) -> None:
        """Wait until all calls, which gRPC has cancelled, have ended. gRPC itself does not."""
        await self._wait(_LAST_WORDS)
        for task in self._tasks:
            log.error("a call does not end: %s", task.get_stack(limit=1))

    async def _wait(self, limit: timedelta) -> None:
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=limit.total_seconds())

    def _dismiss(self, tasks: Iterable[_Task], why: VmagentdError) -> None:
        for task in set(tasks) - self._dismissed.keys():
            self._dismissed[task] = why
            # After its first write was cancelled gRPC can send no status, and the client waits
            # for ever; so a call that writes ends by itself afterwards.
            if task not in self._writing:
                task.cancel()

    def _wrapped(self, method: str, handler: _Handler | None) -> _Handler:
        """Return *handler* as one that gRPC hands no request: it reads and parses it itself.

        Left to gRPC, a request that cannot be parsed is answered with the text of a traceback,
        and one that never comes is not answered at all.
        """
        if handler is None:

            async def refuse(_: object, context: _Context) -> None:
                await self._cross(method, None, context, self._streaming, not_served(method))

            return grpc.stream_stream_rpc_method_handler(refuse)

        parse, role = parser(method), rights.needed(method)
        if handler.response_streaming:

            async def stream(_: object, context: _Context) -> None:
                def work() -> Awaitable[None]:
                    return self._stream(handler, parse, context)

                await self._cross(method, role, context, self._streaming, work, parse=parse)

            return grpc.stream_stream_rpc_method_handler(stream, None, handler.response_serializer)

        async def unary(_: object, context: _Context) -> object:
            def work() -> Awaitable[object]:
                return self._in_time(answer(handler, parse, context))

            return await self._cross(method, role, context, self._unary, work, parse=parse)

        return grpc.stream_unary_rpc_method_handler(unary, None, handler.response_serializer)

    async def _cross(
        self,
        method: str,
        role: Role | None,
        context: _Context,
        calls: set[_Task],
        work: Callable[[], Awaitable[_T]],
        *,
        parse: _Parse | None = None,
    ) -> _T:
        task, connection = _current_task(), context.peer()
        call = self._tasks[task] = _Call(method, role, connection, access.place(connection))
        self.begun += 1
        task.add_done_callback(self._tasks.pop)
        calls.add(task)
        if self._draining and not self._holding:
            self._dismiss({task}, ShuttingDown())
        try:
            if self._holding:
                await asyncio.Event().wait()  # until it is dismissed
            await self._admit(call, parse, context, stream=calls is self._streaming)
            return await work()
        except BaseException as error:  # noqa: BLE001  # here control leaves our code
            raise await self._leave(error, task, call, context) from None
        finally:
            calls.discard(task)
            self._dismissed.pop(task, None)
            if call.caller is not None and call.streams:
                self._usage.end_stream(call.caller.actor)

    async def _admit(
        self, call: _Call, parse: _Parse | None, context: _Context, *, stream: bool
    ) -> None:
        """Find out who calls; refuse whoever is not known, lacks the role, or has too much."""
        call.identity = self._access.identify(call.connection, context.auth_context)
        call.peer = str(call.identity)
        call.caller = self._access.caller_of(call.identity)
        access.keep(call.caller)
        limits.keep(self._usage, call.caller.actor).count_call()
        try:
            rights.check(call.role, call.caller)
        except RoleDenied:
            vm_name = await vm_meant(parse, context) if parse else None
            rights.check(call.role, call.caller, vm_name=vm_name)
        if stream:
            self._usage.begin_stream(call.caller.actor)
            call.streams = True

    async def _in_time(self, work: Awaitable[_T]) -> _T:
        """Wait for *work*, at most as long as a call may take."""
        allowed = self._usage.limits.call_timeout.total_seconds()
        limit = asyncio.timeout(allowed)
        try:
            async with limit:
                return await work
        except TimeoutError:
            if limit.expired():
                raise LimitReached(access.caller().actor, "seconds for a call", allowed) from None
            raise

    async def _stream(self, handler: _Handler, parse: _Parse, context: _Context) -> None:
        behaviour: Any = handler.stream_stream or handler.unary_stream
        responses = behaviour(await self._in_time(asked(handler, parse, context)), context)
        # Written here, not by gRPC from the generator: a write to a client that is gone fails,
        # and is none of the generator's business.
        async with aclosing(responses):
            async for response in responses:
                await self._write(response, context)

    async def _write(self, response: Message | bytes, context: _Context) -> None:
        """Write one message; waits while the client does not read."""
        task = _current_task()
        self._writing[task] = asyncio.get_running_loop().time()
        try:
            await context.write(response)
        finally:
            del self._writing[task]
        if task in self._dismissed:
            raise self._dismissed[task]

    async def _leave(
        self, error: BaseException, task: _Task, call: _Call, context: _Context
    ) -> BaseException:
        """Tell the client of *error*, and return what gRPC is to see of it."""
        match error:
            case aio.AbortError():  # told already: the health service does so
                return error
            case aio.InternalError() | ClientGone():  # nobody is there to read or be told
                return asyncio.CancelledError()
            case asyncio.CancelledError() if task in self._dismissed:
                task.uncancel()
                error = self._dismissed[task]
            case asyncio.CancelledError() if task.cancelling():  # the client's doing
                return error
            case asyncio.CancelledError() | aio.BaseError() if self._draining:
                # Something that the call waited for was taken down before it. Left as it is,
                # gRPC would send no status, and the client wait for ever.
                error = ShuttingDown()
            case Exception() | asyncio.CancelledError() if not status.tells(error):
                error = faults.logged(call.method, error)
            case Exception():
                pass
            case _:  # KeyboardInterrupt, SystemExit
                return error
        if isinstance(error, VmagentdError) and rights.refuses(call.role, error):
            who = call.caller
            if who is None and call.identity is not None:  # known, and not let in
                who = access.holder(call.identity)
            self._on_refusal(who, call.peer, call.method, error)
        try:
            await context.abort_with_status(rpc_status.to_status(status.status_of(error)))
        except aio.InternalError:
            return asyncio.CancelledError()
        except (aio.BaseError, asyncio.CancelledError) as left:
            return left


def _current_task() -> _Task:
    task = asyncio.current_task()
    if task is None:
        raise RuntimeError("a call runs in a task of its own")
    return task
