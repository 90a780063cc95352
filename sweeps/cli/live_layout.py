"""Layout of the live view: which cells and columns a terminal of some size shows, so that no line wraps or is cut.

Cells that train, and those with a failed trial, are always shown. Others fill the room that is left, and the rest
becomes a count. Where even the first do not fit one a line, several stand on each line; where that does not fit either,
they are shown in turns.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final, Literal, NamedTuple

from crelu_data.streams import in_ascii
from sweeps.experiment.wording import ELLIPSIS, count, short_labels, shortened

if TYPE_CHECKING:
    from rich.console import Console, ConsoleOptions, RenderResult
    from rich.text import Text

LEAST: Final = (40, 10)  # columns and lines below which things are cut
GAP: Final = 2  # spaces between two columns
LABEL_SHARE: Final = 0.7  # of the width, that labels of cells may take before they are shortened
CURVE: Final = 24  # epochs, the latest ones, in the widest curve
EVENTS: Final = 6  # latest sentences below the table
INDENT: Final = " " * 9  # of a sentence's further lines: as wide as its time
BLOCKS: Final = "▁▂▃▄▅▆▇█"
ASCII: Final = "_.:-=+*#"  # levels of a curve where the terminal has no blocks
STYLES: Final = {"training": "", "failed": "red", "done": "bright_black", "waits": "bright_black"}


class RunningTrial(NamedTuple):
    """A trial that trains now: its label, epochs done and planned, pictures a second, and its values by epoch."""

    label: str
    epoch: int
    epochs: int
    speed: float = 0.0  # 0: not known yet
    curve: tuple[float, ...] = ()


class CellRow(NamedTuple):
    """One cell in the view: what is done of its parts, what trains, its best held-out value, its number, marks.

    `over` trials are neither done nor to come: they are skipped, or their search has paused them for good.
    """

    label: str
    parts: str
    done: int
    planned: int
    running: tuple[RunningTrial, ...]
    best: str
    tested: str
    marks: str
    failed: int = 0
    over: int = 0

    @property
    def state(self) -> Literal["training", "failed", "done", "waits"]:
        """Return the state of the cell in a word."""
        if self.running:
            return "training"
        if self.failed:
            return "failed"
        return "done" if self.done + self.over == self.planned else "waits"

    @property
    def is_urgent(self) -> bool:
        """Return whether the cell is always shown."""
        return bool(self.running) or self.failed > 0


def sparkline(values: Sequence[float], width: int, levels: str = BLOCKS) -> str:
    """Return the latest `width` values as a curve of one line, from the least of them to the most."""
    latest = values[-width:]
    finite = [value for value in latest if math.isfinite(value)]
    if not finite:
        return ""
    low, high = min(finite), max(finite)
    scale = (len(levels) - 1) / (high - low) if high > low else 0.0
    return "".join(levels[round((value - low) * scale)] if math.isfinite(value) else "?" for value in latest)


def levels_of(encoding: str, terminal: str) -> str:
    """Return the signs of a curve that a terminal of this encoding and this $TERM can show."""
    return ASCII if terminal in ("linux", "dumb") or not can_encode(BLOCKS, encoding) else BLOCKS


def can_encode(text: str, encoding: str) -> bool:
    """Return whether an encoding has all signs of a text."""
    try:
        text.encode(encoding)
    except (UnicodeEncodeError, LookupError):
        return False
    return True


# Text that fits ------------------------------------------------------------------------------------------------------


def width_of(text: str) -> int:
    """Return how many columns of a terminal a text takes."""
    from rich.cells import cell_len

    return cell_len(text)


def flow(parts: Sequence[str], width: int, separator: str = ", ") -> list[str]:
    """Return parts in lines of at most `width` columns; a part is on one line."""
    lines: list[str] = []
    for part in filter(None, parts):
        longer = f"{lines[-1]}{separator}{part}" if lines else ""
        if lines and width_of(longer) <= width:
            lines[-1] = longer
        else:
            lines.append(shortened(part, width, width_of))
    return lines


def latest(sentences: Sequence[str], width: int, room: int) -> list[str]:
    """Return the latest sentences in at most `room` lines; a sentence that needs more than is left is shortened."""
    lines: list[str] = []
    for sentence in reversed(sentences):
        lines_of = folded(sentence, width)
        if len(lines_of) > 1 and len(lines) + len(lines_of) > room:
            lines_of = [sentence]
        if len(lines) + len(lines_of) > room:
            break
        lines = [*(shortened(line, width, width_of) for line in lines_of), *lines]
    return lines


def folded(sentence: str, width: int) -> list[str]:
    """Return a sentence in lines of at most `width` columns; only a word that is longer than a line is divided."""
    from rich.cells import chop_cells

    lines = [""]
    for word in sentence.split():
        longer = f"{lines[-1]} {word}" if lines[-1].strip() else f"{lines[-1]}{word}"
        if width_of(longer) <= width:
            lines[-1] = longer
        elif width_of(f"{INDENT}{word}") <= width:
            lines.append(f"{INDENT}{word}")
        else:
            lines[-1], *rest = chop_cells(longer, width)
            lines += [f"{INDENT}{piece}" for piece in chop_cells("".join(rest), width - len(INDENT))]
    return lines


# The columns ---------------------------------------------------------------------------------------------------------


class Column(NamedTuple):
    """A column of the table: its forms, each a heading and the cells below it, the widest first; and its side."""

    forms: tuple[tuple[str, ...], ...]
    right: bool = False

    @property
    def is_filled(self) -> bool:
        """Return whether a cell of it has something to show."""
        return any(self.forms[0][1:])

    def width(self, form: int) -> int:
        """Return the width of a form."""
        return max(map(width_of, self.forms[form]))


Line = tuple[CellRow, int | None]  # a row with the trial that its line shows; None: all that train, in short


def columns(lines: Sequence[Line], headings: tuple[str, str], levels: str, names: Mapping[str, str]) -> list[Column]:
    """Return the columns for lines of the table in the order in which they stand; `names` are the cells' labels."""
    firsts = [shown in (None, 0) for _, shown in lines]

    def cells(text: Callable[[CellRow], str]) -> tuple[str, ...]:
        return tuple(text(row) if first else "" for (row, _), first in zip(lines, firsts, strict=True))

    def trials(text: Callable[[RunningTrial], str]) -> tuple[str, ...]:
        return tuple(text(row.running[shown or 0]) if row.running else "" for row, shown in lines)

    def now(text: Callable[[RunningTrial], str]) -> tuple[str, ...]:
        return tuple(
            text(row.running[shown or 0]) + (f" +{len(row.running) - 1}" if shown is None and row.running[1:] else "")
            if row.running
            else row.state
            for row, shown in lines
        )

    forms = [
        ("now", *now(lambda trial: f"{trial.label} epoch {trial.epoch}/{trial.epochs}")),
        ("now", *now(lambda trial: f"{trial.label} {trial.epoch}/{trial.epochs}")),
    ]
    if all(firsts):  # else trials of the same cell stand below each other, and only their labels tell them apart
        forms.append(("now", *now(lambda trial: f"{trial.epoch}/{trial.epochs}")))
    best = cells(lambda row: row.best)
    curves = (trials(lambda trial, size=size: sparkline(trial.curve, size, levels)) for size in (CURVE, 12, 6))  # type: ignore[misc]
    return [
        Column((("cell", *cells(lambda row: names[row.label])),)),
        Column((("done", *cells(lambda row: row.parts)), ("done", *cells(lambda row: f"{row.done}/{row.planned}")))),
        Column(tuple(forms)),
        Column((("pictures/s", *trials(lambda trial: f"{trial.speed:.0f}" if trial.speed else "")),), True),
        Column(tuple(("curve", *curve) for curve in curves)),
        Column(((f"best {headings[0]}", *best), (headings[0], *best)), True),
        Column(((headings[1], *cells(lambda row: row.tested)),), True),
        Column((("marks", *cells(lambda row: row.marks)),)),
    ]


