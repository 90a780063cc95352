"""A sweep with what was decided and asked for, and how one may end."""

from __future__ import annotations

import argparse
import dataclasses
import glob
import json
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_type_hints

from sweeps.experiment.plan import Protocol, Sweep, unknown_name
from sweeps.experiment.profiles import scaled
from sweeps.experiment.recipe import Recipe
from sweeps.experiment.search import Search
from sweeps.experiment.trial import Cell
from sweeps.store.ledger import Ledger

DONE, FAILED, BUDGET, INTERRUPTED = 0, 1, 3, 130


@dataclass(frozen=True)
class Choice:
    """What was decided from flags, environment and what is there: profile, data set, places."""

    profile: str
    dataset: str
    banner: str
    address: str
    data_dir: Path
    output: str
    data_source: str = ""


@dataclass(frozen=True)
class Errand:
    """A sweep with what was decided and asked for."""

    sweep: Sweep
    choice: Choice
    options: argparse.Namespace

    @property
    def ledger(self) -> Ledger:
        """Return the ledger in the output folder."""
        return Ledger(f"{self.choice.output}/ledger")

    @property
    def uri(self) -> str:
        """Return the MLflow tracking URI: flag, environment, SQLite in the output folder."""
        given = self.options.tracking_uri or os.environ.get("MLFLOW_TRACKING_URI")
        if not given and "://" in self.choice.output:
            raise ValueError("an --output that is no local folder needs --tracking-uri or MLFLOW_TRACKING_URI")
        return given or f"sqlite:///{self.choice.output}/mlflow.db"

    @property
    def experiment(self) -> str:
        """Return the MLflow experiment: flag, environment, the sweep's name."""
        given = self.options.experiment or os.environ.get("MLFLOW_EXPERIMENT_NAME")
        return given or self.sweep.title


def stamp() -> str:
    """Return the time as the name of a session."""
    return time.strftime("%Y%m%d-%H%M%S") + f"-{os.getpid()}"


def as_json(value: Any) -> str:
    """Return what --json prints."""
    return json.dumps(value, indent=1)


ABLATION = Protocol()


def decide(name: str, cells: Sequence[Cell], options: argparse.Namespace) -> Any:
    """Return the profile and data set to run with; ValueError where real data were asked for and are not there.

    Never falls back from a configured place to embedded pictures: on a cluster with a bad mount that would burn
    GPUs on toy data.
    """
    from data.datasets import data_dir
    from sweeps.cli.settings import Choice

    address = options.address or os.environ.get("RAY_ADDRESS") or "local"
    output = options.output if "://" in options.output else os.path.abspath(os.path.expanduser(options.output))
    place = data_dir(options.data_dir)
    own = cells[0].dataset
    source = options.data_source or os.environ.get("CRELU_DATA_SOURCE") or ""
    source = source if not source or "://" in source else os.path.abspath(os.path.expanduser(source))
    configured = bool(options.data_dir or os.environ.get("CRELU_DATA") or os.environ.get("IMAGENET_DIR") or source)

    def chosen(profile: str, dataset: str = "", banner: str = "") -> Any:
        return Choice(profile, dataset, banner, address, place, output, source)

    if options.smoke_test:
        return chosen("smoke", options.dataset or "", "smoke test: two tiny cells on embedded pictures")
    if options.profile == "demo" and not options.dataset:
        return chosen("demo", banner=DEMO)
    if options.dataset:
        dataset = absolute(options.dataset)
        small = options.profile is None and address == "local" and not glob.glob("/dev/nvidia[0-9]*")
        banner = (
            "no GPU here: the demo's small nets and short recipes (--profile paper for the paper's)" if small else ""
        )
        return chosen(options.profile or ("demo" if small else "paper"), dataset, banner)
    there = (place / f"{own}-train.beton").exists()
    if there or configured or options.profile:
        return chosen(options.profile or "paper")
    if address != "local":
        raise ValueError(
            f"a cluster was given, but no data: say where {own} lies by --data-dir, --data-source or CRELU_DATA, "
            f"or ask for embedded pictures by --profile demo"
        )
    return chosen("demo", banner=DEMO)


