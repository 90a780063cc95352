"""Weights to analyse, loaded with their net and checked, and the test pictures to analyse them on."""

from __future__ import annotations

import dataclasses
import hashlib
import io
import re
import shlex
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import safetensors.torch
import torch
from torch import Tensor, nn

from crelu_data.availability import fingerprint
from crelu_data.datasets import beton_path, dataset, order, prepare_command, read_sidecar
from crelu_data.load import Pictures
from crelu_models.model import Model
from crelu_models.modules import build
from crelu_models.spec import Conv, Linear, Net
from crelu_models.tables import PAPER
from sweeps.analysis.sources import NETS, TORCHVISION, NotApplicableError, Source
from sweeps.experiment.trial import Cell, trial_from_json
from sweeps.experiment.wording import unknown_name
from sweeps.store.integrity import checked
from sweeps.store.ledger import Ledger
from sweeps.training.runtime import RuntimeConfig
from sweeps.training.splits import open_file

STATE_DICTS = ("state_dict", "model", "model_state_dict")
RESIDENT = 2**29  # bytes of decoded pictures in memory: an analysis stays within 4 GiB
# Torchvision's names of the layers that our net has under the paper's names.
RENAMED = {
    **{f"features.{place}": f"conv{i}" for i, place in enumerate((0, 3, 6, 8, 10), 1)},
    **{f"classifier.{place}": f"fc{i}" for i, place in enumerate((1, 4, 6), 6)},
}


@dataclass(frozen=True)
class LoadedNet:
    """Weights with their net, if it is known; `folder` has their analyses on the ledger, `dataset` may be empty.

    `fingerprint` is that of the pictures that they have to be analysed on, empty for any. `cell` is that of a trial.
    """

    label: str
    folder: str
    known: Net | None
    dataset: str
    weights: dict[str, Tensor]
    fingerprint: str = ""
    cell: Cell | None = None

    @property
    def net(self) -> Net:
        """Return the net; NotApplicableError where it is not known."""
        if self.known is None:
            raise NotApplicableError(f"{self.label}: say of which net the weights are, e.g. --net S8")
        return self.known

    @property
    def conv_names(self) -> list[str]:
        """Return the names of the convs, in order; of an unknown net those of its tensors of four dimensions."""
        if self.known is None:
            return [name.removesuffix(".weight") for name in self.weights]
        return [conv.name for conv in self.convs()]

    @property
    def classes(self) -> int:
        """Return how many scores the net gives."""
        return len(self.weights[f"{_head(self.net)}.weight"])

    def convs(self) -> list[Conv]:
        """Return the net's convs, in order."""
        return [row for row in self.net.rows if isinstance(row, Conv)]

    def model(self, size: int, device: str = "cpu", dtype: torch.dtype = torch.float32) -> nn.Sequential:
        """Return the net with these weights, as it is used on pictures of side `size`."""
        model = build(self.net, self.classes, size)
        model.load_state_dict(self.weights)
        return model.to(device, dtype).eval().requires_grad_(False)


class ImageSample(NamedTuple):
    """The test pictures of an analysis: file, chosen indices, stored side, the side a net sees, colours."""

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
        """Yield the chosen pictures as a net sees them, centre crops: float32 (n, 3, crop, crop)."""
        edge = (self.size - self.crop) // 2
        for images in self.batches(count):
            yield self.normalised(images[:, :, edge : edge + self.crop, edge : edge + self.crop])

    def normalised(self, images: Tensor) -> Tensor:
        """Return pictures (n, 3, h, w) of 0..255 as a net sees them: float32, less the mean, over the deviation."""
        return (images.float() / 255 - self.mean) / self.std

    def pixels(self, normalised: Tensor) -> Tensor:
        """Return normalised pictures as pixels on 0..1, and a little beyond where they are no pictures."""
        return normalised * self.std.to(normalised) + self.mean.to(normalised)


def open_sample(loaded: LoadedNet, runtime: RuntimeConfig, samples: int, seed: int) -> ImageSample:
    """Open the pictures that the net is tested on and choose `samples` of them (0: all), the same for every net.

    ValueError where no data set is named, where its files are not there, or are not those that a run was trained on.
    """
    if not loaded.dataset:
        raise ValueError(f"{loaded.label} says nothing of its pictures: name their set, e.g. --dataset cifar10")
    folder = Path(runtime.data_dir)
    facts = dataset(loaded.dataset, folder)
    test, train = (beton_path(loaded.dataset, split, folder) for split in (facts.final, "train"))
    if not test.exists():
        raise ValueError(f"{test} is missing; to make it: {prepare_command(loaded.dataset, folder)}")
    if loaded.fingerprint and loaded.fingerprint != fingerprint(loaded.dataset, folder):
        raise ValueError(
            f"{loaded.label}: the pictures of {loaded.dataset} in {folder} are not those it was trained on; "
            f"--dataset {shlex.quote(loaded.dataset)} says that you mean these"
        )
    colours = read_sidecar(train.with_suffix(".json"))
    pictures = open_file(test, dataclasses.replace(runtime, resident_bytes=RESIDENT))
    chosen = order(seed, 0, np.arange(len(pictures), dtype=np.int64))[: samples or None]
    mean, std = (torch.tensor(c, device=runtime.device).view(3, 1, 1) for c in (colours.mean, colours.std))
    return ImageSample(pictures, np.sort(chosen), facts.size, facts.crop, mean, std)


