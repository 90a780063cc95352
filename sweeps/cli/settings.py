"""Settings of a sweep: what the command line, the environment and the machine decide before it starts."""

from __future__ import annotations

import argparse
import dataclasses
import os
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_type_hints

from crelu_models.model import Model
from sweeps.cli.command import Command
from sweeps.cli.notify import notify_address
from sweeps.cli.titles import check_length, fields_name, has_run_with_folds, titled
from sweeps.experiment.halving import rungs
from sweeps.experiment.profiles import (
    EMBEDDED,
    changed_fields,
    data_name,
    has_own_recipes,
    on_dataset,
    on_one_dataset,
    scaled,
    with_data_name,
)
from sweeps.experiment.questions.question import Question
from sweeps.experiment.recipe import Recipe
from sweeps.experiment.search import Search
from sweeps.experiment.sweep import Protocol, Sweep, check_apart
from sweeps.experiment.trial import Cell
from sweeps.experiment.wording import count, unknown_name
from sweeps.store.ledger import Ledger, unguarded
from sweeps.store.local_uris import artifacts_in
from sweeps.store.logins import own_store
from sweeps.training.runtime import Kernels, visible_gpus

if TYPE_CHECKING:
    from sweeps.execution.resources import ResourceRequest
    from sweeps.execution.session import Limits

DEMO = "demo: {pictures}, small nets, a short recipe; it shows how things work, not what CReLU is worth"
OWN_DEMO = "demo: {pictures}, narrow nets, few epochs; what it changes of the page:"
SMOKE = "smoke test: two tiny cells at most on {pictures}"
SMALL = "no GPU here: the demo's small nets and short recipes (--profile paper for the paper's)"

ON_GPU = ("nvjpeg", "both")  # readers that decode on a GPU
EPOCHS = "recipe.epochs"
SYNTHETIC = "synthetic"  # begins the names of embedded pictures

StalePolicy = Literal["ask", "keep", "retrain"]


@dataclass(frozen=True)
class Display:
    """Display of a run: the table as JSON, only the table, or also what Ray met; and a banner before all."""

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
    decoder: str = ""
    kernels: Kernels = "exact"
    stale: StalePolicy = "ask"
    fresh: bool = False
    retry_failed: bool = False
    display: Display = Display()
    price_per_gpu_hour: float = 0.0
    register: str = ""  # name of a model of MLflow's
    notify: str = field(default="", repr=False)  # an address that is a secret
    hosted: bool = False  # the process is a user's notebook or script: nothing ends it or begins it anew
    command: Command = field(default_factory=Command)
    guard: Callable[[], None] = field(default=unguarded, compare=False, repr=False)  # before each write of a driver
    # Where a dead Ray holds the driver: with the reason, and the hours that it has used.
    start_over: Callable[[str, float], None] = field(default=print, compare=False, repr=False)
    lose_cluster: Callable[[str], None] = field(default=print, compare=False, repr=False)  # where a cluster has gone

    @property
    def ledger(self) -> Ledger:
        """Return the ledger in the output folder."""
        return Ledger(f"{self.output}/ledger", self.guard)

    @property
    def artifacts(self) -> str:
        """Return where a new experiment keeps its artifacts; empty where a server decides."""
        return artifacts_in(self.output) if self.tracking_uri.startswith("sqlite") else ""


def settle(cells: Sequence[Cell], options: argparse.Namespace, of_paper: bool = True) -> Settings:
    """Return the settings of a command line; ValueError where real data were asked for and are not there.

    Only a page `of_paper` becomes a demo by itself where its data or a GPU are missing.
    """
    from sweeps.execution.resources import ResourceRequest
    from sweeps.execution.session import Limits

    output = absolute(options.output)
    address = options.address or os.environ.get("RAY_ADDRESS") or "local"
    profile, dataset, banner = choose_profile(cells, options, address, of_paper)
    if options.reader in ON_GPU and address == "local" and (options.gpus_per_trial == 0 or not _has_gpu()):
        raise ValueError(
            f"--reader {options.reader}: it decodes on a GPU, and trials here have none; take ffcv or threads"
        )
    sentences = [
        banner,
        unpacked_sentence(cells, options.pack),
        taken_sentence(cells, profile, _asked_dataset(options) or dataset),
    ]
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
        # Pictures that are stored as pixels have no decoder, and one on a GPU is named by the cells of the others.
        reader="threads" if options.reader in ON_GPU else options.reader,
        decoder=options.reader if options.reader in ON_GPU else "",
        kernels=options.kernels,
        stale="retrain" if options.yes and options.stale == "ask" else options.stale,
        fresh=options.fresh,
        retry_failed=options.retry_failed,
        display=Display(options.json, options.quiet, options.verbose, "\n".join(filter(None, sentences))),
        price_per_gpu_hour=options.price_per_gpu_hour,
        register=_registered_model(options),
        notify=notify_address(options),
    )


