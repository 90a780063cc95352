"""Trained net as MLflow loads it: the torch module, or a predictor that scores pictures as the test does.

To torch.load this module stands for Python's pickle (sweeps.tracking.model_files says why).
"""

from __future__ import annotations

import json
import zipfile
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import safetensors.torch
import torch
from numpy.typing import NDArray
from torch import nn

from crelu_data.augment import centre_view
from crelu_models.from_factory import build_model
from crelu_models.model import Model
from crelu_models.modules import build
from crelu_models.tensors import load_full_state, to_channels_last
from sweeps.experiment.trial import trial_from_json
from sweeps.training.evaluate import BATCH, score

ARCHIVE = "model.pth"


class Unpickler:
    """Reader of a model's archive, which torch.load calls as it would pickle's; it unpickles nothing."""

    def __init__(self, file: BinaryIO, **_options: object) -> None:
        """Take the part of the archive in which torch's own files have a pickle."""
        self.file = file

    def load(self) -> nn.Module:
        """Return the trained net; ValueError where net and weights do not belong together."""
        net, _ = trained(self.file.read())
        return net


def trained(content: bytes) -> tuple[nn.Module, dict[str, Any]]:
    """Return the net of an archive's content, and what it needs beside its weights to take pictures.

    That are trial, classes, crop, mean, std and precision. ValueError where net and weights do not belong together.
    """
    line, _, weights = content.partition(b"\n")
    facts: dict[str, Any] = json.loads(line)
    trial = trial_from_json(facts["trial"])
    classes, crop = int(facts["classes"]), int(facts["crop"])
    seed = trial.restarted(int(facts.get("restarts", 0)))
    net = build_model(trial.net, classes, seed) if isinstance(trial.net, Model) else build(trial.net, classes, crop)
    try:
        load_full_state(net, safetensors.torch.load(weights))
    except RuntimeError as error:
        raise ValueError(f"these weights are not of trial {trial.key}: {error}") from None
    return to_channels_last(net), facts


class Predictor:
    """Net of a finished trial, on the device on which it was asked for."""

    def __init__(self, folder: Path, device: str = "cpu") -> None:
        """Read the net and its weights from a folder; ValueError where they do not belong together."""
        with zipfile.ZipFile(folder / ARCHIVE) as archive:
            net, facts = trained(archive.read("model/data.pkl"))
        self.trial = trial_from_json(facts["trial"])
        self.crop = int(facts["crop"])
        self.mean, self.std = ([float(value) for value in facts[name]] for name in ("mean", "std"))
        self.precision = str(facts["precision"])
        self.device = torch.device(device)
        self.net = net.to(self.device)

    def predict(self, pictures: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Return the scores (n, classes), before softmax, of RGB pictures (n, h, h, 3) as bytes.

        They are those of the centre crop, in the batches and the precision of the test. Pictures are square, and as
        large as those that the net was tested on for the test's numbers. ValueError for other shapes and types.
        """
        array = np.asarray(pictures)
        if array.dtype != np.uint8 or array.ndim != 4 or array.shape[3] != 3:
            raise ValueError(f"pictures are bytes of shape (n, h, h, 3), not {array.dtype} of shape {array.shape}")
        images = torch.from_numpy(np.ascontiguousarray(array.transpose(0, 3, 1, 2)))
        views = (
            centre_view(images[n : n + BATCH].to(self.device), crop=self.crop, mean=self.mean, std=self.std)
            for n in range(0, len(images), BATCH)
        )
        return torch.cat([*score(self.net, views, self.precision)]).cpu().numpy()

    def get_raw_model(self) -> nn.Module:
        """Return the net itself, which takes normalised pictures (n, 3, crop, crop)."""
        return self.net


def _load_pyfunc(folder: str) -> Predictor:
    """Return the model that MLflow loads from a folder."""
    return Predictor(Path(folder))
