"""What one asks of sweeps from another terminal: python -m sweeps list | status | report | reconcile | ..."""

from __future__ import annotations

import argparse
import ast
import json
import os
import sys
import time
from pathlib import Path

from sweeps.experiment.plan import Sweep, plan, sweep_from_json, unknown
from sweeps.ops import doctor, mlflow_server, spot_notice
from sweeps.report import build
from sweeps.store.lease import driver
from sweeps.store.ledger import Json, Ledger


def main() -> int:
    """Do what the command line says and return the exit code: 0, or 2 where it cannot be done."""
    options = parser().parse_args()
    try:
        return int(options.verb(options))
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130


def parser() -> argparse.ArgumentParser:
    """Return the parser of `python -m sweeps`."""
    found = argparse.ArgumentParser(prog="python -m sweeps", description=__doc__, allow_abbrev=False)
    verbs = found.add_subparsers(required=True, metavar="VERB")
    verb = verbs.add_parser("list", help="the sweeps there are, and what each asks")
    verb.set_defaults(verb=show_pages)
    verb = verbs.add_parser("status", help="how far the sweeps of an output folder are")
    verb.add_argument("sweep", nargs="?", help="one of them (default: all)")
    verb.add_argument("--watch", action="store_true", help="again every two seconds, until Ctrl-C")
    verb.add_argument("--json", action="store_true")
    verb.set_defaults(verb=status)
    verb = verbs.add_parser(
        "reconcile", help="bring MLflow to the ledger's state: complete, no doubles, statuses right"
    )
    verb.add_argument("sweep")
    verb.add_argument("--tracking-uri", default=os.environ.get("MLFLOW_TRACKING_URI"), metavar="URI")
    verb.add_argument("--experiment", default=os.environ.get("MLFLOW_EXPERIMENT_NAME"), metavar="NAME")
    verb.set_defaults(verb=reconcile)
    verb = verbs.add_parser("export-study", help="write the dropout studies to an Optuna storage, for a dashboard")
    verb.add_argument("sweep")
    verb.add_argument("--storage", required=True, metavar="URL", help="e.g. sqlite:///studies.db")
    verb.set_defaults(verb=export_study)
    verb = verbs.add_parser(
        "verify-resume", help="kill a real trial at random steps, and compare it with one left alone"
    )
    verb.add_argument("sweep", help="a sweep that has run, as status shows it")
    verb.add_argument("cell", nargs="?", help="one of its cells (default: the first)")
    verb.add_argument("--kills", type=int, default=5, metavar="N")
    verb.add_argument("--seed", type=int, default=0)
    verb.add_argument("--data-dir", metavar="DIR")
    verb.add_argument("--device", default="cpu")
    verb.add_argument("--reader", choices=("ffcv", "threads"), default="ffcv")
    verb.set_defaults(verb=verify_resume)
    verb = verbs.add_parser("report", help="the table one may publish: page, Markdown, LaTeX, CSV, Parquet")
    build.arguments(verb)
    verb.set_defaults(verb=build.run)
    verb = verbs.add_parser("export", help="a sweep in one file, from which its report is rebuilt")
    build.export_arguments(verb)
    verb.set_defaults(verb=build.export)
    verb = verbs.add_parser("serve", help="MLflow's server over --output, for a cluster's head; its backup too")
    mlflow_server.arguments(verb)
    verb.set_defaults(verb=mlflow_server.run)
    verb = verbs.add_parser("doctor", help="whether a cluster is closed to the world: --cluster on its head")
    doctor.arguments(verb)
    verb.set_defaults(verb=doctor.run)
    verb = verbs.add_parser("watch-spot", help="tell Ray when EC2 reclaims this machine, on each worker of a cluster")
    spot_notice.arguments(verb)
    verb.set_defaults(verb=spot_notice.run)
    for parser in verbs.choices.values():
        parser.add_argument("--output", default="outputs", metavar="DIR", help="the sweeps' output (default outputs)")
    return found


def pages() -> dict[str, str]:
    """Return the first line of each sweep's page, by the sweep's name: the modules that call launch.main."""
    found = {}
    for path in sorted(Path(__file__).parent.glob("*.py")):
        tree = ast.parse(path.read_text())
        modules = {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
        names = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}
        if "sweeps.launch" in modules and {"main", "CELLS"} <= names:
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
        raise ValueError(unknown("sweep", name, titles or ["none"], f"the ledger {ledger.root}"))
    if not titles:
        raise ValueError(f"no sweep has run in {ledger.root}; run one, or say where by --output")
    wanted = titles if name is None else [name]
    return {title: sweep_from_json(ledger.read_json(f"plans/{title}.json")) for title in wanted}


def status(options: argparse.Namespace) -> int:
    """Print where each cell of each sweep stands, and who drives it."""
    ledger = _ledger(options)
    while True:
        found = {title: _state(ledger, title, sweep) for title, sweep in planned(ledger, options.sweep).items()}
        if options.watch and sys.stdout.isatty():
            print("\x1b[2J\x1b[H", end="")
        print(json.dumps(found, indent=1) if options.json else "\n\n".join(map(_text, found.values())), flush=True)
        if not options.watch:
            return 0
        time.sleep(2.0)


