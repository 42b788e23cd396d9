"""The border that every call crosses: bytes in, bytes or a status out.

All RPCs of all services pass here, health and reflection too. Inside, code gets a parsed
request and raises errors of ours; whatever else happens becomes a status that says no more than
a client may know. One call's end never touches another.

Runs on the loop. No context is kept: reading one after its call has ended kills the process.
"""

from __future__ import annotations

import asyncio
import functools
import logging
import uuid
from contextlib import aclosing
from datetime import timedelta
from typing import TYPE_CHECKING, Any, TypeVar

import grpc
from google.protobuf import descriptor_pool, message_factory
from grpc import aio
from grpc_status import rpc_status

from vmagentd.api import status
from vmagentd.api.malformed import parsed
from vmagentd.api.status import Fault, MalformedRequest, NotServed
from vmagentd.errors import ShuttingDown

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine

    from google.protobuf.descriptor import ServiceDescriptor
    from google.protobuf.message import Message

    _Context = aio.ServicerContext[Any, Any]
    _Handler = grpc.RpcMethodHandler[Any, Any]
    _Parse = Callable[[bytes], Message]
    _Task = asyncio.Task[Any]

log = logging.getLogger(__name__)

_T = TypeVar("_T")

# How long telling a call its end may take.
_LAST_WORDS = timedelta(seconds=1)


# by whether the request and the response are streams
_MAKE = {
    (False, False): grpc.unary_unary_rpc_method_handler,
    (False, True): grpc.unary_stream_rpc_method_handler,
    (True, False): grpc.stream_unary_rpc_method_handler,
    (True, True): grpc.stream_stream_rpc_method_handler,
}


def handlers(service: ServiceDescriptor, servicer: object) -> grpc.GenericRpcHandler:
    """Return *servicer*'s methods as handlers of *service*.

    Nothing is parsed here, see `Boundary`. A response that is bytes goes out as it is.
    """
    made: dict[str, grpc.RpcMethodHandler[Any, Any]] = {}
    for method in service.methods:
        make = _MAKE[method.client_streaming, method.server_streaming]
        made[method.name] = make(getattr(servicer, method.name), None, _encoded)
    return grpc.method_handlers_generic_handler(service.full_name, made)


