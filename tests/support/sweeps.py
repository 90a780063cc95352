"""Sweeps whose trials were never trained: results written as a trial writes them, with numbers that a test chooses."""

import dataclasses
import json
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from crelu_models.spec import seed_from
from crelu_models.tables import S2
from sweeps.experiment.code_fingerprint import code_fingerprint
from sweeps.experiment.metrics import AVERAGE, TOP1, TRAIN, VOTE
from sweeps.experiment.plan import plan, plan_to_json
from sweeps.experiment.recipe import ALLCONV
from sweeps.experiment.sweep import Protocol, Sweep
from sweeps.experiment.trial import Cell, Trial
from sweeps.results import paper
from sweeps.results.paper_cells import set_facts
from sweeps.store.ledger import Ledger
from sweeps.training.result import score_table

START = 1_790_000_000_000
BASELINE = Cell("Baseline", S2, "cifar10", ALLCONV, "1", "Baseline")
CRELU = Cell("CReLU conv1-4", S2.crelu(1, 2, 3, 4), "cifar10", ALLCONV)


class Made(NamedTuple):
    """What a training that never was came to."""

    metrics: dict[str, float]
    curve: list[float] = [40.0, 30.0, 20.0, 15.0, 12.0, 10.0, 10.0, 10.0, 10.0, 10.0]  # noqa: RUF012
    scores: dict[str, np.ndarray[Any, Any]] = {}  # noqa: RUF012
    status: str = "finished"
    restarts: int = 0
    events: tuple[str, ...] = ()
    seconds: float = 600.0
    train_pictures: int = 0  # 0: as many as the data set has by its name
    ending: str = "schedule"
    partial: bool = False


def finish(ledger: Ledger, trial: Trial, made: Made) -> None:
    """Write what a finished trial leaves, and its note that MLflow has it."""
    history = [
        {"epoch": float(e), "time_ms": float(START + 1000 * e), "train/loss": 2.0 / e, "val/top1_err": error}
        for e, error in enumerate(made.curve, 1)
    ]
    files = {"trial.json": "", "history.json": ""}
    ledger.write_json(f"trials/{trial.key}/trial.json", trial.to_json())
    ledger.write(f"trials/{trial.key}/history.json", json.dumps(history).encode())
    if made.scores:
        ledger.write(f"trials/{trial.key}/tables/scores.parquet", score_table(trial, made.scores))
        files["tables/scores.parquet"] = ""
    facts = set_facts(trial.cell.dataset)
    learned = made.train_pictures or (facts.splits["train"] if facts is not None else 100)
    best = {"best/epoch": float(len(made.curve)), "best/val_top1_err": min(made.curve)} if made.curve else {}
    best |= {"best/probe_loss": 0.1} if trial.phase == "holdout" else {}
    result = {
        "key": trial.key, "cell_key": trial.cell.key, "label": trial.cell.label, "trial": trial.label,
        "status": made.status, "ending": made.ending, "metrics": best | made.metrics,
        "curve": made.curve if trial.phase == "holdout" else [], "epochs": len(made.curve), "files": files,
        "events": list(made.events), "restarts": made.restarts, "seconds": made.seconds, "precision": "bf16",
        "fingerprint": "f" * 64, "train_pictures": learned, "partial": made.partial,
        "code": code_fingerprint(trial.cell.net), "finished_ms": START + 9000,
        "hardware": {"host": "made", "device": "NVIDIA H200", "torch": "2.15.0", "python": "3.11.7"},
    }  # fmt: skip
    ledger.write_json(f"tracked/{trial.key}.json", {"run": run_id(trial), "uri": "sqlite:///x", "experiment": "x"})
    ledger.commit(trial.key, result)


def run_id(trial: Trial) -> str:
    """Return the MLflow run that a made trial says it has."""
    return f"{seed_from(trial.key, 'run'):032x}"


def make(ledger: Ledger, sweep: Sweep, outcome: Callable[[Trial], Made | None]) -> None:
    """Finish every trial of a sweep, wave by wave; those for which `outcome` is None stay to do."""
    left: set[str] = set()
    while True:
        today = plan(sweep, ledger, {})
        todo = [trial for trial in today.to_do if trial.key not in left]
        if not todo:
            break
        for trial in todo:
            made = outcome(trial)
            if made is None:
                left.add(trial.key)
            else:
                finish(ledger, trial, made)
    ledger.write_json(f"plans/{sweep.title}.json", plan_to_json(plan(sweep, ledger, {})))


def spread(mean: float, se: float, n: int) -> list[float]:
    """Return n values with this mean and standard error, to two decimals."""
    z = np.arange(n) - (n - 1) / 2
    z *= se * math.sqrt(n) / z.std(ddof=1)
    return [round(mean + float(value), 2) for value in z]


def scores(labels: np.ndarray[Any, Any], wrong: np.ndarray[Any, Any], classes: int) -> dict[str, np.ndarray[Any, Any]]:
    """Return a table of scores that gets the pictures `wrong` wrong and all others right."""
    chosen = labels.copy()
    chosen[wrong] = (labels[wrong] + 1) % classes
    centre = np.zeros((len(labels), classes), np.float32)
    centre[np.arange(len(labels)), chosen] = 4.0
    return {"id": np.arange(len(labels)), "label": labels, "centre": centre}


def voting(errors: list[float], vote: float, n: int) -> list[np.ndarray[Any, Any]]:
    """Return the pictures that each network gets wrong, so that they err as `errors` say, and together as `vote`."""
    shared = round(n * vote / 100)
    wrong = []
    cursor = 0
    for error in errors:
        count = round(n * error / 100) - shared
        extra = shared + (cursor + np.arange(count)) % (n - shared)
        cursor += count
        wrong.append(np.concatenate([np.arange(shared), extra]))
    return wrong


def as_printed(trial: Trial, n: int = 0, classes: int = 10) -> Made:
    """Return the outcome that gives a trial of Tables 1 or 2 the paper's printed numbers, scores on n pictures."""
    cell = trial.cell

    def printed(metric: str) -> Any:
        return paper.printed(cell.table, cell.dataset, cell.row, metric)

    if trial.phase == "fold":
        average = printed(AVERAGE)
        errors = spread(average.value, average.se, trial.folds)
        table: dict[str, np.ndarray[Any, Any]] = {}
        if n:
            wrong = voting(errors, printed(VOTE).value, n)[trial.fold]
            table = scores(np.arange(n) % classes, wrong, classes)
        return Made({TOP1: errors[trial.fold]}, scores=table)
    if trial.phase == "match":
        train = printed(TRAIN)
        later = 0.01 * (trial.seed % 1000)  # or the spread of several seeds would not be known
        metrics = {TOP1: printed(TOP1).value + later} | ({TRAIN: train.value + later} if train else {})
        return Made(metrics, curve=[], seconds=900.0)
    return Made({}, seconds=800.0)


def only(cells: tuple[Cell, ...], dataset: str) -> tuple[Cell, ...]:
    """Return the cells of one data set."""
    return tuple(cell for cell in cells if cell.dataset == dataset)


def unsearched(name: str, cells: tuple[Cell, ...], protocol: Protocol, profile: str = "paper") -> Sweep:
    """Return a sweep whose dropout and learning rate are not searched."""
    return Sweep(name, profile, cells, dataclasses.replace(protocol, search=None, rates=None))