def unpacked_sentence(cells: Sequence[Cell], pack: str | int | None) -> str:
    """Return which cells a pack of a size that is asked for leaves out; ValueError where these are all of them."""
    alone = [cell.label for cell in cells if cell.task]
    if pack in ("auto", 1, None) or not alone:
        return ""
    if len(alone) == len(cells):
        raise ValueError(f"--pack {pack}: a cell with a training function of its own trains alone; leave --pack out")
    return f"--pack {pack} leaves out {', '.join(alone)}: a cell with a training function of its own trains alone"


def choose_profile(
    cells: Sequence[Cell], options: argparse.Namespace, address: str, of_paper: bool = True
) -> tuple[str, str, str]:
    """Return profile, data set (empty: each cell's own) and banner.

    Never falls back from a configured place to embedded pictures: on a cluster with a bad mount that would burn
    GPUs on toy data.
    """
    pictures = _pictures(cells, options)
    if options.smoke_test:
        return "smoke", absolute_dataset(options.dataset or ""), SMOKE.format(pictures=pictures)
    if options.rehearse:
        # A rehearsal takes the sweep at its real size, with the pictures and the device at hand.
        return options.profile or "paper", absolute_dataset(options.dataset or ""), ""
    if options.profile == "demo" and not options.dataset:
        return "demo", "", (DEMO if of_paper else OWN_DEMO).format(pictures=pictures)
    if not of_paper:
        return options.profile or "paper", absolute_dataset(options.dataset or ""), ""
    if options.dataset:
        dataset = absolute_dataset(options.dataset)
        if options.profile is None and address == "local" and not _has_gpu():
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
    return "demo", "", DEMO.format(pictures=pictures)


def _pictures(cells: Sequence[Cell], options: argparse.Namespace) -> str:
    """Return the words for the pictures of a small profile: embedded ones, unless others are asked for or stay."""
    asked = _asked_dataset(options) or absolute_dataset(options.dataset or "")
    names = [asked or SYNTHETIC] if asked or options.smoke_test else [_of_demo(cell.dataset) for cell in cells]
    words = ("embedded pictures" if name.startswith(SYNTHETIC) else f"the pictures of {name}" for name in names)
    return " and ".join(dict.fromkeys(words))


def _of_demo(dataset: str) -> str:
    """Return the data set on which a demo trains the cells of one: embedded pictures, or the same, such as a folder."""
    return EMBEDDED.get(dataset, dataset)


def _has_gpu() -> bool:
    return visible_gpus() > 0


def absolute(place: str) -> str:
    """Return a folder's absolute path; a URI as it is."""
    return place if "://" in place else os.path.abspath(os.path.expanduser(place))


def absolute_dataset(dataset: str) -> str:
    """Return the name of a data set with the path of a folder made absolute."""
    kind, _, rest = dataset.partition(":")
    if kind != "folder" or not rest:
        return dataset
    from crelu_data.datasets import canonical

    return canonical(dataset)


def _data_dir(options: argparse.Namespace) -> Path:
    from crelu_data.datasets import data_dir

    return data_dir(options.data_dir)


def _data_source(options: argparse.Namespace) -> str:
    source = options.data_source or os.environ.get("CRELU_DATA_SOURCE") or ""
    return absolute(source) if source else ""


def _registered_model(options: argparse.Namespace) -> str:
    """Return the name of the model that --register gives, empty for none; ValueError for one that MLflow refuses."""
    name: str | None = options.register
    if name is not None and (name.strip()[:1] in ("", ".") or set(name) & set("/:'")):
        raise ValueError(f"--register {name!r}: a model's name is not empty, begins with no dot and has no / : or '")
    return name or ""


