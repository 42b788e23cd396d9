"""`python -m tests.system.chaos --minutes 30 --seed 7`: chaos for a time, then its counts."""

import argparse
import secrets
import signal
import sys
import time
from collections import Counter
from pathlib import Path

from tests.system.chaos.plan import stream
from tests.system.chaos.run import ChaosError, Run

_ROUND_S, _BURST_S = 10.0, 25.0


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.system.chaos", description=__doc__)
    parser.add_argument("--minutes", type=float, default=5.0)
    parser.add_argument("--seed", type=int, default=None)
    parser.add_argument("--keep", type=Path, help="where the daemon's files go if it fails")
    arguments = parser.parse_args()
    seed = secrets.randbelow(10**6) if arguments.seed is None else arguments.seed
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # leave nothing behind then either
    sys.stdout.write(f"seed {seed}\n")
    with Run(seed, keep=arguments.keep) as run:
        try:
            reign(run, 60 * arguments.minutes)
        except ChaosError as error:
            sys.stdout.write(f"{error}\n")
            return 1
        finally:
            sys.stdout.write(table(run.counts))
    return 0


def reign(run: Run, seconds: float) -> None:
    """Go through rounds of every kind for a time, one at least."""
    end = time.monotonic() + seconds
    random = stream(run.seed, "rounds")
    while True:
        burst, troubled = random.random() < 0.6, random.random() < 0.6
        run.round(
            min(_BURST_S if burst else _ROUND_S, max(end - time.monotonic(), 1)),
            burst=burst,
            libvirtd_troubled=troubled,
        )
        sys.stdout.write(
            f"{run.counts['seconds']:5} s, {run.counts['act kill daemon']} daemons killed,"
            f" {run.counts['transitions']} transitions\n"
        )
        sys.stdout.flush()
        if time.monotonic() > end:
            return


def table(counts: Counter[str]) -> str:
    """Return counts, one a line."""
    return "".join(f"{counts[name]:8} {name}\n" for name in sorted(counts))


if __name__ == "__main__":
    sys.exit(main())