def _state(ledger: Ledger, title: str, sweep: Sweep) -> Json:
    found, now = plan(sweep, ledger, {}), driver(ledger, title)
    cells = []
    for cell in sweep.cells:
        standings = found.of(cell)
        counts = {
            state: sum(s.state == state for s in standings) for state in ("new", "running", "done", "stale", "failed")
        }
        results = [standing.result for standing in standings if standing.result is not None]
        tested = [r["metrics"]["final/test_top1_err"] for r in results if "final/test_top1_err" in r["metrics"]]
        error = sum(tested) / len(tested) if tested else None
        cells.append({"label": cell.label, "test_top1_err": error, "n": len(tested)} | counts)
    seconds = sum(float(s.result["seconds"]) for s in found.standings if s.result is not None)
    return {"sweep": title, "driver": now, "cells": cells, "hours": seconds / 3600}


def _text(state: Json) -> str:
    now = state["driver"]
    who = (
        f"driven by process {now['pid']} on {now['host']}" if now else "no driver runs; the sweep's command resumes it"
    )
    width = max(len(cell["label"]) for cell in state["cells"])
    lines = [f"{state['sweep']}: {who}; {state['hours']:.2f} h of training so far"]
    lines.append(f"{'cell':<{width}}   new  run done stale fail   test error %")
    for cell in state["cells"]:
        counts = "".join(f"{cell[name] or '.':>5}" for name in ("new", "running", "done", "stale", "failed"))
        error = "" if cell["test_top1_err"] is None else f"{cell['test_top1_err']:.2f} (n {cell['n']})"
        lines.append(f"{cell['label']:<{width}} {counts}   {error}".rstrip())
    return "\n".join(lines)


def reconcile(options: argparse.Namespace) -> int:
    """Bring the runs of a sweep in MLflow to the ledger's state, and say how many there are."""
    from sweeps.tracking.mlflow_runs import Projection, Store

    ledger = _ledger(options)
    (title, sweep), = planned(ledger, options.sweep).items()  # fmt: skip
    output = ledger.root.removesuffix("/ledger")
    uri = options.tracking_uri or f"sqlite:///{output}/mlflow.db"
    artifacts = f"{output}/mlartifacts" if uri.startswith("sqlite") else ""
    projection = Projection(Store(uri, options.experiment or title, artifacts), ledger, sweep)
    found = plan(sweep, ledger, {})
    idle = "RUNNING" if driver(ledger, title) else "KILLED"
    begun = [standing for standing in found.standings if standing.state != "new"]
    for standing in begun:
        projection.project_trial(standing.trial, idle)
    for cell in sweep.cells:
        trials = [standing.trial for standing in found.of(cell)]
        projection.project_cell(cell, trials, over=all(s.result is not None for s in found.of(cell)))
    print(f"{len(begun)} runs of {title} at {uri} are as the ledger says")
    return 0


def export_study(options: argparse.Namespace) -> int:
    """Write the studies of a sweep to an Optuna storage."""
    from sweeps.experiment.plan import given_up
    from sweeps.experiment.search import export, study

    ledger = _ledger(options)
    (title, sweep), = planned(ledger, options.sweep).items()  # fmt: skip
    search = sweep.protocol.search
    if search is None:
        raise ValueError(f"{title} searches nothing")
    results = ledger.results()
    failed = {key for key, tries in ledger.failed().items() if given_up(tries)}
    count = export([study(search, cell, results, failed) for cell in sweep.cells], title, options.storage)
    print(f"{count} studies written; to look at them: optuna-dashboard {options.storage}")
    return 0


def verify_resume(options: argparse.Namespace) -> int:
    """Prove exact resumption on a cell of a sweep, and note it on the ledger for the cell's runs to carry."""
    import tempfile

    import torch

    from data.datasets import data_dir
    from sweeps.experiment.trial import Trial, code_fingerprint
    from sweeps.training.run_trial import device_name
    from sweeps.training.runtime import Place
    from sweeps.training.verify_resume import shortened, verify

    ledger = _ledger(options)
    (_, sweep), = planned(ledger, options.sweep).items()  # fmt: skip
    labels = {cell.label: cell for cell in sweep.cells}
    if options.cell is not None and options.cell not in labels:
        raise ValueError(unknown("cell", options.cell, labels, sweep.title))
    cell = labels[options.cell] if options.cell else sweep.cells[0]
    with tempfile.TemporaryDirectory() as folder:
        place = Place(ledger="", data_dir=str(data_dir(options.data_dir)), device=options.device, reader=options.reader)
        found = verify(shortened(Trial(cell)), place, folder, options.kills, options.seed)
    if found.differences:
        print(f"{cell.label}: killed {found.kills} times, and {', '.join(found.differences)} differ")
        return 1
    proof = {"code": code_fingerprint(), "kills": found.kills, "device": device_name(torch.device(options.device))}
    ledger.write_json(f"verified/{cell.key}.json", proof)
    print(
        f"{cell.label}: killed {found.kills} times, weights, curves and scores are bit for bit those of one left alone"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
