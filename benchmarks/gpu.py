"""What does this GPU give? Tests, exactness, steps, activations, packs, pictures and a whole trial, in one table.

    python -m benchmarks.gpu                          all, within eight minutes
    python -m benchmarks.gpu --sections step pack     some of it
    python -m benchmarks.gpu --json gpu.json          the same numbers as JSON

Without a GPU it says so and ends with 0. It needs torch, NumPy, Numba, PyArrow and safetensors; pytest, FFCV and
simplejpeg are used where they are. "roof" is the rate of matrix products in bf16, "copy" that of a copy on the device.
A section that fails has a line that says why, and one that would begin after --seconds is left out. A figure with a
target, on an H100 or H200, has it beside it, and whether it was met.
"""

from __future__ import annotations

import argparse
import dataclasses
import fnmatch
import importlib.util
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch._dynamo import utils as dynamo

from crelu_models.spec import Net
from crelu_models.tables import S2, S4, S8
from sweeps.experiment.recipe import ALLCONV, IMAGENET_ADAM, IMAGENET_SGD, VGG, Recipe
from sweeps.experiment.trial import Cell, Trial
from sweeps.training.graphs import WARM_UP, Graphs, open_graphs, open_streams
from sweeps.training.loop import Learner
from sweeps.training.shared_batches import BatchStream

ROOT = Path(__file__).resolve().parents[1]
PACKS = (1, 2, 4, 8, 16)


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
COMPILED = ("allconv CReLU", "All-CNN-B 1,4,7 of 256")  # a compilation takes half a minute
PACKED = ("allconv base", "allconv CReLU", "allconv CReLU half", "VGG")
ACTIVATIONS = (("crelu", (256, 96, 55, 55)), ("crelu", (128, 96, 32, 32)), ("avr", (256, 96, 55, 55)),
               ("crelu_leaky", (256, 96, 55, 55)), ("concat_elu", (256, 96, 55, 55)),
               ("crelu", (128, 96, 8, 8)), ("crelu", (64, 48, 8, 8)), ("avr", (128, 96, 8, 8)),
               ("bias relu", (256, 96, 55, 55)), ("bias relu", (128, 96, 32, 32)), ("bias crelu", (128, 96, 32, 32)),
               ("bias relu", (128, 192, 8, 8)), ("max pool 3/2", (128, 96, 32, 32)),
               ("max pool 3/2", (128, 192, 16, 16)), ("max pool 2/2", (128, 64, 32, 32)))  # fmt: skip
# Families that learn from a stream of JPEG, and how many nets at once.
STREAMED = (("All-CNN-B 1,4,7 of 256", 1), ("All-CNN-B 1,4,7 of 64", 9))
LIMIT = 480.0  # seconds of the command
# Kinds of work on a device, by what names of kernels hold: the first that fits.
KINDS = (
    ("layouts", r"nchwToNhwc|nhwcToNchw|tensorTransform|reorder"),
    ("activations by ours", "_activation_"),
    ("pooling by ours", "_pool_forward|_pool_backward"),
    ("pooling by torch", "(?i)max_?pool|avg_?pool"),
    ("convolutions", "(?i)conv|gemm|xmma|cutlass|cudnn|wgrad|dgrad|fprop|nvjet|addmm"),
    ("loss", "(?i)softmax|nll_?loss|cross_entropy"),
    ("sums", "(?i)reduce|::sum"),
    ("optimiser", "(?i)multi_tensor|_foreach|_fused_"),
    ("dropout", "(?i)distribution|bernoulli|random"),
    ("copies", "(?i)memcpy|memset|copy|::to$|zero_|fill"),
    ("by elements", "(?i)elementwise|CatArray|threshold|clamp|relu|::(add|mul|div|neg|cat)"),
)
CIFAR_TRAINING = 350 * 50_000  # pictures
FILLING = 10  # steps until a stream is in full flow

