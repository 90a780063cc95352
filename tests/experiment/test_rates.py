"""The learning rate is chosen once, on a baseline's hold-out, before all else; then all cells like it have it."""

import dataclasses
import json

import pytest

from sweeps import cifar_width, full_grid
from sweeps.cli.options import parser
from sweeps.cli.settings import protocol_of
from sweeps.experiment.cell_trials import rate_choices, sweep_trials
from sweeps.experiment.plan import plan, plan_to_json
from sweeps.experiment.rates import RateStudy, choose
from sweeps.experiment.recipe import SPRINGENBERG, VGG
from sweeps.experiment.search import Search
from sweeps.experiment.sweep import Protocol, Sweep, sweep_from_json
from sweeps.experiment.trial import Cell, Trial, trial_from_json
from sweeps.store.ledger import Json, Ledger
from sweeps.tracking.layout import params_of
from tests.support.sweeps import BASELINE, CRELU

STUDY = RateStudy("Baseline*", (0.25, 0.1, 0.05))
SWEEP = Sweep("s", "paper", (CRELU, BASELINE), Protocol(seeds=2, rates=STUDY))
TRIALS = STUDY.trials(BASELINE)


def result(error: float, status: str = "finished") -> Json:
    return {"status": status, "metrics": {"best/val_top1_err": error}, "curve": []}


def results(*errors: float) -> dict[str, Json]:
    return {trial.key: result(error) for trial, error in zip(TRIALS, errors, strict=False)}


def test_rate_is_part_of_the_recipe_that_is_trained_and_of_the_key() -> None:
    trial = Trial(BASELINE, rate=0.1)
    cell = dataclasses.replace(BASELINE, recipe=dataclasses.replace(BASELINE.recipe, lr=0.1))
    assert (trial.recipe, trial.key) == (cell.recipe, Trial(cell).key)
    assert Trial(BASELINE, rate=BASELINE.recipe.lr).key == Trial(BASELINE).key != trial.key
    assert Trial(BASELINE).recipe is BASELINE.recipe
    assert (trial.label, params_of(trial, "a")["lr"]) == ("s0 lr=0.1", 0.1)
    value = json.loads(json.dumps(trial.to_json()))
    assert trial_from_json(value) == trial
    older = Trial(BASELINE).to_json()
    del older["rate"]
    assert trial_from_json(older) == Trial(BASELINE)


def test_study_trains_the_baseline_with_its_declared_dropout_once_a_rate() -> None:
    assert [(t.cell, t.phase, t.seed, t.dropout, t.rate) for t in TRIALS] == [
        (BASELINE, "holdout", 0, (), rate) for rate in (0.25, 0.1, 0.05)
    ]
    assert SPRINGENBERG == (0.25, 0.1, 0.05, 0.01)
    with pytest.raises(ValueError, match="rates above 0"):
        RateStudy("Baseline", ())


@pytest.mark.parametrize(
    ("errors", "rate"), [((30.0, 20.0, 25.0), 0.1), ((20.0, 20.0, 25.0), 0.25), ((30.0, 25.0, 25.0), 0.1)]
)
def test_best_hold_out_error_wins_and_the_larger_rate_of_equal_ones(errors: tuple[float, ...], rate: float) -> None:
    assert choose(STUDY, BASELINE, results(*errors), ()).rate == rate


def test_rate_that_diverges_is_no_candidate_and_none_is_a_sentence() -> None:
    first, second, third = (trial.key for trial in TRIALS)
    known = {first: result(10.0, "diverged"), second: result(40.0)}
    assert choose(STUDY, BASELINE, known, ()).rate is None
    assert choose(STUDY, BASELINE, known, {third}).rate == 0.1
    lost = {first: result(90.0, "diverged"), second: result(90.0, "diverged")}
    choice = choose(STUDY, BASELINE, lost, {third})
    assert (choice.rate, choice.why) == (None, "Baseline trains at none of the learning rates 0.25, 0.1, 0.05")


@pytest.mark.parametrize("search", [None, Search(3, wave=3), Search(3, wave=3, folds=2)])
def test_all_other_trials_wait_for_the_rate_and_then_have_it(search: Search | None) -> None:
    sweep = dataclasses.replace(
        SWEEP, protocol=dataclasses.replace(SWEEP.protocol, folds=2, single=True, search=search)
    )
    waiting = sweep_trials(sweep, {})
    assert list(waiting[""].rates) == list(TRIALS)
    known = [trial for key, cell in waiting.items() if key for trial in (*cell.search, *cell.protocol)]
    assert known == []
    assert all(cell.pending for key, cell in waiting.items() if key)
    after = sweep_trials(sweep, results(30.0, 20.0, 25.0))
    begun = [trial for key, cell in after.items() if key for trial in (*cell.search, *cell.protocol)]
    assert {trial.cell for trial in begun} == {BASELINE, CRELU}
    assert {trial.recipe.lr for trial in begun} == {0.1}


