"""A trial is its content: the same science has one key, any change of it another, names and machines none."""

import dataclasses
import hashlib
import importlib
import json
from pathlib import Path
from typing import Any

import pytest

from crelu_models.tables import PAPER, S2, S8
from sweeps.experiment.cell_trials import expand
from sweeps.experiment.code_fingerprint import cell_fingerprint
from sweeps.experiment.plan import plan
from sweeps.experiment.recipe import ALLCONV, IMAGENET_ADAM, VGG
from sweeps.experiment.sweep import Protocol, Sweep
from sweeps.experiment.trial import PHASES, SCHEMA, Cell, Trial, cell_from_json, cell_to_json, trial_from_json
from sweeps.store.ledger import Ledger

CELL = Cell("Baseline", S2, "cifar10", ALLCONV, "1", "Baseline")
TRIAL = Trial(CELL)


def test_names_are_not_in_the_key() -> None:
    other = Cell(
        "another", dataclasses.replace(S2, name="x"), "cifar10", dataclasses.replace(ALLCONV, name="y"), "4", "z"
    )
    assert Trial(other).key == TRIAL.key
    assert other.key == CELL.key


def test_what_changes_the_science_changes_the_key() -> None:
    recipe = dataclasses.replace(ALLCONV, epochs=349)
    others = [
        Trial(dataclasses.replace(CELL, net=S2.crelu(1))),
        Trial(dataclasses.replace(CELL, dataset="cifar100")),
        Trial(dataclasses.replace(CELL, recipe=recipe)),
        Trial(CELL, seed=1),
        Trial(CELL, "holdout"),
        Trial(CELL, "fold", folds=10),
        Trial(CELL, "fold", fold=1, folds=10),
        Trial(CELL, "fold", folds=5),
        Trial(CELL, "match", match="train_loss", reference="a"),
        Trial(CELL, "match", match="epoch", reference="a"),
        Trial(CELL, "match", match="epoch", reference="b"),
        Trial(CELL, dropout=(("pool1", 0.5),)),
        Trial(CELL, "holdout", pruning_thresholds=(50.0,)),
        Trial(dataclasses.replace(CELL, decoder="nvjpeg")),
    ]
    keys = {trial.key for trial in [TRIAL, *others]}
    assert len(keys) == len(others) + 1


def test_a_decoder_of_its_own_makes_another_cell_and_none_changes_nothing() -> None:
    cell = dataclasses.replace(CELL, decoder="nvjpeg")
    assert cell.key != CELL.key
    assert "decoder" not in cell_to_json(CELL)
    assert "decoder" not in TRIAL.science()
    assert cell_from_json(json.loads(json.dumps(cell_to_json(cell)))) == cell
    assert trial_from_json(Trial(cell).to_json()) == Trial(cell)


def test_dropout_is_part_of_the_net_however_it_came_there() -> None:
    cell = dataclasses.replace(CELL, net=S2.dropout(0.35, "pool1"))
    assert Trial(CELL, dropout=(("pool1", 0.1 + 0.25),)).key == Trial(cell).key
    assert Trial(CELL, dropout=(("pool1", 0.0),)).key == TRIAL.key


def test_keys_are_written_down() -> None:
    """A changed key would orphan every result there is: raise SCHEMA on purpose, never by accident."""
    assert SCHEMA == 1
    assert CELL.key == "99f24c411eddca6d98b1"
    assert TRIAL.key == "388ebda360cd042b8e8c"
    fold = Cell("", S8.crelu(1, 4, 7, width=0.5), "imagenet", IMAGENET_ADAM)
    assert Trial(fold, "fold", 2, (("conv9", 0.25),), 3, 10).key == "ef24cf696689e734ee1f"
    second = Trial(Cell("", PAPER["S4"], "cifar100", VGG), "match", 1000, match="train_loss", reference="0" * 20)
    assert second.key == "fdbc72ba72aa66165658"
    assert Trial(CELL, "holdout", pruning_thresholds=(1000.0, 50.5)).key == "5e2672db022d792128f4"
    added = dataclasses.replace(ALLCONV, optimiser="adamw", schedule="cosine", label_smoothing=0.1, mixup=0.2)
    assert Trial(dataclasses.replace(CELL, recipe=added)).key == "f02a92839fc4a2e48f6c"