# Section, row, figure and what it ought to be.
TARGETS = (
    ("exact", "*", "*differ", "<=", 0),
    ("step", "allconv base, [gc]*", "roof_percent", ">=", 35),
    ("step", "allconv CReLU, [gc]*", "roof_percent", ">=", 35),
    ("step", "VGG, [gc]*", "roof_percent", ">=", 25),
    ("step", "All-CNN-B 1,4,7 of 64, [gc]*", "roof_percent", ">=", 30),
    ("step", "All-CNN-B 1,4,7 of 256, [gc]*", "roof_percent", ">=", 40),
    ("step", "All-CNN-B 1 to 9 of 256, [gc]*", "roof_percent", ">=", 45),
    ("activations", "crelu (256, 96, 55, 55)", "copy_percent", ">=", 75),
    ("activations", "crelu (128, 96, 32, 32)", "copy_percent", ">=", 75),
    ("activations", "*", "over_definition", ">=", 1),
    ("pack", "8 side by side", "pictures_s", ">=", 100_000),
    ("pack", "8 side by side", "over_processes", ">=", 1.5),
    ("stream", "* by 1 net, *", "stall_percent", "<=", 15),
    ("stream", "* by 9 nets, *", "stall_percent", "<=", 3),
    ("trial", "*", "resident_percent", ">=", 90),
)


# For a machine without a GPU, where only the way through this file is of interest.
TINY = {
    "allconv CReLU": Family(S2.crelu(1, 2, 3).width(0.0625), ALLCONV, 32, 10, 16),
    "VGG": Family(S4.width(0.0625), VGG, 32, 10, 16),
}


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
    rows: list[dict[str, Any]] = field(default_factory=list)

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


# Sections


def roof(bench: Bench) -> None:
    """Measure matrix products and a copy on the device."""
    side = 8192 if bench.device.type == "cuda" else 256
    a, b = (torch.randn(side, side, device=bench.device, dtype=torch.bfloat16) for _ in range(2))
    bench.flops = 2 * side**3 / bench.seconds(lambda: a @ b)
    source = torch.zeros(
        (1 << 30) if bench.device.type == "cuda" else (1 << 20), dtype=torch.uint8, device=bench.device
    )
    target = torch.empty_like(source)
    bench.copy = 2 * len(source) / bench.seconds(lambda: target.copy_(source))
    bench.say("roof", device_name(bench.device), tflops=bench.flops / 1e12, copy_tb_s=bench.copy / 1e12)


def tests(bench: Bench) -> None:
    """Run the tests that need a GPU."""
    if importlib.util.find_spec("pytest") is None:
        bench.say("tests", "marked gpu", result="left out: pytest is not installed")
        return
    files = [str(path) for path in sorted((ROOT / "tests").rglob("test_*.py")) if "mark.gpu" in path.read_text()]
    command = [sys.executable, "-m", "pytest", "-q", "-m", "gpu", "-o", "addopts=", "-p", "no:cacheprovider",
               "-W", "ignore::pytest.PytestConfigWarning", *files]  # fmt: skip
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False,
                          timeout=max(1.0, bench.began + LIMIT - time.perf_counter()))  # fmt: skip
    lines = done.stdout.strip().splitlines() or done.stderr.strip().splitlines() or ["nothing said"]
    bench.say("tests", "marked gpu", result=lines[-1])
    for line in lines:
        if line.startswith(("FAILED", "ERROR")):
            bench.say("tests", "failed", result=line)