def _tracking_uri(options: argparse.Namespace, output: str) -> str:
    """Return the MLflow tracking URI: flag, environment, SQLite in the output folder."""
    uri = own_store(options.tracking_uri, output)
    if not uri:
        raise ValueError("an --output that is no local folder needs --tracking-uri or MLFLOW_TRACKING_URI")
    return uri


def declare(
    name: str,
    cells: Sequence[Cell],
    protocol: Protocol,
    options: argparse.Namespace,
    settings: Settings,
    of_paper: bool = True,
    questions: Sequence[Question] = (),
) -> Sweep:
    """Return the declared sweep, cells that are not asked for included; ValueError for an unknown field.

    Questions stay where both of their cells do. In their text the data set's name becomes that of the one trained on.
    """
    profile = settings.profile
    dataset = _asked_dataset(options) or settings.dataset
    own_recipes = not of_paper and has_own_recipes(cells)
    page = tuple(scaled(cell, profile, own_recipes=own_recipes) for cell in taken(cells, profile, ""))
    cells = taken(cells, profile, dataset)
    if options.smoke_test:
        cells, page = ends(cells), ends(page)
    on_data = [scaled(cell, profile, dataset, own_recipes) for cell in cells]
    changed = _decoded([change(cell, options.set) for cell in on_data], settings)
    decoder = settings.decoder if any(cell.decoder for cell in changed) else ""
    other_data = [cell.key for cell in on_data] != [cell.key for cell in page]
    parts = [data_name(dataset) if other_data else "", fields_name(on_data, changed, options.set), decoder]
    labels = {cell.label: called.label for cell, called in zip(cells, changed, strict=True)}
    names = {cell.label: (cell.dataset, called.dataset) for cell, called in zip(cells, changed, strict=True)}
    asked = tuple(
        question.relabelled(with_data_name(question.text, *names[question.cell]), labels)
        for question in questions
        if labels.keys() >= set(question.labels)
    )
    followed = protocol_of(protocol, profile, options)
    sweep = Sweep(name, profile, changed, followed, questions=asked)
    check_apart(sweep)
    other = dataset if other_data else ""
    named = titled(sweep, parts, other, settings.ledger)
    is_usual = followed.folds in (0, usual_folds(protocol, profile))
    if not (is_usual or has_run_with_folds(named, settings.ledger)):
        named = titled(sweep, [*parts, f"folds={followed.folds}"], other, settings.ledger)
    check_length(named)
    return named


def notes(
    cells: Sequence[Cell], protocol: Protocol, options: argparse.Namespace, settings: Settings, of_paper: bool
) -> list[str]:
    """Return what is done otherwise than a page says and no flag asks for, a line for each thing.

    Of a page of the paper the banner says it.
    """
    profile = settings.profile
    dataset = _asked_dataset(options) or settings.dataset
    followed = protocol_of(protocol, profile, options)
    chosen = taken(cells, profile, dataset)
    own_recipes = has_own_recipes(cells) and not of_paper
    small = [scaled(cell, profile, dataset, own_recipes) for cell in chosen]
    lines: list[str] = []
    if not of_paper and profile != "paper":
        lines += changed_fields(chosen, small, profile, followed.search)
        lines += changed_protocol(protocol, followed, options)
    lines += unhalved([change(cell, options.set).recipe for cell in small], followed.search)
    inits = {cell.recipe.init for cell in cells if isinstance(cell.net, Model)} - {"own"}
    if inits:
        lines.append(f"recipe.init {', '.join(sorted(inits))} is for nets: a model has the weights of its own factory")
    return lines


def changed_protocol(before: Protocol, after: Protocol, options: argparse.Namespace) -> list[str]:
    """Return what a small profile has changed in a protocol, the flags' own changes left out."""
    lines = [f"seeds: {before.seeds} -> {after.seeds}"] if before.seeds != after.seeds and not options.seeds else []
    if before.folds != after.folds and options.folds is None:
        lines.append(f"folds: {before.folds} -> {after.folds}")
    until = options.until_decided or before.until
    if after.until != until:
        lines.append(f"until decided, at most: {until} -> {after.until}")
    if before.rates != after.rates:
        lines.append("learning rate: not chosen, each recipe's own")
    if before.search is not None and after.search is not None:
        for name in ("trials", "wave"):
            old, new = getattr(before.search, name), getattr(after.search, name)
            if old != new and not (name == "trials" and options.search_trials is not None):
                lines.append(f"search {name}: {old} -> {new}")
        if len(after.search.axes) < len(before.search.axes):
            lines.append(f"search: {EPOCHS} is not chosen, it is each recipe's own")
    return lines


