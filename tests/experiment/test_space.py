"""What a search may choose: names and bounds of a space, and what each choice does to recipe, net and key."""

import dataclasses
import json
import math
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import optuna
import pytest

from crelu_models.from_factory import build_model
from crelu_models.model import Model
from crelu_models.tables import S2, S4, S8
from sweeps import Choice, Float, Int
from sweeps.experiment import study as study_module
from sweeps.experiment.cell_trials import sweep_trials
from sweeps.experiment.plan import Plan, plan, plan_to_json
from sweeps.experiment.rates import RateStudy
from sweeps.experiment.recipe import ALLCONV, IMAGENET_SGD
from sweeps.experiment.search import Search, budget, own_point, search_from_json, search_to_json
from sweeps.experiment.space import Axis, Space, axis_from_json, axis_to_json, choosable, searched_models
from sweeps.experiment.study import export, importance, study
from sweeps.experiment.sweep import Protocol, Sweep, check_apart, sweep_from_json
from sweeps.experiment.trial import Cell, Trial, model_key, trial_from_json
from sweeps.store.ledger import Ledger

CELL = Cell("Baseline", S2, "synthetic", ALLCONV)
SPACE: Space = {
    "recipe.lr": Float(1e-3, 1, log=True),
    "recipe.optimiser": Choice("sgd", "adam"),
    "recipe.batch": Int(16, 128, 16),
    "net.dropout.pool1": Float(0, 0.5, step=0.05),
    "net.width": Float(0.5, 1, step=0.25),
}


def played(search: Search, error: Callable[[Trial], float], cell: Cell = CELL) -> dict[str, dict[str, Any]]:
    """Play a study to its end."""
    results: dict[str, dict[str, Any]] = {}
    while not (state := study(search, cell, results, ())).is_finished:
        for trial in state.trials:
            metrics = {"best/val_top1_err": error(trial), "best/val_loss": 100 - error(trial)}
            results[trial.key] = {
                "status": "finished",
                "metrics": metrics,
                "curve": [90.0, error(trial)],
                "seconds": 60.0,
            }
    return results


def log_rate(trial: Trial) -> float:
    """Return an error that is least at a learning rate of .02, and does not depend on anything else."""
    return 10 + 5 * abs(math.log10(trial.recipe.lr / 0.02))


def test_a_choice_changes_recipe_net_and_key_and_nothing_else() -> None:
    plain = Trial(CELL, "holdout")
    chosen = dataclasses.replace(
        plain,
        choices=(("recipe.lr", 0.01), ("recipe.optimiser", "adam"), ("net.dropout.pool1", 0.3), ("net.width", 0.5)),
    )
    assert chosen.recipe == dataclasses.replace(ALLCONV, lr=0.01, optimiser="adam")
    assert chosen.net == S2.width(0.5).dropout(0.3, "pool1")
    assert chosen.key != plain.key
    assert chosen.label == "s0 holdout lr=0.01 optimiser=adam pool1=0.3 width=0.5"
    declared = Cell("x", chosen.net, CELL.dataset, chosen.recipe)
    assert chosen.key == Trial(declared, "holdout").key  # a key is of what is trained, not of who chose it
    assert trial_from_json(json.loads(json.dumps(chosen.to_json()))) == chosen


def test_a_trial_without_choices_has_the_key_and_the_json_that_it_always_had() -> None:
    trial = Trial(Cell("Baseline", S8, "imagenet", IMAGENET_SGD), "holdout", dropout=(("conv9", 0.25),))
    assert trial.key == "ec07c9d6242d6f726b42"
    assert Trial(CELL).key == "babbba6929f8ebf96de4"
    assert "choices" not in trial.to_json()
    assert set(trial.science()) == {"schema", "net", "dataset", "recipe", "phase", "seed"}


