"""The tables of a report as LaTeX (booktabs): one document of all, and a file for each, to be put into a paper.

Everything that is written is ASCII: letters with accents, Greek ones and signs are spelled by commands.
"""

from __future__ import annotations

import hashlib
import itertools
import re
import unicodedata
from collections import Counter
from collections.abc import Sequence
from typing import Final

from sweeps.report.render.document import Document, Entry, Table, split_note
from sweeps.report.render.formats import PAGE_ONLY
from sweeps.store.foreign import printable

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
# Other letters and signs that LaTeX prints.
LETTERS: Final = {
    "ß": r"\ss{}", "æ": r"\ae{}", "Æ": r"\AE{}", "œ": r"\oe{}", "Œ": r"\OE{}", "ø": r"\o{}", "Ø": r"\O{}",
    "ł": r"\l{}", "Ł": r"\L{}", "đ": r"\dj{}", "Đ": r"\DJ{}", "ð": r"\dh{}", "Ð": r"\DH{}", "þ": r"\th{}",
    "Þ": r"\TH{}", "ŋ": r"\ng{}", "Ŋ": r"\NG{}", "ı": r"\i{}", "¿": "?`", "¡": "!`", "—": "---", "‘": "`", "’": "'",
    "“": "``", "”": "''", "§": r"\S{}", "£": r"\pounds{}",
    "α": r"$\alpha$", "β": r"$\beta$", "γ": r"$\gamma$", "δ": r"$\delta$", "ε": r"$\varepsilon$", "ζ": r"$\zeta$",
    "η": r"$\eta$", "θ": r"$\theta$", "ι": r"$\iota$", "κ": r"$\kappa$", "λ": r"$\lambda$", "μ": r"$\mu$",
    "ν": r"$\nu$", "ξ": r"$\xi$", "π": r"$\pi$", "ρ": r"$\rho$", "ς": r"$\varsigma$", "σ": r"$\sigma$",
    "τ": r"$\tau$", "υ": r"$\upsilon$", "φ": r"$\varphi$", "χ": r"$\chi$", "ψ": r"$\psi$", "ω": r"$\omega$",
    "Γ": r"$\Gamma$", "Δ": r"$\Delta$", "Θ": r"$\Theta$", "Λ": r"$\Lambda$", "Ξ": r"$\Xi$", "Π": r"$\Pi$",
    "Σ": r"$\Sigma$", "Φ": r"$\Phi$", "Ψ": r"$\Psi$", "Ω": r"$\Omega$",
    "→": r"$\rightarrow$", "←": r"$\leftarrow$", "↔": r"$\leftrightarrow$", "↑": r"$\uparrow$", "↓": r"$\downarrow$",
    "⇒": r"$\Rightarrow$", "≤": r"$\leq$", "≥": r"$\geq$", "≠": r"$\neq$", "≈": r"$\approx$", "∞": r"$\infty$",
    "×": r"$\times$", "÷": r"$\div$", "·": r"$\cdot$", "°": r"$^{\circ}$", "µ": r"$\mu$", "²": "$^2$", "³": "$^3$",
}  # fmt: skip
ACCENTS: Final = {
    "\u0300": "`", "\u0301": "'", "\u0302": "^", "\u0303": "~", "\u0304": "=", "\u0306": "u", "\u0307": ".",
    "\u0308": '"', "\u030a": "r", "\u030b": "H", "\u030c": "v", "\u0323": "d", "\u0326": "textcommabelow",
    "\u0327": "c", "\u0328": "k", "\u0331": "b",
}  # fmt: skip
OTHERS: Final = re.compile(r"[^\x00-\x7f]+")  # letters that LaTeX cannot print, in a text whose others are spelled
END: Final = re.compile(r"\\end\{(flushleft|document)\}")  # of a file's words
LINE: Final = 40  # characters up to which a column of words is not broken into lines


