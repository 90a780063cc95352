"""How a sweep ends: its table, its report, where everything is, what to type next, and the exit code."""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path

from data.datasets import DataSet
from sweeps.cli.settings import BUDGET, DONE, FAILED, INTERRUPTED, Errand, as_json
from sweeps.experiment.plan import plan


def print_summary(errand: Errand, facts: dict[str, DataSet], fingerprints: dict[str, str], code: int) -> int:
    """Print the table, where everything is, and what to type next; return the exit code."""
    from sweeps.report import terminal

    ledger, options = errand.ledger, errand.options
    found = plan(errand.sweep, ledger, fingerprints)
    rows = terminal.lines(found, {name: fact.classes for name, fact in facts.items()}, ledger)
    results = terminal.write_results(found, ledger, errand.sweep.title)
    failed = found.count("failed")
    if code == DONE and (failed or found.to_do):
        code = FAILED
    reported, tracked = _report(errand) if code in (DONE, FAILED) else ("", "")
    if options.json:
        places = {"results": results, "report": reported, "tracking_uri": errand.uri}
        print(as_json(terminal.as_json(found, rows) | places | {"exit": code}))
        return code
    width = shutil.get_terminal_size((140, 40)).columns
    print(terminal.text(found, rows, width, sys.stdout.isatty() and "NO_COLOR" not in os.environ))
    done = found.count("done", "stale")
    print(f"{done} of {len(found.statuses)} trials are done{f', {failed} failed' if failed else ''}.")
    for standing in found.statuses:
        if standing.state == "failed":
            print(f"  failed: {standing.trial.cell.label} {standing.trial.label}: {standing.why}")
    if found.count("stale"):
        print(f"{found.count('stale')} are stale ({next(s.why for s in found.statuses if s.state == 'stale')}); "
              "--stale retrain trains them anew.")  # fmt: skip
    print(f"results   {results}")
    if reported:
        print(f"report    {reported}")
    if errand.uri.startswith("sqlite"):
        print(f"compare   {_mlflow()} ui --backend-store-uri {errand.uri}")
    else:
        print(f"compare   {errand.uri}, experiment {errand.experiment}")
    if tracked:
        print(f"          {tracked}")
    if code in (INTERRUPTED, BUDGET):
        print(f"resume    the same command{', with a larger --max-gpu-hours' if code == BUDGET else ''}")
    elif failed:
        print("next      the same command with --retry-failed")
    else:
        more = errand.sweep.protocol.seeds + 2
        print(f"next      python -m sweeps.{errand.sweep.name} --seeds {more}   (for standard errors)")
    return code


def _report(errand: Errand) -> tuple[str, str]:
    """Write the report and put it on MLflow's runs; return its path and where MLflow has it, or why there is none."""
    from sweeps.report import build

    if "://" in errand.choice.output:
        return f"python -m sweeps report {errand.sweep.title} --output {errand.choice.output} --to DIR", ""
    try:
        _, path, tracked = build.make(errand.ledger, errand.sweep.title, Path(errand.choice.output, "reports"))
    except ValueError as error:
        return f"none: {error}", ""
    return str(path), tracked


def _mlflow() -> str:
    """Return the mlflow command of this environment, as one would type it."""
    beside = Path(sys.executable).with_name("mlflow")
    return os.path.relpath(beside) if beside.exists() else "mlflow"