class Boundary(aio.ServerInterceptor):
    """Wraps every method; knows the calls that are under way, and ends them."""

    def __init__(self) -> None:
        # wrapped once: a method's handler never changes
        self._handlers: dict[str, _Handler] = {}
        # calls in our hands: they may be dismissed
        self._unary: set[_Task] = set()
        self._streaming: set[_Task] = set()
        # calls that are writing: they must not be cancelled
        self._writing: set[_Task] = set()
        # calls ended by us, not by their client
        self._dismissed: set[_Task] = set()
        # all calls, until gRPC has done with them too
        self._tasks: set[_Task] = set()
        self._draining = False

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
        self._draining = True
        self._dismiss(self._streaming)
        await self._wait(grace)
        self._dismiss(self._unary)
        await self._wait(_LAST_WORDS)

    async def ended(self) -> None:
        """Wait until all calls, which gRPC has cancelled, have ended. gRPC itself does not."""
        await self._wait(_LAST_WORDS)
        for task in self._tasks:
            log.error("a call does not end: %s", task.get_stack(limit=1))

    async def _wait(self, limit: timedelta) -> None:
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=limit.total_seconds())

    def _dismiss(self, tasks: set[_Task]) -> None:
        for task in tasks - self._dismissed:
            self._dismissed.add(task)
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
                await self._cross(method, context, self._streaming, _raise(NotServed(method)))

            return grpc.stream_stream_rpc_method_handler(refuse)

        parse = _parser(method)
        if handler.response_streaming:

            async def stream(_: object, context: _Context) -> None:
                work = self._stream(handler, parse, context)
                await self._cross(method, context, self._streaming, work)

            return grpc.stream_stream_rpc_method_handler(stream, None, handler.response_serializer)

        async def unary(_: object, context: _Context) -> object:
            work = _answer(handler, parse, context)
            return await self._cross(method, context, self._unary, work)

        return grpc.stream_unary_rpc_method_handler(unary, None, handler.response_serializer)

    async def _cross(
        self,
        method: str,
        context: _Context,
        calls: set[_Task],
        work: Coroutine[Any, Any, _T],
    ) -> _T:
        task = _current_task()
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        calls.add(task)
        if self._draining:
            self._dismiss({task})
        try:
            return await work
        except BaseException as error:  # noqa: BLE001  # here control leaves our code
            raise await self._leave(error, task, method, context) from None
        finally:
            calls.discard(task)
            self._dismissed.discard(task)

    async def _stream(self, handler: _Handler, parse: _Parse, context: _Context) -> None:
        behaviour: Any = handler.stream_stream or handler.unary_stream
        responses = behaviour(await _asked(handler, parse, context), context)
        # Written here, not by gRPC from the generator: a write to a client that is gone fails,
        # and is none of the generator's business.
        async with aclosing(responses):
            async for response in responses:
                await self._write(response, context)

    async def _write(self, response: Message | bytes, context: _Context) -> None:
        """Write one message; waits while the client does not read."""
        task = _current_task()
        self._writing.add(task)
        try:
            await context.write(response)
        finally:
            self._writing.discard(task)
        if task in self._dismissed:
            raise ShuttingDown

    async def _leave(
        self, error: BaseException, task: _Task, method: str, context: _Context
    ) -> BaseException:
        """Tell the client of *error*, and return what gRPC is to see of it."""
        match error:
            case aio.AbortError():  # told already: the health service does so
                return error
            case aio.InternalError():  # nobody is there to read or be told
                return asyncio.CancelledError()
            case asyncio.CancelledError() if task in self._dismissed:
                task.uncancel()
                error = ShuttingDown()
            case asyncio.CancelledError() if task.cancelling():  # the client's doing
                return error
            case asyncio.CancelledError() | aio.BaseError() if self._draining:
                # Something that the call waited for was taken down before it. Left as it is,
                # gRPC would send no status, and the client wait for ever.
                error = ShuttingDown()
            case Exception() | asyncio.CancelledError() if not status.tells(error):
                error = _fault(method, error)
            case Exception():
                pass
            case _:  # KeyboardInterrupt, SystemExit
                return error
        try:
            await context.abort_with_status(rpc_status.to_status(status.status_of(error)))
        except aio.InternalError:
            return asyncio.CancelledError()
        except (aio.BaseError, asyncio.CancelledError) as left:
            return left


def _encoded(response: Message | bytes) -> bytes:
    return response if isinstance(response, bytes) else response.SerializeToString()


def _fault(method: str, error: BaseException) -> Fault:
    fault_id = str(uuid.uuid4())
    log.error(
        "%s: fault %s", method, fault_id, exc_info=error, extra={"VMAGENTD_FAULT_ID": fault_id}
    )
    return Fault(fault_id)


def _current_task() -> _Task:
    task = asyncio.current_task()
    if task is None:
        raise RuntimeError("a call runs in a task of its own")
    return task


def _parser(method: str) -> _Parse:
    """Return what parses the requests of `/package.Service/Method`."""
    name = method.removeprefix("/").replace("/", ".")
    request = descriptor_pool.Default().FindMethodByName(name).input_type
    return functools.partial(parsed, message_factory.GetMessageClass(request))


async def _answer(handler: _Handler, parse: _Parse, context: _Context) -> object:
    behaviour: Any = handler.stream_unary or handler.unary_unary
    return await behaviour(await _asked(handler, parse, context), context)


async def _asked(
    handler: _Handler, parse: _Parse, context: _Context
) -> Message | AsyncIterator[Message]:
    if handler.request_streaming:
        return _requests(parse, context)
    raw: Any = await context.read()
    if raw is aio.EOF:
        # Also when it was too long; then this status comes too late, after gRPC's own.
        raise MalformedRequest("request", "the call ended without one")
    return parse(raw)


async def _requests(parse: _Parse, context: _Context) -> AsyncIterator[Message]:
    while True:
        raw: Any = await context.read()
        if raw is aio.EOF:
            return
        yield parse(raw)


async def _raise(error: Exception) -> None:
    raise error
