"""The studies: a pure function of the ledger, the same after any kill, better than chance, pruned without loss."""

import itertools
import math
import random
import statistics
from collections.abc import Iterable

import optuna
import pytest
from optuna.distributions import FloatDistribution

from crelu_models.tables import S2
from sweeps.experiment.cell_trials import cell_trials, expand
from sweeps.experiment.recipe import ALLCONV, Dimension
from sweeps.experiment.sampling import suggest, wilcoxon_prunes
from sweeps.experiment.search import Search, budget
from sweeps.experiment.study import NO_THRESHOLD, percentile_thresholds, study
from sweeps.experiment.sweep import Protocol, Sweep
from sweeps.experiment.trial import PHASES, Cell, Trial

CELL = Cell("Baseline", S2, "synthetic", ALLCONV)
OTHER = Cell("CReLU", S2.crelu(1), "synthetic", ALLCONV)


def surface(trial: Trial) -> float:
    """Return a known response: a bowl in the three rates, least at (.1, .4, .5)."""
    best = {"input": 0.1, "pool1": 0.4, "pool2": 0.5}
    noise = random.Random(f"{trial.fold} {trial.dropout}").uniform(-0.5, 0.5) if trial.folds else 0.0
    return 10 + sum(40 * (rate - best[place]) ** 2 for place, rate in trial.dropout) + trial.fold + noise


def result(trial: Trial, error: float | None = None, status: str = "finished") -> dict[str, object]:
    value = surface(trial) if error is None else error
    return {
        "status": status,
        "metrics": {"best/val_top1_err": value},
        "curve": [value + 20 / (e + 1) for e in range(8)],
    }


def played(search: Search, cell: Cell, draw: random.Random | None = None) -> dict[str, dict[str, object]]:
    """Play a study to its end; with `draw`, the open trials finish in any order, some at a time."""
    results: dict[str, dict[str, object]] = {}
    while True:
        state = study(search, cell, results, ())
        if state.is_finished:
            return results
        asked = [trial for suggestion in state.suggestions if suggestion.value is None for trial in suggestion.trials]
        still_open = [trial for trial in asked if trial.key not in results]
        finished = draw.sample(still_open, draw.randint(1, min(4, len(still_open)))) if draw else still_open
        results |= {trial.key: result(trial) for trial in finished}


@pytest.mark.parametrize("folds", [0, 5])
@pytest.mark.parametrize("sampler", ["tpe", "random", "grid"])
def test_study_is_the_same_in_any_order_of_finishing(sampler: str, folds: int) -> None:
    search = Search(8 if folds else 12, sampler=sampler, folds=folds)
    asked = []
    for seed in range(2 if folds else 3):
        results = played(search, CELL, random.Random(seed))
        asked.append(study(search, CELL, results, ()).suggestions)
        assert results.keys() == {trial.key for suggestion in asked[-1] for trial in suggestion.trials}
    assert all(suggestions == asked[0] for suggestions in asked)
    assert len(asked[0]) == search.trials


def test_search_over_folds_leaves_out_the_rest_of_a_hopeless_suggestions_folds() -> None:
    pruned, unpruned = Search(20, folds=8, sampler="random"), Search(20, folds=8, sampler="random", prune=False)
    states = {search: study(search, CELL, played(search, CELL), ()) for search in (pruned, unpruned)}
    # Random points do not depend on values: both studies ask for the same, and must find the same winner.
    assert [suggestion.trial.dropout for suggestion in states[pruned].suggestions] == [
        suggestion.trial.dropout for suggestion in states[unpruned].suggestions
    ]
    winners = [state.winner for state in states.values()]
    assert winners[0] is not None
    assert winners[1] is not None
    assert winners[0].trial.dropout == winners[1].trial.dropout
    assert len(winners[0].trials) == 8
    started = [len(suggestion.trials) for suggestion in states[pruned].suggestions]
    assert started[:4] == [8] * 4  # the first wave has nobody to be worse than
    assert min(started) == 4
    assert sum(started) < 0.8 * 160
    assert all(suggestion.pruned == (len(suggestion.trials) < 8) for suggestion in states[pruned].suggestions)


def test_search_over_folds_is_pruned_by_optunas_wilcoxon_pruner() -> None:
    rival = (10.0, 11.0, 12.0, 13.0, 14.0, 15.0)
    assert wilcoxon_prunes((12.0, 13.1, 14.2, 15.3), rival)
    assert not wilcoxon_prunes((12.0, 13.1, 14.2), rival)  # three pairs cannot reach p < 0.1
    assert not wilcoxon_prunes((9.0, 10.5, 13.0, 13.2), rival)


def test_folds_of_a_search_hold_their_fold_out_and_never_open_the_test_set() -> None:
    (first,) = study(Search(1, folds=4), CELL, {}, ()).suggestions
    assert [(trial.phase, trial.fold, trial.folds) for trial in first.trials] == [("inner", k, 4) for k in range(4)]
    assert not PHASES["inner"].test
    with pytest.raises(ValueError, match="two folds or more"):
        Search(folds=1)


