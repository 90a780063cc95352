"""The section of a page's questions: how each was decided, its path, and what a fixed design would have cost."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Final

from sweeps.experiment.metrics import Metric, decimals
from sweeps.experiment.questions.rule import Decision, Look
from sweeps.experiment.wording import count, plural
from sweeps.report.render.chart import Forest, Point
from sweeps.report.render.document import NONE, Entry, Figure, Gallery, Section, Table, Tone, bounds, signed
from sweeps.results.answers import Answer, Answers
from sweeps.results.statistics import Interval

TONES: Final[dict[Decision, Tone]] = {"for": "good", "against": "bad"}
RULE: Final = (
    "Looked at wave by wave. Of 100 such sweeps at most 5 give any wrong answer, where differences are normal or have "
    "heavy tails to both sides; more do where one cell has a long tail to one side. An interval is that which decides "
    "yes or no at its look. It is narrower once other questions are decided, so all intervals together may cover the "
    "truth less often than 95 times in 100. 'No difference larger than the margin' is decided by two one-sided tests, "
    "with a narrower interval."
)


def question_section(answers: Answers | None) -> Section | None:
    """Return the section of a sweep until decided; None for any other."""
    if answers is None:
        return None
    changed = tuple(f"Not as registered: {change.sentence}." for change in answers.changes)
    words = (*changed, *([f"{answers.saved}."] if answers.saved else []))
    parts: list[Table | Gallery] = [_table(answers)]
    figures = tuple(_path(answer, answers) for answer in answers.answers if answer.trajectory.looks)
    if figures:
        caption = (
            f"Gain of the cell over its rival at each look, with its interval for yes or no; {answers.metric.words}."
        )
        parts.append(Gallery("Paths", figures, "medium", caption))
    return Section("questions", "Questions", words, tuple(parts))


def _table(answers: Answers) -> Table:
    columns = ("question", "gain", "interval", "margin", "answer", f"{plural(2, answers.unit)} each", "fixed design")
    metric = answers.metric
    changed = "changed" if answers.changes else ""
    rows = []
    for answer in answers.answers:
        look = _last(answer)
        places = _places(answer, metric)
        tone = TONES.get(answer.decision, "muted")
        against = f"{answer.question.cell} over {answer.question.versus}"
        rows.append((
            Entry(answer.question.text, sub=against),
            Entry(signed(look.gain, places) if look is not None else NONE),
            Entry(_bounds(look, places) if look is not None else NONE),
            Entry(metric.text(answer.question.margin)),
            Entry(answer.words, ", ".join(filter(None, (changed, answer.warning))), tone),
            Entry(f"{answer.pairs}"),
            Entry(f"{answers.most}", tone="muted"),
        ))  # fmt: skip
    gain = f"Gain: {metric.words} of the rival less the cell's, or the other way where higher is better"
    notes = (f"{gain}; above 0 the cell is better.", RULE, *(f"{change.sentence}." for change in answers.changes))
    return Table("questions", "Questions", columns, "lrrrlrr", tuple(rows), notes)


def _last(answer: Answer) -> Look | None:
    return answer.trajectory.looks[-1] if answer.trajectory.looks else None


def _places(answer: Answer, metric: Metric) -> int:
    """Return with how many decimals a gain is written: as many as the margin that it is compared with."""
    return decimals(answer.question.margin) if metric.is_own else 2


def _bounds(look: Look, places: int) -> str:
    return bounds(Interval(look.low, look.high), places) if math.isfinite(look.low) else NONE


def _path(answer: Answer, answers: Answers) -> Figure:
    """Return the chart of the estimate over the looks."""
    unit = answers.unit
    places = _places(answer, answers.metric)
    points = []
    for number, look in enumerate(answer.trajectory.looks, 1):
        finite = math.isfinite(look.low)
        decides = number == len(answer.trajectory.looks) and answer.trajectory.is_decided
        interval = Interval(look.low, look.high) if finite else Interval(math.nan, math.nan)
        points.append(
            Point(
                look.gain,
                count(look.n, unit),
                f"{count(look.n, unit)}: {signed(look.gain, places)} {_bounds(look, places)}",
                interval=interval,
                kind="ours" if decides else "open",
            )
        )
    alt = f"{answer.question.text}: gain in {answers.metric.words} by {unit}s"
    return Figure(answer.question.text, Forest(points), alt=alt)


def text_lines(answers: Answers) -> Iterator[str]:
    """Yield the lines that the terminal has of a page's questions."""
    yield from (answer_line(answer, answers) for answer in answers.answers)
    yield from (f"questions not as registered: {change.sentence}" for change in answers.changes)
    if answers.saved:
        yield answers.saved


def answer_line(answer: Answer, answers: Answers) -> str:
    """Return a question with its answer so far, the number of pairs, and the gain with its interval."""
    look = _last(answer)
    places = _places(answer, answers.metric)
    interval = f", gain {signed(look.gain, places)} {_bounds(look, places)}" if look is not None else ""
    warning = f"; {answer.warning}" if answer.warning else ""
    return f"{answer.question.text}: {answer.words} ({count(answer.pairs, answers.unit)} each{interval}){warning}"
