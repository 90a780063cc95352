"""Tables of record: chosen settings, failures, cost, provenance, and every run behind every number."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

from sweeps.experiment.metrics import Metric, ending_word
from sweeps.experiment.rates import choose
from sweeps.experiment.sampling import ENOUGH
from sweeps.experiment.search import Search, goal, space
from sweeps.experiment.space import DROPOUT, short_name, value_text
from sweeps.experiment.study import importance
from sweeps.experiment.trial import Trial
from sweeps.experiment.wording import count
from sweeps.report.render.document import NONE, Entry, Table, duration, plain
from sweeps.results.cell_numbers import NAMES, digits
from sweeps.results.evidence import POINT_STATES, CellResults, Run, SweepResults, hours_of
from sweeps.results.provenance import shares
from sweeps.store.ledger import Json

EARLY: Final = "A paused or pruned point has the value that it had there, of fewer epochs or folds than the others."


def chosen_table(results: SweepResults) -> Table | None:
    """Return the chosen setting of each study and its trials by state, None for a sweep that searches nothing."""
    search = results.sweep.protocol.search
    metric = results.sweep.metric
    cells = [cell_results for cell_results in results.cells if cell_results.tried]
    if search is None or not cells:
        return None
    chosen_kind = "setting" if search.axes else "dropout"
    value = search.objective or held_out_name(metric, search.folds)
    word = "largest" if goal(search, cells[0].cell).direction == "maximize" else "least"
    folds = f"mean over {count(search.folds, 'fold')} of the " if search.folds else ""
    chosen_by = f"{word} {folds}{search.objective or f'{value} of the best epoch'}"
    notes = [f"Chosen by the {chosen_by}; the test pictures are not opened in a search."]
    limits = ", ".join(f"{most:g} {name}" for name, most in search.limits_by_name.items())
    notes += [f"Limits: {limits}."] if limits else []
    if search.halving:
        notes.append(f"One trial in {search.halving} goes on from a rung; the others have paused there.")
    names = list(dict.fromkeys(axis.name for cell_results in cells for axis in space(search, cell_results.cell)))
    if len(names) == 1:
        name = names[0] if search.axes else f"dropout after {names[0]}"
        notes.append(f"The only dimension is {name}: all of the importance is its own.")
    counts = [Counter(tried.state for tried in cell_results.tried_once) for cell_results in cells]
    states = [state for state in POINT_STATES if state == "finished" or any(number[state] for number in counts)]
    columns = ("cell", f"chosen {chosen_kind}", value, *states)
    rows = tuple(
        (*_chosen(cell_results, search), *(Entry(str(number[state])) for state in states))
        for cell_results, number in zip(cells, counts, strict=True)
    )
    return Table(
        f"chosen-{chosen_kind}", f"Chosen {chosen_kind}", columns, "ll" + "r" * (len(columns) - 2), rows, tuple(notes)
    )


def importance_table(results: SweepResults) -> Table | None:
    """Return how much each dimension of a search counts, None where no study tells."""
    search = results.sweep.protocol.search
    if search is None:
        return None
    shares = []
    for cell_results in results.cells:
        points = [(point.run.trial, point.value) for point in cell_results.tried]
        if points:
            shares.append((cell_results, importance(search, cell_results.cell, points)))
    names = list(dict.fromkeys(name for _, share in shares for name in share))
    if len(names) < 2:
        return None
    rows = tuple(
        (Entry(cell_results.cell.label, cell=cell_results.cell.key),
         *(Entry(f"{100 * share[name]:.0f} %" if name in share else NONE) for name in names))
        for cell_results, share in shares
    )  # fmt: skip
    notes = ["Each dimension's share in what sets the better half of the points apart from all (PED-ANOVA, by Optuna)."]
    if not all(share for _, share in shares):
        notes.append(
            f"No share where fewer than {ENOUGH} points of a cell have a value, where more than half of them have the"
            " worst one, or where one dimension is searched."
        )
    if some_ended_early(results):
        notes.append(EARLY)
    return Table("importance", "Importance", ("cell", *names), "l" + "r" * len(names), rows, tuple(notes))


def some_ended_early(results: SweepResults) -> bool:
    """Return whether a point of a search has a value of before its end: it was paused or pruned."""
    return any(point.early for cell_results in results.cells for point in cell_results.tried)


def why_no_importance(results: SweepResults) -> str:
    """Return in a sentence why a search has no table of importance; empty where one dimension alone is searched."""
    search = results.sweep.protocol.search
    if search is None or all(len(space(search, cell_results.cell)) < 2 for cell_results in results.cells):
        return ""
    return (
        f"No table of importance: a cell needs {ENOUGH} points, at most half of them with the worst value. Of fewer"
        " points it shows chance."
    )


def _chosen(cell_results: CellResults, search: Search) -> tuple[Entry, ...]:
    """Return a cell, what its search chose, or why it chose nothing, and the value of that."""
    winner = cell_results.winner
    none = f"none: {cell_results.given_up}" if cell_results.given_up else NONE
    name = search.objective or cell_results.cell.metric.held_out
    best = Entry(NONE)
    if winner:
        value = winner.value or 0.0
        best = Entry(plain(value, digits(name, value)), runs=winner.runs, cell=cell_results.cell.key, metric=name)
    chosen = Entry(setting_text(winner.run.trial) if winner else none)
    return Entry(cell_results.cell.label, cell=cell_results.cell.key), chosen, best


def setting_text(trial: Trial) -> str:
    """Return what a search chose for a trial: 0.25 after conv9, lr 0.01, optimiser sgd."""
    words = [f"{rate:g} after {place}" for place, rate in trial.dropout]
    for name, value in trial.choices:
        dropout = f"dropout {value_text(value)} after {short_name(name)}"
        words.append(dropout if name.startswith(DROPOUT) else f"{short_name(name)} {value_text(value)}")
    return ", ".join(words)


def rate_table(results: SweepResults) -> Table | None:
    """Return the studies of the learning rate, None for a sweep that has none."""
    study = results.sweep.protocol.rates
    rows: list[tuple[Entry, ...]] = []
    for cell_results in results.cells if study is not None else ():
        runs = {run.key: run for run in cell_results.runs if run.key in cell_results.rates}
        if study is None or not runs:
            continue
        # A file damaged since then changes no choice: the cells were trained at this rate.
        known = {key: result for key, run in runs.items() if (result := run.result or results.damaged.get(key))}
        choice = choose(study, cell_results.cell, known, {key for key, run in runs.items() if run.state == "failed"})
        for trial in choice.trials:
            word = "chosen" if trial.rate == choice.rate else choice.why or NONE
            if trial.key in runs:
                run = runs[trial.key]
                rows.append((
                    Entry(cell_results.cell.label, cell=cell_results.cell.key),
                    Entry(f"{trial.rate:g}"),
                    _value(run, run.trial.cell.metric.held_out)._replace(runs=(run,)),
                    Entry(state_of(run)),
                    Entry(word, tone="good" if word == "chosen" else "muted"),
                ))  # fmt: skip
    metric = results.sweep.metric
    columns = ("baseline", "rate", held_out_name(metric), "", "")
    best = f"best {metric.held_out_words}" if metric.is_own else "least hold-out error"
    note = f"The rate of {best}, of equal ones the larger: that of all cells with these data and recipe."
    return Table("learning-rate", "Learning rate", columns, "lrrll", tuple(rows), (note,)) if rows else None


def held_out_name(metric: Metric, folds: int = 0) -> str:
    """Return the heading of a column of held-out values: on the hold-out, or on `folds`."""
    error = "held-out error" if folds else "hold-out error"
    return metric.held_out_words if metric.is_own else error


def failure_table(results: SweepResults) -> Table | None:
    """Return the trials that failed, diverged, died, were skipped or begun anew, with the last error; None: no such."""
    rows = []
    for run in results.runs:
        tries = results.attempts.get(run.key, ())
        events = [*(str(event) for event in (run.result or {}).get("events", ())), *map(_error, tries)]
        state = ending_word(run.result) if run.result else run.state
        named = run.why and run.state in ("failed", "done")  # a failure, or a damaged file of an analysis
        last = _error({"error": run.why}) if named else (events or [run.why])[-1]
        if events or named or state in ("failed", "diverged", "dead", "skipped"):
            rows.append((
                Entry(run.trial.cell.label, cell=run.trial.cell.key),
                Entry(run.trial.label, runs=(run,)),
                Entry(str(state), tone="bad" if state in ("failed", "diverged", "dead") else "muted"),
                Entry(str(len(tries) + int((run.result or {}).get("restarts", 0)))),
                Entry(last or NONE, tone="muted"),
            ))  # fmt: skip
    columns = ("cell", "trial", "now", "tries lost", "last error or event")
    return Table("failed", "Failures and restarts", columns, "lllrl", tuple(rows)) if rows else None


def _error(attempt: Json) -> str:
    return str(attempt.get("error", "")).partition("\n")[0][:200]


def cost_table(results: SweepResults) -> Table:
    """Return trainings and hours of each cell, its search apart, as measured; their cost where a price is known."""
    rows = [
        (Entry(cell_results.cell.label, cell=cell_results.cell.key), *_cost((cell_results,), results))
        for cell_results in results.cells
    ]
    rows.append((Entry("all"), *_cost(results.cells, results)))
    columns: tuple[str, ...] = ("cell", "trainings", "time", "search trials", "search time", "one training")
    notes = ["Time that one worker trained, evaluations included, waiting and failed tries of unknown time left out."]
    if any(cell_results.rates for cell_results in results.cells):
        notes.append("A study of the learning rate counts as search.")
    if any(cell_results.searched & cell_results.first_phases for cell_results in results.cells):
        notes.append("A search trial that is a first phase too counts as search, and in the time of one training.")
    if results.hourly:
        columns += ("money",)
        notes.append(
            f"Money at {results.hourly:g} an hour of a whole GPU; a trial counts with its share, searches too."
        )
    return Table("costs", "Cost", columns, "l" + "r" * (len(columns) - 1), tuple(rows), tuple(notes))


def _cost(cells: Sequence[CellResults], results: SweepResults) -> Iterable[Entry]:
    """Yield what cells took: trainings and search trials with their hours, the time of one training, and money."""
    trained = [(cell, run) for cell in cells for run in cell.runs if run.result or run.seconds]
    own = [run for cell, run in trained if run.key not in cell.searched]
    searching = [run for cell, run in trained if run.key in cell.searched]
    each = [run for cell, run in trained if run.key not in cell.searched - cell.first_phases]
    yield from (Entry(str(len(own))), Entry(duration(hours_of(own)), runs=tuple(run for _, run in trained)))
    yield from (Entry(str(len(searching))), Entry(duration(hours_of(searching)) if searching else NONE))
    yield Entry(duration(hours_of(each) / len(each)) if each else NONE)
    if results.hourly:
        gpu_hours = sum(run.seconds * (run.gpus or results.share) for _, run in trained) / 3600
        yield Entry(f"{results.hourly * gpu_hours:,.2f}")


LISTED = 1000  # runs that the page lists one by one

# Fields of a result's hardware and their names in the table; the last ones are of some results only.
HARDWARE = {
    "device": "device",
    "host": "host",
    "torch": "torch",
    "python": "python of a worker",
    "ranks": "ranks of a trial",
    "gpus": "GPUs of a training function",
    "before": "device before a resume",
    "kernels": "GPU kernels",
    "gpu_share": "share of a GPU",
    "decoder": "decoder of JPEG",
}


def record_table(results: SweepResults) -> Table:
    """Return the record of a reproduction: commit, lock, code, data, hardware, versions, MLflow."""
    record = results.record
    finished = [run.result for run in results.runs if run.result]
    changed = record["changed"]
    state = f"{record['commit']}" + (f", {count(len(changed), 'changed file')}" if changed else ", nothing changed")
    rows: list[tuple[str, str]] = [("commit of this report", state if record["commit"] else "not a git checkout")]
    rows.append(("requirements.lock, SHA-256", record["lock"] or "not there"))
    rows.append(("code of these trials, now", record["code"]))
    rows.append(("code of the results", "; ".join(shares(str(result["code"]) for result in finished))))
    prints: dict[str, set[str]] = {}
    for run in results.runs:
        if run.result:
            prints.setdefault(run.trial.cell.dataset, set()).add(str(run.result["fingerprint"]) or "not recorded")
    rows += [(f"data {name}", text) for name, fingerprints in prints.items() for text in sorted(fingerprints)]
    for field, name in HARDWARE.items():
        rows += [(name, text) for text in shares(str(result["hardware"].get(field, "")) for result in finished)]
    rows += [("precision", text) for text in shares(str(result["precision"]) for result in finished)]
    rows.append(("made with", f"Python {record['python']}, {_versions(record['packages'])}"))
    return Table(
        "provenance",
        "Reproducibility record",
        ("what", ""),
        "ll",
        tuple((Entry(what, tone="muted"), Entry(text)) for what, text in rows),
    )


def _versions(packages: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} {version}" for name, version in sorted(packages.items()))


def run_tables(results: SweepResults) -> list[Table]:
    """Return every run of each cell: key, name, state, its errors and its MLflow run.

    Beyond LISTED runs, those of searches are left to runs.csv; beyond as many others, the last of each cell too.
    """
    tables = []
    listed = {cell_results.cell.key: cell_results.runs for cell_results in results.cells if cell_results.runs}
    if len(results.runs) > LISTED:
        for cell_results in results.cells:
            left_out = cell_results.searched - cell_results.first_phases
            listed[cell_results.cell.key] = tuple(run for run in cell_results.runs if run.key not in left_out)
    most = LISTED // len(listed) if sum(map(len, listed.values())) > LISTED else LISTED
    for cell_results in results.cells:
        if cell_results.runs:
            tables.append(_runs(cell_results, listed[cell_results.cell.key][:most]))
    return tables


def _runs(cell_results: CellResults, listed: Sequence[Run]) -> Table:
    metric = cell_results.cell.metric
    names = (metric.words, metric.held_out_words) if metric.is_own else (f"test {NAMES[metric.final]}", "hold-out")
    names = (names[0], f"{names[1]}, best epoch")
    columns = ("trial", "", "state", *names, "epochs", "time", "MLflow run")
    rows = tuple(
        (
            Entry(run.key, runs=(run,)),
            Entry(run.trial.label + ("" if run.trial.phase != "match" else f", {run.trial.match}"), tone="muted"),
            Entry(state_of(run)),
            *(_value(run, name)._replace(metric="") for name in (metric.final, metric.held_out)),
            Entry(f"{run.result['epochs']:g}" if run.result else NONE),
            Entry(duration(run.seconds / 3600) if run.result or run.seconds else NONE),
            Entry(run.mlflow or NONE, tone="muted"),
        )
        for run in listed
    )
    others = len(cell_results.runs) - len(listed)
    notes = (f"{count(others, 'further run')} of this cell: runs.csv.",) if others else ()
    return Table(f"cell-{cell_results.cell.key}", cell_results.cell.label, columns, "lllrrrrl", rows, notes)


def _value(run: Run, name: str) -> Entry:
    value = run.metrics.get(name, math.nan)
    return Entry(plain(value, digits(name, value)), metric=name)


def state_of(run: Run) -> str:
    """Return how a run stands: its ending where it is done, else its state."""
    status = ending_word(run.result) if run.result else run.state
    return f"{status}, stale" if run.state == "stale" else status
