"""Weights to analyse with what they are, read and checked, and the pictures that a net is looked at with."""

from __future__ import annotations

import dataclasses
import hashlib
import io
import re
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import safetensors.torch
import torch
from torch import Tensor, nn

from crelu_models.modules import build
from crelu_models.spec import Conv, Linear, Net
from crelu_models.tables import PAPER
from data.datasets import beton_path, dataset, order, read_sidecar
from data.load import Pictures
from sweeps.analysis.sources import NETS, TORCHVISION, NotApplicable, Source
from sweeps.experiment.plan import unknown_name
from sweeps.experiment.trial import trial_from_json
from sweeps.store.ledger import Ledger
from sweeps.training.runtime import RuntimeConfig
from sweeps.training.splits import open_file

RESIDENT = 2**29  # bytes of pictures that are kept decoded: an analysis stays within 4 GiB
# Where torchvision keeps what our net has under the paper's names.
RENAMED = {
    **{f"features.{place}": f"conv{i}" for i, place in enumerate((0, 3, 6, 8, 10), 1)},
    **{f"classifier.{place}": f"fc{i}" for i, place in enumerate((1, 4, 6), 6)},
}


@dataclass(frozen=True)
class LoadedNet:
    """Weights with what they are; `folder` is where the ledger keeps their analyses, `dataset` may be empty."""

    label: str
    folder: str
    net: Net
    dataset: str
    weights: dict[str, Tensor]

    @property
    def classes(self) -> int:
        """Return how many scores the net gives."""
        head = next(row for row in self.net.rows if isinstance(row, Conv | Linear) and row[1] is None)
        return len(self.weights[f"{head.name}.weight"])

    def convs(self) -> list[Conv]:
        """Return the net's convs, in order."""
        return [row for row in self.net.rows if isinstance(row, Conv)]

    def model(self, size: int, device: str = "cpu", dtype: torch.dtype = torch.float32) -> nn.Sequential:
        """Return the net with these weights, as it is used on pictures of side `size`."""
        model = build(self.net, self.classes, size)
        model.load_state_dict(self.weights)
        return model.to(device, dtype).eval().requires_grad_(False)


class ImageSample(NamedTuple):
    """The test pictures an analysis looks at: the file, which of them, stored side, side the net sees, colours."""

    pictures: Pictures
    indices: np.ndarray[Any, np.dtype[np.int64]]
    size: int
    crop: int
    mean: Tensor
    std: Tensor

    def batches(self, count: int) -> Iterator[Tensor]:
        """Yield the chosen pictures as stored, `count` at a time: uint8 (n, 3, size, size)."""
        for batch in self.pictures.batches(self.indices, count):
            yield batch.images

    def seen(self, count: int) -> Iterator[Tensor]:
        """Yield the chosen pictures as the net reads them, centre crops: float32 (n, 3, crop, crop)."""
        edge = (self.size - self.crop) // 2
        for images in self.batches(count):
            yield self.read(images[:, :, edge : edge + self.crop, edge : edge + self.crop])

    def read(self, images: Tensor) -> Tensor:
        """Return pictures (n, 3, h, w) of 0..255 as a net reads them: float32, less the mean, over the deviation."""
        return (images.float() / 255 - self.mean) / self.std

    def pixels(self, read: Tensor) -> Tensor:
        """Return what `read` gave as pixels on 0..1, and a little beyond where it is no picture."""
        return read * self.std.to(read) + self.mean.to(read)


def view(subject: LoadedNet, place: RuntimeConfig, samples: int, seed: int) -> ImageSample:
    """Open the pictures the subject is tested on and choose `samples` of them (0: all), the same for every net.

    ValueError where no data set is named, or its files are not there.
    """
    if not subject.dataset:
        raise ValueError(f"{subject.label} says nothing of its pictures: name their set, e.g. --dataset cifar10")
    where = Path(place.data_dir)
    facts = dataset(subject.dataset, where)
    test, train = (beton_path(subject.dataset, split, where) for split in (facts.final, "train"))
    if not test.exists():
        raise ValueError(f"{test} is missing; to make it: python -m data prepare {subject.dataset}")
    colours = read_sidecar(train.with_suffix(".json"))
    pictures = open_file(test, dataclasses.replace(place, resident_bytes=RESIDENT))
    chosen = order(seed, 0, np.arange(len(pictures), dtype=np.int64))[: samples or None]
    mean, std = (torch.tensor(c, device=place.device).view(3, 1, 1) for c in (colours.mean, colours.std))
    return ImageSample(pictures, np.sort(chosen), facts.size, facts.crop, mean, std)


