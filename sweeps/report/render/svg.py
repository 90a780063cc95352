"""Charts as inline SVG, drawn by hand: no library, no script, colours from the page's style sheet.

Each function takes numbers and returns one <svg>. Coordinates are CSS pixels of a small chart, so that text keeps its
size on a phone. Classes: grid, axis, ours, paper, base, band, open, pick; what they look like is page.py's affair.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from html import escape
from typing import Final, NamedTuple

Scale = Callable[[float], float]
LETTER: Final = 5.6  # pixels of an average letter at the size of a chart's text


class Interval(NamedTuple):
    """One line of a forest chart: a label, a value, the ends of its interval, whether it is decided, its runs."""

    label: str
    value: float
    low: float
    high: float
    decided: bool
    runs: str = ""


class Band(NamedTuple):
    """One curve: values by epoch with the least and the greatest of its runs; `base` draws it behind, in grey."""

    mean: Sequence[float]
    low: Sequence[float]
    high: Sequence[float]
    base: bool = False


class Point(NamedTuple):
    """One point of a scatter chart; `low` and `high` may be nan; kinds: ours, paper, open, pick."""

    label: str
    x: float
    y: float
    low: float = math.nan
    high: float = math.nan
    kind: str = "ours"
    runs: str = ""


def linear(low: float, high: float, start: float, end: float) -> Scale:
    """Return the map of [low, high] to [start, end]."""
    span = (high - low) or 1.0
    return lambda value: start + (value - low) / span * (end - start)


def ticks(low: float, high: float, count: int = 4) -> list[float]:
    """Return about `count` round numbers in [low, high]: steps of 1, 2 or 5 times a power of ten."""
    if not (math.isfinite(low) and math.isfinite(high)) or high <= low:
        return [low]
    rough = (high - low) / count
    unit = 10.0 ** math.floor(math.log10(rough))
    step = unit * min((1, 2, 5, 10), key=lambda factor: abs(math.log(unit * factor / rough)))
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [round(i * step, 10) for i in range(first, last + 1)]


def svg(width: int, height: int, title: str, parts: Iterable[str]) -> str:
    """Return the parts as one chart; `title` is what a screen reader says."""
    body = "".join(parts)
    return (
        f'<svg viewBox="0 0 {width} {height}" width="{width}" height="{height}" role="img" '
        f'aria-label="{escape(title)}">{body}</svg>'
    )


def text(x: float, y: float, words: str, anchor: str = "start", kind: str = "") -> str:
    """Return words at a point."""
    named = f' class="{kind}"' if kind else ""
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}"{named}>{escape(words)}</text>'


def line(x1: float, y1: float, x2: float, y2: float, kind: str) -> str:
    """Return a straight line."""
    return f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" class="{kind}"/>'


def short(words: str, pixels: float) -> str:
    """Return words cut to a width."""
    most = max(1, int(pixels / LETTER))
    return words if len(words) <= most else words[: most - 1] + "…"


def forest(rows: Sequence[Interval], title: str, width: int = 340, left: int = 118) -> str:
    """Draw differences with their intervals around zero, one line each; filled where decided, hollow where open."""
    ends = [end for row in rows for end in (row.low, row.high, row.value) if math.isfinite(end)]
    low, high = min([0.0, *ends]), max([0.0, *ends])
    pad = 0.06 * (high - low or 1.0)
    top, pitch = 8, 21
    bottom = top + pitch * len(rows)
    x = linear(low - pad, high + pad, left + 4, width - 8)
    parts = []
    for tick in ticks(low - pad, high + pad):
        parts += [line(x(tick), top, x(tick), bottom, "grid"), text(x(tick), bottom + 14, signed(tick), "middle")]
    parts.append(line(x(0), top, x(0), bottom, "axis"))
    for i, row in enumerate(rows):
        y = top + pitch * (i + 0.5)
        parts.append(text(left - 6, y + 4, short(row.label, left - 10), "end"))
        kind = "ours" if row.decided else "open"
        if math.isfinite(row.low) and math.isfinite(row.high):
            parts.append(line(x(row.low), y, x(row.high), y, f"{kind} whisker"))
        tip = f"{row.label}: {signed(row.value)}" + (
            f" [{signed(row.low)}, {signed(row.high)}]" if math.isfinite(row.low) else ""
        )
        parts.append(dot(x(row.value), y, 4, kind, tip, row.runs))
    return svg(width, bottom + 20, title, parts)


def dot(x: float, y: float, radius: float, kind: str, tip: str, runs: str = "") -> str:
    """Return a point that says what it is, and of which trials, when asked."""
    named = f' data-trials="{escape(runs)}"' if runs else ""
    return (
        f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{radius:g}" class="{kind}"{named}><title>{escape(tip)}</title></circle>'
    )


def signed(value: float) -> str:
    """Return a number with its sign, zero without."""
    rounded = f"{abs(value):.2f}".rstrip("0").rstrip(".")
    return rounded if not float(rounded) else ("−" if value < 0 else "+") + rounded


def curves(bands: Sequence[Band], low: float, high: float, title: str, runs: str = "") -> str:
    """Draw errors by epoch between `low` and `high` percent, each curve the mean of its runs over their range."""
    width, height, left, top, right, base = 216, 138, 30, 8, 6, 20
    longest = max((len(band.mean) for band in bands), default=1)
    x = linear(1, max(longest, 2), left, width - right)
    y = linear(low, high, height - base, top)
    parts = []
    for tick in ticks(low, high):
        parts += [line(left, y(tick), width - right, y(tick), "grid"), text(left - 4, y(tick) + 4, f"{tick:g}", "end")]
    whole = [tick for tick in ticks(1, longest, 3) if tick >= 1 and tick == int(tick)]
    parts += [text(x(tick), height - 5, f"{tick:g}", "middle") for tick in dict.fromkeys([1, *whole[-2:]])]
    for band in sorted(bands, key=lambda band: not band.base):
        kind = "base" if band.base else "ours"
        # What lies above the chart is left out at the start of a curve, and drawn at its edge later on.
        begin = next((i for i, value in enumerate(band.mean) if value <= high), 0)
        up, middle, down = (
            [(x(i + 1), y(min(value, high))) for i, value in enumerate(line) if i >= begin]
            for line in (band.high, band.mean, band.low)
        )
        if not band.base and list(band.low) != list(band.high):
            parts.append(f'<path d="{_path([*up, *reversed(down)])}Z" class="band"/>')
        named = f' data-trials="{escape(runs)}"' if runs and not band.base else ""
        parts.append(f'<path d="{_path(middle)}" class="{kind} line"{named}/>')
    return svg(width, height, title, parts)


def _path(points: Sequence[tuple[float, float]]) -> str:
    """Return points as path data, thinned to what a chart of this size can show."""
    step = max(1, len(points) // 200)
    kept = list(points[::step]) + ([points[-1]] if (len(points) - 1) % step else [])
    return "M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in kept)


Box = tuple[float, float, float, float]  # left, top, right, bottom
FRAME: Final[Box] = (40.0, 12.0, 330.0, 214.0)  # of the points, in a scatter chart of 344 by 250


def scatter(points: Sequence[Point], across: str, up: str, title: str, logarithmic: bool = False) -> str:
    """Draw points with intervals and labels; labels are put where they cover least."""
    left, top, right, bottom = FRAME
    xs = [point.x for point in points]
    ys = [y for point in points for y in (point.y, point.low, point.high) if math.isfinite(y)]
    squeeze: Scale = (lambda value: math.log10(value)) if logarithmic else (lambda value: value)
    across_pad = 0.08 * (squeeze(max(xs)) - squeeze(min(xs)) or 1.0)
    up_pad = 0.08 * (max(ys) - min(ys) or 1.0)
    squeezed = linear(squeeze(min(xs)) - across_pad, squeeze(max(xs)) + across_pad, left, right)
    y = linear(min(ys) - up_pad, max(ys) + up_pad, bottom, top)
    parts = []
    for tick in ticks(min(ys) - up_pad, max(ys) + up_pad, 5):
        parts += [line(left, y(tick), right, y(tick), "grid"), text(left - 5, y(tick) + 4, f"{tick:g}", "end")]
    last = -math.inf
    for tick in sorted({float(f"{x:.2g}") for x in xs}) if logarithmic else ticks(min(xs), max(xs), 5):
        at = squeezed(squeeze(tick))
        if at - last > 26:
            parts.append(text(at, bottom + 15, f"{tick:g}", "middle"))
            last = at
    parts.append(text((left + right) / 2, bottom + 31, across, "middle", "name"))
    parts.append(text(left, top - 2, up, "start", "name"))
    return svg(344, 250, title, [*parts, *_marked(points, lambda x: squeezed(squeeze(x)), y)])


def _marked(points: Sequence[Point], x: Scale, y: Scale) -> list[str]:
    """Return points, whiskers and labels; a label keeps clear of all that is drawn."""
    parts, taken = [], []
    for point in points:
        at, level = x(point.x), y(point.y)
        taken.append((at - 5, level - 5, at + 5, level + 5))
        if math.isfinite(point.low):
            taken.append((at - 1, y(point.high), at + 1, y(point.low)))
    for point in points:
        at, level = x(point.x), y(point.y)
        if math.isfinite(point.low):
            parts.append(line(at, y(point.low), at, y(point.high), f"{point.kind} whisker"))
        parts.append(dot(at, level, 4, point.kind, f"{point.label}: {point.y:.2f} at {point.x:.3g}", point.runs))
        if point.kind != "paper" and point.label:
            parts.append(_label(point.label, at, level, taken, FRAME))
    return parts


def _label(
    words: str,
    x: float,
    y: float,
    taken: list[Box],
    frame: Box,
) -> str:
    """Return a label beside a point, at the place that overlaps least with what is there and with the frame."""
    wide = LETTER * len(words)
    places = [
        (x + dx, y + dy, anchor)
        for dx, dy, anchor in (
            (8, 4, "start"), (-8, 4, "end"), (0, -9, "middle"), (0, 16, "middle"), (7, -8, "start"),
            (-7, -8, "end"), (7, 15, "start"), (-7, 15, "end"), (8, -20, "start"), (8, 27, "start"),
            (-8, -20, "end"), (-8, 27, "end"),
        )
    ]  # fmt: skip
    boxes = []
    for at, level, anchor in places:
        begin = at - {"start": 0.0, "middle": wide / 2, "end": wide}[anchor]
        boxes.append((begin, level - 10, begin + wide, level + 2))
    costs = [sum(_overlap(box, other) for other in taken) + 50 * _outside(box, frame) for box in boxes]
    best = min(range(len(places)), key=lambda i: costs[i])
    taken.append(boxes[best])
    at, level, anchor = places[best]
    return text(at, level, words, anchor)


def _overlap(a: Box, b: Box) -> float:
    wide, high = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    return max(wide, 0.0) * max(high, 0.0)


def _outside(box: Box, frame: Box) -> float:
    return sum(max(0.0, gap) for gap in (frame[0] - box[0], frame[1] - box[1], box[2] - frame[2], box[3] - frame[3]))


def response(points: Sequence[Point], low: float, high: float, across: tuple[float, float], title: str) -> str:
    """Draw hold-out errors by dropout rate: whole trials filled, pruned ones hollow, the chosen one ringed."""
    width, height, left, top, right, base = 168, 118, 30, 8, 8, 20
    x, y = linear(*across, left + 6, width - right - 4), linear(low, high, height - base - 2, top)
    parts = []
    for tick in ticks(low, high, 3):
        parts += [line(left, y(tick), width - right, y(tick), "grid"), text(left - 4, y(tick) + 4, f"{tick:g}", "end")]
    parts += [text(x(tick), height - 5, f"{tick:g}", "middle") for tick in ticks(*across, 3)]
    for point in sorted(points, key=lambda point: point.kind == "pick"):
        level = y(min(max(point.y, low), high))
        parts.append(dot(x(point.x), level, 5 if point.kind == "pick" else 3, point.kind, point.label, point.runs))
    return svg(width, height, title, parts)
