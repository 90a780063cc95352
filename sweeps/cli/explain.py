"""Explanation of a cell or a trial: what it is, where it stands and why, and which files it has."""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterator, Mapping, Sequence

from sweeps.experiment.metrics import Metric, ending_word, error_text, has_diverged
from sweeps.experiment.plan import MAX_ATTEMPTS, TO_DO, Plan, TrialStatus, current_plan
from sweeps.experiment.trial import PHASES, SECOND_SEED, Cell, Trial
from sweeps.experiment.wording import count, unknown_name
from sweeps.results.evidence import titles
from sweeps.store.ledger import Json, Ledger

LEAST_KEY = 6  # digits of a key that may stand for it
METRICS = ("final/test_top1_err", "final/test_top1_err_10crop", "best/val_top1_err", "best/epoch", "final/train_loss")
FOLDERS = ("trials", "checkpoints", "attempts")
PURPOSES = {
    "ablation": "a training of the cell with this seed, on all but the hold-out, then tested",
    "holdout": "a training on all but the hold-out, which its best epoch is chosen by: a trial of the search, or the "
    "first phase of Single",
    "inner": "a trial of the search on one of its folds",
    "match": "the second phase of Single: on the full training set, until the first phase's training loss",
    "fold": "one of the networks of Average and Vote, validated on one fold, then tested",
}
STANDS = {
    "new": "it has not begun",
    "running": "it has begun and has a checkpoint",
    "paused": "it waits at a rung of its search, with its checkpoint, and goes on only if it is among the best there",
    "done": "it is done, and its result stands",
    "stale": "it is done, and its result does not stand",
    "failed": "it has failed",
    "skipped": "it is left out",
}


def arguments(verb: argparse.ArgumentParser) -> None:
    """Add the options of the verb."""
    verb.add_argument("sweep", help="a sweep that has run, as status shows it")
    verb.add_argument("cell", nargs="?", help="one of its cells, or a trial's key (default: all cells in short)")
    verb.add_argument("trial", nargs="?", help="a trial of the cell, by its name there")


def explain(options: argparse.Namespace) -> int:
    """Print what a cell or trial is, and where it stands."""
    ledger = Ledger.in_output(options.output)
    (title,) = titles(ledger, options.sweep)
    plan = current_plan(ledger, title)
    if options.cell is None:
        reasons = withheld_reasons(plan, ledger)
        print("\n\n".join("\n".join(cell_lines(plan, cell, reasons, brief=True)) for cell in plan.sweep.cells))
        return 0
    status = _trial_by_key(plan, options.cell)
    if status is None:
        cell = _cell(plan, options.cell)
        if options.trial is None:
            print("\n".join(cell_lines(plan, cell, withheld_reasons(plan, ledger))))
            return 0
        status = _trial_of(plan, cell, options.trial)
    print("\n".join(trial_lines(plan, status, ledger)))
    return 0


def withheld_reasons(plan: Plan, ledger: Ledger) -> Mapping[str, Sequence[str]]:
    """Return why no number of a cell is judged by the paper's, by the cell's label, as the report says it."""
    from sweeps.report import terminal

    rows = terminal.lines(plan, {}, ledger)
    return {row.label: [*dict.fromkeys(filter(None, row.withheld.values()))] for row in rows}


def cell_lines(plan: Plan, cell: Cell, reasons: Mapping[str, Sequence[str]], brief: bool = False) -> Iterator[str]:
    """Yield the lines on a cell: what it trains, its numbers, and each of its trials unless `brief`.

    `reasons` are those of the verdicts that are withheld, by the cell's label.
    """
    yield f"{cell.label}: {cell.net.name} on {cell.dataset}, by the recipe {cell.recipe.name}"
    if not brief:
        yield from (f"    {line}" for line in str(cell.net).splitlines())
    statuses = plan.of(cell)
    states = [f"{number} {state}" for state in STANDS if (number := plan.count(state, cell=cell))]
    waiting = len(plan.pending_of(cell))
    if waiting:
        states.append(f"{waiting} to follow when {_awaited(plan, cell)}")
    yield f"  {count(len(statuses) + waiting, 'trial')}: {', '.join(states)}"
    yield f"  {cell.metric.words}: {error_text(plan.tested(cell), cell.metric) or 'none yet'}"
    if lost := plan.lost(cell):
        yield f"  {lost}"
    yield from (f"  no verdict by the paper's number: {reason}" for reason in reasons.get(cell.label, ()))
    for label, why in plan.given_up_sentences():
        if label == cell.label:
            yield f"  given up: {why} ({plan.remedy(label)})"
    if brief:
        return
    width = max((len(status.trial.label) for status in statuses), default=0)
    for status in statuses:
        ending = f" ({ending_word(status.result)})" if status.result and has_diverged(status.result) else ""
        words = "   ".join(filter(None, (f"{status.state}{ending}", _why(plan, status))))
        yield f"    {status.trial.label:<{width}}  {status.trial.key}  {words}"


