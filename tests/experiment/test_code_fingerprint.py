"""A code fingerprint changes where the code that computes a trial's numbers changes, and nowhere else."""

import dataclasses
import re
import shutil
import sys
import threading
from collections.abc import Iterable, Sequence
from pathlib import Path
from types import FrameType
from typing import Any

import pytest

from crelu_data.write import prepare
from crelu_models.sources import Rooms, kinds_of, reached_source
from crelu_models.spec import Net
from crelu_models.tables import PAPER, S2
from sweeps.experiment.code_fingerprint import ENDS, FOLDERS, ROOT, TRAINING, code_fingerprint
from sweeps.training.run_trial import run_trial
from tests.support.trials import LARGE, SMALL, runtime_config, trial_of

ALL_CRELU = "CReLU, antirectifier and no ReLU"
NETS: dict[str, Net] = PAPER | {
    ALL_CRELU: S2.crelu(*range(1, 7)).activation("antirectifier", 7).final_activation("none"),
    "PReLU": S2.activation("prelu", 1),
}
TWO = {"S2", ALL_CRELU}  # nets that share no activation
ReLU = {name for name, net in NETS.items() if "relu" in kinds_of(net)}
Edit = tuple[str, str, str]


def copied(root: Path, edits: Sequence[Edit] = ()) -> Path:
    """Return `root` with a copy of the packages, each edit (file, old text, new text) made in it."""
    for folder in (*FOLDERS, "sweeps/store", "sweeps/execution"):
        shutil.copytree(ROOT / folder, root / folder, ignore=shutil.ignore_patterns("__pycache__"), dirs_exist_ok=True)
    for file, old, new in edits:
        text = (root / file).read_text()
        assert text.count(old) == 1, f"{old!r} occurs {text.count(old)} times in {file}"
        (root / file).write_text(text.replace(old, new))
        compile((root / file).read_text(), file, "exec")
    return root


def stale(root: Path, names: Iterable[str] = NETS) -> set[str]:
    """Return the nets of these whose results are stale where the code is that in `root`."""
    return {name for name in names if code_fingerprint(NETS[name]) != code_fingerprint(NETS[name], root=root)}


@pytest.mark.parametrize(
    ("file", "old", "new"),
    [
        ("sweeps/training/run_trial.py", "trainer.scores(view,", "trainer.scores(view.flip(3),"),
        ("sweeps/training/run_trial.py", "if trainer.best and", "if not trainer.best and"),
        ("sweeps/training/evaluate.py", 'cudnn.allow_tf32 = precision == "tf32"', "cudnn.allow_tf32 = True"),
        ("sweeps/training/loop.py", 'labels, reduction="sum"', 'labels, reduction="mean"'),
        ("sweeps/training/shared_batches.py", "if self._at != (name, number):", "if self._at is None:"),
        ("sweeps/training/views.py", "TEST_VIEWS = 11", "TEST_VIEWS = 6"),
        ("sweeps/training/optim.py", "BETAS, EPSILON = (0.9, 0.999)", "BETAS, EPSILON = (0.9, 0.99)"),
        ("sweeps/experiment/recipe.py", "self.lr * self.stage(epoch).lr_factor", "self.lr"),
        ("sweeps/experiment/recipe.py", "else self.stage(epoch).decay_factor)", "else 1.0)"),
        ("sweeps/experiment/trial.py", 'seed_from(self.seed, "restart", times)', "self.seed + times"),
        ("sweeps/experiment/trial.py", '"fold": Phase("fold", "best", True)', '"fold": Phase("fold", "last", True)'),
        ("crelu_data/augment.py", "_uniform(base, ids, _FLIP) < 0.5", "_uniform(base, ids, _FLIP) < 0.4"),
        ("crelu_data/datasets.py", 'sample_key("order", seed, epoch)', 'sample_key("order", seed)'),
        ("crelu_data/load.py", "pixels.permute(0, 3, 1, 2)", "pixels.permute(0, 3, 2, 1)"),
        ("crelu_data/beton.py", "index.pointers[record] + index.sizes[record]", "index.pointers[record] + 1"),
        ("crelu_models/modules.py", "BN_EPS, BN_MOMENTUM = 1e-3, 0.1", "BN_EPS, BN_MOMENTUM = 1e-5, 0.1"),
    ],
)
def test_an_edit_of_what_a_trial_computes_makes_all_results_stale(
    file: str, old: str, new: str, tmp_path: Path
) -> None:
    # The first edit for all nets; the others touch no activation either, so that two nets without a common one do.
    names = set(NETS) if old == "trainer.scores(view," else TWO
    assert stale(copied(tmp_path, [(file, old, new)]), names) == names


