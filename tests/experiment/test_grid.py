"""A grid makes a cell of each combination of levels; the levels are names, and no part of any key."""

import dataclasses
import json

import pytest

from crelu_models.tables import S2
from sweeps import grid
from sweeps.experiment.recipe import ALLCONV
from sweeps.experiment.trial import Cell, Trial, cell_from_json, cell_to_json


def cell(act: str, width: float) -> Cell:
    return Cell(f"{act} x{width:g}", S2.activation(act, 1, 2).width(width), "cifar10", ALLCONV)


def test_cells_are_the_combinations_in_order_with_their_levels() -> None:
    cells = grid(cell, act=("relu", "crelu"), width=(1.0, 0.5), where=lambda act, width: act == "crelu" or width == 1.0)
    assert [made.label for made in cells] == ["relu x1", "crelu x1", "crelu x0.5"]
    assert cells[1].factors == (("act", "crelu"), ("width", 1.0))
    assert cells[1].net == cell("crelu", 1.0).net


def test_factors_change_no_key_and_outlive_the_ledger() -> None:
    (made,) = grid(cell, act=("relu",), width=(1.0,))
    plain = cell("relu", 1.0)
    assert plain.factors == ()
    assert (made.key, Trial(made).key) == (plain.key, Trial(plain).key)
    assert Trial(made).science() == Trial(plain).science()
    value = json.loads(json.dumps(cell_to_json(made)))
    assert cell_from_json(value) == made
    del value["factors"]  # an older ledger
    assert cell_from_json(value) == dataclasses.replace(made, factors=())
    with pytest.raises(ValueError, match="not a cell"):
        cell_from_json(value | {"factors": [["act", ["relu"]]]})


@pytest.mark.parametrize(
    ("levels", "sentence"),
    [
        ({"act": "relu", "width": (1.0,)}, "the levels of act are several"),
        ({"act": ("relu", "relu"), "width": (1.0,)}, "the factor act has a level twice"),
        ({"act": (), "width": (1.0,)}, "the factor act has no levels"),
        ({"act": ("relu", 1), "width": (1.0,)}, "the levels of act are words or numbers, not both"),
        ({"act": (S2,), "width": (1.0,)}, "a level of act is a word or a number"),
        ({"act": ("relu",), "width": (float("nan"),)}, "a level of width is a word or a number"),
    ],
)
def test_what_is_no_level_is_refused(levels: dict[str, tuple[str, ...]], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        grid(cell, **levels)


def test_an_empty_grid_and_a_function_that_returns_no_cell_are_refused() -> None:
    with pytest.raises(ValueError, match="grid needs a factor"):
        grid(cell)
    with pytest.raises(ValueError, match="where leaves none of the 2 combinations of act, width"):
        grid(cell, act=("relu", "crelu"), width=(1.0,), where=lambda **_: False)
    with pytest.raises(ValueError, match="returns a Cell, not str"):
        grid(lambda act: act, act=("relu",))  # type: ignore[arg-type, return-value]
