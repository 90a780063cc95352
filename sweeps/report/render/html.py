"""The report as one page: page.html.j2 with its style and charts inside, no script, nothing fetched from anywhere.

A policy in the head forbids the page every request. An element with a number of ours carries the keys of its trials
(data-trials), their MLflow runs (data-runs), its metric and its cell, says so in its title, and links to the list of
these runs at the end. The template escapes all it prints; only Markup, which we alone write, stands as it is.
"""

from __future__ import annotations

import base64
import itertools
from collections.abc import Iterator, Sequence
from typing import Final

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from sweeps.experiment.wording import count
from sweeps.report.render.document import Document, Entry, Figure, Gallery, Section, Table, split_note
from sweeps.results.evidence import Run

LONG: Final = 14  # letters from which the words of a place may be broken into lines
SHOWN: Final = 6  # runs that a title spells out
SIGNS: Final = {"good": "✓", "bad": "✗", "open": "?"}


def page(document: Document) -> str:
    """Return the document as HTML."""
    loader = PackageLoader("sweeps.report", "render")
    environment = Environment(loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True,
                              lstrip_blocks=True)  # fmt: skip
    environment.filters["split_note"] = split_note
    text = environment.get_template("page.html.j2").render(
        document=document,
        style=Markup(loader.get_source(environment, "page.css")[0]),
        long=LONG,
        signs=SIGNS,
        claims_by_state=claims_by_state,
        count=count,
        groups_of_parts=groups_of_parts,
        picture=picture,
        tip=tip,
    )
    return text.lstrip()


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


def picture(figure: Figure) -> Markup:
    """Return a figure's chart as SVG, or its PNG as an image."""
    if isinstance(figure.content, bytes):
        png = base64.b64encode(figure.content).decode()
        return Markup('<img alt="{}" src="data:image/png;base64,{}">').format(figure.alt, png)
    # Matplotlib takes a second to import: a report that is not drawn does without it.
    from sweeps.report.render.svg import draw

    return draw(figure.content, figure.alt)
