"""How fast do pictures come? Ours against torch's DataLoader with PIL and with torchvision, and FFCV's own pipeline.

    python -m benchmarks.bench_loader                        256 and 32 pixels, as JPEG and as pixels
    python -m benchmarks.bench_loader --sets 256-jpeg        one of them
    python -m benchmarks.bench_loader --first                FFCV's first epoch against its second, ours and its own
    python -m benchmarks.bench_loader --at-once              views of resident pictures, a step or several at a time

"decode" ends with a batch of uint8 pictures, "views" with what a net takes: random crop, mirrored or not, normalised,
float32. Crops are of 224 of 256 pixels, and of 32 of 32 behind a border of 4. Every side reads the same encoded
pictures in a shuffled order, by as many workers as there are cores, and has a process of its own; the processes take
turns, an epoch each. Where there is a GPU all of it is done again with batches that end there. Reported are pictures a
second of wall time and of CPU time (with all workers), medians over the epochs, and the seconds to the first batch:
from opening the file, and in brackets from the start of the process, with all imports, on a machine that has run it.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from benchmarks.turns import answer, ask, start

SETS = {"256-jpeg": (256, True), "256-pixels": (256, False), "32-jpeg": (32, True), "32-pixels": (32, False)}
SIDES = ("ours", "ours, threads", "DataLoader, PIL", "DataLoader, torchvision", "FFCV's own")
ENDS = ("views", "decode")
PICTURES = {256: 1024, 32: 8192}
CROP = {256: 224, 32: 32}
SHIFT = {256: 0, 32: 4}
BATCH = {256: 64, 32: 128}
Epoch = Callable[[], Iterator[Any]]


def name(size: int) -> str:
    """Return the data set of one size."""
    return f"synthetic:size={size},classes=10,train={PICTURES[size]},test=16"


def write(folder: Path, labels: list[str]) -> None:
    """Prepare these sets, and lay its encoded pictures out as a user of a DataLoader has them."""
    import crelu_data.write
    from crelu_data import beton
    from crelu_data.datasets import beton_path

    for label in labels:
        size, jpeg = SETS[label]
        where = folder / label
        crelu_data.write.RAW_UP_TO = 0 if jpeg else size
        crelu_data.write.prepare(name(size), where)
        index = beton.read_index(beton_path(name(size), "train", where))
        stored = beton.mapped(index)
        contents = [bytes(beton.stored_bytes(index, stored, record)) for record in range(len(index.labels))]
        if jpeg:
            for record, content in enumerate(contents):
                (where / f"{record}.jpg").write_bytes(content)
        else:
            pixels = np.stack([np.frombuffer(content, np.uint8).reshape(size, size, 3) for content in contents])
            np.save(where / "pixels.npy", pixels)
        np.save(where / "labels.npy", index.labels)


def ours(where: Path, size: int, views: bool, reader: str, device: str) -> Epoch:
    """Read as a worker of ours does: small sets stay in memory, others are decoded in each epoch."""
    from crelu_data.augment import training_view
    from crelu_data.datasets import beton_path, order
    from crelu_data.load import open_pictures
    from sweeps.training.runtime import keep_memory

    keep_memory()
    path = beton_path(name(size), "train", where)
    pictures = open_pictures(path, reader=reader, device=device, resident_bytes=2 << 30 if size == 32 else 0)
    side = pictures.sidecar
    number = 0

    def epoch() -> Iterator[Any]:
        nonlocal number
        number += 1
        indices = order(0, number, np.arange(len(pictures), dtype=np.int64))
        for batch in pictures.batches(indices, BATCH[size]):
            yield batch.images if not views else training_view(
                batch.images, batch.ids, seed=0, epoch=number, crop=CROP[size], flip=True, shift=SHIFT[size],
                lighting=0.0, mean=side.mean, std=side.std, eigenvalues=side.eigenvalues,
                eigenvectors=side.eigenvectors,
            )  # fmt: skip

    return epoch


class Files:
    """A data set over files or an array, as PIL pictures or as tensors; of the form torch's DataLoader wants."""

    def __init__(self, where: Path, pil: bool, transform: Callable[[Any], Any]) -> None:
        """Look at what is there, and open it when the first picture is asked for."""
        self.where = where
        self.pil = pil
        self.transform = transform
        self.labels = np.load(where / "labels.npy")
        raw = where / "pixels.npy"
        self.pixels = np.load(raw, mmap_mode="r") if raw.exists() else None

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, record: int) -> tuple[Any, int]:
        import torch
        from PIL import Image
        from torchvision.io import ImageReadMode, decode_jpeg, read_file

        file = self.where / f"{record}.jpg"
        if self.pil:
            picture = Image.open(file).convert("RGB") if self.pixels is None else Image.fromarray(self.pixels[record])
        elif self.pixels is None:
            picture = decode_jpeg(read_file(str(file)), ImageReadMode.RGB)
        else:
            picture = torch.from_numpy(np.array(self.pixels[record])).permute(2, 0, 1)
        return self.transform(picture), int(self.labels[record])


