"""Trained net that takes pictures as a user has them, and scores them as the test does: MLflow loads it as a model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch
from numpy.typing import NDArray
from torch import nn

from crelu_data.augment import centre_view
from crelu_models.modules import build
from sweeps.experiment.trial import trial_from_json
from sweeps.training.evaluate import BATCH, score

NET = "net.json"  # what a net needs beside its weights: trial, classes, crop, mean, std, precision
WEIGHTS = "weights.safetensors"


class Predictor:
    """Net of a finished trial, on the device on which it was asked for."""

    def __init__(self, folder: Path, device: str = "cpu") -> None:
        """Read the net and its weights from a folder; ValueError where they do not belong together."""
        facts: dict[str, Any] = json.loads((folder / NET).read_text(encoding="utf-8"))
        self.trial = trial_from_json(facts["trial"])
        self.crop = int(facts["crop"])
        self.mean, self.std = ([float(value) for value in facts[name]] for name in ("mean", "std"))
        self.precision = str(facts["precision"])
        self.device = torch.device(device)
        self.net: nn.Module = build(self.trial.net, int(facts["classes"]), self.crop)
        try:
            self.net.load_state_dict(safetensors.torch.load_file(folder / WEIGHTS))
        except RuntimeError as error:
            raise ValueError(f"these weights are not of trial {self.trial.key}: {error}") from None
        self.net = self.net.to(self.device, memory_format=torch.channels_last)  # type: ignore[call-overload]

    def predict(self, pictures: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Return the scores (n, classes), before softmax, of RGB pictures (n, h, h, 3) as bytes.

        They are those of the centre crop, in the batches and the precision of the test. Pictures are square, and as
        large as those that the net was tested on for the test's numbers. ValueError for other shapes and types.
        """
        given = np.asarray(pictures)
        if given.dtype != np.uint8 or given.ndim != 4 or given.shape[3] != 3:
            raise ValueError(f"pictures are bytes of shape (n, h, h, 3), not {given.dtype} of shape {given.shape}")
        images = torch.from_numpy(np.ascontiguousarray(given.transpose(0, 3, 1, 2)))
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
