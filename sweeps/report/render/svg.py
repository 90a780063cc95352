"""The charts of a document, drawn as SVG in CSS pixels so that text keeps its size on a phone."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Final

import numpy as np
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.ticker import MaxNLocator
from matplotlib.transforms import Bbox

from sweeps.report.render.chart import Band, Chart, Curves, Forest, Point, Responses, Scatter
from sweeps.report.render.document import MINUS
from sweeps.report.render.plots import chart, svg
from sweeps.results.evidence import Floats

LETTER: Final = 5.6  # pixels of an average letter at the size of a chart's text
KINDS: Final = ("paper", "open", "ours", "pick")  # of points, the last on top
# Where a label may stand beside its point, the best places first: pixels to the right and up, the side of its anchor.
PLACES: Final = (
    (8, -4, "left"), (-8, -4, "right"), (0, 9, "center"), (0, -16, "center"), (7, 8, "left"), (-7, 8, "right"),
    (7, -15, "left"), (-7, -15, "right"), (8, 20, "left"), (8, -27, "left"), (-8, 20, "right"), (-8, -27, "right"),
)  # fmt: skip
BEFORE: Final = {"left": 0.0, "center": 0.5, "right": 1.0}  # share of a label that stands left of its anchor


def draw(drawn: Chart, alt: str) -> Markup:
    """Return a chart as SVG."""
    match drawn:
        case Forest():
            return _forest(drawn, alt)
        case Curves():
            return _curves(drawn, alt)
        case Scatter():
            return _scatter(drawn, alt)
        case Responses():
            return _responses(drawn, alt)


def _forest(forest: Forest, alt: str) -> Markup:
    width, left, pitch = 340, 118, 21
    height = 28 + pitch * len(forest.points)
    with chart(width, height, left + 4, 20, width - 8, height - 8) as axis:
        rows = range(len(forest.points))
        labels = [_cut(point.label, left - 10) for point in forest.points]
        axis.axvline(0, gid="axis")
        axis.grid(axis="x", gid="grid")
        for row, point in zip(rows, forest.points, strict=True):
            axis.plot(point.interval, (row, row), gid="whisker")
        hovers = _points(axis, forest.points, [point.value for point in forest.points], rows, 4)
        axis.set(ylim=(len(rows) - 0.5, -0.5), yticks=rows, yticklabels=labels)
        axis.tick_params(axis="y", pad=10)
        _ticks(axis.xaxis, 5, lambda tick, _: f"{tick:+g}".replace("-", MINUS) if tick else "0")
        axis.margins(x=0.06)
        return svg(axis, alt, hovers)


def _curves(curves: Curves, alt: str) -> Markup:
    with chart(216, 138, 30, 20, 210, 130) as axis:
        axis.grid(axis="y", gid="grid")
        if curves.reference is not None:
            epochs, mean, _, _ = _in_view(curves.reference, curves.high)
            axis.plot(epochs, mean, gid="base line")
        epochs, mean, low, high = _in_view(curves.ours, curves.high)
        if (low < high).any():
            axis.fill([*epochs, *epochs[::-1]], [*high, *low[::-1]], gid="band")
        axis.plot(epochs, mean, gid="ours line")
        longest = max(len(band.mean) for band in (curves.ours, curves.reference) if band is not None)
        round_epochs = MaxNLocator(3, steps=[1, 2, 5, 10]).tick_values(1, longest)
        ticks = {1, *[int(epoch) for epoch in round_epochs if 1 <= epoch <= longest][-2:]}
        axis.set(xlim=(1, max(2, longest)), ylim=(curves.low, curves.high), xticks=sorted(ticks))
        _ticks(axis.yaxis, 6)
        return svg(axis, alt, {"ours line": [(curves.trials, "")]})


def _in_view(band: Band, top: float) -> tuple[Floats, Floats, Floats, Floats]:
    """Return epochs, mean, low and high of a curve from where it comes below `top`; later on it stays at this edge."""
    start = int(np.argmax(band.mean <= top))
    mean, low, high = (np.minimum(values[start:], top) for values in band)
    return np.arange(start + 1.0, len(band.mean) + 1), mean, low, high


def _scatter(scatter: Scatter, alt: str) -> Markup:
    points = scatter.points
    with chart(344, 250, 40, 36, 330, 238) as axis:
        axis.grid(axis="y", gid="grid")
        for point in points:
            axis.plot((point.x, point.x), point.interval, gid="whisker")
        hovers = _points(axis, points, [point.x for point in points], [point.value for point in points], 4)
        axis.set_xscale("log")
        axis.minorticks_off()
        axis.margins(0.08)
        _ticks(axis.xaxis, 4)
        _ticks(axis.yaxis, 6)
        axis.annotate(scatter.x_label, (0.5, 0), (0, -31), "axes fraction", "offset points", ha="center", gid="name")
        axis.annotate(scatter.y_label, (0, 1), (0, 5), "axes fraction", "offset points", gid="name")
        _label(axis, points)
        return svg(axis, alt, hovers)


def _responses(responses: Responses, alt: str) -> Markup:
    first, last = responses.rates
    points = responses.points
    with chart(168, 118, 30, 20, 160, 110) as axis:
        axis.grid(axis="y", gid="grid")
        values = [min(max(point.value, responses.low), responses.high) for point in points]
        hovers = _points(axis, points, [point.x for point in points], values, 3)
        room = 0.05 * (last - first)
        axis.set(xlim=(first - room, last + room), ylim=(responses.low, responses.high))
        _ticks(axis.xaxis, 4)
        _ticks(axis.yaxis, 4)
        return svg(axis, alt, hovers)


def _ticks(axis: Axis, most: int, text: str | Callable[[float, float], str] = "{x:g}") -> None:
    """Put at most so many intervals between round ticks."""
    axis.set_major_locator(MaxNLocator(most, steps=[1, 2, 5, 10]))
    axis.set_major_formatter(text)


# Points and labels --------------------------------------------------------------------------------------------


def _points(
    axis: Axes, points: Sequence[Point], xs: Sequence[float], ys: Sequence[float], radius: float
) -> dict[str, list[tuple[str, str]]]:
    """Draw points by kind, a chosen one larger; return the trials and the title of each as `svg` takes them."""
    hovers: dict[str, list[tuple[str, str]]] = {}
    for kind in KINDS:
        chosen = [i for i, point in enumerate(points) if point.kind == kind and math.isfinite(point.value)]
        size = 2 * radius + (4 if kind == "pick" else 0)
        axis.plot([xs[i] for i in chosen], [ys[i] for i in chosen], "o", markersize=size, gid=kind)
        hovers[kind] = [(points[i].trials, points[i].tip) for i in chosen]
    return hovers


def _label(axis: Axes, points: Sequence[Point]) -> None:
    """Write a label beside each point of ours, where it covers least of what is drawn and stays within the frame."""
    frame = axis.get_window_extent()
    taken = []
    for point in points:
        (x, y), (_, low), (_, high) = axis.transData.transform(
            [(point.x, end) for end in (point.value, *point.interval)]
        )
        taken.append(Bbox.from_extents(x - 5, y - 5, x + 5, y + 5))
        if math.isfinite(low):
            taken.append(Bbox.from_extents(x - 1, low, x + 1, high))
    for point in points:
        if point.kind == "paper" or not point.label:
            continue
        x, y = axis.transData.transform((point.x, point.value))
        width = LETTER * len(point.label)
        boxes = [
            Bbox.from_bounds(x + right - BEFORE[side] * width, y + up - 2, width, 12) for right, up, side in PLACES
        ]
        costs = [sum(_shared(box, other) for other in taken) - 5 * _shared(box, frame) for box in boxes]
        best = int(np.argmin(costs))
        taken.append(boxes[best])
        right, up, side = PLACES[best]
        axis.annotate(point.label, (point.x, point.value), (right, up), textcoords="offset points", ha=side)


def _shared(a: Bbox, b: Bbox) -> float:
    """Return the area that two boxes share."""
    both = Bbox.intersection(a, b)
    return float(both.width * both.height) if both is not None else 0.0


def _cut(words: str, pixels: float) -> str:
    """Return words cut to a width."""
    most = int(pixels / LETTER)
    return words if len(words) <= most else words[: most - 1] + "…"
