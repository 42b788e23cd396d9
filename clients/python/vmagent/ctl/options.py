"""Options that several commands share, and how their values are read.

A global option stands before the command or after it; the one after it wins.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, TypeVar

import typer

from vmagent.ctl.channel import DEFAULT_TARGET, socket_path
from vmagent.ctl.screen import Output
from vmagent.ctl.words import value_name
from vmagent.v1.transition_pb2 import Cursor
from vmagent.v1.vm_pb2 import VmState

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

TARGET_VARIABLE = "VMAGENTD_TARGET"
_MOST_DIGITS = 18  # of an int64, safely

Target = Annotated[
    str | None,
    typer.Option(
        "--target",
        metavar="unix:PATH",
        help=f"The daemon's socket. Else ${TARGET_VARIABLE}, else {DEFAULT_TARGET}.",
        show_default=False,
    ),
]
OutputOption = Annotated[
    Output | None,
    typer.Option(
        "--output",
        "-o",
        help="Text for people, JSON, or JSON with one response a line. Default: table.",
        show_default=False,
    ),
]
VmArgument = Annotated[str, typer.Argument(metavar="VM", help="Name or UUID of the VM.")]
VmsArgument = Annotated[list[str], typer.Argument(metavar="VM", help="Names or UUIDs of VMs.")]

_Value = TypeVar("_Value")


@dataclass(frozen=True, slots=True, kw_only=True)
class Common:
    """What the global options said."""

    target: str | None
    output: Output | None

    def path(self, target: str | None) -> Path:
        """Return the daemon's socket."""
        said = target or self.target or os.environ.get(TARGET_VARIABLE) or DEFAULT_TARGET
        return read("--target", said, socket_path)

    def form(self, output: Output | None) -> Output:
        """Return the form of the answer."""
        return output or self.output or Output.TABLE


def read(option: str, text: str, parse: Callable[[str], _Value]) -> _Value:
    """Return an option's value; a bad one is told with the option's name.

    Not a callback of typer's: an option's type there would be that of its text.
    """
    try:
        return parse(text)
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint=option) from None


def parse_state(text: str) -> VmState.ValueType:
    """Return the state of that name, in any case, with `-` for `_`."""
    name = text.upper().replace("-", "_")
    number = VmState.DESCRIPTOR.values_by_name.get(f"VM_STATE_{name}")
    if number is None or not number.number:
        known = (value_name(VmState.DESCRIPTOR, n).lower() for n in VmState.values() if n)
        raise ValueError(f"{text!r} is not a state; the states are {', '.join(known)}")
    return VmState.ValueType(number.number)


def parse_place(text: str) -> Cursor:
    """Return a place in a journal: `REVISION` alone is in the daemon's present one.

    The journal is then left empty for whoever can ask for it.
    """
    journal_id, _, revision = text.rpartition(":")
    if not (revision.isascii() and revision.isdigit() and len(revision) <= _MOST_DIGITS):
        raise ValueError(f"{text!r} is no place in a journal; write REVISION or JOURNAL:REVISION")
    return Cursor(journal_id=journal_id, revision=int(revision))