def test_winner_over_folds_is_trained_anew_by_the_protocol() -> None:
    search = Search(2, wave=2, folds=2)
    sweep = Sweep("s", "demo", (CELL,), Protocol(ablation=False, single=True, folds=3, search=search))
    first = expand(sweep, {})
    assert len(first) == 4
    assert sorted(trial.phase for trial in _to_come(sweep, {})) == ["fold"] * 3 + ["holdout", "match"]
    after = expand(sweep, finished(first))
    assert sorted(trial.phase for trial in after) == ["fold"] * 3 + ["holdout"] + ["inner"] * 4
    assert len(first) + len(_to_come(sweep, {})) == 2 * 2 + 5


def test_gp_study_is_the_same_when_asked_again() -> None:
    search = Search(6, sampler="gp", wave=3)
    results = played(search, CELL)
    first = study(search, CELL, results, ())
    suggest.cache_clear()
    assert study(search, CELL, results, ()) == first


def test_wave_waits_for_the_one_before() -> None:
    search = Search(8, wave=4)
    results: dict[str, dict[str, object]] = {}
    first = study(search, CELL, results, ()).suggestions
    assert len(first) == 4
    for asked in first[:3]:
        results[asked.trial.key] = result(asked.trial)
    assert study(search, CELL, results, ()).suggestions[:4] != first  # three values are known now
    assert len(study(search, CELL, results, ()).suggestions) == 4
    results[first[3].trial.key] = result(first[3].trial)
    assert len(study(search, CELL, results, ()).suggestions) == 8


def test_cells_and_seeds_have_studies_of_their_own() -> None:
    points = {
        tuple(asked.trial.dropout for asked in study(Search(4, seed=seed), cell, {}, ()).suggestions)
        for cell in (CELL, OTHER)
        for seed in (0, 1)
    }
    assert len(points) == 4


def test_repeated_suggestion_is_one_trial_told_its_known_value() -> None:
    search = Search(12, space=(Dimension("pool1", 0.0, 0.5, 0.25),), prune=False)
    results: dict[str, dict[str, object]] = {}
    trained = 0
    while not (state := study(search, CELL, results, ())).is_finished:
        for asked in state.suggestions:
            if asked.trial.key not in results:
                trained += 1
                results[asked.trial.key] = result(asked.trial, 10 + dict(asked.trial.dropout)["pool1"])
    assert len(state.suggestions) == 12
    assert trained == len(results) <= 3
    assert state.winner is not None
    assert state.winner.trial.dropout == (("pool1", 0.0),)


def test_failed_trial_does_not_hold_the_study_up() -> None:
    search = Search(8, prune=False)
    results: dict[str, dict[str, object]] = {}
    first = study(search, CELL, results, ()).suggestions
    failed = {first[0].trial.key}
    for asked in first[1:]:
        results[asked.trial.key] = result(asked.trial)
    state = study(search, CELL, results, failed)
    assert len(state.suggestions) == 8
    assert math.isnan(state.suggestions[0].value or 0.0)
    assert state.winner is not None
    assert state.winner.number != 0


@pytest.mark.parametrize("folds", [0, 3])
@pytest.mark.parametrize("sampler", ["tpe", "gp", "random", "grid"])
def test_search_tries_zero_dropout_first(sampler: str, folds: int) -> None:
    for seed, cell in itertools.product(range(3), (CELL, OTHER)):
        asked = study(Search(3, sampler, wave=3, seed=seed, folds=folds), cell, {}, ()).suggestions
        assert {rate for _, rate in asked[0].trial.dropout} == {0.0}
        assert any(rate for suggestion in asked[1:] for _, rate in suggestion.trial.dropout)
    # A space without zero is taken as it is.
    above = study(Search(1, sampler, space=(Dimension("pool1", 0.2, 0.4, 0.1),)), CELL, {}, ()).suggestions[0]
    assert dict(above.trial.dropout)["pool1"] >= 0.2


def test_grid_is_every_point_once_and_no_more() -> None:
    space = (Dimension("conv1", 0.0, 0.5, 0.25), Dimension("pool1", 0.0, 0.1, 0.1))
    search = Search(100, sampler="grid", space=space, prune=False)
    assert budget(search, CELL) == 6
    state = study(search, CELL, _all(search), ())
    assert {asked.trial.dropout for asked in state.suggestions} == {
        (("conv1", a), ("pool1", b)) for a, b in itertools.product((0.0, 0.25, 0.5), (0.0, 0.1))
    }


def _all(search: Search) -> dict[str, dict[str, object]]:
    results: dict[str, dict[str, object]] = {}
    while not (state := study(search, CELL, results, ())).is_finished:
        results |= {asked.trial.key: result(asked.trial, 10.0) for asked in state.suggestions}
    return results


def test_winner_is_the_least_error_and_the_earlier_of_two() -> None:
    search = Search(4, prune=False)
    first = study(search, CELL, {}, ()).suggestions
    errors = (12.0, 11.0, 11.0, 13.0)
    results = {asked.trial.key: result(asked.trial, error) for asked, error in zip(first, errors, strict=True)}
    winner = study(search, CELL, results, ()).winner
    assert winner is not None
    assert winner.number == 1


