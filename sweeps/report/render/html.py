"""The report as one page: page.html.j2 with its style and charts inside, no script, nothing fetched from anywhere.

A policy in the head forbids the page every request. An element with a number of ours carries the keys of its trials
(data-trials), their MLflow runs (data-runs), its metric and its cell, says so in its title, and links to the list of
these runs at the end. The template escapes all it prints; only Markup, which we alone write, stands as it is.
"""

from __future__ import annotations

import base64
import itertools
import re
import secrets
from collections.abc import Iterator, Sequence
from typing import Final

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from sweeps.experiment.wording import count
from sweeps.report.render.document import Document, Entry, Figure, Gallery, Section, Table, split_note
from sweeps.results.evidence import Run

LONG: Final = 14  # letters from which the words of a place may be broken into lines
SHOWN: Final = 6  # runs that a title spells out
LARGEST: Final = 3_000_000  # bytes of a page; its pictures are made smaller for it
FOLDED: Final = 40  # rows from which a table is folded
SIGNS: Final = {"good": "✓", "bad": "✗", "open": "?"}


def page(document: Document) -> str:
    """Return the document as HTML."""
    loader = PackageLoader("sweeps.report", "render")
    environment = Environment(loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True,
                              lstrip_blocks=True)  # fmt: skip
    environment.filters["split_note"] = split_note
    pictures = Pictures()
    text = environment.get_template("page.html.j2").render(
        document=document,
        style=Markup(loader.get_source(environment, "page.css")[0]),
        long=LONG,
        folded=FOLDED,
        signs=SIGNS,
        claims_by_state=claims_by_state,
        count=count,
        groups_of_parts=groups_of_parts,
        picture=pictures.place,
        tip=tip,
    )
    return pictures.insert(text.lstrip())


class Pictures:
    """The pictures of a page, which take the room that its text leaves them."""

    def __init__(self) -> None:
        """Begin without pictures; the mark of their places stands in no text."""
        self.mark = secrets.token_hex(16)
        self.figures: list[Figure] = []

    def place(self, figure: Figure) -> Markup:
        """Return a figure's chart as SVG, or the place of its picture."""
        if isinstance(figure.content, bytes):
            self.figures.append(figure)
            return Markup(f"{self.mark}:{len(self.figures) - 1};")
        if isinstance(figure.content, Markup):
            return figure.content
        # Matplotlib takes a second to import: a report that is not drawn does without it.
        from sweeps.report.render.svg import draw

        return draw(figure.content, figure.alt)

    def insert(self, text: str) -> str:
        """Return the text of the page with its pictures."""
        if not self.figures:
            return text
        from sweeps.report.render.pictures import fitted, kind

        contents = [figure.content for figure in self.figures if isinstance(figure.content, bytes)]
        words = sum(len(_image(figure, "image/webp", b"")) for figure in self.figures)
        room = LARGEST - len(text.encode()) - words
        images = [
            _image(figure, kind(content), content) if content is not None else LEFT_OUT
            for figure, content in zip(self.figures, fitted(contents, room * 3 // 4 - 3 * len(contents)), strict=True)
        ]
        return re.sub(f"{self.mark}:(\\d+);", lambda place: str(images[int(place[1])]), text)


LEFT_OUT: Final = Markup('<p class="muted">left out for want of room</p>')


def _image(figure: Figure, kind: str, content: bytes) -> Markup:
    encoded = base64.b64encode(content).decode()
    return Markup('<img alt="{}" src="data:{};base64,{}">').format(figure.alt, kind, encoded)


def groups_of_parts(section: Section) -> Iterator[tuple[bool, list[Table | Gallery]]]:
    """Yield neighbouring parts of a section together, and whether they are narrow enough to share a line."""
    for narrow, parts in itertools.groupby(section.parts, _narrow):
        yield narrow, list(parts)


def _narrow(part: Table | Gallery) -> bool:
    return part.size == "tiny" if isinstance(part, Gallery) else part.columns[-1] == "verdict"


def claims_by_state(rows: Sequence[Sequence[Entry]]) -> dict[str, list[Sequence[Entry]]]:
    """Return the rows of claims that have runs under "", the others by the words in place of a verdict."""
    groups: dict[str, list[Sequence[Entry]]] = {"": []}
    for row in rows:
        verdict = row[3]
        has_runs = verdict.tone != "muted" or verdict.sub
        groups.setdefault("" if has_runs else verdict.text, []).append(row)
    return groups


def tip(runs: Sequence[Run]) -> str:
    """Return the runs behind a number, a line each; where there are many, the first of them."""
    lines = [f"{run.key} {run.trial.label}" + (f", MLflow {run.mlflow}" if run.mlflow else "") for run in runs[:SHOWN]]
    lines += [f"and {len(runs) - SHOWN} more, listed at the end"] if len(runs) > SHOWN else []
    return "\n".join(lines)
