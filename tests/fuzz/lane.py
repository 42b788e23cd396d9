"""Rounds of fuzzing: so many inputs of each kind, then a look at the daemon."""

from __future__ import annotations

from collections import Counter
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, Final, Self

import hypothesis
from hypothesis import HealthCheck, Phase, given, settings

from tests.fuzz import calls, crowds, wire
from tests.fuzz.target import Target

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from hypothesis.strategies import SearchStrategy

# In a round, of each kind.
INPUTS: Final = {
    "noise": 30,
    "frames": 60,
    "valid calls": 80,
    "malformed calls": 60,
    "hostile metadata": 20,
    "crowds": 2,
}


class Found(AssertionError):
    """The daemon did what it must not do."""


class Fuzz:
    """A daemon under fire. A context manager; counts what was sent."""

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self.counts: Counter[str] = Counter()

    def __enter__(self) -> Self:
        self._directory = TemporaryDirectory(prefix="fuzz-")
        self.target = Target(Path(self._directory.name)).__enter__()
        return self

    def __exit__(self, *_: object) -> None:
        self.target.__exit__()
        self._directory.cleanup()

    def round(self, number: int) -> None:
        """Send one round. The same seed and number send the same.

        Raises:
            Found: with the seed, the round and the input.
        """
        caller = calls.Caller(self.target)
        feeds: dict[str, tuple[SearchStrategy[Any], Callable[[Any], None]]] = {
            "noise": (wire.noise(), lambda talk: wire.feed(self.target, talk)),
            "frames": (wire.framed(), lambda talk: wire.feed(self.target, talk)),
            "valid calls": (calls.valid_calls(), caller.feed),
            "malformed calls": (calls.malformed_calls(), caller.feed),
            "hostile metadata": (calls.hostile_metadata(), caller.feed),
            "crowds": (crowds.crowds(), lambda crowd: crowds.feed(self.target, crowd)),
        }
        try:
            for kind, (inputs, feed) in feeds.items():
                with self._telling(f"round {number}, after {kind}"):
                    self._send(kind, inputs, feed, seed=self.seed * 1_000_003 + number)
                    self.target.check()
        finally:
            caller.close()
        self.counts["rounds"] += 1

    def _send(
        self,
        kind: str,
        inputs: SearchStrategy[Any],
        feed: Callable[[Any], None],
        *,
        seed: int,
    ) -> None:
        found: list[Found] = []

        @hypothesis.seed(seed)
        @settings(
            max_examples=INPUTS[kind],
            database=None,
            deadline=None,
            phases=[Phase.generate],
            suppress_health_check=list(HealthCheck),
        )
        @given(inputs)
        def send(one: object) -> None:
            if found:
                return
            self.counts[kind] += 1
            try:
                with self._telling(f"input {one!r}"):
                    feed(one)
            except Found as error:
                # Not raised: hypothesis would try it again, and the daemon is not what it was.
                found.append(error)

        send()
        if found:
            raise found[0]

    @contextmanager
    def _telling(self, what: str) -> Iterator[None]:
        try:
            yield
        except Found:
            raise
        except Exception as error:
            raise Found(f"seed {self.seed}, {what}: {type(error).__name__}: {error}") from error
