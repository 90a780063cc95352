"""Sweeps as a page declares them: cells, and the protocol by which each becomes trials."""

from __future__ import annotations

import dataclasses
import fnmatch
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property

from crelu_models.model import Model
from sweeps.experiment.metrics import Metric
from sweeps.experiment.profiles import names_paper
from sweeps.experiment.questions.question import Question, asked_cells, check_questions, questions_from_json
from sweeps.experiment.questions.waves import Design
from sweeps.experiment.rates import RateStudy
from sweeps.experiment.search import Search, chosen_names, search_from_json
from sweeps.experiment.space import MODEL, check_axis, check_countable, choosable, widths
from sweeps.experiment.trial import Cell, cell_from_json, shared_key
from sweeps.experiment.wording import count, unknown_name
from sweeps.store.foreign import SWEEP_TITLE
from sweeps.store.ledger import Json

AS_WRITTEN = "as written"


@dataclass(frozen=True)
class Protocol:
    """How a cell becomes trials: its search, then trainings with the chosen dropout (science.md's protocols).

    `ablation`: one training per seed, on all but the hold-out (Table 4). `single`: Goodfellow's two phases per seed.
    `folds`: that many networks, each validated on one fold (Average, Vote). `rates`: the learning rate is chosen first.
    `until`: seeds, or folds, are added until the page's questions are decided, to this number at most; 0: as declared.
    """

    seeds: int = 1
    ablation: bool = True
    single: bool = False
    match: str = "train_loss"
    folds: int = 0
    search: Search | None = None
    rates: RateStudy | None = None
    until: int = 0

    def __post_init__(self) -> None:
        """Raise ValueError for counts that cannot be, for questions that none decides, and for a rate chosen twice."""
        if self.seeds < 1:
            raise ValueError(f"a protocol has at least one seed, not {self.seeds}")
        if self.folds < 0 or self.folds == 1:
            raise ValueError(f"a protocol has no folds, 0, or at least two, not {self.folds}")
        self.design.check()
        if self.rates is not None and self.search is not None and "recipe.lr" in {a.name for a in self.search.axes}:
            raise ValueError("the learning rate is chosen by rates and by the search: leave out rates, or recipe.lr")

    @property
    def design(self) -> Design:
        """Return what decides the page's questions."""
        return Design(self.seeds, self.single, self.ablation, self.folds, self.until)

    @property
    def trains_cells(self) -> bool:
        """Return whether cells are trained besides their search."""
        return self.ablation or self.single or self.folds > 0


@dataclass(frozen=True)
class Sweep:
    """Declared list of cells, with the protocol that turns each into trials.

    `variant` names what the sweep has in place of the page's own: another data set, fields of --set, other folds.
    `declared` are all cells of the declaration in its order, for a part that was chosen by `only`, else empty.
    `questions` are what a sweep until decided decides, and `question` is what its page asks, in a sentence.
    """

    name: str
    profile: str
    cells: tuple[Cell, ...]
    protocol: Protocol = Protocol()
    variant: str = ""
    declared: tuple[Cell, ...] = ()
    questions: tuple[Question, ...] = ()
    question: str = ""

    def __post_init__(self) -> None:
        """Raise ValueError where two cells have the same label or content, or one lacks what is searched.

        Also where cells do not go together.
        """
        if self.protocol.search is not None:
            for cell in self.cells:
                check_space(self.protocol.search, cell)
        for kind, values in (
            ("label", [cell.label for cell in self.cells]),
            ("content", [cell.key for cell in self.cells]),
        ):
            repeated = [value for value, count in Counter(values).items() if count > 1]
            if repeated:
                labels = [cell.label for cell in self.cells if repeated[0] in (cell.label, cell.key)]
                raise ValueError(
                    f"{count(len(labels), 'cell')} of {self.name} have the same {kind}: {', '.join(labels)}"
                )
        check_questions(self.name, self.questions, self.everyone)
        if self.protocol.until and not self.questions:
            raise ValueError(f"{self.name} has no question to decide: its page declares none of these cells")
        for cell in self.cells:
            if cell.metric != self.metric:
                raise ValueError(
                    f"{self.cells[0].label!r} is compared by {self.metric.name} and {cell.label!r} by "
                    f"{cell.metric.name}: the cells of a page have one metric"
                )
            if cell.task and self.protocol.single:
                raise ValueError(
                    f"{cell.label!r} has a task, and Protocol(single=True) trains to a loss that only our own loop "
                    f"measures: ask for seeds or folds"
                )

    @property
    def title(self) -> str:
        """Return the name of the sweep's plan, experiment and report: its page's, then profile and variant, if any."""
        profile = "" if self.profile == "paper" else self.profile
        return "-".join(filter(None, (self.name, profile, self.variant)))

    @property
    def scale(self) -> str:
        """Return the profile as it is shown: a page that names no paper is trained as it is written."""
        return AS_WRITTEN if self.profile == "paper" and not names_paper(self.everyone) else self.profile

    @property
    def metric(self) -> Metric:
        """Return the number by which the cells are compared."""
        return self.cells[0].metric if self.cells else Metric()

    @property
    def everyone(self) -> tuple[Cell, ...]:
        """Return all cells of the declaration, in its order, those that are not asked for too."""
        return self.declared or self.cells

    @cached_property
    def others(self) -> tuple[Cell, ...]:
        """Return the cells of the declaration that are not asked for."""
        return tuple(cell for cell in self.declared if cell not in self.cells)

    @property
    def baselines(self) -> dict[str, Cell]:
        """Return by the key of each cell the baseline whose study chooses its learning rate, where one does.

        It is the first that matches in the order of the declaration, so that a part of a sweep has the whole one's.
        """
        study = self.protocol.rates
        if study is None:
            return {}
        baselines = {cell.key: study.baseline_of(cell, self.everyone) for cell in self.cells}
        return {key: baseline for key, baseline in baselines.items() if baseline is not None}

    @property
    def trained(self) -> tuple[Cell, ...]:
        """Return the cells that train: those asked for, and the baselines of the study of the learning rate."""
        others = {cell.key: cell for cell in self.baselines.values() if cell not in self.cells}
        return (*self.cells, *others.values())

    @cached_property
    def datasets(self) -> tuple[str, ...]:
        """Return the names of the data sets of the cells, each once."""
        return tuple(dict.fromkeys(cell.dataset for cell in self.cells))

    def only(self, globs: Iterable[str]) -> Sweep:
        """Return the part of the sweep whose cells' labels match a glob and no !glob; ValueError where none does."""
        globs = tuple(globs)
        wanted = [glob for glob in globs if not glob.startswith("!")] or ["*"]
        excluded = [glob[1:] for glob in globs if glob.startswith("!")]
        labels = [cell.label for cell in self.cells]
        for glob in wanted + excluded:
            if not fnmatch.filter([label.lower() for label in labels], glob.lower()):
                raise ValueError(unknown_name("cell", glob, labels, self.name))
        cells = [cell for cell in self.cells if _matches(cell.label, wanted) and not _matches(cell.label, excluded)]
        if not cells:
            raise ValueError(f"no cell of {self.name} is left by --only {' '.join(globs)}")
        is_part = len(cells) < len(self.cells)
        part = dataclasses.replace(self, cells=tuple(cells), declared=self.everyone if is_part else self.declared)
        missing = set(asked_cells(self.questions)) - {cell.label for cell in cells}
        if self.protocol.until and missing:
            raise ValueError(f"--until-decided needs all cells of the questions; --only leaves out {min(missing)!r}")
        return part


