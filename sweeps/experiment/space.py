"""Search spaces: what a search may choose for a cell, by dotted names, and what each choice does to recipe and net.

{"recipe.lr": Float(1e-3, 1, log=True), "recipe.optimiser": Choice("sgd", "adam"), "net.dropout.conv9": Float(0, 0.5)}
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from crelu_models.model import Model
from crelu_models.spec import Net
from sweeps.experiment.recipe import Recipe
from sweeps.store.ledger import Json

Value = bool | int | float | str
# What a search chose for a trial, by dotted name.
Choices = tuple[tuple[str, Value], ...]

DIGITS = 4  # of a number that is not drawn in steps: a rate that can be typed again
MODEL = "model."  # before an argument of a model
DROPOUT = "net.dropout."  # before the layer of a dropout rate
MOST_MODELS = 256  # whose parameters are counted before a search with a limit on them
UNSEARCHED = ("name", "stages")  # fields of a recipe that are no single value


@dataclass(frozen=True)
class Float:
    """Numbers from low to high; in steps, or by their logarithm (`log`)."""

    low: float
    high: float
    step: float = 0.0
    log: bool = False

    def check(self) -> None:
        """Raise ValueError for bounds that hold no two numbers."""
        _check_bounds(self)
        if self.step < 0 or not math.isfinite(self.step) or (self.step and self.log):
            raise ValueError(f"the step of {self} is above 0 and has no logarithm beside it")

    def values(self) -> tuple[float, ...]:
        """Return all of its numbers; none where it has no steps."""
        if not self.step:
            return ()
        steps = math.floor((self.high - self.low) / self.step + 1e-9)
        return tuple(round(self.low + number * self.step, 6) for number in range(steps + 1))

    def rounded(self, value: Value) -> float:
        """Return a number as trials have it: on its step, else of a few digits."""
        if self.step:
            return round(float(value), 6)
        return min(max(float(f"{float(value):.{DIGITS}g}"), self.low), self.high)

    def holds(self, value: Value) -> bool:
        """Return whether a value is one of its numbers."""
        if isinstance(value, bool | str) or not self.low <= value <= self.high:
            return False
        return not self.step or round(float(value), 6) in self.values()

    def ends(self) -> tuple[Value, ...]:
        """Return its least and its greatest number."""
        return float(self.low), float(self.high)


@dataclass(frozen=True)
class Int:
    """Whole numbers from low to high, both included; in steps, or by their logarithm (`log`)."""

    low: int
    high: int
    step: int = 1
    log: bool = False

    def check(self) -> None:
        """Raise ValueError for bounds that hold no two whole numbers."""
        _check_bounds(self)
        if any(type(number) is not int for number in (self.low, self.high, self.step)):
            raise ValueError(f"the bounds and the step of {self} are whole numbers")
        if self.step < 1 or (self.step > 1 and self.log):
            raise ValueError(f"the step of {self} is at least 1, and 1 beside a logarithm")

    def values(self) -> tuple[int, ...]:
        """Return all of its numbers."""
        return tuple(range(self.low, self.high + 1, self.step))

    def rounded(self, value: Value) -> int:
        """Return a number as trials have it."""
        return round(float(value))

    def holds(self, value: Value) -> bool:
        """Return whether a value is one of its numbers."""
        return (
            not isinstance(value, bool | str) and self.low <= value <= self.high and not (value - self.low) % self.step
        )

    def ends(self) -> tuple[Value, ...]:
        """Return its least and its greatest number."""
        return self.low, self.high - (self.high - self.low) % self.step


@dataclass(frozen=True, init=False)
class Choice:
    """Values without an order: names, numbers, or True and False."""

    options: tuple[Value, ...]

    def __init__(self, *options: Value) -> None:
        """Take the values."""
        object.__setattr__(self, "options", options)

    def check(self) -> None:
        """Raise ValueError where there are fewer than two values, or two are the same."""
        options = self.options
        if len(options) < 2 or any(not isinstance(value, bool | int | float | str) for value in options):
            raise ValueError(f"Choice takes two values or more, each a name, a number or a truth, not {options}")
        if len({(type(value), value) for value in options}) < len(options):
            raise ValueError(f"Choice has the same value twice: {options}")

    def values(self) -> tuple[Value, ...]:
        """Return all of its values."""
        return self.options

    def rounded(self, value: Value) -> Value:
        """Return a value as trials have it."""
        return value

    def holds(self, value: Value) -> bool:
        """Return whether a value is one of its own."""
        return any(type(option) is type(value) and option == value for option in self.options)

    def ends(self) -> tuple[Value, ...]:
        """Return all of its values, since any of them may be impossible."""
        return self.options


Domain = Float | Int | Choice
Space = Mapping[str, Domain]


class Axis(NamedTuple):
    """Dimension of a search: its dotted name, or the layer of a dropout rate, and the values to choose from."""

    name: str
    domain: Domain


def _check_bounds(domain: Float | Int) -> None:
    """Raise ValueError where low is not below high, one of them is no number, or has no logarithm."""
    if not (math.isfinite(domain.low) and math.isfinite(domain.high) and domain.low < domain.high):
        raise ValueError(f"{domain} has no values to choose from: low is a number below high")
    if domain.log and domain.low <= 0:
        raise ValueError(f"{domain} has a logarithm, so its low is above 0")


# What a choice does ---------------------------------------------------------------------------------------------------


def chosen_recipe(recipe: Recipe, choices: Choices) -> Recipe:
    """Return a recipe with the choices that are called recipe.FIELD; ValueError where no recipe has such values."""
    fields: dict[str, Any] = {
        name.removeprefix("recipe."): value for name, value in choices if name.startswith("recipe.")
    }
    unknown = fields.keys() - {field.name for field in dataclasses.fields(recipe)}
    if unknown:
        raise ValueError(f"a recipe has no field {min(unknown)!r}")
    return dataclasses.replace(recipe, **fields) if fields else recipe


def chosen_model(model: Model, choices: Choices) -> Model:
    """Return a model with the choices that are called model.ARGUMENT."""
    arguments = {name.removeprefix(MODEL): value for name, value in choices if name.startswith(MODEL)}
    return model.with_arguments(**arguments) if arguments else model


def chosen_net(net: Net | Model, choices: Choices) -> Net | Model:
    """Return a net with the choices that are called net.width and net.dropout.LAYER, a model with model.ARGUMENT."""
    if isinstance(net, Model):
        return chosen_model(net, choices)
    for name, value in choices:
        if name == "net.width":
            net = net.width(float(value))
        elif name.startswith(DROPOUT):
            net = net.dropout(float(value), name.removeprefix(DROPOUT))
    return net


def unchosen(net: Net | Model, recipe: Recipe, names: Collection[str]) -> tuple[Json, Json]:
    """Return net and recipe as JSON, without the recipe's name and without what these dotted names choose.

    A width that is chosen multiplies that of the net, which therefore stays.
    """
    fields = {field: value for field, value in recipe.to_json().items() if field != "name"}
    fields = {field: value for field, value in fields.items() if f"recipe.{field}" not in names}
    content = net.to_json()
    if isinstance(net, Model):
        arguments = {name: value for name, value in net.arguments.items() if f"{MODEL}{name}" not in names}
        return content | {"arguments": arguments}, fields
    rows = [row for row in content["rows"] if row[0] != "drop" or f"{DROPOUT}{row[1]}" not in names]
    return content | {"rows": rows}, fields


def widths(axes: Iterable[Axis]) -> tuple[float, ...]:
    """Return the widths that a search may choose; of a range without steps its ends, and the net's own within it."""
    for name, domain in axes:
        if name == "net.width":
            values: tuple[Value, ...] = domain.values()
            if not values:
                values = (*domain.ends(), 1.0) if domain.holds(1.0) else domain.ends()
            return tuple(float(value) for value in values)
    return (1.0,)