@pytest.mark.parametrize("phase", sorted(PHASES))
@pytest.mark.parametrize("name", sorted(PAPER))
def test_trial_survives_json(name: str, phase: str) -> None:
    modern = dataclasses.replace(ALLCONV, ema=0.99, nesterov=True, rand_augment=2)
    recipe = {"S2": ALLCONV, "S3": modern, "S4": VGG}.get(name[:2], IMAGENET_ADAM)
    cell = Cell(f"cell {name}", PAPER[name], "cifar10", recipe, "1", "row")
    folded = {"fold": 2, "folds": 3}
    extra = {"fold": folded, "inner": folded, "match": {"match": "none", "reference": "a"}}.get(phase, {})
    trial = Trial(cell, phase, 3, **extra)  # type: ignore[arg-type]
    back = trial_from_json(json.loads(json.dumps(trial.to_json())))
    assert back == trial
    assert back.key == trial.key
    assert cell_from_json(json.loads(json.dumps(cell_to_json(cell)))) == cell


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        ({"seed": 1}, "its key is"),
        ({"key": "0" * 20}, "its key is '00000000000000000000'"),
        ({"schema": 99}, "has schema 99; this version reads"),
        ({"phase": "nonsense"}, "phase is one of .*, not 'nonsense'"),
        ({"cell": None}, "not a cell"),
        ({"dropout": [["nowhere", 0.5]]}, "no dropout after 'nowhere'"),
        ({"dropout": 5}, "not a trial: TypeError"),
        ({"bars": ["x"]}, "could not convert string to float: 'x'"),
    ],
)
def test_trial_of_a_stranger_is_refused(damage: dict[str, object], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        trial_from_json(TRIAL.to_json() | damage)


@pytest.mark.parametrize(
    "wrong",
    [
        {"phase": "final"},
        {"phase": "fold"},
        {"phase": "inner"},
        {"phase": "fold", "fold": 3, "folds": 3},
        {"phase": "match"},
        {"folds": 3},
    ],
)
def test_impossible_trial_is_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=r"phase|fold"):
        dataclasses.replace(TRIAL, **wrong)  # type: ignore[arg-type]


def test_restart_takes_another_seed_and_keeps_the_key() -> None:
    assert TRIAL.restarted(0) == TRIAL.seed
    assert len({TRIAL.restarted(times) for times in range(4)}) == 4


def test_only_phases_that_end_a_protocol_open_the_test_set() -> None:
    assert {name for name, phase in PHASES.items() if phase.test} == {"ablation", "match", "fold"}


STORED = (Path(__file__).parent / "trial_keys.txt").read_text().splitlines()
PROTOCOLS: dict[str, dict[str, Any]] = {
    "declared": {},
    "search": {"rates": None},
    "unsearched": {"rates": None, "search": None},
}


def paper_sweep(name: str, part: str) -> Sweep:
    """Return a sweep of the paper with a part of its protocol, and with the cells that --also adds."""
    page = importlib.import_module(f"sweeps.{name}")
    protocol = dataclasses.replace(getattr(page, "PROTOCOL", Protocol()), **PROTOCOLS[part])
    return Sweep(name, "paper", (*page.CELLS, *getattr(page, "CROSSED", ())), protocol)


@pytest.mark.parametrize("line", [line for line in STORED if line.count(" ") == 3], ids=lambda line: line[:-21])
def test_keys_of_the_papers_sweeps_are_those_of_old_ledgers(line: str) -> None:
    name, part, number, digest = line.split()
    keys = sorted(trial.key for trial in expand(paper_sweep(name, part), {}))
    assert (len(keys), hashlib.sha256("\n".join(keys).encode()).hexdigest()[:20]) == (int(number), digest)


def test_a_ledger_of_old_keys_leaves_nothing_to_train(tmp_path: Path) -> None:
    sweep = paper_sweep("imagenet_placement", "declared")
    ledger = Ledger(str(tmp_path))
    codes = {trial.key: cell_fingerprint(trial.cell) for trial in expand(sweep, {})}
    old = [line for line in STORED if " " not in line]
    for key in old:
        metrics = {"best/val_top1_err": 9.0}
        result = {"key": key, "status": "finished", "fingerprint": "f", "code": codes.get(key, ""), "curve": []}
        ledger.commit(key, result | {"metrics": metrics})
    today = plan(sweep, ledger, {"imagenet": "f"})
    assert today.to_do == []
    assert sorted(status.trial.key for status in today.statuses if status.state == "done") == old