def late_rates(sampler: str, lowest: float) -> float:
    """Return the mean rate of a study's later half, where the error is least at one rate for every place."""
    results: dict[str, dict[str, object]] = {}
    search = Search(20, sampler=sampler, prune=False)
    while not (state := study(search, CELL, results, ())).is_finished:
        for trial in (asked.trial for asked in state.suggestions if asked.value is None):
            results[trial.key] = result(trial, 10 + sum(40 * (rate - lowest) ** 2 for _, rate in trial.dropout))
    return statistics.mean(rate for asked in state.suggestions[10:] for _, rate in asked.trial.dropout)


def test_tpe_is_told_the_errors_and_follows_the_lower_ones() -> None:
    assert late_rates("tpe", 0.0) < late_rates("random", 0.0) == late_rates("random", 0.6) < late_rates("tpe", 0.6)


def test_bars_prune_what_optunas_percentile_pruner_prunes() -> None:
    curves = [[30 - k - e * (1 + k / 4) for e in range(8)] for k in range(6)]
    bars = percentile_thresholds([{"status": "finished", "curve": curve} for curve in curves])
    assert bars[:3] == (NO_THRESHOLD,) * 3
    pruner = optuna.pruners.PercentilePruner(100 / 3, n_startup_trials=4, n_warmup_steps=3)
    old = optuna.create_study(direction="minimize", pruner=pruner)
    for curve in curves:
        old.add_trial(
            optuna.trial.create_trial(
                value=curve[-1], params={"p": 0.1}, distributions={"p": FloatDistribution(0, 1)},
                intermediate_values=dict(enumerate(curve)),
            )
        )  # fmt: skip
    # At the fourth epoch 23.5 and 24.7 are between the quantiles 1/4 and 1/3, and 1/3 and 1/2, of the curves.
    for start in (20.0, 23.5, 24.7, 26.0, 29.0, 40.0):
        trial = old.ask()
        curve = [start - 0.9 * e for e in range(8)]
        for epoch, value in enumerate(curve):
            trial.report(value, epoch)
            assert trial.should_prune() == (min(curve[: epoch + 1]) > bars[epoch]), (start, epoch)


def test_bars_come_from_whole_trials_alone() -> None:
    runs = [{"status": "finished", "curve": [5.0] * 6}] * 3
    assert percentile_thresholds([*runs, {"status": "pruned", "curve": [1.0] * 6}]) == ()
    assert percentile_thresholds([*runs, {"status": "finished", "curve": [5.0] * 6}])[-1] == 5.0


def finished(trials: Iterable[Trial]) -> dict[str, dict[str, object]]:
    return {trial.key: result(trial, 10.0) for trial in trials}


def _to_come(sweep: Sweep, results: dict[str, dict[str, object]]) -> list[Trial]:
    return [trial for cell in sweep.cells for trial in cell_trials(cell, sweep.protocol, results).pending]


def test_cell_goes_on_to_its_protocol_when_its_own_study_is_over() -> None:
    protocol = Protocol(ablation=False, single=True, folds=3, search=Search(3, wave=3, prune=False))
    sweep = Sweep("s", "demo", (CELL, OTHER), protocol)
    first = expand(sweep, {})
    assert [trial.phase for trial in first] == ["holdout"] * 6
    assert sorted(trial.phase for trial in _to_come(sweep, {})) == ["fold"] * 6 + ["match"] * 2
    mine = [trial for trial in first if trial.cell == CELL]
    after = expand(sweep, finished(mine))
    new = [trial for trial in after if trial.key not in {t.key for t in first}]
    assert sorted(trial.phase for trial in new) == ["fold", "fold", "fold", "match"]
    assert {trial.cell for trial in new} == {CELL}
    assert {trial.dropout for trial in new} == {mine[0].dropout}


def test_second_phase_waits_for_the_first_and_starts_anew() -> None:
    sweep = Sweep("s", "demo", (CELL,), Protocol(ablation=False, single=True))
    (first,) = expand(sweep, {})
    assert [trial.phase for trial in _to_come(sweep, {})] == ["match"]
    both = expand(sweep, finished([first]))
    assert _to_come(sweep, finished([first])) == []
    assert [trial.phase for trial in both] == ["holdout", "match"]
    assert both[1].reference == first.key
    assert both[1].seed != first.seed


def test_every_cell_has_the_same_budget() -> None:
    sweep = Sweep("s", "demo", (CELL, OTHER), Protocol(search=Search(7, wave=3, prune=False)))
    results: dict[str, dict[str, object]] = {}
    while new := [trial for trial in expand(sweep, results) if trial.key not in results]:
        results |= finished(new)
    search = sweep.protocol.search
    assert search is not None
    assert [len(study(search, cell, results, ()).suggestions) for cell in (CELL, OTHER)] == [7, 7]
