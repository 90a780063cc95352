"""The tables of a report as Markdown, LaTeX (booktabs), CSV and Parquet.

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

# Sections whose tables are for the page alone: too long to print.
PAGE_ONLY: Final = ("runs",)
BLOCK: Final = re.compile(r"<!-- sweeps:(\S+) (\S+) -->\n(.*?)<!-- /sweeps -->", re.DOTALL)


# Markdown -----------------------------------------------------------------------------------------------------


def markdown(document: Document) -> str:
    """Return the whole report without its charts."""
    lines = [f"# {document.question or document.title}", "", document.title, ""]
    lines += [f"> {document.banner}", ""] if document.banner else []
    lines += [f"- {tile.value} {tile.label}" + (f" ({tile.sub})" if tile.sub else "") for tile in document.tiles] + [""]
    for section in document.sections:
        if section.id in PAGE_ONLY or not (section.tables or section.words):
            continue
        lines += [f"## {section.heading}", "", *(line for words in section.words for line in (words, ""))]
        for table in section.tables:
            lines += [f"### {table.title}", ""] if table.title != section.heading else []
            lines += [f"<!-- sweeps:{document.title} {table.id} -->\n{markdown_table(table)}<!-- /sweeps -->", ""]
    return "\n".join(lines).rstrip() + "\n"


def markdown_table(table: Table) -> str:
    """Return a table as GitHub's Markdown, its notes below it."""
    heads = [name for name, span in table.heads for _ in range(span)] or [""] * len(table.columns)
    columns = [_escape(f"{head} {name}") for head, name in zip(heads, table.columns, strict=True)]
    rule = [{"l": "---", "r": "---:", "c": ":---:"}[side] for side in table.align]
    rows = [[_markdown_entry(entry) for entry in row] for row in table.rows]
    lines = [f"| {' | '.join(row)} |" for row in (columns, rule, *rows)]
    notes = [
        f"- {_superscript(mark)}{' ' if mark else ''}{_escape(words)}" for mark, words in map(split_note, table.notes)
    ]
    return "\n".join([*lines, *(["", *notes] if notes else []), ""])


def _markdown_entry(entry: Entry) -> str:
    return f"{_escape(entry.text)}{_superscript(','.join(entry.marks))} {_escape(entry.sub)}".rstrip()


def _superscript(marks: str) -> str:
    return f"<sup>{marks}</sup>" if marks else ""


def _escape(words: str) -> str:
    return re.sub(r"([\\`*_|<>])", r"\\\1", " ".join(words.split()))


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


# LaTeX --------------------------------------------------------------------------------------------------------

PREAMBLE: Final = r"""\documentclass[10pt]{article}
\usepackage[a4paper,margin=1.8cm]{geometry}
\usepackage[T1]{fontenc}
\usepackage[utf8]{inputenc}
\usepackage{array,booktabs}
\usepackage{graphicx}
\begin{document}
"""
SIGNS: Final = {
    "\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_", "{": r"\{", "}": r"\}",
    "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "<": r"$<$", ">": r"$>$", "±": r"$\pm$", "−": r"$-$",
    "–": "--", "…": r"\dots{}", "|": r"$|$", '"': "''",
}  # fmt: skip
LINE: Final = 40  # characters up to which a column of words is not broken into lines


def latex(document: Document) -> dict[str, str]:
    r"""Return report.tex, which compiles as it is, and one file a table, to be put into a paper by \input."""
    files, inputs = {}, []
    for section in document.sections:
        if section.id in PAGE_ONLY:
            continue
        for table in section.tables:
            name = re.sub(r"[^A-Za-z0-9-]+", "-", table.id)
            files[f"tables/{name}.tex"] = latex_table(table)
            inputs.append(rf"\input{{tables/{name}}}")
    words = "\n".join(inputs)
    heading = rf"\section*{{{tex(document.question or document.title)}}}"
    body = f"{PREAMBLE}{heading}\n\\noindent {tex(document.banner)}\n{words}\n\\end{{document}}\n"
    return {"report.tex": body} | files


