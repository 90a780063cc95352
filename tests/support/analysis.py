"""A ledger of three untrained nets, on which the analysis jobs are run by their own commands."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from crelu_models import build, initialise
from crelu_models.tables import PAPER
from sweeps.analysis import invariance, job, outgoing, pairing, reconstruction, theory
from sweeps.experiment.code_fingerprint import code_fingerprint
from sweeps.experiment.plan import plan, plan_to_json
from sweeps.experiment.recipe import ALLCONV, IMAGENET_SGD
from sweeps.experiment.sweep import Sweep
from sweeps.experiment.trial import Cell, Trial
from sweeps.store.ledger import Ledger
from sweeps.training.evaluate import Errors
from sweeps.training.result import TrialOutcome, commit_result

SMALL, LARGE = "synthetic:classes=4,train=40,test=40", "synthetic:size=72,classes=4,train=20,test=40"
CELLS = (
    Cell("Baseline", PAPER["S2"].width(1 / 16), SMALL, ALLCONV, "1", "Baseline"),
    Cell("CReLU half", PAPER["S3_half"].width(1 / 12), SMALL, ALLCONV, "1", "CReLU half"),
    Cell("CReLU conv1-4", PAPER["S9"].width(1 / 8), LARGE, IMAGENET_SGD, "4", "CReLU conv1-4"),
)
TRIALS = {cell.label: Trial(cell) for cell in CELLS}
PAGES = {"pairing": pairing, "invariance": invariance, "reconstruction": reconstruction,
         "outgoing": outgoing, "theory": theory}  # fmt: skip


def untrained(trial: Trial, ending: str = "schedule") -> TrialOutcome:
    """Return the outcome of a trial whose net stayed as it was initialised."""
    net = trial.net
    crop = 64 if trial.cell.dataset == LARGE else 32
    model = build(net, 4, crop)
    initialise(model, net, "he_fan_in", 0)
    return TrialOutcome(
        history=(),
        events=(),
        restarts=0,
        ending=ending,
        seconds=1.0,
        precision="fp32",
        fingerprint="",  # of any pictures
        code=code_fingerprint(net),
        hardware={"host": "here"},
        chance=Errors(1.0, 75.0, 0.0),
        test_chance=(75.0, 0.0),
        ten_crops=False,
        weights=dict(model.state_dict()),
        scores={},
        train=None,
    )


def fill(ledger: Ledger) -> Ledger:
    """Write a finished trial for each cell, a trial that only chose dropout, and a trial that diverged."""
    for trial in (*TRIALS.values(), Trial(CELLS[0], "holdout"), Trial(CELLS[0], seed=1)):
        ledger.write_json(f"trials/{trial.key}/trial.json", trial.to_json())
        commit_result(ledger, trial, untrained(trial, "diverged" if trial.seed else "schedule"))
    ledger.write_json("plans/small-demo.json", plan_to_json(plan(Sweep("small", "demo", CELLS), ledger, {})))
    return ledger


def run_job_command(name: str, ledger: Ledger, data_dir: Path | str, *words: str) -> int:
    """Run a job's command in this process, on the CPU unless `words` say otherwise; return its exit code."""
    output = str(Path(ledger.root).parent)
    paths = ["--output", output, *(["--data-dir", str(data_dir)] if data_dir else []), "--reader", "threads"]
    device = [] if "--device" in words else ["--device", "cpu"]
    parser = PAGES[name].arguments()
    return job.run_command(PAGES[name].JOB, parser.parse_args([*words, *paths, *device]), parser.parse_args([]))


def folder_of(ledger: Ledger, label: str, name: str) -> str:
    """Return the folder of a job's result for the trial of a cell: the defaults', else the only other request's."""
    home = f"trials/{TRIALS[label].key}/analysis/{name}"
    if ledger.read(f"{home}/summary.json") is not None:
        return home
    (request,) = ledger.folders(home)
    return f"{home}/{request}"


def read_summary(ledger: Ledger, label: str, name: str) -> dict[str, Any]:
    """Return the summary that a job left for the trial of a cell."""
    summary = ledger.read_json(f"{folder_of(ledger, label, name)}/summary.json")
    assert summary is not None, (label, name)
    return summary
