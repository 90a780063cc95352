"""Cells whose net is a model: key, JSON, staleness, facts from a process that has torch, and refusals."""

import dataclasses
import itertools
import json
import subprocess
import sys
from pathlib import Path

import pytest

from crelu_data.datasets import dataset
from crelu_models.model import Model
from crelu_models.tables import S2, S4
from sweeps.experiment.code_fingerprint import code_fingerprint
from sweeps.experiment.model_facts import (
    NetFacts,
    cell_parameters,
    check_models,
    counted_parameters,
    known_parameters,
    measure,
    net_facts,
    user_names,
)
from sweeps.experiment.plan import stale
from sweeps.experiment.recipe import ALLCONV
from sweeps.experiment.trial import Cell, Trial, model_key, trial_from_json

USERS = "tests.support.user_models"
OWN = dataclasses.replace(ALLCONV, init="own")
RESNET = Model("torchvision.models:resnet18", size=64)


def test_keys_are_written_down() -> None:
    """Keys of trials that have results somewhere: with these letters they are found again."""
    cell = Cell("ours", S2, "cifar10", ALLCONV)
    assert (cell.key, Trial(cell).key) == KEYS[0]
    cell = Cell("a model", RESNET, "cifar10", OWN)
    assert (cell.key, Trial(cell).key) == KEYS[1]


KEYS = (("99f24c411eddca6d98b1", "388ebda360cd042b8e8c"), ("0df6ebc841af31d0b8da", "0ace3dbae14be24d38b8"))


def test_json_gives_the_same_trial() -> None:
    net = RESNET.activation("crelu", "layer1.*.relu", width=0.5)
    trial = Trial(Cell("a", net, "folder:/pictures", OWN, versus="b"), seed=4)
    again = trial_from_json(json.loads(json.dumps(trial.to_json())))
    assert (again.key, again.net, again.net.name) == (trial.key, net, net.name)
    assert Trial(Cell("a", RESNET, "folder:/pictures", OWN)).key != trial.key


def test_a_net_of_ours_needs_an_initialisation() -> None:
    with pytest.raises(ValueError, match=r"ours: recipe.init own is for models"):
        Cell("ours", S2, "cifar10", OWN)


def test_code_of_a_factory_makes_its_own_cells_stale(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "nets_m.py").write_text("def a(num_classes): return 1\ndef b(num_classes): return 2\n")
    (tmp_path / "acts_m.py").write_text("class Squash: x = 1\n")
    models = [
        Model("nets_m:a"), Model("nets_m:b"), Model("nets_m:b").activation("acts_m:Squash", "x"), RESNET,
        Model("nets_m:b").avr("x"),
    ]  # fmt: skip
    before = [code_fingerprint(net) for net in (*models, S2)]
    (tmp_path / "nets_m.py").write_text("def a(num_classes): return 3\ndef b(num_classes): return 2\n")
    (tmp_path / "acts_m.py").write_text("class Squash: x = 2\n")
    after = [code_fingerprint(net) for net in (*models, S2)]
    assert [old != new for old, new in zip(before, after, strict=True)] == [True, False, True, False, False, False]
    assert len({before[1], before[4]}) == 2  # the code of AVR is part of it


def test_code_that_is_not_here_makes_nothing_stale() -> None:
    assert code_fingerprint(Model("nowhere_at_all:a")) == ""
    assert stale({"code": "c", "fingerprint": "f"}, "f", "") == ""
    assert stale({"code": "c", "fingerprint": "f"}, "f", "d") == "the code has changed since"


