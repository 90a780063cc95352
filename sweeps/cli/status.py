"""Status of the sweeps of an output folder: where each cell stands, and who drives it."""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections import Counter

from sweeps.experiment.code_fingerprint import cell_fingerprint
from sweeps.experiment.metrics import cell_average, error_text
from sweeps.experiment.plan import Plan, TrialStatus, current_plan, state_heads
from sweeps.experiment.questions.registration import changes_of
from sweeps.experiment.trial import Cell
from sweeps.experiment.wording import count
from sweeps.report.question_tables import text_lines
from sweeps.report.terminal import flags
from sweeps.results.answers import Answers, answers_of_plan
from sweeps.results.evidence import readable_titles
from sweeps.store.lease import Drivers, owner_text
from sweeps.store.ledger import Json, Ledger

COUNTED = ("stale", "failed", "diverged", "dead")  # flags that a column, or what was lost, says already


def status(options: argparse.Namespace) -> int:
    """Print where each cell of each sweep stands, and who drives it; 1 where a plan cannot be read."""
    ledger = Ledger.in_output(options.output)
    drivers = Drivers(ledger)
    while True:
        readable, left_out = readable_titles(ledger, options.sweep)
        plans = {title: current_plan(ledger, title) for title in readable}
        driving = drivers.now(plans)
        if options.json:
            shown = json.dumps(
                {title: as_json(plan, driving[title], current_answers(ledger, plan)) for title, plan in plans.items()},
                indent=1,
            )
        else:
            shown = "\n\n".join(
                text(plan, driving[title], current_answers(ledger, plan)) for title, plan in plans.items()
            )
        print(f"\x1b[2J\x1b[H{shown}" if options.watch and sys.stdout.isatty() else shown, flush=True)
        for sentence in left_out:
            print(sentence, file=sys.stderr)
        if not options.watch:
            return bool(left_out)
        time.sleep(2.0)


def current_answers(ledger: Ledger, plan: Plan) -> Answers | None:
    """Return the answers to a sweep's questions; None for a sweep that is not to be decided."""
    return answers_of_plan(plan, changes_of(ledger, plan.sweep.title)) if plan.sweep.protocol.until else None


def as_json(plan: Plan, drives: Json | None, decided: Answers | None = None) -> Json:
    """Return a sweep's status as JSON; `test_top1_err`, or the page's metric, is over folds where a cell has folds."""
    cells = []
    elsewhere = without_code(plan)
    for cell in plan.sweep.cells:
        tested = plan.tested(cell)
        metric = cell.metric
        numbers = {"single": cell_average(tested, metric.final), "folds": cell_average(tested, metric.mean)}
        known = {name: number for name, number in numbers.items() if number.n}
        main = known.get("folds") or known.get("single")
        cells.append(
            {"label": cell.label, metric.name.replace("/", "_"): main.mean if main else None}
            | {"n": main.n if main else 0}
            | counts(plan, cell)
            | {"pending": len(plan.pending_of(cell))}
            | {"lost": plan.lost(cell), "flags": list(flags(plan, cell))}
            | {"code_compared": cell.label not in elsewhere}
            | {"numbers": {name: number.as_json() for name, number in known.items()}}
        )
    return {
        "sweep": plan.sweep.title,
        "driver": drives,
        "cells": cells,
        "hours": plan.hours,
        "seeds": plan.seeds_text(),
    } | ({"questions": decided.as_json()} if decided is not None else {})


def counts(plan: Plan, cell: Cell) -> dict[str, int]:
    """Return how many trials of a cell are in each state; the damaged ones count as nothing else, and come last."""
    states = Counter("damaged" if plan.is_damaged(status) else status.state for status in plan.of(cell))
    return {state: states[state] for state in (*plan.states, "damaged")}


def without_code(plan: Plan) -> list[str]:
    """Return the labels of the cells whose code cannot be looked for here, as it is not beside this program."""
    return [cell.label for cell in plan.sweep.cells if not cell_fingerprint(cell)]


def remedy(plan: Plan, status: TrialStatus) -> str:
    """Return what to do about a damaged trial, as the end of a sentence; a damaged result is mended unasked."""
    return f"; {plan.way('--retry-failed', 'trains it anew', status)}" if status.trial.key in plan.damaged else ""


def _open(plan: Plan) -> str:
    """Return whether the command of a sweep that no driver runs would go on with it, as the end of a sentence."""
    if plan.to_do or plan.pending:
        return "; the sweep's command resumes it"
    is_trained = all(status.state == "done" or status.trial.key in plan.passed_over for status in plan.statuses)
    return "; all is trained" if is_trained and not plan.given_up else ""


def text(plan: Plan, drives: Json | None, decided: Answers | None = None) -> str:
    """Return a sweep's status as lines; `decided` has the answers to its questions."""
    who = f"driven by {owner_text(drives)}" if drives else f"no driver runs{_open(plan)}"
    width = max(len(cell.label) for cell in plan.sweep.cells)
    lines = [f"{plan.sweep.title}: {who}; {plan.hours:.2f} h of training so far"]
    metric = plan.sweep.metric
    lines.append(f"{'cell':<{width}} {state_heads(plan.states)} damaged   {metric.words}")
    for cell in plan.sweep.cells:
        *numbers, damaged = counts(plan, cell).values()
        row = "".join(f"{number or '.':>5}" for number in numbers) + f"{damaged or '.':>8}"
        told = ", ".join(flag for flag in flags(plan, cell) if flag not in COUNTED)
        words = "; ".join(filter(None, (error_text(plan.tested(cell), metric), told, plan.lost(cell))))
        lines.append(f"{cell.label:<{width}} {row}   {words}".rstrip())
    lines += [f"{status.trial.cell.label} {status.trial.label}: {status.why}{remedy(plan, status)}"
              for status in plan.statuses if plan.is_damaged(status)]  # fmt: skip
    lines += [f"{label}: {why}" for label, why in plan.given_up_sentences()]
    if plan.pending:
        by_cell = {cell.label: len(plan.pending_of(cell)) for cell in plan.sweep.cells}
        follow = ", ".join(f"{number} of {label}" for label, number in by_cell.items() if number)
        lines.append(f"{count(len(plan.pending), 'trial')} to follow when others have ended: {follow}")
    if elsewhere := without_code(plan):
        lines.append(
            f"{', '.join(elsewhere)}: the user's code is not in this folder, and is not compared with that of the "
            f"results; status in the folder of the page compares it"
        )
    if decided is not None:
        lines += text_lines(decided)
    if further := plan.seeds_text():
        lines.append(further)
    return "\n".join(lines)