def latex_table(table: Table) -> str:
    """Return a table as a booktabs table, as wide as its page at most; notes stand below it."""
    rows = [" & ".join(_tex_entry(entry) for entry in row) + r" \\" for row in table.rows]
    notes = [rf"\par\smallskip {_tex_marks(mark)}{' ' if mark else ''}{tex(words)}"
             for mark, words in map(split_note, table.notes)]  # fmt: skip
    return "\n".join([
        "% needs booktabs, array and graphicx",
        r"\begin{table}[htbp]\centering\footnotesize",
        rf"\caption{{{tex(table.title)}}}",
        rf"\label{{tab:{table.id}}}",
        r"\setlength{\tabcolsep}{4pt}",
        r"\resizebox{\ifdim\width>\linewidth\linewidth\else\width\fi}{!}{%",
        rf"\begin{{tabular}}{{@{{}}{''.join(_column(table, i) for i in range(len(table.columns)))}@{{}}}}",
        r"\toprule",
        *([_tex_heads(table)] if table.heads else []),
        " & ".join(tex(name) for name in table.columns) + r" \\",
        r"\midrule",
        *rows,
        r"\bottomrule",
        r"\end{tabular}}",
        r"\begin{flushleft}\scriptsize",
        *notes,
        r"\end{flushleft}",
        r"\end{table}",
        "",
    ])  # fmt: skip


def _column(table: Table, i: int) -> str:
    """Return the alignment of a column; one of long words is broken into lines."""
    words = [row[i].text for row in table.rows]
    longest = max(map(len, words), default=0)
    if table.align[i] != "l" or longest <= LINE:
        return table.align[i]
    # A name without a space, a digest say, needs all its width: 0.19 cm a letter.
    unbroken = max(len(word) for text in words for word in text.split() or [""])
    wide = max(7.0 if longest > 60 else 4.5, 0.19 * unbroken)
    return rf">{{\raggedright\arraybackslash}}p{{{wide:.1f}cm}}"


def _tex_heads(table: Table) -> str:
    cells, rules, at = [], [], 1
    for name, span in table.heads:
        cells.append(rf"\multicolumn{{{span}}}{{c}}{{{tex(name)}}}" if span > 1 else tex(name))
        rules += [rf"\cmidrule(lr){{{at}-{at + span - 1}}}"] if span > 1 else []
        at += span
    return " & ".join(cells) + r" \\ " + "".join(rules)


def _tex_entry(entry: Entry) -> str:
    text = tex(entry.text) + _tex_marks(",".join(entry.marks))
    sub = rf" {{\tiny {tex(entry.sub)}}}" if entry.sub else ""
    # A row that begins with [ would be read as the argument of the \\ before it.
    return f"{'{}' if entry.text.startswith(('[', '*')) else ''}{text}{sub}"


def _tex_marks(marks: str) -> str:
    return rf"\textsuperscript{{{tex(marks)}}}" if marks else ""


def tex(words: str) -> str:
    """Return words with LaTeX's signs escaped; a letter that it cannot print becomes a question mark."""
    known = "".join(SIGNS.get(letter, letter) for letter in words)
    return "".join(letter if letter.isascii() or letter in "äöüßéèáàñç×°µ²³·" else "?" for letter in known)


# CSV and Parquet ----------------------------------------------------------------------------------------------


def comma_separated(rows: Sequence[Mapping[str, Any]]) -> bytes:
    """Return rows as CSV; a row's missing columns are empty."""
    sink = io.StringIO()
    names = list(dict.fromkeys(name for row in rows for name in row))
    writer = csv.DictWriter(sink, names, lineterminator="\n")
    writer.writeheader()
    for row in rows:
        writer.writerow({name: _flat(value) for name, value in row.items()})
    return sink.getvalue().encode()


def _flat(value: Any) -> Any:
    if isinstance(value, float) and value != value:
        return ""
    return " ".join(value) if isinstance(value, list | tuple) else value


def parquet(rows: Sequence[Mapping[str, Any]], schema: str) -> bytes:
    """Return rows as Parquet with `schema` in its metadata; numbers that are not known are null."""
    known = [{name: _known(value) for name, value in row.items()} for row in rows]
    return tables.parquet(tables.columns_of(known), {"schema": schema})


def _known(value: Any) -> Any:
    return None if isinstance(value, float) and value != value else value
