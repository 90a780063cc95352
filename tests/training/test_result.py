"""The numbers of a finished trial: from its history, its scores, or, where it diverged, those of chance."""

import dataclasses
import json
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch

from crelu_data.datasets import beton_path
from crelu_data.write import prepare
from crelu_models.tables import S2
from sweeps.experiment.metrics import flags_of
from sweeps.experiment.recipe import ALLCONV
from sweeps.experiment.trial import Cell, Trial
from sweeps.training.evaluate import Errors, chance, wrong_guesses
from sweeps.training.loop import DivergedError, Learner
from sweeps.training.result import TrialOutcome, metrics
from sweeps.training.run_trial import run_trial
from sweeps.training.runtime import RuntimeConfig
from tests.support.pictures import cifar_tree, picture_folder

CELL = Cell("Baseline", S2, "cifar10", ALLCONV)
CURVE = [(30.0, 1.0), (10.0, 0.5), (10.0, 0.4), (10.0, 0.4), (12.0, 0.1)]
HISTORY = tuple(
    {"epoch": float(epoch), "val/top1_err": error, "val/loss": loss, "probe/loss": 1.0 / epoch}
    for epoch, (error, loss) in enumerate(CURVE, 1)
)


def outcome(ending: str = "schedule", counts: Sequence[int] = (5,) * 10, **changes: object) -> TrialOutcome:
    fields: dict[str, object] = {
        "history": HISTORY, "events": (), "restarts": 0, "ending": ending, "seconds": 1.0, "precision": "fp32",
        "fingerprint": "f", "code": "c", "hardware": {}, "chance": chance(counts), "ten_crops": False, "weights": {},
        "scores": {}, "train": None, "test_chance": wrong_guesses(counts, counts),
    }  # fmt: skip
    return TrialOutcome(**fields | changes)  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", ["a part", "an unmarked part", "drawn"])
def test_result_says_whether_it_was_trained_on_a_part_of_a_published_set(kind: str, tmp_path: Path) -> None:
    name = "synthetic:train=64,test=32" if kind == "drawn" else "cifar10"
    cifar_tree(tmp_path, 12)
    prepare(name, tmp_path, writer="native", partial=kind != "drawn")
    if kind == "an unmarked part":
        for split in ("train", "test"):
            path = beton_path(name, split, tmp_path).with_suffix(".json")
            old = json.loads(path.read_text())
            path.write_text(json.dumps({key: item for key, item in old.items() if key not in ("partial", "originals")}))
    trial = Trial(Cell("small", S2.width(0.125), name, dataclasses.replace(ALLCONV, epochs=1, batch=16)))
    config = RuntimeConfig(str(tmp_path / "ledger"), str(tmp_path), reader="threads")
    result = run_trial(trial, config, lambda *_: None)
    assert result is not None
    assert result["partial"] is (kind != "drawn")
    assert ("partial data" in flags_of(result)) is (kind != "drawn")


def test_the_best_epoch_has_the_least_error_then_the_least_loss_then_is_the_later() -> None:
    values = metrics(Trial(CELL, "holdout"), outcome())
    assert values["best/epoch"] == 4.0
    assert values["best/val_top1_err"] == 10.0
    assert values["best/val_loss"] == 0.4
    assert values["best/probe_loss"] == 0.25