def test_an_edit_of_relu_makes_exactly_the_results_with_relu_stale(tmp_path: Path) -> None:
    edit = ("crelu_models/activations.py", '"relu": lambda _: nn.ReLU()', '"relu": lambda _: nn.ReLU6()')
    assert stale(copied(tmp_path, [edit])) == ReLU
    assert ALL_CRELU not in ReLU


def test_a_new_activation_makes_no_result_stale(tmp_path: Path) -> None:
    edits = [
        ("crelu_models/activations.py", '    "elu": lambda', '    "mish": lambda c: nn.Mish(),\n    "elu": lambda'),
        ("crelu_models/spec.py", '    "elu": 1,', '    "mish": 1,\n    "elu": 1,'),
        ("crelu_models/modules.py", '    "elu": 0.6449,', '    "mish": 0.6,\n    "elu": 0.6449,'),
    ]
    assert stale(copied(tmp_path, edits)) == set()


NUMBERLESS_EDITS = [
    # How often and how states are saved, memory, records, packs.
    ("sweeps/store/checkpoint.py", "SAVING_INTERVAL = 100", "SAVING_INTERVAL = 10"),
    ("sweeps/store/checkpoint.py", "KEEP = 2", "KEEP = 3"),
    ("sweeps/training/runtime.py", "checkpoint_minutes: float = 5.0", "checkpoint_minutes: float = 50.0"),
    ("sweeps/training/runtime.py", "(1 << 31) - 1", "(1 << 30) - 1"),
    ("sweeps/training/data_time.py", "PENDING = 8", "PENDING = 32"),
    ("sweeps/execution/pack.py", "if torch.cuda.is_available():", "if not torch.cuda.is_available():"),
    # What a sweep declares is part of its trials' keys, and names are for people.
    ("sweeps/experiment/recipe.py", '"conv9", 0.0, 0.5', '"conv9", 0.0, 0.7'),
    ("sweeps/experiment/recipe.py", '"allconv", "sgd", 128', '"allconv", "sgd", 64'),
    ("sweeps/experiment/trial.py", 'f"s{self.seed} {seed}"', 'f"seed {self.seed} {seed}"'),
    ("sweeps/experiment/sampling.py", "P_PRUNE = 0.1", "P_PRUNE = 0.2"),
    ("crelu_data/availability.py", "def fingerprints(", "def _fingerprints("),
    # What computes nothing.
    ("sweeps/training/run_trial.py", "    # Train to an end", "    # Train\n\n    # to an end"),
    ("sweeps/training/loop.py", '"""Take a step on', '"""Take one step on'),
    ("sweeps/training/loop.py", "the training loss is not a number", "the loss is not a number"),
    ("sweeps/training/loop.py", "def step(self, images: Tensor, labels: Tensor)", "def step(self, images, labels)"),
    ("crelu_data/datasets.py", "unknown data set {name!r}", "no data set {name!r}"),
]


def test_an_edit_that_decides_no_number_makes_no_result_stale(tmp_path: Path) -> None:
    """Of all edits at once, as each that counted would show in the hash; one at a time only where any counts."""
    if stale(copied(tmp_path / "all", NUMBERLESS_EDITS)):
        alone = {edit: stale(copied(tmp_path / str(n), [edit])) for n, edit in enumerate(NUMBERLESS_EDITS)}
        assert {edit: names for edit, names in alone.items() if names} == {}
        pytest.fail("together they make results stale, and none does alone")


