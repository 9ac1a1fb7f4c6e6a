"""`python -m support.differential`, from the directory of the tests."""

from __future__ import annotations

import argparse
import sys
import time

from support.differential.schedules import Differs, explore
from support.differential.worlds import Stage
from support.servers import Server, available


def main() -> int:
    """Play what the command line says; return 1 if worlds were not alike."""
    parser = argparse.ArgumentParser("python -m support.differential", description=__doc__)
    parser.add_argument("--seed", type=int, default=1, help="of the first schedule (default: 1)")
    parser.add_argument("--schedules", type=int, default=1000, help="how many (default: 1000)")
    parser.add_argument("--minutes", type=float, default=60, help="at the most (default: 60)")
    parser.add_argument("--target", choices=available(), default=available()[0])
    options = parser.parse_args()
    ends, played, wrong = time.monotonic() + 60 * options.minutes, 0, 0
    with Server(options.target) as server, Stage(server.port) as stage:
        for seed in range(options.seed, options.seed + options.schedules):
            if time.monotonic() > ends:
                break
            played += 1
            try:
                explore(stage, range(seed, seed + 1))
            except Differs as difference:
                wrong += 1
                print(difference, flush=True)  # noqa: T201  it is what was asked for
    print(f"{played} schedules from seed {options.seed}, {wrong} of them not alike")  # noqa: T201
    return int(wrong > 0)


if __name__ == "__main__":
    sys.exit(main())
