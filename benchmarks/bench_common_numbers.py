"""How much surer is a comparison when both cells see the same pictures in the same order from the same weights?

    python -m benchmarks.bench_common_numbers --seeds 12

Two cells of Table 1 are trained on embedded pictures with the same seeds. The variance of their difference, seed by
seed, is set against what it would be were the seeds not shared: the sum of both variances. Their ratio is how many
times more seeds independent runs would need for the same standard error; its interval is a bootstrap over seeds.
"""

from __future__ import annotations

import argparse
import dataclasses
import tempfile
from itertools import combinations

import numpy as np

from crelu_data.datasets import data_dir, dataset
from crelu_data.write import prepare
from sweeps.cifar_width import NETS
from sweeps.execution import ray_runtime, tuner
from sweeps.execution.resources import TrialResources
from sweeps.execution.session import DriverState
from sweeps.experiment.profiles import scaled
from sweeps.experiment.recipe import ALLCONV
from sweeps.experiment.sweep import Protocol, Sweep
from sweeps.experiment.trial import Cell, Trial
from sweeps.store.ledger import Ledger
from sweeps.training.runtime import RuntimeConfig

METRIC = "final/test_top1_err"


def errors(cells: tuple[Cell, ...], seeds: int) -> np.ndarray:
    """Train every cell with every seed through the queue; return test errors in percent, (cells, seeds)."""
    where = data_dir(None)
    name = cells[0].dataset
    prepare(name, where)
    facts = dataset(name, where)
    with tempfile.TemporaryDirectory() as folder:
        ledger = Ledger(folder)
        session = DriverState(
            Sweep("common", "demo", cells, Protocol(seeds=seeds)),
            ledger,
            RuntimeConfig(folder, str(where)),
            TrialResources(),
            lambda event, trial, news: None,
            "common",
            {},
            {name: (facts.classes, facts.crop)},
        )
        tuner.run_trials(session)
        results = ledger.results()
        rows = [[results[Trial(cell, seed=seed).key]["metrics"][METRIC] for seed in range(seeds)] for cell in cells]
    return np.asarray(rows)


def gain(first: np.ndarray, second: np.ndarray) -> float:
    """Return the sum of both variances over the variance of the paired differences; both (seeds,)."""
    return float((first.var(ddof=1) + second.var(ddof=1)) / (first - second).var(ddof=1))


def main() -> None:
    """Train, and print one line a pair of cells."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=12)
    parser.add_argument("--cells", nargs="+", choices=NETS, default=["Baseline", "CReLU half"])
    parser.add_argument("--epochs", type=int, default=8)
    options = parser.parse_args()
    # Without dropout, whose masks differ between nets of different shapes.
    nets = {
        label: dataclasses.replace(scaled(Cell(label, NETS[label], "cifar10", ALLCONV), "demo"))
        for label in options.cells
    }
    cells = tuple(
        dataclasses.replace(
            cell,
            net=cell.net.dropout(0.0, "input").dropout(0.0, "pool1").dropout(0.0, "pool2"),
            recipe=dataclasses.replace(cell.recipe, epochs=options.epochs),
        )
        for cell in nets.values()
    )
    ray_runtime.init_ray("local")
    test_errors = errors(cells, options.seeds)
    draw = np.random.default_rng(0).integers(options.seeds, size=(2000, options.seeds))
    print(f"{'cells':<28}{'sd':>7}{'sd':>7}{'sd of difference':>18}{'correlation':>13}{'gain':>7}   90 % interval")
    for i, j in combinations(range(len(cells)), 2):
        a, b = test_errors[i], test_errors[j]
        resampled = [gain(a[rows], b[rows]) for rows in draw if len(set(rows)) > 2]
        low, high = np.quantile(resampled, (0.05, 0.95))
        name = f"{cells[i].label}, {cells[j].label}"
        print(
            f"{name:<28}{a.std(ddof=1):>7.2f}{b.std(ddof=1):>7.2f}{(a - b).std(ddof=1):>18.2f}"
            f"{np.corrcoef(a, b)[0, 1]:>13.2f}{gain(a, b):>7.2f}   {low:.2f} to {high:.2f}"
        )


if __name__ == "__main__":
    main()
