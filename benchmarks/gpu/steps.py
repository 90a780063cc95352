"""Steps of each family on pictures that are there: their rate, their share of the roof, and what they are made of."""

from __future__ import annotations

import re
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial

import torch
from torch._dynamo import utils as dynamo
from torch.backends import cudnn

from benchmarks.gpu.bench import Bench, device_name, free, section_line, torch_alone
from sweeps.training.evaluate import autocast_type
from sweeps.training.gpu.casts import CastNet
from sweeps.training.gpu.compiled import Compiled

COMPILING_SECONDS = 60.0  # before the end of all, for one more net
COMPILED = ("allconv CReLU", "VGG", "All-CNN-B 1,4,7 of 256")  # a compilation takes half a minute
# Kinds of work on a device, by what names of kernels hold: the first that fits.
KINDS = (
    ("layouts", r"nchwToNhwc|nhwcToNchw|tensorTransform|reorder"),
    ("activations by ours", "_activation_"),
    ("pooling by ours", "_pool_forward|_pool_backward"),
    ("dropout by ours", "_dropout_forward|_dropout_backward"),
    ("sums by ours", "_add_parts"),
    ("pooling by torch", "(?i)max_?pool|avg_?pool"),
    ("convolutions", "(?i)conv|gemm|xmma|cutlass|cudnn|wgrad|dgrad|fprop|nvjet|addmm"),
    ("loss", "(?i)softmax|nll_?loss|cross_entropy"),
    ("sums", "(?i)reduce|::sum"),
    ("optimiser", "(?i)multi_tensor|_foreach|_fused_"),
    ("dropout", "(?i)distribution|bernoulli|random"),
    ("copies", "(?i)memcpy|memset|copy|::to$|zero_|fill"),
    ("by elements", "(?i)elementwise|CatArray|threshold|clamp|relu|::(add|mul|div|neg|cat)"),
)


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


def step(bench: Bench) -> None:
    """Measure a step of each family on pictures that are there: eager, and replayed in three ways.

    In "torch's graph" no kernel of ours is taken. "fastest" has cuDNN's fastest kernels, and our order of the sums of
    biases.
    """
    for name in bench.families:
        measured(bench, name, "eager")
        by_torch = measured(bench, name, "torch's graph")
        measured(bench, name, "graph", by_torch)
        measured(bench, name, "fastest")


def compiled(bench: Bench) -> None:
    """Measure steps of some families by torch.compile, the other ones that `--kernels fastest` has to choose from."""
    for name in COMPILED:
        if bench.device.type != "cuda":
            bench.say("compiled", name, result="left out: it needs a GPU")
        elif time.perf_counter() > bench.ends - COMPILING_SECONDS:
            bench.say("compiled", name, result="left out: the time is over")
        else:
            measured(bench, name, "compiled")


def measured(bench: Bench, name: str, form: str, by_torch: float | None = None) -> float | None:
    """Measure a step of a family in one form, and say so; return its seconds, or None where it fails.

    `by_torch` are the seconds of a graph without kernels of ours.
    """
    family = bench.families[name]
    work = 6e-9 * family.net.macs(family.classes, family.crop) * family.batch
    took: float | None = None
    with (
        section_line(bench, "step", f"{name}, {form}"),
        torch_alone(form == "torch's graph"),
        fastest(form in ("fastest", "compiled")),
    ):
        learner, images, labels = bench.learner(name, form != "eager")
        if form == "compiled":
            dynamo.counters.clear()
            learner.net = CastNet(Compiled(learner.model), autocast_type(learner.precision))
        took = bench.seconds(lambda: learner.step(images, labels))
        bench.say("step", f"{name}, {form}", ms=1e3 * took, pictures_s=family.batch / took,
                  roof_percent=100 * 1e9 * work / took / bench.flops,
                  **({"over_torch": by_torch / took} if by_torch else {}),
                  **(compiled_of() if form == "compiled" else {}), steps_by=learner.steps_by)  # fmt: skip
    free(bench)
    return took


def compiled_of() -> dict[str, float | str]:
    """Return how much of a net torch.compile has taken, and why it left the rest."""
    stats = dynamo.counters["stats"]
    breaks = [str(reason).splitlines()[0] for reason in dynamo.counters["graph_break"]]
    return {"calls_compiled": stats["calls_captured"], "compiled_graphs": stats["unique_graphs"],
            "breaks": "; ".join(breaks) or "none"}  # fmt: skip


@contextmanager
def fastest(is_so: bool) -> Iterator[None]:
    """Let cuDNN take its fastest kernels, as `--kernels fastest` does, or those that are deterministic."""
    cudnn.benchmark, cudnn.deterministic = is_so, not is_so
    try:
        yield
    finally:
        cudnn.benchmark, cudnn.deterministic = False, True


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
