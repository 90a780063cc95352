"""The report as one page: HTML with its style and charts inside, no script, nothing fetched from anywhere.

A policy in the head forbids the page every request. An element with a number of ours carries the keys of its trials
(data-trials), their MLflow runs (data-runs), its metric and its cell, says so in its title, and links to the list of
these runs at the end.
"""

from __future__ import annotations

import base64
import itertools
from collections.abc import Sequence
from html import escape
from typing import Final

from sweeps.report.render.document import Document, Entry, Figure, Gallery, Section, Table, Tile, count
from sweeps.report.render.style import STYLE
from sweeps.results.evidence import Run

POLICY: Final = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"
LONG: Final = 14  # letters from which the words of a place may be broken into lines
SHOWN: Final = 6  # runs that a title spells out
SIGNS: Final = {"good": "✓", "bad": "✗", "open": "?"}


def page(document: Document) -> str:
    """Return the document as HTML."""
    links = "".join(
        f'<a href="#{section.id}">{escape(section.short or section.heading)}</a>' for section in document.sections
    )
    banner = f'<p class="banner">{escape(document.banner)}</p>' if document.banner else ""
    body = "".join(_section(section) for section in document.sections)
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        '<meta name="color-scheme" content="light dark">'
        f"<title>{escape(document.title)}</title><style>{STYLE}</style></head>\n<body><header>"
        f'<p class="kicker">{escape(document.title)}</p><h1>{escape(document.question or document.title)}</h1>'
        f'{banner}<dl class="tiles">{"".join(map(_tile, document.tiles))}</dl></header>\n'
        f'<nav aria-label="Contents">{links}</nav>\n<main>{body}</main></body></html>\n'
    )


def _tile(tile: Tile) -> str:
    sub = f"<dd>{escape(tile.sub)}</dd>" if tile.sub else ""
    return f"<div><dt>{escape(tile.label)}</dt><dd class=big>{escape(tile.value)}</dd>{sub}</div>"


def _section(section: Section) -> str:
    words = "".join(f"<p>{escape(words)}</p>" for words in section.words)
    body = _claims(section) if section.id == "claims" else _parts(section)
    return f'<section id="{section.id}"><h2>{escape(section.heading)}</h2>{words}{body}</section>\n'


def _parts(section: Section) -> str:
    """Return tables and charts in order; neighbouring narrow ones share a line where there is room."""
    said = set(section.tables[0].notes if section.tables else ())
    found = []
    for narrow, parts in itertools.groupby(section.parts, _narrow):
        shown = []
        for part in parts:
            if isinstance(part, Gallery):
                shown.append(f"<div>{_gallery(part)}</div>" if narrow else _gallery(part))
                continue
            # The section's first table explains the marks; the ones below it need not say it again.
            first = part is section.tables[0]
            once = part if first else part._replace(notes=tuple(note for note in part.notes if note not in said))
            shown.append(_table(once, section.folded, bare=part.title == section.heading))
        found.append(f'<div class="panels">{"".join(shown)}</div>' if narrow else "".join(shown))
    return "".join(found)


def _narrow(part: Table | Gallery) -> bool:
    return part.size == "tiny" if isinstance(part, Gallery) else part.columns[-1] == "verdict"


# Claims -------------------------------------------------------------------------------------------------------


def _claims(section: Section) -> str:
    """Return the claims as a list: verdict, sentence, what the paper's numbers say, comparisons when opened."""
    table, *details = section.tables
    by_sentence = {detail.title: detail for detail in details}
    shown: list[str] = []
    idle: dict[str, list[str]] = {}
    for sentence, where, in_print, here, settle in table.rows:
        detail = by_sentence.get(sentence.text)
        inside = f"<details><summary>comparisons</summary>{_table(detail, bare=True)}</details>" if detail else ""
        need = f" To settle it: {escape(settle.text)}." if len(settle.text) > 1 else ""
        sub = f"<small>{escape(here.sub)}</small>" if here.sub else ""
        kept = shown if here.tone != "muted" or here.sub else idle.setdefault(here.text, [])
        kept.append(
            f'<li><p class="verdict {here.tone}"{_data(here)}>{_sign(here)}{escape(here.text)}{sub}</p>'
            f'<div><p class="says">{escape(sentence.text)} <span class="muted">{escape(where.text)}</span></p>'
            f'<p class="muted">The paper’s own numbers: {escape(in_print.text)}.{need}</p>{inside}</div></li>'
        )
    folded = "".join(
        f"<details><summary>{count(len(items), 'claim')} {escape(word)}</summary>"
        f'<ul class="claims">{"".join(items)}</ul></details>'
        for word, items in idle.items()
    )
    return f'<ul class="claims">{"".join(shown)}</ul>{folded}{_notes(table) if shown else ""}'


