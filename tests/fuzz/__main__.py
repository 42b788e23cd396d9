"""`python -m tests.fuzz --minutes 60 --seed 7`: fuzz a daemon for a time, then tell the counts."""

import argparse
import secrets
import signal
import sys
import time
from collections import Counter

from tests.fuzz.lane import Found, Fuzz


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("--minutes", type=float, default=5.0)
    parser.add_argument("--seed", type=int, default=None)
    parser.add_argument("--round", type=int, default=0, help="the first one")
    arguments = parser.parse_args()
    seed = secrets.randbelow(10**6) if arguments.seed is None else arguments.seed
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # leave nothing behind then either
    sys.stdout.write(f"seed {seed}\n")
    with Fuzz(seed) as fuzz:
        try:
            fire(fuzz, arguments.round, 60 * arguments.minutes)
        except Found as found:
            sys.stdout.write(f"{found}\n")
            return 1
        finally:
            sys.stdout.write(table(fuzz.counts))
    return 0


def fire(fuzz: Fuzz, number: int, seconds: float) -> None:
    """Send rounds for a time, one at least."""
    begin = time.monotonic()
    while True:
        fuzz.round(number)
        number += 1
        spent = time.monotonic() - begin
        sys.stdout.write(f"{spent:6.0f} s, round {number}, {fuzz.target.rss >> 20} MiB\n")
        sys.stdout.flush()
        if spent > seconds:
            fuzz.target.end()
            return


def table(counts: Counter[str]) -> str:
    """Return counts, one a line."""
    return "".join(f"{counts[name]:8} {name}\n" for name in sorted(counts))


if __name__ == "__main__":
    sys.exit(main())
