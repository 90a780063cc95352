"""What is measured on a GPU: nets and recipes, sizes, targets, and the rows of the table so far."""

from __future__ import annotations

import dataclasses
import fnmatch
import json
import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import torch
from torch import Tensor

from crelu_models.spec import Net
from crelu_models.tables import S2, S4, S8
from sweeps.experiment.recipe import ALLCONV, IMAGENET_ADAM, IMAGENET_SGD, VGG, Recipe
from sweeps.training.gpu.graphs import WARM_UP, Graphs, open_graphs
from sweeps.training.loop import Learner

ROOT = Path(__file__).resolve().parents[2]


class Family(NamedTuple):
    """Net and recipe with the crop, the classes and the pictures of a step."""

    net: Net
    recipe: Recipe
    crop: int
    classes: int
    batch: int


FAMILIES = {
    "allconv base": Family(S2, ALLCONV, 32, 10, 128),
    "allconv CReLU": Family(S2.crelu(1, 2, 3), ALLCONV, 32, 10, 128),
    "allconv CReLU half": Family(S2.crelu(1, 2, 3).width(0.5), ALLCONV, 32, 10, 128),
    "VGG": Family(S4, VGG, 32, 10, 128),
    "All-CNN-B 1,4,7 of 64": Family(S8.crelu(1, 4, 7, width=0.5), IMAGENET_ADAM, 224, 1000, 64),
    "All-CNN-B 1,4,7 of 256": Family(S8.crelu(1, 4, 7, width=0.5), IMAGENET_ADAM, 224, 1000, 256),
    "All-CNN-B 1 to 9 of 256": Family(S8.crelu(*range(1, 10)), IMAGENET_SGD, 224, 1000, 256),
}


# For a machine without a GPU, where only the way through this file is of interest.
TINY = {
    "allconv CReLU": Family(S2.crelu(1, 2, 3).width(0.0625), ALLCONV, 32, 10, 16),
    "VGG": Family(S4.width(0.0625), VGG, 32, 10, 16),
}


PACKED = ("allconv base", "allconv CReLU", "allconv CReLU half", "VGG")


PACKS = (1, 2, 4, 8, 16)


ACTIVATIONS = (("crelu", (256, 96, 55, 55)), ("crelu", (128, 96, 32, 32)), ("avr", (256, 96, 55, 55)),
               ("crelu_leaky", (256, 96, 55, 55)), ("concat_elu", (256, 96, 55, 55)),
               ("crelu", (128, 96, 8, 8)), ("crelu", (64, 48, 8, 8)), ("avr", (128, 96, 8, 8)),
               ("bias relu", (256, 96, 55, 55)), ("bias relu", (128, 96, 32, 32)), ("bias crelu", (128, 96, 32, 32)),
               ("bias relu", (128, 192, 8, 8)), ("bias none", (128, 64, 32, 32)), ("max pool 3/2", (128, 96, 32, 32)),
               ("max pool 3/2", (128, 192, 16, 16)), ("max pool 2/2", (128, 64, 32, 32)),
               ("dropout", (128, 64, 32, 32)), ("relu dropout", (128, 64, 32, 32)))  # fmt: skip


# Families that learn from a stream of JPEG, and how many nets at once.
STREAMED = (("All-CNN-B 1,4,7 of 256", 1), ("All-CNN-B 1,4,7 of 64", 9))


# Section, row, figure and what it ought to be.
TARGETS = (
    ("exact", "*", "*differ", "<=", 0),
    ("step", "allconv base, [gfc]*", "roof_percent", ">=", 35),
    ("step", "allconv CReLU, [gfc]*", "roof_percent", ">=", 35),
    ("step", "VGG, [gfc]*", "roof_percent", ">=", 25),
    ("step", "All-CNN-B 1,4,7 of 64, [gfc]*", "roof_percent", ">=", 30),
    ("step", "All-CNN-B 1,4,7 of 256, [gfc]*", "roof_percent", ">=", 40),
    ("step", "All-CNN-B 1 to 9 of 256, [gfc]*", "roof_percent", ">=", 45),
    ("activations", "crelu (256, 96, 55, 55)", "copy_percent", ">=", 75),
    ("activations", "crelu (128, 96, 32, 32)", "copy_percent", ">=", 75),
    ("activations", "*", "over_definition", ">=", 1),
    ("pack", "8 side by side", "pictures_s", ">=", 100_000),
    ("pack", "8 side by side", "over_processes", ">=", 1.5),
    ("stream", "* by 1 net, *", "stall_percent", "<=", 15),
    ("stream", "* by 9 nets, *", "stall_percent", "<=", 3),
    ("trial", "*", "resident_percent", ">=", 90),
)