@pytest.mark.parametrize("module", ["sweeps.training.loop", "crelu_data.augment", "sweeps.experiment.recipe"])
def test_another_name_of_a_file_makes_no_result_stale(module: str, tmp_path: Path) -> None:
    root = copied(tmp_path)
    room, _, name = module.rpartition(".")
    (root / f"{module.replace('.', '/')}.py").rename(root / room.replace(".", "/") / "renamed.py")
    for path in root.rglob("*.py"):
        text = path.read_text()
        text = re.sub(rf"\b{re.escape(module)}\b", f"{room}.renamed", text)
        text = re.sub(rf"^from {re.escape(room)} import {name}$", f"from {room} import renamed", text, flags=re.M)
        path.write_text(text)
    assert (root / room.replace(".", "/") / "renamed.py").exists()
    assert stale(root) == set()


def test_fingerprint_of_several_nets_has_all_their_activations(tmp_path: Path) -> None:
    edit = ("crelu_models/activations.py", "nn.PReLU(channels, init=0.25)", "nn.PReLU(channels, init=0.5)")
    root = copied(tmp_path, [edit])
    plain, prelu = NETS["S2"], NETS["PReLU"]
    assert code_fingerprint(plain) == code_fingerprint(plain, root=root)
    assert code_fingerprint(plain, prelu) == code_fingerprint(prelu, plain)
    assert code_fingerprint(plain, prelu) != code_fingerprint(plain, prelu, root=root)


# Functions that a trial calls and that decide no number: names, keys and checks of trials, the ledger's file system,
# exports, and what takes this fingerprint.
NUMBERLESS = {"__getattr__", "__post_init__", "_canonical", "_hash", "_recipe_text", "_rounded",
              "cell_to_json", "check_mounted", "full_disk_named", "key", "kinds_of", "label", "make_folder",
              "open_filesystem", "science", "sync_folder", "task_content", "texts", "to_json", "words_of"}  # fmt: skip


@pytest.mark.parametrize(("family", "phase"), [("VGG with batch norm", "holdout"), ("All-CNN-B by Adam", "ablation")])
def test_every_function_that_a_trial_calls_is_in_its_source(family: str, phase: str, tmp_path: Path) -> None:
    prepare(SMALL, tmp_path / "data")
    prepare(LARGE, tmp_path / "data")
    base = trial_of(family, phase)
    recipe = dataclasses.replace(base.cell.recipe, epochs=1)
    trial = dataclasses.replace(base, cell=dataclasses.replace(base.cell, recipe=recipe))
    rooms = Rooms(tuple((folder.replace("/", "."), ROOT / folder) for folder in FOLDERS), ENDS)
    source = reached_source(rooms, tuple(rooms.definitions(TRAINING.replace("/", "."))), kinds_of(trial.net))
    called: set[tuple[str, str]] = set()

    def profile(frame: FrameType, event: str, argument: Any) -> None:
        module = modules.get(frame.f_code.co_filename)
        if event == "call" and module and not frame.f_code.co_name.startswith("<"):
            called.add((module, frame.f_code.co_name))

    modules = {
        str(path): f"{folder.replace('/', '.')}.{path.stem}."
        for folder in FOLDERS
        for path in (ROOT / folder).glob("*.py")
    }
    threading.setprofile(profile)
    sys.setprofile(profile)
    try:
        assert run_trial(trial, runtime_config(tmp_path / "data", tmp_path / "ledger"), lambda *_: None) is not None
    finally:
        sys.setprofile(None)
        threading.setprofile(None)  # type: ignore[arg-type]
    names = {name for module, name in called if module not in ENDS}
    assert {"step", "learning_rate", "training_view", "holdout" if phase == "holdout" else "_test_scores"} <= names
    missing = {name for name in names if f"def {name}(" not in source}
    assert missing <= NUMBERLESS