@pytest.mark.parametrize(
    ("space", "why"),
    [
        ({"net.dropout.pol1": Float(0, 0.5)}, "no setting 'net.dropout.pol1'; did you mean 'net.dropout.pool1'"),
        ({"recipe.batch_size": Int(1, 9)}, "did you mean 'recipe.batch'"),
        ({"recipe.stages": Choice("a", "b")}, "no setting 'recipe.stages'"),
        ({"recipe.lr": Float(0.1, 0.1)}, "low is a number below high"),
        ({"recipe.lr": Float(math.nan, 0.1)}, "low is a number below high"),
        ({"recipe.lr": Float(0, 0.1)}, "recipe.lr cannot be 0.0: recipe.lr is above 0"),
        ({"recipe.weight_decay": Float(0, 0.1, log=True)}, "so its low is above 0"),
        ({"recipe.momentum": Float(0.5, 1.5)}, "recipe.momentum cannot be 1.5"),
        ({"recipe.lr": Float(0.1, 0.2, step=0.1, log=True)}, "no logarithm beside it"),
        ({"recipe.batch": Float(16, 64)}, "recipe.batch is of type int"),
        ({"recipe.batch": Int(16, 64, 0)}, r"step of .* is at least 1"),
        ({"recipe.batch": Int(16, 64.5)}, "whole numbers"),  # type: ignore[arg-type]
        ({"recipe.optimiser": Choice("sgd", "lion")}, "recipe.optimiser cannot be 'lion'"),
        ({"recipe.optimiser": Choice("sgd")}, "two values or more"),
        ({"recipe.optimiser": Choice("sgd", "sgd")}, "same value twice"),
        ({"recipe.flip": Choice(True, 1)}, "recipe.flip is of type bool"),
        ({"recipe.weight_decay": Choice(True, False)}, "recipe.weight_decay is of type float"),
        ({"net.width": Float(0, 1)}, "net.width cannot be 0.0"),
        ({"net.dropout.pool1": Float(0.5, 1)}, "net.dropout.pool1 cannot be 1.0"),
        ({"recipe.lr": 0.1}, "over a Float, an Int or a Choice"),
    ],
)
def test_a_space_that_a_cell_lacks_is_refused_with_the_sweep(space: Any, why: str) -> None:
    with pytest.raises(ValueError, match=why):
        Sweep("s", "demo", (CELL,), Protocol(search=Search(4, space=space)))


@pytest.mark.parametrize(
    ("space", "change"),
    [
        ((), {"net": S2.dropout(0.25, "pool1")}),
        ({"net.dropout.pool1": Float(0, 0.5, 0.25)}, {"net": S2.dropout(0.25, "pool1")}),
        ({"recipe.lr": Float(1e-3, 1, log=True)}, {"recipe": dataclasses.replace(ALLCONV, lr=0.1)}),
        ({"recipe.ema": Float(0, 0.9, 0.1)}, {"recipe": dataclasses.replace(ALLCONV, name="mine", ema=0.9)}),
        ({"net.width": Float(0.5, 1, 0.25)}, {"net": S2.width(0.5)}),
        ({"net.width": Float(0.5, 2)}, {"net": S2.width(0.5)}),
    ],
)
def test_cells_that_differ_only_in_what_is_searched_are_refused(space: Any, change: dict[str, Any]) -> None:
    cells = (CELL, dataclasses.replace(CELL, label="other", **change))
    why = r"'Baseline' and 'other' of s differ only in what is searched, .*\(--search-trials 0\)"
    sweep = Sweep("s", "demo", cells, Protocol(search=Search(4, space=space)))
    with pytest.raises(ValueError, match=why):
        check_apart(sweep)
    assert sweep_from_json(plan_to_json(Plan(sweep, ()))) == sweep  # a ledger may hold it
    check_apart(Sweep("s", "demo", cells))


@pytest.mark.parametrize(
    ("space", "change"),
    [
        ((), {"recipe": dataclasses.replace(ALLCONV, lr=0.1)}),
        ((), {"recipe": dataclasses.replace(ALLCONV, name="mine", batch=64)}),  # a recipe without a space
        ({"net.dropout.pool1": Float(0, 0.5)}, {"net": S2.dropout(0.25, "pool2")}),
        ({"recipe.lr": Float(1e-3, 1)}, {"recipe": dataclasses.replace(ALLCONV, lr=0.1, batch=64)}),
        ({"recipe.lr": Float(1e-3, 1)}, {"dataset": "cifar10"}),
        ({"net.width": Choice(0.5, 0.75)}, {"net": S2.width(0.5)}),
        ({"net.width": Float(0.5, 1)}, {"net": S2.crelu(1).width(0.5)}),
    ],
)
def test_cells_that_differ_in_more_than_what_is_searched_are_taken(space: Any, change: dict[str, Any]) -> None:
    cells = (CELL, dataclasses.replace(CELL, label="other", **change))
    check_apart(Sweep("s", "demo", cells, Protocol(search=Search(4, space=space))))


