"""The tables of a report as Markdown, CSV and Parquet; LaTeX has a module of its own.

In Markdown every table stands between markers, so that it can be pasted into a document and checked there:

    <!-- sweeps:imagenet_placement table-4 -->
    ...
    <!-- /sweeps -->
"""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Mapping, Sequence
from typing import Any, Final

from sweeps.report.render.document import Document, Entry, Table, split_note
from sweeps.store import tables
from sweeps.store.foreign import printable

# Sections whose tables are for the page alone: too long to print.
PAGE_ONLY: Final = ("runs",)
FORMULAS: Final = ("=", "+", "-", "@")  # how a text begins that a spreadsheet takes for a formula
BLOCK: Final = re.compile(r"<!-- sweeps:(\S+) (\S+) -->\n(.*?)<!-- /sweeps -->", re.DOTALL)


# Markdown -----------------------------------------------------------------------------------------------------


def markdown(document: Document) -> str:
    """Return the whole report without its charts."""
    lines = [f"# {prose(document.title)}", ""]
    lines += [prose(document.question), ""] if document.question else []
    lines += [f"> {prose(document.banner)}", ""] if document.banner else []
    lines += [
        f"- {prose(tile.value)} {prose(tile.label)}" + (f" ({prose(tile.sub)})" if tile.sub else "")
        for tile in document.tiles
    ] + [""]
    for section in document.sections:
        if section.id in PAGE_ONLY or not (section.tables or section.words):
            continue
        lines += [f"## {prose(section.heading)}", "", *(line for words in section.words for line in (prose(words), ""))]
        for table in section.tables:
            lines += [f"### {prose(table.title)}", ""] if table.title != section.heading else []
            marker = f"<!-- sweeps:{_marker(document.title)} {_marker(table.id)} -->"
            lines += [f"{marker}\n{markdown_table(table)}<!-- /sweeps -->", ""]
    return "\n".join(lines).rstrip() + "\n"


def markdown_table(table: Table) -> str:
    """Return a table as GitHub's Markdown, its notes below it."""
    heads = [name for name, span in table.heads for _ in range(span)] or [""] * len(table.columns)
    columns = [escaped(f"{head} {name}") for head, name in zip(heads, table.columns, strict=True)]
    rule = [{"l": "---", "r": "---:", "c": ":---:"}[side] for side in table.align]
    rows = [[markdown_entry(entry) for entry in row] for row in table.rows]
    lines = [f"| {' | '.join(row)} |" for row in (columns, rule, *rows)]
    notes = [markdown_note(note) for note in table.notes]
    return "\n".join([*lines, *(["", *notes] if notes else []), ""])


def markdown_note(note: str) -> str:
    """Return a note below a table as a point of a list, the mark that it explains raised."""
    mark, words = split_note(note)
    return f"- {_superscript(mark)}{' ' if mark else ''}{escaped(words)}"


def markdown_entry(entry: Entry) -> str:
    """Return a place of a table with its marks raised."""
    return f"{escaped(entry.text)}{_superscript(','.join(entry.marks))} {escaped(entry.sub)}".rstrip()


def _superscript(marks: str) -> str:
    return f"<sup>{escaped(marks)}</sup>" if marks else ""


def _marker(words: str) -> str:
    """Return words as part of a marker, which is a comment of HTML: nothing in them ends it."""
    return re.sub(r"[^\w.=,+@-]+", "_", words).replace("--", "-_")


def escaped(words: str) -> str:
    """Return words as a place of a table: no markup in them is markup, and no link is one."""
    return re.sub(r"([\\`*_|<>]|\](?=[(\[:]))", r"\\\1", " ".join(printable(words).split()))


def prose(words: str) -> str:
    """Return words as a line of Markdown; in them an underscore between letters is no markup, and stays as it is."""
    line = re.sub(r"([\\`*<>]|\](?=[(\[:])|(?<!\w)_|_(?!\w))", r"\\\1", " ".join(printable(words).split()))
    numbered = re.match(r"\d+(?=[.)](\s|$))", line)
    if numbered:
        return f"{numbered[0]}\\{line[numbered.end() :]}"
    return f"\\{line}" if line.startswith(("#", ">", "+", "=", "~", "-")) else line


def blocks(text: str) -> list[tuple[str, str, str]]:
    """Return (sweep, table, content) of every marked table in a document; ValueError for a marker without its end."""
    marked = BLOCK.findall(text)
    if len(marked) != text.count("<!-- sweeps:"):
        raise ValueError("a marker <!-- sweeps:SWEEP TABLE --> is not followed by its <!-- /sweeps -->")
    return [(sweep, table, content) for sweep, table, content in marked]


def same(ours: str, theirs: str) -> bool:
    """Tell whether two Markdown tables are equal but for the padding of their columns."""
    return _bare(ours) == _bare(theirs)


def _bare(text: str) -> list[str]:
    lines = (re.sub(r":?-{3,}:?", "---", re.sub(r"\s+", " ", line.strip())) for line in text.splitlines())
    return [re.sub(r" ?\| ?", "|", line) for line in lines if line]


# CSV and Parquet ----------------------------------------------------------------------------------------------


def comma_separated(rows: Sequence[Mapping[str, Any]]) -> bytes:
    """Return rows as CSV; a row's missing columns are empty."""
    sink = io.StringIO()
    names = list(dict.fromkeys(name for row in rows for name in row))
    writer = csv.DictWriter(sink, names, lineterminator="\n")
    writer.writerow({name: _flat(name) for name in names})
    for row in rows:
        writer.writerow({name: _flat(value) for name, value in row.items()})
    return sink.getvalue().encode()


def _flat(value: Any) -> Any:
    """Return a value as it stands in CSV. A text that a spreadsheet would compute is led by an apostrophe."""
    if isinstance(value, float) and value != value:
        return ""
    text = " ".join(map(str, value)) if isinstance(value, list | tuple) else value
    if not isinstance(text, str):
        return text
    text = printable(text)
    return f"'{text}" if text.lstrip().startswith(FORMULAS) or text.startswith(("\t", "\n")) else text


def parquet(rows: Sequence[Mapping[str, Any]], schema: str) -> bytes:
    """Return rows as Parquet with `schema` in its metadata; numbers that are not known are null."""
    known = [{name: _known(value) for name, value in row.items()} for row in rows]
    return tables.parquet(tables.columns_of(known), {"schema": schema})


def _known(value: Any) -> Any:
    return None if isinstance(value, float) and value != value else value