def test_facts_come_from_a_process_of_their_own() -> None:
    code = (
        "import sys\n"
        "from crelu_models import Model\n"
        "from sweeps.experiment.model_facts import measure\n"
        f"asked = [(Model('{USERS}:' + name), 5, 16) for name in ('small', 'small', 'ends', 'thousand')]\n"
        "print([tuple(fact) if not isinstance(fact, str) else fact for fact in measure(asked)], 'torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    small = (3 * 9 * 8 + 8 + 2 * 8 + 8 * 8 + 8 + 8 * 5 + 5 + 2 * 2 + 2, 7 * 7 * 8 * 27 + 8 * 8 + 8 * 5)
    assert done.stdout.startswith(f"[({small[0]}, {small[1]}, ")
    assert "fails: SystemExit: 4" in done.stdout
    assert "not scores of shape (2, 5)" in done.stdout
    assert done.stdout.rstrip().endswith("False")


def test_model_that_ends_the_process_leaves_the_others_their_facts() -> None:
    small, placed, dies = (Model(f"{USERS}:{name}") for name in ("small", "reads", "dies"))
    asked = [(dies, 8, 0), (small, 6, 0), (dies, 6, 0), (placed, 6, 0), (dies, 7, 0)]
    first, second, third, fourth, fifth = measure(asked)
    assert isinstance(second, NetFacts)
    assert isinstance(fourth, NetFacts)
    assert first == third == fifth == f"{USERS}:dies ends its process: exit code 3"


def test_model_that_takes_all_the_time_leaves_the_others_their_facts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only one that had the time for itself is to blame; `timed` stands for processes that end with their time."""
    runs: list[list[str]] = []

    def timed(command: list[str], input: str, **_: object) -> None:
        runs.append([request["model"]["factory"].partition(":")[2] for request in json.loads(input)])
        built = len(list(itertools.takewhile("hangs".__ne__, runs[-1])))
        Path(command[-1]).write_text(json.dumps([[1, 0, 0]] * built))
        raise subprocess.TimeoutExpired(command, 600.0)

    monkeypatch.setattr("sweeps.experiment.model_facts.subprocess.run", timed)
    names = ("first", "hangs", "second", "third")
    facts = measure([(Model(f"nets_not_here:{name}"), 9, 0) for name in names])
    assert facts == [NetFacts(1, 0, 0), "nets_not_here:hangs is not built within 600 s", *[NetFacts(1, 0, 0)] * 2]
    assert runs == [list(names), list(names[1:]), list(names[2:])]


def test_process_that_does_not_begin_answers_for_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sweeps.experiment.model_facts.MEASURE", "nowhere_at_all")
    answers = measure([(Model(f"{USERS}:small"), classes, 0) for classes in (12, 13)])
    assert len(answers) == 2
    assert all("No module named nowhere_at_all" in str(answer) for answer in answers)


def test_parameters_of_models_are_counted_without_pictures_and_without_their_memory() -> None:
    """A count is that of the measurement; of a model that reads a value, which needs memory, too."""
    small = Model(f"{USERS}:small")
    placed = small.activation("crelu", "body.2", width=0.5)
    huge, reads, ends = (Model(f"{USERS}:{name}") for name in ("huge", "reads", "ends"))
    counts = counted_parameters([(small, 5), (small, 7), (placed, 5), (huge, 5), (reads, 5), (ends, 5)])
    known = [(small, 5), (small, 7), (placed, 5), (reads, 5)]
    measured = [facts.parameters for facts in measure([(*asked, 16) for asked in known]) if isinstance(facts, NetFacts)]
    assert counts.pop(model_key(huge, 5)) == 5 * 10**12
    assert counts == {model_key(*asked): number for asked, number in zip(known, measured, strict=True)}


def test_facts_of_our_nets_are_counted() -> None:
    maps = sum(channels * side * side for _, channels, side in S2.shapes(10, 32))
    assert net_facts(S2, 10, 32) == NetFacts(S2.parameters(10, 32), S2.macs(10, 32), maps)


def test_a_cell_that_cannot_be_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    facts = {"cifar10": dataset("cifar10")}
    asked: list[object] = []

    def answer(requests: list[object]) -> list[object]:
        asked.extend(requests)
        return [NetFacts(1, 1, 1), "nets:b fails"][: len(requests)]

    monkeypatch.setattr("sweeps.experiment.model_facts._measured", answer)
    cells = [Cell(name, Model(f"nets:{name}"), "cifar10", OWN) for name in ("a", "b")]
    with pytest.raises(ValueError, match="b: nets:b fails"):
        check_models([*cells, cells[0], Cell("ours", S2, "cifar10", ALLCONV)], facts)
    assert asked == [(cell.net, 10, 32) for cell in cells]
    with pytest.raises(ValueError, match=r"large: .* takes pictures of side 64"):
        check_models([Cell("large", RESNET, "cifar10", OWN)], facts)


def test_names_and_counts_of_users_code() -> None:
    placed = Model("nets:a").activation("acts:Squash", "x").avr("y")
    assert user_names([S2, placed, Model("nets:a")]) == ["nets:a", "acts:Squash"]
    assert known_parameters(placed, 10, [None, {"parameters": 7}]) == 7
    assert known_parameters(placed, 10, [None]) is None
    # A training function that never asks for its model leaves no count.
    assert known_parameters(placed, 10, [{}]) is None
    assert known_parameters(placed, 10, [{}, {"parameters": 7}]) == 7
    assert known_parameters(S2, 10, []) == S2.parameters(10)
    assert known_parameters(S2, None, []) is None
    # A linear layer has as many as the side of the pictures makes them.
    trained = {"parameters": 7, "pictures": {"crop": 64}}
    assert known_parameters(S4, 10, [None, {"parameters": 7}]) == S4.parameters(10) == 14_991_946
    assert known_parameters(S4, 10, [None, trained]) == S4.parameters(10, 64) == 15_778_378


def test_count_is_that_of_the_net_that_was_tested() -> None:
    cell = Cell("a", Model("nets:small", depth=4), "cifar10", OWN)
    trials = [Trial(cell, "holdout", choices=(("model.depth", depth),)) for depth in (2, 4, 8)]
    tried = [(trial, {"parameters": count}) for trial, count in zip(trials, (200, 400, 800), strict=True)]
    chosen = Trial(cell, "ablation", choices=(("model.depth", 8),))
    assert cell_parameters(cell, 10, [*tried, (chosen, {"parameters": 800})]) == 800
    assert cell_parameters(cell, 10, [*tried, (chosen, None)]) == 400
    assert cell_parameters(cell, 10, tried[:1]) is None
    ours = Cell("b", S4, "cifar10", ALLCONV)
    half = Trial(ours, "ablation", choices=(("net.width", 0.5),))
    large = {"pictures": {"crop": 64}}
    assert cell_parameters(ours, 10, [(half, large)]) == S4.width(0.5).parameters(10, 64)
    assert cell_parameters(ours, 10, [(half, None)]) == S4.parameters(10)
    assert cell_parameters(ours, 10, [(Trial(ours, "holdout", choices=half.choices), large)]) == S4.parameters(10, 64)