def test_models_that_differ_only_in_a_searched_argument_are_refused() -> None:
    plain, deep, wide = (
        Cell(name, Model("nets:small", **arguments), "synthetic", ALLCONV)
        for name, arguments in (
            ("plain", {"depth": 4, "wide": False}), ("deep", {"depth": 8, "wide": False}),
            ("wide", {"depth": 4, "wide": True}),
        )
    )  # fmt: skip
    protocol = Protocol(search=Search(4, space={"model.depth": Int(2, 8)}))
    with pytest.raises(ValueError, match="'plain' and 'deep' of s differ only in what is searched"):
        check_apart(Sweep("s", "demo", (plain, wide, deep), protocol))
    check_apart(Sweep("s", "demo", (plain, wide), protocol))


@pytest.mark.parametrize(
    ("arguments", "space", "why"),
    [
        (
            {},
            {"model.depth": Int(1, 4)},
            r"no such name, number or truth: write Model\('nets:small', depth=...\) first",
        ),
        (
            {"depth": [1, 2]},
            {"model.depth": Int(1, 4)},
            r"chooses model.depth, .* write Model\('nets:small', depth=...\)",
        ),
        ({"depth": 2}, {"model.depth": Float(1, 4)}, "model.depth is of type int"),
        ({"depth": 2}, {"recipe.epoch": Int(1, 4)}, "did you mean 'recipe.epochs'"),
    ],
)
def test_an_argument_that_a_page_does_not_give_is_refused(arguments: dict[str, Any], space: Any, why: str) -> None:
    cell = Cell("model", Model("nets:small", **arguments), "synthetic", ALLCONV)
    with pytest.raises(ValueError, match=why):
        Sweep("s", "demo", (cell,), Protocol(search=Search(4, space=space)))


@pytest.mark.parametrize(
    ("space", "why"),
    [
        ({"model.depth": Int(1, 256), "recipe.lr": Float(0.01, 1)}, ""),
        ({"model.depth": Int(1, 257)}, "of 257 ones, and counts 256 at most: give model.depth fewer values"),
        ({"model.depth": Int(1, 40), "model.rate": Float(0, 0.7, step=0.1)}, "of 320 ones, .* model.depth and model.r"),
        ({"model.rate": Float(0, 0.7)}, "those of each model that may be chosen: give model.rate a step"),
    ],
)
def test_a_limit_on_the_parameters_of_models_needs_few_of_them(space: dict[str, Any], why: str) -> None:
    cell = Cell("model", Model("nets:small", depth=2, rate=0.1), "synthetic", ALLCONV)
    search = Search(4, space=space, limits={"seconds": 60})
    assert Sweep("s", "demo", (cell,), Protocol(search=search)).cells == (cell,)
    search = dataclasses.replace(search, limits={"parameters": 9.0})
    with pytest.raises(ValueError, match=why) if why else nullcontext():
        Sweep("s", "demo", (cell,), Protocol(search=search))


def test_a_model_that_is_counted_as_too_large_is_not_trained_and_costs_no_trial() -> None:
    """The counts are those that the search notes: the code of the model is nowhere on this machine."""
    model = Model("nowhere_at_all:deep", depth=4.0, rate=0.1)
    cell = Cell("model", model, "synthetic", ALLCONV)
    space = {"model.depth": Float(1, 4, step=1), "model.rate": Float(0, 0.2, step=0.1)}
    models = searched_models(model, Search(4, space=space).axes)
    assert (models[0], len(models)) == (model, 12)
    counts = tuple((model_key(each, 10), 100 * int(each.arguments["depth"])) for each in models)
    search = Search(4, space=space, limits={"parameters": 200.5}, counts=counts)
    written = json.loads(json.dumps(search_to_json(search)))
    assert search_from_json(written).noted_counts == dict(counts)
    results = played(search_from_json(written), lambda _: 10.0, cell)
    state = study(search, cell, results, ())
    refused = [suggestion for suggestion in state.suggestions if suggestion.refused]
    assert (refused[0].number, refused[0].refused) == (0, "more parameters than the limit")
    assert refused[0].excess == (("parameters", 199.5),)
    assert all(trial.net.arguments["depth"] <= 2 for trial in state.trials)  # type: ignore[union-attr]
    assert len(state.trials) == 4
    # What nobody has counted before is judged by what its training has counted.
    unknown = dataclasses.replace(search, counts=())
    results = {key: result | {"parameters": 201} for key, result in played(unknown, lambda _: 10.0, cell).items()}
    state = study(unknown, cell, results, ())
    assert state.suggestions[0].excess == (("parameters", 0.5),)
    assert not any(suggestion.refused for suggestion in state.suggestions)
    assert state.winner is None


