"""Status of the sweeps of an output folder: where each cell stands, and who drives it."""

from __future__ import annotations

import argparse
import json
import sys
import time

from sweeps.experiment.metrics import cell_average, error_text
from sweeps.experiment.plan import STATES, Plan, current_plan, state_heads
from sweeps.results.evidence import titles
from sweeps.store.lease import Drivers, owner_text
from sweeps.store.ledger import Json, Ledger


def status(options: argparse.Namespace) -> int:
    """Print where each cell of each sweep stands, and who drives it."""
    ledger = Ledger.in_output(options.output)
    drivers = Drivers(ledger)
    while True:
        plans = {title: current_plan(ledger, title) for title in titles(ledger, options.sweep)}
        driving = drivers.now(plans)
        if options.json:
            shown = json.dumps({title: as_json(plan, driving[title]) for title, plan in plans.items()}, indent=1)
        else:
            shown = "\n\n".join(text(plan, driving[title]) for title, plan in plans.items())
        print(f"\x1b[2J\x1b[H{shown}" if options.watch and sys.stdout.isatty() else shown, flush=True)
        if not options.watch:
            return 0
        time.sleep(2.0)


def as_json(plan: Plan, drives: Json | None) -> Json:
    """Return a sweep's status as JSON; `test_top1_err`, or the page's metric, is over folds where a cell has folds."""
    cells = []
    for cell in plan.sweep.cells:
        tested = plan.tested(cell)
        metric = cell.metric
        numbers = {"single": cell_average(tested, metric.final), "folds": cell_average(tested, metric.mean)}
        known = {name: number for name, number in numbers.items() if number.n}
        main = known.get("folds") or known.get("single")
        cells.append(
            {"label": cell.label, metric.name.replace("/", "_"): main.mean if main else None}
            | {"n": main.n if main else 0}
            | {state: plan.count(state, cell=cell) for state in STATES}
            | {"lost": plan.lost(cell)}
            | {"numbers": {name: number.as_json() for name, number in known.items()}}
        )
    return {
        "sweep": plan.sweep.title,
        "driver": drives,
        "cells": cells,
        "hours": plan.hours,
        "seeds": plan.seeds_text(),
    }


def text(plan: Plan, drives: Json | None) -> str:
    """Return a sweep's status as lines."""
    who = f"driven by {owner_text(drives)}" if drives else "no driver runs; the sweep's command resumes it"
    width = max(len(cell.label) for cell in plan.sweep.cells)
    lines = [f"{plan.sweep.title}: {who}; {plan.hours:.2f} h of training so far"]
    metric = plan.sweep.metric
    lines.append(f"{'cell':<{width}} {state_heads(plan.states)}   {metric.words}")
    for cell in plan.sweep.cells:
        counts = "".join(f"{plan.count(state, cell=cell) or '.':>5}" for state in plan.states)
        words = "; ".join(filter(None, (error_text(plan.tested(cell), metric), plan.lost(cell))))
        lines.append(f"{cell.label:<{width}} {counts}   {words}".rstrip())
    lines += [f"{label}: {why}; the others are skipped" for label, why in plan.given_up.items()]
    if further := plan.seeds_text():
        lines.append(further)
    return "\n".join(lines)
