"""The daemon cannot run."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vmagentd.errors.base import VmagentdError

if TYPE_CHECKING:
    from collections.abc import Sequence


class StartupError(VmagentdError):
    """The daemon cannot run; its sentence is the one line that the operator sees."""


class ConfigError(StartupError):
    """The configuration cannot be used; every bad key is named."""

    def __init__(self, source: str, problems: Sequence[str]) -> None:
        super().__init__(f"{source}: " + "; ".join(problems))
        self.problems = tuple(problems)


class SocketInUse(StartupError):
    """Another daemon serves the socket, or something that is no socket is in its place."""

    def __init__(self, path: str, why: str) -> None:
        super().__init__(f"socket {path}: {why}; mend that, or choose another with --socket")


class StateDirInUse(StartupError):
    """Another daemon holds the state directory, or it cannot be used."""

    def __init__(self, path: str, why: str) -> None:
        super().__init__(
            f"state directory {path}: {why}; choose another with --state-dir, or mend this one"
        )


class JournalUnusable(StartupError):
    """The journal's file cannot be used by this version of the daemon."""

    def __init__(self, path: str, why: str) -> None:
        super().__init__(f"journal {path}: {why}")
