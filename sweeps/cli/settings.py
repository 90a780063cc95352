"""Settings of a sweep: what the command line, the environment and the machine decide before it starts."""

from __future__ import annotations

import argparse
import dataclasses
import glob
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_type_hints

from sweeps.experiment.plan import Protocol, Sweep, unknown_name
from sweeps.experiment.profiles import scaled
from sweeps.experiment.recipe import Recipe
from sweeps.experiment.search import Search
from sweeps.experiment.trial import Cell
from sweeps.store.ledger import Ledger

if TYPE_CHECKING:
    from sweeps.execution.resources import ResourceRequest
    from sweeps.execution.session import Limits

DEMO = "demo: embedded pictures, small nets, a short recipe; it shows how things work, not what CReLU is worth"
SMOKE = "smoke test: two tiny cells on embedded pictures"
SMALL = "no GPU here: the demo's small nets and short recipes (--profile paper for the paper's)"

StalePolicy = Literal["ask", "keep", "retrain"]


@dataclass(frozen=True)
class Display:
    """What is shown: the table as JSON, only the table, or also what Ray met; and a banner before all."""

    json: bool = False
    quiet: bool = False
    verbose: bool = False
    banner: str = ""


@dataclass(frozen=True)
class Settings:
    """Settings of one run of a sweep. Paths are absolute; `experiment` is empty for the sweep's own title."""

    profile: str
    dataset: str
    address: str
    data_dir: Path
    data_source: str
    output: str
    tracking_uri: str
    experiment: str
    resources: ResourceRequest
    limits: Limits
    reader: str = "ffcv"
    deterministic: bool = True
    stale: StalePolicy = "ask"
    fresh: bool = False
    retry_failed: bool = False
    display: Display = Display()
    price_per_gpu_hour: float = 0.0

    @property
    def ledger(self) -> Ledger:
        """Return the ledger in the output folder."""
        return Ledger(f"{self.output}/ledger")

    @property
    def artifacts(self) -> str:
        """Return where a new experiment keeps its artifacts; empty where a server decides."""
        return f"{self.output}/mlartifacts" if self.tracking_uri.startswith("sqlite") else ""


def settle(cells: Sequence[Cell], options: argparse.Namespace) -> Settings:
    """Return the settings of a command line; ValueError where real data were asked for and are not there."""
    from sweeps.execution.resources import ResourceRequest
    from sweeps.execution.session import Limits

    output = absolute(options.output)
    address = options.address or os.environ.get("RAY_ADDRESS") or "local"
    profile, dataset, banner = choose_profile(cells, options, address)
    return Settings(
        profile=profile,
        dataset=dataset,
        address=address,
        data_dir=_data_dir(options),
        data_source=_data_source(options),
        output=output,
        tracking_uri=_tracking_uri(options, output),
        experiment=options.experiment or os.environ.get("MLFLOW_EXPERIMENT_NAME", ""),
        resources=ResourceRequest(
            gpus=options.gpus_per_trial,
            cpus=options.cpus_per_trial,
            ranks=options.ranks,
            max_concurrent=options.max_concurrent,
            pack=options.pack,
        ),
        limits=Limits(options.max_gpu_hours, 1 if options.fail_fast else options.max_failures),
        reader=options.reader,
        deterministic=options.kernels == "exact",
        stale="retrain" if options.yes and options.stale == "ask" else options.stale,
        fresh=options.fresh,
        retry_failed=options.retry_failed,
        display=Display(options.json, options.quiet, options.verbose, banner),
        price_per_gpu_hour=options.price_per_gpu_hour,
    )


def choose_profile(cells: Sequence[Cell], options: argparse.Namespace, address: str) -> tuple[str, str, str]:
    """Return profile, data set (empty: each cell's own) and banner.

    Never falls back from a configured place to embedded pictures: on a cluster with a bad mount that would burn
    GPUs on toy data.
    """
    if options.smoke_test:
        return "smoke", options.dataset or "", SMOKE
    if options.profile == "demo" and not options.dataset:
        return "demo", "", DEMO
    if options.dataset:
        dataset = absolute_dataset(options.dataset)
        if options.profile is None and address == "local" and not glob.glob("/dev/nvidia[0-9]*"):
            return "demo", dataset, SMALL
        return options.profile or "paper", dataset, ""
    name = cells[0].dataset
    configured = options.data_dir or os.environ.get("CRELU_DATA") or os.environ.get("IMAGENET_DIR")
    prepared = (_data_dir(options) / f"{name}-train.beton").exists()
    if prepared or configured or _data_source(options) or options.profile:
        return options.profile or "paper", "", ""
    if address != "local":
        raise ValueError(
            f"a cluster was given, but no data: say where {name} lies by --data-dir, --data-source or CRELU_DATA, "
            f"or ask for embedded pictures by --profile demo"
        )
    return "demo", "", DEMO


def absolute(place: str) -> str:
    """Return a folder's absolute path; a URI as it is."""
    return place if "://" in place else os.path.abspath(os.path.expanduser(place))


def absolute_dataset(dataset: str) -> str:
    """Return the name of a data set with the path of a folder made absolute."""
    kind, _, rest = dataset.partition(":")
    return f"folder:{Path(rest).expanduser().absolute()}" if kind == "folder" and rest else dataset


