"""The daemon cannot run."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from vmagentd.errors.base import VmagentdError

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path


class StartupError(VmagentdError):
    """The daemon cannot run; its sentence is the one line that the operator sees."""


@dataclass(frozen=True, slots=True)
class ConfigProblem:
    """One thing that is wrong with the settings."""

    text: str
    # counted from 1; None: it is on no line
    line: int | None = None


class ConfigError(StartupError):
    """The settings cannot be used; every bad key is named, each on a line of its own."""

    def __init__(self, source: str, problems: Sequence[ConfigProblem]) -> None:
        places = (source if p.line is None else f"{source}:{p.line}" for p in problems)
        self.lines = tuple(f"{place}: {p.text}" for place, p in zip(places, problems, strict=True))
        super().__init__("\n".join(self.lines))
        self.problems = tuple(problems)


class SocketInUse(StartupError):
    """Another daemon serves the socket, or something that is no socket is in its place."""

    def __init__(self, path: str, why: str) -> None:
        super().__init__(f"socket {path}: {why}; mend that, or choose another with --socket")


class MetricsUnavailable(StartupError):
    """Metrics cannot be served at the place that is set."""

    def __init__(self, listen: str, why: str) -> None:
        super().__init__(f"metrics at {listen}: {why}; choose another place: [metrics] listen")


class StateDirInUse(StartupError):
    """Another daemon holds the state directory, or it cannot be used."""

    def __init__(self, path: str, why: str) -> None:
        super().__init__(
            f"state directory {path}: {why}; choose another with --state-dir, or mend this one"
        )


class JournalUnusable(StartupError):
    """The journal's file cannot be used by this version of the daemon, or not any more."""

    def __init__(self, path: str, why: str) -> None:
        super().__init__(f"journal {path}: {why}")


class TlsUnusable(StartupError):
    """A file that TLS needs cannot be used; a daemon that runs goes on with what it has."""

    def __init__(self, path: Path, why: str) -> None:
        super().__init__(f"[remote] {path} {why}; mend that, or set another", path=path)


class ListenFailed(StartupError):
    """The TCP port for other hosts cannot be had."""

    def __init__(self, listen: str, why: str) -> None:
        super().__init__(f"[remote] listen = {listen!r}: {why}; end that, or choose another port")
