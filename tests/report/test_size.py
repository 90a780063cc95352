"""A page stays below three megabytes with all analyses and thousands of trials, and says what it leaves out."""

import dataclasses
import io
import re
from functools import cache
from itertools import chain
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from sweeps.experiment.metrics import TOP1
from sweeps.experiment.sweep import Protocol, Sweep
from sweeps.experiment.trial import Trial
from sweeps.imagenet_dropout import PROTOCOL as DROPOUT_PROTOCOL
from sweeps.imagenet_placement import CELLS
from sweeps.report import contents, record_tables
from sweeps.report.charts import JOBS
from sweeps.report.contents import document
from sweeps.report.render.document import Document, Entry, Figure, Gallery, Section, Table
from sweeps.report.render.html import FOLDED, LARGEST, page
from sweeps.report.render.pictures import fitted
from sweeps.report.tidy import tidy
from sweeps.results.analyses import SCHEMA
from sweeps.results.evidence import read_sweep
from sweeps.store.ledger import Ledger
from tests.support.sweeps import Made, make

FIGURES = 2  # pictures of a job


@cache
def picture(seed: int, size: tuple[int, int] = (230, 161)) -> bytes:
    """Return a PNG of noise: as many bytes as a photograph of thrice its width."""
    pixels = np.random.default_rng(seed).integers(0, 256, (*reversed(size), 3), dtype=np.uint8)
    sink = io.BytesIO()
    Image.fromarray(pixels).save(sink, "PNG")
    return sink.getvalue()


@pytest.fixture(scope="module")
def analysed(tmp_path_factory: pytest.TempPathFactory) -> Ledger:
    """Return a ledger of nine placements with every analysis of each, many megabytes of pictures."""
    ledger = Ledger(str(tmp_path_factory.mktemp("analysed") / "ledger"))
    make(ledger, Sweep("imagenet_placement", "paper", CELLS, Protocol(seeds=3)), lambda trial: Made({TOP1: 41.0}))
    for number, cell in enumerate(CELLS):
        for job in JOBS:
            folder = f"trials/{Trial(cell).key}/analysis/{job}"
            names = [f"{job}_{figure}.png" for figure in range(FIGURES)]
            for figure, name in enumerate(names):
                ledger.write(f"{folder}/{name}", picture(10 * number + figure))
            rows = [{"layer": f"conv{layer}", "value": 0.5} for layer in range(12)]
            summary = {"job": job, "schema": SCHEMA, "rows": rows, "files": names, "metrics": {}}
            ledger.write_json(f"{folder}/summary.json", summary)
    return ledger


def test_all_analyses_fit_on_the_page(analysed: Ledger) -> None:
    made = document(analysed, read_sweep(analysed, "imagenet_placement"))
    text = page(made)
    images = re.findall(r'<img alt="([^"]+)" src="data:image/webp;base64,([^"]+)">', text)
    assert sum(len(part.content) for part in _figures(made) if isinstance(part.content, bytes)) > 3 * LARGEST
    assert len(text.encode()) <= LARGEST
    assert len(images) == len(CELLS) * len(JOBS) * FIGURES
    assert min(len(content) for _, content in images) > 5000
    assert "left out for want of room" not in text
    # Nine cells of twelve layers each: the tables of the analyses are folded.
    folded = re.findall(r'<details id="analysis-(\w+)">\n<summary>[^<]+<small>(\d+)', text)
    assert folded == [(job, "108") for job in JOBS]


def _figures(made: Document) -> list[Figure]:
    galleries = [part for section in made.sections for part in section.parts if isinstance(part, Gallery)]
    return [figure for gallery in galleries for figure in gallery.figures]


def test_pictures_that_fit_are_as_they_were() -> None:
    pictures = [picture(seed, (30, 20)) for seed in range(3)]
    assert fitted(pictures, sum(map(len, pictures))) == pictures
    smaller = fitted(pictures, sum(map(len, pictures)) - 1)
    assert smaller != pictures
    for before, after in zip(pictures, smaller, strict=True):
        assert after is not None
        assert len(after) < len(before)
        assert Image.open(io.BytesIO(after)).size == (30, 20)


def test_pictures_without_room_say_so() -> None:
    pictures = [picture(seed) for seed in range(6)]
    least = fitted(pictures, 1)
    assert least == [None] * 6
    room = 3 * max(len(content) for content in fitted(pictures, 10**5) if content is not None)
    some = fitted([*pictures, b"no picture"], room)
    assert some[0] is not None
    assert some[-1] is None
    text = page(Document("t", "", "", (), (Section("s", "S", (), (_gallery([b"no picture" * 10**6]),)),)))
    assert "left out for want of room" in text


def _gallery(pictures: list[bytes]) -> Gallery:
    return Gallery("g", tuple(Figure("f", content, alt="a") for content in pictures), "wide")


@pytest.mark.parametrize(("rows", "folded"), [(FOLDED - 1, False), (FOLDED, True)])
def test_long_tables_are_folded(rows: int, folded: bool) -> None:
    table = Table("costs", "Cost", ("a", "b"), "lr", ((Entry("x"), Entry("1")),) * rows)
    text = page(Document("t", "", "", (), (Section("cost", "Cost", (), (table,)),)))
    assert ('<details id="costs">' in text) is folded


def test_runs_that_the_page_does_not_list_are_in_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ledger = Ledger(str(tmp_path / "ledger"))
    protocol = dataclasses.replace(DROPOUT_PROTOCOL, seeds=2, ablation=True)
    sweep = Sweep("imagenet_dropout", "paper", CELLS[:3], protocol)
    make(ledger, sweep, lambda trial: Made({TOP1: 41.0} if trial.phase == "ablation" else {}))
    results = read_sweep(ledger, sweep.title)
    tested = [run for run in results.runs if run.trial.phase == "ablation"]
    assert (len(tested), len(results.runs)) == (6, 15)

    def page_of(listed: tuple[Table, ...]) -> str:
        return page(Document("t", "", "", (), (Section("runs", "Runs", (), listed, folded=True),)))

    listed_all = page_of(tuple(record_tables.run_tables(results)))
    assert "<details" in listed_all
    each = (len(listed_all) - len(page_of(()))) / len(results.runs)
    assert record_tables.LISTED * each < LARGEST / 2  # the half of the page is for all that is not a list of runs

    def listed(most: int) -> list[list[str]]:
        monkeypatch.setattr(record_tables, "LISTED", most)
        return [[row[0].text for row in table.rows] for table in record_tables.run_tables(results)]

    assert sorted(chain.from_iterable(listed(15))) == sorted(run.key for run in results.runs)
    assert sorted(chain.from_iterable(listed(14))) == sorted(run.key for run in tested)
    assert [len(keys) for keys in listed(5)] == [1, 1, 1]
    assert record_tables.run_tables(results)[0].notes == ("4 further runs of this cell: runs.csv.",)
    assert {line["trial"] for line in tidy(results)["runs"]} == {run.key for run in results.runs}
    monkeypatch.setattr(contents, "CHARTS", 2)
    (section,) = [part for part in document(ledger, results).sections if part.id == "dropout"]
    assert len(section.parts) == 1 + 2
    assert "first 2 cells" in section.chart_words[-1]