NETS = """
from torch import nn

def deep(num_classes, depth):
    layers = [nn.Linear(3, 3) for _ in range(depth)]
    return nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), *layers, nn.Linear(3, num_classes))
"""


def test_trials_build_the_model_whose_argument_was_chosen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "searched_nets.py").write_text(NETS)
    monkeypatch.syspath_prepend(tmp_path)
    cell = Cell("model", Model("searched_nets:deep", depth=3), "synthetic", dataclasses.replace(ALLCONV, init="own"))
    search = Search(4, "grid", space={"model.depth": Int(1, 4)}, prune=False)
    sweep = Sweep("s", "demo", (cell,), Protocol(search=search))
    assert sweep_from_json(plan_to_json(Plan(sweep, ()))) == sweep
    results = played(search, lambda trial: 10.0 + abs(trial.net.arguments["depth"] - 2), cell)  # type: ignore[union-attr]
    state = study(search, cell, results, ())
    trials = [suggestion.trial for suggestion in state.suggestions]
    assert trials[0].choices == (("model.depth", 3),)
    assert len({trial.key for trial in trials}) == 4
    for trial in trials:
        assert isinstance(trial.net, Model)
        depth = dict(trial.choices)["model.depth"]
        assert len(build_model(trial.net, 10, 0)) == int(depth) + 3  # type: ignore[arg-type]
        assert trial_from_json(trial.to_json()).key == trial.key
    assert state.winner is not None
    assert state.winner.trial.choices == (("model.depth", 2),)


@pytest.mark.parametrize(
    ("fields", "why"),
    [
        ({"direction": "up"}, "minimize or maximize"),
        ({"objective": "final/test_top1_err"}, "never chooses on the test pictures"),
        ({"objective": "test/f1"}, "never chooses on the test pictures"),
        ({"limits": {"params": 1.0}}, "parameters and seconds"),
        ({"limits": {"seconds": 0.0}}, "above 0"),
        ({"sampler": "grid", "space": {"recipe.lr": Float(0.1, 1)}}, "a grid needs steps"),
    ],
)
def test_a_search_that_cannot_be_is_refused(fields: dict[str, Any], why: str) -> None:
    with pytest.raises(ValueError, match=why):
        Search(4, **fields)


def test_the_learning_rate_is_chosen_once() -> None:
    search = Search(4, space={"recipe.lr": Float(0.1, 1)})
    with pytest.raises(ValueError, match=r"leave out rates, or recipe.lr"):
        Protocol(search=search, rates=RateStudy("*"))


def test_the_own_setting_of_a_cell_is_tried_first_where_the_space_has_it() -> None:
    search = Search(4, space=SPACE)
    assert own_point(search, CELL) == (0.05, "sgd", 128, 0.0, 1.0)
    assert study(search, CELL, {}, ()).suggestions[0].trial.recipe == ALLCONV
    dropped = dataclasses.replace(CELL, net=S2.dropout(0.2, "pool1"))
    assert own_point(search, dropped) == (0.05, "sgd", 128, 0.2, 1.0)
    assert own_point(search, dataclasses.replace(CELL, net=S2.dropout(0.22, "pool1"))) is None
    assert own_point(Search(space={"recipe.batch": Int(16, 64)}), CELL) is None
    assert own_point(Search(space={"recipe.optimiser": Choice("adam", "sgd")}), CELL) == ("sgd",)
    assert own_point(Search(space={"recipe.init": Choice("torch", "xavier")}), CELL) is None


@pytest.mark.parametrize("sampler", ["tpe", "random", "gp"])
def test_suggestions_lie_in_the_space_and_can_be_typed_again(sampler: str) -> None:
    state = study(Search(12, sampler, wave=12, space=SPACE), CELL, {}, ())
    assert len({suggestion.trial.key for suggestion in state.suggestions}) > 8
    for suggestion in state.suggestions:
        lr, optimiser, batch, rate, width = (value for _, value in suggestion.trial.choices)
        assert 1e-3 <= lr <= 1
        assert float(f"{lr:.4g}") == lr
        assert optimiser in ("sgd", "adam")
        assert type(batch) is int
        assert batch in range(16, 129, 16)
        assert rate in [round(0.05 * step, 6) for step in range(11)]
        assert width in (0.5, 0.75, 1.0)