def data_loader(where: Path, size: int, views: bool, pil: bool) -> Epoch:
    """Read by torch's DataLoader with torchvision's transforms, as its examples do."""
    from torch.utils.data import DataLoader
    from torchvision import transforms
    from torchvision.transforms import v2

    from crelu_data.datasets import beton_path, read_sidecar

    side = read_sidecar(beton_path(name(size), "train", where).with_suffix(".json"))
    kind: Any = transforms if pil else v2
    chain = [kind.RandomCrop(CROP[size], padding=SHIFT[size] or None), kind.RandomHorizontalFlip()]
    if pil:
        chain += [transforms.ToTensor(), transforms.Normalize(side.mean, side.std)]
    else:
        import torch

        chain += [v2.ToDtype(torch.float32, scale=True), v2.Normalize(side.mean, side.std)]
    alone = transforms.PILToTensor() if pil else lambda picture: picture
    files: Any = Files(where, pil, kind.Compose(chain) if views else alone)
    loader = DataLoader(files, BATCH[size], shuffle=True, num_workers=os.cpu_count() or 1)
    return lambda: (images for images, _ in loader)


def stock(where: Path, size: int, views: bool) -> Epoch:
    """Read by FFCV's Loader with its own operations, as its examples do; a crop is one of its resized crops."""
    os.environ.setdefault("NUMBA_THREADING_LAYER", "omp")
    from ffcv.fields.rgb_image import RandomResizedCropRGBImageDecoder, SimpleRGBImageDecoder
    from ffcv.loader import Loader, OrderOption
    from ffcv.transforms import NormalizeImage, RandomHorizontalFlip, RandomTranslate, ToTensor, ToTorchImage

    from crelu_data.datasets import beton_path, read_sidecar

    path = beton_path(name(size), "train", where)
    side = read_sidecar(path.with_suffix(".json"))
    steps: list[Any] = [SimpleRGBImageDecoder()]
    if views:
        steps = [RandomResizedCropRGBImageDecoder((224, 224))] if size == 256 else steps
        steps += [RandomHorizontalFlip(), *([RandomTranslate(padding=SHIFT[size])] if SHIFT[size] else [])]
        steps += [NormalizeImage(255 * np.array(side.mean), 255 * np.array(side.std), np.float32)]
    steps += [ToTensor(), *([ToTorchImage()] if views else [])]
    loader = Loader(str(path), batch_size=BATCH[size], num_workers=os.cpu_count() or 1, order=OrderOption.RANDOM,
                    drop_last=False, pipelines={"image": steps, "label": None, "crc32": None})  # fmt: skip
    return lambda: (batch[0] for batch in loader)


