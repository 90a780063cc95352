"""Searches of a cell's setting as a page declares them: space, sampler, objective, limits, successive halving."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from operator import index
from typing import Any, NamedTuple

from sweeps.experiment.recipe import SPACES, Dimension
from sweeps.experiment.sampling import (
    DIRECTIONS,
    SAMPLERS,
    Point,
    grid,
)
from sweeps.experiment.space import (
    DROPOUT,
    Axis,
    Choices,
    Float,
    Space,
    axis_from_json,
    axis_to_json,
    choosable,
)
from sweeps.experiment.trial import Cell, Rates, Trial
from sweeps.store.ledger import Json

LIMITS = ("parameters", "seconds")
NOTED = ("classes", "sides", "counts")  # fields of a search that the command that trains fills in
BETTER = {"lower": "minimize", "higher": "maximize"}  # Optuna's words


@dataclass(frozen=True)
class Search:
    """Search of a cell's setting: so many trials, in waves, by a sampler, over a space (empty: the family's dropout).

    The space has a Float, an Int or a Choice for each dotted name: recipe.FIELD, model.ARGUMENT, net.dropout.LAYER and
    net.width. A suggestion is judged by the `objective` on the hold-out (empty: the page's metric there), with `folds`
    by its mean over that many folds; the `direction` says whether the least or the largest value wins.
    `prune` ends a trial whose error is above the best third of earlier ones. Over folds it leaves out the remaining
    folds of a suggestion that is worse than the best one by Wilcoxon's signed-rank test (p < 0.1) on those so far.
    `halving` takes its place: trials pause at rungs, the first after `rung` epochs (0: two rungs before the last
    epoch), and one in `halving` goes on to the next. `limits` on parameters and seconds are kept by the winner; the
    command that trains notes the `classes` of its data sets and the `sides` of their views, by which parameters are
    counted, and the `counts` of all models that may be chosen, by `model_key`. No page names them.
    """

    trials: int = 20
    sampler: str = "tpe"
    wave: int = 4
    prune: bool = True
    seed: int = 0
    space: Space | tuple[Dimension, ...] | tuple[Axis, ...] = ()
    folds: int = 0
    objective: str = ""
    direction: str = ""
    halving: int = 0
    rung: int = 0
    limits: Mapping[str, float] | tuple[tuple[str, float], ...] = ()
    classes: tuple[tuple[str, int], ...] = field(default=(), compare=False)
    sides: tuple[tuple[str, int], ...] = field(default=(), compare=False)
    counts: tuple[tuple[str, int], ...] = field(default=(), compare=False)

    def __post_init__(self) -> None:
        """Raise ValueError for a search that cannot be."""
        for name in ("space", "limits"):
            value = getattr(self, name)
            if isinstance(value, Mapping):
                pairs = value.items()
                object.__setattr__(self, name, tuple(Axis(*pair) if name == "space" else pair for pair in pairs))
        if self.sampler not in SAMPLERS:
            raise ValueError(f"a search's sampler is one of {', '.join(SAMPLERS)}, not {self.sampler!r}")
        if self.trials < 1 or self.wave < 1:
            raise ValueError(f"a search has at least one trial and one a wave, not {self.trials} and {self.wave}")
        if self.folds < 0 or self.folds == 1:
            raise ValueError(f"a search is on the hold-out (folds 0) or on two folds or more, not on {self.folds}")
        self._check_space()
        self._check_objective()
        self._check_halving()

    def _check_space(self) -> None:
        for axis in self.axes:
            if self.sampler == "grid" and isinstance(axis.domain, Float) and not axis.domain.step:
                raise ValueError(f"a grid needs steps: give {axis.name!r} a step, or take another sampler")

    def _check_objective(self) -> None:
        if self.direction and self.direction not in DIRECTIONS:
            raise ValueError(f"a search's direction is minimize or maximize, not {self.direction!r}")
        if self.objective.startswith(("test/", "final/", "agg/")):
            raise ValueError(f"a search never chooses on the test pictures: {self.objective!r} is measured on them")
        for name, most in self.limits_by_name.items():
            if name not in LIMITS or not 0 < most < math.inf:
                raise ValueError(
                    f"a search's limits are numbers above 0 of {' and '.join(LIMITS)}, not {name}={most!r}"
                )

    def _check_halving(self) -> None:
        if self.halving == 0 and self.rung == 0:
            return
        if self.halving < 2 or self.rung < 0:
            raise ValueError(
                f"successive halving lets one in 2 or more trials go on (0: off) from a rung of one epoch or more, "
                f"not one in {self.halving} from {self.rung}"
            )
        if self.folds:
            raise ValueError("successive halving is on the hold-out: leave its factor out, or the folds of the search")
        if "recipe.epochs" in {axis.name for axis in self.axes}:
            raise ValueError(
                "successive halving needs as many epochs of all trials: take recipe.epochs out of the space"
            )
        if self.objective or self.direction:
            raise ValueError("successive halving compares the page's metric: leave it out, or objective and direction")

    @property
    def axes(self) -> tuple[Axis, ...]:
        """Return the declared dimensions by dotted name; none where the space is of dropout rates alone."""
        return tuple(axis for axis in self.space if isinstance(axis, Axis))

    @property
    def limits_by_name(self) -> dict[str, float]:
        """Return the limits by name."""
        return dict(self.limits)

    @cached_property
    def noted_counts(self) -> dict[str, int]:
        """Return the parameters of models by `model_key`, as the command that trains has noted them."""
        return dict(self.counts)


def search_to_json(search: Search) -> Json:
    """Return a search as JSON."""
    space: list[Any] = [axis_to_json(axis) for axis in search.axes] or [list(part) for part in search.space]
    content = dataclasses.asdict(search) | {
        "space": space,
        "limits": [list(pair) for pair in search.limits_by_name.items()],
    }
    noted = {name: dict(getattr(search, name)) for name in NOTED}
    return {name: part for name, part in content.items() if name not in noted} | {
        name: part for name, part in noted.items() if part
    }


def search_from_json(value: Json) -> Search:
    """Return the search that `search_to_json` wrote; KeyError, TypeError or ValueError for any other value."""
    space = [axis_from_json(part) if isinstance(part, dict) else Dimension(*part) for part in value["space"]]
    limits = tuple((str(name), float(most)) for name, most in value.get("limits", ()))  # older plans lack it
    noted = {
        field: tuple((str(name), index(number)) for name, number in dict(value.get(field, {})).items())
        for field in NOTED
    }
    return Search(**(dict(value) | {"space": tuple(space), "limits": limits} | noted))


class Goal(NamedTuple):
    """Number by which a search judges, and whether the least or the largest value wins."""

    name: str
    direction: str

    def loss(self, value: float) -> float:
        """Return a value as a number that is to be small."""
        return -value if self.direction == "maximize" else value


def goal(search: Search, cell: Cell) -> Goal:
    """Return the number that a cell's search looks at: its objective, else the metric on the hold-out."""
    if search.objective:
        return Goal(search.objective, search.direction or "minimize")
    return Goal(cell.metric.held_out, search.direction or BETTER[cell.metric.better])


class Setting(NamedTuple):
    """Setting of a cell: dropout by layer, choices by dotted name, a learning rate (0: the recipe's own)."""

    dropout: Rates = ()
    choices: Choices = ()
    rate: float = 0.0


def setting_of(trial: Trial) -> Setting:
    """Return what was chosen for a trial."""
    return Setting(trial.dropout, trial.choices, trial.rate)


def space(search: Search, cell: Cell) -> tuple[Axis, ...]:
    """Return the dimensions of a cell's search; ValueError where its recipe's family has none."""
    axes = _axes(search, cell)
    if not axes:
        raise ValueError(
            f"no dropout space for recipes called {_family(cell)!r}; give Search(space=...) or one of {list(SPACES)}"
        )
    return axes


def _axes(search: Search, cell: Cell) -> tuple[Axis, ...]:
    if search.axes:
        return search.axes
    dimensions = [part for part in search.space if isinstance(part, Dimension)] or SPACES.get(_family(cell), ())
    return tuple(Axis(part.after, Float(part.low, part.high, part.step)) for part in dimensions)


def _family(cell: Cell) -> str:
    return cell.recipe.name.partition("-")[0]


def chosen_names(search: Search, cell: Cell) -> frozenset[str]:
    """Return the dotted names of what a search chooses for a cell; none where its recipe's family has no space."""
    return frozenset(axis.name if search.axes else f"{DROPOUT}{axis.name}" for axis in _axes(search, cell))


def budget(search: Search, cell: Cell) -> int:
    """Return how many suggestions each cell of a family gets: at most all points of a grid."""
    return min(search.trials, len(grid(space(search, cell)))) if search.sampler == "grid" else search.trials


def own_point(search: Search, cell: Cell) -> Point | None:
    """Return the point that is tried first: no dropout, or the cell's own setting; None where the space lacks it."""
    axes = space(search, cell)
    current = choosable(cell.net, cell.recipe) if search.axes else {}
    point = tuple(current.get(axis.name, 0.0) if search.axes else 0.0 for axis in axes)
    return point if all(axis.domain.holds(value) for axis, value in zip(axes, point, strict=True)) else None
