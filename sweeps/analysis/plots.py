"""Figures as PNG bytes: one look for all of them, drawn without a screen."""

from __future__ import annotations

import io
import textwrap
from typing import Any

LEARNED, RANDOM, GREY = "#1f6f8b", "#e08e45", "#8a8a8a"
LETTERS = 11  # of a title in an inch
STYLE = {
    "font.size": 9.0,
    "axes.titlesize": 10.0,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#e6e6e6",
    "grid.linewidth": 0.6,
    "axes.axisbelow": True,
}


def panels(rows: int, columns: int, *, width: float = 2.9, height: float = 2.3, title: str = "") -> tuple[Any, Any]:
    """Return a figure and its axes (rows, columns), each of this width and height in inches, below a title in lines."""
    import matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    lines = textwrap.wrap(title, int(LETTERS * width * columns))
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(width * columns, height * rows + 0.2 * len(lines) + 0.2), layout="constrained")
        FigureCanvasAgg(figure)
        axes = figure.subplots(rows, columns, squeeze=False)
        if title:
            figure.suptitle("\n".join(lines), fontsize=11)
    return figure, axes


def grid(
    count: int, *, most: int = 4, width: float = 2.9, height: float = 2.3, title: str = ""
) -> tuple[Any, list[Any]]:
    """Return a figure of `count` panels, at most `most` in a row, and their axes in order."""
    columns = min(count, most)
    figure, axes = panels(-(-count // columns), columns, width=width, height=height, title=title)
    flat = list(axes.flat)
    for empty in flat[count:]:
        empty.set_axis_off()
    return figure, flat[:count]


def histogram(axis: Any, values: Any, bins: Any, colour: str, name: str) -> None:
    """Add the density of `values` (NumPy, nan left out) to a panel; one outline, which draws faster than bars."""
    axis.hist(values[values == values], bins, density=True, histtype="stepfilled", alpha=0.65, color=colour, label=name)


def legend(figure: Any, axis: Any) -> None:
    """Say below the panels what the colours of one of them mean in all."""
    handles, names = axis.get_legend_handles_labels()
    figure.legend(handles, names, loc="outside lower right", ncols=len(names), frameon=False, fontsize=9)


def spread(values: list[float], gap: float) -> list[float]:
    """Return values moved upwards where needed, in their order, so that no two are nearer than `gap`: for labels."""
    found, last = list(values), float("-inf")
    for place in sorted(range(len(values)), key=values.__getitem__):
        found[place] = last = max(values[place], last + gap)
    return found


def png(figure: Any) -> bytes:
    """Return the figure as PNG, the same bytes for the same figure."""
    sink = io.BytesIO()
    figure.savefig(sink, format="png", dpi=150, metadata={"Software": None})
    return sink.getvalue()
