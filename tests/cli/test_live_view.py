"""What a person is told of a running sweep: totals that hold, parts of each cell, and what they come to."""

import dataclasses
import shutil
from pathlib import Path

import pytest

from sweeps.cli.live_layout import CellRow, RunningTrial
from sweeps.cli.live_view import LiveView, SweepProgress
from sweeps.experiment.cell_trials import cell_trials, planned
from sweeps.experiment.code_fingerprint import code_fingerprint
from sweeps.experiment.plan import plan
from sweeps.experiment.search import Search
from sweeps.experiment.sweep import Protocol, Sweep
from sweeps.experiment.trial import Trial
from sweeps.store.ledger import Json, Ledger
from tests.support.questions import SWEEP as UNTIL_DECIDED
from tests.support.sweeps import BASELINE, CRELU

SWEEP = Sweep("s", "demo", (BASELINE, CRELU), Protocol(ablation=False, single=True, folds=2, search=Search(2, wave=2)))


def result(error: float, tested: bool, status: str = "finished") -> Json:
    metrics = {"best/val_top1_err": error, "best/epoch": 2.0} | ({"final/test_top1_err": error} if tested else {})
    return {"metrics": metrics, "status": status, "restarts": 0, "seconds": 3600.0, "epochs": 2, "curve": [error]}


def test_total_stays_what_the_plan_said_while_searches_become_seeds_and_folds(tmp_path: Path) -> None:
    sweep_plan = plan(SWEEP, Ledger(str(tmp_path)), {})
    progress = SweepProgress(sweep_plan)
    results = dict[str, Json]()
    told = []
    assert sweep_plan.total == 2 * (2 + 1 + 2)
    while True:
        parts = [cell_trials(cell, SWEEP.protocol, results) for cell in SWEEP.cells]
        planned = [trial for part in parts for trial in (*part.search, *part.protocol)]
        progress.update_plan(planned, [trial for part in parts for trial in part.pending])
        left = [trial for trial in planned if trial.key not in results]
        if not left:
            break
        progress.apply("started", left[0], {})
        told.append(progress.counts())
        results[left[0].key] = result(30.0, left[0].phase in ("match", "fold"))
        progress.apply("done", left[0], results[left[0].key])
    assert [words.split(",")[0] for words in told] == [f"{done}/10 done" for done in range(10)]


def test_row_tells_parts_averages_and_marks(tmp_path: Path) -> None:
    sweep_plan = plan(SWEEP, Ledger(str(tmp_path)), {})
    progress = SweepProgress(sweep_plan)
    folds = [Trial(BASELINE, "fold", 0, (), fold, 2) for fold in range(2)]
    progress.update_plan([standing.trial for standing in sweep_plan.statuses] + folds, [])
    for trial, error, status in zip(folds, (20.0, 24.0), ("finished", "diverged"), strict=True):
        progress.apply("done", trial, result(error, True, status))
    progress.apply("started", sweep_plan.of(BASELINE)[0].trial, {})
    running = RunningTrial(sweep_plan.of(BASELINE)[0].trial.label, 0, BASELINE.recipe.epochs)
    assert progress.rows()[0] == CellRow(
        label="Baseline",
        parts="search 0/2 folds 2/2",
        done=2,
        planned=4,
        running=(running,),
        best="20.00",
        tested="folds 22.00 ± 2.00 (n 2)",
        marks="diverged",
    )
    assert progress.seconds == pytest.approx(7200.0)


def row(epoch: int, error: float | None, train: float = 1.0) -> Json:
    return {"epoch": epoch, "train/top1_err": train, "sys/images_per_s": 100.0} | (
        {} if error is None else {"val/top1_err": error}
    )


