"""Which daemon is meant: a socket on this host, another host over TLS, or a name for one.

Names are kept in a file, `~/.config/vmagentctl/config.toml` or else
`/etc/vmagentd/vmagentctl.toml`:

    [targets.host1]
    target = "host1.example.com:7443"
    cert = "me.pem"         # paths are relative to the file
    key = "me.key"
    ca = "ca.pem"
    server_name = "host1"   # if the server's certificate has another name than its address
"""

from __future__ import annotations

import ipaddress
import os
import re
import tomllib
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

DEFAULT_TARGET: Final = "unix:/run/vmagentd/vmagentd.sock"
_FOR_ALL: Final = Path("/etc/vmagentd/vmagentctl.toml")

_LONGEST_PATH: Final = 107  # bytes: what the kernel's sockaddr_un holds
_ADDRESS: Final = re.compile(r"(?P<host>\[[\w:.%-]+\]|[\w.-]+):(?P<port>[0-9]+)", re.ASCII)
_NAME: Final = re.compile(r"[\w.-]+", re.ASCII)
_LONGEST_LABEL: Final = 63  # between two dots, says DNS
_HIGHEST_PORT: Final = 65535


@dataclass(frozen=True, slots=True, kw_only=True)
class TlsFiles:
    """By what a remote daemon knows us, and we know it."""

    cert: Path | None = None
    key: Path | None = None
    ca: Path | None = None
    # what the server's certificate must name; None: the host that is connected to
    server_name: str | None = None

    def over(self, other: TlsFiles) -> TlsFiles:
        """Return these, and from *other* what is not set here."""
        unset = [field.name for field in fields(self) if getattr(self, field.name) is None]
        return replace(self, **{name: getattr(other, name) for name in unset})


