"""Operations that do what a test says: what the real ones would need libvirt for."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, TypeAlias

from vmagentd.model import Operation

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

    from vmagentd.model import Caller, OperationId, Parameters

    # told to the caller · raised · awaited
    Step: TypeAlias = Operation | BaseException | Callable[[], Awaitable[object]]


class ScriptedOperations:
    """Plays `steps` to every caller, and keeps what was asked."""

    def __init__(self) -> None:
        self.steps: list[Step] = []
        self.asked: list[tuple[str, Parameters, str, str | None]] = []
        # what a cancel returns, and which were asked for
        self.cancels: Operation | None = None
        self.cancelled: list[OperationId] = []
        # callers that are being served, and notified when that changes
        self.listening = 0
        self.changed = asyncio.Condition()

    def ask(
        self, ref: str, parameters: Parameters, *, caller: Caller, request_id: str | None
    ) -> AsyncIterator[Operation]:
        self.asked.append((ref, parameters, caller.actor, request_id))
        return self._play()

    async def cancel(self, operation_id: OperationId, *, caller: Caller) -> Operation:
        self.cancelled.append(operation_id)
        assert self.cancels is not None, caller
        return self.cancels

    async def _play(self) -> AsyncIterator[Operation]:
        await self._count(1)
        try:
            for step in list(self.steps):
                if isinstance(step, Operation):
                    yield step
                elif isinstance(step, BaseException):
                    raise step
                else:
                    await step()
        finally:
            await self._count(-1)

    async def _count(self, more: int) -> None:
        async with self.changed:
            self.listening += more
            self.changed.notify_all()


async def for_ever() -> None:
    """Wait until cancelled."""
    await asyncio.Event().wait()