# Places of the columns in the order in which they are given room.
CELL, DONE, NOW, SPEED, CURVES, BEST, TESTED, MARKS = range(8)
PRIORITY: Final = (CELL, NOW, MARKS, TESTED, BEST, DONE, CURVES)


def chosen_forms(table: Sequence[Column], width: int) -> dict[int, int]:
    """Return the form of each column that fits into `width`, by its place.

    Columns get room in the order of PRIORITY, in their narrowest form, those that have something to show first. What
    trains is then named before speeds and empty columns get room. What is left widens all.
    """
    forms: dict[int, int] = {}

    def fits(place: int, form: int) -> bool:
        every = {**forms, place: form}
        return sum(table[place].width(form) for place, form in every.items()) + GAP * (len(every) - 1) <= width

    def add(places: Iterable[int]) -> None:
        for place in places:
            narrowest = len(table[place].forms) - 1
            if place not in forms and (place == CELL or fits(place, narrowest)):
                forms[place] = narrowest

    add(place for place in PRIORITY if table[place].is_filled)
    if forms.get(NOW) == 2 and fits(NOW, 1):
        forms[NOW] = 1
    add((SPEED, *PRIORITY))
    for place in PRIORITY:
        for form in range(forms.get(place, 0)):
            if fits(place, form):
                forms[place] = form
                break
    return forms


