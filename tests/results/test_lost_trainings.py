"""One diverged fold, one failed seed, one dead cell: every view of a sweep counts them and says so alike."""

import argparse
import json
import shutil
import warnings
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from sweeps.cifar_width import CELLS
from sweeps.cli.status import status
from sweeps.experiment.metrics import AVERAGE, TOP1, VOTE, ending_word, has_diverged, lost_text
from sweeps.experiment.plan import current_plan, plan
from sweeps.experiment.sweep import Protocol, Sweep
from sweeps.experiment.trial import Trial
from sweeps.report import mlflow_notes, terminal
from sweeps.report.contents import document
from sweeps.report.render.document import Document, Entry
from sweeps.report.tidy import tidy
from sweeps.results.cell_numbers import groups, number
from sweeps.results.claims import judge_claims
from sweeps.results.evidence import CellResults, SweepResults, read_sweep
from sweeps.results.marks import lost_marks, marks
from sweeps.results.statistics import votes
from sweeps.store.ledger import Ledger
from sweeps.tracking.cell_runs import publish_report
from sweeps.tracking.layout import NOTE, trainings_digest
from sweeps.tracking.mlflow_runs import MlflowRuns
from sweeps.tracking.run_index import Store
from tests.support.empty_store import empty_store
from tests.support.sweeps import Made, make, only, scores

N, CLASSES, CHANCE = 200, 10, 90.0
PROTOCOL = Protocol(seeds=3, folds=4)
SWEEP = Sweep("lost", "paper", only(CELLS, "cifar10")[:4], PROTOCOL)
BASELINE, DOUBLE, AVR, CRELU = SWEEP.cells
DIVERGED = Made(
    {TOP1: CHANCE}, curve=[], status="diverged", ending="diverged", restarts=3, events=("the loss is not a number",)
)
DEAD = DIVERGED._replace(ending="dead", events=("the net is dead after epoch 2",))
# What each cell's row says, in every view.
LOST = {
    "Baseline": "",
    "Double": "1 of 4 folds diverged",
    "AVR": "1 of 3 seeds failed",
    "CReLU": "3 of 3 seeds died, 4 of 4 folds died",
}


def outcome(trial: Trial) -> Made | None:
    """Return what became of a trial: most train, a fold of Double diverges, a seed of AVR fails, CReLU is dead."""
    cell = trial.cell
    if cell is CRELU:
        return DEAD
    if cell is DOUBLE and trial.phase == "fold" and trial.fold == 2:
        return DIVERGED
    if cell is AVR and trial.phase == "ablation" and trial.seed == 1:
        return None
    return trained(trial)


def trained(trial: Trial) -> Made:
    """Return what a training comes to that ends well, by its seed and fold."""
    wrong = np.arange(10 * trial.fold, 20 + 10 * trial.fold + 2 * trial.seed)
    return Made({TOP1: 100 * len(wrong) / N}, scores=scores(np.arange(N) % CLASSES, wrong, CLASSES))


def made(folder: Path, outcome: Callable[[Trial], Made | None]) -> Ledger:
    """Return the ledger of an output folder with the sweep; the trial without an outcome has failed for good."""
    ledger = Ledger.in_output(str(folder))
    make(ledger, SWEEP, outcome)
    failed = next(status.trial for status in current_plan(ledger, "lost").statuses if status.result is None)
    ledger.add_attempt(failed.key, {"error": "RuntimeError: gone", "final": True})
    return ledger