def exact(bench: Bench) -> None:
    """Compare replayed steps with eager ones by torch, a pack with its members, a killed trial with one left alone."""
    for name, dropout in (("allconv CReLU", "pool1"), ("VGG", "conv1")):
        if name in bench.families:
            learners = [bench.learner(name, graphs, dropout)[0] for graphs in (False, True)]
            for step in range(bench.steps):
                images, labels = bench.batch(name, step)
                for learner in learners:
                    with torch_alone(learner is learners[0]):
                        learner.step(images, labels)
            first, second = (learner.tensors() for learner in learners)
            differ = sum(not torch.equal(first[key], second[key]) for key in first)
            mode = learners[1].steps_by
            bench.say(
                "exact", f"{name}: graph, eager by torch", steps=bench.steps, tensors_that_differ=differ, steps_by=mode
            )
    trials, config = short_trials(bench, bench.members, min(2000, bench.pictures))
    digests = [train_apart(bench, trials, config, "alone"), train_pack(bench, trials, config, "pack")]
    differ = sum(ours != theirs for ours, theirs in zip(*digests, strict=True))
    bench.say("exact", f"pack of {len(trials)}, alone", trials_that_differ=differ)
    if not bench.kills:
        return
    from sweeps.execution.verify_resume import shortened, verify

    verdict = verify(shortened(trials[0]), config, str(bench.folder / "resume"), bench.kills, 0)
    bench.say("exact", "killed, left alone", kills=verdict.kills, numbers_that_differ=len(verdict.differences),
              which=", ".join(verdict.differences) or "none")  # fmt: skip


def step(bench: Bench) -> None:
    """Measure a step of each family on pictures that are there: eager, replayed, and for some compiled.

    In "torch's graph" no kernel of ours is taken.
    """
    for name, family in bench.families.items():
        work = 6e-9 * family.net.macs(family.classes, family.crop) * family.batch
        is_compiled = name in COMPILED and bench.device.type == "cuda"
        took: dict[str, float] = {}
        for form in ("eager", "torch's graph", "graph", *(["compiled"] if is_compiled else [])):
            with section_line(bench, "step", f"{name}, {form}"), torch_alone(form == "torch's graph"):
                learner, images, labels = bench.learner(name, form != "eager")
                if form == "compiled":
                    dynamo.counters.clear()
                    learner.model.compile()
                took[form] = bench.seconds(lambda learner=learner, x=images, y=labels: learner.step(x, y))
                share = 100 * 1e9 * work / took[form] / bench.flops
                by_torch = took.get("torch's graph") if form == "graph" else None
                bench.say("step", f"{name}, {form}", ms=1e3 * took[form], pictures_s=family.batch / took[form],
                          roof_percent=share, **({"over_torch": by_torch / took[form]} if by_torch else {}),
                          **(compiled_of(learner) if form == "compiled" else {}),
                          steps_by=learner.steps_by)  # fmt: skip
            free(bench)


def compiled_of(learner: Learner) -> dict[str, float | str]:
    """Return how much of a net torch.compile has taken into graphs of its own, and why it left the rest."""
    stats = dynamo.counters["stats"]
    breaks = [str(reason).splitlines()[0] for reason in dynamo.counters["graph_break"]]
    return {"modules": len(list(learner.model.modules())), "calls_compiled": stats["calls_captured"],
            "compiled_graphs": stats["unique_graphs"], "breaks": "; ".join(breaks) or "none"}  # fmt: skip


def activations(bench: Bench) -> None:
    """Measure activations, with a bias and without, and max pooling, forward and backward in a graph.

    Ours stand beside the definition, and against the rate of a copy.
    """
    for name, shape in bench.activations:
        x = torch.randn(shape, device=bench.device, dtype=torch.bfloat16).contiguous(memory_format=torch.channels_last)
        rival = pool_rival(name, x) if name.startswith("max pool") else activation_rival(name, x)
        leaves = [value.requires_grad_() for value in rival.inputs]
        weight = torch.randn_like(rival.theirs(*leaves).detach())
        forms = [partial(both_ways, form, leaves, weight) for form in (rival.ours, rival.theirs)]
        eager = [bench.seconds(form) for form in forms]
        took = [bench.seconds(replayed(bench, form)) for form in forms]
        moved = rival.maps * x.nbytes + 2 * weight.nbytes + rival.kept
        bench.say(
            "activations", f"{name} {shape}", ms=1e3 * took[0], over_definition=took[1] / took[0],
            eager_over_definition=eager[1] / eager[0], copy_percent=100 * moved / took[0] / bench.copy,
            kernel=rival.kernel,
        )  # fmt: skip


