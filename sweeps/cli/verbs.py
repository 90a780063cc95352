"""Verbs of `python -m sweeps` that list the sweeps or act on one of them."""

from __future__ import annotations

import argparse
import ast
import os
import shlex
import sys
import tempfile
from collections import Counter
from pathlib import Path

from crelu_models.command_line import python_command
from sweeps.cli.options import ExitCode
from sweeps.experiment.plan import Plan, current_plan, declared_sweep, has_failed
from sweeps.experiment.sweep import Sweep
from sweeps.experiment.trial import Cell, Trial
from sweeps.experiment.wording import count, question_of, unknown_name
from sweeps.results.evidence import titles
from sweeps.store.lease import Lease, LeaseHeldError, LeaseLostError
from sweeps.store.ledger import Ledger
from sweeps.store.local_uris import artifacts_in, reports_in
from sweeps.store.logins import own_store, same_store, without_login


def pages() -> dict[str, str]:
    """Return the question of each sweep's page by the sweep's name. A page is a module that hands CELLS to main."""
    questions = {}
    for path in sorted(Path(__file__).parents[1].glob("*.py")):
        tree = ast.parse(path.read_text())
        names = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}
        if {"main", "CELLS"} <= names:
            questions[path.stem] = question_of(ast.get_docstring(tree))
    return questions


def show_pages(_: argparse.Namespace) -> int:
    """Print the sweeps that have a page, with their questions."""
    questions = pages()
    width = max(map(len, questions))
    for name, question in questions.items():
        print(f"{name:<{width}}  {question}")
    print(f"\nrun one: {python_command('sweeps.NAME')}   (--help, --list, --dry-run)")
    return 0


def planned_sweep(ledger: Ledger, title: str) -> Sweep:
    """Return a sweep as its plan on the ledger declares it; ValueError where there is none of this title."""
    (title,) = titles(ledger, title)
    return declared_sweep(ledger, title)[0]


def reconcile(options: argparse.Namespace) -> int:
    """Bring the runs of a sweep in MLflow to the ledger's state, and print how many there are; 4 where that fails.

    A report that lies in the output is written anew, and sent with them. While a driver trains the sweep it sends the
    runs itself: of two that create and delete runs at once, each would take the other's for doubles.
    Without --experiment they go to the experiment that has them.
    """
    from sweeps.report import build
    from sweeps.tracking.store_errors import place

    ledger = Ledger.in_output(options.output)
    (title,) = titles(ledger, options.sweep)
    uri = own_store(options.tracking_uri, ledger.output)
    if not uri:
        raise ValueError(f"--output {options.output} is no local folder: say by --tracking-uri where MLflow is")
    ledger.check_links()
    try:
        with Lease(ledger, title, lambda sentence: print(sentence, file=sys.stderr)) as lease:
            guarded = Ledger(ledger.root, lease.check)
            plan = current_plan(guarded, title)
            why, sent = _send_runs(plan, guarded, uri, options.experiment or _experiment(plan, guarded, title, uri))
    except LeaseHeldError as busy:
        raise ValueError(f"{busy}; meanwhile it sends MLflow what it lacks itself") from None
    except LeaseLostError as lost:
        raise ValueError(f"{lost}; it sends MLflow the rest") from None
    if why:
        again = python_command("sweeps", *sys.argv[1:])
        print(f"error: MLflow at {place(uri)} lacks runs of {title}, for {why}", file=sys.stderr)
        print(f"mend that, then   {again}", file=sys.stderr)
        return ExitCode.UNTRACKED
    verb = "is" if sent == 1 else "are"
    print(f"{count(sent, 'run')} of {title} at {place(uri)} {verb} as the ledger says")
    reports = reports_in(ledger.output)
    if not ledger.local or not (reports / title).is_dir():
        return ExitCode.DONE
    try:
        tracked = build.make(ledger, title, reports, uri).tracked
    except ValueError as error:
        print(f"report     none: {error}")
        return ExitCode.DONE
    if tracked.sentence:
        print(f"MLflow     {tracked.sentence}")
    return ExitCode.UNTRACKED if tracked.lacks else ExitCode.DONE


def _experiment(plan: Plan, ledger: Ledger, title: str, uri: str) -> str:
    """Return the experiment of a store that has most of a sweep's runs, as the ledger notes; else the default one."""
    notes = (ledger.read_json(f"tracked/{status.trial.key}.json") or {} for status in plan.statuses)
    of_sweep = (note.get("sweeps", {}).get(title, {}) for note in notes)
    names = Counter(str(note["experiment"]) for note in of_sweep if note and same_store(str(note.get("uri")), uri))
    return names.most_common(1)[0][0] if names else os.environ.get("MLFLOW_EXPERIMENT_NAME") or title