def test_a_whole_number_for_a_field_of_fractions_is_the_same_trial() -> None:
    state = study(Search(2, "grid", wave=3, space={"recipe.clip_norm": Int(1, 2)}), CELL, {}, ())
    assert state.suggestions[0].trial.key == Trial(CELL, "holdout").key


def test_grid_over_all_kinds_is_every_point_once() -> None:
    space: Space = {
        "recipe.optimiser": Choice("sgd", "adam"),
        "recipe.batch": Int(64, 128, 32),
        "net.width": Float(0.5, 1, 0.5),
    }
    search = Search(100, "grid", wave=100, space=space)
    assert budget(search, CELL) == 12
    asked = study(search, CELL, {}, ()).suggestions
    assert len({suggestion.trial.choices for suggestion in asked}) == len(asked) == 12
    assert [value for _, value in asked[0].trial.choices] == ["sgd", 128, 1.0]


def test_the_larger_value_wins_where_the_direction_says_so() -> None:
    least = Search(12, space=SPACE, objective="best/val_loss")
    most = dataclasses.replace(least, direction="maximize")
    for search, choose in ((least, min), (most, max)):
        state = study(search, CELL, played(search, log_rate), ())
        assert state.winner is not None
        assert state.winner.value == choose(suggestion.value or 0.0 for suggestion in state.suggestions)
        assert all(trial.pruning_thresholds == () for trial in state.trials)


def test_tpe_follows_the_direction() -> None:
    # The two objectives fall and rise with one another: to make one small is to make the other large.
    small = Search(24, space=SPACE, prune=False)
    large = dataclasses.replace(small, objective="best/val_loss", direction="maximize")
    points = [
        [suggestion.trial.key for suggestion in study(s, CELL, played(s, log_rate), ()).suggestions]
        for s in (small, large)
    ]
    assert points[0] == points[1]


def test_a_gaussian_process_is_told_of_what_exceeds_a_limit() -> None:
    """Optuna's leaves out points without a value: it asked for such ones to the end."""
    most = S2.width(0.6).parameters(10)
    search = Search(14, "gp", space=SPACE, prune=False, limits={"parameters": most, "seconds": 1e9})
    state = study(search, CELL, played(search, log_rate), ())
    assert len(state.trials) == 14
    assert 14 < len(state.suggestions) <= 28


def test_what_exceeds_the_limit_on_parameters_is_not_trained_and_costs_no_trial() -> None:
    most = S2.width(0.75).parameters(10)
    search = Search(6, space=SPACE, limits={"parameters": most + 0.5})
    results = played(search, log_rate)
    state = study(search, CELL, results, ())
    refused = [suggestion for suggestion in state.suggestions if suggestion.refused]
    assert refused
    assert refused[0].number == 0  # the cell's own width
    assert "parameters" in refused[0].refused
    assert all(trial.net.parameters(10) <= most for trial in state.trials)
    assert len(state.trials) == 6
    assert not any(suggestion.trial.key in results for suggestion in refused)
    parts = sweep_trials(Sweep("s", "demo", (CELL,), Protocol(search=search)), results)[CELL.key]
    assert {trial.key for trial in parts.search} == {trial.key for trial in state.trials}


