"""What vmagentd.toml takes: the fields of the tables, with the comments above them."""

from __future__ import annotations

import ast
import inspect
import textwrap
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import BaseModel
from pydantic_core import PydanticUndefined

from vmagentd.config import Config

if TYPE_CHECKING:
    from pydantic.fields import FieldInfo

_UNITS = (("d", 86400), ("h", 3600), ("m", 60), ("s", 1))
_HEAD = """\
# Settings of vmagentd; see vmagentd.toml(5). Each line that is commented out shows a default.
# After a change: `vmagentd --check-config`, then `systemctl reload vmagentd`, which says what only
# a restart changes.
"""


@dataclass(frozen=True, slots=True)
class Setting:
    """One key."""

    key: str
    default: str | None  # as TOML; None: there is none
    comment: str


@dataclass(frozen=True, slots=True)
class Table:
    """One table of the file; the name of the file's own keys is empty."""

    name: str
    repeated: bool
    about: str
    settings: tuple[Setting, ...]

    @property
    def header(self) -> str:
        """As the file has it."""
        return f"[[{self.name}]]" if self.repeated else f"[{self.name}]"


def tables() -> list[Table]:
    """Return all tables, the file's own keys first."""
    return _tables("", Config, repeated=False)


def file(tables: list[Table]) -> str:
    """Return the file with all keys commented out."""
    parts = [_HEAD]
    for table in tables:
        lines = []
        if table.name:
            lines += [*_commented(table.about), f"#{table.header}"]
        for setting in table.settings:
            lines += _commented(setting.comment)
            lines.append(f"#{setting.key} = {setting.default or '...'}")
        parts.append("\n".join(lines) + "\n")
    return "\n".join(parts)


def _commented(text: str) -> list[str]:
    return [f"# {line}" for line in textwrap.wrap(text, 96)]


def _tables(name: str, model: type[BaseModel], *, repeated: bool) -> list[Table]:
    comments = _comments(model)
    own, below = [], []
    for key, field in model.model_fields.items():
        inner = _model_in(field.annotation)
        if inner is None:
            own.append(Setting(key, _default(field), comments.get(key, "")))
        else:
            many = inner is not field.annotation and "tuple" in str(field.annotation)
            many = many or "list" in str(field.annotation)
            below += _tables(f"{name}.{key}".lstrip("."), inner, repeated=many)
    about = inspect.getdoc(model) or ""
    about = about.partition(": ")[2] or about
    return [Table(name, repeated, about[:1].upper() + about[1:], tuple(own)), *below]


def _model_in(annotation: object) -> type[BaseModel] | None:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    found = (_model_in(part) for part in getattr(annotation, "__args__", ()))
    return next((model for model in found if model), None)


def _comments(model: type[BaseModel]) -> dict[str, str]:
    """Return the comment above each field that has one."""
    source = textwrap.dedent(inspect.getsource(model))
    lines = source.splitlines()
    comments = {}
    for statement in ast.parse(source).body[0].body:
        if not isinstance(statement, ast.AnnAssign):
            continue
        above: list[str] = []
        at = statement.lineno - 2
        while lines[at].lstrip().startswith("#"):
            above.insert(0, lines[at].strip().lstrip("# "))
            at -= 1
        text = " ".join(above)
        comments[statement.target.id] = text[:1].upper() + text[1:] + ("." if text else "")
    return comments


def _default(field: FieldInfo) -> str | None:
    value = field.get_default(call_default_factory=True)
    if value is None or value is PydanticUndefined:
        return None
    reads = {getattr(getattr(m, "func", None), "__name__", "") for m in field.metadata}
    return f'"{value:04o}"' if "_mode" in reads else _toml(value)


def _toml(value: object) -> str:
    match value:
        case bool():
            return str(value).lower()
        case int() | float():
            return str(value)
        case timedelta():
            return f'"{_duration(value)}"'
        case tuple() | list() | frozenset():
            return f"[{', '.join(_toml(each) for each in value)}]"
        case str() | Path():
            return f'"{value}"'
        case _:
            raise TypeError(f"no way to write {value!r} in TOML")


def _duration(value: timedelta) -> str:
    seconds = value.total_seconds()
    for unit, size in _UNITS:
        if seconds >= size and seconds % size == 0:
            return f"{seconds / size:g}{unit}"
    return f"{seconds * 1000:g}ms"
