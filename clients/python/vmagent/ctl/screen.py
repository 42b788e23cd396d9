"""The terminal: lines, tables and JSON on stdout, remarks on stderr.

Everything is written out at once, also into a pipe: a line that was printed can be seen. Styles
reach only a terminal. Text is never interpreted as markup; `words.plain` has escaped it before.
"""

from __future__ import annotations

import sys
from contextlib import suppress
from enum import StrEnum
from io import StringIO
from typing import TYPE_CHECKING

from google.protobuf import json_format
from rich.console import Console
from rich.text import Text

from vmagent.ctl import leaving

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from google.protobuf.message import Message

_GAP = "  "


class Output(StrEnum):
    """In which form answers are printed."""

    TABLE = "table"
    JSON = "json"
    JSONL = "jsonl"


class Screen:
    """Prints to stdout."""

    def __init__(self) -> None:
        # rich styles the text, and writes into memory: it would end the process its own way
        # when the reader has gone. Soft wrap: lines are never cut or padded to a width.
        self._styled = StringIO()
        self._console = Console(
            file=self._styled,
            force_terminal=sys.stdout.isatty(),
            highlight=False,
            markup=False,
            emoji=False,
            soft_wrap=True,
        )

    def line(self, *parts: str | Text | tuple[str, str]) -> None:
        """Print one line; a part is text, styled text, or text with its style."""
        self._console.print(Text.assemble(*parts))
        text = self._styled.getvalue()
        self._styled.seek(0)
        self._styled.truncate()
        _write(text)

    def table(
        self, titles: Sequence[str], rows: Iterable[Sequence[str | Text]], *, nothing: str
    ) -> None:
        """Print rows under titles, each column as wide as its widest cell; or *nothing*."""
        cells = [[Text.assemble(cell) for cell in row] for row in rows]
        if not cells:
            self.line(nothing)
            return
        cells.insert(0, [Text(title, style="bold") for title in titles])
        widths = [max(cell.cell_len for cell in column) for column in zip(*cells, strict=True)]
        for row in cells:
            line = Text()
            for cell, width in zip(row, widths, strict=True):
                line.append_text(cell).append(" " * (width - cell.cell_len) + _GAP)
            line.rstrip()
            self.line(line)


def print_json(message: Message, output: Output) -> None:
    """Print a message in protobuf's JSON mapping: indented, or as one line."""
    indent = None if output is Output.JSONL else 2
    _write(json_format.MessageToJson(message, indent=indent) + "\n")


def _write(text: str) -> None:
    try:
        sys.stdout.write(text)
        sys.stdout.flush()
    except BrokenPipeError:
        leaving.reader_gone()


def tell(sentence: str) -> None:
    """Say one line to the person, on stderr."""
    with suppress(OSError):  # nobody is there to be told
        sys.stderr.write(f"vmagentctl: {sentence}\n")
        sys.stderr.flush()
