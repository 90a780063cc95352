"""What do trials that share a stream of pictures gain? Nine placements in one pack, and one after another.

    python -m benchmarks.bench_sharing                 nine tiny nets on 256-px JPEG: decoding is most of a step
    python -m benchmarks.bench_sharing --size 320      on larger pictures, of which it is more
    python -m benchmarks.bench_sharing --gpu           eight CIFAR nets in a pack against eight processes on one GPU

Both sides train on the same machine in turn, each in a process of its own with the same reader and threads. Reported
are the medians over the rounds; pictures decoded are counted, and weights, curves and score tables compared.
"""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from statistics import median
from typing import Any

from crelu_data.datasets import dataset
from crelu_models.spec import Net
from sweeps.experiment.recipe import ALLCONV, IMAGENET_SGD, VGG
from sweeps.experiment.trial import Cell, Trial
from sweeps.imagenet_placement import CELLS
from sweeps.store.ledger import Ledger

ROOT = Path(__file__).resolve().parents[1]
JPEG = "synthetic:size={2},classes=8,train={0},test={1}"
PIXELS = "synthetic:size=32,classes=10,train={0},test=1000"
STRIDE = 32  # of conv1, in place of 4: a net of little work on a whole picture
WIDTH = 1 / 32


def placements(pictures: int, epochs: int, size: int) -> list[Trial]:
    """Return the nine placements of Table 4 in a tiny net, all by SGD on one stream."""
    recipe = dataclasses.replace(IMAGENET_SGD, name="tiny", batch=256, epochs=epochs, precision="fp32")
    name = JPEG.format(pictures, max(8, pictures // 16), size)
    return [Trial(Cell(cell.label, tiny(cell.net), name, recipe)) for cell in CELLS]


def tiny(net: Net) -> Net:
    """Return the net with a coarse conv1 and few filters."""
    rows = tuple(row._replace(stride=STRIDE) if row[0] == "conv1" else row for row in net.rows)
    return dataclasses.replace(net, rows=rows).width(WIDTH)


def cifar(pictures: int, epochs: int) -> list[Trial]:
    """Return eight CIFAR trainings at the paper's width: the five nets of Table 1, and three of Table 2."""
    from sweeps.cifar_vgg import CELLS as VGGS
    from sweeps.cifar_width import CELLS as WIDTHS

    name = PIXELS.format(pictures)
    chosen = [*WIDTHS[:5], *VGGS[:3]]
    # Rates at which all of them learn from the first epoch on, at full width.
    recipes = {"allconv": dataclasses.replace(ALLCONV, lr=0.01), "vgg": dataclasses.replace(VGG, lr=0.1)}
    return [
        Trial(dataclasses.replace(cell, dataset=name, recipe=dataclasses.replace(
            recipes[cell.recipe.name], epochs=epochs))) for cell in chosen
    ]  # fmt: skip


def train(trials: Sequence[Trial], side: str, place: dict[str, Any]) -> dict[str, float]:
    """Train side by side ("pack") or one after another ("apart"); return seconds and the pictures decoded."""
    from crelu_data.decoders.threads import ThreadReader
    from crelu_data.load import FFCVReader
    from sweeps.execution.pack import perform_pack
    from sweeps.training.run_trial import run_trial
    from sweeps.training.runtime import RuntimeConfig

    decoded = 0
    here = RuntimeConfig(**place)
    for reader in (FFCVReader, ThreadReader):
        read = reader.read

        def counted(self: Any, order: Any, batch: int, read: Any = read) -> Any:
            nonlocal decoded
            for pixels in read(self, order, batch):
                decoded += len(pixels)
                yield pixels

        reader.read = counted  # type: ignore[method-assign]
    # What a worker pays once, whatever it trains: imports, and the decoder's compilation.
    warm = dataclasses.replace(trials[0], seed=99, cell=dataclasses.replace(
        trials[0].cell, recipe=dataclasses.replace(trials[0].cell.recipe, epochs=1)))  # fmt: skip
    run_trial(warm, dataclasses.replace(here, ledger=f"{here.ledger}-warm"), lambda *_: None)
    decoded = 0
    began = time.perf_counter()
    if side == "pack":
        perform_pack(trials, here, lambda news: None)
    else:
        for trial in trials:
            run_trial(trial, here, lambda *_: None)
    return {"seconds": time.perf_counter() - began, "decoded": decoded}


def left(ledger: Ledger, trial: Trial) -> str:
    """Return a hash of a trial's weights, curve and score table, without what time changes."""
    total = hashlib.sha256()
    rows = json.loads(ledger.read(f"trials/{trial.key}/history.json") or b"[]")
    for row in rows:
        total.update(json.dumps({n: v for n, v in row.items() if n != "time_ms" and "sys/" not in n}).encode())
    for name in ("weights.safetensors", "tables/scores.parquet"):
        total.update(ledger.read(f"trials/{trial.key}/{name}") or b"")
    assert rows, f"{trial.cell.label} has no history"
    return total.hexdigest()


def run(side: str, share: str, ledger: Path, options: argparse.Namespace) -> dict[str, float]:
    """Train one side in a process of its own; `share` picks the trials ("" all, or a number)."""
    words = ["--side", side, "--share", share, "--ledger", str(ledger), "--data", options.data]
    words += ["--size", str(options.size)]
    words += ["--pictures", str(options.pictures), "--epochs", str(options.epochs), "--reader", options.reader]
    command = [sys.executable, "-m", "benchmarks.bench_sharing", *words, *(["--gpu"] if options.gpu else [])]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.returncode == 0, done.stderr
    totals: dict[str, float] = json.loads(done.stdout.strip().splitlines()[-1])
    return totals


def serve(options: argparse.Namespace, trials: list[Trial]) -> None:
    """Be the process of one side."""
    import torch

    chosen = [trials[int(options.share)]] if options.share else trials
    if options.gpu and options.share:
        torch.cuda.set_per_process_memory_fraction(1 / len(trials))
    place: dict[str, Any] = {"ledger": options.ledger, "data_dir": options.data, "reader": options.reader}
    place |= {"device": "cuda" if options.gpu else "cpu", "workers": 1, "threads": 1}
    # Pictures of a set this small would stay decoded; ImageNet's do not.
    place |= {} if options.gpu else {"resident_bytes": 0}
    print(json.dumps(train(chosen, options.side, place)))


def compare(options: argparse.Namespace, trials: list[Trial], folder: Path) -> None:
    """Train both sides in turn and print the table."""
    seconds: dict[str, list[float]] = {"pack": [], "apart": []}
    decoded = {"pack": 0, "apart": 0}
    differ = 0
    for turn in range(options.rounds):
        for side in ("apart", "pack") if turn % 2 == 0 else ("pack", "apart"):
            ledger = folder / f"{side}-{turn}"
            if options.gpu and side == "apart":
                with ThreadPoolExecutor(len(trials)) as pool:
                    shares = list(pool.map(lambda n, at=ledger: run("apart", str(n), at, options), range(len(trials))))
                totals = {
                    "seconds": max(share["seconds"] for share in shares),
                    "decoded": sum(share["decoded"] for share in shares),
                }
            else:
                totals = run(side, "", ledger, options)
            seconds[side].append(totals["seconds"])
            decoded[side] += int(totals["decoded"])
            print(f"round {turn + 1} {side}: {totals['seconds']:.1f} s, {totals['decoded']:.0f} decoded", flush=True)
        ledgers = [Ledger(str(folder / f"{side}-{turn}")) for side in ("apart", "pack")]
        differ += sum(left(ledgers[0], trial) != left(ledgers[1], trial) for trial in trials)
    count = len(trials)
    facts = dataset(trials[0].cell.dataset)
    learned = (facts.splits["train"] - facts.holdout) * options.epochs * count
    apart, pack = median(seconds["apart"]), median(seconds["pack"])
    beside = f"{count} processes at once" if options.gpu else f"{count} one by one"
    print(f"\n{'':<24}{'s':>8}{'ratio':>8}{'pictures/s':>12}{'decoded':>10}")
    for name, wall, number in ((beside, apart, decoded["apart"]), (f"a pack of {count}", pack, decoded["pack"])):
        print(f"{name:<24}{wall:>8.1f}{wall / apart:>8.3f}{learned / wall:>12.0f}{number // options.rounds:>10}")
    worst = max(p / a for p, a in zip(seconds["pack"], seconds["apart"], strict=True))
    times = f"decoded 1/{decoded['apart'] / decoded['pack']:g}" if decoded["pack"] else "decoded once a process"
    print(f"{times}; trials with a bit that differs: {differ} of {count * options.rounds}; worst round {worst:.3f}")


def hardware(gpu: bool) -> str:
    """Return what this was measured on."""
    import torch

    name = torch.cuda.get_device_name() if gpu else platform.processor() or platform.machine()
    load = os.getloadavg()[0]
    return f"{name}, {os.cpu_count()} cores, load {load:.1f}, torch {torch.__version__}, {time.strftime('%Y-%m-%d')}"


def main() -> None:
    """Prepare the pictures, and compare; or be one side."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gpu", action="store_true")
    parser.add_argument("--size", type=int, default=256, help="stored side of the pictures")
    parser.add_argument("--pictures", type=int, default=5120)
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--reader", default="ffcv", choices=("ffcv", "threads"))
    parser.add_argument("--data", default="", help="where the pictures are kept (default: a folder that goes)")
    for word in ("--side", "--share", "--ledger"):
        parser.add_argument(word, default="", help=argparse.SUPPRESS)
    options = parser.parse_args()
    taught = (options.pictures, options.epochs)
    trials = cifar(*taught) if options.gpu else placements(*taught, options.size)
    if options.side:
        serve(options, trials)
        return
    import torch

    if options.gpu and not torch.cuda.is_available():
        print("no GPU here: skipped")
        return
    from crelu_data.write import prepare

    with tempfile.TemporaryDirectory() as folder:
        options.data = options.data or f"{folder}/data"
        prepare(trials[0].cell.dataset, Path(options.data))
        compare(options, trials, Path(folder))
    print(hardware(options.gpu))


if __name__ == "__main__":
    main()
