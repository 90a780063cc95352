"""Does the search find the better part of a known response, and what do pruning and halving save, and lose?

    python -m benchmarks.bench_search --cells 10 --trials 20

Known responses to the three dropout rates of the all-conv nets stand for training (benchmarks.trivial). In the first
table trials go through the same queue, waves, ledger and Ray workers as any other, over a bowl. In the second one the
studies are played without Ray, for five times as many cells, over the bowl and over errors that cross. Cells differ in
width, so each has its own study.
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import math
import statistics
import tempfile
from collections.abc import Callable, Sequence
from typing import Any

from benchmarks.trivial import bowl_curve, crossing_curve, distance, floor
from crelu_models.tables import S2
from sweeps.execution import ray_runtime, tuner
from sweeps.execution.resources import TrialResources
from sweeps.execution.session import DriverState
from sweeps.experiment.metrics import HELD_OUT
from sweeps.experiment.recipe import ALLCONV
from sweeps.experiment.search import Search, space
from sweeps.experiment.study import Study, study
from sweeps.experiment.sweep import Protocol, Sweep
from sweeps.experiment.trial import Cell, Trial
from sweeps.store.ledger import Ledger
from sweeps.training.runtime import RuntimeConfig

EPOCHS = 40


def studies(cells: tuple[Cell, ...], search: Search) -> tuple[list[Study], dict[str, Any], dict[str, Any]]:
    """Run a study for each cell through the queue; return them with all results and records of paused trials."""
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
        results, paused = ledger.results(), ledger.paused()
        return [study(search, cell, results, (), paused=paused) for cell in cells], results, paused


RESPONSES: dict[str, Callable[[Trial], list[float]]] = {"bowl": bowl_curve, "crossing": crossing_curve}


def main() -> None:
    """Run TPE without and with pruning and halving, and random search; print both tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cells", type=int, default=10)
    parser.add_argument("--trials", type=int, default=20)
    parser.add_argument("--played-alone", action="store_true", help="only the second table, without Ray")
    options = parser.parse_args()
    recipe = dataclasses.replace(ALLCONV, epochs=EPOCHS)
    searches = {
        "random": Search(options.trials, sampler="random", prune=False),
        "TPE": Search(options.trials, prune=False),
        "TPE, pruned": Search(options.trials),
        "TPE, halved": Search(options.trials, halving=3),
    }
    if not options.played_alone:
        cells = tuple(Cell(f"x{k}", S2.width((k + 4) / 16), "synthetic", recipe) for k in range(options.cells))
        through_ray(cells, searches)
        print()
    many = tuple(Cell(f"x{k}", S2.width((k + 32) / 128), "synthetic", recipe) for k in range(5 * options.cells))
    alone(many, searches)


def through_ray(cells: tuple[Cell, ...], searches: dict[str, Search]) -> None:
    """Print what the searches find over the bowl, and what they train."""
    ray_runtime.init_ray("local")
    outcomes = {name: studies(cells, search) for name, search in searches.items()}
    best = {name: [_least(cell_study) for cell_study in all_of] for name, (all_of, _, _) in outcomes.items()}
    print(f"{'search':<14}{'better half':>13}{'mean least error':>18}{'than random':>20}{'epochs':>9}{'saved':>8}")
    for name, (all_of, results, paused) in outcomes.items():
        pairs = list(zip(best[name], best["random"], strict=True))
        wins, ties = sum(ours < theirs for ours, theirs in pairs), sum(ours == theirs for ours, theirs in pairs)
        better = f"{wins} better, {len(pairs) - wins - ties} worse"
        epochs = sum(result["epochs"] for result in results.values()) + sum(r["epoch"] for r in paused.values())
        saved = 1 - epochs / (len(cells) * searches[name].trials * EPOCHS)
        mean = sum(best[name]) / len(best[name])
        half = sum(map(_better_half, all_of)) / len(all_of)
        print(f"{name:<14}{half:>13.0%}{mean:>18.3f}{better:>20}{epochs:>9}{saved:>8.0%}")
    lost = sum(_pruned_winner(cell_study, outcomes["TPE, pruned"][1]) for cell_study in outcomes["TPE, pruned"][0])
    print(f"studies whose best point was pruned: {lost} of {len(cells)}")


