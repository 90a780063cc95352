"""Do the report's statistics keep their word? Simulated sweeps with known effects, through the report's own tables.

    python -m benchmarks.bench_statistics --sweeps 2000

Every sweep has the nine cells of Table 4 and as many seeds as asked; errors are drawn, nothing is trained. What is
counted is what a reader would see: p after Holm and 95 % intervals of the table of effects.

family     no cell differs: share of tables with at least one p < .05 (and what it would be without Holm)
coverage   every cell differs by a known amount: share of the intervals that hold it
power      one cell differs; as many seeds as are suggested: share of sweeps that find it, against the 80 % asked for
"""

from __future__ import annotations

import argparse
import sys

from sweeps.imagenet_placement import CELLS
from tests.support.simulation import measure


def main() -> int:
    """Print one table; exit 1 where a figure leaves its bounds."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sweeps", type=int, default=2000)
    parser.add_argument("--seeds", type=int, default=5)
    options = parser.parse_args()
    rows = measure(options.sweeps, options.seeds)
    print(f"{options.sweeps} simulated sweeps of {len(CELLS)} cells and {options.seeds} seeds\n")
    print(f"{'what':<28} {'percent':>8} {'at least':>9} {'at most':>8}  note")
    for what, value, low, high, note in rows:
        print(f"{what:<28} {value:>8.1f} {low:>9.1f} {high:>8.1f}  {note}")
    return int(any(not low <= value <= high for _, value, low, high, _ in rows))


if __name__ == "__main__":
    sys.exit(main())
