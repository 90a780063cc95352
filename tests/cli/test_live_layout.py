"""The live view on terminals of all sizes: what trains and what failed is seen, and no line wraps or is cut."""

import io
import itertools
import math
import os
import re

import pytest
from rich.cells import cell_len
from rich.console import Console

from sweeps import full_grid, imagenet_placement
from sweeps.cli import live_layout
from sweeps.cli.live_layout import ASCII, BLOCKS, CellRow, RunningTrial, Screen
from sweeps.experiment.wording import short_labels

NINE = tuple(cell.label for cell in imagenet_placement.CELLS)
MANY = tuple(cell.label for cell in full_grid.CELLS)[:62]
EVENT = "19:36:07 CReLU conv1-4 s0: done, 23.45 % error after 8 epochs, 35 s"
HEAD = ("imagenet_placement-demo on embedded: 21/372 done", "2 training", "2 failed", "about 12 min 30 s left",
        "Ray local: 2 CPUs", "0.04 h used")  # fmt: skip
CURVE = (81.0, 44.0, math.nan, 27.5, 25.0)
NUMBER = re.compile(r"22\.00 (±|\+-) 2\.00 \(n 3\)")


def row(label: str, place: int, training: tuple[int, ...] = (), failed: tuple[int, ...] = ()) -> CellRow:
    """Return a row by its place: before place 20 it is done, a trial of each 7 trains."""
    trials = tuple(RunningTrial(f"s{n} d0.25", 3 + place % 5, 8, 1234.0, CURVE) for n in range(training.count(place)))
    done = 6 if place < 20 and not trials and place not in failed else 0
    marks = "diverged 1 failed" if place in failed else ""
    tested = "22.00 ± 2.00 (n 3)" if done else ""
    parts = f"search {done // 2}/3 seeds {done // 2}/3"
    return CellRow(label, parts, done, 6, trials, "23.45" * (done > 0), tested, marks, failed.count(place))


def screen(labels: tuple[str, ...], training: tuple[int, ...], failed: tuple[int, ...], turn: int = 0) -> Screen:
    rows = tuple(row(label, place, training, failed) for place, label in enumerate(labels))
    return Screen(HEAD, rows, (EVENT,) * 9, ("hold-out %", "test error %"), turn)


def drawn(view: Screen, width: int, height: int, encoding: str = "utf-8") -> list[str]:
    """Return the lines that a console of this size shows."""
    sink = io.TextIOWrapper(io.BytesIO(), encoding)
    console = Console(file=sink, width=width, height=height, markup=False, emoji=False, highlight=False)
    console.print(view)
    sink.flush()
    sink.seek(0)
    return sink.read().splitlines()


@pytest.mark.parametrize(
    ("labels", "training", "failed"), [(NINE, (2, 5), (3,)), (MANY, (40, 61), (7,)), (NINE, (), ())]
)
@pytest.mark.parametrize(("width", "height"), [(40, 10), (60, 15), (80, 24), (132, 43), (200, 60)])
def test_what_trains_and_what_failed_is_seen_and_no_line_is_too_long(
    width: int, height: int, labels: tuple[str, ...], training: tuple[int, ...], failed: tuple[int, ...]
) -> None:
    lines = drawn(screen(labels, training, failed), width, height)
    assert len(lines) < height
    assert max(map(cell_len, lines)) <= width
    text = "\n".join(lines)
    names = short_labels(labels, int(0.7 * width))
    for place in (*training, *failed):
        (line,) = (line for line in lines if line.startswith(f"{names[labels[place]]} "))
        assert (f"{3 + place % 5}/8" if place in training else "failed") in line
    # A number is there as a whole or not at all.
    assert len(NUMBER.findall(text)) == text.count("22.")
    assert "21/372 done" in text.replace("…", "") or width < 60
    assert text.count(EVENT) or width < 80


def test_every_cell_of_nine_has_a_line_at_80_by_24_and_one_for_each_of_its_trials() -> None:
    lines = drawn(screen(NINE, (2, 5, 5, 5), (3,)), 80, 24)
    assert [label for label in NINE if any(line.startswith(label) for line in lines)] == list(NINE)
    assert [line.split("d0.25")[0].split()[-1] for line in lines if "d0.25" in line] == ["s0", "s0", "s1", "s2"]


def test_headings_stand_over_their_columns() -> None:
    lines = drawn(screen(NINE, (2,), (3,)), 200, 60)
    heading = next(line for line in lines if line.startswith("cell"))
    line = next(line for line in lines if "d0.25" in line)
    assert heading.index("now") == line.index("s0 d0.25 epoch 5/8")
    assert heading.index("pictures/s") + len("pictures/s") == line.index("1234") + 4
    assert heading.index("curve") == line.index("█▃?▁▁")
    done = next(line for line in lines if "22.00" in line)
    assert heading.index("test error %") + len("test error %") == done.index("(n 3)") + 5