def latex(document: Document) -> dict[str, str]:
    r"""Return report.tex, which compiles as it is, and one file a table, to be put into a paper by \input."""
    sections = [section for section in document.sections if section.id not in PAGE_ONLY]
    names = iter(labels([table.id for section in sections for table in section.tables]))
    lines = [rf"{PREAMBLE}\section*{{{tex(document.title)}}}"]
    lines += [rf"\par\noindent {tex(words)}" for words in (document.question, document.banner) if words]
    files = {"report.tex": ""}
    for section in sections:
        lines += [rf"\par {tex(words)}" for words in section.words if not section.parts]
        for table in section.tables:
            name = next(names)
            # A table may be put into a paper without its section, so it has the section's words itself.
            files[f"tables/{name}.tex"] = latex_table(table._replace(notes=(*section.words, *table.notes)), name)
            lines.append(rf"\input{{tables/{name}}}")
    files["report.tex"] = "\n".join([*lines, r"\end{document}", ""])
    others = list(dict.fromkeys(letters for text in files.values() for letters in OTHERS.findall(text)))
    return {name: _told_apart(text, others) for name, text in files.items()}


def labels(ids: Sequence[str]) -> list[str]:
    """Return the names of tables as files and labels: no sign of LaTeX stands in them, and no two are the same.

    Those that would be the same, in a folder that takes A for a, have a digest of their ids. So none of them becomes
    another table's once there are more tables.
    """
    plain = [_plain(name) for name in ids]
    shared = Counter(name.lower() for name in plain)
    taken: dict[str, str] = {}
    for name, identity in zip(plain, ids, strict=True):
        digest = hashlib.sha256(identity.encode()).hexdigest()[:8]
        first = f"{name}-{digest}" if shared[name.lower()] > 1 else name
        further = (f"{first}-{number}" for number in itertools.count(2))
        label = next(label for label in itertools.chain([first], further) if label.lower() not in taken)
        taken[label.lower()] = label
    return list(taken.values())


def _plain(words: str) -> str:
    """Return words in the letters, digits and hyphens of ASCII: apfel of äpfel, lambda of λ."""
    bare = (letter for letter in unicodedata.normalize("NFD", words) if not unicodedata.combining(letter))
    spelled = (re.sub(r"\W", "", LETTERS[letter]) if letter in LETTERS else letter for letter in bare)
    return re.sub(r"[^A-Za-z0-9-]+", "-", "".join(spelled))


def _told_apart(text: str, others: Sequence[str]) -> str:
    """Return a file with question marks for the letters that LaTeX cannot print, `others` being those of all files.

    Where there are several such words each has its number, the same in every file. Comments at the head of the file
    name them, and a sentence at its end says so.
    """
    found = list(dict.fromkeys(OTHERS.findall(text)))
    if not found:
        return text
    numbers = {letters: str(others.index(letters) + 1) if len(others) > 1 else "" for letters in found}
    comments = "".join(f"% ?{numbers[letters]} stands for {letters}\n" for letters in found)
    signs = {letters: f"?$_{{{number}}}$" if number else "?" for letters, number in numbers.items()}
    mark = "A question mark with a number" if len(others) > 1 else "A question mark"
    note = rf"\par\smallskip {mark} stands for letters that LaTeX cannot print; the head of this file names them."
    written = OTHERS.sub(lambda place: signs[place[0]], text)
    return comments + END.sub(lambda end: f"{note}\n{end[0]}", written)


def latex_table(table: Table, label: str) -> str:
    """Return a table as a booktabs table, as wide as its page at most; notes stand below it."""
    rows = [" & ".join(_tex_entry(entry) for entry in row) + r" \\" for row in table.rows]
    notes = [rf"\par\smallskip {_tex_marks(mark)}{' ' if mark else ''}{tex(words)}"
             for mark, words in map(split_note, table.notes)]  # fmt: skip
    return "\n".join([
        r"% needs booktabs, array, graphicx and \usepackage[T1]{fontenc}",
        r"\begin{table}[htbp]\centering\footnotesize",
        rf"\caption{{{tex(table.title)}}}",
        rf"\label{{tab:{label}}}",
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
    """Return words with LaTeX's signs escaped and other letters spelled; what LaTeX cannot print is left as it is."""
    return "".join(map(_spelled, unicodedata.normalize("NFC", " ".join(printable(words).split()))))


def _spelled(letter: str) -> str:
    if letter in SIGNS or letter in LETTERS:
        return SIGNS.get(letter) or LETTERS[letter]
    base, *accents = tuple(unicodedata.normalize("NFD", letter))
    accent = ACCENTS.get("".join(accents))
    return rf"\{accent}{{{base}}}" if accent and base.isascii() else letter
