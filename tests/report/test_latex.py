"""LaTeX has every table of a report in a file of its own, with all the words that its numbers need."""

import re

import pytest

from sweeps.report.render.document import Document, Entry, Section, Table
from sweeps.report.render.latex import labels, latex, tex


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
    assert r"\section*{Is ? seen?}" in headed
    assert headed.startswith("% ? stands for 猫\n\\documentclass")
    assert headed.endswith("the head of this file names them.\n\\end{document}\n")
