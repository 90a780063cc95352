"""The charts of a document, drawn as SVG in CSS pixels so that text keeps its size on a phone."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Final

import numpy as np
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.ticker import FixedLocator, MaxNLocator

from sweeps.experiment.wording import short_labels
from sweeps.report.render.chart import Band, Chart, Curves, Forest, Interaction, Point, Responses, Scatter
from sweeps.report.render.document import MINUS
from sweeps.report.render.plots import chart, spread, svg
from sweeps.results.evidence import Floats

LETTER: Final = 5.6  # pixels of an average letter at the size of a chart's text
KINDS: Final = ("paper", "open", "ours", "pick")  # of points, the last on top
LABEL: Final = (6.2, 12.0)  # pixels of a letter at its widest, and of a line, in the label of a point
# Where a label may stand beside its point, the best places first: pixels to the right and up, the side of its anchor.
BESIDE: Final = (
    (8, -4, "left"), (-8, -4, "right"), (0, 9, "center"), (0, -16, "center"), (7, 8, "left"), (-7, 8, "right"),
    (7, -15, "left"), (-7, -15, "right"),
)  # fmt: skip
# Farther places, from which a line leads to the point.
FARTHER: Final = tuple(
    (right, up, side)
    for up in (14, -22, 26, -34, 40, -48, 54, -62)
    for right, side in ((12, "left"), (-12, "right"), (30, "left"), (-30, "right"), (0, "center"))
)
PLACES: Final = (*BESIDE, *FARTHER)
STYLES: Final = 6  # of lines in one chart, each of a colour and of dashes of its own: page.css has them
TRIANGLE: Final = (4.0, 7.0)  # pixels of half the width of a triangle, and of its height
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
        case Interaction():
            return _interaction(drawn, alt)


def _forest(forest: Forest, alt: str) -> Markup:
    # A comparison's label names two rows.
    labels = _fitting([point.label for point in forest.points], 220)
    left = round(max(118, LETTER * max(map(len, labels), default=0) + 12))
    pitch = 21
    width = 222 + left
    height = 28 + pitch * len(forest.points)
    with chart(width, height, left + 4, 20, width - 8, height - 8) as axis:
        rows = range(len(forest.points))
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
            epochs, mean, _, _ = _in_view(curves.reference, curves)
            axis.plot(epochs, mean, gid="base line")
        epochs, mean, low, high = _in_view(curves.ours, curves)
        if (low < high).any():
            axis.fill([*epochs, *epochs[::-1]], [*high, *low[::-1]], gid="band")
        axis.plot(epochs, mean, gid="ours line")
        longest = max(float(band.epochs[-1]) for band in (curves.ours, curves.reference) if band is not None)
        round_epochs = MaxNLocator(3, steps=[1, 2, 5, 10]).tick_values(1, longest)
        ticks = {1, *[int(epoch) for epoch in round_epochs if 1 <= epoch <= longest][-2:]}
        axis.set(xlim=(1, max(2, longest)), ylim=(curves.low, curves.high), xticks=sorted(ticks))
        _ticks(axis.yaxis, 6)
        return svg(axis, alt, {"ours line": [(curves.trials, "")]})


def _in_view(band: Band, curves: Curves) -> tuple[Floats, Floats, Floats, Floats]:
    """Return epochs, mean, low and high of a curve from where it enters the chart; later on it stays at the edges."""
    start = int(np.argmax((curves.low <= band.mean) & (band.mean <= curves.high)))
    values = (band.mean, band.low, band.high)
    mean, low, high = (np.clip(part[start:], curves.low, curves.high) for part in values)
    return band.epochs[start:], mean, low, high


def _scatter(scatter: Scatter, alt: str) -> Markup:
    points = scatter.points
    with chart(344, 250, 40, 36, 330, 238) as axis:
        axis.grid(axis="y", gid="grid")
        axis.set_xscale("log")
        axis.minorticks_off()
        axis.margins(x=0.08)
        low, high = axis.set_ylim(scatter.frame)
        for point in points:
            axis.plot((point.x, point.x), np.clip(point.interval, low, high), gid="whisker")
        hovers = _points(axis, points, [point.x for point in points], [point.value for point in points], 4)
        _triangles(axis, scatter.cut)
        _logarithmic_ticks(axis.xaxis)
        _ticks(axis.yaxis, 6)
        axis.annotate(scatter.x_label, (0.5, 0), (0, -31), "axes fraction", "offset points", ha="center", gid="name")
        axis.annotate(scatter.y_label, (0, 1), (0, 5), "axes fraction", "offset points", gid="name")
        _label(axis, points)
        return svg(axis, alt, hovers)


def _responses(responses: Responses, alt: str) -> Markup:
    first, last = responses.ends
    points = responses.points
    with chart(168, 132, 30, 20, 160, 110) as axis:
        axis.grid(axis="y", gid="grid")
        within = [point for point in points if responses.low <= point.value <= responses.high]
        hovers = _points(axis, within, [point.x for point in within], [point.value for point in within], 3)
        room = 0.08 * (last - first)
        axis.set(xlim=(first - room, last + room), ylim=(responses.low, responses.high))
        if responses.ticks:
            axis.set_xticks([place for place, _ in responses.ticks], [name for _, name in responses.ticks])
        else:
            _ticks(axis.xaxis, 4)
        _ticks(axis.yaxis, 4)
        (name,) = _fitting([responses.y_label], 160)
        axis.annotate(name, (0, 1), (-26, 8), "axes fraction", "offset points", gid="name")
        beyond = [point for point in points if point.value < responses.low or point.value > responses.high]
        return svg(axis, alt, hovers | _triangles(axis, beyond))


def _interaction(interaction: Interaction, alt: str) -> Markup:
    places = range(len(interaction.places))
    ticks = _fitting(interaction.places, 90)
    names = _fitting([line.name for line in interaction.lines], 120)
    room = LETTER * max(map(len, ticks)) + 6
    rows = 1 if len(places) * room <= 194 else 2  # every second tick stands a line lower
    right = 40 + round(max(194, len(places) * room / rows))
    width = right + round(max(60, LABEL[0] * max(map(len, names)) + 14))
    lower = round(LABEL[1]) * (rows - 1)
    tall = max(142, round(LABEL[1] * len(names)))
    with chart(width, tall + 48 + lower, 40, 36 + lower, right, tall + 36 + lower) as axis:
        axis.grid(axis="y", gid="grid")
        axis.margins(y=0.1)
        hovers: dict[str, list[tuple[str, str]]] = {}
        for number, line in enumerate(interaction.lines):
            style = f" style{number % STYLES}"
            xs, ys = [point.x for point in line.points], [point.value for point in line.points]
            axis.plot(xs, ys, gid=f"line{style}")
            for gid, drawn in _points(axis, line.points, xs, ys, 4, style).items():
                hovers.setdefault(gid, []).extend(drawn)
        axis.set(
            xlim=(-0.4, len(places) - 0.6),
            xticks=places,
            xticklabels=["" if place % rows else tick for place, tick in enumerate(ticks)],
        )
        for place in range(1, len(ticks), 2) if rows > 1 else ():
            axis.annotate(ticks[place], (place, 0), (0, -26), ("data", "axes fraction"), "offset points", ha="center")
        axis.autoscale_view()
        bottom, top = axis.set_ylim(axis.get_ylim())
        gap = LABEL[1] * (top - bottom) / tall  # data units of a line of text
        ends = [line.points[-1] for line in interaction.lines]
        for name, end, level in zip(names, ends, spread([end.value for end in ends], gap, bottom, top), strict=True):
            edge = len(places) - 0.6
            axis.plot((end.x, edge), (end.value, level), gid="lead", zorder=1)
            axis.annotate(name, (edge, level), (4, -4), textcoords="offset points", annotation_clip=False)
        _ticks(axis.yaxis, 5)
        axis.annotate(
            interaction.x_label, (0.5, 0), (0, -31 - lower), "axes fraction", "offset points", ha="center", gid="name"
        )
        axis.annotate(interaction.y_label, (0, 1), (0, 5), "axes fraction", "offset points", gid="name")
        return svg(axis, alt, hovers)


def _ticks(axis: Axis, most: int, text: str | Callable[[float, float], str] = "{x:g}") -> None:
    """Put at most so many intervals between round ticks."""
    axis.set_major_locator(MaxNLocator(most, steps=[1, 2, 5, 10]))
    axis.set_major_formatter(text)


def _logarithmic_ticks(axis: Axis) -> None:
    """Put three to six ticks at round numbers of a logarithmic axis; on a short one they are evenly apart."""
    low, high = axis.get_view_interval()
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    for digits in ((1,), (1, 3), (1, 2, 5)):
        ticks = [digit * 10.0**power for power in powers for digit in digits if low <= digit * 10.0**power <= high]
        if len(ticks) > 2:
            axis.set_major_locator(FixedLocator(ticks[:: -(-len(ticks) // 6)]))
            axis.set_major_formatter("{x:g}")
            return
    for most in (4, 6, 8):
        _ticks(axis, most)
        if sum(low <= tick <= high for tick in axis.get_majorticklocs()) > 2:
            return


# Points and labels --------------------------------------------------------------------------------------------


def _points(
    axis: Axes, points: Sequence[Point], xs: Sequence[float], ys: Sequence[float], radius: float, style: str = ""
) -> dict[str, list[tuple[str, str]]]:
    """Draw points by kind, a chosen one larger; return the trials and the title of each as `svg` takes them.

    `style` is a further class of theirs.
    """
    hovers: dict[str, list[tuple[str, str]]] = {}
    for kind in KINDS:
        chosen = [i for i, point in enumerate(points) if point.kind == kind and math.isfinite(point.value)]
        size = 2 * radius + (4 if kind == "pick" else 0)
        axis.plot([xs[i] for i in chosen], [ys[i] for i in chosen], "o", markersize=size, gid=f"{kind}{style}")
        hovers[f"{kind}{style}"] = [(points[i].trials, points[i].tip) for i in chosen]
    return hovers


def _triangles(axis: Axes, points: Sequence[Point]) -> dict[str, list[tuple[str, str]]]:
    """Draw points beyond the frame as triangles at its edge; return the trials and the title of each."""
    hovers: dict[str, list[tuple[str, str]]] = {}
    half, height = TRIANGLE / np.array([axis.bbox.width, axis.bbox.height])
    axis.autoscale_view()
    within = axis.transData - axis.transAxes
    for point in points:
        x = float(within.transform((point.x, point.value))[0])
        edge, base = (1, 1 - height) if point.value > axis.get_ylim()[1] else (0, height)
        gid = f"beyond {point.kind}"
        axis.fill((x - half, x, x + half), (base, edge, base), transform=axis.transAxes, clip_on=False, gid=gid)
        hovers.setdefault(gid, []).append((point.trials, point.tip))
    return hovers


def _label(axis: Axes, points: Sequence[Point]) -> None:
    """Write a label beside each point of ours: by no other point, over as little as possible, within the frame.

    Labels are placed one after another where they cost least, then moved as long as that makes all of them better.
    """
    axis.autoscale_view()  # or the limits would change once the labels are placed
    axis.autoscale(False)
    places = axis.transData.transform([(point.x, point.value) for point in points])
    labelled = [i for i, point in enumerate(points) if point.kind != "paper" and point.label]
    boxes = np.stack([_boxes(places[i], points[i].label) for i in labelled]) if labelled else np.zeros((0, 1, 4))
    costs = _own_costs(axis, points, places, labelled, boxes)
    chosen: dict[int, int] = {}
    for _ in range(ROUNDS):
        before = dict(chosen)
        for row in range(len(labelled)):
            others = [boxes[other, place] for other, place in chosen.items() if other != row]
            crossed = sum((OVERLAP * _shared(boxes[row], other) for other in others), np.zeros(len(PLACES)))
            chosen[row] = int(np.argmin(costs[row] + crossed))
        if chosen == before:
            break
    for row, place in chosen.items():
        point, (right, up, side) = points[labelled[row]], PLACES[place]
        axis.annotate(point.label, (point.x, point.value), (right, up), textcoords="offset points", ha=side)
        if place >= len(BESIDE):
            x, y = places[labelled[row]]
            end = (x + right, y + up + (-3 if up > 0 else LABEL[1] - 2))  # below the label, or above it
            ends = axis.transData.inverted().transform([(x, y), end])
            axis.plot(ends[:, 0], ends[:, 1], gid="lead")


OVERLAP: Final = 20.0  # cost of a pixel that two labels, or a label and a point, share
ROUNDS: Final = 20  # at most, in which each label may move


def _boxes(place: Floats, label: str) -> Floats:
    """Return the boxes (places, 4) that a label may take: left, bottom, right, top in pixels."""
    width, height = LABEL[0] * len(label), LABEL[1]
    corners = [(right - BEFORE[side] * width, up - 2) for right, up, side in PLACES]
    return np.array([(x, y, x + width, y + height) for x, y in place + np.array(corners)])


def _own_costs(axis: Axes, points: Sequence[Point], places: Floats, labelled: Sequence[int], boxes: Floats) -> Floats:
    """Return what each place costs each label (labels, places), as if it stood alone."""
    frame = np.array(axis.get_window_extent().extents)
    # The later places are the worse ones; those with a line are worse by more.
    costs = np.tile(np.array([3.0 * i + 40.0 * (i >= len(BESIDE)) for i in range(len(PLACES))]), (len(labelled), 1))
    area = (boxes[..., 2] - boxes[..., 0]) * (boxes[..., 3] - boxes[..., 1])
    costs += OVERLAP * (area - _shared(boxes, frame))
    for point, (x, y) in zip(points, places, strict=True):
        costs += OVERLAP * _shared(boxes, np.array([x - 5, y - 5, x + 5, y + 5]))
        ends = axis.transData.transform([(point.x, end) for end in point.interval])[:, 1]
        if np.isfinite(ends).all():
            costs += OVERLAP / 4 * _shared(boxes, np.array([x - 2, ends[0], x + 2, ends[1]]))
    # A label that is nearer to another point would be read as that one's, unless a line leads from it.
    gaps = np.stack([_gap(boxes, place) for place in places])
    for row, i in enumerate(labelled):
        gap = gaps[i, row]
        rival = np.min(np.delete(gaps[:, row], i, axis=0), axis=0, initial=np.inf)
        nearer = np.arange(len(PLACES)) < len(BESIDE)
        costs[row] += 400.0 * (nearer & (rival <= gap)) + 60.0 * (rival <= np.where(nearer, gap + 6, 8))
    return costs


def _gap(boxes: Floats, place: Floats) -> Floats:
    """Return the distance of boxes from a point, 0 within."""
    x, y = place
    right = np.maximum(np.maximum(boxes[..., 0] - x, x - boxes[..., 2]), 0)
    up = np.maximum(np.maximum(boxes[..., 1] - y, y - boxes[..., 3]), 0)
    return np.asarray(np.hypot(right, up), np.float64)


def _shared(boxes: Floats, other: Floats) -> Floats:
    """Return the areas that boxes share with another one."""
    width = np.minimum(boxes[..., 2], other[2]) - np.maximum(boxes[..., 0], other[0])
    height = np.minimum(boxes[..., 3], other[3]) - np.maximum(boxes[..., 1], other[1])
    return np.asarray(np.maximum(width, 0) * np.maximum(height, 0), np.float64)


def _fitting(names: Sequence[str], pixels: float) -> list[str]:
    """Return names that are no wider than this: without the words that all have, then without their middle."""
    short = short_labels(names, int(pixels / LETTER))
    return [short[name] for name in names]