def check_countable(axes: Iterable[Axis]) -> None:
    """Raise ValueError where a search may choose too many models for each one's parameters to be counted before."""
    numbers = {name: len(domain.values()) for name, domain in axes if name.startswith(MODEL)}
    reason = "a limit on parameters needs those of each model that may be chosen"
    for name, number in numbers.items():
        if not number:
            raise ValueError(f"{reason}: give {name} a step")
    if math.prod(numbers.values()) > MOST_MODELS:
        raise ValueError(
            f"{reason}, here of {math.prod(numbers.values()):,} ones, and counts {MOST_MODELS} at most: give "
            f"{' and '.join(numbers)} fewer values"
        )


def searched_models(model: Model, axes: Iterable[Axis]) -> list[Model]:
    """Return a model, and then each one that a search over these dimensions may make of it."""
    searched = [axis for axis in axes if axis.name.startswith(MODEL)]
    own = {f"{MODEL}{name}": value for name, value in model.arguments.items()}
    options = ([(name, typed(name, value, own)) for value in domain.values()] for name, domain in searched)
    models = [chosen_model(model, choices) for choices in itertools.product(*options)]
    return list(dict.fromkeys([model, *models]))


def choosable(net: Net | Model, recipe: Recipe) -> dict[str, Value]:
    """Return all that can be chosen for a cell of this net and recipe, by dotted name, with its own values.

    Of a model these are the arguments that the page gives it.
    """
    fields = [field.name for field in dataclasses.fields(recipe) if field.name not in UNSEARCHED]
    current: dict[str, Value] = {f"recipe.{name}": getattr(recipe, name) for name in fields}
    if isinstance(net, Model):
        arguments = {
            name: value for name, value in net.arguments.items() if isinstance(value, bool | int | float | str)
        }
        return current | {f"{MODEL}{name}": value for name, value in arguments.items()}
    rates = net.dropouts()
    layers = ["input", *(layer.row.name for layer in net.layers(1))]
    current |= {f"{DROPOUT}{layer}": rates.get(layer, 0.0) for layer in layers}
    return current | {"net.width": 1.0}


