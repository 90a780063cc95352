"""LaTeX has every table of a report in a file of its own, with all the words that its numbers need."""

import dataclasses
import re
from pathlib import Path

import pytest

from sweeps.experiment.metrics import TOP1
from sweeps.experiment.sweep import Protocol, Sweep
from sweeps.report.contents import document
from sweeps.report.render.document import Document, Entry, Gallery, Section, Table
from sweeps.report.render.latex import labels, latex, tex
from sweeps.results.evidence import read_sweep
from sweeps.store.ledger import Ledger
from tests.support.sweeps import BASELINE, CRELU, Made, make


def of(*tables: Table) -> Document:
    """Return a report of these tables."""
    return Document("report", "", "", (), (Section("cells", "Cells", (), tables),))


def named(name: str, number: str, *rows: str) -> Table:
    """Return a table of a data set of this name, with a number in each of its rows."""
    lines = tuple((Entry(row), Entry(number)) for row in rows or (name,))
    return Table(f"cells-{name}-allconv", f"{name}, allconv recipe", ("", "top-1"), "lr", lines)


@pytest.mark.parametrize("names", [("猫", "犬"), ("äpfel", "apfel"), ("a b", "a_b"), ("Cats", "cats"), ("猫", "猫")])
def test_two_tables_never_share_a_file_or_a_label(names: tuple[str, str]) -> None:
    files = latex(of(*(named(name, number) for name, number in zip(names, ("12.50", "40.50"), strict=True))))
    inputs = re.findall(r"\\input\{(.+)\}", files["report.tex"])
    assert [re.findall(r"\d+\.50", files[f"{name}.tex"]) for name in inputs] == [["12.50"], ["40.50"]]
    assert [re.findall(r"\\label\{tab:(.+)\}", files[f"{name}.tex"]) for name in inputs] == [
        [name.removeprefix("tables/")] for name in inputs
    ]
    assert len({name.lower() for name in files}) == 3


def test_label_of_a_table_stays_its_own_whatever_comes_before_it() -> None:
    cats, dogs = labels(["cells-猫", "cells-犬"])
    assert labels(["cells-鳥", "cells-犬", "cells-猫"])[1:] == [dogs, cats]
    assert labels(["Cats", "cats"]) == labels(["cats", "Cats"])[::-1]
    assert labels(["cells-äpfel", "cells-øre", "cells-λ_1"]) == ["cells-apfel", "cells-ore", "cells-lambda-1"]


def test_letters_that_latex_has_are_spelled() -> None:
    assert tex("Łódź, Ærø: ångström, e\u0301té, İ ș") == (
        r"\L{}\'{o}d\'{z}, \AE{}r\o{}: \r{a}ngstr\"{o}m, \'{e}t\'{e}, \.{I} \textcommabelow{s}"
    )
    assert tex("λ → β ≤ 2 µ") == r"$\lambda$ $\rightarrow$ $\beta$ $\leq$ 2 $\mu$"


def test_letters_that_latex_lacks_are_told_apart_the_same_way_in_every_file() -> None:
    cats = named("猫", "12.50", "Baseline 猫", "CReLU 犬", "CReLU 猫2")
    files = latex(of(cats, named("犬", "40.50"), named("a", "1.50")))
    first, second, third = (files[f"{name}.tex"] for name in re.findall(r"\\input\{(.+)\}", files["report.tex"]))
    assert first.startswith("% ?1 stands for 猫\n% ?2 stands for 犬\n% needs")
    assert re.findall(r"^(.+?) & \d", first, re.MULTILINE) == ["Baseline ?$_{1}$", "CReLU ?$_{2}$", "CReLU ?$_{1}$2"]
    assert r"\caption{?$_{2}$, allconv recipe}" in second
    assert second.startswith("% ?2 stands for 犬\n% needs")
    sentence = "A question mark with a number stands for letters that LaTeX cannot print"
    notes = [text[: text.index(r"\end{flushleft}")] for text in (first, second, third)]
    assert [sentence in note for note in notes] == [True, True, False]
    assert "?" not in third
    assert all(text.partition("% needs")[2].isascii() for text in (first, second, third))


def test_one_word_that_latex_lacks_needs_no_number() -> None:
    files = latex(of(named("∅∅", "12.50", "CReLU ∅∅")))
    text = files["tables/cells---allconv.tex"]
    assert "CReLU ? & 12.50" in text
    assert text.startswith("% ? stands for ∅∅\n")
    assert "A question mark stands for letters" in text
    headed = latex(Document("report", "Is 猫 seen?", "", (), ()))["report.tex"]
    assert r"\par\noindent Is ? seen?" in headed
    assert headed.startswith("% ? stands for 猫\n\\documentclass")
    assert headed.endswith("the head of this file names them.\n\\end{document}\n")


def test_words_of_a_section_stand_below_each_of_its_tables_and_once_in_the_report() -> None:
    tables = (named("cats", "12.50"), named("dogs", "40.50")._replace(notes=("Errors in percent.",)))
    charts = Gallery("Curves", (), "small")
    sections = (
        Section("cells", "Cells", ("All 5 seeds count.",), (*tables, charts), chart_words=("Filled: to the end.",)),
        Section("failures", "Failures", ("No training failed.",)),
        Section("curves", "Curves", ("Grey: the first.",), (charts,)),
        Section("runs", "Runs", ("Each run.",)),
    )
    files = latex(Document("report", "", "", (), sections))
    notes = [re.findall(r"smallskip (.+)", files[f"tables/cells-{name}-allconv.tex"]) for name in ("cats", "dogs")]
    assert notes == [["All 5 seeds count."], ["All 5 seeds count.", "Errors in percent."]]
    inputs = ["\\input{tables/cells-cats-allconv}", "\\input{tables/cells-dogs-allconv}"]
    assert files["report.tex"].splitlines()[-4:] == [*inputs, r"\par No training failed.", r"\end{document}"]
    assert not [text for text in files.values() if "Filled" in text or "Grey" in text or "Each run" in text]


def test_tables_of_more_seeds_than_are_declared_say_so(tmp_path: Path) -> None:
    ledger = Ledger(str(tmp_path / "ledger"))
    cells = tuple(dataclasses.replace(cell, table="", row="") for cell in (BASELINE, CRELU))
    for declared, seeds in ((cells[:1], 5), (cells, 2)):
        make(ledger, Sweep("seeds", "paper", declared, Protocol(seeds=seeds)), lambda trial: Made({TOP1: 12.0}))
    report = document(ledger, read_sweep(ledger, "seeds"))
    assert (
        r"\par\smallskip 2 seeds declared, 5 on the ledger of Baseline: all of them count."
        in (latex(report)["tables/cells-cifar10-allconv.tex"])
    )
