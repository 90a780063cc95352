"""Does the queue lose a trial, or train one twice at once? Simulated worlds, each drawn from a seed, and checked.

    python -m benchmarks.simulate_queue                       # 10,000 worlds on all cores
    python -m benchmarks.simulate_queue --seed 231            # one world, with all that happened in it
    python -m benchmarks.simulate_queue --plant packs         # with a fault that was mended planted again

tests/support/queue_worlds.py says what a world is and what is checked. A world with a fault prints its seed, the fault
and, for the first ones, its history. Exit 1 where there is one.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import sys
import time
from collections import Counter
from collections.abc import Iterator

from tests.support.queue_worlds import PLANTED, WorldRun, run_world

SHOWN = 3  # histories
CHUNK = 25  # worlds that a process takes at a time


def outcomes(seeds: range, processes: int, planted: str) -> Iterator[WorldRun]:
    """Yield the outcome of each world, run by so many processes."""
    with multiprocessing.get_context("fork").Pool(processes) as pool:
        yield from pool.imap_unordered(_Task(planted), seeds, CHUNK)


class _Task:
    """Run of a world with a planted fault."""

    def __init__(self, planted: str) -> None:
        self.planted = planted

    def __call__(self, seed: int) -> WorldRun:
        return run_world(seed, self.planted)


def main() -> int:
    """Run the worlds and print what became of them; return 1 where one has a fault."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--worlds", type=int, default=10_000)
    parser.add_argument("--first", type=int, default=0, help="seed of the first world (default 0)")
    parser.add_argument("--seed", type=int, help="run this world alone and print its history")
    parser.add_argument("--plant", choices=sorted(PLANTED), default="", help="a fault to plant first")
    parser.add_argument("--processes", type=int, default=os.cpu_count() or 1)
    options = parser.parse_args()
    if options.seed is not None:
        outcome = run_world(options.seed, options.plant)
        print(outcome.history, *outcome.faults, sep="\n")
        return bool(outcome.faults)
    began = time.perf_counter()
    shown, bad = 0, 0
    seen: Counter[str] = Counter()
    for outcome in outcomes(range(options.first, options.first + options.worlds), options.processes, options.plant):
        seen.update(outcome.counts)
        if not outcome.faults:
            continue
        bad += 1
        print(f"seed {outcome.seed}: {outcome.faults[0]}", flush=True)
        if shown < SHOWN:
            shown += 1
            print(outcome.history, flush=True)
    for name, count in sorted(seen.items()):
        print(f"{name:<24}{count:>10,}")
    print(f"{options.worlds:,} worlds, {bad} with a fault, {time.perf_counter() - began:.0f} s")
    return bool(bad)


if __name__ == "__main__":
    sys.exit(main())