def trial_lines(plan: Plan, status: TrialStatus, ledger: Ledger) -> Iterator[str]:
    """Yield the lines on a trial: what it is, where it stands and why, its numbers and its files."""
    trial = status.trial
    yield f"{trial.cell.label} {trial.label}, trial {trial.key} of {plan.sweep.title}"
    yield f"  what      {_purpose(plan, trial)}"
    yield f"  trains    {trial.cell.net.name} on {trial.cell.dataset}, {_recipe_text(trial)}"
    yield f"  draws     {_draws(trial)}"
    yield f"  stands    {status.state}: {_stand(plan, status)}"
    for line in _attempt_lines(ledger.attempts(trial.key)):
        yield f"  attempt   {line}"
    result = status.result or plan.damaged.get(trial.key)
    if result is not None:
        yield from (f"  {line}" for line in _result_lines(result, trial.cell.metric))
    run = ledger.tracked(trial.key, plan.sweep.title).get("run")
    if run:
        yield f"  mlflow    run {run}"
    places = [f"results/{trial.key}.json"] if result is not None else []
    places += [f"{folder}/{trial.key}/{name}" for folder in FOLDERS for name in _files(ledger, f"{folder}/{trial.key}")]
    for number, place in enumerate(places):
        yield f"  {'files' if number == 0 else '':<9} {ledger.path(place)}"


def _purpose(plan: Plan, trial: Trial) -> str:
    """Return what a trial is for; one of a study of the learning rate may have other uses besides."""
    if trial.key not in plan.studied:
        return PURPOSES[trial.phase]
    uses = ["a training of the baseline at one of the rates that its study tries"]
    if trial.key in plan.searched:
        uses.append("a trial of the search")
    if any(status.trial.reference == trial.key for status in plan.statuses):
        uses.append("the first phase of Single")
    return ", and ".join(uses)


def _why(plan: Plan, status: TrialStatus) -> str:
    """Return why a trial stands where it does, for one that runs how far it has come; empty where nothing is known."""
    epochs = plan.epochs_of(status) if status.state == "running" else 0
    come = f"after epoch {epochs} of {status.trial.recipe.epochs}" if epochs else ""
    return "; ".join(filter(None, (come, status.why)))


def _stand(plan: Plan, status: TrialStatus) -> str:
    """Return where a trial stands and why, and what may be done about it."""
    why = _why(plan, status)
    sentence = f"{STANDS[status.state]}{f': {why}' if why else ''}"
    if status.state in TO_DO:
        ahead = [trial.key for trial in plan.to_do].index(status.trial.key)
        verb = "starts" if ahead == 1 else "start"
        before = f"{count(ahead, 'trial')} of this sweep {verb} before it" if ahead else "it is the next of this sweep"
        return f"{sentence}; {before}" if status.state == "new" else f"{sentence}; the sweep's command goes on with it"
    command = "the sweep's command with"
    remedies = {
        "stale": f"; {plan.way(f'{command} --stale retrain', 'trains it anew', status)}",
        "failed": f"; {plan.way(f'{command} --retry-failed', 'tries it again', status)}",
        "skipped": f"; {plan.remedy(status.trial.cell.label)}",
    }
    return sentence + remedies.get(status.state, "")


def _awaited(plan: Plan, cell: Cell) -> str:
    """Return what the trials of a cell that are not known yet wait for."""
    if plan.rates.get(cell.key, 0.0) is None:
        return "the learning rate is chosen"
    searches = plan.sweep.protocol.search is not None
    if searches and any(status.trial.key in plan.searched and status.result is None for status in plan.of(cell)):
        return "its search is over"
    return "those before them are done"