def kernel_word(x: Tensor, is_taken: Callable[[], bool], is_exact: Callable[[], bool]) -> str:
    """Return whose kernel is taken for x, and why."""
    if not x.is_cuda:
        return "torch's: no GPU"
    return "ours" if is_taken() else "torch's: faster" if is_exact() else "torch's: other bits"


class Rival(NamedTuple):
    """Function of some inputs, by our kernels where these are taken and by torch's operations.

    Both passes together move its first input, a map, and the gradient by it `maps` times in all, what is kept between
    the passes, of `kept` bytes, and its output and the gradient by that. `kernel` says which is taken, and why.
    """

    ours: Callable[..., Tensor]
    theirs: Callable[..., Tensor]
    inputs: list[Tensor]
    maps: int
    kept: int
    kernel: str


def activation_rival(name: str, x: Tensor) -> Rival:
    """Return an activation by name; "bias" before it stands for that of the conv in front."""
    from crelu_models.activations import activation
    from crelu_models.gpu.activations import BY_INPUT, DEFINITIONS, apply
    from crelu_models.gpu.choice import accepts, accepts_bias, is_exact

    kind = name.removeprefix("bias ")
    theirs = DEFINITIONS[kind]
    kept = (x if kind in BY_INPUT else theirs(x)).nbytes
    where = kind, x.dtype, x.device, torch.channels_last
    if kind == name:
        kernel = kernel_word(x, partial(accepts, x, kind, torch.channels_last), partial(is_exact, *where))
        return Rival(activation(kind, x.shape[1]), theirs, [x], 2, kept, kernel)

    def biased(x: Tensor, bias: Tensor) -> Tensor:
        return theirs(x + bias[:, None, None])

    def by_one_kernel(x: Tensor, bias: Tensor) -> Tensor:
        return apply(x, kind, torch.channels_last, bias)

    kernel = kernel_word(x, partial(accepts_bias, *where), partial(is_exact, *where, biased=True))
    # The gradient by the bias reads that by x once more.
    inputs = [x, x[0, :, 0, 0].clone()]
    return Rival(by_one_kernel if kernel == "ours" else biased, biased, inputs, 3, kept, kernel)


def pool_rival(name: str, x: Tensor) -> Rival:
    """Return a max pooling of such windows, "3/2" for 3 by 3 with stride 2, as our nets have them."""
    from crelu_models.gpu.choice import accepts_pool, pool_is_exact
    from crelu_models.gpu.pooling import Window, max_pool, torch_pool

    side, stride = map(int, name.split()[-1].split("/"))
    window = Window(side, stride, 0, ceil=side == 3)
    exact = partial(pool_is_exact, window, x.dtype, x.device)
    kernel = kernel_word(x, partial(accepts_pool, x, window), exact)
    ours, theirs = (partial(form, window=window) for form in (max_pool, torch_pool))
    kept = 2 * theirs(x).numel()  # a byte for each output, written and read
    return Rival(ours if kernel == "ours" else theirs, theirs, [x], 2, kept, kernel)


def both_ways(form: Callable[..., Tensor], leaves: Sequence[Tensor], weight: Tensor) -> None:
    """Go forward and backward."""
    torch.autograd.grad(form(*leaves), leaves, weight)


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


def profile(bench: Bench) -> None:
    """Say what a step of each family is made of: its kernels by kind, in percent of the time that all of them take."""
    for name in bench.families:
        with section_line(bench, "profile", name):
            learner, images, labels = bench.learner(name, True)
            take = partial(learner.step, images, labels)
            once = bench.seconds(take)
            times, kernels = kernel_times(bench, take)
            busy = sum(times.values())
            kinds: Counter[str] = Counter()
            for kernel, seconds in times.items():
                kinds[kind_of(kernel)] += seconds
            shares = [f"{kind} {100 * seconds / busy:.0f} %" for kind, seconds in kinds.most_common()]
            bench.say("profile", name, ms=1e3 * once, busy_percent=100 * busy / once, kernels=kernels,
                      kinds=", ".join(shares))  # fmt: skip
            longest = [f"{kernel[:100]} {100 * seconds / busy:.1f} %" for kernel, seconds in times.most_common(12)]
            bench.rows[-1]["longest"] = longest
        free(bench)


