"""Successive halving: ASHA's rule played on a clock of epochs, the same trials whatever ends first, dies or drives."""

import dataclasses
import itertools
import math
import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from crelu_models.tables import S2
from sweeps.experiment import sampling
from sweeps.experiment import study as study_module
from sweeps.experiment.cell_trials import sweep_trials
from sweeps.experiment.halving import Bracket, Job, bracket_epochs, rungs
from sweeps.experiment.plan import plan
from sweeps.experiment.recipe import ALLCONV
from sweeps.experiment.sampling import Observation, Point, Sampler
from sweeps.experiment.search import Search
from sweeps.experiment.space import Choice, Float, Int, Space
from sweeps.experiment.study import Study, Suggestion, study
from sweeps.experiment.sweep import Protocol, Sweep
from sweeps.experiment.trial import Cell, Trial
from sweeps.store.ledger import Json, Ledger

EPOCHS = 27
CELL = Cell("Baseline", S2, "synthetic", dataclasses.replace(ALLCONV, epochs=EPOCHS))
SPACE: Space = {"recipe.lr": Float(1e-3, 1, log=True), "recipe.optimiser": Choice("sgd", "adam"),
                "recipe.batch": Int(16, 128, 16)}  # fmt: skip
WIDTHS = Choice(0.25, 0.5, 0.75, 1.0)
HALVED = Search(16, space=SPACE, halving=3, rung=1)


def test_rungs_are_a_factor_apart_and_end_with_the_last_epoch() -> None:
    assert rungs(27, 3) == (3, 9, 27)
    assert rungs(350, 3) == (39, 117, 350)
    assert rungs(350, 3, first=2) == (2, 5, 13, 39, 117, 350)
    assert rungs(8, 2, first=3) == (4, 8)
    assert rungs(2, 4) == (1, 2)
    assert rungs(1, 3) == (1,)


def test_expected_epochs_are_those_of_brackets_whose_values_are_random() -> None:
    # One rung, and one worker: each third arm that has come promotes the best so far, but no arm twice.
    assert bracket_epochs(3, 1, (1, 3), 3) == 3 + 2
    assert bracket_epochs(5, 2, (7,), 3) == 5 * 7
    draw = random.Random(1)
    total = 0
    for _ in range(200):
        bracket = Bracket(20, 4, (5, 14, 40), 3)
        values = [draw.random() for _ in range(20)]
        jobs = []
        while True:
            while (job := bracket.begin_next()) is not None:
                jobs.append(job)
            if (job := bracket.first_to_end()) is None:
                break
            bracket.finish(job, values[job.arm])
        total += sum((5, 9, 26)[job.rung] for job in jobs)
    assert bracket_epochs(20, 4, (5, 14, 40), 3) == pytest.approx(total / 200, rel=0.05)


@pytest.mark.parametrize("search", [HALVED, dataclasses.replace(HALVED, halving=0, rung=0), None])
def test_a_plan_expects_of_search_trials_what_their_bracket_trains(search: Search | None, tmp_path: Path) -> None:
    sweep = Sweep("s", "paper", (CELL,), Protocol(seeds=2, search=search))
    today = plan(sweep, Ledger(str(tmp_path)), {})
    trials = [*today.to_do, *today.pending]
    epochs = sum(map(today.expected_epochs, trials))
    searched = {HALVED: bracket_epochs(16, 4, (1, 3, 9, 27), 3), None: 0}.get(search, 16 * EPOCHS)
    assert epochs == pytest.approx(searched + 2 * EPOCHS)


def curve_of(trial: Trial, epochs: int = EPOCHS) -> list[float]:
    """Return errors by epoch that cross: who is best at first need not be best at last."""
    draw = random.Random(trial.key)
    floor, slow = draw.uniform(5, 50), draw.uniform(0.5, 3)
    return [round(floor + 40 / (1 + epoch / slow) + draw.uniform(0, 1), 3) for epoch in range(1, epochs + 1)]