def choose_layers(net: Net, fitting: Sequence[str], asked: Sequence[str], why: Callable[[str], str]) -> list[str]:
    """Return the asked layers, or all `fitting` ones.

    ValueError for a layer that the net lacks, NotApplicableError with `why(layer)` for one that does not fit.
    """
    names = [row.name for row in net.rows if isinstance(row, Conv)]
    for name in asked:
        if name not in names:
            raise ValueError(unknown_name("conv", name, names, net.name))
        if name not in fitting:
            raise NotApplicableError(why(name))
    return [name for name in names if name in (asked or fitting)]


def load(source: Source, ledger: Ledger) -> LoadedNet:
    """Return the weights of `source` with their net; ValueError where they are not of that net."""
    if source.trial:
        folder = f"trials/{source.trial}"
        result = ledger.result(source.trial)
        if result is not None and (why := checked(ledger, source.trial, result, ["trial.json", "weights.safetensors"])):
            raise ValueError(f"{why}; the sweep's command with --retry-failed trains it anew")
        trial = trial_from_json(ledger.read_json(f"{folder}/trial.json"))
        cell = trial.cell
        if isinstance(trial.net, Model):
            raise NotApplicableError(f"analyses are of nets of this package, and the net of {cell.label} is a model")
        content = ledger.read(f"{folder}/weights.safetensors")
        if content is None:
            raise ValueError(f"{ledger.path(folder)} has lost its weights.safetensors")
        label = f"{cell.label} {trial.label}"
        weights = _tensors(content, f"{folder}/weights.safetensors")
        # The pictures of --dataset are those of today. Only without it are they compared with those of the training.
        trained_on = "" if source.dataset or result is None else str(result.get("fingerprint", ""))
        loaded = LoadedNet(label, folder, trial.net, source.dataset or cell.dataset, weights, trained_on, cell)
    elif source.file:
        content = _download() if source.file == TORCHVISION else Path(source.file).read_bytes()
        tensors = _tensors(content, source.file)
        digest = hashlib.sha256(content + source.net.encode()).hexdigest()[:12]
        stem = re.sub(r"[^A-Za-z0-9]+", "-", Path(source.file).stem)
        folder = f"weights/{stem}-{digest}"
        if not source.net:
            return LoadedNet(stem, folder, None, source.dataset, _conv_weights(tensors, source.file))
        net = NETS[source.net]
        weights = {_renamed(name): value for name, value in tensors.items()}
        loaded = LoadedNet(f"{stem} ({net.name})", folder, net, source.dataset, weights)
    else:
        return LoadedNet("no weights", "weights/none", PAPER["S2"], source.dataset, {})
    _check(loaded)
    return loaded


def _tensors(content: bytes, name: str) -> dict[str, Tensor]:
    """Return the tensors in the bytes of a file. Nothing in it is executed."""
    try:
        if name.endswith(".safetensors"):
            return dict(safetensors.torch.load(content))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of pickle protocols that it may not know
            value = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except Exception as error:  # torch, pickle and safetensors raise of all kinds on a damaged file
        why = (str(error) or type(error).__name__).splitlines()[0].partition(". ")[0]  # torch adds advice
        raise ValueError(f"{name} holds no weights that can be read: {why}") from None
    if isinstance(value, dict):
        # A training's checkpoint has its state dict beside other things.
        value = next((value[key] for key in STATE_DICTS if isinstance(value.get(key), dict)), value)
    if not isinstance(value, dict) or not all(isinstance(tensor, Tensor) for tensor in value.values()):
        raise ValueError(f"{name} holds no state dict of tensors but a {type(value).__name__}")
    return value


def _conv_weights(tensors: Mapping[str, Tensor], file: str) -> dict[str, Tensor]:
    """Return the weights of convs among anybody's tensors: four dimensions (k, c, h, w), k of 2 or more."""
    convs = {
        f"{name.removesuffix('.weight')}.weight": tensor
        for name, tensor in tensors.items()
        if tensor.ndim == 4 and len(tensor) > 1 and tensor.is_floating_point()
    }
    if not convs:
        raise ValueError(
            f"{file} holds no tensor of four dimensions (filters, channels, height, width) with two filters or more, "
            "so no conv"
        )
    return convs


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


def _head(net: Net) -> str:
    """Return the name of the layer that gives the scores."""
    return next(row.name for row in net.rows if isinstance(row, Conv | Linear) and row[1] is None)


def _check(loaded: LoadedNet) -> None:
    """Raise ValueError where the weights are not those of the net."""
    net, weights = loaded.net, loaded.weights
    if f"{_head(net)}.weight" not in weights:
        raise ValueError(f"{loaded.label}: there is no {_head(net)}.weight, which {net.name} has")
    # On the meta device a net costs no memory. Only linear layers know the side of the picture.
    with torch.device("meta"):
        expected = build(net, loaded.classes).state_dict()
    linears = [row.name for row in net.rows if isinstance(row, Linear)]
    for name, tensor in expected.items():
        shape = weights[name].shape if name in weights else None
        if shape is None or (shape != tensor.shape and name.partition(".")[0] not in linears):
            has = "missing" if shape is None else f"{tuple(shape)}"
            raise ValueError(f"{loaded.label}: {name} is {has}, {net.name} has {tuple(tensor.shape)}")
    if extra := [name for name in weights if name not in expected]:
        raise ValueError(f"{loaded.label}: {extra[0]} is no tensor of {net.name}")
