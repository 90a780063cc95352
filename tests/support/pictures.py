"""Pictures of noise: folders of a class each, and the files in which CIFAR-10 comes."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
from PIL import Image


def picture_folder(root: Path, split: str, counts: dict[str, int], size: tuple[int, int], suffix: str = "png") -> None:
    """Write noise pictures root/split/class/0.png, ..."""
    rng = np.random.default_rng(0)
    for name, count in counts.items():
        (root / split / name).mkdir(parents=True)
        for number in range(count):
            pixels = rng.integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
            Image.fromarray(pixels).save(root / split / name / f"{number}.{suffix}")


def cifar_tree(root: Path, per_batch: int) -> np.ndarray:
    """Write a small tree in CIFAR-10's layout (Python 2 pickles: protocol 2, bytes for str); return its pixels."""
    tree = root / "cifar-10-batches-py"
    tree.mkdir(parents=True)
    rng = np.random.default_rng(1)
    pixels = rng.integers(0, 256, (6, per_batch, 3072), dtype=np.uint8)
    for number, file in enumerate([*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"]):
        labels = [(i + number) % 10 for i in range(per_batch)]
        kinds = (labels, np.array(labels), [np.int64(label) for label in labels])
        batch = {b"data": pixels[number], b"labels": kinds[number % 3], b"filenames": [b"a.png"] * per_batch}
        (tree / file).write_bytes(pickle.dumps(batch, protocol=2))
    names = [f"class {label}".encode() for label in range(10)]
    (tree / "batches.meta").write_bytes(pickle.dumps({b"label_names": names}, protocol=2))
    return pixels
