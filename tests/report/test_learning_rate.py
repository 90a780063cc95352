"""A study of the learning rate in the report: each rate that was tried, its hold-out error, and which was chosen."""

from pathlib import Path

import pytest

from sweeps.experiment.rates import RateStudy
from sweeps.experiment.sweep import Protocol, Sweep
from sweeps.experiment.trial import Trial
from sweeps.report import record_tables
from sweeps.report.contents import document
from sweeps.results import capsule
from sweeps.results.evidence import read_sweep
from sweeps.store.integrity import note_damage
from sweeps.store.ledger import Ledger
from tests.support.sweeps import BASELINE, CRELU, Made, finish, make

RATES = (0.25, 0.1, 0.05, 0.01)
LOST = Made({"best/val_top1_err": 90.0}, curve=[], status="diverged", ending="diverged")
SWEEP = Sweep("rates", "paper", (CRELU, BASELINE), Protocol(rates=RateStudy("Baseline", RATES)))
NONE_TRAINS = "Baseline trains at none of the learning rates 0.25, 0.1, 0.05, 0.01"


@pytest.mark.parametrize(
    ("errors", "words"),
    [
        ((None, 20.0, 15.0, 30.0), ("–", "–", "chosen", "–")),
        ((20.0, 20.0, 25.0, 30.0), ("chosen", "–", "–", "–")),
        ((None, None, None, None), (NONE_TRAINS,) * 4),
    ],
)
def test_rates_stand_with_their_errors_and_the_chosen_one(
    errors: tuple[float | None, ...], words: tuple[str, ...], tmp_path: Path
) -> None:
    def outcome(trial: Trial) -> Made:
        if trial.phase != "holdout":
            return Made({"final/test_top1_err": 12.0})
        error = errors[RATES.index(trial.rate)]
        return LOST if error is None else Made({}, curve=[50.0, error])

    ledger = Ledger(str(tmp_path))
    make(ledger, SWEEP, outcome)
    page = document(ledger, read_sweep(ledger, "rates"))
    rows = [[entry.text for entry in row] for row in page.tables["learning-rate"].rows]
    assert [row[:2] for row in rows] == [["Baseline", f"{rate:g}"] for rate in RATES]
    assert [row[2] for row in rows] == [f"{90.0 if error is None else error:.2f}" for error in errors]
    assert [row[3] for row in rows] == ["diverged" if error is None else "finished" for error in errors]
    assert tuple(row[4] for row in rows) == words
    assert "Learning rate" in [section.heading for section in page.sections]


def test_rate_of_a_training_whose_file_was_damaged_since_stays_the_chosen_one(tmp_path: Path) -> None:
    errors = dict(zip(RATES, (25.0, 20.0, 15.0, 30.0), strict=True))

    def outcome(trial: Trial) -> Made:
        if trial.phase != "holdout":
            return Made({"final/test_top1_err": 12.0})
        return Made({}, curve=[50.0, errors[trial.rate]])

    ledger = Ledger(str(tmp_path))
    make(ledger, SWEEP, outcome)
    other = Trial(BASELINE, "holdout", seed=7)  # of another sweep
    finish(ledger, other, Made({}))
    for trial in (Trial(BASELINE, "holdout", rate=0.05), other):
        ledger.write(f"trials/{trial.key}/history.json", b"torn")
        note_damage(ledger, trial.key, f"trials/{trial.key}/history.json is damaged")
    results = read_sweep(ledger, "rates")
    assert list(results.damaged) == [Trial(BASELINE, "holdout", rate=0.05).key]
    capsule.write(ledger, results, {}, tmp_path / "a.zip")
    with capsule.opened(tmp_path / "a.zip") as copy:
        for page in (document(ledger, results), document(copy, read_sweep(copy, "rates"))):
            rows = page.tables["learning-rate"].rows
            assert [row[4].text for row in rows] == ["–", "–", "chosen", "–"]
            assert [row[3].text for row in rows] == ["finished", "finished", "failed", "finished"]


def test_sweep_without_a_study_has_no_such_table(tmp_path: Path) -> None:
    ledger = Ledger(str(tmp_path))
    make(ledger, Sweep("plain", "paper", (BASELINE,)), lambda _: Made({"final/test_top1_err": 12.0}))
    assert "learning-rate" not in document(ledger, read_sweep(ledger, "plain")).tables


def costs(folder: Path, protocol: Protocol) -> tuple[dict[str, list[str]], tuple[str, ...]]:
    """Return a sweep's table of costs, whose first phases take an hour each and others 12 minutes, and its notes."""

    def outcome(trial: Trial) -> Made:
        if trial.phase == "holdout":
            return Made({}, curve=[50.0, 20.0 - trial.rate], seconds=3600)
        return Made({"final/test_top1_err": 12.0}, curve=[], seconds=720)

    ledger = Ledger(str(folder))
    make(ledger, Sweep("rates", "paper", (CRELU, BASELINE), protocol), outcome)
    table = document(ledger, read_sweep(ledger, "rates")).tables["costs"]
    return {row[0].text: [entry.text for entry in row[1:]] for row in table.rows}, table.notes


def test_study_of_the_rate_is_no_training_of_the_baseline_s_own(tmp_path: Path) -> None:
    rows, notes = costs(tmp_path, Protocol(seeds=2, rates=RateStudy("Baseline", RATES)))
    assert rows == {
        CRELU.label: ["2", "24.0 min", "0", "–", "12.0 min"],
        "Baseline": ["2", "24.0 min", "4", "4.0 h", "12.0 min"],
        "all": ["4", "48.0 min", "4", "4.0 h", "12.0 min"],
    }
    assert notes[1:] == ("A study of the learning rate counts as search.",)


def test_first_phase_that_a_study_trained_counts_once_and_in_the_time_of_one_training(tmp_path: Path) -> None:
    rows, notes = costs(tmp_path, Protocol(2, ablation=False, single=True, rates=RateStudy("Baseline", RATES)))
    assert rows == {
        CRELU.label: ["4", "2.4 h", "0", "–", "36.0 min"],
        "Baseline": ["3", "1.4 h", "4", "4.0 h", "36.0 min"],
        "all": ["7", "3.8 h", "4", "4.0 h", "36.0 min"],
    }
    assert notes[2] == "A search trial that is a first phase too counts as search, and in the time of one training."
    rows, notes = costs(tmp_path / "plain", Protocol())
    assert len(notes) == 1


def test_long_list_of_runs_leaves_out_the_study_and_not_the_first_phase_from_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    costs(tmp_path, Protocol(2, ablation=False, single=True, rates=RateStudy("Baseline", RATES)))
    monkeypatch.setattr(record_tables, "LISTED", 10)
    tables = record_tables.run_tables(read_sweep(Ledger(str(tmp_path)), "rates"))
    assert [len(table.rows) for table in tables] == [4, 4]
