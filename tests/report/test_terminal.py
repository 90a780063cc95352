"""The table of a terminal shows what others wrote as text, without a link or a colour, and cuts no number."""

import dataclasses
import math
import re
from pathlib import Path

import pytest

from sweeps import cifar_width
from sweeps.experiment.metrics import Average, Metric
from sweeps.experiment.plan import plan
from sweeps.experiment.sweep import Protocol, Sweep
from sweeps.report import terminal
from sweeps.report.render.document import MINUS, plain
from sweeps.store.ledger import Ledger
from tests.support.sweeps import BASELINE, as_printed, make, only, unsearched


@pytest.mark.parametrize("label", ["[link=https://evil]Baseline[/link]", "[/bold]", "[red]x", ":skull:"])
@pytest.mark.parametrize("colour", [True, False])
def test_label_is_text_in_the_table(tmp_path: Path, label: str, colour: bool) -> None:
    sweep: Sweep = unsearched("x", (dataclasses.replace(BASELINE, label=label),), Protocol())
    ledger = Ledger(str(tmp_path))
    today = plan(sweep, ledger, {})
    text = terminal.text(today, terminal.lines(today, {}, ledger), 200, colour)
    assert label in text
    assert "\x1b]8" not in text


def test_wide_table_becomes_several_without_a_cut_number(tmp_path: Path) -> None:
    cells = only(cifar_width.CELLS, "cifar10")
    sweep = unsearched("x", cells, Protocol(ablation=False, single=True, folds=10))
    ledger = Ledger(str(tmp_path))
    make(ledger, sweep, as_printed)
    today = plan(sweep, ledger, {})
    baseline, *others = terminal.lines(today, {}, ledger)
    rows = [baseline._replace(lost="1 of 10 folds diverged, 1 of 3 seeds died"), *others]
    columns = terminal.table_columns(today, rows)
    numbers = [column.cells[0] for column in columns[1:-1]]
    for width in (*range(40, 111, 7), 200):
        text = terminal.text(today, rows, width, colour=False)
        assert max(map(len, text.splitlines())) <= width
        shown = [line for line in text.splitlines() if line.startswith("Baseline")]
        # In the columns' order, each of ours before the paper's, below headings of its own.
        assert (
            re.findall(
                r"[\d.]+(?: ±[\d.]+|±[\d.]+)?|-(?= )", " ".join(line[17:] for line in shown).split("1 of")[0] + " "
            )
            == numbers
        )
        headings = [line.split() for line in text.splitlines() if line.startswith("cell ")]
        assert len(headings) == len(shown)
        assert all(words[1] != "paper" for words in headings)
        assert " ".join(re.findall(r"of 10|folds|diverged|seeds|died", text)).startswith("of 10 folds diverged")
    assert len(headings) == 1


@pytest.mark.parametrize(
    ("counts", "words"),
    [([530_000, 982_345, None], ["0.53M", "0.98M", "-"]), ([5123, 12_345], ["0.0051M", "0.0123M"]),
     ([99_999], ["0.100M"]), ([100_000], ["0.10M"]), ([0, None], ["0.00M", "-"])],
)  # fmt: skip
def test_parameters_have_two_digits_of_the_least(counts: list[int | None], words: list[str]) -> None:
    assert terminal._millions(counts) == words


def test_zero_has_no_sign_and_a_bound_below_zero_keeps_it() -> None:
    assert terminal._words(Average(-0.0, math.nan, 1), Metric("test/score", better="higher")) == "0.000"
    assert plain(-0.0, 3) == "0.000"
    assert plain(-0.0004, 3) == f"{MINUS}0.000"