def alone(cells: tuple[Cell, ...], searches: dict[str, Search]) -> None:
    """Print the epochs of each search and its winner's regret: how far its floor is above the least of the space."""
    print(f"{'response':<10}{'search':<14}{'epochs':>9}{'saved':>8}{'regret':>16}{'less that of TPE':>20}")
    for response, curve in RESPONSES.items():
        regrets: dict[str, list[float]] = {}
        for name, search in searches.items():
            outcomes = [played(search, cell, curve) for cell in cells]
            regrets[name] = [regret for regret, _ in outcomes]
            epochs = sum(trained for _, trained in outcomes)
            full = len(cells) * search.trials * EPOCHS
            gain = [ours - baseline for ours, baseline in zip(regrets[name], regrets["TPE"], strict=True)] \
                if "TPE" in regrets else []  # fmt: skip
            words = f"{response:<10}{name:<14}{epochs:>9}{1 - epochs / full:>8.0%}"
            print(f"{words}{average(regrets[name]):>16}{average(gain) if any(gain) else '':>20}")


def average(values: Sequence[float]) -> str:
    """Return a mean with its standard error."""
    return f"{statistics.fmean(values):.3f} ± {statistics.stdev(values) / math.sqrt(len(values)):.3f}"


def played(search: Search, cell: Cell, curve: Callable[[Trial], list[float]]) -> tuple[float, int]:
    """Play a study to its end; return its winner's regret and the epochs that were trained."""
    results: dict[str, dict[str, Any]] = {}
    paused: dict[str, dict[str, Any]] = {}
    while not (state := study(search, cell, results, (), paused=paused)).is_finished:
        for trial in state.trials:
            if trial.key in results or (search.halving and trial.key not in state.pauses):
                continue
            errors = curve(trial)
            end = state.pauses.get(trial.key, EPOCHS)
            for epoch, threshold in enumerate(trial.pruning_thresholds, 1):
                if min(errors[:epoch]) > threshold:
                    end = min(end, epoch)
            if search.halving and end < EPOCHS:
                paused[trial.key] = {"epoch": end, "curve": errors[:end], "seconds": 0.0}
                continue
            paused.pop(trial.key, None)
            status = "finished" if end == EPOCHS else "pruned"
            metrics = {HELD_OUT: min(errors[:end])}
            results[trial.key] = {"status": status, "metrics": metrics, "curve": errors[:end], "epochs": end}
    winner = state.winner
    assert winner is not None
    axes = [axis.domain.values() for axis in space(search, cell)]
    least = min(10 + 40 * distance([float(rate) for rate in point]) for point in itertools.product(*axes))
    trained = sum(result["epochs"] for result in results.values()) + sum(r["epoch"] for r in paused.values())
    return floor(winner.trial) - least, trained


def _least(cell_study: Study) -> float:
    assert cell_study.is_finished
    assert cell_study.winner is not None
    return cell_study.winner.value or math.nan


def _better_half(cell_study: Study) -> float:
    """Return which share of a study's points lies in the better half of the response over its whole space."""
    dimensions = space(cell_study.search, cell_study.cell)
    axes = [[float(value) for value in axis.domain.values()] for axis in dimensions]
    middle = statistics.median(map(distance, itertools.product(*axes)))
    points = [distance([rate for _, rate in asked.trial.dropout]) for asked in cell_study.suggestions]
    return sum(point < middle for point in points) / len(points)


def _pruned_winner(cell_study: Study, results: dict[str, Any]) -> bool:
    """Return whether the point of the least floor, as the bowl tells it, was pruned before its end."""
    floors = {asked.trial.key: distance([rate for _, rate in asked.trial.dropout]) for asked in cell_study.suggestions}
    return bool(results[min(floors, key=lambda key: floors[key])]["status"] == "pruned")


if __name__ == "__main__":
    main()
