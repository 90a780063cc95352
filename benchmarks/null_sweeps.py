"""How often do the tables and claims reject what holds? Null sweeps on real ledgers, read as a report reads them.

    python -m benchmarks.null_sweeps --sweeps 500

tests/support/null_sweeps.py says how the errors are drawn and what counts as a rejection. Exit 1 where a line rejects
in more than 5 % of the sweeps and two standard errors of the simulation. McNemar's p of votes is shown in the tables as
a description; its line says how often it would reject, and has no bound.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path

from tests.support.null_sweeps import MCNEMAR, count_rejections


def main() -> int:
    """Print one table; exit 1 where a line rejects too often."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sweeps", type=int, default=500)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    began = time.perf_counter()
    # In memory, where there is such a folder: fsync takes most of the time else.
    memory = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=memory if memory.is_dir() else None) as folder:
        lines = count_rejections(Path(folder), options.sweeps, options.seed)
    print(f"{options.sweeps} null sweeps a line, {time.perf_counter() - began:.0f} s\n")
    print(f"{'what':<42} {'comparisons':>11} {'rejected %':>10} {'at most':>8}")
    for line in lines:
        bound = "" if line.what == MCNEMAR else f"{line.most:.1f}"
        print(f"{line.what:<42} {line.comparisons:>11.1f} {line.percent:>10.1f} {bound:>8}")
    return int(any(line.percent > line.most or not line.comparisons for line in lines if line.what != MCNEMAR))


if __name__ == "__main__":
    sys.exit(main())
