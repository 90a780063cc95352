"""Figures of matplotlib: the jobs' pictures as PNG, a report's charts as SVG that the page's style sheet colours.

A page is light or dark, so its SVG has no colour of its own: every shape carries its artist's gid as its class.
"""

from __future__ import annotations

import contextlib
import io
import itertools
import math
import re
import textwrap
import warnings
from collections.abc import Iterator, Mapping, Sequence
from statistics import fmean
from typing import Any, Final
from xml.etree import ElementTree

import matplotlib
import numpy as np
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from numpy.typing import NDArray

LEARNED, RANDOM, GREY = "#1f6f8b", "#e08e45", "#8a8a8a"
LETTERS: Final = 11  # of a title in an inch
STYLE: Final[dict[Any, object]] = {
    "font.size": 9.0,
    "axes.titlesize": 10.0,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#e6e6e6",
    "grid.linewidth": 0.6,
    "axes.axisbelow": True,
    "text.parse_math": False,
}
# A chart is drawn in CSS pixels: at 72 dots per inch a point is one.
PIXELS: Final = 72
CHART: Final[dict[Any, object]] = {
    "font.size": 11.0,
    "svg.fonttype": "none",
    "svg.hashsalt": "",
    "text.parse_math": False,
}
NOT_XML: Final = re.compile("[^\t\n\r -\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
AUTOMATIC: Final = re.compile(r".*_\d+")  # a name that matplotlib gives
ANCHOR: Final = re.compile(r"text-anchor: (\w+)")
HREF: Final = "{http://www.w3.org/1999/xlink}href"
DECIMALS: Final = re.compile(r"-?\d+\.\d+(e-?\d+)?")


# PNG ----------------------------------------------------------------------------------------------------------


def panels(
    rows: int, columns: int, *, width: float = 2.9, height: float = 2.3, title: str = ""
) -> tuple[Figure, list[list[Axes]]]:
    """Return a figure and its axes (rows, columns), each of this width and height in inches, below a title in lines."""
    lines = textwrap.wrap(title, int(LETTERS * width * columns))
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(width * columns, height * rows + 0.2 * len(lines) + 0.2), layout="constrained")
        FigureCanvasAgg(figure)
        axes = figure.subplots(rows, columns, squeeze=False)
        if title:
            figure.suptitle("\n".join(lines), fontsize=11)
    return figure, axes.tolist()