def view_seconds(device: str, at_once: int, batch: int = 128, steps: int = 64) -> float:
    """Return the seconds a step to make CIFAR's training views of resident pictures, for `at_once` steps at a time.

    On a CPU they are the processor's.
    """
    import torch

    from crelu_data.augment import training_view

    count = batch * steps
    images = torch.randint(0, 256, (count, 32, 32, 3), dtype=torch.uint8, device=device)
    chosen = torch.randperm(count, device=device)
    unit = ((1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.0, 0.0, 1.0))
    clock = time.perf_counter if device == "cuda" else time.process_time
    began = 0.0
    for turn in range(2):  # the first begins what is compiled or allocated once
        began = clock()
        for first in range(0, count, batch * at_once):
            ids = chosen[first : first + batch * at_once]
            views = training_view(
                images.index_select(0, ids).permute(0, 3, 1, 2), ids, seed=0, epoch=turn, crop=32, flip=True, shift=4,
                lighting=0.0, mean=(0.5,) * 3, std=(0.25,) * 3, eigenvalues=(1.0,) * 3, eigenvectors=unit,
            )  # fmt: skip
            for view in torch.split(views, batch):
                view[0, 0, 0, 0] += 1  # a step takes it, and nothing of it is put off
        if device == "cuda":
            torch.cuda.synchronize()
    return (clock() - began) / steps


def compare_views(rounds: int, device: str) -> None:
    """Print what views cost a step, by how many steps they are made for at once."""
    sides = (1, 2, 8, 32)
    taken: dict[int, list[float]] = {side: [] for side in sides}
    for _ in range(rounds):
        for side in sides:
            taken[side].append(view_seconds(device, side))
    print(f"{'steps at once, ' + device:<24}{'ms a step':>12}{'over one':>12}")
    for side in sides:
        ratio = median(mine / base for mine, base in zip(taken[side], taken[1], strict=True))
        print(f"{side:<24}{1000 * median(taken[side]):>12.3f}{ratio:>12.2f}")


def first_epochs(where: Path, side: str) -> tuple[float, float]:
    """Return the CPU seconds of a first epoch, with FFCV's import and the opening of the file, and of the second."""
    import crelu_data.load  # and torch with it, which is not FFCV's

    assert crelu_data.load
    began = cpu()
    epoch = ours(where, 256, False, "ffcv", "cpu") if side == "ours" else stock(where, 256, False)
    for _ in epoch():
        pass
    middle = cpu()
    for _ in epoch():
        pass
    return middle - began, cpu() - middle


def compare_first(where: Path, rounds: int) -> None:
    """Print what a process's first epoch of JPEG costs over its second, with and without what Numba has kept."""
    print(f"{'first epoch of 256-jpeg':<32}{'CPU-s':>8}{'second':>8}{'ratio':>8}{'more, s':>9}")
    for side in ("ours", "FFCV's own"):
        for is_cached in (False, True):
            timings = []
            for turn in range(rounds):
                cache = where / "numba" / (side if is_cached else f"{side}-{turn}")
                again = 2 if is_cached and not turn else 1  # the first fills the folder
                timings += [first_of(where, side, cache) for _ in range(again)][-1:]
            first, second = (median(timing[k] for timing in timings) for k in (0, 1))
            label = f"{side}, {'kept' if is_cached else 'a new folder'}"
            print(f"{label:<32}{first:>8.2f}{second:>8.2f}{first / second:>8.2f}{first - second:>9.2f}", flush=True)


def first_of(where: Path, side: str, cache: Path) -> tuple[float, float]:
    """Return `first_epochs` of a process whose Numba keeps its code in this folder."""
    command = [sys.executable, "-m", "benchmarks.bench_loader", "--first-of", str(where), side]
    environment = os.environ | {"NUMBA_CACHE_DIR": str(cache)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    first, second = json.loads(done.stdout.splitlines()[-1])
    return first, second


def cpu() -> float:
    """Return the CPU seconds of this process and of those it has waited for."""
    usages = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)