@dataclass
class Bench:
    """Device and sizes of the measurements, and the rows of the table so far."""

    device: torch.device
    folder: Path
    families: dict[str, Family] = field(default_factory=lambda: FAMILIES)
    activations: Sequence[tuple[str, tuple[int, ...]]] = ACTIVATIONS  # with biases before them, and pooling
    packs: Sequence[int] = PACKS
    streamed: Sequence[tuple[str, int]] = STREAMED
    jpeg_side: int = 256
    window: float = 0.3  # seconds that a rate is measured
    steps: int = 200  # of the comparison of bits
    pictures: int = 20_000
    trial_pictures: int = 50_000  # as many as CIFAR's
    stream_steps: int = 100  # of a stream, after the first, which wait for its decoder to begin
    members: int = 8
    kills: int = 2
    flops: float = float("nan")
    copy: float = float("nan")
    began: float = field(default_factory=time.perf_counter)
    ends: float = float("inf")  # the command is ended then
    rows: list[dict[str, Any]] = field(default_factory=list)
    file: Path | None = None  # that has the rows as JSON

    def say(self, section: str, name: str, **values: float | str) -> None:
        """Add a row to the table and print it, with the targets of its figures and whether they are met."""
        targets = {}
        shown = []
        for key, value in values.items():
            words = f"{key} {value:,.4g}" if isinstance(value, float) else f"{key} {value}"
            if not isinstance(value, str) and (target := target_of(section, name, key)):
                sign, bound = target
                met = value >= bound if sign == ">=" else value <= bound
                targets[key] = {"target": f"{sign} {bound:g}", "met": met}
                words += f" (target {sign} {bound:,g}: {'met' if met else 'missed'})"
            shown.append(words)
        self.rows.append({"section": section, "name": name, **values, **({"targets": targets} if targets else {})})
        print(f"{section:<12}{name:<30}{'  '.join(shown)}", flush=True)
        self.write()

    def write(self) -> None:
        """Write the rows so far to the file, where there is one: what comes may end the process."""
        if self.file is not None:
            self.file.write_text(json.dumps({**versions(), "rows": self.rows}, indent=1) + "\n")

    def wait(self) -> None:
        """Wait until the device has done its work."""
        if self.device.type == "cuda":
            torch.cuda.synchronize()

    def seconds(self, call: Callable[[], object], warm: int = 5) -> float:
        """Return the seconds of a call, the median of five windows."""
        for _ in range(warm):
            call()
        self.wait()
        began = time.perf_counter()
        call()
        self.wait()
        count = max(2, int(self.window / 5 / max(time.perf_counter() - began, 1e-6)))
        times = []
        for _ in range(5):
            began = time.perf_counter()
            for _ in range(count):
                call()
            self.wait()
            times.append((time.perf_counter() - began) / count)
        return median(times)

    def learner(self, name: str, graphs: bool, dropout: str = "") -> tuple[Learner, Tensor, Tensor]:
        """Return a learner of a family with pictures and labels, at a rate that leaves random labels unlearned."""
        from crelu_models.modules import build, initialise

        net, recipe, crop, classes, batch = self.families[name]
        net = net.dropout(0.5, dropout) if dropout else net
        recipe = dataclasses.replace(recipe, lr=1e-3 * recipe.lr, epochs=10**6, batch=batch)
        model = build(net, classes, crop)
        initialise(model, net, recipe.init, 0)
        model = model.to(self.device, memory_format=torch.channels_last)
        opened = open_graphs(self.device, "") if graphs else Graphs(None, "not asked for")
        learner = Learner(model, recipe, seed=0, steps=10**6, precision=self.precision, graphs=opened)
        return learner, *self.batch(name, 0)

    @property
    def precision(self) -> str:
        """Return the precision that a recipe computes in on this device."""
        from sweeps.training.evaluate import precision_of

        return precision_of("auto", self.device)

    def batch(self, name: str, seed: int) -> tuple[Tensor, Tensor]:
        """Return random pictures of a family, and labels."""
        _, _, crop, classes, batch = self.families[name]
        drawn = torch.Generator().manual_seed(seed)
        images = torch.randn(batch, 3, crop, crop, generator=drawn).to(self.device)
        labels = torch.randint(0, classes, (batch,), generator=drawn).to(self.device)
        return images.contiguous(memory_format=torch.channels_last), labels

    def prepared(self, name: str) -> Path:
        """Return the folder with a data set, prepared there if it is not yet."""
        from crelu_data.write import prepare

        prepare(name, self.folder / "data")
        return self.folder / "data"


def target_of(section: str, name: str, key: str) -> tuple[str, float] | None:
    """Return the sign and the bound of a figure's target, where it has one."""
    for target_section, row, figure, sign, bound in TARGETS:
        if section == target_section and fnmatch.fnmatchcase(name, row) and fnmatch.fnmatchcase(key, figure):
            return sign, bound
    return None


def versions() -> dict[str, str | int | None]:
    """Return what a table was measured with, and when."""
    return {"torch": torch.__version__, "cores": os.cpu_count(), "date": time.strftime("%Y-%m-%d")}


def device_name(device: torch.device) -> str:
    """Return the model of a device."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else str(device)


def free(bench: Bench) -> None:
    """Give back the memory of what was measured."""
    if bench.device.type == "cuda":
        torch.cuda.empty_cache()


@contextmanager
def section_line(bench: Bench, section: str, name: str) -> Iterator[None]:
    """Turn an error into a row that says why there is no number."""
    try:
        yield
    except Exception as error:
        first = (str(error).splitlines() or [""])[0][:160]
        bench.say(section, name, failed=f"{type(error).__name__}: {first}")


@contextmanager
def torch_alone(is_so: bool) -> Iterator[None]:
    """Take none of our kernels, or those that are exact and fast."""
    from crelu_models import activations

    activations.takes_kernels = not is_so
    try:
        yield
    finally:
        activations.takes_kernels = True


def replayed(bench: Bench, call: Callable[[], None]) -> Callable[[], object]:
    """Return what replays a call from a graph; the call itself where the device records none."""
    recorder = open_graphs(bench.device, "").recorder
    if recorder is None:
        return call
    for _ in range(WARM_UP):
        recorder.warm_up(call)
    return recorder.record(call, ())[0]
