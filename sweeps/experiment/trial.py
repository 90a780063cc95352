"""Cells, which are compared, and trials, which are trained: light values with keys that say what they are."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
from collections.abc import Collection
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

from crelu_models.model import Model
from crelu_models.spec import Net, seed_from
from sweeps.experiment.metrics import PERCENT, Metric
from sweeps.experiment.recipe import Recipe, Stage
from sweeps.experiment.space import Choices, chosen_net, chosen_recipe, unchosen, words_of
from sweeps.store.ledger import Json

# Part of every key. It is raised when a trial comes to mean something else, so that old results do not pass for new.
SCHEMA = 1
# The second phase of Single has the seed of the first plus this, so that it starts from other weights.
SECOND_SEED = 1000
PROBE = 10_000  # pictures at most on which the phases of Single measure their training loss

# Dropout rates by the layer that they follow.
Rates = tuple[tuple[str, float], ...]
Level = str | int | float  # of a factor of a grid


class Phase(NamedTuple):
    """Purpose of a training: what it trains on, which epoch's weights it selects, whether it opens the test set."""

    split: str  # what it trains on: all but the "holdout", all but one "fold", or the "full" set
    select: str  # "last" epoch, or "best" on the held-out pictures
    test: bool
    probe: bool = False  # also measure the training loss in evaluation mode, each epoch


PHASES = {
    "ablation": Phase("holdout", "last", True),  # a row of Table 4
    "holdout": Phase("holdout", "best", False, True),  # a search trial; the first phase of Single
    "inner": Phase("fold", "best", False),  # a search trial on one of several folds
    "match": Phase("full", "last", True, True),  # the second phase of Single: until the first one's training loss
    "fold": Phase("fold", "best", True),  # one of the ten networks of Average and Vote
}
MATCHES = ("train_loss", "valid_loss", "epoch", "none")
TASK = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*")


@dataclass(frozen=True)
class Cell:
    """Row of a result table: net, data set and recipe; `table` and `row` say where the paper prints it.

    `versus` is the label of the cell with which this one is compared, besides the first of its table.
    `paper_dataset` is the paper's data set for which the cell stands where it trains on another one. `decoder` is
    "nvjpeg" or "both" where a GPU decodes the pictures, or some, whose pixels then differ in the last bits; else empty.
    `factors` are the levels that a grid made it of, by the factors' names. `task` names the function that trains it as
    "module:function", empty for our own loop, and `metric` is the number it is compared by.
    """

    label: str
    net: Net | Model
    dataset: str
    recipe: Recipe
    table: str = ""
    row: str = ""
    versus: str = ""
    paper_dataset: str = ""
    decoder: str = ""
    factors: tuple[tuple[str, Level], ...] = ()
    task: str = ""
    metric: Metric = PERCENT

    def __post_init__(self) -> None:
        """Raise ValueError for what is no net or recipe, and for what does not go together: a task and a table, say."""
        if not isinstance(self.net, Net | Model):
            raise ValueError(f"the net of {self.label!r} is a net such as S2, or a Model, not {self.net!r}")
        if not isinstance(self.recipe, Recipe):
            raise ValueError(f"the recipe of {self.label!r} is a Recipe such as ALLCONV, not {self.recipe!r}")
        if self.task and not TASK.fullmatch(self.task):
            raise ValueError(f"task of {self.label!r} is 'module:function', not {self.task!r}")
        if self.task and self.table:
            raise ValueError(f"{self.label!r} has a task, so it is no row of the paper's Table {self.table}: drop one")
        if self.metric.is_own and not self.task:
            raise ValueError(
                f"{self.label!r} is to be compared by {self.metric.name}, which a training function returns: "
                f"name yours as in Cell(..., task='module:function')"
            )
        if self.recipe.init == "own" and not isinstance(self.net, Model):
            raise ValueError(f"{self.label}: recipe.init own is for models, and its net is one of this package")

    @cached_property
    def key(self) -> str:
        """Return the hash of net, data set, recipe, a decoder and a task of its own; names do not change it."""
        return _hash([*self.texts, *filter(None, (self.decoder, self.task_content))])

    @property
    def task_content(self) -> Json:
        """Return the training function and the metric as JSON, empty for our own loop."""
        return {"task": self.task, "metric": dataclasses.asdict(self.metric)} if self.task else {}

    @cached_property
    def texts(self) -> tuple[str, str, str]:
        """Return net, data set and recipe as canonical JSON: once per cell, for all of its trials."""
        return _canonical(self.net.to_json()), self.dataset, _recipe_text(self.recipe)