def _data_dir(options: argparse.Namespace) -> Path:
    from data.datasets import data_dir

    return data_dir(options.data_dir)


def _data_source(options: argparse.Namespace) -> str:
    source = options.data_source or os.environ.get("CRELU_DATA_SOURCE") or ""
    return absolute(source) if source else ""


def _tracking_uri(options: argparse.Namespace, output: str) -> str:
    """Return the MLflow tracking URI: flag, environment, SQLite in the output folder."""
    uri = options.tracking_uri or os.environ.get("MLFLOW_TRACKING_URI")
    if not uri and "://" in output:
        raise ValueError("an --output that is no local folder needs --tracking-uri or MLFLOW_TRACKING_URI")
    return uri or f"sqlite:///{output}/mlflow.db"


def declare(
    name: str, cells: Sequence[Cell], protocol: Protocol, options: argparse.Namespace, settings: Settings
) -> Sweep:
    """Return the sweep as it is declared, whatever part of it is asked for; ValueError for an unknown field."""
    if settings.profile in ("demo", "smoke"):
        # Every data set would be embedded pictures: one of them shows as much as all.
        cells = [cell for cell in cells if cell.dataset == cells[0].dataset]
    if options.smoke_test:
        cells = (cells[0], cells[-1])
    changed = [change(scaled(cell, settings.profile, settings.dataset), options.set) for cell in cells]
    return Sweep(name, settings.profile, tuple(changed), protocol_of(protocol, settings.profile, options))


def asked_part(sweep: Sweep, options: argparse.Namespace) -> Sweep:
    """Return what --only and --seeds ask to train: some of the cells, fewer or more seeds; the rest stays declared.

    ValueError for a cell that does not exist.
    """
    part = sweep.only(options.only) if options.only else sweep
    seeds = options.seeds or sweep.protocol.seeds
    return dataclasses.replace(part, protocol=dataclasses.replace(part.protocol, seeds=seeds))


def protocol_of(protocol: Protocol, profile: str, options: argparse.Namespace) -> Protocol:
    """Return the protocol as the profile scales it and the flags change it, --seeds left out."""
    small = profile in ("demo", "smoke")
    folds = min(protocol.folds, 3) if small else protocol.folds
    if options.match and not protocol.single:
        raise ValueError("--match is for the Single protocol, which this sweep does not follow")
    return dataclasses.replace(
        protocol,
        match=options.match or protocol.match,
        seeds=1 if small else protocol.seeds,
        # The recipes of small profiles, and a rate that was said, are not chosen anew.
        rates=None if small or any(word.startswith("recipe.lr=") for word in options.set) else protocol.rates,
        folds=protocol.folds and (folds if options.folds is None else options.folds),
        search=search_of(protocol.search, small, options),
    )


def search_of(search: Search | None, small: bool, options: argparse.Namespace) -> Search | None:
    """Return the search as the profile scales it and the flags change it; None: nothing is searched."""
    if search is not None and small:
        search = dataclasses.replace(search, trials=min(search.trials, 3), wave=3)
    if options.search_trials is not None:
        if options.search_trials == 0:
            search = None
        elif search is None:
            search = Search(options.search_trials)
        else:
            search = dataclasses.replace(search, trials=options.search_trials)
    if search is None:
        if options.sampler or options.search_folds:
            raise ValueError("--sampler and --search-folds are for a search; say its size by --search-trials")
        return None
    changes = {"sampler": options.sampler, "folds": options.search_folds}
    return dataclasses.replace(search, **{name: value for name, value in changes.items() if value is not None})


def change(cell: Cell, assignments: Sequence[str]) -> Cell:
    """Return `cell` with FIELD=VALUE applied; ValueError for an unknown field or a value of another kind."""
    fields = {f"recipe.{field.name}": field.name for field in dataclasses.fields(Recipe) if field.name != "stages"}
    for assignment in assignments:
        name, equals, word = assignment.partition("=")
        if not equals:
            raise ValueError(f"--set takes FIELD=VALUE, not {assignment!r}")
        if name == "dataset":
            cell = dataclasses.replace(cell, dataset=absolute_dataset(word))
        elif name == "net.final_activation":
            cell = dataclasses.replace(cell, net=cell.net.final_activation(word))
        elif name in fields:
            value: Any = parsed(get_type_hints(Recipe)[fields[name]], word, name)
            recipe = dataclasses.replace(cell.recipe, **{fields[name]: value})
            cell = dataclasses.replace(cell, recipe=recipe)
        else:
            raise ValueError(unknown_name("field", name, ["dataset", "net.final_activation", *fields], "a cell"))
    return cell


def parsed(kind: type, word: str, name: str) -> object:
    """Return `word` as a value of `kind`; ValueError where it is none."""
    if kind is bool:
        if word.lower() not in ("true", "false", "1", "0"):
            raise ValueError(f"{name} is true or false, not {word!r}")
        return word.lower() in ("true", "1")
    try:
        return kind(word)
    except ValueError:
        raise ValueError(f"{name} is of type {kind.__name__}, not {word!r}") from None
