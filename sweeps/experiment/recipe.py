"""Training recipes of the paper as data (section 4, supplement E; gaps closed from the sources that it names)."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Any, NamedTuple

from sweeps.experiment.wording import count


class Stage(NamedTuple):
    """Stretch of a schedule: from `first_epoch` (1-based) on, lr and weight decay are multiplied by these factors."""

    first_epoch: int
    lr_factor: float
    decay_factor: float = 1.0


# Fields that came after the first results: at their defaults they are no part of a key.
ADDED = ("schedule", "nesterov", "label_smoothing", "resized_crop", "rand_augment", "rand_magnitude", "mixup", "ema")
MAGNITUDES = 31  # of RandAugment's operations, as torchvision counts them


@dataclass(frozen=True)
class Recipe:
    """Recipe of a training: everything but the net and the data.

    `stages` count epochs of a schedule of `schedule_epochs`, 0 for as many as `epochs`; a recipe with fewer `epochs`
    compresses that schedule. By the schedule "cosine" the learning rate falls from `lr` to 0, and no stage counts.
    `docs/recipes.md` lists all fields.

    `init` "own" leaves a model the weights of its own factory, as models have them by any other too.
    `precision` "auto" is bf16 autocast where the device computes in bf16, else fp32; "tf32" is fp32 with products in
    TF32, on GPUs that have it.
    """

    name: str
    optimiser: str
    batch: int
    epochs: int
    schedule_epochs: int = 0
    lr: float = 0.0
    weight_decay: float = 0.0
    stages: tuple[Stage, ...] = (Stage(1, 1.0),)
    init: str = "he_fan_in"
    momentum: float = 0.9
    dampening: float = 0.0
    flip: bool = True
    shift: int = 0
    lighting: float = 0.0
    drop_last: bool = False
    warmup_epochs: float = 0.0
    clip_norm: float = 0.0
    precision: str = "auto"
    restarts: int = 3
    schedule: str = "stages"
    nesterov: bool = False
    label_smoothing: float = 0.0
    resized_crop: float = 0.0
    rand_augment: int = 0
    rand_magnitude: int = 9
    mixup: float = 0.0
    ema: float = 0.0

    def __post_init__(self) -> None:
        """Raise ValueError for a value that no training can have."""
        if self.schedule_epochs == 0:
            object.__setattr__(self, "schedule_epochs", self.epochs)
        choices = {
            "optimiser": ("sgd", "adam", "adamw"),
            "schedule": ("stages", "cosine"),
            "init": ("he_fan_in", "he_fan_out", "xavier", "torch", "normal_0.01", "looks_linear", "own"),
            "precision": ("auto", "fp32", "tf32", "bf16"),
        }
        for field, allowed in choices.items():
            if getattr(self, field) not in allowed:
                raise ValueError(f"recipe.{field} is one of {', '.join(allowed)}, not {getattr(self, field)!r}")
        for field in ("batch", "epochs", "schedule_epochs"):
            if getattr(self, field) < 1:
                raise ValueError(f"recipe.{field} is at least 1, not {getattr(self, field)!r}")
        for field in ("weight_decay", "shift", "lighting", "warmup_epochs", "clip_norm", "restarts", "rand_augment",
                      "mixup"):  # fmt: skip
            if not getattr(self, field) >= 0:
                raise ValueError(f"recipe.{field} is at least 0, not {getattr(self, field)!r}")
        if not 0 < self.lr < float("inf"):
            raise ValueError(f"recipe.lr is above 0, not {self.lr!r}")
        if not (0 <= self.momentum < 1 and 0 <= self.dampening <= 1):
            raise ValueError(f"recipe.momentum is in [0, 1), not {self.momentum!r}; dampening in [0, 1]")
        for field in ("label_smoothing", "ema"):
            if not 0 <= getattr(self, field) < 1:
                raise ValueError(f"recipe.{field} is at least 0 and below 1, not {getattr(self, field)!r}")
        if not 0 <= self.resized_crop <= 1:
            raise ValueError(f"recipe.resized_crop is a share of the picture, 0 to 1, not {self.resized_crop!r}")
        if not 0 <= self.rand_magnitude < MAGNITUDES:
            raise ValueError(f"recipe.rand_magnitude is 0 to {MAGNITUDES - 1}, not {self.rand_magnitude!r}")
        if self.nesterov and (self.optimiser != "sgd" or not self.momentum or self.dampening):
            raise ValueError("recipe.nesterov is for sgd with a momentum and without dampening")
        if self.resized_crop and self.shift:
            raise ValueError("recipe.resized_crop takes the place of shifts: set recipe.shift=0 with it")
        if self.schedule == "cosine" and self.warmup_epochs >= self.epochs:
            raise ValueError(
                f"recipe.warmup_epochs of a cosine is below its {count(self.epochs, 'epoch')}, not "
                f"{self.warmup_epochs!r}"
            )
        starts = [stage.first_epoch for stage in self.stages]
        if starts[:1] != [1] or starts != sorted(set(starts)):
            raise ValueError(f"recipe.stages begin at epoch 1 and rise, not {starts}")

    def stage(self, epoch: int) -> Stage:
        """Return the stage of `epoch` (0-based, of this recipe's `epochs`)."""
        paper_epoch = epoch * self.schedule_epochs // self.epochs + 1
        return next(stage for stage in reversed(self.stages) if stage.first_epoch <= paper_epoch)

    def learning_rate(self, epoch: int, step: int, steps: int) -> float:
        """Return the learning rate of `step`, of `steps` in `epoch` (both 0-based)."""
        done = epoch + step / steps
        if self.schedule == "cosine":
            share = max(0.0, done - self.warmup_epochs) / (self.epochs - self.warmup_epochs)
            rate = self.lr * (1 + math.cos(math.pi * share)) / 2
        else:
            rate = self.lr * self.stage(epoch).lr_factor
        return rate * min(1.0, (done + 1 / steps) / self.warmup_epochs) if done < self.warmup_epochs else rate

    def steps(self, pictures: int) -> int:
        """Return the steps of an epoch over this many pictures.

        A last batch of a single picture is left out as with `drop_last`: batch norm needs two.
        """
        full, rest = divmod(pictures, self.batch)
        return max(1, full if self.drop_last or rest <= 1 else full + 1)

    def shared(self, pictures: int, ranks: int) -> None:
        """Raise ValueError where a batch of an epoch over this many pictures has fewer of them than ranks."""
        largest = min(self.batch, pictures)
        last = min(largest, pictures - (self.steps(pictures) - 1) * self.batch)
        if last < ranks:
            raise ValueError(
                f"a batch of {count(last, 'picture')} cannot be shared by {ranks} ranks (batch {self.batch} of "
                f"{count(pictures, 'picture')}{'' if last == self.batch else ', the last one of an epoch'}); take "
                f"fewer ranks, or train other cells by --set recipe.batch=N"
            )
        parted = [size for size in (largest, last) if any(size * rank // ranks % 2 for rank in range(ranks))]
        if self.mixup and parted:
            pairs = max(1, largest // (2 * ranks))
            raise ValueError(
                f"mixup mixes the pictures of a batch in pairs, and {ranks} ranks part a pair of "
                f"{count(parted[0], 'picture')}; take fewer ranks, or other cells by --set "
                f"recipe.batch={2 * ranks * pairs} recipe.drop_last=true"
            )

    def decay(self, epoch: int) -> float:
        """Return the weight decay of `epoch` (0-based)."""
        return self.weight_decay * (1.0 if self.schedule == "cosine" else self.stage(epoch).decay_factor)

    def compressed(self, epochs: int) -> Recipe:
        """Return the recipe with its schedule compressed to `epochs`.

        Warm-up keeps its epochs, but where they leave none for a cosine it keeps its share of them.
        """
        leaves_none = self.schedule == "cosine" and self.warmup_epochs >= epochs
        warmup = self.warmup_epochs * epochs / self.epochs if leaves_none else self.warmup_epochs
        return dataclasses.replace(self, epochs=epochs, warmup_epochs=warmup)

    def shortened(self, name: str, epochs: int, batch: int, lr: float) -> Recipe:
        """Return the recipe with its schedule compressed to `epochs`, and this name, batch and lr."""
        return dataclasses.replace(self.compressed(epochs), name=name, batch=batch, lr=lr)

    def to_json(self) -> dict[str, Any]:
        """Return the recipe as a JSON value; of the fields in ADDED only those that differ from their defaults."""
        content = dataclasses.asdict(self)
        defaults = {field.name: field.default for field in dataclasses.fields(self)}
        return {name: value for name, value in content.items() if name not in ADDED or value != defaults[name]}


# fmt: off
# The nets without batch norm need what their sources do not name: gradients cut at norm 1. Without that AVR and CReLU
# diverge within some ten steps. An epoch of warm-up helps at CIFAR's higher rates (docs/recipes.md).
CLIP = 1.0

SPRINGENBERG = (0.25, 0.1, 0.05, 0.01)  # the rates that Springenberg et al. (2015) tried, section 3.1

# All-conv nets on CIFAR (Springenberg et al. 2015): x0.1 at 200, 250, 300 of 350 epochs. The pages choose the lr out of
# {.25, .1, .05, .01} on the baseline's hold-out; .05 is that of the published All-CNN-C.
ALLCONV = Recipe("allconv", "sgd", 128, 350, 350, 0.05, 1e-3,
                 (Stage(1, 1.0), Stage(201, 0.1), Stage(251, 0.01), Stage(301, 0.001)), "he_fan_in",
                 warmup_epochs=1.0, clip_norm=CLIP)

# VGG on CIFAR (Zagoruyko's cifar.torch): lr 1 with Torch7's default dampening = momentum, i.e. 0.1 in effect;
# halved at the start of epochs 25, 50, ... and 300, the last; the incomplete last batch is dropped.
VGG = Recipe("vgg", "sgd", 128, 300, 300, 1.0, 5e-4,
             (Stage(1, 1.0), *(Stage(25 * k, 0.5**k) for k in range(1, 13))), "he_fan_out",
             dampening=0.9, shift=4, drop_last=True)

# ImageNet, supplement E: (lr, weight decay) by ranges of epochs; lr 1e-2 and decay 5e-4 at first, decay 0 from 26.
IMAGENET_SGD = Recipe("imagenet-sgd", "sgd", 64, 45, 45, 1e-2, 5e-4,
                      (Stage(1, 1.0), Stage(11, 0.1), Stage(21, 0.01), Stage(26, 5e-3, 0), Stage(31, 1e-3, 0),
                       Stage(36, 5e-4, 0), Stage(41, 1e-4, 0)), "he_fan_in", clip_norm=CLIP)
IMAGENET_ADAM = Recipe("imagenet-adam", "adam", 64, 100, 100, 2e-4, 0.0, (Stage(1, 1.0),), "he_fan_in",
                       clip_norm=CLIP)
# fmt: on


class Dimension(NamedTuple):
    """Dropout rate for a search to choose: after which layer, and from low to high in steps."""

    after: str
    low: float
    high: float
    step: float


# The dropout rates that the paper tuned, by the family that a recipe's name begins with.
SPACES = {
    "allconv": (Dimension("input", 0.0, 0.4, 0.05), Dimension("pool1", 0.0, 0.7, 0.05),
                Dimension("pool2", 0.0, 0.7, 0.05)),
    "vgg": (Dimension("conv1", 0.0, 0.4, 0.05), Dimension("conv3", 0.0, 0.5, 0.05),
            Dimension("conv5", 0.0, 0.5, 0.05), Dimension("conv6", 0.0, 0.5, 0.05)),
    "imagenet": (Dimension("conv9", 0.0, 0.5, 0.25),),
}  # fmt: skip
