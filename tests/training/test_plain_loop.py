"""A trial is the training that its recipe says: compared with a plain loop of torch, three epochs in float32."""

import json
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import safetensors.torch
import torch
from torch import Tensor, nn
from torch.nn import functional

from crelu_data.datasets import beton_path, folds, order
from crelu_data.load import open_pictures
from crelu_data.write import prepare
from crelu_models.modules import build, initialise
from crelu_models.spec import Conv, Linear, Net, Pool
from sweeps.experiment.recipe import Recipe, Stage
from sweeps.experiment.trial import Cell, Trial
from sweeps.store.ledger import Ledger
from sweeps.training.run_trial import run_trial
from tests.support.trials import runtime_config

DATA = "synthetic:size=32,classes=4,train=250,test=60"


def shallow(optimiser: str) -> Net:
    """Return a net that learns in the steps of three epochs.

    It has batch norm with SGD alone: the gradient of a bias before batch norm is rounding, which Adam scales up.
    """
    conv = Conv("conv1", 8, 5, 2, 2, act="crelu")
    second = Conv("conv2", 16, 3, 1, 1, bn=optimiser == "sgd")
    rows = (conv, Pool("pool1", "max", 2, 2), second, Pool("pool2", "avg", 0), Linear("fc1", None, act="none"))
    return Net("shallow", rows, 32)


SEED = 5
FOLD = 1
FOLDS = 3
BATCH = 16
# Learning rate and weight decay by epoch. The second epoch has no decay; the third overshoots.
SCHEDULES = {"sgd": ((0.05, 0.02), (0.05, 0.0), (1.0, 0.02)), "adam": ((0.01, 0.02), (0.01, 0.0), (0.2, 0.02))}


def trial_of(optimiser: str) -> Trial:
    (lr, decay), *_, (last_lr, last_decay) = SCHEDULES[optimiser]
    stages = (Stage(1, 1.0), Stage(2, 1.0, 0.0), Stage(3, last_lr / lr, last_decay / decay))
    recipe = Recipe("allconv", optimiser, BATCH, 3, 3, lr, decay, stages, "he_fan_in", flip=False, precision="fp32")
    return Trial(Cell("plain", shallow(optimiser), DATA, recipe), "fold", SEED, fold=FOLD, folds=FOLDS)


def read(data: Path, split: str) -> tuple[Tensor, Tensor]:
    """Return the pictures of a split as a net sees them, normalised by the training pictures, and their labels."""
    with open_pictures(beton_path(DATA, split, data), reader="threads") as pictures:
        count = len(pictures)
        (batch,) = pictures.batches(np.arange(count), count)
    with open_pictures(beton_path(DATA, "train", data), reader="threads") as pictures:
        mean, std = (torch.tensor(value).view(3, 1, 1) for value in (pictures.sidecar.mean, pictures.sidecar.std))
    return (batch.images.float() / 255 - mean) / std, batch.labels


def plain(optimiser: str, data: Path) -> tuple[list[tuple[float, float, float]], list[dict[str, Tensor]]]:
    """Train by torch.optim alone; return training loss, held-out loss and error of each epoch, and its weights."""
    images, labels = read(data, "train")
    learned, held_out = folds(labels.numpy(), FOLDS, 0)[FOLD]
    net = shallow(optimiser)
    model = build(net, 4, 32)
    initialise(model, net, "he_fan_in", SEED)
    weights = model.parameters()
    theirs = torch.optim.SGD(weights, 1.0, 0.9) if optimiser == "sgd" else torch.optim.Adam(weights)
    curves, states = [], []
    for epoch, (lr, decay) in enumerate(SCHEDULES[optimiser]):
        theirs.param_groups[0].update(lr=lr, weight_decay=decay)
        model.train()
        total = 0.0
        for batch in torch.from_numpy(order(SEED, epoch, learned)).split(BATCH):
            loss = functional.cross_entropy(model(images[batch]), labels[batch])
            theirs.zero_grad()
            loss.backward()
            theirs.step()
            total += loss.item() * len(batch)
        scores = scored(model, images[held_out])
        wrong = 100 * (scores.argmax(1) != labels[held_out]).double().mean().item()
        held_out_loss = functional.cross_entropy(scores, labels[held_out]).item()
        curves.append((total / len(learned), held_out_loss, wrong))
        states.append({name: value.clone() for name, value in model.state_dict().items()})
    return curves, states


def scored(model: nn.Module, images: Tensor) -> Tensor:
    model.eval()
    with torch.no_grad():
        return model(images)


@pytest.mark.parametrize("optimiser", SCHEDULES)
def test_trial_is_a_plain_loop_of_torch_and_its_best_weights_are_tested(optimiser: str, tmp_path: Path) -> None:
    prepare(DATA, tmp_path / "data")
    trial = trial_of(optimiser)
    result = run_trial(trial, runtime_config(tmp_path / "data", tmp_path / "ledger"), lambda *_: None)
    assert result is not None
    ledger = Ledger(str(tmp_path / "ledger"))
    curves, states = plain(optimiser, tmp_path / "data")

    # Each epoch: the loss while training, and the held-out pictures after it.
    history = json.loads(ledger.read(f"trials/{trial.key}/history.json") or b"")
    ours = [(row["train/loss"], row["val/loss"], row["val/top1_err"]) for row in history]
    assert np.asarray(ours) == pytest.approx(np.asarray(curves), rel=1e-3)

    # The best epoch is not the last, and its weights are those that are saved and tested.
    best = min(range(3), key=lambda epoch: (curves[epoch][2], curves[epoch][1]))
    assert best < 2
    assert result["metrics"]["best/epoch"] == best + 1
    saved = safetensors.torch.load_file(ledger.path(f"trials/{trial.key}/weights.safetensors"))
    for name, value in states[best].items():
        assert torch.allclose(saved[name], value, atol=1e-4), name
    model = build(trial.net, 4, 32)
    model.load_state_dict(states[best])
    images, labels = read(tmp_path / "data", "test")
    scores = scored(model, images)
    table = pq.read_table(ledger.path(f"trials/{trial.key}/tables/scores.parquet"))
    assert np.asarray(table["centre"].to_pylist()) == pytest.approx(scores.numpy(), abs=1e-3)
    wrong = 100 * (scores.argmax(1) != labels).double().mean().item()
    assert result["metrics"]["final/test_top1_err"] == pytest.approx(wrong)