@pytest.mark.parametrize(("noted", "why"), [(0, ""), (4, ""), (10, "more parameters than the limit")])
def test_a_limit_on_parameters_is_by_the_classes_that_the_command_has_noted(
    noted: int, why: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without the pictures of a folder, and without a note, nobody can count: nothing is refused."""
    monkeypatch.setenv("CRELU_DATA", str(tmp_path))
    cell = dataclasses.replace(CELL, dataset="folder:/nowhere/pictures")
    search = Search(6, space=SPACE, limits={"parameters": S2.parameters(4) + 0.5})
    assert S2.parameters(4) < S2.parameters(10)
    counted = dataclasses.replace(search, classes=((cell.dataset, noted),) if noted else ())
    written = json.loads(json.dumps(search_to_json(counted)))
    assert ("classes" in written) == bool(noted)
    first = study(search_from_json(written), cell, {}, ()).suggestions[0]
    assert first.refused == why
    assert first.keeps_limits == (not why)
    assert counted == search  # it decides nothing of its own


@pytest.mark.parametrize(("noted", "name"), [(80, "folder:/nowhere/pictures"), (None, "synthetic:size=96")])
def test_a_limit_on_parameters_is_by_the_side_of_the_views_that_a_net_is_trained_at(
    noted: int | None, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A folder's side is noted by the command, that of another set stands in its name: 96 are stored, 80 are seen."""
    monkeypatch.setenv("CRELU_DATA", str(tmp_path))
    cell = dataclasses.replace(CELL, net=S4, dataset=name)
    at_the_papers_side, at_this_side = S4.parameters(10), S4.parameters(10, 80)
    assert at_the_papers_side < at_this_side < S4.parameters(10, 96)
    for most, why in ((at_this_side, ""), (at_this_side - 1, "more parameters than the limit")):
        search = Search(2, space={"recipe.lr": Float(1e-3, 1, log=True)}, limits={"parameters": most})
        notes = {"classes": {name: 10}, "sides": {name: noted}} if noted else {}
        counted = search_from_json(json.loads(json.dumps(search_to_json(search) | notes)))
        assert study(counted, cell, {}, ()).suggestions[0].refused == why
        assert search_from_json(json.loads(json.dumps(search_to_json(counted)))).sides == counted.sides


def test_classes_sides_and_counts_that_are_no_numbers_are_no_plan() -> None:
    declared = plan_to_json(Plan(Sweep("s", "demo", (CELL,), Protocol(search=Search(2))), ()))
    protocol = declared["protocol"]
    for noted in (5, {"cifar10": "ten"}, {"cifar10": 1.5}, [["cifar10", None]]):
        for name in ("classes", "sides", "counts"):
            changed = protocol | {"search": protocol["search"] | {name: noted}}
            with pytest.raises(ValueError, match="not a plan: TypeError"):
                sweep_from_json(declared | {"protocol": changed})


def test_a_winner_keeps_the_limit_on_seconds() -> None:
    search = Search(6, space=SPACE, prune=False, limits={"seconds": 50.0})
    results = played(search, log_rate)
    assert study(search, CELL, results, ()).winner is None
    sweep = Sweep("s", "demo", (CELL,), Protocol(search=search))
    assert sweep_trials(sweep, results)[CELL.key].why == "no trial of its search keeps the limits"
    third = study(search, CELL, results, ()).suggestions[2].trial.key
    results[third]["seconds"] = 49.0
    winner = study(search, CELL, results, ()).winner
    assert winner is not None
    assert winner.trial.key == third


def test_a_point_that_no_recipe_can_have_is_passed_over(monkeypatch: pytest.MonkeyPatch) -> None:
    def why(search: Search, trial: Trial) -> str:
        return "no" if trial.recipe.optimiser == "adam" else ""

    monkeypatch.setattr(study_module, "why_refused", why)
    search = Search(6, space=SPACE)
    state = study(search, CELL, played(search, log_rate), ())
    assert len(state.trials) == 6
    assert {trial.recipe.optimiser for trial in state.trials} == {"sgd"}


def test_a_search_is_the_same_after_a_way_through_its_plan(tmp_path: Path) -> None:
    halved = Search(9, "tpe", 3, space=SPACE, halving=3, rung=2, limits={"seconds": 60.0})
    for search in (halved, Search(3, objective="best/val_loss", direction="maximize"), Search(2)):
        sweep = Sweep("s", "demo", (CELL,), Protocol(search=search))
        written = json.loads(json.dumps(plan_to_json(plan(sweep, Ledger(str(tmp_path)), {}))))
        assert sweep_from_json(written) == sweep
    for axis in halved.axes:
        assert axis_from_json(axis_to_json(axis)) == axis
    with pytest.raises(ValueError, match="a float, an int or a choice"):
        axis_from_json({"name": "x", "kind": "code"})


def test_importance_is_with_the_dimension_that_decides() -> None:
    search = Search(24, "random", space=SPACE, prune=False)
    state = study(search, CELL, played(search, log_rate), ())
    points = [(suggestion.trial, suggestion.value) for suggestion in state.suggestions]
    shares = importance(search, CELL, points)
    assert shares.keys() == SPACE.keys()
    assert sum(shares.values()) == pytest.approx(1)
    assert max(shares, key=lambda name: shares[name]) == "recipe.lr"
    assert importance(search, CELL, points[:20]).keys() == SPACE.keys()
    assert importance(search, CELL, points[:19]) == {}, "of few points it shows chance"
    assert importance(search, CELL, [(trial, 5.0) for trial, _ in points]) == {}
    # The better half is all of them where more than half have the worst value.
    for better, told in {11: False, 12: True}.items():
        for direction, sign in {"minimize": 1.0, "maximize": -1.0}.items():
            tied = [(trial, sign * min(n - better, 0)) for n, (trial, _) in enumerate(points)]
            aimed = dataclasses.replace(search, objective="best/val_loss", direction=direction)
            assert bool(importance(aimed, CELL, tied)) == told
    # One of two optimisers is better, and nothing else matters. Another axis has more values; it gets no larger share.
    decided = [(trial, float(trial.recipe.optimiser == "adam") + n / 1000) for n, (trial, _) in enumerate(points)]
    assert importance(search, CELL, decided)["recipe.optimiser"] > 0.6


def test_dashboard_gets_every_kind_of_parameter_value_by_epoch_and_state(tmp_path: Path) -> None:
    search = Search(8, space=SPACE, halving=2, rung=1, wave=2, limits={"parameters": S2.width(0.75).parameters(10)})
    cell = dataclasses.replace(CELL, recipe=dataclasses.replace(ALLCONV, epochs=2))
    results: dict[str, dict[str, Any]] = {}
    paused: dict[str, dict[str, Any]] = {}
    while not (study_state := study(search, cell, results, (), paused=paused)).is_finished:
        for key, epoch in study_state.pauses.items():
            trial = next(trial for trial in study_state.trials if trial.key == key)
            curve = [90.0, log_rate(trial)][:epoch]
            if epoch == 1:
                paused[key] = {"epoch": 1, "curve": curve, "seconds": 1.0}
            else:
                metrics = {"best/val_top1_err": min(curve)}
                results[key] = {"status": "finished", "metrics": metrics, "curve": curve, "seconds": 2.0}
    url = f"sqlite:///{tmp_path}/studies.db"
    assert export([study_state], "s", url, results, paused) == 1
    assert export([study_state], "s", url, results, paused) == 1  # anew, not once more
    shown = optuna.load_study(study_name="s/Baseline", storage=url)
    assert len(shown.trials) == len(study_state.suggestions)
    for told, suggestion in zip(shown.trials, study_state.suggestions, strict=True):
        assert told.params == dict(suggestion.trial.choices)
        state = told.user_attrs["state"]
        if suggestion.refused:
            assert state.startswith("not trained: more parameters")
            assert told.constraints["parameters"] > 0
        elif suggestion.trial.key in study_state.paused:
            assert (told.state.name, state) == ("PRUNED", "paused after epoch 1")
            assert told.intermediate_values == {1: 90.0}
        else:
            assert (told.state.name, state, told.value) == ("COMPLETE", "finished", suggestion.value)
            assert list(told.intermediate_values) == [1, 2]
    assert {told.state.name for told in shown.trials} == {"PRUNED", "COMPLETE"}
    assert {type(kind).__name__ for kind in shown.trials[0].distributions.values()} == {
        "FloatDistribution", "CategoricalDistribution", "IntDistribution",
    }  # fmt: skip


def test_all_that_can_be_chosen_has_the_value_of_the_cell() -> None:
    known = choosable(S8.dropout(0.25, 9), IMAGENET_SGD)
    assert known["net.dropout.conv9"] == 0.25
    assert known["net.dropout.input"] == 0.0
    assert known["recipe.lr"] == IMAGENET_SGD.lr
    assert known["net.width"] == 1.0
    assert not {"recipe.name", "recipe.stages"} & known.keys()
    for name, value in known.items():
        if name.startswith("recipe."):
            assert Trial(Cell("x", S8, "imagenet", IMAGENET_SGD), choices=((name, value),)).recipe == IMAGENET_SGD


def test_axes_hold_what_they_offer() -> None:
    axis = Axis("recipe.lr", Float(0.1, 0.35, step=0.1))
    assert axis.domain.values() == (0.1, 0.2, 0.3)
    assert [axis.domain.holds(value) for value in (0.1, 0.15, 0.3, 0.4, "0.1", True)] == [
        True,
        False,
        True,
        False,
        False,
        False,
    ]
    assert [Int(1, 6, 2).holds(value) for value in (1, 2, 5, 6, 7, 1.5)] == [True, False, True, False, False, False]
    assert Int(1, 6, 2).ends() == (1, 5)
    assert [Choice(True, "a").holds(value) for value in (True, 1, "a")] == [True, False, True]
