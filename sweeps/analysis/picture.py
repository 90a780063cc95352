"""Figures as PNG bytes: one look for all of them, drawn without a screen."""

from __future__ import annotations

import io
from typing import Any

LEARNED, RANDOM, GREY = "#1f6f8b", "#e08e45", "#8a8a8a"
STYLE = {
    "font.size": 9.0,
    "axes.titlesize": 10.0,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#e6e6e6",
    "grid.linewidth": 0.6,
    "axes.axisbelow": True,
    "legend.frameon": False,
}


def panels(rows: int, columns: int, *, width: float = 2.9, height: float = 2.3, title: str = "") -> tuple[Any, Any]:
    """Return a figure and its axes (rows, columns), each of this width and height in inches."""
    import matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(width * columns, height * rows + 0.4 * bool(title)), layout="constrained")
        FigureCanvasAgg(figure)
        axes = figure.subplots(rows, columns, squeeze=False)
        if title:
            figure.suptitle(title, fontsize=11)
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


def png(figure: Any) -> bytes:
    """Return the figure as PNG, the same bytes for the same figure."""
    sink = io.BytesIO()
    figure.savefig(sink, format="png", dpi=150, metadata={"Software": None})
    return sink.getvalue()