DEMO = "demo: embedded pictures, small nets, a short recipe; it shows how things work, not what CReLU is worth"


def absolute(dataset: str) -> str:
    """Return the name of a data set with the path of a folder made absolute."""
    kind, _, rest = dataset.partition(":")
    return f"folder:{Path(rest).expanduser().absolute()}" if kind == "folder" and rest else dataset


def declare(name: str, cells: Sequence[Cell], protocol: Protocol, options: argparse.Namespace, choice: Any) -> Sweep:
    """Return the Sweep that was asked for; ValueError for a cell or field that does not exist."""
    if choice.profile in ("demo", "smoke"):
        # Every data set would be embedded pictures: one of them shows as much as all.
        cells = [cell for cell in cells if cell.dataset == cells[0].dataset]
    if options.smoke_test:
        cells = (cells[0], cells[-1])
    changed = [change(scaled(cell, choice.profile, choice.dataset), options.set) for cell in cells]
    sweep = Sweep(name, choice.profile, tuple(changed), asked(protocol, choice.profile, options))
    return sweep.only(options.only) if options.only else sweep


def asked(protocol: Protocol, profile: str, options: argparse.Namespace) -> Protocol:
    """Return the protocol as the profile scales it and the flags say."""
    small = profile in ("demo", "smoke")
    search, folds = protocol.search, min(protocol.folds, 3) if small else protocol.folds
    if search is not None and small:
        search = dataclasses.replace(search, trials=min(search.trials, 3), wave=3)
    if options.search_trials is not None and search is not None:
        search = dataclasses.replace(search, trials=options.search_trials) if options.search_trials else None
    if options.search_trials and protocol.search is None:
        search = Search(options.search_trials)
    if search is not None:
        ways = {"sampler": options.sampler, "folds": options.search_folds}
        search = dataclasses.replace(search, **{name: way for name, way in ways.items() if way is not None})
    elif options.sampler or options.search_folds:
        raise ValueError("--sampler and --search-folds are for a search; say its size by --search-trials")
    if options.match and not protocol.single:
        raise ValueError("--match is for the Single protocol, which this sweep does not follow")
    return dataclasses.replace(
        protocol,
        match=options.match or protocol.match,
        seeds=options.seeds or (1 if small else protocol.seeds),
        folds=protocol.folds and (folds if options.folds is None else options.folds),
        search=search,
    )


def change(cell: Cell, settings: Sequence[str]) -> Cell:
    """Return `cell` with FIELD=VALUE settings applied; ValueError for an unknown field or a value of another kind."""
    fields = {f"recipe.{field.name}": field.name for field in dataclasses.fields(Recipe) if field.name != "stages"}
    for setting in settings:
        name, equals, word = setting.partition("=")
        if not equals:
            raise ValueError(f"--set takes FIELD=VALUE, not {setting!r}")
        if name == "dataset":
            cell = dataclasses.replace(cell, dataset=absolute(word))
        elif name == "net.final_activation":
            cell = dataclasses.replace(cell, net=cell.net.final_activation(word))
        elif name in fields:
            value = parsed(get_type_hints(Recipe)[fields[name]], word, name)
            recipe = dataclasses.replace(cell.recipe, **{fields[name]: value})
            cell = dataclasses.replace(cell, recipe=recipe)
        else:
            raise ValueError(unknown_name("field", name, ["dataset", "net.final_activation", *fields], "a cell"))
    return cell


def parsed(kind: type, word: str, name: str) -> Any:
    """Return `word` as a value of `kind`; ValueError where it is none."""
    if kind is bool:
        if word.lower() not in ("true", "false", "1", "0"):
            raise ValueError(f"{name} is true or false, not {word!r}")
        return word.lower() in ("true", "1")
    try:
        return kind(word)
    except ValueError:
        raise ValueError(f"{name} is of type {kind.__name__}, not {word!r}") from None
