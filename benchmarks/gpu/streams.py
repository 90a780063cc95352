"""Pictures: views and decoders alone, and how long nets wait that learn from a stream of JPEG."""

from __future__ import annotations

import importlib.util
import time
from collections.abc import Callable, Generator
from contextlib import closing
from functools import partial
from typing import Any

import numpy as np
from torch import Tensor

from benchmarks.gpu.bench import Bench, free, section_line
from benchmarks.gpu.trials import small_pictures
from sweeps.training.gpu.graphs import open_streams
from sweeps.training.shared_batches import BatchStream

FILLING = 10  # steps until a stream is in full flow


def pictures(bench: Bench) -> None:
    """Measure views of pictures on the device, and the decoders that are there."""
    from crelu_data.datasets import beton_path, crop_of
    from crelu_data.load import READERS, open_pictures
    from sweeps.training.runtime import RuntimeConfig

    for name, size, batch in ((small_pictures(bench.pictures), 32, 128), (jpeg_pictures(bench), bench.jpeg_side, 256)):
        for reader in ("threads",) if size == 32 else READERS:
            with section_line(bench, "pictures", f"{size} px by {reader}"):
                if size > 32 and (absent := why_absent(bench, reader)):
                    bench.say("pictures", f"{size} px by {reader}", result=f"left out: {absent}")
                    continue
                path = beton_path(name, "train", bench.prepared(name))
                resident = RuntimeConfig.resident_bytes if size == 32 else 0
                with open_pictures(path, reader=reader, device=bench.device, resident_bytes=resident) as opened:
                    indices = long_order(opened, (FILLING + bench.stream_steps) * batch)
                    batches = opened.batches(indices, batch)
                    took = step_seconds(bench, lambda n, o=opened, b=batches, s=size: view(o, next(b), crop_of(s)))
                bench.say("pictures", f"{size} px by {reader}", pictures_s=batch / took)


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
            streams = open_streams(bench.device)
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
                    made = partial(views, opened, indices, crop, batch)
                    took = step_seconds(bench, lambda n, b=batches, m=made, turn=turn: turn(partial(b.get, "", n, m)))
                bench.say("stream", f"{row}, {reader}", pictures_s=batch / took, resident_pictures_s=batch / resident,
                          stall_percent=max(0.0, 100 * (1 - resident / took)))  # fmt: skip
        free(bench)


def step_seconds(bench: Bench, take: Callable[[int], object]) -> float:
    """Return the seconds of a step in full flow, given the function that takes one by its number."""
    for number in range(FILLING):
        take(number)
    bench.wait()
    began = time.perf_counter()
    for number in range(FILLING, FILLING + bench.stream_steps):
        take(number)
    bench.wait()
    return (time.perf_counter() - began) / bench.stream_steps


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
        yield view(opened, minibatch, crop), minibatch.labels


def view(opened: Any, minibatch: Any, crop: int) -> Tensor:
    """Return the training views of a batch."""
    from crelu_data.augment import training_view

    facts = opened.sidecar
    shift = 4 if facts.size == crop else 0
    return training_view(
        minibatch.images, minibatch.ids, seed=0, epoch=0, crop=crop, flip=True, shift=shift, lighting=0.0,
        mean=facts.mean, std=facts.std, eigenvalues=facts.eigenvalues, eigenvectors=facts.eigenvectors,
    )  # fmt: skip


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


def jpeg_pictures(bench: Bench) -> str:
    """Return the name of a set of pictures that are stored as JPEG, a fifth as many."""
    return f"synthetic:size={bench.jpeg_side},classes=10,train={max(64, bench.pictures // 5)},test=16"
