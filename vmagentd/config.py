"""The daemon's settings: a TOML file, the command line over it, and defaults below both.

Read once, at start, by `__main__`; only `__main__` and `daemon` know it.
"""

from __future__ import annotations

import re
import tomllib
from datetime import timedelta
from pathlib import Path
from typing import Annotated, Final, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from vmagentd.errors import ConfigError

DEFAULT_FILE: Final = Path("/etc/vmagentd/vmagentd.toml")

_UNITS: Final = {"ms": 0.001, "s": 1, "m": 60, "h": 3600, "d": 86400}
_DURATION: Final = re.compile(r"(?:\d+(?:\.\d+)?(?:ms|s|m|h|d))+")
_PART: Final = re.compile(r"(\d+(?:\.\d+)?)(ms|s|m|h|d)")


def _duration(value: object) -> object:
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


def _mode(value: object) -> object:
    """Read a file mode in octal, `"0660"`."""
    if isinstance(value, int):
        message = 'expected a file mode in quotes, like "0660"'
        raise ValueError(message)  # noqa: TRY004 - of others pydantic makes no problem of ours
    if not isinstance(value, str) or not re.fullmatch(r"0?[0-7]{3}", value):
        message = 'expected a file mode in octal, like "0660"'
        raise ValueError(message)
    return int(value, 8)


_SECOND, _HOUR = timedelta(seconds=1), timedelta(hours=1)
Duration = Annotated[
    timedelta, BeforeValidator(_duration), Field(ge=timedelta(milliseconds=100), le=_HOUR)
]
Age = Annotated[timedelta, BeforeValidator(_duration), Field(ge=_HOUR, le=timedelta(days=3650))]
FileMode = Annotated[int, BeforeValidator(_mode)]


class _Table(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class StopSettings(_Table):
    """`[stop]`: how VMs are stopped."""

    # time between two presses of the power button while the guest does not react
    press_interval: Duration = timedelta(seconds=5)
    # how long a VM that is forced off may take before that counts as failed
    force_timeout: Duration = timedelta(seconds=60)


class RetentionSettings(_Table):
    """`[retention]`: how much history the journal keeps."""

    # transitions: as many as are within both; the newest of each VM that is present always stays
    transitions_max: Annotated[int, Field(ge=1000, le=100_000_000)] = 1_000_000
    age_max: Age = timedelta(days=90)
    # operations, and with them the request ids that they answer, this long after their end
    operations_age: Age = timedelta(days=7)


class Config(_Table):
    """All settings; the names are the keys of the file."""

    libvirt_uri: Annotated[str, Field(min_length=1)] = "qemu:///system"
    # where clients connect, and who may open it
    socket: Path = Path("/run/vmagentd/vmagentd.sock")
    socket_mode: FileMode = 0o600
    # the journal's directory: the daemon's own
    state_dir: Path = Path("/var/lib/vmagentd")
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    # longest time between two surveys of all VMs
    survey_interval: Duration = timedelta(minutes=1)
    # longest wait for calls under way when the daemon ends
    drain_timeout: Annotated[
        timedelta, BeforeValidator(_duration), Field(ge=_SECOND, le=timedelta(seconds=60))
    ] = timedelta(seconds=2)
    stop: StopSettings = StopSettings()
    retention: RetentionSettings = RetentionSettings()


def load(file: Path | None, overrides: dict[str, object]) -> Config:
    """Return the settings of *file*, with *overrides* from the command line over them.

    Args:
        file: None means DEFAULT_FILE, which need not exist.
        overrides: by key.

    Raises:
        ConfigError: the file cannot be read, or a key is wrong; every bad key is named.
    """
    path = file or DEFAULT_FILE
    try:
        settings = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        if file is not None:
            raise ConfigError(str(path), ["no such file"]) from error
        settings = {}
    except OSError as error:
        raise ConfigError(str(path), [error.strerror or str(error)]) from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(str(path), [f"not TOML: {error}"]) from error
    try:
        return Config.model_validate(settings | overrides)
    except ValidationError as error:
        problems = [_problem(detail["loc"], detail["msg"]) for detail in error.errors()]
        raise ConfigError(str(path), problems) from error


def _problem(place: tuple[int | str, ...], message: str) -> str:
    key = ".".join(map(str, place))
    return f"{key}: {message.removeprefix('Value error, ')}"
