"""What each phase of a trial trains on, chooses by and measures, and in which order a protocol's trials start."""

import pytest

from crelu_models.tables import S2
from sweeps.experiment.cell_trials import cell_trials, expand
from sweeps.experiment.recipe import ALLCONV
from sweeps.experiment.search import Search
from sweeps.experiment.study import study
from sweeps.experiment.sweep import Protocol, Sweep
from sweeps.experiment.trial import PHASES, Cell, Trial, probed

BASE = Cell("Baseline", S2, "cifar10", ALLCONV)
CRELU = Cell("CReLU", S2.crelu(1), "cifar10", ALLCONV)
MATCH = {"match": "train_loss", "reference": "a"}


def test_phases_are_the_protocols_of_the_paper() -> None:
    """Split, epoch whose weights count, test set opened, training loss measured (Goodfellow et al. 2013 for Single)."""
    assert {name: tuple(phase) for name, phase in PHASES.items()} == {
        "ablation": ("holdout", "last", True, False),
        "holdout": ("holdout", "best", False, True),
        "inner": ("fold", "best", False, False),
        "match": ("full", "last", True, True),
        "fold": ("fold", "best", True, False),
    }


@pytest.mark.parametrize(
    ("trial", "trained", "held_out", "expected"),
    [
        (Trial(BASE, "holdout"), 40_000, 10_000, 10_000),
        (Trial(BASE, "holdout"), 81, 20, 21),
        (Trial(BASE, "holdout"), 1_231_167, 50_000, 10_000),
        (Trial(BASE, "match", **MATCH), 50_000, 10_000, 10_000),
        (Trial(BASE, "match", **MATCH), 100, 20, 20),
        (Trial(BASE, "ablation"), 40_000, 10_000, 0),
        (Trial(BASE, "fold", folds=10), 45_000, 10_000, 0),
    ],
)
def test_single_measures_its_training_loss_on_10000_pictures_or_a_quarter(
    trial: Trial, trained: int, held_out: int, expected: int
) -> None:
    assert probed(trial, trained, held_out) == expected


def test_restart_of_a_seed_is_no_other_seed() -> None:
    seeds = [Trial(BASE, seed=seed).restarted(times) for seed in range(5) for times in range(4)]
    assert len(set(seeds)) == len(seeds)


def test_thresholds_of_pruning_are_part_of_the_key() -> None:
    keys = {Trial(BASE, "holdout", pruning_thresholds=bars).key for bars in [(), (50.0,), (60.0,), (50.0, 60.0)]}
    assert len(keys) == 4


def test_trials_start_seed_by_seed_and_fold_by_fold_over_all_cells() -> None:
    sweep = Sweep("s", "demo", (BASE, CRELU), Protocol(seeds=2, folds=2))
    assert [(trial.cell.label, trial.phase, trial.seed, trial.fold) for trial in expand(sweep, {})] == [
        ("Baseline", "ablation", 0, 0),
        ("Baseline", "fold", 0, 0),
        ("CReLU", "ablation", 0, 0),
        ("CReLU", "fold", 0, 0),
        ("Baseline", "fold", 1, 1),
        ("CReLU", "fold", 1, 1),
        ("Baseline", "ablation", 1, 0),
        ("CReLU", "ablation", 1, 0),
    ]


def test_folds_start_from_weights_of_their_own_that_are_the_same_for_all_cells() -> None:
    """Ten networks of one initialisation are no ten networks: their errors move together, cell by cell."""
    sweep = Sweep("s", "demo", (BASE, CRELU), Protocol(ablation=False, folds=10))
    seeds = {cell: [trial.seed for trial in expand(sweep, {}) if trial.cell == cell] for cell in sweep.cells}
    assert seeds[BASE] == seeds[CRELU] == list(range(10))
    assert [trial.label for trial in expand(sweep, {}) if trial.cell == BASE][:2] == ["f0", "f1"]
    # A search over folds draws its own weights for each fold too, beginning at its own seed.
    inner = study(Search(1, folds=4, seed=5), BASE, {}, ()).suggestions[0].trials
    assert [(trial.seed, trial.fold) for trial in inner] == [(5, 0), (6, 1), (7, 2), (8, 3)]
    assert inner[3].label.startswith("s8 f3 inner")


def test_second_phase_of_a_seed_starts_with_that_seed() -> None:
    sweep = Sweep("s", "demo", (BASE,), Protocol(seeds=2, ablation=False, single=True))
    first = expand(sweep, {})
    results = {trial.key: {"metrics": {}} for trial in first}
    assert [(trial.phase, trial.seed) for trial in expand(sweep, results)] == [
        ("holdout", 0), ("match", 1000), ("holdout", 1), ("match", 1001),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("protocol", "trains"),
    [
        (Protocol(), True),
        (Protocol(ablation=False, single=True), True),
        (Protocol(ablation=False, folds=10), True),
        (Protocol(ablation=False, search=Search(4)), False),
    ],
)
def test_protocol_of_a_search_alone_trains_no_cells(protocol: Protocol, trains: bool) -> None:
    assert protocol.trains_cells == trains


def after_search(seed: int) -> tuple[Trial, list[Trial]]:
    """Return the winner of a search with this seed, and the trials of Single that follow from it."""
    search = Search(2, wave=2, seed=seed, prune=False)
    asked = study(search, BASE, {}, ()).suggestions
    results = {
        suggestion.trial.key: {"metrics": {"best/val_top1_err": 10.0 + suggestion.number}} for suggestion in asked
    }
    protocol = Protocol(ablation=False, single=True, search=search)
    return asked[0].trial, cell_trials(BASE, protocol, results).protocol


def test_winner_of_a_search_is_the_first_phase_of_single() -> None:
    winner, trials = after_search(seed=0)
    assert trials[0].key == winner.key
    assert [(trial.phase, trial.reference, trial.dropout) for trial in trials[1:]] == [
        ("match", winner.key, winner.dropout)
    ]


def test_single_trains_its_first_phase_where_the_search_had_another_seed() -> None:
    winner, trials = after_search(seed=1)
    assert [(trial.phase, trial.seed, trial.dropout) for trial in trials] == [("holdout", 0, winner.dropout)]
