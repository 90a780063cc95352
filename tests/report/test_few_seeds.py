"""Two seeds and four classes: the report leaves out what so few cannot tell, and says why."""

import dataclasses
from pathlib import Path

import pytest

from crelu_models.tables import S2
from sweeps.experiment.metrics import TOP1, TOP5, telling_metrics
from sweeps.experiment.recipe import ALLCONV
from sweeps.experiment.sweep import AS_WRITTEN, Protocol, Sweep
from sweeps.experiment.trial import Cell, Trial
from sweeps.report.contents import document
from sweeps.report.render.document import Document, Gallery
from sweeps.results.evidence import read_sweep
from sweeps.store.ledger import Ledger
from tests.support.sweeps import BASELINE, Made, make

PICTURES = "synthetic:size=32,classes={},train=96,test=48"
MINE = dataclasses.replace(ALLCONV, name="mine")


def report(folder: Path, seeds: int, classes: int = 4) -> Document:
    """Return the report of two cells: the first has the same error with each seed, the second does not."""
    nets = {"relu": S2, "crelu": S2.crelu(1)}
    cells = tuple(Cell(label, net, PICTURES.format(classes), MINE) for label, net in nets.items())

    def outcome(trial: Trial) -> Made:
        spread = 5.0 * trial.seed * (trial.cell.label == "crelu")
        return Made({TOP1: 20.0 + spread, TOP5: 0.0})

    ledger = Ledger(str(folder / "ledger"))
    make(ledger, Sweep("mine", "paper", cells, Protocol(seeds=seeds)), outcome)
    return document(ledger, read_sweep(ledger, "mine"))


@pytest.mark.parametrize(("classes", "names"), [(5, ("", "top-1")), (6, ("", "top-1", "top-5"))])
def test_top_5_of_five_classes_has_no_column(tmp_path: Path, classes: int, names: tuple[str, ...]) -> None:
    table = report(tmp_path, 2, classes).tables["cells-embedded-mine"]
    assert table.columns[:-1] == names
    assert table.title == "Embedded pictures, recipe 'mine'"
    metrics = {TOP1: 20.0, TOP5: 0.0, "final/test_top5_err_10crop": 0.0}
    kept = telling_metrics({"metrics": metrics, "pictures": {"classes": classes}})
    assert kept == (metrics if classes == 6 else {TOP1: 20.0})


def test_row_of_equal_trainings_says_why_it_has_no_interval(tmp_path: Path) -> None:
    made = report(tmp_path, 2)
    table = made.tables["cells-embedded-mine"]
    assert ["=" in row[1].marks for row in table.rows] == [True, False]
    assert any(note.startswith("=  equal trainings") for note in table.notes)
    (gallery,) = [part for section in made.sections if section.id == "size" for part in section.parts]
    assert isinstance(gallery, Gallery)
    assert gallery.caption.endswith(
        " Without an interval: relu (2 trainings of the same number: their spread is not known)."
    )
    assert "Triangles at the edge: 2 ends of intervals, beyond the frame." in gallery.caption


def test_p_of_equal_differences_is_said_to_be_wilcoxons(tmp_path: Path) -> None:
    ledger = Ledger(str(tmp_path))
    cells = tuple(Cell(label, S2.width(width), PICTURES.format(4), MINE) for label, width in (("one", 1), ("two", 2)))
    sweep = Sweep("mine", "paper", cells, Protocol(seeds=4))
    make(ledger, sweep, lambda trial: Made({TOP1: 20.0 + 3.0 * trial.seed**2 + (trial.cell.label == "two")}))
    table = document(ledger, read_sweep(ledger, "mine")).tables["cells-embedded-mine-effects"]
    assert [entry.text for entry in table.rows[0]][table.columns.index("p (Holm)")] == ".125"  # 2 of 2^4 signs
    said = "No interval where all differences are equal: their spread is not known, and their p is Wilcoxon's."
    assert said in table.notes


@pytest.mark.parametrize("seeds", [5, 6])
def test_wilcoxon_has_no_p_where_it_could_not_be_below_the_level(tmp_path: Path, seeds: int) -> None:
    table = report(tmp_path, seeds).tables["cells-embedded-mine-effects"]
    assert ("Wilcoxon p" in table.columns) is (seeds == 6)
    assert ("No Wilcoxon p of fewer than 6 pairs: it cannot be below .05." in table.notes) is (seeds == 5)


def test_runs_say_of_which_epoch_their_numbers_are(tmp_path: Path) -> None:
    made = report(tmp_path, 2)
    (runs,) = [section for section in made.sections if section.id == "runs"]
    assert runs.tables[0].columns[3:5] == ("test top-1", "hold-out, best epoch")
    assert made.tables["costs"].columns[2] == "time"


def test_profile_of_a_page_without_the_paper_is_shown_as_written() -> None:
    own = Cell("relu", S2, PICTURES.format(4), MINE)
    assert Sweep("mine", "paper", (own,)).scale == AS_WRITTEN
    assert Sweep("mine", "paper", (own, BASELINE)).scale == "paper"
    assert Sweep("mine", "demo", (own,)).scale == "demo"


def test_cell_without_a_result_has_no_row_among_the_effects_and_a_note_says_so(tmp_path: Path) -> None:
    cells = tuple(Cell(f"crelu{n}" if n else "relu", S2.crelu(n) if n else S2, PICTURES.format(10), MINE)
                  for n in range(3))  # fmt: skip
    sweep = Sweep("mine", "paper", cells, Protocol(seeds=2))
    ledger = Ledger(str(tmp_path / "ledger"))
    make(ledger, sweep, lambda trial: Made({TOP1: 20.0 + trial.seed}) if trial.cell.label != "crelu2" else None)
    table = document(ledger, read_sweep(ledger, "mine")).tables["cells-embedded-mine-effects"]
    assert [row[0].text for row in table.rows] == ["crelu1"]
    assert "Cells without a result have no row: crelu2." in table.notes