# The screen ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Screen:
    """The view of one moment, which lays itself out for the console that it is printed on.

    `head` are the parts of its first lines, `headings` those of the held-out value and of the number, `turn` counts up
    with time, and `height` is 0 for that of the console.
    """

    head: tuple[str, ...]
    rows: tuple[CellRow, ...]
    events: tuple[str, ...]
    headings: tuple[str, str]
    turn: int = 0
    height: int = 0

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """Yield the lines for this console."""
        levels = levels_of(console.encoding, os.environ.get("TERM", ""))
        # One line less than there is: the cursor stands below the view.
        yield from self.lines(options.max_width, (self.height or console.size.height) - 1, levels, console.encoding)

    def lines(self, width: int, height: int, levels: str = BLOCKS, encoding: str = "utf-8") -> Iterator[Text]:
        """Yield at most `height` lines of at most `width` columns, in signs of this encoding."""
        from rich.text import Text

        if not can_encode(ELLIPSIS, encoding):
            for text in self._spelled().lines(width, height, levels):
                yield Text(text.plain.replace(ELLIPSIS, "~"), style=text.style)
            return
        width, height = max(width, LEAST[0]), max(height, LEAST[1] - 1)
        head = flow(self.head, width)[: 2 if height < 16 else 3]
        table = self._table(width, height - len(head) - min(1, len(self.events)), levels)
        yield from (Text(line, style="bold") for line in head)
        yield from table
        for line in latest(self.events[-EVENTS:], width, height - len(head) - len(table)):
            yield Text(line, style="bright_black")

    def _spelled(self) -> Screen:
        """Return the view with its signs spelled in ASCII, which takes other widths."""

        def row(row: CellRow) -> CellRow:
            return row._replace(label=in_ascii(row.label), tested=in_ascii(row.tested), marks=in_ascii(row.marks))

        rows = tuple(map(row, self.rows))
        return replace(self, head=tuple(map(in_ascii, self.head)), rows=rows, events=tuple(map(in_ascii, self.events)))

    def _table(self, width: int, room: int, levels: str) -> list[Text]:
        """Return the cells in at most `room` lines."""
        every: list[Line] = [(row, place) for row in self.rows for place in range(max(1, len(row.running)))]
        if len(every) < room:
            return self._drawn(every, width, levels)
        if len(self.rows) < room:
            return self._drawn([(row, None) for row in self.rows], width, levels)
        urgent = [row for row in self.rows if row.is_urgent]
        if len(urgent) + 2 > room:
            return self._crowded(urgent, width, room)
        # Cells that have begun, then those that are done, then those that wait.
        others = sorted(
            (row for row in self.rows if not row.is_urgent), key=lambda row: (row.done == 0, row.state == "done")
        )
        places = {id(row) for row in [*urgent, *others[: room - 2 - len(urgent)]]}
        shown: list[Line] = [(row, None) for row in self.rows if id(row) in places]
        return [*self._drawn(shown, width, levels), self._rest([row for row in self.rows if id(row) not in places])]

    def _rest(self, hidden: Sequence[CellRow]) -> Text:
        """Return the line that counts the cells that are not shown."""
        from rich.text import Text

        states = [row.state for row in hidden]
        begun = sum(row.state == "waits" and row.done > 0 for row in hidden)
        counts = [("done", states.count("done")), ("begun", begun), ("waiting", states.count("waits") - begun)]
        words = ", ".join(f"{number} {state}" for state, number in counts if number)
        return Text(f"and {count(len(hidden), 'cell')}: {words}", style="bright_black")

    def _crowded(self, urgent: Sequence[CellRow], width: int, room: int) -> list[Text]:
        """Return the urgent cells alone, several on a line, in turns where there are too many."""
        from rich.text import Text

        hidden = [row for row in self.rows if not row.is_urgent]
        room -= bool(hidden)
        names = short_labels([row.label for row in self.rows], int(width * LABEL_SHARE), width_of)
        cell_texts: list[str] = []
        for row in sorted(urgent, key=lambda row: row.failed == 0):
            epochs = " ".join(f"{trial.epoch}/{trial.epochs}" for trial in row.running[:1])
            more = f" +{len(row.running) - 1}" if row.running[1:] else ""
            failed = f"{row.failed} failed" if row.failed else ""
            cell_texts.append(" ".join(filter(None, (names[row.label], epochs + more, failed))))
        lines = flow(cell_texts, width, " | ")
        if len(lines) > room:
            each = room - 1
            pages = math.ceil(len(lines) / each)
            page = self.turn % pages
            lines = [*lines[page * each : (page + 1) * each], f"page {page + 1} of {pages}"]
        return [*map(Text, lines), *([self._rest(hidden)] if hidden else [])]

    def _drawn(self, lines: Sequence[Line], width: int, levels: str) -> list[Text]:
        """Return the heading and the lines of a table, in the columns that fit."""
        from rich.text import Text

        names = short_labels([row.label for row in self.rows], int(width * LABEL_SHARE), width_of)
        table = columns(lines, self.headings, levels, names)
        forms = dict(sorted(chosen_forms(table, width).items()))
        widths = [table[place].width(form) for place, form in forms.items()]
        sides = [table[place].right for place in forms]

        def joined(texts: Sequence[str]) -> str:
            padded = []
            for text, size, right in zip(texts, widths, sides, strict=True):
                space = " " * (size - width_of(text))
                padded.append(space + text if right else text + space)
            return (" " * GAP).join(padded).rstrip()

        styles = ["bold", *(_style(row) for row, _ in lines)]
        return [
            Text(joined([table[place].forms[form][number] for place, form in forms.items()]), style=style)
            for number, style in enumerate(styles)
        ]


def _style(row: CellRow) -> str:
    return "red" if row.failed else STYLES[row.state]
