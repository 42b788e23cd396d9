"""Methods as gRPC takes them, and the requests that they are called with."""

from __future__ import annotations

import asyncio
import functools
from typing import TYPE_CHECKING, Any, Final

import grpc
from google.protobuf import descriptor_pool, message_factory
from grpc import aio

from vmagentd.api import limits
from vmagentd.api.malformed import parsed
from vmagentd.api.status import MalformedRequest, NotServed
from vmagentd.errors import RequestError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

    from google.protobuf.descriptor import ServiceDescriptor
    from google.protobuf.message import Message

    Context = aio.ServicerContext[Any, Any]
    Handler = grpc.RpcMethodHandler[Any, Any]
    Parse = Callable[[bytes], Message]

# Whoever is refused may take so long to say for which VM.
_AT_ONCE_S: Final = 1.0

# by whether the request and the response are streams
_MAKE = {
    (False, False): grpc.unary_unary_rpc_method_handler,
    (False, True): grpc.unary_stream_rpc_method_handler,
    (True, False): grpc.stream_unary_rpc_method_handler,
    (True, True): grpc.stream_stream_rpc_method_handler,
}


def handlers(service: ServiceDescriptor, *parts: object) -> grpc.GenericRpcHandler:
    """Return the methods of *parts*, each of which has some, as handlers of *service*.

    Nothing is parsed here, see `Boundary`. A response that is bytes goes out as it is.
    """
    made: dict[str, grpc.RpcMethodHandler[Any, Any]] = {}
    for method in service.methods:
        make = _MAKE[method.client_streaming, method.server_streaming]
        owner = next(part for part in parts if hasattr(part, method.name))
        made[method.name] = make(getattr(owner, method.name), None, _encoded)
    return grpc.method_handlers_generic_handler(service.full_name, made)


def parser(method: str) -> Parse:
    """Return what parses the requests of `/package.Service/Method`."""
    name = method.removeprefix("/").replace("/", ".")
    request = descriptor_pool.Default().FindMethodByName(name).input_type
    return functools.partial(parsed, message_factory.GetMessageClass(request))


async def answer(handler: Handler, parse: Parse, context: Context) -> bytes:
    """Return what a method that is no stream responds."""
    behaviour: Any = handler.stream_unary or handler.unary_unary
    response = await behaviour(await asked(handler, parse, context), context)
    # channelz has none for what does not exist, only a code
    return b"" if response is None else _encoded(response)


async def asked(
    handler: Handler, parse: Parse, context: Context
) -> Message | AsyncIterator[Message]:
    """Return what a method is asked: its request, or all its requests.

    Raises:
        InvalidField: it cannot be parsed.
        MalformedRequest: it cannot be parsed, or does not come.
    """
    if handler.request_streaming:
        return _requests(parse, context)
    raw: Any = await context.read()
    if raw is aio.EOF:
        # Also when it was too long; then this status comes too late, after gRPC's own.
        raise MalformedRequest("request", "the call ended without one")
    return parse(raw)


async def vm_meant(parse: Parse, context: Context) -> str | None:
    """Return the VM that a call was for which is refused, if it says so at once."""
    try:
        async with asyncio.timeout(_AT_ONCE_S):
            raw: Any = await context.read()
        vm: str | None = getattr(parse(raw), "vm", None) if raw is not aio.EOF else None
    except (TimeoutError, RequestError):
        return None
    return vm or None


async def _requests(parse: Parse, context: Context) -> AsyncIterator[Message]:
    """Yield what comes; each after the first is as much as a call."""
    first = True
    raw: Any
    while (raw := await context.read()) is not aio.EOF:
        if not first:
            limits.usage().count_call()
        first = False
        yield parse(raw)


def not_served(method: str) -> Callable[[], Awaitable[None]]:
    """Return what stands for a method that does not exist."""

    async def refuse() -> None:
        raise NotServed(method)

    return refuse


def _encoded(response: Message | bytes) -> bytes:
    return response if isinstance(response, bytes) else response.SerializeToString()
