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
from sweeps.store.foreign import printable

# Sections whose tables are for the page alone: too long to print.
PAGE_ONLY: Final = ("runs",)
BLOCK: Final = re.compile(r"<!-- sweeps:(\S+) (\S+) -->\n(.*?)<!-- /sweeps -->", re.DOTALL)


# Markdown -----------------------------------------------------------------------------------------------------


def markdown(document: Document) -> str:
    """Return the whole report without its charts."""
    lines = [f"# {prose(document.question or document.title)}", "", prose(document.title), ""]
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
FORMULAS: Final = ("=", "+", "-", "@")  # how a text begins that a spreadsheet takes for a formula
LINE: Final = 40  # characters up to which a column of words is not broken into lines


def latex(document: Document) -> dict[str, str]:
    r"""Return report.tex, which compiles as it is, and one file a table, to be put into a paper by \input."""
    files = {}
    inputs = []
    for section in document.sections:
        if section.id in PAGE_ONLY:
            continue
        for table in section.tables:
            name = _label(table.id)
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
        rf"\label{{tab:{_label(table.id)}}}",
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


def _label(words: str) -> str:
    """Return words as the name of a file or a label, in which no sign of LaTeX stands."""
    return re.sub(r"[^A-Za-z0-9-]+", "-", words)


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
    cells = []
    rules = []
    column = 1
    for name, span in table.heads:
        cells.append(rf"\multicolumn{{{span}}}{{c}}{{{tex(name)}}}" if span > 1 else tex(name))
        rules += [rf"\cmidrule(lr){{{column}-{column + span - 1}}}"] if span > 1 else []
        column += span
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
    known = "".join(SIGNS.get(letter, letter) for letter in " ".join(printable(words).split()))
    return "".join(letter if letter.isascii() or letter in "äöüßéèáàñç×°µ²³·" else "?" for letter in known)


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
