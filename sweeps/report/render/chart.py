"""The charts of a report as values: what svg.py draws, and a document holds."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal, NamedTuple

from sweeps.results.evidence import Floats
from sweeps.results.statistics import Interval

Kind = Literal["ours", "paper", "open", "pick"]


class Point(NamedTuple):
    """A value in a chart: the label beside it, the words under the pointer, its interval, the trials behind it.

    `x` is for charts that have an axis for it.
    """

    value: float
    label: str = ""
    tip: str = ""
    x: float = math.nan
    interval: Interval = Interval(math.nan, math.nan)
    kind: Kind = "ours"
    trials: str = ""


class Band(NamedTuple):
    """A curve: at some epochs the mean of some runs, with the least and the greatest of them."""

    epochs: Floats
    mean: Floats
    low: Floats
    high: Floats


class Forest(NamedTuple):
    """A chart of differences with their intervals around zero, a line each."""

    points: Sequence[Point]


class Curves(NamedTuple):
    """A chart of errors by epoch between `low` and `high` percent, in front of a reference."""

    ours: Band
    reference: Band | None
    low: float
    high: float
    trials: str


class Scatter(NamedTuple):
    """A chart of values against x on a logarithmic scale, with a label at each point of ours.

    No value is beyond `ends`, and an interval that is wide beside the points' own range is cut: a triangle at the edge
    says that it goes on.
    """

    points: Sequence[Point]
    x_label: str
    y_label: str
    ends: tuple[float, float] = (-math.inf, math.inf)

    @property
    def frame(self) -> tuple[float, float]:
        """Return the ends of the axis of values: the points have a third of it at least, intervals the rest."""
        values = [point.value for point in self.points]
        low, high = min(values), max(values)
        room = high - low or math.inf
        reached = [end for point in self.points for end in point.interval if math.isfinite(end)]
        low, high = (
            min(low, max(min(reached, default=low), low - room, self.ends[0])),
            max(high, min(max(reached, default=high), high + room, self.ends[1])),
        )
        pad = 0.08 * (high - low or abs(high) or 1.0)
        return low - pad, high + pad

    @property
    def cut(self) -> list[Point]:
        """Return the ends of intervals that lie beyond the frame."""
        low, high = self.frame
        ends = [(point, end) for point in self.points for end in point.interval if math.isfinite(end)]
        return [Point(end, x=point.x) for point, end in ends if not low <= end <= high]


class Responses(NamedTuple):
    """A chart of values, named `y_label`, between `low` and `high` by what was chosen, from one of `ends` to the other.

    A value beyond them is a triangle at the edge, which points to it. `ticks` are the places that are named, none for
    round numbers.
    """

    points: Sequence[Point]
    low: float
    high: float
    ends: tuple[float, float]
    ticks: tuple[tuple[float, str], ...] = ()
    y_label: str = ""


class Line(NamedTuple):
    """A line of a chart of interactions: its name, and its points by the number of their place on the axis."""

    name: str
    points: Sequence[Point]


class Interaction(NamedTuple):
    """A chart of mean errors by the levels of one factor, `places`, a line for each level of another one."""

    places: Sequence[str]
    lines: Sequence[Line]
    x_label: str
    y_label: str


Chart = Forest | Curves | Scatter | Responses | Interaction
