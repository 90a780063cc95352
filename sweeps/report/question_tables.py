"""The section of a page's questions: how each was decided, its path, and what a fixed design would have cost."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Final

from sweeps.experiment.metrics import Metric
from sweeps.experiment.questions.rule import Decision, Look
from sweeps.experiment.wording import count, plural
from sweeps.report.render.chart import Forest, Point
from sweeps.report.render.document import NONE, Entry, Figure, Gallery, Section, Table, Tone, bounds, signed
from sweeps.results.answers import Answer, Answers
from sweeps.results.statistics import Interval

TONES: Final[dict[Decision, Tone]] = {"for": "good", "against": "bad"}
RULE: Final = (
    "Looked at wave by wave. The intervals of all looks and questions together cover the truth 95 times in 100, where "
    "differences are normal or have heavy tails to both sides; those of one cell with a long tail to one side do not. "
    "'No difference larger than the margin' is decided by two one-sided tests, with a narrower interval."
)


def question_section(answers: Answers | None, metric: Metric) -> Section | None:
    """Return the section of a sweep until decided; None for any other."""
    if answers is None:
        return None
    changed = tuple(f"Not as registered: {change.sentence}." for change in answers.changes)
    words = (*changed, *([f"{answers.saved}."] if answers.saved else []))
    parts: list[Table | Gallery] = [_table(answers, metric)]
    figures = tuple(_path(answer, answers.unit, metric) for answer in answers.answers if answer.trajectory.looks)
    if figures:
        caption = f"Gain of the cell over its rival at each look, with its interval for yes or no; {metric.words}."
        parts.append(Gallery("Paths", figures, "medium", caption))
    return Section("questions", "Questions", words, tuple(parts))


def _table(answers: Answers, metric: Metric) -> Table:
    columns = ("question", "gain", "interval", "margin", "answer", f"{plural(2, answers.unit)} each", "fixed design")
    mark = ("changed",) if answers.changes else ()
    rows = []
    for answer in answers.answers:
        look = _last(answer)
        places = 2
        against = f"{answer.question.cell} over {answer.question.versus}"
        rows.append((
            Entry(answer.question.text, sub=against),
            Entry(signed(look.gain, places) if look is not None else NONE),
            Entry(_bounds(look) if look is not None else NONE),
            Entry(metric.text(answer.question.margin)),
            Entry(answer.words, tone=TONES.get(answer.trajectory.decision, "muted"), sub=", ".join(mark)),
            Entry(f"{answer.pairs}"),
            Entry(f"{answers.most}", tone="muted"),
        ))  # fmt: skip
    gain = f"Gain: {metric.words} of the rival less the cell's, or the other way where higher is better"
    notes = (f"{gain}; above 0 the cell is better.", RULE, *(f"{change.sentence}." for change in answers.changes))
    return Table("questions", "Questions", columns, "lrrrlrr", tuple(rows), notes)


def _last(answer: Answer) -> Look | None:
    return answer.trajectory.looks[-1] if answer.trajectory.looks else None


def _bounds(look: Look) -> str:
    return bounds(Interval(look.low, look.high), 2) if math.isfinite(look.low) else NONE


def _path(answer: Answer, unit: str, metric: Metric) -> Figure:
    """Return the chart of the estimate over the looks."""
    points = []
    for number, look in enumerate(answer.trajectory.looks, 1):
        finite = math.isfinite(look.low)
        decides = number == len(answer.trajectory.looks) and answer.trajectory.decision in ("for", "against", "equal")
        interval = Interval(look.low, look.high) if finite else Interval(math.nan, math.nan)
        points.append(
            Point(
                look.gain,
                count(look.n, unit),
                f"{count(look.n, unit)}: {signed(look.gain, 2)} {_bounds(look)}",
                interval=interval,
                kind="ours" if decides else "open",
            )
        )
    alt = f"{answer.question.text}: gain in {metric.words} by {unit}s"
    return Figure(answer.question.text, Forest(points), alt=alt)


def text_lines(answers: Answers) -> Iterator[str]:
    """Yield the lines that the terminal has of a page's questions."""
    yield from (answer_line(answer, answers.unit) for answer in answers.answers)
    yield from (f"questions not as registered: {change.sentence}" for change in answers.changes)
    if answers.saved:
        yield answers.saved


def answer_line(answer: Answer, unit: str) -> str:
    """Return a question with its answer so far, the number of pairs, and the gain with its interval."""
    look = _last(answer)
    interval = f", gain {signed(look.gain, 2)} {_bounds(look)}" if look is not None else ""
    return f"{answer.question.text}: {answer.words} ({count(answer.pairs, unit)} each{interval})"