def check_axis(axis: Axis, net: Net | Model, recipe: Recipe) -> None:
    """Raise ValueError where an axis has no values, or one at its ends is of another kind than the cell's own."""
    if not isinstance(axis.domain, Float | Int | Choice):
        raise ValueError(f"{axis.name} is searched over a Float, an Int or a Choice, not {axis.domain!r}")
    axis.domain.check()
    current = choosable(net, recipe)[axis.name]
    for value in axis.domain.ends():
        same = isinstance(value, int | float) if isinstance(current, float) else type(value) is type(current)
        if not same or isinstance(value, bool) != isinstance(current, bool):
            kind = type(current).__name__
            raise ValueError(f"{axis.name} is of type {kind} (now {current!r}), and {value!r} of {axis.domain} is none")
        try:
            chosen_recipe(recipe, ((axis.name, value),))
            chosen_net(net, ((axis.name, value),))
        except ValueError as error:
            raise ValueError(f"{axis.name} cannot be {value!r}: {error}") from None


def typed(name: str, value: Value, current: Mapping[str, Value]) -> Value:
    """Return a value of the kind of the cell's own: a whole number for a field of fractions is a fraction."""
    return float(value) if isinstance(current.get(name), float) else value


# On the ledger --------------------------------------------------------------------------------------------------------


def axis_to_json(axis: Axis) -> Json:
    """Return an axis as JSON."""
    content = dataclasses.asdict(axis.domain)
    return {"name": axis.name, "kind": type(axis.domain).__name__.lower()} | content


def axis_from_json(value: Json) -> Axis:
    """Return the axis that `axis_to_json` wrote; ValueError for any other value."""
    kinds: dict[str, type[Float | Int]] = {"float": Float, "int": Int}
    content = {name: part for name, part in value.items() if name not in ("name", "kind")}
    if value["kind"] == "choice":
        return Axis(str(value["name"]), Choice(*content["options"]))
    if value["kind"] not in kinds:
        raise ValueError(f"a dimension is a float, an int or a choice, not {value['kind']!r}")
    return Axis(str(value["name"]), kinds[value["kind"]](**content))


def short_name(name: str) -> str:
    """Return the last part of a dotted name, as it stands in the label of a trial: recipe.lr is lr."""
    return name.rpartition(".")[2]


def words_of(choices: Choices) -> Iterator[str]:
    """Yield each choice as NAME=VALUE."""
    for name, value in choices:
        yield f"{short_name(name)}={value_text(value)}"


def value_text(value: Value) -> str:
    """Return a value as it is written for people."""
    return f"{value:g}" if isinstance(value, float) else str(value)
