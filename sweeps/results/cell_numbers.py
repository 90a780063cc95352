"""The numbers of cells, as tables: ours with its spread, the paper's, and the verdict.

    single   mean over seeds of one training each, ± its standard error; of one seed with Wilson's interval
    average  mean over the folds' networks, ± its standard error, as the paper gives it; its interval is corrected
    vote     error of the folds' networks together (mean softmax), with Wilson's interval

Which runs make a number is said in experiment/metrics.py.
"""

from __future__ import annotations

import hashlib
import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Final, NamedTuple

from sweeps.experiment.metrics import (
    AVERAGE,
    FEW_CLASSES,
    HELD_OUT,
    OVER_FOLDS,
    PARAMETERS,
    PERCENT,
    TOP1,
    TOP1_TEN,
    TOP5,
    TOP5_TEN,
    TRAIN,
    VOTE,
    Average,
    Metric,
    average,
    decimals,
    has_diverged,
    measured_as,
    phase_behind,
)
from sweeps.experiment.profiles import PAPER_RECIPES, PROFILES, data_name
from sweeps.experiment.recipe import Recipe
from sweeps.experiment.sweep import Protocol, Sweep
from sweeps.experiment.trial import PHASES, Cell
from sweeps.experiment.wording import count
from sweeps.results import paper
from sweeps.results.analyses import preferred
from sweeps.results.decisions import Predictions
from sweeps.results.evidence import CellResults, Run, SweepResults
from sweeps.results.paper import FOLDS, GAP, Printed
from sweeps.results.paper_cells import Place, other_classes, other_training, reduced, standing_cells
from sweeps.results.statistics import (
    EQUAL,
    TOLERANCE,
    Interval,
    Order,
    Verdict,
    fold_interval,
    order,
    t_interval,
    verdict,
    wilson,
)

NAMES: Final = {
    TRAIN: "train error", TOP1: "top-1", TOP5: "top-5", TOP1_TEN: "top-1, ten crops", TOP5_TEN: "top-5, ten crops",
    AVERAGE: "average", VOTE: "vote", PARAMETERS: "parameters (M)", HELD_OUT: "hold-out error",
    GAP: "test less train error",
}  # fmt: skip
SLUGS: Final = {
    TRAIN: "train", TOP1: "top1", TOP5: "top5", TOP1_TEN: "top1-ten", TOP5_TEN: "top5-ten",
    AVERAGE: "average", VOTE: "vote", PARAMETERS: "parameters", HELD_OUT: "hold-out",
}  # fmt: skip
# The tables of errors; the rows of Tables 6 and S1 are layers.
TABLES: Final = ("1", "2", "3", "4", "5")
# Tables 3 and 5 are made of the rows of Tables 2 and 4, and of the literature's.
DERIVED: Final = {"2": "3", "4": "5"}
# The row of Table 2 behind "VGG + CReLU", by data set: the paper's choice, not ours by test error.
CHOSEN: Final = {"cifar10": "CReLU (1,3)", "cifar100": "CReLU (1,3,5)"}
# Shares of the test pictures: those of one network have Wilson's interval over these.
OF_TEST_PICTURES: Final = (TOP1, TOP5, TOP1_TEN, TOP5_TEN)
VOTING: Final = "mean_softmax"  # the paper's way to vote
UNKNOWN: Final = Interval(math.nan, math.nan)
TITLES: Final = {"embedded": "Embedded pictures"}
SETS: Final = {"cifar10": "CIFAR-10", "cifar100": "CIFAR-100", "imagenet": "ImageNet"}


def named(metric: str, table: str) -> str:
    """Return the name of a metric; one network's test error is "single" in Tables 1 to 3.

    That of a page's own metric is its own: test f1, and over folds the mean of test f1.
    """
    if metric == TOP1 and table in ("1", "2", "3"):
        return "single"
    folds = OVER_FOLDS.fullmatch(metric)
    name = f"mean of {folds[1]}" if folds else metric.removeprefix("final/").removeprefix("best/")
    return NAMES.get(metric) or name.replace("test_", "test ", 1).replace("val_", "val ", 1)


def pictures(dataset: str) -> str:
    """Return the name of a data set in a title: CIFAR-10, or Embedded pictures."""
    name = data_name(dataset)
    return SETS.get(dataset) or TITLES.get(name, name)


def digits(metric: str, value: float) -> int:
    """Return with how many decimals a value of a metric is written, or one that is compared with it."""
    if metric == PARAMETERS:
        # Of a net of few thousands two digits.
        return max(3, 1 - math.floor(math.log10(value))) if value > 0 else 3
    return 2 if metric in NAMES else decimals(value)


