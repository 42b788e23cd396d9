"""What vmagentctl takes: its commands and their options, as typer has them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import typer.main
from vmagent.ctl.app import app

if TYPE_CHECKING:
    from collections.abc import Iterator


@dataclass(frozen=True, slots=True)
class Option:
    """One option."""

    names: tuple[str, ...]
    value: str | None  # what stands for its value; None: it takes none
    choices: tuple[str, ...]
    is_path: bool
    help: str  # with what holds if it is not given, in brackets


@dataclass(frozen=True, slots=True)
class Command:
    """One command; the words of vmagentctl itself are none."""

    words: tuple[str, ...]
    arguments: tuple[str, ...]
    takes_path: bool  # as an argument
    options: tuple[Option, ...]
    help: str

    @property
    def summary(self) -> str:
        """The first sentence, without its full stop."""
        return self.help.partition(". ")[0].split("\n\n")[0].rstrip(".").replace("\n", " ")


def commands() -> list[Command]:
    """Return vmagentctl itself, then each command, in the order of its help."""
    return list(_walk((), typer.main.get_command(app)))


def _walk(words: tuple[str, ...], command: Any) -> Iterator[Command]:  # noqa: ANN401 - typer's own
    shown = [p for p in command.params if not getattr(p, "hidden", False)]
    yield Command(
        words,
        tuple(_argument(p) for p in shown if p.param_type_name == "argument"),
        any(p.type_descriptor.is_path for p in shown if p.param_type_name == "argument"),
        tuple(_option(p) for p in shown if p.param_type_name == "option"),
        (command.help or "").strip(),
    )
    for name, below in getattr(command, "commands", {}).items():
        if not below.hidden:
            yield from _walk((*words, name), below)


def _argument(parameter: Any) -> str:  # noqa: ANN401
    name = parameter.metavar or parameter.name.upper()
    name = f"{name}..." if parameter.nargs == -1 else name
    return name if parameter.required else f"[{name}]"


def _option(parameter: Any) -> Option:  # noqa: ANN401
    kind = parameter.type_descriptor
    choices = tuple(str(choice.value) for choice in kind.choices or ())
    value = None
    if not parameter.is_flag and not parameter.count:
        value = "|".join(choices) or parameter.metavar or parameter.name.upper()
    names = sorted((*parameter.opts, *parameter.secondary_opts), key=len)
    text = parameter.help or ""
    if parameter.default and parameter.show_default:
        text += f" [{getattr(parameter.default, 'value', parameter.default)}]"
    return Option(tuple(names), value, choices, kind.is_path, text)