def grid(
    count: int, *, most: int = 4, width: float = 2.9, height: float = 2.3, title: str = ""
) -> tuple[Figure, list[Axes]]:
    """Return a figure of `count` panels, at most `most` in a row, and their axes in order."""
    columns = min(count, most)
    figure, axes = panels(-(-count // columns), columns, width=width, height=height, title=title)
    flat = [axis for row in axes for axis in row]
    for empty in flat[count:]:
        empty.set_axis_off()
    return figure, flat[:count]


def histogram(
    axis: Axes, values: NDArray[np.floating[Any]], bins: NDArray[np.floating[Any]], colour: str, name: str
) -> None:
    """Add the density of `values` (nan left out) to a panel; one outline, which draws faster than bars.

    A value beyond the bins is counted in the last one on its side: a density without it would be of the others alone.
    """
    known = values[~np.isnan(values)].clip(bins[0], bins[-1])
    axis.hist(known, list(bins), density=True, histtype="stepfilled", alpha=0.65, color=colour, label=name)


def legend(figure: Figure, axis: Axes) -> None:
    """Say below the panels what the colours of one of them mean in all."""
    handles, names = axis.get_legend_handles_labels()
    figure.legend(handles, names, loc="outside lower right", ncols=len(names), frameon=False, fontsize=9)


def spread(values: Sequence[float], gap: float, low: float = -math.inf, high: float = math.inf) -> list[float]:
    """Return values moved as little as possible, in their order, so that no two are nearer than `gap`: for labels.

    None is below `low`, and none above `high` where there is room for all between the two.
    """
    order = sorted(range(len(values)), key=values.__getitem__)
    # Less as many gaps as there are values below it, a value has but to stay no lower than the one below it.
    blocks: list[list[float]] = []
    for rank, place in enumerate(order):
        blocks.append([values[place] - rank * gap])
        while len(blocks) > 1 and fmean(blocks[-2]) > fmean(blocks[-1]):
            upper = blocks.pop()
            blocks[-1] += upper
    levels = [fmean(block) for block in blocks for _ in block]
    highest = high - (len(values) - 1) * gap
    moved = list(values)
    for rank, (place, level) in enumerate(zip(order, levels, strict=True)):
        moved[place] = max(low, min(level, highest)) + rank * gap
    return moved


def png(figure: Figure) -> bytes:
    """Return the figure as PNG, the same bytes for the same figure."""
    sink = io.BytesIO()
    figure.savefig(sink, format="png", dpi=150, metadata={"Software": None})
    return sink.getvalue()


# SVG ----------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def chart(width: int, height: int, left: int, bottom: int, right: int, top: int) -> Iterator[Axes]:
    """Yield axes to draw a chart on; all numbers are CSS pixels, the last four the edges of the axes from below."""
    frame = (left / width, bottom / height, (right - left) / width, (top - bottom) / height)
    with matplotlib.rc_context(CHART), warnings.catch_warnings():
        # Only widths are measured in matplotlib's font; a browser draws the text.
        warnings.filterwarnings("ignore", "Glyph .* missing", UserWarning)
        figure = Figure(figsize=(width / PIXELS, height / PIXELS), dpi=PIXELS)
        axis = figure.add_axes(frame)
        axis.tick_params(length=0, pad=4)
        yield axis


def svg(axis: Axes, title: str, hovers: Mapping[str, Sequence[tuple[str, str]]]) -> Markup:
    """Return a chart as SVG; `title` is what a screen reader says.

    Of matplotlib's drawing it keeps the texts, and the shapes whose artist has a gid, as paths and circles of that
    class. `hovers` has the trials and the title of each shape of a gid, in order. Nothing has an id: a page holds many.
    """
    sink = io.StringIO()
    axis.figure.canvas.print_figure(sink, format="svg", metadata={"Date": None})
    drawn = ElementTree.fromstring(NOT_XML.sub("", sink.getvalue()))
    width, height = (_rounded(number) for number in drawn.attrib["viewBox"].split()[2:])
    size = {"viewBox": f"0 0 {width} {height}", "width": width, "height": height}
    chart = ElementTree.Element("svg", size | {"role": "img", "aria-label": title})
    remaining = {gid: iter(shapes) for gid, shapes in hovers.items()}
    for tag, place, gid, words in _shapes(drawn, "", {}):
        shape = ElementTree.SubElement(chart, tag, place | ({"class": gid} if gid else {}))
        shape.text = words
        if gid in remaining:
            trials, words = next(remaining[gid])
            shape.attrib |= {"data-trials": trials} if trials else {}
            if words:
                ElementTree.SubElement(shape, "title").text = words
    assert not [*itertools.chain(*remaining.values())], "a shape with a title was not drawn"
    return Markup(ElementTree.tostring(chart, encoding="unicode"))


def _shapes(
    element: ElementTree.Element, gid: str, radii: dict[str, str]
) -> Iterator[tuple[str, dict[str, str], str, str | None]]:
    """Yield the texts and named shapes of a drawing in order: tag, place, its artist's gid, words."""
    for child in element:
        tag = child.tag.rpartition("}")[2]
        x, y, path = (_rounded(child.get(name, "")) for name in ("x", "y", "d"))
        if tag == "defs" and len(child):
            # A marker is a circle that is used at several places, by later artists too; its path begins at (0, radius).
            radii[f"#{child[0].get('id')}"] = child[0].get("d", "0 0 0").split()[2]
        elif tag == "g":
            name = child.get("id", gid)
            yield from _shapes(child, "" if AUTOMATIC.fullmatch(name) else name, radii)
        elif tag == "text":
            anchor = ANCHOR.search(child.get("style", ""))
            yield tag, {"x": x, "y": y, "text-anchor": anchor[1] if anchor else "start"}, gid, child.text
        elif tag == "use" and gid:
            yield "circle", {"cx": x, "cy": y, "r": radii[child.attrib[HREF]]}, gid, None
        elif path and gid:
            yield tag, {"d": path}, gid, None


def _rounded(numbers: str) -> str:
    """Return the numbers of an attribute with one decimal."""
    return " ".join(DECIMALS.sub(lambda number: f"{float(number[0]):.1f}".removesuffix(".0"), numbers).split())