def asha(losses: Mapping[int, list[float]], workers: int, steps: tuple[int, ...], factor: int) -> list[Job]:
    """Return the jobs of ASHA as its paper writes it, by a loop over epochs and workers of equal speed."""
    reached: list[list[int]] = [[] for _ in steps]
    promoted: set[tuple[int, int]] = set()
    jobs: list[Job] = []
    busy: list[Job] = []

    def get_job(now: int) -> Job | None:
        for rung in range(len(steps) - 2, -1, -1):
            ranked = sorted(reached[rung], key=lambda arm: (min(losses[arm][: steps[rung]]), arm))
            for arm in ranked[: len(ranked) // factor]:
                if (arm, rung) not in promoted:
                    promoted.add((arm, rung))
                    return Job(now + steps[rung + 1] - steps[rung], arm, rung + 1)
        begun = sum(job.rung == 0 for job in jobs)
        return Job(now + steps[0], begun, 0) if begun < len(losses) else None

    for now in itertools.count():
        ending: list[Job | None] = [None, *sorted(job for job in busy if job.end == now)]
        for ended in ending:
            if ended is not None:
                busy.remove(ended)
                reached[ended.rung].append(ended.arm)
            while len(busy) < workers and (job := get_job(now)) is not None:
                busy.append(job)
                jobs.append(job)
        if not busy:
            break
    return jobs


def played(bracket: Bracket, value: Callable[[Job], float]) -> list[Job]:
    """Play a bracket to its end and return its jobs in the order in which they began."""
    jobs: list[Job] = []
    while True:
        while (begun := bracket.begin_next()) is not None:
            jobs.append(begun)
        job = bracket.first_to_end()
        if job is None:
            break
        bracket.finish(job, value(job))
    return jobs


def test_a_failed_arm_is_never_promoted() -> None:
    bracket = Bracket(6, 2, (1, 2), 2)
    jobs = played(bracket, lambda job: float(job.arm) if job.arm > 2 else math.nan)
    assert {job.arm for job in jobs if job.rung} == {3, 4, 5}


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize(("arms", "workers", "factor"), [(30, 4, 3), (30, 1, 3), (64, 7, 2), (9, 3, 4)])
def test_a_bracket_decides_as_ashas_rule_does(arms: int, workers: int, factor: int, seed: int) -> None:
    steps = rungs(EPOCHS, factor, 1)
    draw = random.Random(f"{arms} {seed}")
    losses = {arm: [draw.uniform(0, 100) for _ in range(EPOCHS)] for arm in range(arms)}
    bracket = Bracket(arms, workers, steps, factor)
    jobs = played(bracket, lambda job: min(losses[job.arm][: steps[job.rung]]))
    expected = asha(losses, workers, steps, factor)
    assert jobs[: len(expected)] == expected
    # What follows promotes the best arm, where ASHA would leave all of them below the last rung.
    assert all(job.rung > 0 for job in jobs[len(expected) :])
    assert len(jobs) == len(expected) or not any(job.rung == len(steps) - 1 for job in expected)
    assert bracket.values[-1]


@dataclass
class World:
    """Ledger of a simulated sweep: results, records of pauses, and the epochs that were trained in all."""

    search: Search
    results: dict[str, Json] = field(default_factory=dict)
    paused: dict[str, Json] = field(default_factory=dict)
    failed: set[str] = field(default_factory=set)
    reached: dict[str, int] = field(default_factory=dict)
    trained: int = 0

    def study(self) -> Study:
        """Return the study as a driver that starts now derives it."""
        return study(self.search, CELL, self.results, self.failed, paused=self.paused)

    def advance(self, trial: Trial, until: int) -> None:
        """Train a trial to an epoch; note that it has paused, or commit its result at the end."""
        curve = curve_of(trial)[:until]
        self.trained += max(0, until - self.reached.get(trial.key, 0))
        self.reached[trial.key] = until
        if trial.key in FAILING:
            self.failed.add(trial.key)
        elif until < EPOCHS:
            self.paused[trial.key] = {"epoch": until, "curve": curve, "seconds": float(until)}
        else:
            self.paused.pop(trial.key, None)
            metrics = {"best/val_top1_err": min(curve)}
            self.results[trial.key] = {
                "status": "finished",
                "metrics": metrics,
                "curve": curve,
                "seconds": float(until),
            }


FAILING: set[str] = set()


def play(search: Search, draw: random.Random | None = None) -> World:
    """Play a study to its end; with `draw`, open trainings end in any order, and drivers see the ledger anew."""
    world = World(search)
    while not (state := world.study()).is_finished:
        trials = {trial.key: trial for trial in state.trials}
        jobs = sorted(state.pauses)
        assert jobs, "a study that is not finished has somebody to train"
        chosen = draw.sample(jobs, draw.randint(1, len(jobs))) if draw else jobs
        for key in chosen:
            world.advance(trials[key], state.pauses[key])
    return world


@pytest.mark.parametrize("sampler", ["random", "tpe"])
def test_the_trials_are_the_same_after_any_kill_and_in_any_order(sampler: str) -> None:
    search = dataclasses.replace(HALVED, sampler=sampler)
    expected = play(search)
    for seed in range(25 if sampler == "random" else 6):
        world = play(search, random.Random(seed))
        assert world.study() == expected.study()
        assert (world.results, world.paused, world.trained) == (expected.results, expected.paused, expected.trained)


def test_two_drivers_that_see_different_parts_train_nothing_that_one_would_not() -> None:
    expected = play(HALVED)
    wanted = {key: expected.reached[key] for key in expected.reached}
    for seed in range(10):
        draw = random.Random(seed)
        world = World(HALVED)
        views = [({}, {}), ({}, {})]  # what each driver has read of the ledger
        while not world.study().is_finished:
            who = draw.randrange(2)
            if draw.random() < 0.5:
                views[who] = (dict(world.results), dict(world.paused))
            seen = study(HALVED, CELL, views[who][0], (), paused=views[who][1])
            trials = {trial.key: trial for trial in seen.trials}
            for key in draw.sample(sorted(seen.pauses), min(1, len(seen.pauses))):
                assert seen.pauses[key] <= wanted[key]
                if world.reached.get(key, 0) < seen.pauses[key]:
                    world.advance(trials[key], seen.pauses[key])
            if not seen.pauses:
                views[who] = (dict(world.results), dict(world.paused))
        assert world.study() == expected.study()


def test_a_study_ends_with_a_whole_training_and_saves_most_epochs() -> None:
    world = play(HALVED)
    state = world.study()
    assert state.winner is not None
    assert state.winner.trial.key in world.results
    assert state.winner.value == min(curve_of(state.winner.trial))
    assert world.trained < 0.4 * 16 * EPOCHS
    assert state.paused == world.paused.keys()
    assert len(state.paused) + len(world.results) == len({trial.key for trial in state.trials})
    assert all(suggestion.pruned == (suggestion.trial.key in state.paused) for suggestion in state.suggestions)


def test_a_sampler_is_told_of_all_trials_as_if_they_had_trained_equally_far(monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[tuple[Observation, ...]] = []

    def suggest(sampler: Sampler, key: str, axes: Any, number: int, observed: Any, running: Any, first: Any) -> Point:
        told.append(observed)
        return sampling.suggest(sampler, key, axes, number, observed, running, first)

    def floor(point: Point) -> float:
        return random.Random(repr(point)).uniform(5, 50)

    def falls_alike(trial: Trial, epochs: int = EPOCHS) -> list[float]:
        least = floor(tuple(value for _, value in trial.choices))
        return [least + 40 / epoch for epoch in range(1, epochs + 1)]

    monkeypatch.setattr(study_module, "suggest", suggest)
    monkeypatch.setitem(globals(), "curve_of", falls_alike)
    state = play(HALVED).study()
    for observed in told:
        above = [each.value - floor(each.point) for each in observed if each.value is not None]
        assert above == pytest.approx([min(above, default=0)] * len(observed))
    points = {each.point for each in told[-1]}
    paused = [s for s in state.suggestions if s.trial.key in state.paused]
    assert sum(tuple(value for _, value in s.trial.choices) in points for s in paused) >= 8


def test_a_sampler_is_told_of_a_trial_that_failed_after_a_rung_as_failed() -> None:
    trial = study(HALVED, CELL, {}, ()).trials[0]
    paused, failed = (Suggestion(n, (trial,), value, True, ((1, 20.0),)) for n, value in enumerate((20.0, math.nan)))
    told = study_module._as_equally_far([paused, failed])
    assert [each.value for each in told] == pytest.approx([20.0, math.nan], nan_ok=True)


def test_a_gaussian_process_takes_paused_trials_beside_whole_ones_with_all_limits() -> None:
    limits = {"parameters": S2.width(0.6).parameters(10), "seconds": 1e9}  # of paused trials the seconds are not known
    state = play(dataclasses.replace(HALVED, sampler="gp", limits=limits, space=SPACE | {"net.width": WIDTHS})).study()
    assert len(state.trials) == HALVED.trials
    assert HALVED.trials < len(state.suggestions) <= 2 * HALVED.trials


def test_a_failed_trial_goes_no_further_and_holds_nobody_up() -> None:
    first = study(HALVED, CELL, {}, ()).trials
    FAILING.update(trial.key for trial in first[:2])
    try:
        world = play(HALVED)
        state = world.study()
    finally:
        FAILING.clear()
    assert {trial.key for trial in first[:2]} == world.failed
    assert state.winner is not None
    assert [math.isnan(suggestion.value or 0.0) for suggestion in state.suggestions[:3]] == [True, True, False]


def test_a_diverged_trial_has_at_a_rung_what_it_had_there_and_its_guess_where_it_came_to_none() -> None:
    world = World(HALVED)
    trials = world.study().trials
    for trial in trials:
        world.advance(trial, 1)
    for curve, value in (([], 90.0), ([1.0], 1.0)):
        guess = {"status": "diverged", "metrics": {"best/val_top1_err": 90.0}, "curve": curve, "seconds": 1.0}
        world.results[trials[0].key] = guess
        assert world.study().suggestions[0].rungs[0] == (1, value)


def test_whole_results_of_another_search_answer_every_rung_at_once() -> None:
    world = play(HALVED)
    everything = {}
    for suggestion in world.study().suggestions:
        curve = curve_of(suggestion.trial)
        metrics = {"best/val_top1_err": min(curve)}
        everything[suggestion.trial.key] = {"status": "finished", "metrics": metrics, "curve": curve, "seconds": 1.0}
    state = study(HALVED, CELL, everything, ())
    assert state.is_finished
    assert state.pauses == {}
    assert state.winner is not None
    assert world.study().winner is not None
    assert state.winner.trial == world.study().winner.trial  # type: ignore[union-attr]


def test_keys_of_a_halved_search_are_those_of_whole_trainings() -> None:
    halved = study(HALVED, CELL, {}, ()).trials
    plain = study(dataclasses.replace(HALVED, halving=0, rung=0), CELL, {}, ()).trials
    assert [trial.key for trial in halved] == [trial.key for trial in plain]


def test_a_paused_trial_waits_and_a_promoted_one_is_planned_again() -> None:
    sweep = Sweep("s", "demo", (CELL,), Protocol(seeds=2, search=HALVED))
    world = World(HALVED)
    first = world.study()
    assert set(first.pauses.values()) == {1}
    for trial in first.trials:
        world.advance(trial, 1)
    part = sweep_trials(sweep, world.results, paused=world.paused)[CELL.key]
    promoted = {key for key, epoch in part.pauses.items() if epoch == 3}
    assert promoted == {min(first.trials, key=lambda trial: curve_of(trial)[0]).key}
    assert part.paused == {trial.key for trial in first.trials} - promoted
    assert part.protocol == []


def test_seeds_and_folds_get_what_the_search_chose() -> None:
    sweep = Sweep("s", "demo", (CELL,), Protocol(seeds=2, folds=2, single=True, search=HALVED))
    world = play(HALVED)
    winner = world.study().winner
    assert winner is not None
    later = sweep_trials(sweep, world.results, paused=world.paused)[CELL.key].protocol
    assert {trial.choices for trial in later} == {winner.trial.choices}
    assert sorted(trial.phase for trial in later) == ["ablation"] * 2 + ["fold"] * 2 + ["holdout"] * 2 + ["match"]
    assert {trial.recipe.lr for trial in later} == {dict(winner.trial.choices)["recipe.lr"]}


@pytest.mark.parametrize(
    ("fields", "why"),
    [
        ({"halving": 1}, "one in 2 or more"),
        ({"rung": 2}, "one in 2 or more"),
        ({"halving": 3, "rung": -1}, "one epoch or more"),
        ({"halving": 3, "folds": 4}, "hold-out"),
        ({"halving": 3, "space": {"recipe.epochs": Int(1, 9)}}, "as many epochs"),
        ({"halving": 3, "objective": "best/val_loss"}, "leave it out"),
    ],
)
def test_a_halving_that_cannot_be_is_refused(fields: dict[str, object], why: str) -> None:
    with pytest.raises(ValueError, match=why):
        Search(8, **fields)  # type: ignore[arg-type]
