"""What do the analyses take at the paper's sizes, in time and in memory? And what would the naive form take?

    python -m benchmarks.bench_analysis                              # minutes: a part of the pictures or patches
    python -m benchmarks.bench_analysis --full --only invariance     # an hour or more: all of them, nothing inferred

A part is enough for seconds, which are proportional, and given for all; "~" marks them. It is not for memory: the exact
thresholds at 224 pixels are therefore a case of their own, always in full. Each case has a process of its own, whose
peak is shown; 1 is returned where one is above 4 GiB. Random weights and pictures: neither cares for values.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor

from crelu_models.modules import build, initialise
from crelu_models.spec import Conv, Net
from crelu_models.tables import PAPER
from sweeps.analysis.capture import batch_size
from sweeps.analysis.cgls import cgls, ratio
from sweeps.analysis.invariance_scores import CIFAR, IMAGENET, ONE_IN, Largest, firing, moved, thresholds
from sweeps.analysis.pooling_ratio import Deal, patch_columns, patch_ratios, pooled_columns, pooled_ratio
from sweeps.analysis.reconstruct import pooled, randomised
from sweeps.analysis.weights import LoadedNet

Found = dict[str, Any]


def pictures(count: int, size: int, batch: int) -> Iterator[Tensor]:
    """Yield `count` random pictures uint8 (n, 3, size, size), the same each time."""
    stream = torch.Generator().manual_seed(0)
    for first in range(0, count, batch):
        shape = (min(batch, count - first), 3, size, size)
        yield torch.randint(0, 256, shape, generator=stream, dtype=torch.uint8)


def watched(batches: Iterable[Tensor], word: str, count: int) -> Iterator[Tensor]:
    """Yield batches; say each minute on standard error how far they are, of `count` pictures."""
    began = said = time.monotonic()
    done = 0
    for batch in batches:
        yield batch
        done += len(batch)
        now = time.monotonic()
        if now - said > 60:
            left = (now - began) / done * (count - done) / 60
            print(f"  {word}: {done:,} of {count:,} pictures, {left:.0f} min left", file=sys.stderr, flush=True)
            said = now


def read(images: Tensor, device: str) -> Tensor:
    """Return pictures about as a net reads them."""
    return images.to(device).float() / 255 - 0.5


def drawn(name: str, classes: int) -> LoadedNet:
    """Return a net of the paper at its initial weights."""
    net = PAPER[name]
    model = build(net, classes)
    initialise(model, net, "he_fan_in", 0)
    return LoadedNet(name, "none", net, "", dict(model.state_dict()))


def invariance(name: str, stored: int, crop: int, count: int, share: float, device: str) -> Found:
    """Score conv1 to conv7 of a net; the naive form keeps the responses of all pictures at once."""
    transforms = CIFAR if stored == crop else IMAGENET
    layers = [f"conv{i}" for i in range(1, 8)]
    subject = drawn(name, 10)
    taken = max(1, round(count * share))
    acts = {row.name: row.act for row in subject.net.rows if isinstance(row, Conv) and row.name in layers}
    model = subject.model(crop, device)
    batch = batch_size(subject.net, layers, crop)
    began = time.perf_counter()
    first, second = (watched(pictures(taken, stored, batch), word, taken) for word in ("thresholds", "firing"))
    threshold = thresholds(model, acts, taken, (read(moved(x, "identity", crop), device) for x in first))
    middle = time.perf_counter()
    views = ((read(moved(x, t, crop), device) for t in ("identity", *transforms)) for x in second)
    firing(model, acts, threshold, views, len(transforms))
    seconds = (time.perf_counter() - began) * count / taken
    note = f"thresholds {(middle - began) / (time.perf_counter() - began):.0%}"
    return {"all": seconds, "naive MiB": responses(subject.net, layers, crop, count) / 2**20, "note": note}


def responses(net: Net, layers: list[str], size: int, count: int) -> float:
    """Return the bytes of all responses of the layers to `count` pictures."""
    return 4.0 * count * sum(p.filters * p.side**2 for p in net.layers(1, size) if p.row.name in layers)


def exact_thresholds(share: float, device: str) -> Found:
    """Find the exact thresholds of conv1 to conv7 of S8 at 224 over 5,000 pictures of random responses, in full."""
    count, batch = 5000, 32
    layers = [f"conv{i}" for i in range(1, 8)]
    placed = [layer for layer in PAPER["S8"].layers(10, 224) if layer.row.name in layers]
    top_values = [Largest(count * layer.side**2 // ONE_IN + 1) for layer in placed]
    stream = torch.Generator(device).manual_seed(0)
    spent = 0.0
    for _ in range(0, count, batch):
        for layer, largest in zip(placed, top_values, strict=True):
            shape = (layer.filters, batch * layer.side**2)
            values = torch.randn(shape, generator=stream, device=device).relu_()
            began = time.perf_counter()
            largest.add(values)
            spent += time.perf_counter() - began
    assert all(float(largest.kth().min()) > 0 for largest in top_values)
    note = f"conv1 keeps {top_values[0].k:,} values a filter"
    return {"all": spent, "naive MiB": responses(PAPER["S8"], layers, 224, count) / 2**20, "note": note}


def inverse(size: int, limit: int, device: str) -> Found:
    """Invert conv1 (11 x 11, stride 4, 96 filters) at this size, by the pseudoinverse too where that is possible."""
    dtype = torch.float64
    stream = torch.Generator().manual_seed(0)
    weight = torch.randn(96, 3, 11, 11, generator=stream).to(device, dtype)
    x = torch.randn(1, 3, size, size, generator=stream).to(device, dtype)
    z = torch.nn.functional.conv2d(x, weight, stride=4)
    began = time.perf_counter()
    solution = cgls(z, weight, 4, 0, size, [limit], tolerance=0.0)[0]
    seconds = time.perf_counter() - began
    result: Found = {"all": seconds, "naive MiB": z.numel() * x.numel() * 8 / 2**20}
    note = f"{seconds / limit * 1e3:.0f} ms an iteration"
    if size <= 40:
        unit = torch.eye(x.numel(), dtype=dtype, device=device).view(-1, *x.shape[1:])
        began = time.perf_counter()
        dense = torch.linalg.pinv(torch.nn.functional.conv2d(unit, weight, stride=4).flatten(1).T) @ z.flatten()
        result["naive"] = time.perf_counter() - began
        note += f", differs from the dense one by {float(ratio(dense.view_as(x), solution)):.0e}"
    return result | {"note": note}


def patches(share: float, device: str) -> Found:
    """Do Algorithm 2 for conv2 and conv5 of the half net, learned and random, 20,000 patches; naive: least squares."""
    count = 20_000
    subject = drawn("S3_half", 10)
    taken = max(20, round(count * share))
    began = time.perf_counter()
    for conv, pool in pooled(subject.net):
        for weights in (subject, randomised(subject, 0)):
            views = (read(x, device) for x in pictures(taken // 2, 32, 250))
            patch_ratios(weights, conv, pool, views, Deal(taken, taken // 2, 32), device)
    seconds = (time.perf_counter() - began) * count / taken
    slow, quick, error = naive_patches(10)
    note = f"conv5 alone: least squares {slow * 1e3:.0f} ms a patch, Gram {quick * 1e3:.1f}, {error:.0e} apart"
    return {"all": seconds, "naive": 4 * count * slow, "note": note}


def naive_patches(count: int) -> tuple[float, float, float]:
    """Return seconds a patch of conv5 by least squares with its columns and by the Gram matrix, and the difference."""
    stream = torch.Generator().manual_seed(0)
    w = patch_columns(torch.randn(96, 192, 3, 3, generator=stream, dtype=torch.float64), 3)
    x = torch.randn(count, len(w), generator=stream, dtype=torch.float64)
    gram, z = w.T @ w, x @ w
    mask = pooled_columns(z.view(count, 96, 9)).flatten(1)
    began = time.perf_counter()
    ours = pooled_ratio(x.square().sum(1), z, mask, gram)
    middle = time.perf_counter()
    error = 0.0
    for i in range(count):
        columns = w[:, mask[i]]
        left = x[i] - columns @ torch.linalg.lstsq(columns, x[i][:, None], driver="gelsd").solution[:, 0]
        error = max(error, abs(float(left.norm() / x[i].norm() - ours[i])))
    return (time.perf_counter() - middle) / count, (middle - began) / count, error


LIMIT = 4096  # MiB
CASES = {
    "invariance, S2, 10,000 x 32": lambda share, device: invariance("S2", 32, 32, 10_000, share, device),
    "invariance, S3_crelu, 10,000 x 32": lambda share, device: invariance("S3_crelu", 32, 32, 10_000, share, device),
    "invariance, S8, 5,000 x 224": lambda share, device: invariance("S8", 256, 224, 5_000, share, device),
    "invariance, S10, 5,000 x 224": lambda share, device: invariance("S10", 256, 224, 5_000, share, device),
    "thresholds, S8, 5,000 x 224": exact_thresholds,
    "CGLS, conv1 at 224, 200 iterations": lambda share, device: inverse(224, 200, device),
    "CGLS, conv1 at 23, 2,000 iterations": lambda share, device: inverse(23, 2000, device),
    "Algorithm 2, 20,000 patches": patches,
}

# The cases of which a part may be computed; the others are always in full.
PARTS = tuple(name for name in CASES if name.startswith(("invariance", "Algorithm 2")))


def peak(device: str) -> float:
    """Return the largest resident memory of this process, or on a GPU what was allocated there, in MiB."""
    if device.startswith("cuda"):
        return float(torch.cuda.max_memory_allocated(device)) / 2**20
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) for line in status if line.startswith("VmHWM")) / 2**10


def show(name: str, share: float, device: str) -> bool:
    """Run a case in a process of its own and print its line; return whether it keeps to LIMIT."""
    words = ["--case", name, "--share", str(share), "--device", device]
    run = subprocess.run([sys.executable, "-m", "benchmarks.bench_analysis", *words], stdout=subprocess.PIPE, text=True)
    if run.returncode:
        print(f"{name:<36} failed with exit code {run.returncode}")
        return False
    costs = json.loads(run.stdout)
    inferred = "~" if share < 1 and name in PARTS else ""
    naive, memory = (f"{costs[key]:,.0f}" if key in costs else "-" for key in ("naive", "naive MiB"))
    over = "" if costs["peak MiB"] <= LIMIT else "; ABOVE 4 GiB"
    seconds = f"{inferred}{costs['all']:,.1f}"
    print(
        f"{name:<36} {seconds:>9} {costs['peak MiB']:>9,.0f} {naive:>9} {memory:>10}  {costs['note']}{over}", flush=True
    )
    return not over


def main() -> int:
    """Run the cases and print one table; return 1 where one failed or took more memory than LIMIT."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--share", type=float, default=0.02, help="part of the pictures to compute (default 0.02)")
    parser.add_argument("--full", action="store_true", help="compute all pictures and patches: --share 1")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--only", default="", help="cases whose name has this in it")
    parser.add_argument("--case", choices=CASES, help="run this one here and print it as JSON")
    options = parser.parse_args()
    share = 1.0 if options.full else options.share
    if options.case:
        costs = CASES[options.case](share, options.device)
        print(json.dumps(costs | {"peak MiB": peak(options.device)}))
        return 0
    print(f"{'case':<36} {'seconds':>9} {'peak MiB':>9} {'naive s':>9} {'naive MiB':>10}  note", flush=True)
    chosen = [name for name in CASES if options.only in name]
    within_limit = [show(name, share, options.device) for name in chosen]
    if inferred := [name for name in chosen if name in PARTS and share < 1]:
        print("\nin full, nothing inferred (memory too):")
        for name in inferred:
            print(f"  python -m benchmarks.bench_analysis --full --device {options.device} --only {name!r}")
    return 0 if all(within_limit) else 1


if __name__ == "__main__":
    sys.exit(main())