def _recipe_text(trial: Trial) -> str:
    """Return the recipe of a trial in short."""
    recipe = trial.recipe
    return (
        f"{recipe.optimiser} at {recipe.lr:g}, weight decay {recipe.weight_decay:g}, batch {recipe.batch}, "
        f"{count(recipe.epochs, 'epoch')}"
    )


def _draws(trial: Trial) -> str:
    """Return what the trial's random draws depend on."""
    words = [f"seed {trial.seed}"]
    if trial.phase == "match":
        words[0] += f" (that of its first phase, and {SECOND_SEED})"
        words.append(f"its first phase is {trial.reference}")
    if trial.folds:
        words.append(f"fold {trial.fold} of {trial.folds} held out")
    elif PHASES[trial.phase].split == "holdout":
        words.append("the hold-out left out")
    if trial.dropout:
        words.append("dropout " + ", ".join(f"{rate:g} after {position}" for position, rate in trial.dropout))
    return "; ".join(words)


def _attempt_lines(attempts: Sequence[Json]) -> Iterator[str]:
    """Yield a line for each failed attempt."""
    for number, attempt in enumerate(attempts, start=1):
        when = time.strftime("%Y-%m-%d %H:%M", time.localtime(float(attempt.get("time", 0))))
        last = ", not tried again" if attempt.get("final") else ""
        yield f"{number} of {MAX_ATTEMPTS} on {attempt.get('host', '?')}, {when}{last}: {attempt.get('error', '')}"


def _result_lines(result: Json, metric: Metric) -> Iterator[str]:
    """Yield the lines on a result."""
    epochs = count(int(result["epochs"]), "epoch")
    device = result.get("hardware", {}).get("device", "?")
    yield f"ended     {ending_word(result)} ({result['ending']}) after {epochs}, {result['seconds']:.0f} s on {device}"
    numbers: Mapping[str, float] = result["metrics"]
    names = dict.fromkeys((metric.final, metric.held_out, *METRICS))
    shown = ", ".join(f"{name} {numbers[name]:.4g}" for name in names if name in numbers)
    if shown:
        yield f"numbers   {shown}"
    for event in result.get("events", ()):
        yield f"event     {event if isinstance(event, str) else json.dumps(event)}"


def _files(ledger: Ledger, folder: str) -> list[str]:
    """Return the files in a folder of the ledger and in the folders below it."""
    below = [f"{name}/{file}" for name in ledger.folders(folder) for file in _files(ledger, f"{folder}/{name}")]
    return [*ledger.names(folder), *below]


def _trial_by_key(plan: Plan, word: str) -> TrialStatus | None:
    """Return the trial whose key begins with a word of enough digits; ValueError where several do."""
    if len(word) < LEAST_KEY:
        return None
    matches = [status for status in plan.statuses if status.trial.key.startswith(word)]
    if len(matches) > 1:
        raise ValueError(f"{word} begins the keys of {count(len(matches), 'trial')}: give more digits")
    return matches[0] if matches else None


def _cell(plan: Plan, label: str) -> Cell:
    """Return the cell with this label, in any case; ValueError where there is none."""
    cells = {cell.label.lower(): cell for cell in plan.sweep.cells}
    if label.lower() not in cells:
        labels = [cell.label for cell in plan.sweep.cells]
        raise ValueError(unknown_name("cell", label, labels, plan.sweep.title))
    return cells[label.lower()]


def _trial_of(plan: Plan, cell: Cell, name: str) -> TrialStatus:
    """Return the trial of a cell with this name, or whose name alone begins with it; ValueError where there is none."""
    named = {status.trial.label: status for status in plan.of(cell)}
    begin = [label for label in named if label == name or label.startswith(f"{name} ")]
    if name in named or len(begin) == 1:
        return named[name if name in named else begin[0]]
    if begin:
        raise ValueError(f"{cell.label} has {count(len(begin), 'trial')} that begin with {name!r}: {', '.join(begin)}")
    raise ValueError(unknown_name("trial", name, named, cell.label))
