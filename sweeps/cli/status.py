"""Status of the sweeps of an output folder: where each cell stands, and who drives it."""

from __future__ import annotations

import argparse
import json
import sys
import time

from sweeps.cli.verbs import _ledger, planned
from sweeps.experiment.plan import Sweep, plan
from sweeps.store.lease import driver
from sweeps.store.ledger import Json, Ledger


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
    seconds = sum(float(s.result["seconds"]) for s in found.statuses if s.result is not None)
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