def serve(where: Path, label: str, side: str, end: str, device: str, started: float) -> None:
    """Be one side: answer each line with an epoch."""
    import torch

    size = SETS[label][0]
    views = end == "views"
    began = time.time()
    if side.startswith("ours"):
        epoch = ours(where, size, views, "threads" if "threads" in side else "ffcv", device)
    elif side.startswith("Data"):
        epoch = data_loader(where, size, views, "PIL" in side)
    else:
        epoch = stock(where, size, views)
    batches = epoch()
    shape = tuple(next(iter(batches)).to(device).shape)
    first = (time.time() - began, time.time() - started)
    for _ in batches:
        pass
    print(json.dumps({"first": first, "shape": shape, "torch": torch.__version__}), flush=True)
    for _ in sys.stdin:
        wall, used = time.perf_counter(), cpu()
        pictures = sum(len(images.to(device, non_blocking=True)) for images in epoch())
        if device == "cuda":
            torch.cuda.synchronize()
        print(json.dumps([pictures / (time.perf_counter() - wall), pictures / (cpu() - used)]), flush=True)


def compare(where: Path, label: str, end: str, device: str, sides: list[str], rounds: int) -> None:
    """Let the sides take turns, and print one table."""
    speeds: dict[str, list[list[float]]] = {side: [] for side in sides}
    processes = {}
    first = {}
    for side in sides:
        processes[side] = begin(where, label, side, end, device)
        first[side] = answer(processes[side])["first"]
    for _ in range(rounds):
        for side, process in processes.items():
            speeds[side].append(ask(process))
    for process in processes.values():
        process.communicate()
    columns = (("pictures/s", 12), ("a CPU-s", 10), ("ours over it", 14), ("a CPU-s", 9), ("first batch, s", 18))
    print(f"\n{f'{label}, {end}, {device}':<28}" + "".join(f"{word:>{width}}" for word, width in columns))
    for side in sides:
        ratios = [[mine[k] / its[k] for mine, its in zip(speeds[sides[0]], speeds[side], strict=True)] for k in (0, 1)]
        wall, used = (median(speed[k] for speed in speeds[side]) for k in (0, 1))
        took = f"{first[side][0]:.1f} ({first[side][1]:.1f})"
        over = f"{median(ratios[0]):>14.2f}{median(ratios[1]):>9.2f}"
        print(f"{side:<28}{wall:>12.0f}{used:>10.0f}{over}{took:>18}", flush=True)


def begin(where: Path, label: str, side: str, end: str, device: str) -> subprocess.Popen[str]:
    """Start one side."""
    return start("bench_loader", "--serve", str(where), label, side, end, device, repr(time.time()))


def main() -> None:
    """Write the pictures and compare; or be one side."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sets", nargs="+", choices=SETS, default=list(SETS))
    parser.add_argument("--ends", nargs="+", choices=ENDS, default=list(ENDS))
    parser.add_argument("--sides", nargs="+", choices=SIDES, default=list(SIDES))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--first", action="store_true", help="compare FFCV's first epoch with its second")
    parser.add_argument("--at-once", action="store_true", help="compare views of one step and of several")
    parser.add_argument("--serve", nargs=6, help=argparse.SUPPRESS)
    parser.add_argument("--first-of", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.first_of:
        print(json.dumps(first_epochs(Path(options.first_of[0]), options.first_of[1])))
        return
    if options.serve:
        folder, label, side, end, device, started = options.serve
        serve(Path(folder), label, side, end, device, float(started))
        return
    import torch

    if options.at_once:
        for device in ("cpu", *(["cuda"] if torch.cuda.is_available() else [])):
            compare_views(options.rounds, device)
        return
    with tempfile.TemporaryDirectory() as folder:
        if options.first:
            options.sets = ["256-jpeg"]
        write(Path(folder), options.sets)
        if options.first:
            compare_first(Path(folder, "256-jpeg"), options.rounds)
            return
        for side in options.sides:  # what a machine keeps of a first run is there for the second
            begin(Path(folder, options.sets[0]), options.sets[0], side, options.ends[0], "cpu").communicate()
        for device in ("cpu", *(["cuda"] if torch.cuda.is_available() else [])):
            for label in options.sets:
                for end in options.ends:
                    compare(Path(folder, label), label, end, device, options.sides, options.rounds)
    print("" if torch.cuda.is_available() else "no GPU here: skipped")


if __name__ == "__main__":
    main()
