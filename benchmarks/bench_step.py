"""How many pictures a second does a net learn from? Ours beside a plain fp32 loop, and beside what the machine can do.

    python -m benchmarks.bench_step                                  allconv CReLU, All-CNN-B, VGG at the paper's width
    python -m benchmarks.bench_step --width 0.25 --batch 32          as in a demo
    python -m benchmarks.bench_step --precision fp32                 what bf16 is worth

"plain" is the loop of every example: torch's layers in their plain layout, fp32, a DataLoader with PIL; on a GPU with
autocast and channels last, as its tuning guide asks. "ours" is a worker's step on real pictures, decoded, augmented and
learned from. "resident" takes the same step on random pictures that are there already: what is lacking to it is the
stall by data. "test" is a forward pass of an evaluation. The sides have a process each and take turns. GFLOP are three
times the forward pass's for a step; the roof is the best of matrix products and convolutions of this machine, in the
precision that ours computes in.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from benchmarks.turns import answer, ask, start
from crelu_models.spec import Net
from crelu_models.tables import S2, S4, S8
from sweeps.experiment.recipe import ALLCONV, IMAGENET_ADAM, VGG, Recipe

# Net, recipe, stored side, crop, classes, pictures a step: on a CPU, and on a GPU.
FAMILIES: dict[str, tuple[Net, Recipe, int, int, int, int, int]] = {
    "allconv CReLU": (S2.crelu(1, 2, 3), ALLCONV, 32, 32, 10, 128, 128),
    "allconv CReLU half": (S2.crelu(1, 2, 3).width(0.5), ALLCONV, 32, 32, 10, 128, 128),
    "All-CNN-B 1,4,7": (S8.crelu(1, 4, 7, width=0.5), IMAGENET_ADAM, 256, 224, 100, 16, 256),
    "VGG": (S4, VGG, 32, 32, 10, 128, 128),
}
STEPS = 6  # in a turn
COLUMNS = (
    "batch",
    "plain/s",
    "ours/s",
    "ratio (least)",
    "resident",
    "stall %",
    "test/s",
    "GFLOP/s",
    "% roof",
    "test %",
)
WIDTHS = (7, 9, 9, 15, 10, 9, 9, 9, 8, 8)
LOOK = {"cpu": 1, "cuda": 20}  # turns of a GPU are longer


def name(stored: int) -> str:
    """Return the data set of one size: a few turns of pictures."""
    return f"synthetic:size={stored},classes=10,train={2048 if stored == 32 else 256},test=16"


def net_of(family: str, options: argparse.Namespace) -> tuple[Net, int]:
    """Return the net and the pictures of a step."""
    net, *_, few, many = FAMILIES[family]
    batch = options.batch or (few if options.device == "cpu" else many)
    return net if options.width == 1 else net.width(options.width), batch


def ours(family: str, options: argparse.Namespace) -> dict[str, Callable[[], Iterator[None]]]:
    """Return how to take steps on real pictures, on resident ones, and to score."""
    import torch

    from crelu_data.augment import training_view
    from crelu_data.datasets import beton_path, order
    from crelu_data.load import open_pictures
    from crelu_models.modules import build, initialise
    from sweeps.training.evaluate import precision_of
    from sweeps.training.gpu.graphs import open_graphs
    from sweeps.training.loop import Learner
    from sweeps.training.runtime import keep_memory

    keep_memory()
    net, batch = net_of(family, options)
    _, recipe, stored, crop, classes, *_ = FAMILIES[family]
    place = torch.device(options.device)
    model = build(net, classes, crop)
    initialise(model, net, recipe.init, 0)
    precision = precision_of(options.precision, place)
    model = model.to(place, memory_format=torch.channels_last)
    # Random labels are not learned, and at a hundredth of its rate no net diverges on them.
    recipe = dataclasses.replace(recipe, lr=recipe.lr / 100, batch=batch, epochs=10**6)
    graphs = open_graphs(place, "")
    learner = Learner(model, recipe, seed=0, steps=100, precision=precision, graphs=graphs)
    path = beton_path(name(stored), "train", Path(options.data))
    pictures = open_pictures(path, device=place, resident_bytes=2 << 30 if stored == 32 else 0)
    side = pictures.sidecar
    images = torch.randn(batch, 3, crop, crop, device=place).contiguous(memory_format=torch.channels_last)
    labels = torch.randint(0, classes, (batch,), device=place)

    def real() -> Iterator[None]:
        epoch = 0
        while True:
            indices = order(0, epoch, np.arange(len(pictures), dtype=np.int64))
            for minibatch in pictures.batches(indices, batch):
                view = training_view(
                    minibatch.images, minibatch.ids, seed=0, epoch=epoch, crop=crop, flip=recipe.flip,
                    shift=recipe.shift, lighting=0.0, mean=side.mean, std=side.std, eigenvalues=side.eigenvalues,
                    eigenvectors=side.eigenvectors,
                )  # fmt: skip
                learner.step(view, minibatch.labels)
                yield
            epoch += 1

    def resident() -> Iterator[None]:
        while True:
            learner.step(images, labels)
            yield

    def test() -> Iterator[None]:
        while True:
            learner.scores(images, 10**6)
            yield

    return {"ours": real, "resident": resident, "test": test}


def plain(family: str, options: argparse.Namespace) -> dict[str, Callable[[], Iterator[None]]]:
    """Return how to take steps as one writes them without us."""
    import torch
    from torch.utils.data import DataLoader
    from torchvision import transforms

    from benchmarks.bench_loader import Files
    from benchmarks.plain import plainly
    from crelu_models.modules import build, initialise

    net, batch = net_of(family, options)
    _, recipe, stored, crop, classes, *_ = FAMILIES[family]
    gpu = options.device == "cuda"
    model = plainly(build(net, classes, crop))
    initialise(model, net, recipe.init, 0)
    model = model.to(options.device, memory_format=torch.channels_last if gpu else torch.contiguous_format)
    parameters = list(model.parameters())
    optimiser = None
    if recipe.optimiser == "adam":
        optimiser = torch.optim.Adam(parameters, recipe.lr)
    else:
        optimiser = torch.optim.SGD(parameters, recipe.lr, recipe.momentum, recipe.dampening, recipe.weight_decay)
    crops = [transforms.RandomCrop(crop, padding=recipe.shift)] if recipe.shift or crop < stored else []
    chain = [
        *crops,
        transforms.RandomHorizontalFlip(),
        transforms.ToTensor(),
        transforms.Normalize([0.5] * 3, [0.25] * 3),
    ]
    files: Any = Files(Path(options.data), True, transforms.Compose(chain))

    def steps() -> Iterator[None]:
        while True:
            for images, labels in DataLoader(files, batch, shuffle=True, num_workers=2, pin_memory=gpu, drop_last=True):
                images, labels = (each.to(options.device, non_blocking=True) for each in (images, labels))
                optimiser.zero_grad()
                with torch.autocast("cuda", torch.bfloat16, enabled=gpu):
                    loss = torch.nn.functional.cross_entropy(model(images), labels)
                loss.backward()
                optimiser.step()
                yield

    return {"plain": steps}


def roof(options: argparse.Namespace) -> float:
    """Return the best GFLOP a second of matrix products and convolutions, in the precision that ours takes."""
    import torch

    from sweeps.training.evaluate import precision_of

    place = torch.device(options.device)
    kind = torch.bfloat16 if precision_of(options.precision, place) == "bf16" else torch.float32
    side = 2048 if options.device == "cpu" else 8192
    a, b = (torch.randn(side, side, device=place, dtype=kind) for _ in range(2))
    n = 16 if options.device == "cpu" else 256
    x = torch.randn(n, 192, 32, 32, device=place, dtype=kind).contiguous(memory_format=torch.channels_last)
    w = torch.randn(192, 192, 3, 3, device=place, dtype=kind).contiguous(memory_format=torch.channels_last)
    work: list[tuple[float, Callable[[], Any]]] = [
        (2 * side**3, lambda: a @ b),
        (2 * 9 * 192 * 192 * 32 * 32 * n, lambda: torch.nn.functional.conv2d(x, w, padding=1)),
    ]
    best = 0.0
    for flop, function in work:
        for _ in range(8):
            began = time.perf_counter()
            for _ in range(LOOK[options.device]):
                function()
            if options.device == "cuda":
                torch.cuda.synchronize()
            best = max(best, flop * LOOK[options.device] / (time.perf_counter() - began))
    return best / 1e9


def serve(options: argparse.Namespace) -> None:
    """Be one side: answer each line, which names what to do, with pictures a second."""
    import torch

    family, side = options.serve
    turns = (plain if side == "plain" else ours)(family, options)
    batch = net_of(family, options)[1]
    print("[]", flush=True)
    running = {word: steps() for word, steps in turns.items()}
    for line in sys.stdin:
        if line.strip() == "roof":
            print(json.dumps(roof(options)), flush=True)
            continue
        # The first is not counted: a DataLoader's workers have filled its queue meanwhile, and run empty afterwards.
        next(running[line.strip()])
        steps = STEPS * LOOK[options.device]
        began = time.perf_counter()
        for _ in islice(running[line.strip()], steps):
            pass
        if options.device == "cuda":
            torch.cuda.synchronize()
        print(json.dumps(batch * steps / (time.perf_counter() - began)), flush=True)


def compare(family: str, options: argparse.Namespace) -> None:
    """Let the sides take turns, and print a line of the table."""
    words = ["--data", options.data, "--device", options.device, "--precision", options.precision]
    words += ["--width", str(options.width), "--batch", str(options.batch)]
    sides = {side: start("bench_step", "--serve", family, side, *words) for side in ("plain", "ours")}
    for process in sides.values():
        answer(process)
    rates: dict[str, list[float]] = {what: [] for what in ("plain", "ours", "resident", "test", "roof")}
    for _ in range(options.rounds):
        for what in rates:
            rates[what].append(ask(sides["plain" if what == "plain" else "ours"], what))
    for process in sides.values():
        process.communicate()
    net, batch = net_of(family, options)
    *_, crop, classes, _, _ = FAMILIES[family]
    middle = {what: median(values) for what, values in rates.items()}
    ratios = [mine / its for mine, its in zip(rates["ours"], rates["plain"], strict=True)]
    stalls = [1 - real / resident for real, resident in zip(rates["ours"], rates["resident"], strict=True)]
    work = 6 * net.macs(classes, crop) / 1e9
    roofs = max(rates["roof"])
    gflop = work * middle["ours"]
    row = (f"{batch}", f"{middle['plain']:.1f}", f"{middle['ours']:.1f}", f"{median(ratios):.2f} ({min(ratios):.2f})")
    row += (f"{middle['resident']:.1f}", f"{100 * median(stalls):.1f}", f"{middle['test']:.1f}", f"{gflop:.0f}")
    row += (f"{100 * gflop / roofs:.0f}", f"{100 * work / 3 * middle['test'] / roofs:.0f}")
    print(f"{family:<20}" + "".join(f"{word:>{width}}" for word, width in zip(row, WIDTHS, strict=True)), flush=True)


def prepare(folder: Path) -> None:
    """Write the pictures of each size, for ours and for a DataLoader."""
    import crelu_data.write
    from crelu_data import beton
    from crelu_data.datasets import beton_path

    for stored in {family[2] for family in FAMILIES.values()}:
        where = folder / str(stored)
        crelu_data.write.prepare(name(stored), where)
        index = beton.read_index(beton_path(name(stored), "train", where))
        contents = [
            bytes(beton.stored_bytes(index, beton.mapped(index), record)) for record in range(len(index.labels))
        ]
        np.save(where / "labels.npy", index.labels)
        if index.jpeg:
            for record, content in enumerate(contents):
                (where / f"{record}.jpg").write_bytes(content)
        else:
            np.save(where / "pixels.npy", np.frombuffer(b"".join(contents), np.uint8).reshape(-1, stored, stored, 3))


def main() -> None:
    """Compare each family on each device; or be one side."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--families", nargs="+", choices=FAMILIES, default=list(FAMILIES))
    parser.add_argument("--width", type=float, default=1.0)
    parser.add_argument("--batch", type=int, default=0, help="pictures a step (default: the family's)")
    parser.add_argument("--precision", default="auto", choices=("auto", "fp32", "bf16"), help="of ours")
    parser.add_argument("--rounds", type=int, default=5)
    for word in ("--data", "--device"):
        parser.add_argument(word, default="cpu", help=argparse.SUPPRESS)
    parser.add_argument("--serve", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve:
        serve(options)
        return
    import torch

    with tempfile.TemporaryDirectory() as folder:
        prepare(Path(folder))
        for device in ("cpu", "cuda"):
            if device == "cuda" and not torch.cuda.is_available():
                print("no GPU here: skipped")
                continue
            options.device = device
            print(f"{device:<20}" + "".join(f"{word:>{width}}" for word, width in zip(COLUMNS, WIDTHS, strict=True)))
            for family in options.families:
                options.data = f"{folder}/{FAMILIES[family][2]}"
                compare(family, options)


if __name__ == "__main__":
    main()
