"""The border that every call crosses: bytes in, bytes or a status out.

All RPCs of all services pass here, health and reflection too. Inside, code gets a parsed
request and raises errors of ours; whatever else happens becomes a status that says no more than
a client may know. One call's end never touches another.

Who calls is found out here, once, before anything is read; inside, `access.caller` tells.

Runs on the loop. No context is kept: reading one after its call has ended kills the process.
"""

from __future__ import annotations

import asyncio
from contextlib import aclosing
from datetime import timedelta
from typing import TYPE_CHECKING, Any, TypeVar

import grpc
from grpc import aio
from grpc_status import rpc_status

from vmagentd.api import access, faults, limits, rights, status
from vmagentd.api.gate import ClientGone
from vmagentd.api.handlers import answer, asked, not_served, parser, vm_meant
from vmagentd.api.limits import Usage
from vmagentd.api.underway import Call, Calls
from vmagentd.errors import (
    AccessChanged,
    AccessError,
    LimitReached,
    RoleDenied,
    ShuttingDown,
    VmagentdError,
)
from vmagentd.journal.reader import read_for
from vmagentd.model import Role

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from google.protobuf.message import Message
    from google.rpc import status_pb2

    from vmagentd.api.access import Access
    from vmagentd.api.handlers import Context as _Context
    from vmagentd.api.handlers import Handler as _Handler
    from vmagentd.api.handlers import Parse as _Parse
    from vmagentd.api.limits import CallerLimits
    from vmagentd.model import Caller

    # who, from where, which method, why
    OnRefusal = Callable[[Caller | None, str, str, VmagentdError], None]

_T = TypeVar("_T")