# Tables -------------------------------------------------------------------------------------------------------


def _table(table: Table, folded: bool = False, bare: bool = False) -> str:
    heads = "".join(
        f'<th colspan="{span}" scope="colgroup">{escape(name)}</th>' if name else "<td></td>"
        for name, span in table.heads
    )
    columns = "".join(
        f'<th scope="col" class="{side}">{escape(name)}</th>'
        for name, side in zip(table.columns, table.align, strict=True)
    )
    rows = "".join(f"<tr>{_row(row, table)}</tr>" for row in table.rows)
    top = f"<tr class=heads>{heads}</tr>" if heads else ""
    inner = (
        f'<div class="scroll" tabindex="0" role="region" aria-label="{escape(table.title)}"><table>'
        f"<thead>{top}<tr>{columns}</tr></thead><tbody>{rows}</tbody></table></div>{_notes(table)}"
    )
    if folded:
        many = f" <small>{len(table.rows)}</small>"
        return f'<details id="{table.id}"><summary>{escape(table.title)}{many}</summary>{inner}</details>'
    if bare:
        return f'<figure class="table">{inner}</figure>'
    return f'<figure class="table" id="{table.id}"><figcaption>{escape(table.title)}</figcaption>{inner}</figure>'


def _row(row: Sequence[Entry], table: Table) -> str:
    first, *others = row
    named = f'<th scope="row"{_class("", first)}{_data(first)}>{_words(first)}</th>'
    return named + "".join(
        f"<td{_class(side, entry)}{_data(entry)}>{_words(entry)}</td>"
        for entry, side in zip(others, table.align[1:], strict=True)
    )


def _class(side: str, entry: Entry) -> str:
    """Return the classes of a place: its side, its tone, and long where its words may be broken into lines."""
    found = [side, entry.tone, "long" if len(entry.text) > LONG else ""]
    return f' class="{" ".join(filter(None, found))}"' if any(found) else ""


def _words(entry: Entry) -> str:
    marks = f"<sup>{escape(','.join(entry.marks))}</sup>" if entry.marks else ""
    sign = _sign(entry)
    text = f'{sign}<span class="word">{escape(entry.text)}</span>' if sign else escape(entry.text)
    if entry.cell:
        text = f'<a href="#cell-{entry.cell}">{text}</a>'
    sub = f" <small>{escape(entry.sub)}</small>" if entry.sub else ""
    return f"{text}{marks}{sub}"


def _sign(entry: Entry) -> str:
    """Return the sign of a verdict, so that none is told by colour alone."""
    worded = entry.text[:1].isalpha() and entry.tone in SIGNS
    return f'<span class="sign" aria-hidden="true">{SIGNS[entry.tone]}</span> ' if worded else ""


def _data(entry: Entry) -> str:
    """Return the attributes that name the runs behind a number."""
    if not entry.runs:
        return ""
    trials = " ".join(run.key for run in entry.runs)
    runs = " ".join(run.mlflow for run in entry.runs if run.mlflow)
    found = f' data-trials="{trials}"' + (f' data-runs="{runs}"' if runs else "")
    found += f' data-metric="{escape(entry.metric)}"' if entry.metric else ""
    return f'{found} title="{escape(_title(entry.runs))}"'


def _title(runs: Sequence[Run]) -> str:
    lines = [f"{run.key} {run.trial.label}" + (f", MLflow {run.mlflow}" if run.mlflow else "") for run in runs[:SHOWN]]
    lines += [f"and {len(runs) - SHOWN} more, listed at the end"] if len(runs) > SHOWN else []
    return "\n".join(lines)


def _notes(table: Table) -> str:
    if not table.notes:
        return ""
    return f'<ul class="notes">{"".join(f"<li>{_note(note)}</li>" for note in table.notes)}</ul>'


def _note(note: str) -> str:
    mark, gap, rest = note.partition("  ")
    return f"<sup>{escape(mark)}</sup> {escape(rest)}" if gap else escape(note)


# Charts -------------------------------------------------------------------------------------------------------


def _gallery(gallery: Gallery) -> str:
    figures = "".join(map(_figure, gallery.figures))
    caption = f'<p class="caption">{escape(gallery.caption)}</p>' if gallery.caption else ""
    return f'<h3>{escape(gallery.title)}</h3>{caption}<div class="gallery {gallery.size}">{figures}</div>'


def _figure(figure: Figure) -> str:
    picture = figure.svg
    if figure.png:
        content = base64.b64encode(figure.png).decode()
        picture = f'<img alt="{escape(figure.title)}" src="data:image/png;base64,{content}">'
    caption = f'<small class="muted">{escape(figure.caption)}</small>' if figure.caption else ""
    return f"<figure><figcaption>{escape(figure.title)} {caption}</figcaption>{picture}</figure>"
