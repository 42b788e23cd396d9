"""Identifiers, and choices that are their own names."""

from __future__ import annotations

from enum import StrEnum
from typing import NewType

from typing_extensions import override  # typing has it since 3.12

VmUuid = NewType("VmUuid", str)
Revision = NewType("Revision", int)
OperationId = NewType("OperationId", str)
JournalId = NewType("JournalId", str)

NO_REVISION = Revision(0)


class Name(StrEnum):
    """A choice whose value is its own name, as it stands in the contract and in the journal."""

    @override
    @staticmethod
    def _generate_next_value_(name: str, *_: object) -> str:
        return name