@dataclass(frozen=True, slots=True, kw_only=True)
class Remote:
    """A daemon on another host."""

    host: str
    port: int
    cert: Path
    key: Path
    ca: Path
    server_name: str | None

    @property
    def address(self) -> str:
        """Its host and port as one text."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{host}:{self.port}"


@dataclass(frozen=True, slots=True)
class Daemon:
    """A daemon, by its socket or from another host."""

    at: Path | Remote

    @property
    def name(self) -> str:
        """What a person would call it."""
        return f"unix:{self.at}" if isinstance(self.at, Path) else self.at.address


def parse_target(text: str, files: TlsFiles, environment: Mapping[str, str]) -> Daemon:
    """Return the daemon that *text* names.

    Args:
        text: `unix:/path`, `/path`, `host:port`, or the name of one in the file of targets.
        files: what the command line said.
        environment: stands in for what neither it nor that file says.

    Raises:
        ValueError: with one sentence that says what is wrong.
    """
    if text.startswith(("unix:", "/")):
        return Daemon(_socket(text))
    files_there = _from_environment(environment)
    if ":" not in text and text:
        text, named = _named(text, environment)
        if text.startswith(("unix:", "/")):
            return Daemon(_socket(text))
        files = files.over(named)
    return Daemon(_remote(text, files.over(files_there)))


def is_host(text: str) -> bool:
    """Return whether *text* can be the name of a host as DNS knows it, or its address."""
    try:
        ipaddress.ip_address(text)
    except ValueError:
        labels = text.removesuffix(".").split(".")
        named = all(0 < len(label) <= _LONGEST_LABEL for label in labels)
        return named and _NAME.fullmatch(text) is not None
    return True


def _socket(text: str) -> Path:
    path = text.removeprefix("unix:").removeprefix("//")
    if not path or "\0" in path:
        raise ValueError(f"{text!r} is not a socket of vmagentd; write unix:/path")
    if len(os.fsencode(path)) > _LONGEST_PATH:
        raise ValueError(f"a socket's path has {_LONGEST_PATH} bytes at most: {path!r}")
    return Path(path)


def _remote(text: str, files: TlsFiles) -> Remote:
    found = _ADDRESS.fullmatch(text)
    host = found["host"].strip("[]") if found else ""
    if not found or not is_host(host) or not 0 < int(found["port"]) <= _HIGHEST_PORT:
        raise ValueError(f"{text!r} names no daemon; write unix:/path, host:port, or a name")
    if files.server_name is not None and not is_host(files.server_name):
        raise ValueError(f"{files.server_name!r} cannot be the server's name in its certificate")
    cert, key, ca = files.cert, files.key, files.ca
    if cert is None or key is None or ca is None:
        missing = [name for name in ("cert", "key", "ca") if getattr(files, name) is None]
        options = ", ".join(f"--{name}" for name in missing)
        raise ValueError(
            f"{text} is reached over TLS with a certificate of your own; write {options} before "
            "the command, or name them in the environment or the file of targets"
        )
    return Remote(
        host=host,
        port=int(found["port"]),
        cert=cert,
        key=key,
        ca=ca,
        server_name=files.server_name,
    )


def _from_environment(environment: Mapping[str, str]) -> TlsFiles:
    def path(name: str) -> Path | None:
        said = environment.get(f"VMAGENTD_{name}")
        return Path(said) if said else None

    return TlsFiles(
        cert=path("CERT"),
        key=path("KEY"),
        ca=path("CA"),
        server_name=environment.get("VMAGENTD_SERVER_NAME") or None,
    )


def _named(name: str, environment: Mapping[str, str]) -> tuple[str, TlsFiles]:
    """Return the target of that name, and the files that belong to it."""
    looked, known = [], set[str]()
    for file in _files(environment):
        looked.append(str(file))
        targets = _targets(file)
        known |= targets.keys()
        if name in targets:
            return _entry(f"{file}: targets.{name}", targets[name], file.parent)
    there = f"; there are: {', '.join(sorted(known))}" if known else ""
    raise ValueError(
        f"{name!r} is no target in {' or '.join(looked)}{there}; write unix:/path or host:port, "
        "or enter it there"
    )


def _files(environment: Mapping[str, str]) -> Iterator[Path]:
    home = environment.get("XDG_CONFIG_HOME") or environment.get("HOME", "")
    if home:
        folder = Path(home) if environment.get("XDG_CONFIG_HOME") else Path(home, ".config")
        yield folder / "vmagentctl" / "config.toml"
    yield _FOR_ALL


def _targets(file: Path) -> dict[str, object]:
    try:
        targets = tomllib.loads(file.read_text(encoding="utf-8")).get("targets", {})
    except FileNotFoundError:
        return {}
    except OSError as error:
        raise ValueError(f"{file}: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{file}: not TOML: {error}") from error
    if not isinstance(targets, dict):
        raise ValueError(f"{file}: targets: expected tables like [targets.host1]")  # noqa: TRY004
    return targets


def _entry(place: str, entry: object, folder: Path) -> tuple[str, TlsFiles]:
    known = ("target", *(field.name for field in fields(TlsFiles)))
    if not isinstance(entry, dict):
        raise ValueError(f"{place}: expected a table with target, cert, key and ca")  # noqa: TRY004
    for key, value in entry.items():
        if key not in known:
            raise ValueError(f"{place}: unknown key {key}; there are: {', '.join(known)}")
        if not isinstance(value, str):
            raise ValueError(f"{place}: {key}: expected a text")  # noqa: TRY004
    target = entry.get("target", "")
    if not target.startswith(("unix:", "/")) and ":" not in target:
        raise ValueError(f"{place}: target: write unix:/path or host:port")

    def path(key: str) -> Path | None:
        if key not in entry:
            return None
        if "\0" in entry[key]:
            raise ValueError(f"{place}: {key}: expected a path")
        try:
            return folder / Path(entry[key]).expanduser()
        except RuntimeError as error:
            raise ValueError(f"{place}: {key}: nobody knows whose home {entry[key]} is") from error

    files = TlsFiles(
        cert=path("cert"), key=path("key"), ca=path("ca"), server_name=entry.get("server_name")
    )
    return target, files