def slug(metric: str) -> str:
    """Return the name of a metric in the id of a table."""
    return SLUGS.get(metric) or _slug(metric)


class CellNumber(NamedTuple):
    """One number of ours, in percent where it is an error: `runs` and `values` are those it is made of."""

    metric: str
    average: Average
    interval: Interval
    values: tuple[float, ...]
    runs: tuple[Run, ...]

    @property
    def known(self) -> bool:
        """Return whether there is a number."""
        return math.isfinite(self.average.mean)


class Row(NamedTuple):
    """One row of a table: its label, the paper's row that it stands for, its cell (None for the literature's).

    `versus` is the row with which its cell asks to be compared; it may stand in another table.
    """

    label: str
    printed: str
    results: CellResults | None
    versus: Row | None = None

    @property
    def key(self) -> str:
        """Return the key of its cell, empty where it has none."""
        return self.results.cell.key if self.results is not None else ""


class ResultTable(NamedTuple):
    """The rows of one table and data set; `comparable` where they were trained on the paper's own data.

    `metric` is what the cells are compared by.
    """

    id: str
    table: str
    dataset: str
    title: str
    rows: tuple[Row, ...]
    metrics: tuple[str, ...]
    comparable: bool
    metric: Metric = PERCENT

    def paper(self, row: Row, metric: str) -> Printed | None:
        """Return what the paper prints in this place."""
        return paper.printed(self.table, self.dataset, row.printed, metric) if self.table in paper.COLUMNS else None

    @property
    def standing_cells(self) -> Mapping[Place, CellResults]:
        """Return the cell that stands for each of the paper's rows."""
        return standing_cells(
            ((self.dataset, row.printed), row.results) for row in self.rows if row.results is not None
        )

    @property
    def standing_rows(self) -> tuple[Row, ...]:
        """Return the rows whose cells stand for the paper's: one for each."""
        keys = {results.cell.key for results in self.standing_cells.values()}
        return tuple(row for row in self.rows if row.key in keys)


def stands_for(cell: Cell) -> str:
    """Return the paper's data set that a cell stands for: the one it names, its own, or its table's first."""
    printed = list(dict.fromkeys(row.dataset for row in paper.ROWS if row.table == cell.table))
    candidates = [name for name in (cell.paper_dataset, cell.dataset) if name in printed]
    return [*candidates, *printed, ""][0]


def cells_of_rows(results: SweepResults) -> dict[Place, CellResults]:
    """Return the cell of a sweep that stands for each row of the paper's tables of errors."""
    return standing_cells(
        ((stands_for(cell_results.cell), cell_results.cell.row), cell_results)
        for cell_results in results.cells
        if cell_results.cell.table in TABLES
    )


def printed_gains(sweep: Sweep) -> list[float]:
    """Return each question's gain by the paper's numbers; none unless all are printed, and all cells the paper's."""
    metric = AVERAGE if sweep.protocol.folds else TOP1
    numbers = {
        cell.label: paper.printed(cell.table, cell.dataset, cell.row, metric)
        for cell in sweep.cells
        if cell.table in paper.COLUMNS and cell.dataset == stands_for(cell) and not other_training(cell)
    }
    pairs = [(numbers.get(question.cell), numbers.get(question.versus)) for question in sweep.questions]
    gains = [theirs.value - ours.value for ours, theirs in pairs if ours is not None and theirs is not None]
    return gains if len(gains) == len(pairs) else []


def without_profile(recipe: str) -> str:
    """Return the name of a recipe without that of the profile that scaled it: imagenet-adam of imagenet-adam-demo."""
    stem, _, last = recipe.rpartition("-")
    return stem if stem and last in PROFILES else recipe


def recipe_words(recipe: Recipe, dataset: str) -> str:
    """Return a recipe as a title names it: adam recipe for one of the paper's, else recipe 'mine'."""
    name = without_profile(recipe.name)
    if name in {other.name for other in PAPER_RECIPES}:
        return f"{name.removeprefix(f'{dataset}-')} recipe"
    return f"recipe '{name}'"