def unhalved(recipes: Sequence[Recipe], search: Search | None) -> list[str]:
    """Return a line for each recipe that is too short for a rung, so that its search is without halving."""
    if search is None or not search.halving:
        return []
    lines = [
        f"search halving: no rung from epoch {max(search.rung, 1)} on lies below the {count(recipe.epochs, 'epoch')} "
        f"of recipe {recipe.name}, so its search trials are trained whole"
        for recipe in recipes
        if len(rungs(recipe.epochs, search.halving, search.rung)) == 1
    ]
    return list(dict.fromkeys(lines))


def _decoded(cells: Sequence[Cell], settings: Settings) -> tuple[Cell, ...]:
    """Return cells with the settings' decoder of their own, where their pictures are stored as JPEG."""
    if not settings.decoder:
        return tuple(cells)
    from crelu_data.datasets import RAW_UP_TO

    names = dict.fromkeys(cell.dataset for cell in cells)
    large = {name for name in names if (_stored_side(name, settings) or RAW_UP_TO + 1) > RAW_UP_TO}
    return tuple(
        dataclasses.replace(cell, decoder=settings.decoder) if cell.dataset in large else cell for cell in cells
    )


def _stored_side(name: str, settings: Settings) -> int:
    """Return the side in pixels at which a data set is stored, or will be once it is here; 0 where nothing says it."""
    from crelu_data.availability import expected_pictures
    from crelu_data.datasets import dataset

    with suppress(ValueError, OSError):
        return dataset(name, settings.data_dir).size
    with suppress(ValueError, OSError):
        if settings.data_source:
            from crelu_data.transfer import side_in

            return side_in(settings.data_source, name, settings.data_dir)
        return expected_pictures(name, settings.data_dir)[0].size
    return 0


def asked_part(sweep: Sweep, options: argparse.Namespace) -> Sweep:
    """Return what --only and --seeds ask to train: some of the cells, fewer or more seeds; the rest stays declared.

    ValueError for a cell that does not exist.
    """
    part = sweep.only(options.only) if options.only else sweep
    if options.seeds and sweep.protocol.until:
        raise ValueError("--until-decided adds the seeds itself: leave out --seeds, or --until-decided")
    seeds = options.seeds or sweep.protocol.seeds
    return dataclasses.replace(part, protocol=dataclasses.replace(part.protocol, seeds=seeds))


def taken(cells: Sequence[Cell], profile: str, dataset: str) -> tuple[Cell, ...]:
    """Return the cells of a page that a profile trains on `dataset` (empty: each on its own, or embedded pictures)."""
    if dataset:
        return on_one_dataset(cells, dataset)
    if profile == "smoke":
        return on_one_dataset(cells, cells[0].dataset)
    # Of the data sets in whose place a demo has embedded pictures one shows as much as all. A folder stays itself.
    replaced = [cell.dataset for cell in cells if profile == "demo" and _of_demo(cell.dataset).startswith(SYNTHETIC)]
    return tuple(cell for cell in cells if cell.dataset in replaced[:1] or cell.dataset not in replaced)


def ends(cells: Sequence[Cell]) -> tuple[Cell, ...]:
    """Return the first and the last of some cells, which may be the same one."""
    return (cells[0], cells[-1]) if len(cells) > 1 else tuple(cells)


def taken_sentence(cells: Sequence[Cell], profile: str, dataset: str) -> str:
    """Return the sentence that says which cells of a page are trained; empty where all are."""
    chosen = taken(cells, profile, dataset)
    if len(chosen) == len(cells):
        return ""
    names = list(dict.fromkeys(cell.dataset for cell in chosen))
    pictures = data_name(dataset) if dataset else "embedded"
    besides = " besides the pictures that stay" if len(names) > 1 else ""
    return (
        f"one data set ({pictures}){besides}: the page's cells of {' and '.join(names)} are taken, "
        f"{len(chosen)} of {len(cells)}"
    )