def _send_runs(plan: Plan, ledger: Ledger, uri: str, experiment: str) -> tuple[str, int]:
    """Bring a sweep's runs in a store to the ledger's state; return why that fails, or "", and how many began."""
    from sweeps.report.progress_bar import progress_bar
    from sweeps.tracking.mlflow_runs import MlflowRuns
    from sweeps.tracking.run_index import Store
    from sweeps.tracking.store_errors import trouble

    skipped = frozenset(status.trial.key for status in plan.statuses if status.state == "skipped")
    artifacts = artifacts_in(ledger.output) if uri.startswith("sqlite") else ""
    store = Store(uri, experiment, artifacts, plan.fingerprints)
    expected = {status.trial.key: (status.trial, "KILLED") for status in plan.statuses}
    begun = {status.trial.key for status in plan.statuses if status.state not in ("new", "skipped")}
    try:
        runs = MlflowRuns(store, ledger, plan.sweep, lambda sentence: print(sentence, file=sys.stderr))
        differing = runs.outdated(expected)
        to_send = [(trial, state) for key, (trial, state) in expected.items() if key in begun or key in differing]
        with progress_bar("sending to MLflow", len(to_send) + 1) as begin:
            for trial, state in to_send:
                begin(trial.cell.label)
                runs.sync_trial(trial, state)
            begin("cells")
            runs.remove_strangers(expected)
            runs.rename_trials(trial for trial, _ in expected.values())
            for cell in runs.shown_cells({expected[key][0].cell.key for key in begun}):
                runs.sync_cell(cell, [status.trial for status in plan.of(cell)], skipped, plan.passed_over)
    except LeaseLostError:
        raise
    except Exception as error:  # of any kind, from a server, its client or a database
        return str(trouble(error)), 0
    return "", len(begun)


def export_study(options: argparse.Namespace) -> int:
    """Write the studies of a sweep to an Optuna storage; ValueError for one that cannot be written."""
    from sweeps.experiment.study import export, study

    ledger = Ledger.in_output(options.output)
    plan = current_plan(ledger, titles(ledger, options.sweep)[0])
    sweep = plan.sweep
    search = sweep.protocol.search
    if search is None:
        raise ValueError(f"{sweep.title} searches nothing")
    results = ledger.results()
    failed = {key for key, attempts in ledger.failed().items() if has_failed(attempts)}
    # A search that waits for its learning rate has asked for nothing.
    cells = [cell for cell in sweep.cells if plan.rates.get(cell.key, 0.0) is not None]
    paused = ledger.paused()
    studies = [study(search, cell, results, failed, plan.rates.get(cell.key) or 0.0, paused) for cell in cells]
    try:
        written = export(studies, sweep.title, options.storage, results, paused)
    except Exception as error:  # of any kind, from a database or its driver
        why = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ValueError(
            f"--storage {without_login(options.storage)} cannot be written: {why}; e.g. sqlite:///studies.db"
        ) from None
    look = shlex.join(["optuna-dashboard", options.storage])
    print(f"{count(written, 'study')} written; to look at them: {look}   (pip install optuna-dashboard)")
    return 0


def verify_resume(options: argparse.Namespace) -> int:
    """Prove exact resumption on a cell of a sweep, and note the proof on the ledger for the cell's runs.

    ValueError where it cannot be trained here, or its training ends before it is killed.
    """
    import torch

    from crelu_data.availability import check_available
    from crelu_data.datasets import data_dir
    from crelu_data.load import default_reader
    from sweeps.execution.verify_resume import shortened, verify
    from sweeps.experiment.code_fingerprint import cell_fingerprint
    from sweeps.training.runtime import RuntimeConfig, available_device, device_name

    ledger = Ledger.in_output(options.output)
    cell = _cell(planned_sweep(ledger, options.sweep), options.cell)
    if options.device == "cuda" and available_device() == "cpu":
        raise ValueError("--device cuda: there is no GPU here that torch can use")
    where = data_dir(options.data_dir)
    config = RuntimeConfig(
        ledger="", data_dir=str(where), device=options.device, reader=options.reader or default_reader()
    )
    code = cell_fingerprint(cell)
    if not code:
        raise ValueError(f"the code of {cell.label} is not found from here: give the command in the folder of its page")
    check_available(cell.dataset, where)
    with tempfile.TemporaryDirectory() as folder:
        verdict = verify(shortened(Trial(cell)), config, folder, options.kills, options.seed)
    if verdict.differences:
        print(f"{cell.label}: killed {count(verdict.kills, 'time')}, and {', '.join(verdict.differences)} differ")
        return 1
    if not verdict.kills:
        raise ValueError(f"{cell.label}: its training ended before it was killed, so nothing is proved")
    proof = {
        "code": code,
        "kills": verdict.kills,
        "device": device_name(torch.device(options.device)),
    }
    ledger.write_note(f"verified/{cell.key}.json", proof)
    print(
        f"{cell.label}: killed {count(verdict.kills, 'time')}, weights, curves and scores are bit for bit those of a "
        "training without interruption"
    )
    return 0


def _cell(sweep: Sweep, label: str | None) -> Cell:
    """Return the cell of a sweep with this label, the first without one; ValueError where there is none."""
    cells = {cell.label: cell for cell in sweep.cells}
    if label is None:
        return sweep.cells[0]
    if label not in cells:
        raise ValueError(unknown_name("cell", label, cells, sweep.title))
    return cells[label]