# How long telling a call its end may take.
_LAST_WORDS = timedelta(seconds=1)


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
        self._draining = False
        self._holding = False
        self.calls = Calls()

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

        Returns when all have been told, or a little after *grace*: who does not read cannot be
        told, and does not take an answer either. Who reads slowly cannot be told from him on
        another host, so nobody has longer than `_LAST_WORDS` for an answer that is ready.
        """
        self._draining, self._holding = True, False
        self.calls.dismiss((call for call in self.calls if call.streams), ShuttingDown())
        await self.calls.all_told(grace)
        self.calls.dismiss(self.calls, ShuttingDown())
        await self.calls.all_over(_LAST_WORDS)

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
        for call in self.calls:
            if call.identity is None or call.caller is None:
                continue
            try:
                present = self._access.caller_of(call.identity)
                rights.check(call.role, present)
            except AccessError as error:
                self.calls.dismiss([call], error)
                continue
            if not rights.same(call.role, call.caller, present):
                self.calls.dismiss([call], AccessChanged(present))

    def tidy(self, flowed: Callable[[str], float]) -> set[str]:
        """Forget idle callers; return the connections of calls that are stuck, by their names.

        A call is stuck when its client has not taken what it was sent for twice the time that a
        watcher may leave it unread: a stream was ended after the first half, and does not take
        that in either.

        Args:
            flowed: when a connection's client was last seen to take what it is sent.
        """
        now, may = asyncio.get_running_loop().time(), self._usage.limits
        self._usage.forget_idle(now)
        return self.calls.stuck(
            now,
            patience_s=2 * may.stall_timeout.total_seconds(),
            most=may.streams + may.calls_at_once,
            flowed=flowed,
        )

    async def ended(self) -> None:
        """Wait until all calls, which gRPC has cancelled, have ended. gRPC itself does not."""
        await self.calls.ended(_LAST_WORDS)

    def _wrapped(self, method: str, handler: _Handler | None) -> _Handler:
        """Return *handler* as one that gRPC hands no request: it reads and parses it itself.

        Left to gRPC, a request that cannot be parsed is answered with the text of a traceback,
        and one that never comes is not answered at all.
        """
        if handler is None:

            async def refuse(_: object, context: _Context) -> None:
                call = _call(method, None, context, streams=True)
                await self._cross(call, context, not_served(method))

            return grpc.stream_stream_rpc_method_handler(refuse)

        parse, role = parser(method), rights.needed(method)
        if handler.response_streaming:

            async def stream(_: object, context: _Context) -> None:
                call = _call(method, role, context, streams=True)

                def work() -> Awaitable[None]:
                    return self._stream(handler, parse, context, call)

                await self._cross(call, context, work, parse=parse)

            return grpc.stream_stream_rpc_method_handler(stream, None, handler.response_serializer)

        async def unary(_: object, context: _Context) -> bytes:
            call = _call(method, role, context, streams=False)

            async def work() -> bytes:
                answered = await self._in_time(answer(handler, parse, context))
                # What changes something is done by now, and nobody may be told otherwise.
                refusable = role is not Role.OPERATOR
                counted = limits.usage().answer(len(answered), refusable=refusable)
                call.releases.append(counted)
                return answered

            return await self._cross(call, context, work, parse=parse)

        return grpc.stream_unary_rpc_method_handler(unary)

    async def _cross(
        self,
        call: Call,
        context: _Context,
        work: Callable[[], Awaitable[_T]],
        *,
        parse: _Parse | None = None,
    ) -> _T:
        self.calls.begin(call)
        try:
            if self._holding:
                await asyncio.Event().wait()  # until it is dismissed
            if self._draining:
                raise ShuttingDown  # noqa: TRY301 - as if it had been dismissed
            await self._admit(call, parse, context)
            answered = await work()
        except BaseException as error:  # noqa: BLE001  # here control leaves our code
            raise await self._leave(error, call, context) from None
        self.calls.told(call)
        return answered

    async def _admit(self, call: Call, parse: _Parse | None, context: _Context) -> None:
        """Find out who calls; refuse whoever is not known, lacks the role, or has too much."""
        call.identity = self._access.identify(call.connection, context.auth_context)
        call.peer = str(call.identity)
        call.caller = self._access.caller_of(call.identity)
        access.keep(call.caller)
        read_for(call.caller.actor)
        limits.keep(self._usage, call.caller.actor).count_call()
        call.releases.append(self._usage.begin(call.caller, streams=call.streams))
        try:
            rights.check(call.role, call.caller)
        except RoleDenied:
            vm_name = await vm_meant(parse, context) if parse else None
            rights.check(call.role, call.caller, vm_name=vm_name)

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

    async def _stream(
        self, handler: _Handler, parse: _Parse, context: _Context, call: Call
    ) -> None:
        behaviour: Any = handler.stream_stream or handler.unary_stream
        responses = behaviour(await self._in_time(asked(handler, parse, context)), context)
        # Written here, not by gRPC from the generator: a write to a client that is gone fails,
        # and is none of the generator's business.
        async with aclosing(responses):
            async for response in responses:
                await self._write(response, context, call)

    async def _write(self, response: Message | bytes, context: _Context, call: Call) -> None:
        """Write one message; waits while the client does not read."""
        call.given = asyncio.get_running_loop().time()
        try:
            await context.write(response)
        finally:
            call.given = None
        if call.dismissed is not None:
            raise call.dismissed

    async def _leave(self, error: BaseException, call: Call, context: _Context) -> BaseException:
        """Tell the client of *error*, and return what gRPC is to see of it."""
        match error:
            case aio.AbortError():  # told already: the health service does so
                return error
            case aio.InternalError() | ClientGone():  # nobody is there to read or be told
                return asyncio.CancelledError()
            case asyncio.CancelledError() if call.dismissed is not None:
                call.task.uncancel()
                error = call.dismissed
            case asyncio.CancelledError() if call.task.cancelling():  # the client's doing
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
        self.calls.told(call)
        try:
            await context.abort_with_status(rpc_status.to_status(self._status(error, call)))
        except aio.InternalError:
            return asyncio.CancelledError()
        except (aio.BaseError, asyncio.CancelledError) as left:
            return left

    def _status(self, error: BaseException, call: Call) -> status_pb2.Status:
        """Return the status that tells of *error*; if it is a refusal, that is told elsewhere."""
        try:
            if isinstance(error, VmagentdError) and rights.refuses(call.role, error):
                who = call.caller
                if who is None and call.identity is not None:  # known, and not let in
                    who = access.holder(call.identity)
                self._on_refusal(who, call.peer, call.method, error)
            return status.status_of(error)
        except Exception as fault:  # noqa: BLE001  # else gRPC would tell its text
            return status.status_of(faults.logged(call.method, fault))


def _call(method: str, role: Role | None, context: _Context, *, streams: bool) -> Call:
    """Return the call that the present task is."""
    connection = context.peer()
    return Call(
        method=method,
        role=role,
        streams=streams,
        connection=connection,
        peer=access.place(connection),
    )