def check_name(name: str) -> None:
    """Raise ValueError for a name of a sweep under whose titles no verb would find its results."""
    if not SWEEP_TITLE.fullmatch(name):
        signs = "letters, digits and . = , + @ - _"
        raise ValueError(f"a sweep's name is {signs} (no sign but _ at its start), not {name!r}")


def check_space(search: Search, cell: Cell) -> None:
    """Raise ValueError where a cell has no setting of a searched name, or cannot have the values at its ends."""
    known = choosable(cell.net, cell.recipe)
    for axis in search.axes:
        if axis.name not in known and axis.name.startswith(MODEL) and isinstance(cell.net, Model):
            argument = axis.name.removeprefix(MODEL)
            raise ValueError(
                f"the search of the cell {cell.label!r} chooses {axis.name}, and its page gives the model no such "
                f"name, number or truth: write Model({cell.net.factory!r}, {argument}=...) first"
            )
        if axis.name not in known:
            raise ValueError(unknown_name("setting", axis.name, known, f"the cell {cell.label!r}"))
        try:
            check_axis(axis, cell.net, cell.recipe)
        except ValueError as error:
            raise ValueError(f"the search of the cell {cell.label!r}: {error}") from None
    if "parameters" in search.limits_by_name and isinstance(cell.net, Model):
        check_countable(search.axes)


def check_apart(sweep: Sweep) -> None:
    """Raise ValueError where two cells differ only in what their search chooses: some of their trials are the same.

    Each trial is counted for one cell, so that the other may have no number at all. Cells whose nets are multiples of
    one another are such a pair where the width is searched. A sweep is asked when a command declares it, since ledgers
    and capsules hold older ones, which stay readable.
    """
    search = sweep.protocol.search
    if search is None:
        return
    first: dict[str, Cell] = {}
    for cell in sweep.cells:
        for width in widths(search.axes):
            other = first.setdefault(shared_key(cell, chosen_names(search, cell), width), cell)
            if other is not cell:
                raise ValueError(
                    f"{other.label!r} and {cell.label!r} of {sweep.name} differ only in what is searched, so they "
                    f"would share trials: declare only one of them, or search nothing (--search-trials 0)"
                )


def _matches(label: str, globs: Iterable[str]) -> bool:
    return any(fnmatch.fnmatchcase(label.lower(), glob.lower()) for glob in globs)


def sweep_from_json(value: Json | None) -> Sweep:
    """Return the sweep that `plan_to_json` wrote; ValueError for any other value."""
    value = value or {}
    try:
        protocol = dict(value["protocol"])
        if protocol["search"] is not None:
            protocol["search"] = search_from_json(protocol["search"])
        if protocol.get("rates") is not None:
            protocol["rates"] = RateStudy(str(protocol["rates"]["baseline"]), tuple(protocol["rates"]["rates"]))
        cells = tuple(cell_from_json(cell) for cell in value["cells"])
        variant, question = str(value.get("variant", "")), str(value.get("question", ""))  # older plans lack them
        questions = questions_from_json(value.get("questions", ()))
        name, profile = str(value["sweep"]), str(value["profile"])
        return Sweep(name, profile, cells, Protocol(**protocol), variant, questions=questions, question=question)
    except (KeyError, TypeError) as error:
        raise ValueError(f"not a plan: {error!r}") from None