def kernel_times(bench: Bench, call: Callable[[], object], times: int = 5) -> tuple[Counter[str], int]:
    """Return the seconds that each kernel takes in a call, by name, and the number of kernels; of a CPU operations."""
    on_gpu = bench.device.type == "cuda"
    kind = torch.profiler.ProfilerActivity.CUDA if on_gpu else torch.profiler.ProfilerActivity.CPU
    with torch.profiler.profile(activities=[kind]) as profiled:
        for _ in range(times):
            call()
        bench.wait()
    seconds: Counter[str] = Counter()
    kernels = 0
    for row in profiled.key_averages():
        took = row.self_device_time_total if on_gpu else row.self_cpu_time_total
        if took > 0:
            seconds[row.key] += took / 1e6 / times
            kernels += row.count
    return seconds, round(kernels / times)


def kind_of(kernel: str) -> str:
    """Return the kind of a kernel's work by its name."""
    return next((kind for kind, pattern in KINDS if re.search(pattern, kernel)), "others")


def pack(bench: Bench) -> None:
    """Measure nets on CIFAR that train side by side: in a process on streams, and in as many processes."""
    names = [name for name in PACKED if name in bench.families]
    streams = open_streams(bench.device, 2)
    members = []
    for number in range(max(bench.packs)):
        context = streams.member()
        with context:
            members.append((context, *bench.learner(names[number % len(names)], True)))
    bench.wait()
    rates = {}
    for count in bench.packs:

        def turn(count: int = count) -> None:
            for context, learner, images, labels in members[:count]:
                with context:
                    learner.step(images, labels)

        pictures = sum(len(labels) for _, _, _, labels in members[:count])
        rates[count] = pictures / bench.seconds(turn)
    members.clear()
    free(bench)
    for count in bench.packs:
        beside = 0.0
        with section_line(bench, "pack", f"{count} processes"):
            beside = processes_rate(bench, [names[number % len(names)] for number in range(count)])
        bench.say("pack", f"{count} side by side", pictures_s=rates[count], processes_s=beside,
                  over_processes=rates[count] / beside if beside else float("nan"),
                  over_one=rates[count] / rates[bench.packs[0]])  # fmt: skip


def pictures(bench: Bench) -> None:
    """Measure views of pictures on the device, and the decoders that are there."""
    from crelu_data.datasets import beton_path, crop_of
    from crelu_data.load import READERS, open_pictures
    from sweeps.training.runtime import RuntimeConfig

    for name, size, batch in ((small_pictures(bench.pictures), 32, 128), (jpeg_pictures(bench), bench.jpeg_side, 256)):
        for reader in ("threads",) if size == 32 else READERS:
            with section_line(bench, "pictures", f"{size} px by {reader}"):
                if absent := why_absent(bench, reader):
                    bench.say("pictures", f"{size} px by {reader}", result=f"left out: {absent}")
                    continue
                path = beton_path(name, "train", bench.prepared(name))
                resident = RuntimeConfig.resident_bytes if size == 32 else 0
                with open_pictures(path, reader=reader, device=bench.device, resident_bytes=resident) as opened:
                    indices = long_order(opened, (FILLING + bench.stream_steps) * batch)
                    for number, minibatch in enumerate(opened.batches(indices, batch)):
                        if number == FILLING:
                            bench.wait()
                            began = time.perf_counter()
                        view(opened, minibatch, 0, crop_of(size))
                    bench.wait()
                    rate = batch * bench.stream_steps / (time.perf_counter() - began)
                bench.say("pictures", f"{size} px by {reader}", pictures_s=rate)


