"""Reads the file of the settings, and says of each key that is wrong where it is and why."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import TYPE_CHECKING, Final, TypeAlias

from pydantic import BaseModel, ValidationError

from vmagentd.config.tables import Config
from vmagentd.errors import ConfigError, ConfigProblem

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from pydantic_core import ErrorDetails

DEFAULT_FILE: Final = Path("/etc/vmagentd/vmagentd.toml")

_AT_LINE: Final = re.compile(r"\(at line (\d+),")
# The last line of a statement of several ends so; most lines of a long list do not, and are not
# worth a try.
_MAY_END: Final = re.compile(r"""[]}"']\s*(#.*)?$""")
# Where many of them do, as their comments end so, the last one is told by its having nothing else.
_MOST_TRIES: Final = 50
_ENDS: Final = re.compile(r"""^\s*[]}"'][]}"'\s]*(#.*)?$""")

# where a key is: the keys of the tables around it, and numbers in arrays
Place: TypeAlias = tuple[int | str, ...]


def load(file: Path | None, overrides: Mapping[str, object]) -> Config:
    """Return the settings of *file*, with *overrides* from the command line over them.

    Args:
        file: None means DEFAULT_FILE, which need not exist.
        overrides: by key.

    Raises:
        ConfigError: the file cannot be read, or a key is wrong; every bad key is named.
    """
    path = file or DEFAULT_FILE
    text = ""
    try:
        text = path.read_text(encoding="utf-8")
        settings = tomllib.loads(text)
    except FileNotFoundError as error:
        if file is not None:
            raise ConfigError(str(path), [ConfigProblem("no such file")]) from error
        settings = {}
    except OSError as error:
        raise ConfigError(str(path), [ConfigProblem(error.strerror or str(error))]) from error
    except RecursionError as error:
        raise ConfigError(str(path), [ConfigProblem("not TOML: nested too deeply")]) from error
    except ValueError as error:  # TOML's, Unicode's, or of a number with too many digits
        where = _AT_LINE.search(str(error))
        line = int(where[1]) if where else None
        raise ConfigError(str(path), [ConfigProblem(f"not TOML: {error}", line)]) from error
    try:
        return Config.model_validate(settings | dict(overrides))
    except ValidationError as error:
        places = _Places(text)
        problems = [_problem(detail, places, overrides) for detail in error.errors()]
        problems.sort(key=lambda problem: problem.line or 0)
        raise ConfigError(str(path), problems) from error


def _problem(
    detail: ErrorDetails, places: _Places, overrides: Mapping[str, object]
) -> ConfigProblem:
    place = detail["loc"]
    key = ".".join(map(str, place))
    match detail["type"]:
        case "extra_forbidden":
            message = "unknown key" + _meant(place)
        case "missing":
            message = "is missing"
        case _:
            message = detail["msg"].removeprefix("Value error, ")
    if place and place[0] in overrides:
        option = str(place[0]).replace("_", "-")
        return ConfigProblem(f"{key}: {message} (from the command line: --{option})")
    return ConfigProblem(f"{key}: {message}", places.line(place))


def _meant(place: Place) -> str:
    """Suggest a key that is spelled alike, of the table that *place* is in."""
    table: type[BaseModel] = Config
    for key in place[:-1]:
        field = table.model_fields.get(str(key))
        tables = () if field is None else _tables(field.annotation)
        table = next(iter(tables), table)
    from difflib import get_close_matches  # noqa: PLC0415 - memory of a daemon that never needs it

    known = list(table.model_fields)
    alike = get_close_matches(str(place[-1]), known, n=1)
    if alike:
        return f"; did you mean {alike[0]}?"
    return f"; there are: {', '.join(known)}"


def _tables(annotation: object) -> list[type[BaseModel]]:
    """Return the tables that an annotation speaks of: `T`, `T | None`, `tuple[T, ...]`."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [table for part in getattr(annotation, "__args__", ()) for table in _tables(part)]


class _Places:
    """Knows the lines at which keys are set.

    The parser itself tells, by what it makes of one statement after the other: no parser that is
    well kept gives away positions. The text as a whole is TOML.
    """

    def __init__(self, text: str) -> None:
        self._lines: dict[Place, int] = {}
        # the last table of each array of tables
        self._last: dict[Place, int] = {}
        table: Place = ()
        for line, header, settings in _statements(text):
            if header:
                table = self._header(settings, line)
            else:
                self._note(table, settings, line)

    def line(self, place: Place) -> int | None:
        """Return the line of the key at *place*, or else of the table that it would be in."""
        for known in range(len(place), 0, -1):
            if (line := self._lines.get(place[:known])) is not None:
                return line
        return None

    def _header(self, settings: object, line: int) -> Place:
        """Return the place of the table that begins with a header."""
        place: Place = ()
        while isinstance(settings, dict) and settings:
            ((key, settings),) = settings.items()
            place = (*place, key)
            self._lines.setdefault(place, line)
            if isinstance(settings, list):
                self._last[place] = self._last.get(place, -1) + 1
            if place in self._last:
                place = (*place, self._last[place])
                self._lines.setdefault(place, line)
        return place

    def _note(self, place: Place, value: object, line: int) -> None:
        self._lines.setdefault(place, line)
        match value:
            case dict():
                for key, inner in value.items():
                    self._note((*place, key), inner, line)
            case list():
                for number, inner in enumerate(value):
                    self._note((*place, number), inner, line)
            case _:
                pass


def _statements(text: str) -> Iterator[tuple[int, bool, dict[str, object]]]:
    """Yield of each statement its line, whether it is the header of a table, and what it sets.

    Each try reads the statement anew, so there are few. If its end is missed for that, no more
    statements are told.
    """
    lines: list[str] = []
    failed = 0
    for number, line in enumerate(text.split("\n"), start=1):
        lines.append(line)
        end = _MAY_END if failed < _MOST_TRIES else _ENDS
        if len(lines) > 1 and not end.search(line):
            continue
        try:
            settings = tomllib.loads("\n".join(lines))
        except tomllib.TOMLDecodeError:
            failed += 1  # in the middle of one
            continue
        if len(settings) > 1:  # also the next one
            return
        yield number - len(lines) + 1, lines[0].lstrip().startswith("["), settings
        lines, failed = [], 0