def test_plan_shows_the_study_and_part_of_a_sweep_still_has_it(tmp_path: object) -> None:
    ledger = Ledger(str(tmp_path))
    part = SWEEP.only(["CReLU*"])
    today = plan(part, ledger, {})
    assert [status.trial for status in today.statuses] == list(TRIALS)
    assert today.to_do == list(TRIALS)
    assert today.studied == {trial.key for trial in TRIALS}
    assert (today.total, today.rates) == (3 + 2, {CRELU.key: None})
    for trial in TRIALS:
        ledger.commit(trial.key, result(90.0, "diverged"))
    lost = plan(SWEEP, ledger, {})
    assert [status.state for status in lost.of(CRELU)] == ["skipped"] * 2
    assert set(lost.given_up.values()) == {"Baseline trains at none of the learning rates 0.25, 0.1, 0.05"}
    assert lost.to_do == []
    assert sweep_from_json(json.loads(json.dumps(plan_to_json(lost)))) == SWEEP


def test_part_of_a_sweep_without_its_baseline_trains_at_the_rate_that_the_study_chose(tmp_path: object) -> None:
    ledger = Ledger(str(tmp_path))
    part = SWEEP.only(["CReLU*"])
    for trial, known in results(30.0, 20.0, 25.0).items():
        ledger.commit(trial, known)
    today = plan(part, ledger, {})
    assert [status.state for status in today.statuses] == ["stale"] * 3 + ["new"] * 2
    assert {trial.recipe.lr for trial in today.to_do} == {0.1}
    assert part.trained == (CRELU, BASELINE)
    assert SWEEP.trained == (CRELU, BASELINE)
    assert dataclasses.replace(part, protocol=Protocol(seeds=2)).trained == (CRELU,)


def test_part_of_a_sweep_studies_the_baseline_that_the_whole_one_studies() -> None:
    sweep = dataclasses.replace(SWEEP, protocol=Protocol(seeds=2, rates=RateStudy("*", STUDY.rates)))
    part = sweep.only(["Baseline"])
    assert (part.cells, part.others) == ((BASELINE,), (CRELU,))
    assert rate_choices(part, {}, ())[BASELINE.key] == rate_choices(sweep, {}, ())[BASELINE.key]
    assert {trial.cell for trial in sweep_trials(part, {})[""].rates} == {CRELU}
    assert part.trained == (BASELINE, CRELU)
    assert part.only(["*"]).everyone == sweep.everyone == sweep.cells
    assert sweep.only(["*"]) == sweep


def test_study_is_trained_whole_where_the_search_is_halved(tmp_path: object) -> None:
    protocol = Protocol(rates=STUDY, search=Search(9, halving=3))
    today = plan(dataclasses.replace(SWEEP, protocol=protocol), Ledger(str(tmp_path)), {})
    assert [today.expected_epochs(trial) for trial in TRIALS] == [BASELINE.recipe.epochs] * 3
    assert today.expected_epochs(Trial(CRELU, "holdout")) < BASELINE.recipe.epochs


def test_what_may_train_a_cell_whose_rates_all_diverged_is_another_rate(tmp_path: object) -> None:
    ledger = Ledger(str(tmp_path))
    for trial in TRIALS:
        ledger.commit(trial.key, result(90.0, "diverged"))
    lost = plan(SWEEP, ledger, {})
    assert not lost.may_retry
    assert lost.remedy(CRELU.label) == "--set recipe.lr=RATE trains them at another learning rate"
    ledger.forget(TRIALS[0].key)
    ledger.add_attempt(TRIALS[0].key, {"error": "out of memory", "final": True})
    assert plan(SWEEP, ledger, {}).may_retry


def test_rates_that_diverge_do_not_give_the_baseline_up(tmp_path: object) -> None:
    ledger = Ledger(str(tmp_path))
    for trial, status in zip(TRIALS, ("diverged", "diverged", "finished"), strict=True):
        ledger.commit(trial.key, result(30.0, status))
    today = plan(SWEEP, ledger, {})
    assert (today.given_up, today.lost(BASELINE)) == ({}, "")
    assert {(trial.phase, trial.recipe.lr) for trial in today.to_do} == {("ablation", 0.05)}


def test_cells_of_other_data_or_recipe_have_studies_of_their_own_or_none() -> None:
    other = dataclasses.replace(BASELINE, label="Baseline 100", dataset="cifar100")
    vgg = Cell("VGG", BASELINE.net, "cifar10", VGG)
    sweep = dataclasses.replace(SWEEP, cells=(BASELINE, other, vgg))
    choices = rate_choices(sweep, results(30.0, 20.0, 25.0), ())
    assert {key: choice.rate for key, choice in choices.items()} == {BASELINE.key: 0.1, other.key: None}
    assert {trial.recipe.lr for trial in sweep_trials(sweep, {})[vgg.key].protocol} == {VGG.lr}


def test_pages_of_the_all_convolutional_nets_study_their_rate() -> None:
    for page, count in ((cifar_width, 10), (full_grid, 2 * (1 + 6 * 5))):
        sweep = Sweep("s", "paper", page.CELLS, page.PROTOCOL)
        assert len(sweep_trials(sweep, {})[""].rates) == 2 * 4
        assert len(rate_choices(sweep, {}, ())) == count


@pytest.mark.parametrize(
    ("profile", "words", "has"),
    [("paper", "", True), ("mini", "", True), ("demo", "", False), ("smoke", "", False),
     ("paper", "--set recipe.lr=0.1", False), ("paper", "--set recipe.epochs=3", True)],
)  # fmt: skip
def test_small_profiles_and_a_rate_that_is_said_do_without(profile: str, words: str, has: bool) -> None:
    options = parser("cifar_width", "").parse_args(words.split())
    assert (protocol_of(cifar_width.PROTOCOL, profile, options).rates is not None) == has