def test_cells_that_have_no_room_are_counted() -> None:
    lines = drawn(screen(MANY, (40,), (7,)), 80, 24)
    names = short_labels(MANY, 56)
    table = [name for name in names.values() if any(line.startswith(f"{name} ") for line in lines)]
    (rest,) = (line for line in lines if line.startswith("and "))
    hidden = int(rest.split()[1])
    assert hidden == 62 - len(table)
    assert sum(int(number) for number, _ in re.findall(r"(\d+) (done|begun|waiting)", rest)) == hidden


def test_more_than_fit_are_shown_in_turns() -> None:
    training = tuple(range(0, 62, 2))
    seen = set[str]()
    pages = [drawn(screen(MANY, training, (), turn), 40, 10) for turn in range(31)]
    for lines in pages:
        assert len(lines) < 10
        assert max(map(cell_len, lines)) <= 40
        seen |= set(lines)
    names = short_labels(MANY, 28)
    assert all(any(f"{names[MANY[place]]} {3 + place % 5}/8" in line for line in seen) for place in training)
    assert pages[0] != pages[1]


def test_terminal_without_blocks_gets_ascii_of_the_same_width() -> None:
    view = screen((*NINE[:-1], "naïve × a word too long for any such narrow terminal"), (2,), (3,))
    for width, height in ((40, 10), (80, 24), (200, 60)):
        lines = drawn(view, width, height, "ascii")
        assert max(map(len, lines)) <= width
        assert len(lines) < height
    assert "22.00 +- 2.00 (n 3)" in "\n".join(lines)
    assert live_layout.levels_of("utf-8", "xterm") == BLOCKS
    assert live_layout.levels_of("ascii", "xterm") == live_layout.levels_of("utf-8", "linux") == ASCII


def test_curve_goes_from_the_least_value_to_the_most_of_the_latest() -> None:
    assert live_layout.sparkline([99.0, 80.0, 40.0, 0.0], 3) == "█▅▁"
    assert live_layout.sparkline([5.0, 5.0], 9) == "▁▁"
    assert live_layout.sparkline([math.nan], 9) == ""
    assert live_layout.sparkline([0.0, 7.0], 9, ASCII) == "_#"


def test_latest_sentences_fold_where_there_is_room_and_are_shortened_where_not() -> None:
    sentences = ("19:00:00 the first one", "19:00:01 a sentence of several words")
    assert live_layout.latest(sentences, 24, 9) == [sentences[0], "19:00:01 a sentence of", "         several words"]
    assert live_layout.latest(sentences, 24, 2) == ["19:00:01 a sentence of", "         several words"]
    assert live_layout.latest(sentences, 24, 1) == ["19:00:01 a sentence of…"]
    assert live_layout.latest(sentences, 24, 0) == []
    # Signs that take two columns are counted as two, and a word that is longer than a line loses nothing.
    assert live_layout.latest([f"19:00:02 {'猫' * 12}"], 24, 9) == ["19:00:02 猫猫猫猫猫猫猫", "         猫猫猫猫猫"]
    assert live_layout.latest(["19:00:03 猫猫猫猫 猫猫猫猫"], 24, 9) == ["19:00:03 猫猫猫猫", "         猫猫猫猫"]


def test_labels_lose_the_words_that_all_have_before_others() -> None:
    labels = ("vgg cifar10 crelu conv1,2 x1", "vgg cifar10 avr conv1,2 x0.5")
    assert short_labels(labels, 40) == dict(zip(labels, labels, strict=True))
    assert [*short_labels(labels, 12).values()] == ["crelu x1", "avr x0.5"]
    assert [*short_labels(("ReLU a long way to x1", "AVR b x2"), 12).values()] == [
        "… way to x1",
        "AVR b x2",
    ]
    # Words that all have stay where two labels would become the same without them.
    assert [*short_labels(("a b", "a b b"), 3).values()] == ["a b", "… b"]


@pytest.mark.parametrize("width", range(40, 201, 3))
def test_no_width_cuts_a_line(width: int) -> None:
    for labels, height in itertools.product((NINE, MANY), (10, 24)):
        lines = list(screen(labels, (2, 5, 5), (3, 4)).lines(width, height))
        assert all(line.cell_len <= width for line in lines)
        assert len(lines) <= height


def test_view_takes_the_size_of_its_console(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(os.environ, "TERM", "linux")
    lines = drawn(screen(NINE, (2,), ()), 200, 60)
    assert any("#" in line and "_" in line for line in lines)