def test_best_hold_out_error_is_the_least_so_far(tmp_path: Path) -> None:
    sweep_plan = plan(SWEEP, Ledger(str(tmp_path)), {})
    progress = SweepProgress(sweep_plan)
    (first, second) = [status.trial for status in sweep_plan.of(BASELINE)]
    for epoch, error in enumerate((50.0, 30.0, 40.0), 1):
        progress.apply("epoch", first, row(epoch, error))
    assert progress.rows()[0].best == "30.00"
    # A training on everything holds nothing out: its training error is no hold-out error.
    full_trial = Trial(BASELINE, "match", 1000, match="epoch", reference=first.key)
    progress.apply("started", full_trial, {})
    progress.apply("epoch", full_trial, row(1, None, 2.0))
    assert progress.rows()[0].best == "30.00"
    progress.apply("epoch", second, row(1, 20.0))
    assert progress.rows()[0].best == "20.00"
    # It diverged, and is begun again: what came before is no result of it.
    progress.apply("epoch", second, row(1, 60.0))
    progress.apply("epoch", second, row(2, float("nan")))
    assert progress.rows()[0].best == "30.00"
    progress.apply("done", first, result(35.0, False, "diverged"))
    assert progress.rows()[0].best == "35.00"


@pytest.mark.parametrize("folds", [0, 2])
def test_best_hold_out_error_is_of_a_trial_within_the_limits_of_its_search(folds: int, tmp_path: Path) -> None:
    search = Search(2, wave=2, folds=folds, limits={"seconds": 1000.0})
    sweep_plan = plan(dataclasses.replace(SWEEP, protocol=Protocol(search=search)), Ledger(str(tmp_path)), {})
    progress = SweepProgress(sweep_plan)
    trials = [status.trial for status in sweep_plan.of(BASELINE)]
    slow, within = trials[: len(trials) // 2], trials[len(trials) // 2 :]
    for trial in slow:  # of folds the first one is judged by
        seconds = 1001.0 if trial.fold == 0 else 10.0
        progress.apply("done", trial, result(20.0, False) | {"seconds": seconds})
    assert progress.rows()[0].best == ""
    statuses = tuple(status._replace(result=progress.results.get(status.trial.key)) for status in sweep_plan.statuses)
    assert SweepProgress(dataclasses.replace(sweep_plan, statuses=statuses)).rows()[0].best == ""  # after a restart
    for trial in within:
        progress.apply("done", trial, result(30.0, False) | {"seconds": 1000.0})
    assert progress.rows()[0].best == "30.00"
    # Another seed is no trial of the search, whose limits are on what it chooses.
    seed = Trial(BASELINE, "holdout", seed=search.seed + 1)
    progress.update_plan([*trials, seed], [])
    progress.apply("done", seed, result(25.0, False) | {"seconds": 2000.0})
    assert progress.rows()[0].best == "25.00"


def test_trial_that_was_begun_shows_where_it_goes_on(tmp_path: Path) -> None:
    sweep_plan = plan(SWEEP, Ledger(str(tmp_path)), {})
    progress = SweepProgress(sweep_plan)
    (trial, other) = [status.trial for status in sweep_plan.of(BASELINE)]
    state = {"code": code_fingerprint(BASELINE.net), "epoch": 3, "history": [row(1, 45.0), row(2, 25.0), row(3, 28.0)]}
    progress.resume(trial, state)
    progress.resume(other, state | {"code": "older"})  # it begins anew
    assert progress.resumed([trial]) == "1 interrupted training goes on: 1 after epoch 3"
    assert progress.resumed([trial, other]) == (
        "2 interrupted trainings go on: 1 from the start (1 since the code has changed), 1 after epoch 3"
    )
    for begun in (trial, other):
        progress.apply("started", begun, {})
    shown = progress.rows()[0]
    epochs = BASELINE.recipe.epochs
    assert shown.running == (
        RunningTrial(trial.label, 3, epochs, curve=(45.0, 25.0, 28.0)),
        RunningTrial(other.label, 0, epochs),
    )
    assert shown.best == "25.00"
    assert dict(progress.remaining())[trial] == 3


def test_trials_of_a_cell_that_is_given_up_are_no_work_to_come(tmp_path: Path) -> None:
    protocol = Protocol(seeds=4)
    progress = SweepProgress(plan(Sweep("s", "demo", (BASELINE, CRELU), protocol), Ledger(str(tmp_path)), {}))
    results = {}
    for seed in range(2):
        trial = Trial(BASELINE, "ablation", seed)
        results[trial.key] = result(90.0, True, "diverged")
        progress.apply("done", trial, results[trial.key])
    parts = [cell_trials(cell, protocol, results) for cell in (BASELINE, CRELU)]
    progress.update_plan(planned(parts), [])
    assert [(trial.cell.label, done) for trial, done in progress.remaining()] == [(CRELU.label, 0)] * 4
    assert progress.counts().startswith("2/8 done")
    assert [row.state for row in progress.rows()] == ["done", "waits"]


def test_cell_waits_for_what_is_paused_until_nothing_more_of_it_is_to_come(tmp_path: Path) -> None:
    progress = SweepProgress(plan(Sweep("s", "demo", (BASELINE,), Protocol(seeds=2)), Ledger(str(tmp_path)), {}))
    first, second = (Trial(BASELINE, "ablation", seed) for seed in range(2))
    progress.apply("paused", first, {"epoch": 1, "curve": [50.0]})
    assert progress.rows()[0].state == "waits"
    progress.apply("done", second, result(20.0, True))
    assert progress.rows()[0].state == "done"
    progress.pending = [second]
    assert progress.rows()[0].state == "waits"


def test_training_that_measured_nothing_says_no_number(tmp_path: Path) -> None:
    progress = SweepProgress(plan(SWEEP, Ledger(str(tmp_path)), {}))
    lost = result(float("nan"), True, "diverged")
    assert "s0: done after 2 epochs, 3600 s (diverged)" in progress.apply("done", Trial(BASELINE), lost)


def test_trial_that_was_left_after_an_error_says_which(tmp_path: Path) -> None:
    progress = SweepProgress(plan(SWEEP, Ledger(str(tmp_path)), {}))
    lost = {"error": "the worker process died 5 times", "final": False}
    assert progress.apply("left", Trial(BASELINE), lost).endswith(
        "left, to be resumed (the worker process died 5 times)"
    )
    assert progress.apply("left", Trial(BASELINE), {}).endswith("left, to be resumed")


def test_head_tells_how_many_runs_mlflow_lacks_while_they_are_sent(tmp_path: Path) -> None:
    view = LiveView(plan(SWEEP, Ledger(str(tmp_path)), {}), live=False, quiet=True)
    assert [part for part in view._picture().head if "MLflow" in part] == []
    view.waiting = lambda: 2
    assert "sending 2 runs to MLflow" in view._picture().head


def test_head_counts_the_questions_that_are_decided(tmp_path: Path) -> None:
    progress = SweepProgress(plan(UNTIL_DECIDED, Ledger(str(tmp_path)), {}))
    assert progress.count_words()[2] == "0 of 2 questions decided"
    progress.decided = lambda: 1
    assert progress.count_words()[2] == "1 of 2 questions decided"
    assert not any("question" in word for word in SweepProgress(plan(SWEEP, Ledger(str(tmp_path)), {})).count_words())


def test_nearly_full_disk_is_told_once_and_no_trial_is_said_to_wait_that_trains(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    view = LiveView(plan(SWEEP, Ledger(str(tmp_path)), {}), live=False, quiet=False, disk=str(tmp_path))
    usage = shutil.disk_usage(tmp_path)
    for free in (9e6, 1.25e6, 1e6, 9e6, 9e6):
        monkeypatch.setattr(shutil, "disk_usage", lambda _, free=free: usage._replace(free=int(free)))
        view._watch_disk()
    nearly_full, again = (line.partition(" ")[2] for line in capsys.readouterr().err.splitlines())
    assert nearly_full == (
        f"the disk of {tmp_path} has 1.2 MB free: a trial whose state does not fit waits to save it, and goes on when "
        "there is room"
    )
    assert again == f"the disk of {tmp_path} has room again"