def groups(results: SweepResults) -> list[ResultTable]:
    """Return the tables of a sweep: the paper's that its cells are rows of, and one a data set and recipe of others."""
    members: dict[tuple[str, str, str], list[CellResults]] = {}
    for cell_results in results.cells:
        cell = cell_results.cell
        table = cell.table if cell.table in TABLES else ""
        kind = stands_for(cell) if table else without_profile(cell.recipe.name)
        members.setdefault((table, kind, cell.dataset), []).append(cell_results)
    tables: list[ResultTable] = []
    for (table, kind, dataset), cells in members.items():
        result = _table(table, kind, dataset, cells, results.sweep.protocol)
        taken = {other.id for other in tables}
        if result.id in taken:
            name = f"{result.id}-{_slug(dataset)}"
            # Data sets that differ in signs alone have the same words: a digest tells them apart.
            name += f"-{hashlib.sha256(dataset.encode()).hexdigest()[:8]}" if name in taken else ""
            result = result._replace(id=name, title=f"{result.title} ({dataset})")
        tables.append(result)
        if table in DERIVED and any(cell_results.tested for cell_results in cells):
            tables.append(_derived(DERIVED[table], result))
    return [_with_references(table, tables) for table in tables]


def _with_references(table: ResultTable, tables: Sequence[ResultTable]) -> ResultTable:
    """Return a table whose rows have the references that their cells name, in this table or another one of cells."""
    if table.table in DERIVED.values():
        return table
    labelled: dict[str, Row] = {}
    for other in tables:
        if other.table not in DERIVED.values():
            members = [(row.results.cell.label, row) for row in other.rows if row.results is not None]
            # Another table's row has its whole label here: its title does not stand above.
            labelled |= {label: row if other.id == table.id else row._replace(label=label) for label, row in members}
    names = [row.results.cell.versus if row.results is not None else "" for row in table.rows]
    rows = tuple(row._replace(versus=labelled.get(name)) for row, name in zip(table.rows, names, strict=True))
    return table._replace(rows=rows)


def _table(table: str, kind: str, dataset: str, cells: Sequence[CellResults], protocol: Protocol) -> ResultTable:
    rows = tuple(Row(results.cell.label, results.cell.row, results) for results in cells)
    if not table:
        title = f"{pictures(dataset)}, {recipe_words(cells[0].cell.recipe, dataset)}"
        name = f"cells-{_slug(data_name(dataset))}-{_slug(kind)}"
        return ResultTable(name, "", "", title, rows, _measured(cells, protocol), False, cells[0].cell.metric)
    metrics = paper.COLUMNS[table] if protocol.trains_cells else _measured(cells, protocol)
    # Rows of Table 1 are called "CReLU half cifar10" where a sweep has both sets: the title says which.
    rows = tuple(row._replace(label=row.label.removesuffix(f" {kind}")) for row in rows)
    several = len({row.dataset for row in paper.ROWS if row.table == table}) > 1
    name = f"table-{table.lower()}" + (f"-{kind}" if several else "")
    trained = pictures(dataset)
    trained = trained.lower() if trained in TITLES.values() else trained
    title = f"Table {table}, {SETS[kind]}" + (f" on {trained}" if dataset != kind else "")
    return ResultTable(name, table, kind, title, rows, metrics, dataset == kind)


def _derived(table: str, source: ResultTable) -> ResultTable:
    """Return Table 3 or 5 with the rows that `source`, Table 2 or 4, has of it."""
    cells = source.standing_cells
    sources = {"VGG + CReLU": CHOSEN.get(source.dataset, "")}
    rows = tuple(
        Row(row.label, row.label, cells.get((source.dataset, sources.get(row.label, row.label))))
        for row in paper.rows(table, source.dataset)
    )
    name = source.id.replace(f"table-{source.table}", f"table-{table}")
    title = source.title.replace(f"Table {source.table}", f"Table {table}")
    return ResultTable(name, table, source.dataset, title, rows, paper.COLUMNS[table], source.comparable)


def _measured(cells: Sequence[CellResults], protocol: Protocol) -> tuple[str, ...]:
    """Return the columns for cells that the paper has no table of: what their runs measured."""
    metric = cells[0].cell.metric
    if metric.is_own:
        columns = [metric.final] * protocol.ablation + [metric.mean] * (protocol.folds > 0)
        return (*(columns or [metric.held_out]), PARAMETERS)
    measured = {name for results in cells for run in results.tested for name in run.metrics}
    tells = {name for name in measured if not all(is_always_zero(results, name) for results in cells)}
    errors = [name for name in (TOP1, TOP5, TOP1_TEN, TOP5_TEN) if name in tells] or [TOP1]
    # The networks of a training function of the user's leave no scores to vote by.
    over_folds = [AVERAGE] if all(results.cell.task for results in cells) else [AVERAGE, VOTE]
    columns = errors * (protocol.ablation or protocol.single) + over_folds * (protocol.folds > 0)
    return (*(columns or [HELD_OUT]), PARAMETERS)


