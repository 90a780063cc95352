"""Under which recipes does every cell of a table train at full width? Candidates by cells, each some hundred steps.

    python -m benchmarks.bench_recipes --table 1 --candidates he_fan_in:0.01:1,xavier:0.05:1 --steps 300 --batch 16

A candidate is init:lr:clip, optionally init:lr:clip:warm-up epochs; "page" is the recipe of the sweep's page. Tables
are 1, 2 and 4; the cells, their nets, batches and views are those of the pages, and each is trained by the code of
--rehearse. A smaller batch is the harder test: it has the same curvature and a noisier gradient.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path

from crelu_data.availability import ensure_dataset
from crelu_data.cores import cores
from crelu_data.datasets import dataset
from sweeps.experiment.recipe import Recipe
from sweeps.experiment.trial import Cell
from sweeps.training.rehearsal import Rehearsal, rehearse
from sweeps.training.runtime import RuntimeConfig

PAGES = {"1": "sweeps.cifar_width", "2": "sweeps.cifar_vgg", "4": "sweeps.imagenet_placement"}
# Embedded pictures whose classes a net learns within some hundred steps.
PICTURES = {
    "cifar10": "synthetic:size=32,classes=10,train=4000,test=100,clutter=20,contrast=30",
    "imagenet": "synthetic:size=256,classes=10,train=1000,test=100,clutter=20,contrast=30",
}


def cells_of(table: str, rows: list[str]) -> list[Cell]:
    """Return the cells of a table, of its first data set; those of `rows` where some are named."""
    cells: list[Cell] = [cell for cell in import_module(PAGES[table]).CELLS if cell.table == table]
    return [cell for cell in cells if cell.dataset == cells[0].dataset and (not rows or cell.row in rows)]


def changed(recipe: Recipe, candidate: str, batch: int) -> Recipe:
    """Return the recipe of a candidate, with this batch (0: the page's)."""
    recipe = dataclasses.replace(recipe, batch=batch or recipe.batch)
    if candidate == "page":
        return recipe
    init, lr, clip, *warmup = candidate.split(":")
    epochs = float(warmup[0]) if warmup else 0.0
    return dataclasses.replace(recipe, init=init, lr=float(lr), clip_norm=float(clip), warmup_epochs=epochs)


def measured(options: argparse.Namespace) -> Iterator[tuple[str, Rehearsal]]:
    """Train each cell by each candidate, and yield the candidate with what came of it."""
    folder = Path(options.data_dir).expanduser()
    config = RuntimeConfig(str(folder / "ledger"), str(folder), reader="threads", threads=options.threads)
    cells = cells_of(options.table, options.rows)
    pictures = options.dataset or PICTURES[cells[0].dataset]
    ensure_dataset(pictures, folder, print)
    print(f"{pictures}: {dataset(pictures, folder).classes} classes; {options.steps} steps; batch", end=" ")
    print(f"{options.batch or cells[0].recipe.batch}; {options.threads} threads", flush=True)
    for candidate in options.candidates.split(","):
        for cell in cells:
            trained = dataclasses.replace(cell, recipe=changed(cell.recipe, candidate, options.batch))
            yield candidate, rehearse(trained, options.steps, config, pictures)


def main() -> None:
    """Print a row for each candidate and cell as it is done."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--table", choices=PAGES, default="1")
    parser.add_argument("--rows", nargs="*", default=[], help="rows of the table (default: all)")
    parser.add_argument("--candidates", default="page")
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--batch", type=int, default=0, help="pictures a step (default: the page's)")
    parser.add_argument("--dataset", default="", help="pictures to train on (default: embedded ones)")
    parser.add_argument("--data-dir", default="~/.cache/crelu-sweeps/data")
    parser.add_argument("--threads", type=int, default=cores())
    parser.add_argument("--json", default="", help="file to which a line of JSON is added for each row")
    options = parser.parse_args()
    print(f"{'candidate':<22}{'cell':<18}{'loss':>14}{'error':>7}{'norm':>8}{'highest':>9}  verdict")
    for candidate, result in measured(options):
        losses = f"{result.first_loss:.2f} > {result.last_loss:.2f}"
        norms = f"{result.median_norm:>8.2f}{result.largest_norm:>9.3g}"
        print(f"{candidate:<22}{result.label:<18}{losses:>14}{result.error:>7.1f}{norms}  {result.words}", flush=True)
        if options.json:
            with Path(options.json).open("a") as file:
                file.write(json.dumps({"candidate": candidate, "batch": options.batch, **result._asdict()}) + "\n")


if __name__ == "__main__":
    main()
