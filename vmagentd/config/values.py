"""The kinds of values that settings have: how each is written, and what it is then."""

from __future__ import annotations

import re
from datetime import timedelta
from pathlib import Path
from typing import Annotated, Final

from pydantic import AfterValidator, BeforeValidator

_UNITS: Final = {"ms": 0.001, "s": 1, "m": 60, "h": 3600, "d": 86400}
_DURATION: Final = re.compile(r"(?:\d+(?:\.\d+)?(?:ms|s|m|h|d))+")
_SIZES: Final = {"MiB": 20, "GiB": 30, "TiB": 40}
_SIZE: Final = re.compile(r"(\d{1,6}(?:\.\d{1,6})?)(MiB|GiB|TiB)")
_PART: Final = re.compile(r"(\d+(?:\.\d+)?)(ms|s|m|h|d)")
# A name or a zone that is empty or too long between two dots is none to Python.
_NAME: Final = r"[A-Za-z0-9_-]{1,63}(?:\.[A-Za-z0-9_-]{1,63})*"
_IPV6: Final = rf"[0-9A-Fa-f:]{{2,45}}(?:\.[0-9]{{1,3}}){{0,3}}(?:%{_NAME})?"
_ADDRESS: Final = re.compile(rf"(?:\[{_IPV6}\]|{_NAME}\.?):(?P<port>[0-9]{{1,5}})")
_HIGHEST_PORT: Final = 65535


def within(least: str, most: str) -> BeforeValidator:
    """Return what reads a duration of *least* to *most*."""
    shortest, longest = _duration(least), _duration(most)

    def read(value: object) -> timedelta:
        duration = _duration(value)
        if not shortest <= duration <= longest:
            message = f"must be from {least} to {most}"
            raise ValueError(message)
        return duration

    return BeforeValidator(read)


def _duration(value: object) -> timedelta:
    """Read `90s`, `1m30s`, `500ms`; a plain number has no unit, so it is refused."""
    if isinstance(value, timedelta):
        return value
    if not isinstance(value, str) or not _DURATION.fullmatch(value):
        message = 'expected a duration like "5s", "1m30s" or "500ms"'
        raise ValueError(message)
    seconds = sum(float(number) * _UNITS[unit] for number, unit in _PART.findall(value))
    try:
        return timedelta(seconds=seconds)
    except OverflowError:
        return timedelta.max  # more than any setting allows


def _size(value: object) -> object:
    """Read `512GiB`, `1.5TiB`; a plain number has no unit, so only 0 is taken."""
    if value == 0:
        return 0
    found = _SIZE.fullmatch(value) if isinstance(value, str) else None
    if found is None:
        message = 'expected a size like "512MiB", "64GiB" or "1.5TiB", or 0'
        raise ValueError(message)
    return int(float(found[1]) * (1 << _SIZES[found[2]]))


def _path(value: Path) -> Path:
    """Check that a file can have this path."""
    if "\0" in str(value) or value == Path():
        message = "expected the path of a file"
        raise ValueError(message)
    return value


def _mode(value: object) -> object:
    """Read a file mode in octal, `"0660"`."""
    if isinstance(value, int):
        message = 'expected a file mode in quotes, like "0660"'
        raise ValueError(message)  # noqa: TRY004 - of others pydantic makes no problem of ours
    if not isinstance(value, str) or not re.fullmatch(r"0?[0-7]{3}", value):
        message = 'expected a file mode in octal, like "0660"'
        raise ValueError(message)
    return int(value, 8)


def _address(value: str) -> str:
    """Check `0.0.0.0:7443` or `[::1]:7443`."""
    if not _is_address(value):
        message = 'expected an address and a port, like "0.0.0.0:7443" or "[::1]:7443"'
        raise ValueError(message)
    return value


def _place(value: str) -> str:
    """Check `127.0.0.1:9464`, `[::1]:9464` or `unix:/path`."""
    if _is_address(value) or (value.startswith("unix:/") and "\0" not in value):
        return value
    places = '"127.0.0.1:9464", "[::1]:9464" or "unix:/run/vmagentd/metrics.sock"'
    message = f"expected an address like {places}"
    raise ValueError(message)


def _is_address(value: str) -> bool:
    found = _ADDRESS.fullmatch(value)
    return found is not None and 0 < int(found["port"]) <= _HIGHEST_PORT


Duration = Annotated[timedelta, within("100ms", "1h")]
Age = Annotated[timedelta, within("1h", "3650d")]
Size = Annotated[int, BeforeValidator(_size)]
FilePath = Annotated[Path, AfterValidator(_path)]
FileMode = Annotated[int, BeforeValidator(_mode)]
# HOST:PORT
Address = Annotated[str, AfterValidator(_address)]
# that, or unix:PATH
Place = Annotated[str, AfterValidator(_place)]