def _slug(text: str) -> str:
    return "".join(letter if letter.isalnum() else "-" for letter in text.lower()).strip("-")


# Numbers ------------------------------------------------------------------------------------------------------


def runs_of(cell: CellResults, metric: str) -> dict[tuple[int, int], tuple[Run, float]]:
    """Return the runs that make a metric of a cell, with their values, by seed and fold."""
    if metric == GAP:
        train, test = runs_of(cell, TRAIN), runs_of(cell, TOP1)
        return {pair: (run, test[pair][1] - error) for pair, (run, error) in train.items() if pair in test}
    name = measured_as(metric)
    if metric == cell.cell.metric.held_out:
        runs = cell.winner.runs if cell.winner is not None else cell.done("ablation")
    else:
        runs = cell.done(phase_behind(metric, {run.trial.phase for run in cell.done(*PHASES)}))
    measured = tuple(run for run in runs if name in run.metrics)
    if any(name in summary["metrics"] for run in measured for summary in run.analyses.values()):
        measured = preferred(measured, lambda run: run.state)
    return {run.pair: (run, run.metrics[name]) for run in measured}


def is_always_zero(cell: CellResults, metric: str) -> bool:
    """Return whether a metric is the top-5 error of so few classes that it cannot be but 0."""
    return metric in (TOP5, TOP5_TEN) and cell.classes is not None and cell.classes <= FEW_CLASSES


def number(cell: CellResults | None, metric: str) -> CellNumber:
    """Return the number of a cell, its mean nan where no run makes it."""
    if cell is None:
        return CellNumber(metric, average(()), UNKNOWN, (), ())
    if metric == PARAMETERS:
        if not math.isfinite(cell.parameters):
            return CellNumber(metric, average(()), UNKNOWN, (), ())
        trained = tuple(run for run in cell.runs if run.result)
        return CellNumber(metric, average([cell.parameters]), UNKNOWN, (cell.parameters,), trained)
    pairs = tuple(runs_of(cell, metric).values())
    runs, values = tuple(run for run, _ in pairs), tuple(value for _, value in pairs)
    if metric == VOTE:
        voters = tuple(run for run in runs if run.decisions is not None or has_diverged(run.result))
        together = vote_average(cell.vote, [run.metrics[TOP1] for run in voters], all(map(_guesses, voters)))
        if cell.vote is None:
            return CellNumber(metric, together, UNKNOWN, (together.mean,) * (together.n > 0), voters * (together.n > 0))
        interval = wilson(cell.vote.wrong(VOTING), len(cell.vote.ids))
        return CellNumber(metric, together, interval, (together.mean,), voters)
    ours = average(values)
    return CellNumber(metric, ours, _interval(metric, ours, runs), values, runs)


def _interval(metric: str, ours: Average, runs: Sequence[Run]) -> Interval:
    """Return the interval of a mean over trainings, corrected over folds; of one training that over test pictures."""
    if ours.n < 2:
        return _over_pictures(runs, ours.mean) if metric in OF_TEST_PICTURES else UNKNOWN
    folds = folds_of(runs)
    return fold_interval(ours, 1 / folds) if folds else t_interval(ours)


def folds_of(runs: Sequence[Run]) -> int:
    """Return of how many folds runs are the networks, which share training pictures; 0 for those of seeds."""
    return runs[0].trial.folds if PHASES[runs[0].trial.phase].split == "fold" else 0


def _guesses(run: Run) -> bool:
    return has_diverged(run.result)


def vote_average(vote: Predictions | None, errors: Sequence[float], guessed: bool) -> Average:
    """Return the error in percent of networks that vote, by mean softmax as in the paper; nan without a vote.

    `errors` are those of each network alone. Where all of them diverged (`guessed`), the vote is a guess as well.
    """
    if vote is not None:
        return Average(vote.error(VOTING), math.nan, len(errors))
    return Average(average(errors).mean, math.nan, len(errors)) if guessed and errors else average(())


def _over_pictures(runs: Sequence[Run], error: float) -> Interval:
    """Return Wilson's interval for the error of one network, nan where there is none or its pictures are not known."""
    if not runs or runs[0].decisions is None or not 0 <= error <= 100:
        return UNKNOWN
    n = len(runs[0].decisions.ids)
    return wilson(round(error / 100 * n), n)