@pytest.fixture(scope="module")
def output(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the output folder of the sweep."""
    folder = tmp_path_factory.mktemp("lost")
    made(folder, outcome)
    return folder


@pytest.fixture(scope="module")
def results(output: Path) -> SweepResults:
    """Return its results."""
    return read_sweep(Ledger.in_output(str(output)), "lost")


@pytest.fixture(scope="module")
def page(output: Path, results: SweepResults) -> Document:
    """Return its report."""
    return document(Ledger.in_output(str(output)), results)


def names() -> Iterator[tuple[str, str]]:
    for cell in SWEEP.cells:
        yield cell.label, LOST[cell.row]


def of(results: SweepResults, row: str) -> CellResults:
    return next(cell for cell in results.cells if cell.cell.row == row)


def test_status_says_what_was_lost(output: Path, capsys: pytest.CaptureFixture[str]) -> None:
    status(argparse.Namespace(output=str(output), sweep=None, watch=False, json=False))
    lines = capsys.readouterr().out.splitlines()
    for label, lost in names():
        (line,) = (line for line in lines if line.startswith(label + " "))
        assert line.endswith(f"; {lost}") if lost else not any(word in line for word in ("diverged", "died", "failed"))
    status(argparse.Namespace(output=str(output), sweep=None, watch=False, json=True))
    cells = json.loads(capsys.readouterr().out)["lost"]["cells"]
    assert {cell["label"]: cell["lost"] for cell in cells} == dict(names())


def test_terminal_table_says_what_was_lost(output: Path) -> None:
    ledger = Ledger.in_output(str(output))
    plan = current_plan(ledger, "lost")
    rows = terminal.lines(plan, {"cifar10": CLASSES}, ledger)
    assert {row.label: row.lost for row in rows} == dict(names())
    assert all(lost in terminal.text(plan, rows, 240, colour=False) for _, lost in names())
    by_row = {row.label.split()[0]: row.numbers for row in rows}
    assert (by_row["Double"][VOTE].n, by_row["Double"][AVERAGE].n, by_row["AVR"][TOP1].n) == (4, 4, 2)
    assert by_row["CReLU"][VOTE][:3:2] == by_row["CReLU"][AVERAGE][:3:2] == (CHANCE, 4)


def test_diverged_network_votes_as_a_guess_and_counts(results: SweepResults) -> None:
    vote = number(of(results, "Double"), VOTE)
    assert (vote.average.n, len(vote.runs)) == (4, 4)
    alone = [run.decisions for run in of(results, "Double").done("fold")]
    assert sum(decisions is None for decisions in alone) == 1
    average = number(of(results, "Double"), AVERAGE).average
    assert average.n == 4
    assert average.mean == pytest.approx((10 + 10 + CHANCE + 10 + 0.01 * (0 + 1 + 3) * 100) / 4)
    dead = number(of(results, "CReLU"), VOTE)
    assert (dead.average.mean, dead.average.n) == (CHANCE, 4)


@pytest.mark.parametrize("lost", [0, 1])
def test_vote_of_one_network_and_a_guess_is_a_vote_of_two(lost: int, tmp_path: Path) -> None:
    sweep = Sweep("pair", "paper", (DOUBLE,), Protocol(ablation=False, folds=2))
    ledger = Ledger(str(tmp_path))
    table = scores(np.arange(N) % CLASSES, np.arange(30), CLASSES)
    make(ledger, sweep, lambda trial: DIVERGED if trial.fold == lost else Made({TOP1: 15.0}, scores=table))
    vote = number(read_sweep(ledger, "pair").cells[0], VOTE)
    assert (vote.average.mean, vote.average.n, len(vote.runs)) == (15.0, 2, 2)
    plan = current_plan(ledger, "pair")
    (row,) = terminal.lines(plan, {"cifar10": CLASSES}, ledger)
    assert row.numbers[VOTE] == vote.average._replace(se=row.numbers[VOTE].se)


def test_cell_that_is_given_up_is_marked_as_cut_short(tmp_path: Path) -> None:
    sweep = Sweep("given-up", "paper", (BASELINE, DOUBLE), Protocol(seeds=2, folds=3))
    ledger = Ledger(str(tmp_path))

    def outcome(trial: Trial) -> Made | None:
        if trial.cell is BASELINE:
            return Made({TOP1: 10.0 + trial.seed})
        return DIVERGED if trial.seed == trial.fold == 0 else None

    make(ledger, sweep, outcome)
    assert current_plan(ledger, "given-up").count("skipped", cell=DOUBLE) == 3
    sweep_results = read_sweep(ledger, "given-up")
    assert [lost_marks(of(sweep_results, "Double"), metric) for metric in (TOP1, AVERAGE)] == [("d", "c"), ("d", "c")]
    assert [lost_marks(of(sweep_results, "Baseline"), metric) for metric in (TOP1, AVERAGE)] == [(), ()]
    (table,) = (group for group in groups(sweep_results) if group.id == "table-1-cifar10")
    assert marks(table, of(sweep_results, "Double"), number(of(sweep_results, "Double"), AVERAGE), None) == (*"dcr1",)
    # The mark's sentence names no cause: a cell is also given up for want of a learning rate. The failures have it.
    shown = document(ledger, sweep_results)
    assert any(
        note.endswith("the failures or its search name the reason.") for note in shown.tables["table-1-cifar10"].notes
    )
    reasons = {row[4].text for row in shown.tables["failed"].rows if row[2].text == "skipped"}
    assert reasons == {run.why for run in sweep_results.runs if run.state == "skipped"} != {""}


def test_guess_changes_no_majority() -> None:
    chosen = np.asarray([[[0.0, 0.0, 4.0]], [[0.0, 3.0, 2.0]], [[0.0, 0.0, 0.0]], [[0.0, 0.0, 0.0]]])
    assert votes(chosen)["majority"].tolist() == votes(chosen[:2])["majority"].tolist() == [2]
    assert votes(chosen)["mean_softmax"].tolist() == votes(chosen[:2])["mean_softmax"].tolist()


@pytest.mark.parametrize(
    ("row", "metric", "expected"),
    [
        ("Baseline", AVERAGE, ""),
        ("Double", AVERAGE, "d"),
        ("Double", VOTE, "d"),
        ("Double", TOP1, ""),
        ("AVR", TOP1, "m"),
        ("AVR", AVERAGE, ""),
        ("CReLU", VOTE, "d"),
        ("CReLU", TOP1, "d"),
    ],
)
def test_numbers_carry_the_marks_of_their_own_trials(
    results: SweepResults, row: str, metric: str, expected: str
) -> None:
    (table,) = (group for group in groups(results) if group.id == "table-1-cifar10")
    shown = marks(table, of(results, row), number(of(results, row), metric), None)
    assert "".join(mark for mark in shown if mark in "dmci") == expected
    assert "".join(lost_marks(of(results, row), metric)) == expected


def test_report_shows_the_marks_at_numbers_and_effects(page: Document) -> None:
    table = page.tables["table-1-cifar10-effects"]
    place = table.columns.index("difference")
    marked: dict[tuple[str, str], str] = {}
    for row in table.rows:
        name, metric, difference = row[0], row[place - 1], row[place]
        assert isinstance(name, Entry)
        marked.setdefault((name.text, metric.text), "".join(difference.marks))
    assert marked["Double", "average"] == marked["Double", "vote"] == "d"
    assert (marked["AVR", "single"], marked["AVR", "average"], marked["CReLU", "single"]) == ("m", "", "d")
    notes = " ".join(page.tables["table-1-cifar10-effects"].notes)
    assert "m  missing:" in notes
    assert "d  diverged:" in notes


def test_claims_over_such_cells_are_withheld_with_the_reason(results: SweepResults) -> None:
    claims = judge_claims(results)
    used = [claim for claim in claims if any("CReLU" in (c.comparison.row, c.rival) for c in claim.compared)]
    averages = [claim for claim in used if any(c.comparison.metric == AVERAGE for c in claim.compared)]
    assert averages
    for claim in averages:
        assert "4 of 4 folds died of CReLU cifar10" in claim.withheld
        assert claim.decision == "not run"


def test_claims_say_of_one_lost_fold_or_seed_whose_it_is(tmp_path: Path) -> None:
    ledger = made(tmp_path, lambda trial: trained(trial) if trial.cell is CRELU else outcome(trial))
    lost = {
        "crelu-below-baseline-and-double": [f"1 of 4 folds diverged of {DOUBLE.label}"],
        "avr-below-baseline-elsewhere": [f"1 of 3 seeds failed of {AVR.label}"],
        "avr-no-better-over-folds-on-cifar10": [],  # all folds of both cells have trained
    }
    claims = [claim for claim in judge_claims(read_sweep(ledger, "lost")) if claim.claim.id in lost]
    labels = tuple(f" of {cell.label}" for cell in SWEEP.cells)
    said = {claim.claim.id: [why for why in claim.withheld.split("; ") if why.endswith(labels)] for claim in claims}
    assert said == lost
    assert [claim.decision for claim in claims if lost[claim.claim.id]] == ["not run"] * 2


def test_mlflow_note_and_tidy_rows_say_what_was_lost(output: Path, results: SweepResults) -> None:
    ledger = Ledger.in_output(str(output))
    runs = {cell.cell.key: "0" * 32 for cell in results.cells}
    pages = mlflow_notes.pages(results, "1", runs, "0" * 32)
    assert "1 of 4 folds diverged" in pages[DOUBLE.key].note
    assert "1 of 3 seeds failed" in pages[AVR.key].note
    assert "Of its trainings" not in pages[BASELINE.key].note
    for cell in SWEEP.cells:  # the tracker takes a note for one of other trainings unless its digest is the ledger's
        trials = [status.trial for status in current_plan(ledger, "lost").of(cell)]
        assert pages[cell.key].trainings == trainings_digest(ledger.results(trial.key for trial in trials))
    lines = [line for line in tidy(results)["effects"] if line["row"] == "Double" and line["metric"] == AVERAGE]
    assert [line["lost"] for line in lines] == [f"{DOUBLE.label}: 1 of 4 folds diverged"]


def test_mlflow_s_runs_say_what_was_lost(
    output: Path, results: SweepResults, tmp_path_factory: pytest.TempPathFactory, tmp_path: Path
) -> None:
    shutil.copytree(output, tmp_path / "output")  # what MLflow has is noted on the ledger
    shutil.copy(empty_store(tmp_path_factory), tmp_path / "mlflow.db")
    ledger = Ledger.in_output(str(tmp_path / "output"))
    trials = [status.trial for status in plan(SWEEP, ledger, {}).statuses]
    one_of_each = {become.ending if (become := outcome(trial)) else "failed": trial for trial in trials}
    store = Store(f"sqlite:///{tmp_path}/mlflow.db", "lost", f"{tmp_path}/artifacts")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what MLflow and SQLAlchemy warn about among themselves
        runs = MlflowRuns(store, ledger, SWEEP)
        for trial in one_of_each.values():
            runs.sync_trial(trial, "RUNNING")
        for cell in SWEEP.cells:
            runs.sync_cell(cell, [trial for trial in trials if trial.cell is cell])
        files = {"report.html": b"<p>lost</p>"}
        publish_report(store.uri, store.experiment, runs.owner, files, partial(mlflow_notes.pages, results))
        shown = {key: runs.client.get_run(run) for key, run in MlflowRuns(store, ledger, SWEEP).runs.items()}
    of_each = {ending: shown[trial.key] for ending, trial in one_of_each.items()}
    flags = {ending: (run.info.status, run.data.tags.get("flags")) for ending, run in of_each.items()}
    assert flags == {
        "schedule": ("FINISHED", ""),
        "diverged": ("FINISHED", "diverged,restarted:3"),
        "dead": ("FINISHED", "dead,restarted:3"),
        "failed": ("FAILED", None),
    }
    assert of_each["failed"].data.tags["error"] == "RuntimeError: gone"
    assert [of_each[ending].data.metrics.get(TOP1) for ending in ("diverged", "dead", "failed")] == [
        CHANCE,
        CHANCE,
        None,
    ]
    for cell in SWEEP.cells:
        run, metrics = shown[f"cell:{cell.key}"], shown[f"cell:{cell.key}"].data.metrics
        assert run.info.status == ("FAILED" if cell is AVR else "FINISHED")
        assert all(lost in run.data.tags[NOTE] for lost in LOST[cell.row].split(", "))
        for name, base, n in (
            (AVERAGE, "agg/test_top1_err", 4),
            (TOP1, "agg/test_top1_err_single", 2 if cell is AVR else 3),
        ):
            assert metrics[f"{base}_mean"] == pytest.approx(number(of(results, cell.row), name).average.mean)
            assert (metrics[f"{base}_n"], number(of(results, cell.row), name).average.n) == (n, n)
        assert metrics[VOTE] == pytest.approx(number(of(results, cell.row), VOTE).average.mean)


def test_what_was_lost_is_counted_by_part() -> None:
    good, bad = {"status": "finished"}, {"status": "diverged"}
    assert has_diverged(bad)
    assert not has_diverged(good)
    assert not has_diverged(None)
    folds = [("fold", "done", good)] * 7 + [("fold", "done", bad), ("fold", "failed", None), ("fold", "skipped", None)]
    assert lost_text(folds) == "1 of 10 folds diverged, 1 failed, 1 skipped"
    died = ("fold", "done", {**bad, "ending": "dead"})
    assert lost_text([*folds[:7], died, *folds[8:]]) == "1 of 10 folds died, 1 failed, 1 skipped"
    assert [ending_word(result) for result in (good, bad, died[2])] == ["finished", "diverged", "dead"]
    assert lost_text([("ablation", "failed", None)]) == "1 of 1 seed failed"
    assert lost_text([("inner", "failed", None), ("fold", "new", None), ("fold", "stale", good)]) == ""
