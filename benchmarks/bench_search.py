"""Does the search find the better part of a known response, and does pruning save epochs without losing the winner?

    python -m benchmarks.bench_search --cells 10 --trials 20

A bowl over the three dropout rates of the all-conv nets stands for training (benchmarks.trivial.bowl); trials go
through the same queue, waves, ledger and Ray workers as any other. Cells differ in width, so each has its own study.
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import math
import statistics
import tempfile
from typing import Any

from benchmarks.trivial import distance
from crelu_models.tables import S2
from sweeps.execution import ray_runtime, tuner
from sweeps.execution.resources import TrialResources
from sweeps.execution.session import DriverState
from sweeps.experiment.plan import Protocol, Sweep
from sweeps.experiment.recipe import ALLCONV
from sweeps.experiment.search import Search, Study, space, study
from sweeps.experiment.trial import Cell
from sweeps.store.ledger import Ledger
from sweeps.training.runtime import RuntimeConfig

EPOCHS = 40


def studies(cells: tuple[Cell, ...], search: Search) -> tuple[list[Study], dict[str, Any]]:
    """Run a study for each cell through the queue; return them with all results."""
    with tempfile.TemporaryDirectory() as folder:
        ledger = Ledger(folder)
        session = DriverState(
            Sweep("search", "smoke", cells, Protocol(ablation=False, search=search)),
            ledger,
            RuntimeConfig(folder, folder),
            TrialResources(),
            lambda event, trial, news: None,
            "search",
            {},
            work="benchmarks.trivial:bowl",
        )
        tuner.run_trials(session)
        results = ledger.results()
        return [study(search, cell, results, ()) for cell in cells], results


def main() -> None:
    """Run TPE with and without pruning, and random search; print one table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cells", type=int, default=10)
    parser.add_argument("--trials", type=int, default=20)
    options = parser.parse_args()
    recipe = dataclasses.replace(ALLCONV, epochs=EPOCHS)
    cells = tuple(Cell(f"x{k}", S2.width((k + 4) / 16), "synthetic", recipe) for k in range(options.cells))
    ray_runtime.init_ray("local")
    found = {}
    for name, search in {
        "random": Search(options.trials, sampler="random", prune=False),
        "TPE": Search(options.trials, prune=False),
        "TPE, pruned": Search(options.trials),
    }.items():
        found[name] = studies(cells, search)
    best = {name: [_least(one) for one in all_of] for name, (all_of, _) in found.items()}
    epochs = {name: sum(result["epochs"] for result in results.values()) for name, (_, results) in found.items()}
    print(f"{'search':<14}{'better half':>13}{'mean least error':>18}{'than random':>20}{'epochs':>9}{'saved':>8}")
    for name, (all_of, _) in found.items():
        pairs = list(zip(best[name], best["random"], strict=True))
        wins, ties = sum(ours < theirs for ours, theirs in pairs), sum(ours == theirs for ours, theirs in pairs)
        better = f"{wins} better, {len(pairs) - wins - ties} worse"
        saved = 1 - epochs[name] / (options.cells * options.trials * EPOCHS)
        mean, half = sum(best[name]) / len(best[name]), sum(map(_better_half, all_of)) / len(all_of)
        print(f"{name:<14}{half:>13.0%}{mean:>18.3f}{better:>20}{epochs[name]:>9}{saved:>8.0%}")
    lost = sum(_pruned_winner(one, found["TPE, pruned"][1]) for one in found["TPE, pruned"][0])
    print(f"studies whose best point was pruned: {lost} of {options.cells}")


def _least(one: Study) -> float:
    assert one.is_finished
    return min(asked.value for asked in one.suggestions if asked.value is not None and math.isfinite(asked.value))


def _better_half(one: Study) -> float:
    """Return which share of a study's points lies in the better half of the response over its whole space."""
    dimensions = space(one.search, one.cell)
    axes = [[d.low + step * d.step for step in range(round((d.high - d.low) / d.step) + 1)] for d in dimensions]
    middle = statistics.median(map(distance, itertools.product(*axes)))
    points = [distance([rate for _, rate in asked.trial.dropout]) for asked in one.suggestions]
    return sum(point < middle for point in points) / len(points)


def _pruned_winner(one: Study, results: dict[str, Any]) -> bool:
    """Return whether the point of the least floor, as the bowl tells it, was pruned before its end."""
    floors = {asked.trial.key: distance([rate for _, rate in asked.trial.dropout]) for asked in one.suggestions}
    return bool(results[min(floors, key=lambda key: floors[key])]["status"] == "pruned")


if __name__ == "__main__":
    main()
