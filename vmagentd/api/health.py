"""The standard health service, `grpc.health.v1`.

Not grpcio's: there, one watcher that leaves takes the others' notifications with it, and one
that does not read blocks whoever sets a status.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import grpc
from grpc_health.v1 import health_pb2

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterable

    from grpc import aio
    from grpc_health.v1.health_pb2 import HealthCheckRequest, HealthCheckResponse

SERVICE: Any = health_pb2.DESCRIPTOR.services_by_name["Health"]

_SERVING = health_pb2.HealthCheckResponse.SERVING
_NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING
_UNKNOWN = health_pb2.HealthCheckResponse.SERVICE_UNKNOWN


class Health:
    """What this daemon says of its health, by name. Runs on the loop."""

    def __init__(self, names: Iterable[str]) -> None:
        """Serve *names*, none of them healthy before `set`."""
        self._serving = dict.fromkeys(names, False)
        # replaced, not cleared, at each change, so that no watcher can miss one
        self._changed = asyncio.Event()
        self._closed = False

    def set(self, name: str, *, serving: bool) -> None:
        """Set what is said of *name*, which must be one of those given at first."""
        if name not in self._serving:
            raise KeyError(name)
        if self._closed or self._serving[name] == serving:
            return
        self._serving[name] = serving
        self._wake()

    def close(self) -> None:
        """Say from now on that nothing is served."""
        self._closed = True
        self._serving = dict.fromkeys(self._serving, False)
        self._wake()

    async def Check(
        self, request: HealthCheckRequest, context: aio.ServicerContext[Any, Any]
    ) -> HealthCheckResponse:
        """Return the health of one name."""
        if request.service not in self._serving:
            await context.abort(grpc.StatusCode.NOT_FOUND, "no such name; see the contract")
        return health_pb2.HealthCheckResponse(status=self._status(request.service))

    async def Watch(
        self, request: HealthCheckRequest, _context: aio.ServicerContext[Any, Any]
    ) -> AsyncIterator[HealthCheckResponse]:
        """Stream the health of one name: as it is now, then as it changes."""
        told = None
        while True:
            changed = self._changed
            present = self._status(request.service)
            if present != told:
                told = present
                yield health_pb2.HealthCheckResponse(status=present)
            await changed.wait()

    def _status(self, name: str) -> int:
        match self._serving.get(name):
            case None:
                return _UNKNOWN
            case serving:
                return _SERVING if serving else _NOT_SERVING

    def _wake(self) -> None:
        changed, self._changed = self._changed, asyncio.Event()
        changed.set()