def stream(bench: Bench) -> None:
    """Measure for what share of the time nets wait that learn together from one stream of JPEG."""
    from crelu_data.datasets import beton_path
    from crelu_data.load import default_reader, open_pictures

    name = jpeg_pictures(bench)
    on_gpu = [reader for reader in ("nvjpeg", "both") if not why_absent(bench, reader)]
    for family, count in bench.streamed:
        row = f"{family} by {count} net{'s' * (count > 1)}"
        with section_line(bench, "stream", row):
            _, _, crop, _, batch = bench.families[family]
            streams = open_streams(bench.device, count)
            members = []
            for _ in range(count):
                context = streams.member()
                with context:
                    members.append((context, bench.learner(family, True)[0]))
            bench.wait()

            def turn(batch_of: Callable[[], tuple[Tensor, Tensor]], members: Any = members) -> None:
                for context, learner in members:
                    with context:
                        learner.step(*batch_of())

            there = bench.batch(family, 0)
            bench.wait()
            resident = bench.seconds(lambda turn=turn, there=there: turn(lambda: there))
            path = beton_path(name, "train", bench.prepared(name))
            for reader in (default_reader(), *(on_gpu if count == 1 else [])):
                with (
                    open_pictures(path, reader=reader, device=bench.device, resident_bytes=0) as opened,
                    closing(BatchStream(streams)) as batches,
                ):
                    indices = long_order(opened, (FILLING + bench.stream_steps) * batch)
                    for number in range(FILLING + bench.stream_steps):
                        if number == FILLING:
                            bench.wait()
                            began = time.perf_counter()
                        turn(partial(batches.get, "", number, partial(views, opened, indices, crop, batch)))
                    bench.wait()
                    took = (time.perf_counter() - began) / bench.stream_steps
                bench.say("stream", f"{row}, {reader}", pictures_s=batch / took, resident_pictures_s=batch / resident,
                          stall_percent=max(0.0, 100 * (1 - resident / took)))  # fmt: skip
        free(bench)


