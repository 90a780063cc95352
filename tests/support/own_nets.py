"""A researcher's folder: a page with nets of their own on pictures of their own, beside files of common names."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from statistics import fmean

import numpy as np
from PIL import Image

from sweeps.experiment.plan import Plan, current_plan
from sweeps.store.ledger import Ledger
from tests.support.commands import environment

PAGE = '''"""Which activation suits a residual net, and which a transformer?"""

from pathlib import Path

from sweeps import Cell, Float, Model, Protocol, Recipe, Search, grid, main

NETS = {
    "resnet": (Model("FACTORY", size=32), "PLACES"),
    "vit": (Model("torchvision.models:VisionTransformer", size=32, image_size=32, patch_size=8, num_layers=1,
                  num_heads=2, hidden_dim=16, mlp_dim=16), "encoder.layers.*.mlp.1"),
}
RECIPE = Recipe("mine", "adamw", batch=16, epochs=EPOCHS, lr=0.003, schedule="cosine", init="own")
SPACE = {"recipe.lr": Float(1e-3, 3e-2, log=True), "recipe.weight_decay": Float(0, 0.1)}
PICTURES = f"folder:{Path(__file__).with_name('pictures')}"


def cell(net, act):
    model, place = NETS[net]
    return Cell(f"{net} {act}", model.activation(act, place), PICTURES, RECIPE)


if __name__ == "__main__":
    cells = grid(cell, net=tuple(NETS), act=("relu", "gelu", "crelu"))
    main("page", __doc__, cells, Protocol(seeds=2, search=Search(POINTS, space=SPACE)))
'''
STRANGER = 'raise RuntimeError("a file of the researcher\'s was taken for one of ours")\n'
BESIDE = {
    "data.py": STRANGER,
    "train.py": STRANGER,
    "utils.py": "WIDTH = 8\n",
    "models.py": """from torch import nn
from utils import WIDTH


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv1 = nn.Conv2d(WIDTH, WIDTH, 3, padding=1)
        self.bn = nn.BatchNorm2d(WIDTH)
        self.act = nn.ReLU()
        self.conv2 = nn.Conv2d(WIDTH, WIDTH, 3, padding=1)

    def forward(self, x):
        return x + self.conv2(self.act(self.bn(self.conv1(x))))


def resnet(num_classes):
    net = nn.Sequential(nn.Conv2d(3, WIDTH, 4, 4))
    net.layers = nn.Sequential(Block(), Block())
    net.head = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(WIDTH, num_classes))
    return net
""",
}
NETS, ACTIVATIONS = ("resnet", "vit"), ("relu", "gelu", "crelu")
CELLS = [f"{net} {act}" for net in NETS for act in ACTIVATIONS]
# One worker, which trains four trials at a time with threads that read: what two cores carry.
WORDS = ("page.py", "--pack", "4", "--max-concurrent", "1", "--reader", "threads")
SEEDS = 2

Errors = Mapping[tuple[str, int], float]  # of a cell's label and a seed


class User:
    """User with a page in a folder of their own."""

    def __init__(self, folder: Path, factory: str, places: str, points: int, epochs: int = 2) -> None:
        """Write the page with a residual net, points of each search and epochs, and the files beside it."""
        self.folder = folder
        self.out = folder / "out"
        self.report = self.out / "reports" / "page"
        self.ledger = Ledger(str(self.out / "ledger"))
        self.environment = environment(folder, PYTHONPATH=str(Path(__file__).resolve().parents[2]))
        words = {"FACTORY": factory, "PLACES": places, "POINTS": str(points), "EPOCHS": str(epochs)}
        self.page = re.sub("|".join(words), lambda word: words[word[0]], PAGE)
        draw_stripes(folder / "pictures")
        for name, content in (BESIDE | {"page.py": self.page}).items():
            (folder / name).write_text(content)

    def start(self, *words: str) -> subprocess.Popen[str]:
        """Start a command in the folder of the page."""
        return subprocess.Popen(
            [sys.executable, *words, "--output", str(self.out)], stdout=subprocess.PIPE, stderr=subprocess.PIPE,
            text=True, env=self.environment, cwd=self.folder,
        )  # fmt: skip

    def prove(self, label: str) -> subprocess.Popen[str]:
        """Start the command that proves a cell's training to resume bit for bit."""
        return self.start("-m", "sweeps", "verify-resume", "page", label, "--kills", "1", "--reader", "threads")

    def planned(self) -> Plan:
        """Return the plan of the page as the ledger has it."""
        return current_plan(self.ledger, "page")

    def errors(self) -> dict[tuple[str, int], float]:
        """Return the test error of each training that the table is of."""
        results = self.ledger.results()
        return {
            (status.trial.cell.label, status.trial.seed): results[status.trial.key]["metrics"]["final/test_top1_err"]
            for status in self.planned().statuses
            if status.trial.phase == "ablation"
        }


def draw_stripes(folder: Path) -> None:
    """Write noisy pictures of two classes: stripes that lie, and stripes that stand."""
    rng = np.random.default_rng(0)
    for split, number in {"train": 40, "val": 20}.items():
        for name, turn in {"lying": np.transpose, "standing": np.asarray}.items():
            (folder / split / name).mkdir(parents=True)
            for i in range(number):
                stripes = turn(np.tile(np.arange(32) // 4 % 2 * 20, (32, 1)))[..., None]
                pixels = (stripes + rng.integers(0, 230, (32, 32, 3))).astype(np.uint8)
                Image.fromarray(pixels).save(folder / split / name / f"{i}.png")


def mean(errors: Errors, words: str) -> float:
    """Return the mean error of the cells whose labels have these words."""
    return fmean(error for (label, _), error in errors.items() if f" {words} " in f" {label} ")


def expected_effects(errors: Errors) -> dict[str, float]:
    """Return by how much each cell's error is above that of the first one."""
    return {label: mean(errors, label) - mean(errors, CELLS[0]) for label in CELLS[1:]}


def expected_factors(errors: Errors) -> dict[tuple[str, str], float]:
    """Return the main effects and interactions of the page's grid, by factors and levels."""
    expected = {("net", "vit"): mean(errors, "vit") - mean(errors, "resnet")}
    for act in ACTIVATIONS[1:]:
        expected["act", act] = mean(errors, act) - mean(errors, "relu")
        vit, resnet = (mean(errors, f"{net} {act}") - mean(errors, f"{net} relu") for net in ("vit", "resnet"))
        expected["net × act", f"vit, {act}"] = vit - resnet
    return expected
