"""Null sweeps on real ledgers: every cell errs alike, and what a reader would be told is counted.

A ledger is written once with the trials of a page, under their real keys. For each sweep the errors on it are drawn
anew and it is read as a report reads it: results, tables, effects, claims. A rejection is a p < .05 after Holm in a
table of effects, or a comparison of a claim that comes out supported or contradicted. Parameter counts differ between
cells, and equivalences hold under the null; neither is counted.

Errors are SHARED between all cells of a seed or fold, plus a cell's own noise. Differences of folds correlate by 1/10,
the share of pictures that a fold holds out, as networks on folds learn from the same pictures. Votes disagree on
DISCORDANT of the test pictures by chance, and differ by VOTE_NOISE points from one training to the next.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Final, NamedTuple

import numpy as np

from sweeps import cifar_width, imagenet_placement
from sweeps.experiment.metrics import AVERAGE, TOP1, TRAIN, VOTE
from sweeps.experiment.sweep import Protocol, Sweep
from sweeps.experiment.trial import Trial
from sweeps.results.capsule import decisions_table
from sweeps.results.cell_numbers import groups
from sweeps.results.claims import judge_claims
from sweeps.results.contrasts import effects
from sweeps.results.decisions import Ints, Predictions
from sweeps.results.evidence import Floats, SweepResults, read_sweep
from sweeps.results.paper import COLUMNS
from sweeps.results.statistics import METHODS
from sweeps.store.ledger import Ledger
from tests.support.sweeps import Made, make, only, unsearched

SHARED: Final = 0.4  # points of error that differ from seed to seed or fold to fold, the same for all cells
OWN: Final = 0.25  # and those that differ from cell to cell
CORRELATION: Final = 0.1  # of a cell's own noise between two folds
PICTURES: Final = 10_000
WRONG: Final = 700  # test pictures that a vote gets wrong
DISCORDANT: Final = 300  # and those that exactly one of two votes gets right
VOTE_NOISE: Final = 0.1  # points of a vote's error that differ from training to training

MCNEMAR: Final = "one pair of votes by McNemar, shown only"

SEEDS: Final = Sweep("imagenet_placement", "paper", imagenet_placement.CELLS, Protocol(seeds=5))
FOLDS: Final = unsearched(
    "cifar_width", only(cifar_width.CELLS, "cifar10"), Protocol(ablation=False, single=True, seeds=5, folds=10)
)


class Rejections(NamedTuple):
    """The number of sweeps in which something was rejected that holds, and how many comparisons they had on average."""

    what: str
    rejected: int
    sweeps: int
    comparisons: float

    @property
    def percent(self) -> float:
        """Return the share of sweeps, in percent."""
        return 100 * self.rejected / self.sweeps

    @property
    def most(self) -> float:
        """Return 5 % and two standard errors of the simulation, in percent."""
        return 5 + 200 * math.sqrt(0.05 * 0.95 / self.sweeps)


def null_surveys(
    folder: Path, sweep: Sweep, count: int, stream: np.random.Generator, shift: float = 0.0
) -> Iterator[SweepResults]:
    """Yield `count` surveys of a sweep whose cells err alike, but for `shift` points of its last one."""
    ledger = Ledger(str(folder / "ledger"))
    make(ledger, sweep, lambda trial: Made({}, curve=[40.0, 30.0]))
    trials = [run.trial for run in read_sweep(ledger, sweep.title).runs]
    results = {trial.key: ledger.result(trial.key) or {} for trial in trials}
    for _ in range(count):
        errors = _errors(sweep, trials, stream)
        for trial in trials:
            if trial.phase != "holdout":
                off = shift if trial.cell == sweep.cells[-1] else 0.0
                metrics = {name: value + off for name, value in errors[trial.key].items()}
                ledger.commit(trial.key, results[trial.key] | {"metrics": metrics})
        if sweep.protocol.folds:
            write_votes(ledger, sweep, trials, stream)
        yield read_sweep(Ledger(str(folder / "ledger")), sweep.title)


def _errors(sweep: Sweep, trials: Sequence[Trial], stream: np.random.Generator) -> dict[str, dict[str, float]]:
    """Return the errors of all trials by key and metric."""
    names = COLUMNS["4"] if sweep.cells[0].table == "4" else (TOP1, TRAIN)
    shared: dict[tuple[str, int, int], Floats] = {}
    of_cell = {cell.key: stream.normal(0, OWN, len(names)) for cell in sweep.cells}
    errors = {}
    for trial in trials:
        pair = trial.phase, trial.seed, trial.fold
        shared.setdefault(pair, stream.normal(0, SHARED, len(names)))
        noise = stream.normal(0, OWN, len(names))
        if trial.phase == "fold":
            noise = math.sqrt(CORRELATION) * of_cell[trial.cell.key] + math.sqrt(1 - CORRELATION) * noise
        values = 30 + shared[pair] + noise
        errors[trial.key] = {name: float(value) for name, value in zip(names, values, strict=True)}
    return errors


def write_votes(ledger: Ledger, sweep: Sweep, trials: Iterable[Trial], stream: np.random.Generator) -> None:
    """Write the votes of a sweep's cells; of their folds' networks the decisions, where they are not yet written."""
    labels = np.arange(PICTURES) % 10
    for cell in sweep.cells:
        # Two votes that each get half of the same 2 x DISCORDANT pictures wrong disagree on DISCORDANT of them.
        noise = round(stream.normal(0, VOTE_NOISE) / 100 * PICTURES)
        contested = stream.permutation(2 * DISCORDANT)[: stream.binomial(2 * DISCORDANT, 0.5) + noise]
        wrong = np.concatenate([np.arange(WRONG - DISCORDANT), WRONG - DISCORDANT + contested])
        ledger.write(f"votes/{cell.key}/decisions.parquet", _decisions(labels, wrong, METHODS))
    alone = _decisions(labels, np.arange(WRONG), ("centre",))
    for trial in trials:
        name = f"trials/{trial.key}/tables/decisions.parquet"
        if trial.phase == "fold" and ledger.read(name) is None:
            ledger.write(name, alone)


def _decisions(labels: Ints, wrong: Ints, kinds: Sequence[str]) -> bytes:
    """Return the decisions of a network that gets the pictures `wrong` wrong."""
    chosen = labels.copy()
    chosen[wrong] = (labels[wrong] + 1) % 10
    return decisions_table(Predictions(np.arange(PICTURES), labels, 10, dict.fromkeys(kinds, chosen)))


# What a reader is told ----------------------------------------------------------------------------------------


def rejected_effects(results: SweepResults, *metrics: str) -> list[bool]:
    """Return for each effect in these metrics whether its p after Holm is below .05."""
    table = groups(results)[0]
    return [effect.p < 0.05 for effect in effects(table) if effect.contrast.metric in metrics]


def rejected_claims(results: SweepResults) -> list[bool]:
    """Return for each comparison of a claim that the null denies whether it was decided.

    Numbers of the literature are no part of the null.
    """
    rows = {cell.cell.row for cell in results.cells}
    return [
        compared.decision == "contradicted"
        or (compared.decision == "supported" and compared.comparison.relation != "within")
        for claim in judge_claims(results)
        for compared in claim.compared
        if compared.contrast.basis not in ("exact", "not run") and compared.rival in rows
    ]


def mcnemar(results: SweepResults) -> list[bool]:
    """Return for each pair of votes whether McNemar's p, which decides nothing, is below .05."""
    tests = [effect.contrast.pictures for effect in effects(groups(results)[0]) if effect.contrast.metric == VOTE]
    return [test.p < 0.05 for test in tests if test is not None]


def count_rejections(folder: Path, count: int, seed: int = 0, shift: float = 0.0) -> list[Rejections]:
    """Return how often null sweeps are rejected: effects over seeds, over folds, votes, and the claims of two pages."""
    stream = np.random.default_rng(seed)
    told: dict[str, list[list[bool]]] = {}
    for results in null_surveys(folder / "seeds", SEEDS, count, stream, shift):
        told.setdefault("effects over 5 seeds, 9 cells", []).append(rejected_effects(results, *COLUMNS["4"]))
        told.setdefault("claims of imagenet_placement", []).append(rejected_claims(results))
    for results in null_surveys(folder / "folds", FOLDS, count, stream, shift):
        told.setdefault("effects over 10 folds, 5 cells", []).append(rejected_effects(results, AVERAGE))
        told.setdefault("effects of votes", []).append(rejected_effects(results, VOTE))
        told.setdefault("claims of cifar_width", []).append(rejected_claims(results))
        told.setdefault(MCNEMAR, []).append(mcnemar(results)[:1])
    return [
        Rejections(what, sum(map(any, sweeps)), len(sweeps), float(np.mean([len(answers) for answers in sweeps])))
        for what, sweeps in told.items()
    ]