def _asked_dataset(options: argparse.Namespace) -> str:
    """Return the data set that --set dataset=NAME asks for, empty for none."""
    names = [word.partition("=")[2] for word in options.set if word.startswith("dataset=")]
    return absolute_dataset(names[-1]) if names else ""


def usual_folds(protocol: Protocol, profile: str) -> int:
    """Return the folds of a page's protocol as the profile scales it."""
    return min(protocol.folds, 3) if profile in ("demo", "smoke") else protocol.folds


def protocol_of(protocol: Protocol, profile: str, options: argparse.Namespace) -> Protocol:
    """Return the protocol as the profile scales it and the flags change it, --seeds left out."""
    small = profile in ("demo", "smoke")
    folds = usual_folds(protocol, profile)
    scales_folds = folds < protocol.folds and options.folds is None
    until = options.until_decided or protocol.until
    if options.match and not protocol.single:
        raise ValueError("--match is for the Single protocol, which this sweep does not follow")
    if options.folds and not protocol.folds:
        raise ValueError("--folds is for a sweep with folds, and this one has none")
    return dataclasses.replace(
        protocol,
        match=options.match or protocol.match,
        seeds=1 if small else protocol.seeds,
        # The recipes of small profiles, and a rate that was said, are not chosen anew.
        rates=None if small or any(word.startswith("recipe.lr=") for word in options.set) else protocol.rates,
        folds=folds if options.folds is None else options.folds,
        search=search_of(protocol.search, profile, options),
        until=min(until, folds) if scales_folds else until,
    )


def search_of(search: Search | None, profile: str, options: argparse.Namespace) -> Search | None:
    """Return the search as the profile scales it and the flags change it; None: nothing is searched."""
    if options.search_trials == 0:
        search = None
    if search is not None and profile != "paper":
        search = _with_own_epochs(search, profile)
    if search is not None and profile in ("demo", "smoke"):
        search = dataclasses.replace(search, trials=min(search.trials, 3), wave=3)
    if options.search_trials:
        if search is None:
            search = Search(options.search_trials)
        else:
            search = dataclasses.replace(search, trials=options.search_trials)
    if search is None:
        if options.sampler or options.search_folds or options.halving:
            raise ValueError(
                "--sampler, --search-folds and --halving are for a search; say its size by --search-trials"
            )
        return None
    changes = {"sampler": options.sampler, "folds": options.search_folds, "halving": options.halving}
    if options.halving == 0:
        search = dataclasses.replace(search, rung=0)
    return dataclasses.replace(search, **{name: value for name, value in changes.items() if value is not None})


def _with_own_epochs(search: Search, profile: str) -> Search:
    """Return a search that leaves epochs to the recipes, which a profile shortens; ValueError where nothing is left."""
    rest = tuple(axis for axis in search.axes if axis.name != EPOCHS)
    if len(rest) == len(search.axes):
        return search
    if not rest:
        raise ValueError(
            f"the search chooses {EPOCHS} alone, and the profile {profile} has epochs of its own: leave the search "
            f"out by --search-trials 0, or take --profile paper"
        )
    return dataclasses.replace(search, space=rest)


def change(cell: Cell, assignments: Sequence[str]) -> Cell:
    """Return `cell` with FIELD=VALUE applied; ValueError for an unknown field or a value of another kind."""
    fields = {f"recipe.{field.name}": field.name for field in dataclasses.fields(Recipe) if field.name != "stages"}
    of_recipe: dict[str, Any] = {}  # set together: some values go only with others
    for assignment in assignments:
        name, equals, word = assignment.partition("=")
        if not equals:
            raise ValueError(f"--set takes FIELD=VALUE, not {assignment!r}")
        if name == "dataset":
            cell = on_dataset(cell, absolute_dataset(word))
        elif name == "net.final_activation":
            if isinstance(cell.net, Model):
                raise ValueError(f"{name} is for nets of this package, not for {cell.label}, whose net is a model")
            cell = dataclasses.replace(cell, net=cell.net.final_activation(word))
        elif name in fields:
            of_recipe[fields[name]] = parsed(get_type_hints(Recipe)[fields[name]], word, name)
        else:
            raise ValueError(unknown_name("field", name, ["dataset", "net.final_activation", *fields], "a cell"))
    return dataclasses.replace(cell, recipe=dataclasses.replace(cell.recipe, **of_recipe)) if of_recipe else cell


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
