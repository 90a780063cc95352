"""Nets of a user's on a folder of pictures, by the real command: searched, packed, killed twice, proved, reported.

The page lies beside files of the researcher's own whose names are those of our modules.
"""

from __future__ import annotations

import re
import signal
import subprocess
import sys
from pathlib import Path
from statistics import fmean

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from sweeps.experiment.plan import Plan, current_plan
from sweeps.experiment.study import study
from sweeps.store.ledger import Json, Ledger
from tests.support.commands import environment, wait_for

PAGE = '''"""Which activation suits a residual net, and which a transformer?"""

from pathlib import Path

from sweeps import Cell, Float, Model, Protocol, Recipe, Search, grid, main

NETS = {
    "resnet": (Model("models:resnet", size=32), "layers.*.act"),
    "vit": (Model("torchvision.models:VisionTransformer", size=32, image_size=32, patch_size=8, num_layers=1,
                  num_heads=2, hidden_dim=16, mlp_dim=16), "encoder.layers.*.mlp.1"),
}
RECIPE = Recipe("mine", "adamw", batch=16, epochs=2, lr=0.003, schedule="cosine", init="own")
SPACE = {"recipe.lr": Float(1e-3, 3e-2, log=True), "recipe.weight_decay": Float(0, 0.1)}
PICTURES = f"folder:{Path(__file__).with_name('pictures')}"


def cell(net, act):
    model, place = NETS[net]
    return Cell(f"{net} {act}", model.activation(act, place), PICTURES, RECIPE)


if __name__ == "__main__":
    cells = grid(cell, net=tuple(NETS), act=("relu", "gelu", "crelu"))
    main("page", __doc__, cells, Protocol(seeds=2, search=Search(3, space=SPACE)))
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
CELLS = [f"{net} {act}" for net in ("resnet", "vit") for act in ("relu", "gelu", "crelu")]


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


class User:
    """User with a page in a folder of their own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.out = folder / "out"
        self.ledger = Ledger(str(self.out / "ledger"))
        self.environment = environment(folder, PYTHONPATH=str(Path(__file__).resolve().parents[2]))

    def start(self, *words: str) -> subprocess.Popen[str]:
        """Start a command in the folder of the page."""
        return subprocess.Popen(
            [sys.executable, *words, "--output", str(self.out)], stdout=subprocess.PIPE, stderr=subprocess.PIPE,
            text=True, env=self.environment, cwd=self.folder,
        )  # fmt: skip


@pytest.fixture(scope="module")
def swept(tmp_path_factory: pytest.TempPathFactory) -> tuple[User, str]:
    """Return the user of a page whose driver was killed twice, and what the last command has printed."""
    folder = tmp_path_factory.mktemp("own_nets")
    draw_stripes(folder / "pictures")
    (folder / "page.py").write_text(PAGE)
    for name, content in BESIDE.items():
        (folder / name).write_text(content)
    user = User(folder)
    words = ("page.py", "--pack", "4", "--max-concurrent", "1", "--reader", "threads")
    kept: dict[str, Json] = {}
    for number in (2, 12):
        with user.start(*words) as driver:
            wait_for(f"{number} results", lambda number=number: len(user.ledger.results()) >= number, driver)  # type: ignore[misc]
            driver.send_signal(signal.SIGKILL)
        kept |= user.ledger.results()
    assert 12 <= len(kept) < 30
    with user.start(*words) as driver:
        said, errors = driver.communicate(timeout=400)
    assert driver.returncode == 0, errors
    assert kept.items() <= user.ledger.results().items(), "a trial that was done has been trained again"
    return user, said


def planned(user: User) -> Plan:
    return current_plan(user.ledger, "page")


def test_the_page_is_short() -> None:
    assert len(PAGE.splitlines()) <= 25


def test_each_cell_is_searched_and_trained_with_what_its_search_chose(swept: tuple[User, str]) -> None:
    user, said = swept
    assert "30 of 30 trials are done" in said
    today = planned(user)
    results = user.ledger.results()
    assert {result["status"] for result in results.values()} == {"finished"}
    search = today.sweep.protocol.search
    assert search is not None
    assert [cell.label for cell in today.sweep.cells] == CELLS
    for cell in today.sweep.cells:
        cell_study = study(search, cell, results, ())
        assert cell_study.winner is not None
        held_out = [results[trial.key]["metrics"]["best/val_top1_err"] for trial in cell_study.trials]
        assert (len(held_out), cell_study.winner.value) == (3, min(held_out))
        finals = [s.trial for s in today.statuses if s.trial.cell == cell and s.trial.phase == "ablation"]
        assert [trial.seed for trial in finals] == [0, 1]
        assert {trial.choices for trial in finals} == {cell_study.winner.trial.choices}
    # Four trainings took each batch together: none of them knows its share of the reading alone.
    rows = [user.ledger.read_json(f"trials/{key}/history.json") for key in results]
    assert not any("sys/data_share" in row for history in rows for row in history or ())


def test_report_has_effects_factors_and_responses(swept: tuple[User, str]) -> None:
    user, said = swept
    report = user.out / "reports" / "page"
    today = planned(user)
    results = user.ledger.results()
    errors = {
        (s.trial.cell.label, s.trial.seed): results[s.trial.key]["metrics"]["final/test_top1_err"]
        for s in today.statuses
        if s.trial.phase == "ablation"
    }

    def mean(words: str) -> float:
        return fmean(error for (label, _), error in errors.items() if words in f" {label} ")

    assert len(set(errors.values())) > 2, "no effect is seen where all errors are alike"
    effects = pd.read_csv(report / "effects.csv").set_index("row")
    assert list(effects.index) == CELLS[1:]
    factors = pd.read_csv(report / "factors.csv").set_index(["factors", "levels"])["difference"]
    assert {name for name, _ in factors.index} == {"net", "act", "net × act"}
    for label in CELLS[1:]:
        assert effects.loc[label, "difference"] == pytest.approx(mean(label) - mean("resnet relu"))
        assert effects.loc[label, ["n", "over", "reference"]].tolist() == [2, "seeds", "resnet relu"]
    for act in ("gelu", "crelu"):
        assert factors["act", act] == pytest.approx(mean(f" {act} ") - mean(" relu "))
        crossed = mean(f"vit {act}") - mean("vit relu") - mean(f"resnet {act}") + mean("resnet relu")
        assert factors["net × act", f"vit, {act}"] == pytest.approx(crossed)
    assert factors["net", "vit"] == pytest.approx(mean(" vit ") - mean(" resnet "))
    assert f"{mean('vit crelu'):.2f} ±" in said

    # A chart of each dimension of each search, whose points are too few for their importance.
    assert "No table of importance: a cell needs 20 points" in (report / "report.md").read_text()
    page = (report / "report.html").read_text()
    for axis in ("recipe.lr", "recipe.weight_decay"):
        drawn = re.findall(rf"([\w ]+): hold-out error by {re.escape(axis)}", page)
        assert sorted(set(drawn)) == sorted(CELLS)


def test_both_nets_are_proved_to_resume_bit_for_bit(swept: tuple[User, str]) -> None:
    user, _ = swept
    words = ("-m", "sweeps", "verify-resume", "page")
    proofs = [
        user.start(*words, label, "--kills", "1", "--reader", "threads") for label in ("resnet crelu", "vit crelu")
    ]
    for proof in proofs:
        said, errors = proof.communicate(timeout=400)
        assert proof.returncode == 0, errors
        assert "killed 1 time, weights, curves and scores are bit for bit those of a training without" in said
    cells = {cell.label: cell.key for cell in planned(user).sweep.cells}
    assert user.ledger.names("verified") == sorted(f"{cells[label]}.json" for label in ("resnet crelu", "vit crelu"))
