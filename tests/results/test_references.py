"""The page's own question has its row: a cell is compared with the reference that it names, besides the first row."""

import dataclasses
from pathlib import Path

import pytest

from crelu_models.tables import S2
from sweeps.cifar_width import CELLS as WIDTH
from sweeps.experiment.metrics import TOP1
from sweeps.experiment.profiles import scaled
from sweeps.experiment.recipe import ALLCONV
from sweeps.experiment.sweep import Protocol, Sweep
from sweeps.experiment.trial import Cell, Trial
from sweeps.launch import check_references
from sweeps.report.charts import effect_gallery
from sweeps.report.effect_tables import effect_table, effects_of
from sweeps.report.render.chart import Forest
from sweeps.report.tidy import tidy
from sweeps.results.cell_numbers import groups
from sweeps.results.contrasts import Effect, effects
from sweeps.results.evidence import SweepResults, read_sweep
from sweeps.results.statistics import holm
from sweeps.store.ledger import Ledger
from tests.support.sweeps import Made, make

NETS = {"relu": S2, "crelu": S2.crelu(1), "leaky": S2.crelu(1, 2), "elu": S2.crelu(1, 2, 3)}
ERRORS = {"relu": 20.0, "crelu": 15.0, "leaky": 14.0, "elu": 21.0}


def cells(**versus: str) -> tuple[Cell, ...]:
    return tuple(Cell(name, net, "cifar10", ALLCONV, versus=versus.get(name, "")) for name, net in NETS.items())


def trained(folder: Path, declared: tuple[Cell, ...], skipped: str = "") -> SweepResults:
    """Return a sweep of three seeds a cell; the errors of a cell's seeds lie around the one above."""

    def outcome(trial: Trial) -> Made | None:
        name = trial.cell.label
        # Differences of seeds are not equal from cell to cell, so that each comparison has its own p.
        noise = (0.1 + 0.05 * len(name)) * (trial.seed - 1) * (1 if len(name) % 2 else -1)
        return None if name == skipped else Made({TOP1: ERRORS[name] + noise})

    ledger = Ledger(str(folder))
    sweep = Sweep("s", "paper", declared, Protocol(seeds=3))
    make(ledger, sweep, outcome)
    return read_sweep(ledger, sweep.title)


def pairs(rows: list[Effect]) -> list[tuple[str, str]]:
    return [(effect.row.label, effect.reference.label) for effect in rows]


def test_row_is_compared_with_the_first_one_and_with_the_one_it_names(tmp_path: Path) -> None:
    results = trained(tmp_path, cells(leaky="crelu"))
    (group,) = groups(results)
    rows = effects(group)
    assert pairs(rows) == [("crelu", "relu"), ("leaky", "relu"), ("leaky", "crelu"), ("elu", "relu")]
    versus_crelu = rows[2]
    assert versus_crelu.contrast.difference == pytest.approx(-1.0)
    assert versus_crelu.contrast.n == 3
    # Holm counts every comparison that is made, this one too.
    assert [effect.p for effect in rows] == pytest.approx(list(holm([effect.contrast.p for effect in rows])))
    plain = effects(groups(trained(tmp_path / "plain", cells()))[0])
    assert pairs(plain) == [("crelu", "relu"), ("leaky", "relu"), ("elu", "relu")]
    assert max(effect.p / effect.contrast.p for effect in rows) == pytest.approx(4)
    assert max(effect.p / effect.contrast.p for effect in plain) == pytest.approx(3)


def test_no_two_cells_are_compared_twice(tmp_path: Path) -> None:
    (group,) = groups(trained(tmp_path, cells(relu="crelu", crelu="relu", leaky="elu", elu="leaky")))
    assert pairs(effects(group)) == [("crelu", "relu"), ("leaky", "relu"), ("leaky", "elu"), ("elu", "relu")]


def test_reference_without_runs_is_left_out(tmp_path: Path) -> None:
    (group,) = groups(trained(tmp_path, cells(leaky="crelu"), skipped="crelu"))
    assert pairs(effects(group)) == [("leaky", "relu"), ("elu", "relu")]


def test_reference_may_stand_in_another_table(tmp_path: Path) -> None:
    first, second, third, fourth = cells(leaky="crelu", crelu="relu")
    in_print = [dataclasses.replace(cell, table="1", row=cell.label) for cell in (first, second)]
    tables = groups(trained(tmp_path, (*in_print, third, fourth)))
    assert [group.id for group in tables] == ["table-1-cifar10", "cells-cifar10-allconv"]
    assert pairs(effects(tables[0])) == [("crelu", "relu")]
    assert pairs(effects(tables[1])) == [("elu", "leaky"), ("leaky", "crelu")]


def test_table_chart_and_rows_name_the_reference(tmp_path: Path) -> None:
    results = trained(tmp_path, cells(leaky="crelu"))
    ((group, rows),) = effects_of(groups(results))
    table = effect_table(group, rows)
    assert table.columns[:2] == ("", "less")
    assert [(row[0].text, row[1].text) for row in table.rows] == pairs(rows)
    assert "the one beside it" in table.notes[0]
    assert "after Holm over the 4 tests" in table.notes[1]
    (figure,) = effect_gallery(group, rows).figures
    assert isinstance(figure.content, Forest)
    assert [point.label for point in figure.content.points] == ["crelu", "leaky", "leaky − crelu", "elu"]
    lines = tidy(results)["effects"]
    assert [(line["row"], line["reference"]) for line in lines] == pairs(rows)
    # Where all have the same reference, a sentence names it once.
    ((group, rows),) = effects_of(groups(trained(tmp_path / "plain", cells())))
    table = effect_table(group, rows)
    assert "less" not in table.columns
    # Of folds, votes and McNemar, which this table has not, nothing is said.
    assert table.notes == (
        "Each row less relu. Over seeds: paired.",
        "p adjusted after Holm over the 3 tests of this table.",
        "No Wilcoxon p of fewer than 6 pairs: it cannot be below .05.",
    )


def test_cifar_width_answers_its_question() -> None:
    """Does CReLU beat a net of twice the width?"""
    asked = {cell.label: cell.versus for cell in WIDTH if cell.versus}
    assert asked == {"CReLU cifar10": "Double cifar10", "CReLU cifar100": "Double cifar100"}
    small = {cell.label: cell.versus for cell in (scaled(cell, "demo") for cell in WIDTH[:5]) if cell.versus}
    assert small == {"CReLU embedded": "Double embedded"}
    check_references("cifar_width", WIDTH)


@pytest.mark.parametrize(
    ("versus", "why"),
    [("crelus", "did you mean 'crelu'"), ("leaky", "names the cell itself"), ("far", "has other pictures")],
)
def test_reference_that_cannot_be_is_refused(versus: str, why: str) -> None:
    far = Cell("far", S2, "cifar100", ALLCONV)
    with pytest.raises(ValueError, match=why):
        check_references("s", (*cells(leaky=versus), far))
