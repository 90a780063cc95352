"""Do the effects of a grid's factors keep their word? Grids on which no factor does anything, and two tests of them.

    python -m benchmarks.null_factors --grids 20000

A grid has two nets by three activations; one activation has two widths. That is 8 cells. Some effects cannot be
estimated from them. A cell's errors in a seed are the seed's own part plus noise, whose spread is 1 point for all
cells, or .3, 1 and 3 points. "paired" is the test of results/factors.py, one value a seed; "pooled" is the analysis of
variance with seeds as blocks, which has one error for all cells. Counted is p < .05 for the effect that rejects most,
and for any effect of a grid after Holm. Exit code 1 where "paired" rejects in more than 5 % and two standard errors of
the grids.
"""

from __future__ import annotations

import argparse
import itertools
import math
import sys

import numpy as np
from scipy import stats

from sweeps.results.factors import Combination, targets, varying, weights
from sweeps.results.statistics import holm

CELLS: list[Combination] = [
    {"net": net, "act": act, "width": width}
    for net, act, width in itertools.product(("small", "large"), ("relu", "crelu", "avr"), (1.0, 0.5))
    if act == "crelu" or width == 1.0
]
SPREADS = {"equal": (1.0,) * 8, "unequal": (1.0, 1.0, 3.0, 0.3) * 2}


def main() -> int:
    """Print the share of null grids that each test rejects; return 1 where that of the paired one is too large."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--grids", type=int, default=20_000)
    parser.add_argument("--seeds", type=int, default=4)
    options = parser.parse_args()
    known = [weight for target in targets(varying(CELLS)) if (weight := weights(CELLS, target)) is not None]
    contrasts = np.stack(known)
    most = 0.05 + 2 * math.sqrt(0.05 * 0.95 / options.grids)
    print(f"{options.grids} grids, {options.seeds} seeds, {len(known)} effects; at most {100 * most:.2f} %\n")
    print(f"{'spreads':<8} {'test':<7} {'one effect, most':>17} {'any, after Holm':>16}")
    failed = False
    for name, spread in SPREADS.items():
        rng = np.random.default_rng(5)
        seeds = rng.normal(0, 2, (options.grids, 1, options.seeds))
        errors = seeds + np.array(spread)[:, None] * rng.normal(size=(options.grids, len(CELLS), options.seeds))
        paired = stats.ttest_1samp(np.einsum("ec,gcs->ges", contrasts, errors), 0, axis=2).pvalue
        rows, columns, all_of_it = errors.mean(1, keepdims=True), errors.mean(2, keepdims=True), errors.mean((1, 2))
        residual = errors - rows - columns + all_of_it[:, None, None]
        df = (len(CELLS) - 1) * (options.seeds - 1)
        variance = (residual**2).sum((1, 2), keepdims=True)[..., 0] / df
        se = np.sqrt(variance * (contrasts**2).sum(1) / options.seeds)
        pooled = 2 * stats.t.sf(np.abs(errors.mean(2) @ contrasts.T) / se, df)
        for test, p in (("paired", paired), ("pooled", pooled)):
            single, family = float((p < 0.05).mean(0).max()), float((holm(p) < 0.05).any(1).mean())
            failed |= test == "paired" and family > most
            print(f"{name:<8} {test:<7} {100 * single:>15.1f} % {100 * family:>14.1f} %", flush=True)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