def choose(net: Net, fitting: Sequence[str], asked: Sequence[str], why: Callable[[str], str]) -> list[str]:
    """Return the asked layers, all `fitting` ones where none is asked for.

    ValueError for a layer the net has not, Misfit with `why(layer)` for one that does not fit.
    """
    names = [row.name for row in net.rows if isinstance(row, Conv)]
    for name in asked:
        if name not in names:
            raise ValueError(unknown_name("conv", name, names, net.name))
        if name not in fitting:
            raise NotApplicable(why(name))
    return [name for name in names if name in (asked or fitting)]


def read(source: Source, ledger: Ledger) -> LoadedNet:
    """Return the weights of `source` with what they are; ValueError where they are not what they should be."""
    if source.trial:
        return _trial(source, ledger)
    if not source.file:
        return LoadedNet("no weights", "weights/none", PAPER["S2"], source.dataset, {})
    net = NETS[source.net]
    content = _download() if source.file == TORCHVISION else Path(source.file).read_bytes()
    weights = {_renamed(name): value for name, value in _loaded(content, source.file).items()}
    digest = hashlib.sha256(content + source.net.encode()).hexdigest()[:12]
    stem = re.sub(r"[^A-Za-z0-9]+", "-", Path(source.file).stem)
    subject = LoadedNet(f"{stem} ({net.name})", f"weights/{stem}-{digest}", net, source.dataset, weights)
    _check(subject)
    return subject


def _trial(source: Source, ledger: Ledger) -> LoadedNet:
    folder = f"trials/{source.trial}"
    trial = trial_from_json(ledger.read_json(f"{folder}/trial.json"))
    content = ledger.read(f"{folder}/weights.safetensors")
    if content is None:
        raise ValueError(f"{ledger.path(folder)} has lost its weights.safetensors")
    label = f"{trial.cell.label} {trial.label}"
    data = source.dataset or trial.cell.dataset
    subject = LoadedNet(label, folder, trial.net, data, _loaded(content, f"{folder}/weights.safetensors"))
    _check(subject)
    return subject


def _loaded(content: bytes, name: str) -> dict[str, Tensor]:
    """Return the tensors in the bytes of a file. Nothing in it is executed."""
    try:
        if name.endswith(".safetensors"):
            return dict(safetensors.torch.load(content))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of pickle protocols that it may not know
            value = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except Exception as error:  # torch, pickle and safetensors raise of all kinds on a damaged file
        why = (str(error) or type(error).__name__).splitlines()[0]
        raise ValueError(f"{name} holds no weights that can be read: {why}") from None
    value = value.get("state_dict", value) if isinstance(value, dict) else value
    if not isinstance(value, dict) or not all(isinstance(tensor, Tensor) for tensor in value.values()):
        raise ValueError(f"{name} holds no state dict of tensors but a {type(value).__name__}")
    return value


def _download() -> bytes:
    """Return torchvision's AlexNet weights as a safetensors file; ValueError where they cannot be had."""
    from torchvision.models import AlexNet_Weights

    try:
        state = AlexNet_Weights.IMAGENET1K_V1.get_state_dict(progress=False, check_hash=True, weights_only=True)
    except OSError as error:
        raise ValueError(
            f"torchvision's AlexNet could not be downloaded ({error}); with a copy of its file: "
            f"--weights FILE --net alexnet"
        ) from None
    content: bytes = safetensors.torch.save(dict(state))
    return content


def _renamed(name: str) -> str:
    module, _, tensor = name.rpartition(".")
    return f"{RENAMED.get(module, module)}.{tensor}"


def _check(subject: LoadedNet) -> None:
    """Raise ValueError where the weights are not those of the net."""
    net, weights = subject.net, subject.weights
    head = next(row.name for row in net.rows if isinstance(row, Conv | Linear) and row[1] is None)
    if f"{head}.weight" not in weights:
        raise ValueError(f"{subject.label}: there is no {head}.weight, which {net.name} has")
    # On the meta device a net costs no memory. Only linear layers know the side of the picture.
    with torch.device("meta"):
        wanted = build(net, subject.classes).state_dict()
    linears = [row.name for row in net.rows if isinstance(row, Linear)]
    for name, tensor in wanted.items():
        found = weights.get(name)
        linear = name.partition(".")[0] in linears
        if found is None or (found.shape != tensor.shape and not linear):
            has = "missing" if found is None else f"{tuple(found.shape)}"
            raise ValueError(f"{subject.label}: {name} is {has}, {net.name} has {tuple(tensor.shape)}")
    if extra := [name for name in weights if name not in wanted]:
        raise ValueError(f"{subject.label}: {extra[0]} is no tensor of {net.name}")