def verdict_for(table: ResultTable, row: Row, metric: str, ours: CellNumber) -> Verdict | None:
    """Return the verdict on a number; None where the paper prints none, or printed it of other data.

    It is withheld where the trainings are not the paper's, where some diverged, failed or are stale, or where they are
    too few to know their spread. Nothing is subtracted from trainings that are not the paper's.
    """
    printed = table.paper(row, metric)
    if printed is None or row.results is None or not table.comparable:
        return None
    if not ours.known:
        return Verdict(math.nan, UNKNOWN, TOLERANCE[table.dataset], "not run")
    difference = ours.average.mean - printed.value
    if metric == PARAMETERS:
        # The picture counts do not change a net, the classes do.
        if why := other_classes(row.results, table.dataset):
            return Verdict(math.nan, UNKNOWN, printed.rounding, "withheld", why)
        # Counts are exact: they have to round to what is printed.
        rounds = abs(difference) <= printed.rounding + 1e-9
        interval = Interval(difference, difference)
        return Verdict(difference, interval, printed.rounding, "reproduced" if rounds else "differs")
    if why := reduced(row.results, table.dataset):
        return Verdict(math.nan, UNKNOWN, TOLERANCE[table.dataset], "withheld", why)
    if why := row.results.lost(metric) or too_few(metric, table.table, ours) or stale_text(ours.runs):
        return Verdict(difference, UNKNOWN, TOLERANCE[table.dataset], "withheld", why)
    return verdict(ours.average, ours.interval, printed.value, printed.se, table.dataset)


def too_few(metric: str, table: str, ours: CellNumber) -> str:
    """Return why the trainings behind a number are too few to judge it, empty where they are enough."""
    return other_protocol(metric, table, ours) or ("" if metric == VOTE else without_spread(ours.average))


def without_spread(average: Average) -> str:
    """Return why the spread behind an average is not known; empty where it is."""
    if average.n < 2:
        return "one training: its spread is not known"
    equal = not average.se > EQUAL * abs(average.mean)
    return f"{count(average.n, 'training')} of the same number: their spread is not known" if equal else ""


def other_protocol(metric: str, table: str, ours: CellNumber) -> str:
    """Return why the trainings behind a number are not the ten folds or the Single of its table; empty if they are."""
    if metric in (AVERAGE, VOTE):
        folds = {run.trial.folds for run in ours.runs}
        return "" if len(ours.runs) == FOLDS and folds == {FOLDS} else f"{len(ours.runs)} of the paper's {FOLDS} folds"
    if table in ("1", "2", "3") and {run.trial.phase for run in ours.runs} != {"match"}:
        return "not trained by the protocol of Single"
    return ""


def stale_text(runs: Sequence[Run]) -> str:
    """Return how many of the trainings behind a number are stale; empty for none."""
    stale = sum(run.state == "stale" for run in runs)
    return count(stale, "stale training") if stale else ""


def order_kept(table: ResultTable, metric: str) -> Order | None:
    """Count the pairs of rows in the paper's order, None where fewer than two rows have a verdict."""
    pairs = []
    for row in table.standing_rows if table.comparable else ():
        ours, printed = number(row.results, metric), table.paper(row, metric)
        judged = verdict_for(table, row, metric, ours)
        if printed is not None and judged is not None and judged.word not in ("withheld", "not run"):
            pairs.append((ours.average.mean, printed.value))
    return order(*zip(*pairs, strict=True)) if len(pairs) > 1 else None


def verdicts(tables: Sequence[ResultTable]) -> Mapping[str, int]:
    """Count the verdicts on errors, over the tables that are the cells' own and not derived from those."""
    counts = {"reproduced": 0, "differs": 0, "inconclusive": 0, "withheld": 0, "not run": 0}
    for table in tables:
        if table.table not in DERIVED.values():
            for row, metric in itertools.product(table.rows, table.metrics):
                judged = verdict_for(table, row, metric, number(row.results, metric))
                if judged is not None and metric != PARAMETERS:
                    counts[judged.word] += 1
    return counts


def tolerance_sentence(dataset: str) -> str:
    """Return the sentence that says what counts as reproduced."""
    return (
        f"Reproduced: the 95 % interval of ours less the paper's lies within {TOLERANCE[dataset]:.1f} points; differs: "
        "it lies wholly outside; else inconclusive. The interval is over trainings, of a vote over test pictures; a "
        "standard error that the paper prints widens it. Parameters: rounding to the printed digits."
    )