@dataclass(frozen=True)
class Trial:
    """One training: a cell, dropout rates by layer, a seed, and a phase with its fold or its reference trial.

    `pruning_thresholds` (by epoch, in the metric's unit) end a search trial whose best hold-out value so far is worse.
    `rate` is the learning rate that a study chose or tries, 0 for the recipe's own. `choices` are what a search chose
    besides dropout, by dotted names such as recipe.lr: they change recipe and net, and by these the key.
    """

    cell: Cell
    phase: str = "ablation"
    seed: int = 0
    dropout: Rates = ()
    fold: int = 0
    folds: int = 0
    match: str = ""
    reference: str = ""
    pruning_thresholds: tuple[float, ...] = ()
    rate: float = 0.0
    choices: Choices = ()

    def __post_init__(self) -> None:
        """Raise ValueError for a trial that cannot be."""
        if self.phase not in PHASES:
            raise ValueError(f"phase is one of {', '.join(PHASES)}, not {self.phase!r}")
        needs_fold = PHASES[self.phase].split == "fold"
        if needs_fold != (self.folds > 1) or not 0 <= self.fold < max(self.folds, 1):
            raise ValueError(f"phases fold and inner have a fold of 0..folds-1, not {self.fold} of {self.folds}")
        if (self.phase == "match") != (self.match in MATCHES and bool(self.reference)):
            raise ValueError(f"phase match needs a reference trial and one of {', '.join(MATCHES)}")

    @cached_property
    def recipe(self) -> Recipe:
        """Return the cell's recipe with this trial's learning rate and choices."""
        recipe = dataclasses.replace(self.cell.recipe, lr=self.rate) if self.rate else self.cell.recipe
        return chosen_recipe(recipe, self.choices)

    @cached_property
    def net(self) -> Net | Model:
        """Return the cell's net with this trial's choices and dropout rates."""
        net = chosen_net(self.cell.net, self.choices)
        for position, rate in self.dropout:
            net = net.dropout(round(rate, 6), position)
        return net

    @cached_property
    def key(self) -> str:
        """Return the hash of what changes the science, the same on every machine."""
        return _hash(self.science())

    def science(self) -> Json:
        """Return the content of the key, with net and recipe as canonical JSON."""
        net, dataset, recipe = self.cell.texts
        content: Json = {
            "schema": SCHEMA,
            "net": _canonical(self.net.to_json()) if self.dropout or self.choices else net,
            "dataset": dataset,
            "recipe": _recipe_text(self.recipe) if self.rate or self.choices else recipe,
            "phase": self.phase,
            "seed": self.seed,
        }
        if self.folds:
            content |= {"fold": self.fold, "folds": self.folds}
        if self.phase == "match":
            content |= {"match": self.match, "reference": self.reference}
        if self.pruning_thresholds:
            content["bars"] = list(self.pruning_thresholds)
        if self.cell.decoder:
            content["decoder"] = self.cell.decoder
        return content | self.cell.task_content

    @property
    def label(self) -> str:
        """Return the trial's name within its cell, for people: s0 pool1=0.25, or f3 for fold 3 with its own seed."""
        seed = f"f{self.fold}" if self.folds else f"s{self.seed}"
        if self.folds and self.seed != self.fold:
            seed = f"s{self.seed} {seed}"
        lr = f" lr={self.rate:g}" if self.rate else ""
        rates = "".join(f" {position}={rate:g}" for position, rate in self.dropout)
        choices = "".join(f" {word}" for word in words_of(self.choices))
        return f"{seed}{'' if self.phase in ('ablation', 'fold') else ' ' + self.phase}{lr}{rates}{choices}"

    @property
    def chosen(self) -> Choices:
        """Return what a search chose for it: the dropout rates by layer, and the choices by dotted name."""
        return (*self.dropout, *self.choices)

    def restarted(self, times: int) -> int:
        """Return the seed of weights and dropout after this many restarts of a diverged or dead training."""
        return self.seed if times == 0 else seed_from(self.seed, "restart", times)

    def to_json(self) -> Json:
        """Return the trial as JSON, with its names for people."""
        return {
            "schema": SCHEMA,
            "key": self.key,
            "cell": cell_to_json(self.cell),
            "phase": self.phase,
            "seed": self.seed,
            "fold": self.fold,
            "folds": self.folds,
            "match": self.match,
            "reference": self.reference,
            "dropout": [list(rate) for rate in self.dropout],
            "bars": list(self.pruning_thresholds),
            "rate": self.rate,
        } | ({"choices": [list(choice) for choice in self.choices]} if self.choices else {})


def shared_key(cell: Cell, names: Collection[str], width: float = 1.0) -> str:
    """Return the hash of a cell at a width of its net, without the settings that these dotted names choose.

    Two cells with equal hashes have equal trials whenever a search chooses the same settings for both.
    """
    net = cell.net if width == 1.0 else chosen_net(cell.net, (("net.width", width),))
    return _hash([*unchosen(net, cell.recipe, names), cell.dataset, cell.decoder, cell.task_content])


