"""Document of a report, before it is a page, Markdown or LaTeX: sections of tables, charts and words."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final, Literal, NamedTuple

from markupsafe import Markup

from sweeps.report.render.chart import Chart
from sweeps.results.evidence import Run
from sweeps.results.statistics import Interval

Tone = Literal["", "paper", "muted", "good", "bad", "open"]
TONES: Final[dict[str, Tone]] = {
    "reproduced": "good",
    "supported": "good",
    "differs": "bad",
    "contradicted": "bad",
    "inconclusive": "open",
}
MINUS: Final = "−"
NONE: Final = "–"


class Entry(NamedTuple):
    """One place of a table: its text, a smaller second line, its marks, and the runs that the number is of.

    `cell` is the key of the cell whose runs these are, `metric` the name the number has on them. `link` is the
    address of another page of ours.
    """

    text: str
    sub: str = ""
    tone: Tone = ""
    marks: tuple[str, ...] = ()
    runs: tuple[Run, ...] = ()
    cell: str = ""
    metric: str = ""
    link: str = ""


class Table(NamedTuple):
    """A table with its notes; `align` has l, r or c for each column, `heads` what spans several of them."""

    id: str
    title: str
    columns: tuple[str, ...]
    align: str
    rows: tuple[tuple[Entry, ...], ...]
    notes: tuple[str, ...] = ()
    heads: tuple[tuple[str, int], ...] = ()

    def without_empty_columns(self) -> Table:
        """Return the table without the columns that have nothing in any row, the t of votes say; it has no heads."""
        used = [i for i in range(len(self.columns)) if any(row[i].text != NONE for row in self.rows)]
        return self._replace(
            columns=tuple(self.columns[i] for i in used),
            align="".join(self.align[i] for i in used),
            rows=tuple(tuple(row[i] for i in used) for row in self.rows),
        )


class Figure(NamedTuple):
    """A chart, drawn as SVG or not, or a picture as PNG; with the title and caption above it.

    `alt` is what a screen reader says.
    """

    title: str
    content: Chart | Markup | bytes
    caption: str = ""
    alt: str = ""


class Gallery(NamedTuple):
    """Charts that belong together; `size` says how wide one is."""

    title: str
    figures: tuple[Figure, ...]
    size: Literal["tiny", "small", "medium", "wide"]
    caption: str = ""


@dataclass(frozen=True)
class Section:
    """One section: its anchor, heading (`short` in lists), words, tables and charts, in the order they are shown.

    `words` are needed to read its numbers, so each format has them; `chart_words` speak of charts and pictures alone.
    """

    id: str
    heading: str
    words: tuple[str, ...] = ()
    parts: tuple[Table | Gallery, ...] = ()
    folded: bool = False
    short: str = ""
    chart_words: tuple[str, ...] = ()

    @property
    def tables(self) -> tuple[Table, ...]:
        """Return the tables alone."""
        return tuple(part for part in self.parts if isinstance(part, Table))


class Tile(NamedTuple):
    """A number at the head of the report."""

    value: str
    label: str
    sub: str = ""


@dataclass(frozen=True)
class Document:
    """A whole report of one sweep."""

    title: str
    question: str
    banner: str
    tiles: tuple[Tile, ...]
    sections: tuple[Section, ...]

    @property
    def tables(self) -> dict[str, Table]:
        """Return the tables by id."""
        return {table.id: table for section in self.sections for table in section.tables}


# Numbers as words ---------------------------------------------------------------------------------------------


def plain(value: float, digits: int = 2) -> str:
    """Return a number with a true minus, a dash where it is not one; a bound just below zero keeps its minus."""
    return f"{value + 0.0:.{digits}f}".replace("-", MINUS) if math.isfinite(value) else NONE  # -0.0 + 0.0 is 0.0


def signed(value: float, digits: int = 2) -> str:
    """Return a difference with its sign, zero without one."""
    if not math.isfinite(value):
        return NONE
    words = f"{abs(value):.{digits}f}"
    return words if not float(words) else (MINUS if value < 0 else "+") + words


def bounds(interval: Interval, digits: int = 2) -> str:
    """Return an interval in brackets, a dash where it is not known."""
    if not (math.isfinite(interval.low) and math.isfinite(interval.high)):
        return NONE
    return f"[{plain(interval.low, digits)}, {plain(interval.high, digits)}]"


def chance(p: float) -> str:
    """Return a p value as it is printed: three digits, no leading zero."""
    if not math.isfinite(p):
        return NONE
    return "< .001" if p < 0.001 else "1" if p > 0.9995 else f"{p:.3f}".lstrip("0")


def duration(hours: float) -> str:
    """Return hours as hours, minutes or seconds, whichever reads best."""
    if not math.isfinite(hours):
        return NONE
    if hours >= 1:
        return f"{hours:,.1f} h" if hours < 100 else f"{hours:,.0f} h"
    return f"{60 * hours:.1f} min" if hours >= 1 / 60 else f"{3600 * hours:.0f} s"


def split_note(note: str) -> tuple[str, str]:
    """Return the mark that a note explains (empty for a note on the table), and its words."""
    mark, gap, words = note.partition("  ")
    return (mark, words) if gap else ("", note)
