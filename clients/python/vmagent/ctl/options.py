"""Options that several commands share, and how their values are read.

`--target` and `--output` stand before the command or after it; the one after it wins. The files
for TLS stand before it.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TypeVar

import typer
from google.protobuf.duration_pb2 import Duration

from vmagent.ctl.durations import parse_duration
from vmagent.ctl.screen import Output
from vmagent.ctl.targets import DEFAULT_TARGET, TlsFiles, parse_target
from vmagent.ctl.words import value_name, value_names
from vmagent.v1.transition_pb2 import Cursor
from vmagent.v1.vm_pb2 import VmState

if TYPE_CHECKING:
    from collections.abc import Callable

    from google.protobuf.descriptor import EnumDescriptor

    from vmagent.ctl.targets import Daemon

TARGET_VARIABLE = "VMAGENTD_TARGET"
STATES = value_names(VmState.DESCRIPTOR)
_MOST_DIGITS = 18  # of an int64, safely

Target = Annotated[
    str | None,
    typer.Option(
        "--target",
        metavar="unix:PATH|HOST:PORT|NAME",
        help=f"The daemon; NAME is one in vmagentctl's files. Else ${TARGET_VARIABLE}, else "
        f"{DEFAULT_TARGET}.",
        show_default=False,
    ),
]
CertOption = Annotated[
    Path | None,
    typer.Option(metavar="FILE", help="Your certificate, for HOST:PORT. Else $VMAGENTD_CERT."),
]
KeyOption = Annotated[
    Path | None, typer.Option(metavar="FILE", help="Its key. Else $VMAGENTD_KEY.")
]
CaOption = Annotated[
    Path | None,
    typer.Option(metavar="FILE", help="The CA of that host's certificate. Else $VMAGENTD_CA."),
]
ServerNameOption = Annotated[
    str | None,
    typer.Option(
        metavar="HOST", help="Its name, if it is not HOST:PORT's. Else $VMAGENTD_SERVER_NAME."
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

LimitOption = Annotated[
    int, typer.Option(min=0, metavar="N", help="How many at most; 0 shows all.")
]
RequestIdOption = Annotated[
    str,
    typer.Option(
        metavar="ID",
        help="Identity of this request: a repeat with the same one joins it or tells how it went.",
        show_default=False,
    ),
]

_Value = TypeVar("_Value")


@dataclass(frozen=True, slots=True, kw_only=True)
class Common:
    """What the global options said."""

    target: str | None
    tls: TlsFiles
    output: Output | None

    def daemon(self, target: str | None) -> Daemon:
        """Return the daemon that is meant."""
        said = target or self.target or os.environ.get(TARGET_VARIABLE) or DEFAULT_TARGET
        return read("--target", said, lambda text: parse_target(text, self.tls, os.environ))

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


def duration(option: str, text: str | None) -> Duration | None:
    """Return an option's value as a duration, None if it was not given."""
    if text is None:
        return None
    given = Duration()
    given.FromTimedelta(read(option, text, parse_duration))
    return given


def parse_value(text: str, enum: EnumDescriptor, noun: str) -> int:
    """Return the number of the value of that name, in any case, with `-` for `_`.

    Raises:
        ValueError: with one sentence that names those there are.
    """
    name = text.upper().replace("-", "_")
    known = {value_name(enum, number): number for number in enum.values_by_number if number}
    if name not in known:
        raise ValueError(f"{text!r} is no {noun}; the {noun}s are {value_names(enum)}")
    return known[name]


def parse_state(text: str) -> VmState.ValueType:
    """Return the state of that name."""
    return VmState.ValueType(parse_value(text, VmState.DESCRIPTOR, "state"))


def parse_place(text: str) -> Cursor:
    """Return a place in a journal: `REVISION` alone is in the daemon's present one.

    The journal is then left empty for whoever can ask for it.
    """
    journal_id, _, revision = text.rpartition(":")
    if not (revision.isascii() and revision.isdigit() and len(revision) <= _MOST_DIGITS):
        raise ValueError(f"{text!r} is no place in a journal; write REVISION or JOURNAL:REVISION")
    return Cursor(journal_id=journal_id, revision=int(revision))
