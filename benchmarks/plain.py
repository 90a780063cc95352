"""A training as one writes it without us: torch's layers, PIL, a DataLoader, a plain loop; the peer of our benchmarks.

    python -m benchmarks.plain TRIALS.json NUMBER     the shell loop's step: one training, its test error printed

Net, split, recipe and epochs are those of a trial of ours; everything that computes is torch's and torchvision's own.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

Rows = list[dict[str, Any]]


def train(row: dict[str, Any], pictures: str, report: Callable[[dict[str, float]], None]) -> float:
    """Train what `row` says ({"trial", "epochs"}) on the arrays in the file `pictures`; return its test error in %."""
    import torch
    from torch.utils.data import DataLoader, Subset
    from torchvision import transforms

    from crelu_data.datasets import folds, holdout
    from crelu_models.modules import build, initialise
    from sweeps.experiment.trial import PHASES, trial_from_json
    from sweeps.training.splits import SPLIT_SEED

    trial = trial_from_json(row["trial"])
    recipe = trial.recipe
    phase = PHASES[trial.phase]
    arrays = np.load(pictures)
    labels = arrays["train_labels"]
    mean, std = tuple(arrays["mean"]), tuple(arrays["std"])
    learn = held_out = np.arange(len(labels))
    if phase.split == "holdout":
        learn, held_out = holdout(labels, int(arrays["holdout"]), SPLIT_SEED)
    elif phase.split == "fold":
        learn, held_out = folds(labels, trial.folds, SPLIT_SEED)[trial.fold]
    plain = [transforms.ToTensor(), transforms.Normalize(mean, std)]
    crop = [transforms.RandomCrop(arrays["train"].shape[1], padding=recipe.shift)] if recipe.shift else []
    moved = transforms.Compose([transforms.RandomHorizontalFlip(), *crop, *plain])
    still = transforms.Compose(plain)
    size = arrays["train"].shape[1]
    classes = int(arrays["classes"])
    model = plainly(build(trial.net, classes, size))
    initialise(model, trial.net, recipe.init, trial.seed)
    torch.manual_seed(trial.seed)
    optimiser: torch.optim.Optimizer
    if recipe.optimiser == "adam":
        optimiser = torch.optim.Adam(model.parameters(), recipe.lr, weight_decay=recipe.weight_decay)
    else:
        optimiser = torch.optim.SGD(
            model.parameters(), recipe.lr, recipe.momentum, recipe.dampening, recipe.weight_decay
        )
    loss_of = torch.nn.CrossEntropyLoss()
    batches = DataLoader(Subset(Pictures(arrays["train"], labels, moved), learn.tolist()), recipe.batch, shuffle=True,
                         num_workers=1, drop_last=recipe.drop_last)  # fmt: skip
    chosen = Subset(Pictures(arrays["train"], labels, still), held_out.tolist())

    def error(pictures: Any) -> float:
        model.eval()
        wrong = 0
        with torch.no_grad():
            for images, targets in DataLoader(pictures, 256, num_workers=1):
                wrong += int((model(images).argmax(1) != targets).sum())
        return 100 * wrong / len(pictures)

    best = float("inf")
    weights = None
    for epoch in range(row["epochs"]):
        model.train()
        for step, (images, targets) in enumerate(batches):
            for group in optimiser.param_groups:
                group["lr"] = recipe.learning_rate(epoch, step, len(batches))
                group["weight_decay"] = recipe.decay(epoch)
            optimiser.zero_grad()
            loss = loss_of(model(images), targets)
            loss.backward()
            optimiser.step()
        now = error(chosen) if phase.split != "full" else 0.0
        if phase.select == "best" and now <= best:
            best = now
            weights = {name: value.clone() for name, value in model.state_dict().items()}
        report({"loss": loss.item(), "val_error": now})
    if weights is not None:
        model.load_state_dict(weights)
    return error(Pictures(arrays["test"], arrays["test_labels"], still)) if phase.test else best


class Pictures:
    """A data set over arrays, made into PIL pictures one by one, as torchvision's CIFAR10 does."""

    def __init__(self, images: np.ndarray, labels: np.ndarray, transform: Callable[[Any], Any]) -> None:
        self.images = images
        self.labels = labels
        self.transform = transform

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Any, int]:
        from PIL import Image

        return self.transform(Image.fromarray(self.images[index])), int(self.labels[index])


def plainly(model: Any) -> Any:
    """Return a net of ours with torch's own dropout, and CReLU as two ReLUs that are concatenated."""
    import torch
    from torch import nn

    from crelu_models.activations import CReLU
    from crelu_models.dropout import Dropout

    class Naive(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.cat([torch.relu(x), torch.relu(-x)], 1)

    for name, part in model.named_children():
        if isinstance(part, CReLU):
            setattr(model, name, Naive())
        elif isinstance(part, Dropout):
            setattr(model, name, nn.Dropout(part.rate))
    return model


if __name__ == "__main__":
    _rows = json.loads(Path(sys.argv[1]).read_text())
    print(train(_rows["trials"][int(sys.argv[2])], _rows["pictures"], lambda _: None))
