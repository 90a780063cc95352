"""Verbs of `python -m sweeps` that act on one sweep or list them."""

from __future__ import annotations

import argparse
import ast
import os
from pathlib import Path

from sweeps.experiment.plan import Sweep, current_plan, sweep_from_json, unknown_name
from sweeps.store.lease import driver
from sweeps.store.ledger import Ledger


def pages() -> dict[str, str]:
    """Return the first line of each sweep's page, by the sweep's name: the modules that hand CELLS to main."""
    found = {}
    for path in sorted(Path(__file__).parents[1].glob("*.py")):
        tree = ast.parse(path.read_text())
        names = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}
        if {"main", "CELLS"} <= names:
            found[path.stem] = (ast.get_docstring(tree) or "").splitlines()[0]
    return found


def show_pages(options: argparse.Namespace) -> int:
    """Print the sweeps there are."""
    found = pages()
    width = max(map(len, found))
    for name, question in found.items():
        print(f"{name:<{width}}  {question}")
    print("\nrun one: python -m sweeps.NAME   (--help, --list, --dry-run)")
    return 0


def _ledger(options: argparse.Namespace) -> Ledger:
    output = options.output if "://" in options.output else os.path.abspath(os.path.expanduser(options.output))
    return Ledger(f"{output}/ledger")


def planned(ledger: Ledger, name: str | None) -> dict[str, Sweep]:
    """Return the sweeps whose plans lie on the ledger, by title; ValueError for one that does not."""
    titles = [title.removesuffix(".json") for title in ledger.names("plans")]
    if name is not None and name not in titles:
        raise ValueError(unknown_name("sweep", name, titles or ["none"], f"the ledger {ledger.root}"))
    if not titles:
        raise ValueError(f"no sweep has run in {ledger.root}; run one, or say where by --output")
    wanted = titles if name is None else [name]
    return {title: sweep_from_json(ledger.read_json(f"plans/{title}.json")) for title in wanted}


def reconcile(options: argparse.Namespace) -> int:
    """Bring the runs of a sweep in MLflow to the ledger's state, and say how many there are."""
    from sweeps.tracking.mlflow_runs import MlflowRuns, Store

    ledger = _ledger(options)
    (title, sweep), = planned(ledger, options.sweep).items()  # fmt: skip
    output = ledger.root.removesuffix("/ledger")
    uri = options.tracking_uri or f"sqlite:///{output}/mlflow.db"
    artifacts = f"{output}/mlartifacts" if uri.startswith("sqlite") else ""
    found = current_plan(ledger, title)
    projection = MlflowRuns(Store(uri, options.experiment or title, artifacts, found.fingerprints), ledger, sweep)
    idle = "RUNNING" if driver(ledger, title) else "KILLED"
    begun = [standing for standing in found.statuses if standing.state != "new"]
    for standing in begun:
        projection.sync_trial(standing.trial, idle)
    for cell in sweep.cells:
        trials = [standing.trial for standing in found.of(cell)]
        projection.sync_cell(cell, trials, over=all(s.result is not None for s in found.of(cell)))
    print(f"{len(begun)} runs of {title} at {uri} are as the ledger says")
    return 0


def export_study(options: argparse.Namespace) -> int:
    """Write the studies of a sweep to an Optuna storage."""
    from sweeps.experiment.plan import has_failed
    from sweeps.experiment.search import export, study

    ledger = _ledger(options)
    (title, sweep), = planned(ledger, options.sweep).items()  # fmt: skip
    search = sweep.protocol.search
    if search is None:
        raise ValueError(f"{title} searches nothing")
    results = ledger.results()
    failed = {key for key, tries in ledger.failed().items() if has_failed(tries)}
    count = export([study(search, cell, results, failed) for cell in sweep.cells], title, options.storage)
    print(f"{count} studies written; to look at them: optuna-dashboard {options.storage}")
    return 0


def verify_resume(options: argparse.Namespace) -> int:
    """Prove exact resumption on a cell of a sweep, and note it on the ledger for the cell's runs to carry."""
    import tempfile

    import torch

    from data.datasets import data_dir
    from sweeps.execution.verify_resume import shortened, verify
    from sweeps.experiment.code_fingerprint import code_fingerprint
    from sweeps.experiment.trial import Trial
    from sweeps.training.runtime import RuntimeConfig, device_name

    ledger = _ledger(options)
    (_, sweep), = planned(ledger, options.sweep).items()  # fmt: skip
    labels = {cell.label: cell for cell in sweep.cells}
    if options.cell is not None and options.cell not in labels:
        raise ValueError(unknown_name("cell", options.cell, labels, sweep.title))
    cell = labels[options.cell] if options.cell else sweep.cells[0]
    with tempfile.TemporaryDirectory() as folder:
        place = RuntimeConfig(
            ledger="", data_dir=str(data_dir(options.data_dir)), device=options.device, reader=options.reader
        )
        found = verify(shortened(Trial(cell)), place, folder, options.kills, options.seed)
    if found.differences:
        print(f"{cell.label}: killed {found.kills} times, and {', '.join(found.differences)} differ")
        return 1
    proof = {
        "code": code_fingerprint(cell.net),
        "kills": found.kills,
        "device": device_name(torch.device(options.device)),
    }
    ledger.write_json(f"verified/{cell.key}.json", proof)
    print(
        f"{cell.label}: killed {found.kills} times, weights, curves and scores are bit for bit those of one left alone"
    )
    return 0