def long_order(opened: Any, pictures: int) -> np.ndarray[Any, np.dtype[np.int64]]:
    """Return so many records of a file, in epochs one after another, as a long training reads them.

    Each record is read once before: a decoder is compiled then, and checksums are compared.
    """
    from crelu_data.datasets import order

    records = np.arange(len(opened), dtype=np.int64)
    for _ in opened.batches(records, 256):
        pass
    epochs = range(-(-pictures // len(records)))
    return np.concatenate([order(0, epoch, records) for epoch in epochs])[:pictures]


def views(
    opened: Any, indices: np.ndarray[Any, np.dtype[np.int64]], crop: int, batch: int, start: int
) -> Generator[tuple[Tensor, Tensor], None, None]:
    """Yield the training views and the labels of these records' batches from `start` on."""
    for minibatch in opened.batches(indices, batch, start):
        yield view(opened, minibatch, 0, crop), minibatch.labels


def trial(bench: Bench) -> None:
    """Measure a whole trial: its rate with its start, and after its first epoch beside that of the step alone."""
    trials, config = short_trials(bench, 1, bench.trial_pictures)
    began = time.perf_counter()
    train_apart(bench, trials, config, "whole")
    took = time.perf_counter() - began
    from sweeps.store.ledger import Ledger
    from sweeps.training.splits import open_splits

    result = Ledger(str(bench.folder / "whole")).result(trials[0].key)
    assert result is not None
    learner, images, labels = bench.learner(trials[0].cell.label, True)
    resident = len(labels) / bench.seconds(lambda: learner.step(images, labels))
    history = json.loads((bench.folder / "whole" / "trials" / trials[0].key / "history.json").read_text())
    pictures = len(open_splits(trials[0], config).train_indices)
    lasted = (history[-1]["time_ms"] - history[0]["time_ms"]) / 1e3
    rate = pictures * (len(history) - 1) / max(lasted, 1e-3)
    steps = median(row["sys/images_per_s"] for row in history[1:])  # without evaluations, and what is saved
    bench.say("trial", trials[0].cell.label, with_start_pictures_s=pictures * len(history) / took, seconds=took,
              pictures_s=rate, resident_percent=100 * rate / resident, steps_percent=100 * steps / resident,
              trainings_an_hour=3600 * rate / CIFAR_TRAINING,
              steps_by=str(result["hardware"].get("steps", "eager")))  # fmt: skip


SECTIONS: dict[str, Callable[[Bench], None]] = {
    "roof": roof, "exact": exact, "step": step, "activations": activations, "pack": pack, "pictures": pictures,
    "stream": stream, "trial": trial, "profile": profile, "tests": tests,
}  # fmt: skip


# What they use


def target_of(section: str, name: str, key: str) -> tuple[str, float] | None:
    """Return the sign and the bound of a figure's target, where it has one."""
    for target_section, row, figure, sign, bound in TARGETS:
        if section == target_section and fnmatch.fnmatchcase(name, row) and fnmatch.fnmatchcase(key, figure):
            return sign, bound
    return None


def small_pictures(count: int, test: int = 16) -> str:
    """Return the name of a set of pictures of CIFAR's size."""
    return f"synthetic:size=32,classes=10,train={count},test={test}"


def jpeg_pictures(bench: Bench) -> str:
    """Return the name of a set of pictures that are stored as JPEG, a fifth as many."""
    return f"synthetic:size={bench.jpeg_side},classes=10,train={max(64, bench.pictures // 5)},test=16"


def why_absent(bench: Bench, reader: str) -> str:
    """Return why a reader of JPEG cannot run here; "" where it can."""
    if reader in ("nvjpeg", "both") and bench.device.type != "cuda":
        return "it needs a GPU"
    needs = {
        "ffcv": ["ffcv"],
        "threads": ["simplejpeg"],
        "nvjpeg": ["torchvision"],
        "both": ["simplejpeg", "torchvision"],
    }
    absent = [module for module in needs[reader] if importlib.util.find_spec(module) is None]
    return f"{' and '.join(absent)} not installed" if absent else ""


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


def view(opened: Any, minibatch: Any, epoch: int, crop: int) -> Tensor:
    """Return the training views of a batch."""
    from crelu_data.augment import training_view

    facts = opened.sidecar
    shift = 4 if facts.size == crop else 0
    return training_view(
        minibatch.images, minibatch.ids, seed=0, epoch=epoch, crop=crop, flip=True, shift=shift, lighting=0.0,
        mean=facts.mean, std=facts.std, eigenvalues=facts.eigenvalues, eigenvectors=facts.eigenvectors,
    )  # fmt: skip


def short_trials(bench: Bench, count: int, pictures: int) -> tuple[list[Trial], Any]:
    """Return trials of a few epochs on embedded pictures, and where they run."""
    from sweeps.training.runtime import RuntimeConfig

    name = small_pictures(pictures, 500)
    names = [family for family in PACKED if family in bench.families]
    trials = []
    for number in range(count):
        label = names[number % len(names)]
        net, recipe, *_, batch = bench.families[label]
        rate = 0.01 if recipe.name == "allconv" else 0.1  # rates at which these nets learn within a few epochs
        recipe = dataclasses.replace(recipe, epochs=5, batch=batch, lr=rate)
        trials.append(Trial(Cell(label, net, name, recipe), "ablation", seed=number))
    kind = bench.device.type
    return trials, RuntimeConfig(str(bench.folder), str(bench.prepared(name)), device=kind, reader="threads")


def hashes(ledger: Path, trials: Sequence[Trial]) -> list[list[str]]:
    """Return hashes of what trials have left: weights and scores."""
    from sweeps.store.ledger import Ledger

    results = [Ledger(str(ledger)).result(short_trial.key) for short_trial in trials]
    names = ("weights.safetensors", "tables/scores.parquet")
    return [[result["status"], *(result["files"].get(name, "") for name in names)] for result in results if result]


def train_apart(bench: Bench, trials: Sequence[Trial], config: Any, name: str) -> list[list[str]]:
    """Train one after another; return hashes of what they leave."""
    from sweeps.training.run_trial import run_trial

    for short_trial in trials:
        run_trial(short_trial, dataclasses.replace(config, ledger=str(bench.folder / name)), lambda *_: None)
    return hashes(bench.folder / name, trials)


def train_pack(bench: Bench, trials: Sequence[Trial], config: Any, name: str) -> list[list[str]]:
    """Train side by side; return hashes of what they leave."""
    from sweeps.execution.pack import perform_pack

    perform_pack(trials, dataclasses.replace(config, ledger=str(bench.folder / name)), lambda _: None)
    return hashes(bench.folder / name, trials)


def processes_rate(bench: Bench, names: Sequence[str]) -> float:
    """Return the pictures a second of processes that each train one net at the same time."""
    words = ["--device", bench.device.type, *(["--tiny"] if bench.families is TINY else [])]
    command = [sys.executable, "-m", "benchmarks.gpu", *words, "--serve"]
    pipe = subprocess.PIPE
    sides = [subprocess.Popen([*command, name], cwd=ROOT, text=True, stdin=pipe, stdout=pipe, stderr=pipe)
             for name in names]  # fmt: skip
    total = 0.0
    try:
        for word in ("ready", "go"):
            if word == "go":
                for side in sides:
                    assert side.stdin is not None
                    print("go", file=side.stdin, flush=True)
            for side in sides:
                assert side.stdout is not None
                line = side.stdout.readline()
                assert line, side.communicate()[1].strip().splitlines()[-1]
                total += float(line) if word == "go" else 0.0
    finally:
        for side in sides:
            side.kill()
            side.communicate()
    return total


def serve(bench: Bench, name: str) -> None:
    """Be one of several processes: warm up, wait for a line, answer with pictures a second over two windows."""
    learner, images, labels = bench.learner(name, True)
    bench.seconds(lambda: learner.step(images, labels))
    print("ready", flush=True)
    sys.stdin.readline()
    count = 0
    began = time.perf_counter()
    while (took := time.perf_counter() - began) < 2 * bench.window:
        for _ in range(10):
            learner.step(images, labels)
        bench.wait()
        count += 10
    print(count * len(labels) / took, flush=True)


def measure(bench: Bench, sections: Sequence[str], seconds: float) -> None:
    """Run sections one after another until the time is over."""
    began = time.perf_counter()
    for name in sections:
        if time.perf_counter() - began > seconds:
            bench.say(name, "left out", result=f"{seconds:g} s are over")
            continue
        start = time.perf_counter()
        with section_line(bench, name, "section"):
            SECTIONS[name](bench)
        free(bench)
        print(f"{'':<12}[{name}: {time.perf_counter() - start:.0f} s]", flush=True)


def main() -> int:
    """Measure all, or some; or be one of several processes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sections", nargs="+", choices=SECTIONS, default=list(SECTIONS))
    parser.add_argument("--seconds", type=float, default=400.0, help="no section begins later (default 400)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="the rows as JSON")
    parser.add_argument("--device", default="cuda", help=argparse.SUPPRESS)
    parser.add_argument("--tiny", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--serve", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.device == "cuda" and not torch.cuda.is_available():
        print("no GPU here: nothing is measured")
        return 0
    torch.backends.cudnn.deterministic = True
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(torch.device(options.device), Path(folder))
        if options.tiny:
            torch.set_num_threads(1)
            small = tuple((name, (2, 4, 8, 8)) for name in ("crelu", "bias crelu", "max pool 3/2"))
            sizes = {"families": TINY, "packs": (1,), "window": 0.01,
                     "streamed": (("VGG", 1), ("VGG", 2)), "jpeg_side": 72}  # fmt: skip
            bench = dataclasses.replace(bench, **sizes, activations=small, steps=6, pictures=200, members=2, kills=0)
            bench.trial_pictures, bench.stream_steps = bench.pictures, 4
        if options.serve:
            serve(bench, options.serve)
            return 0
        if "roof" not in options.sections:
            roof(bench)
        measure(bench, options.sections, options.seconds)
    versions = {"torch": torch.__version__, "cores": os.cpu_count(), "date": time.strftime("%Y-%m-%d")}
    print("  ".join(f"{name} {value}" for name, value in versions.items()))
    if options.json:
        options.json.write_text(json.dumps({**versions, "rows": bench.rows}, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
