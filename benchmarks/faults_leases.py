"""Do two drivers ever write one ledger, and is one ever locked out? Seeded worlds of drivers, counted.

    python -m benchmarks.faults_leases --worlds 5000 --seed 0

Each world has up to six drivers on up to three hosts. They sleep for up to 150 s, are killed, lose requests and answers
of the store, and their times of day differ by 2 minutes or a day. A world is bad where a driver writes after another
one has taken the lease, where two write in turns, where a driver is refused though no other one lives, or where it
waits for more than 80 s. A bad seed prints its history: `--store s3 --locks none --seed 17 --worlds 1`.
"""

from __future__ import annotations

import argparse
import itertools
import sys
import time
from collections import Counter

from tests.support.lease_worlds import STORES, Kind, Locks, World, simulate

WORDS = {
    ("s3", "none"): "S3, conditional writes",
    ("store", "none"): "a store without conditions",
    ("disk", "none"): "a disk without locks",
    ("disk", "host"): "a disk with locks of one host",
    ("disk", "global"): "a disk with locks",
}


def run(worlds: int, seed: int, stores: tuple[tuple[Kind, Locks], ...] = STORES) -> tuple[list[str], list[World]]:
    """Return a table of what happened on each store, and the worlds that were bad."""
    rows = []
    bad = []
    for kind, locks in stores:
        counts: Counter[str] = Counter()
        longest = 0
        for number in range(seed, seed + worlds):
            world = simulate(number, kind, locks)
            longest = max(longest, world.counts.pop("waited"))
            counts.update(world.counts)
            if world.faults:
                counts["bad"] += 1
                world.history.insert(0, f"--store {kind} --locks {locks} --seed {number} --worlds 1")
                bad.append(world)
        names = ("taken", "refused", "lost", "writes")
        figures = " | ".join(f"{counts[name]:,}" for name in names)
        rows.append(f"| {WORDS[kind, locks]} | {worlds:,} | {figures} | {longest} s | {counts['bad']} |")
    return rows, bad


def main() -> int:
    """Print the table and the history of the first bad worlds; return 1 where there is one."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--worlds", type=int, default=1000, help="of each store")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--store", choices=("s3", "store", "disk"))
    parser.add_argument("--locks", choices=("none", "host", "global"))
    options = parser.parse_args()
    chosen = tuple(
        (kind, locks)
        for kind, locks in STORES
        if options.store in (None, kind) and options.locks in (None, locks)
    )  # fmt: skip
    began = time.perf_counter()
    rows, bad = run(options.worlds, options.seed, chosen)
    print("| store | worlds | leases taken | refused | lost in sleep | writes | longest wait | bad |")
    print("|---|---|---|---|---|---|---|---|")
    print("\n".join(rows))
    for world in itertools.islice(bad, 3):
        print("\n".join(["", *world.history, *world.faults]))
    print(f"{time.perf_counter() - began:.0f} s")
    return bool(bad)


if __name__ == "__main__":
    sys.exit(main())