def model_key(model: Model, classes: int) -> str:
    """Return the hash of a model for so many classes, which together decide its number of parameters."""
    return _hash([model.to_json(), classes])


def cell_to_json(cell: Cell) -> Json:
    """Return the cell as JSON, with its names for people."""
    decoder = {"decoder": cell.decoder} if cell.decoder else {}
    return (
        decoder
        | {
            "label": cell.label,
            "net_name": cell.net.name,
            "table": cell.table,
            "row": cell.row,
            "versus": cell.versus,
            "paper_dataset": cell.paper_dataset,
            "factors": [list(factor) for factor in cell.factors],
            "net": cell.net.to_json(),
            "dataset": cell.dataset,
            "recipe": cell.recipe.to_json(),
        }
        | cell.task_content
    )


def cell_from_json(value: Json | None) -> Cell:
    """Return the cell that `cell_to_json` wrote; ValueError for any other value."""
    value = value or {}
    try:
        recipe = dict(value["recipe"])
        recipe["stages"] = tuple(Stage(*stage) for stage in recipe["stages"])
        net = net_from_json(value["net"], str(value["net_name"]))
        return Cell(
            str(value["label"]),
            net,
            str(value["dataset"]),
            Recipe(**recipe),
            str(value["table"]),
            str(value["row"]),
            str(value.get("versus", "")),  # older ledgers lack these
            str(value.get("paper_dataset", "")),
            str(value.get("decoder", "")),
            tuple((str(name), _level(level)) for name, level in value.get("factors", ())),
            str(value.get("task", "")),
            Metric(**value.get("metric", {})),
        )
    except (KeyError, TypeError, IndexError) as error:
        raise ValueError(f"not a cell: {error!r}") from None


def net_from_json(value: Any, name: str) -> Net | Model:
    """Return the net or the model that `to_json` wrote, under this name; ValueError for any other value."""
    if isinstance(value, dict) and "kind" in value:
        return Model.from_json(value, name)
    return Net.from_json(value, name)


def _level(value: object) -> Level:
    """Return a level of a factor; TypeError for a value that is none."""
    if not isinstance(value, str | int | float):
        raise TypeError(f"a level {value!r}")
    return value


def trial_from_json(value: Json | None) -> Trial:
    """Return the trial that `to_json` wrote; ValueError for any other value, or a key that is not of its content."""
    value = value or {}
    try:
        if value["schema"] != SCHEMA:
            raise ValueError(f"this trial has schema {value['schema']!r}; this version reads {SCHEMA}")
        trial = Trial(
            cell_from_json(value["cell"]),
            phase=str(value["phase"]),
            seed=int(value["seed"]),
            dropout=tuple((str(position), float(rate)) for position, rate in value["dropout"]),
            fold=int(value["fold"]),
            folds=int(value["folds"]),
            match=str(value["match"]),
            reference=str(value["reference"]),
            pruning_thresholds=tuple(float(threshold) for threshold in value["bars"]),
            rate=float(value.get("rate", 0.0)),  # older ledgers lack it
            choices=tuple((str(name), chosen) for name, chosen in value.get("choices", ())),
        )
    except (KeyError, TypeError, IndexError) as error:
        raise ValueError(f"not a trial: {error!r}") from None
    if trial.key != value.get("key"):
        raise ValueError(f"not a trial: its key is {value.get('key')!r}, its content gives {trial.key!r}")
    return trial


def probed(trial: Trial, learned: int, holdout: int) -> int:
    """Return on how many pictures a phase of Single measures the training loss that the second phase is to reach.

    The first takes 10,000 of CIFAR's 40,000, or as large a part of a smaller set; the second the hold-out.
    """
    phase = PHASES[trial.phase]
    if not phase.probe:
        return 0
    return min(PROBE, -(-learned // 4) if phase.split == "holdout" else holdout)


def _recipe_text(recipe: Recipe) -> str:
    """Return a recipe as canonical JSON, without its name."""
    content = recipe.to_json()
    del content["name"]
    return _canonical(content)


def _rounded(value: Any) -> Any:
    """Return `value` with floats of ten digits, so that 0.35000000000000003 and 0.35 are one trial."""
    if isinstance(value, float):
        return float(f"{value:.10g}")
    if isinstance(value, dict):
        return {name: _rounded(item) for name, item in value.items()}
    return [_rounded(item) for item in value] if isinstance(value, list | tuple) else value


def _canonical(value: Any) -> str:
    """Return `value` as JSON in its one form: keys sorted, floats rounded, no spaces, no nan."""
    return json.dumps(_rounded(value), sort_keys=True, separators=(",", ":"), allow_nan=False)


def _hash(value: Any) -> str:
    """Return the first 20 hex digits of the SHA-256 of `value` as canonical JSON."""
    return hashlib.sha256(_canonical(value).encode()).hexdigest()[:20]