def test_errors_and_losses_of_each_view_are_those_of_its_scores() -> None:
    generator = torch.Generator().manual_seed(0)
    centre, views = torch.randn(40, 6, generator=generator), torch.randn(10, 40, 6, generator=generator)
    labels = torch.randint(0, 6, (40,), generator=generator)
    softmax = views.softmax(2).mean(0)
    scores = {"id": np.arange(40), "label": labels.numpy(), "centre": centre.numpy(),
              "ten_softmax": softmax.numpy(), "ten_score": views.mean(0).numpy()}  # fmt: skip
    values = metrics(Trial(CELL), outcome(scores=scores, train=Errors(0.5, 7.0, 1.0)))
    for name, of in (("", centre.softmax(1)), ("_10crop", softmax), ("_10crop_logit", views.mean(0).softmax(1))):
        wrong = (of.argmax(1) != labels).float().mean()
        loss = -of[torch.arange(40), labels].log().mean()
        in_five = (of.topk(5).indices == labels[:, None]).any(1).float().mean()
        assert values[f"final/test_top1_err{name}"] == pytest.approx(100 * float(wrong))
        assert values[f"final/test_top5_err{name}"] == pytest.approx(100 * (1 - float(in_five)), abs=1e-4)
        assert values[f"final/test_loss{name}"] == pytest.approx(float(loss), rel=1e-5)
    assert (values["final/train_loss"], values["final/train_top1_err"]) == (0.5, 7.0)


@pytest.mark.parametrize("ending", ["diverged", "dead"])
@pytest.mark.parametrize(
    ("counts", "top1", "top5", "loss"),
    [
        ((50,) * 10, 90.0, 50.0, math.log(10)),
        ((25,) * 4, 75.0, 0.0, math.log(4)),
        ((1,) * 1000, 99.9, 99.5, math.log(1000)),
        ((8, 0, 2), 20.0, 0.0, 0.5004024),  # of unequal classes: the largest one's share, the shares' entropy
        ((1, 40, 1, 1, 1, 1, 5), 20.0, 4.0, 0.79997565),
    ],
)
def test_a_diverged_or_dead_training_has_the_errors_of_chance(
    counts: tuple[int, ...], top1: float, top5: float, loss: float, ending: str
) -> None:
    tested = metrics(Trial(CELL), outcome(ending, counts))
    assert tested["final/test_top1_err"] == pytest.approx(top1)
    assert tested["final/test_top5_err"] == pytest.approx(top5)
    searched = metrics(Trial(CELL, "holdout"), outcome(ending, counts))
    assert searched["best/val_top1_err"] == pytest.approx(top1)
    assert searched["best/val_loss"] == searched["best/probe_loss"] == pytest.approx(loss)
    assert not any(name.startswith("final/test") for name in searched)


def test_a_lost_training_errs_on_the_test_set_as_often_as_its_guess_does_there() -> None:
    made = outcome("diverged", (9, 1), test_chance=wrong_guesses((9, 1), (5, 5)), ten_crops=True)
    tested = metrics(Trial(CELL), made)
    assert {name: value for name, value in tested.items() if name.startswith("final/test")} == {
        "final/test_top1_err": 50.0, "final/test_top1_err_10crop": 50.0,
        "final/test_top5_err": 0.0, "final/test_top5_err_10crop": 0.0,
    }  # fmt: skip
    matched = metrics(Trial(CELL, "match", match="none", reference="k"), made)
    assert (matched["final/test_top1_err"], matched["final/train_top1_err"]) == (50.0, pytest.approx(10.0))
    assert metrics(Trial(CELL, "holdout"), made)["best/val_top1_err"] == pytest.approx(10.0)


def test_the_guess_of_a_lost_training_is_counted_on_the_pictures_of_the_test(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def diverge(*_: object) -> None:
        raise DivergedError("the training loss is not a number in epoch 1")

    for split, counts in (("train", {"a": 9, "b": 3}), ("test", {"a": 2, "b": 6})):
        picture_folder(tmp_path / "pictures", split, counts, (32, 32))
    name = f"folder:{tmp_path / 'pictures'}"
    prepare(name, tmp_path, size=32, writer="native", workers=1)
    monkeypatch.setattr(Learner, "step", diverge)
    recipe = dataclasses.replace(ALLCONV, epochs=1, batch=4, restarts=0)
    trial = Trial(Cell("small", S2.width(0.125), name, recipe))
    result = run_trial(trial, RuntimeConfig(str(tmp_path / "ledger"), str(tmp_path), reader="threads"), lambda *_: None)
    assert result is not None
    assert result["status"] == "diverged"
    assert result["metrics"]["final/test_top1_err"] == 75.0
