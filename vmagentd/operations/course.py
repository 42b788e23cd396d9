"""The committed steps of an operation, for those who follow it."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import TYPE_CHECKING

from vmagentd.model import OperationPhase

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence

    from vmagentd.errors import VmagentdError
    from vmagentd.model import Operation


class Course:
    """One operation, step by step: each is told once it is committed, in order."""

    def __init__(self, committed: Sequence[Operation]) -> None:
        """Begin with what is *committed*, perhaps by an earlier daemon."""
        self._committed = [*committed]
        # its place among those that wait for their turn, from 1; 0 if it does not
        self._place = 0
        self._abandoned: VmagentdError | None = None
        # replaced, not cleared, so that a follower cannot miss a step
        self._grown = asyncio.Event()

    def tell(self, operation: Operation) -> None:
        """Tell a step; one that more follows, a turn of the loop later: libvirt is asked first."""
        self._committed.append(operation)
        if operation.phase.final:
            self._grow()
        else:
            asyncio.get_running_loop().call_soon(self._grow)

    def place(self, place: int) -> None:
        """Tell its place among those that wait for their turn."""
        self._place = place
        self._grow()

    def abandon(self, why: VmagentdError) -> None:
        """Let go of those who still follow, though it is not over."""
        self._abandoned = why
        self._grow()

    async def begun(self) -> None:
        """Wait until its first step is committed.

        Raises:
            VmagentdError: it was abandoned before.
        """
        while not self._committed:
            if self._abandoned is not None:
                raise self._abandoned
            await self._grown.wait()

    async def follow(self) -> AsyncIterator[Operation]:
        """Yield the operation as it stands, then after each step; the last one is final.

        Raises:
            VmagentdError: it was abandoned.
        """
        sent, place = max(len(self._committed) - 1, 0), 0
        while True:
            for operation in self._committed[sent:]:
                sent, place = sent + 1, self._place
                yield replace(operation, queue_place=place) if _waits(operation) else operation
                if operation.phase.final:
                    return
            if sent == len(self._committed):
                waits = sent > 0 and _waits(self._committed[-1])
                if waits and self._place not in {0, place}:
                    place = self._place
                    yield replace(self._committed[-1], queue_place=place)
                    continue
                if self._abandoned is not None:
                    raise self._abandoned
                await self._grown.wait()

    def _grow(self) -> None:
        grown, self._grown = self._grown, asyncio.Event()
        grown.set()


def _waits(operation: Operation) -> bool:
    return operation.phase is OperationPhase.QUEUED
