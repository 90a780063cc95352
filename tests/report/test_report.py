"""A report traces every number to its runs, asks nothing of the network, and says the same in every format."""

import argparse
import cProfile
import csv
import dataclasses
import hashlib
import html
import io
import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from sweeps.cifar_vgg import CELLS as VGG_CELLS
from sweeps.cifar_vgg import PROTOCOL as VGG_PROTOCOL
from sweeps.experiment.metrics import AVERAGE, PARAMETERS, PERCENT, TOP1, VOTE, Metric
from sweeps.experiment.profiles import scaled
from sweeps.experiment.search import Search
from sweeps.experiment.sweep import Protocol, Sweep
from sweeps.experiment.trial import Cell, Trial
from sweeps.imagenet_dropout import PROTOCOL as DROPOUT_PROTOCOL
from sweeps.imagenet_placement import CELLS as PLACEMENTS
from sweeps.report import build
from sweeps.report.contents import document
from sweeps.report.record_tables import chosen_table
from sweeps.report.render.document import Document, Table, plain
from sweeps.report.render.formats import markdown_table
from sweeps.report.render.latex import latex_table, tex
from sweeps.report.tidy import tidy
from sweeps.results import paper
from sweeps.results.evidence import read_sweep, titles
from sweeps.results.paper import COLUMNS
from sweeps.store.ledger import Ledger
from tests.support.sweeps import BASELINE, Made, as_printed, make, run_id, scores, unsearched

VGG = unsearched("cifar_vgg", VGG_CELLS, VGG_PROTOCOL)
PLACEMENT = Sweep("imagenet_placement", "paper", PLACEMENTS, Protocol(seeds=3))
DEMO = Sweep("imagenet_placement", "demo", tuple(scaled(cell, "demo") for cell in PLACEMENTS), Protocol())
DROPOUT = Sweep("imagenet_dropout", "paper", PLACEMENTS, DROPOUT_PROTOCOL)
PICTURES = 600
ROOT = Path(__file__).parents[2]
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
SVG = "{http://www.w3.org/2000/svg}"


def placed(trial: Trial) -> Made:
    """Return Table 4's printed errors for a trial, a little off for each seed."""
    cell = trial.cell
    drift = 0.1 * trial.seed * (1 + len(cell.row) % 3)
    printed = {metric: paper.printed("4", "imagenet", cell.row, metric) for metric in COLUMNS["4"]}
    return Made({metric: round(number.value + drift, 2) for metric, number in printed.items() if number is not None})


def toy(trial: Trial) -> Made | None:
    """Return a demo's outcome with scores, none for one cell."""
    if trial.cell.row == "CReLU all":
        return None
    wrong = np.arange(100 + 10 * len(trial.cell.row))
    columns = scores(np.arange(PICTURES) % 10, wrong, 10)
    columns |= {"ten_softmax": columns["centre"], "ten_score": columns["centre"]}
    error = 100 * len(wrong) / PICTURES
    return Made(dict.fromkeys(COLUMNS["4"], error), scores=columns, seconds=30.0)


def searched(trial: Trial) -> Made:
    """Return a hold-out curve that ends lowest at a quarter of dropout."""
    rate = dict(trial.dropout)["conv9"]
    return Made({}, curve=[60.0, 50.0, 45.0, 41.0 + 8 * (rate - 0.25) ** 2])


@pytest.fixture(scope="module")
def output(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return an output folder with four sweeps that were never trained."""
    folder = tmp_path_factory.mktemp("output")
    ledger = Ledger(str(folder / "ledger"))
    make(ledger, VGG, lambda trial: as_printed(trial, 10_000))
    make(ledger, PLACEMENT, placed)
    make(ledger, DEMO, toy)
    make(ledger, DROPOUT, searched)
    lost = next(trial for trial in (Trial(cell) for cell in DEMO.cells) if trial.cell.row == "CReLU all")
    for _ in range(3):
        ledger.add_attempt(lost.key, {"error": "OutOfMemoryError: <b>no</b> room\nand a trace"})
    build.run(options(folder))
    return folder


@pytest.fixture(scope="module")
def documents(output: Path) -> dict[str, Document]:
    """Return the documents of the four sweeps."""
    ledger = Ledger(str(output / "ledger"))
    return {title: document(ledger, read_sweep(ledger, title)) for title in titles(ledger)}


@pytest.fixture
def ledger(output: Path) -> Ledger:
    return Ledger(str(output / "ledger"))


def options(output: Path, **overrides: Any) -> argparse.Namespace:
    """Return the options of `report` as the command line gives them."""
    return argparse.Namespace(
        **{"sweep": None, "check": None, "capsule": None, "to": None, "tracking_uri": None, "output": str(output)}
        | {"open": False, "watch": False}
        | overrides
    )


class Page(HTMLParser):
    """The elements of a page: tag, attributes and text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str], list[str]]] = []
        self.open: list[tuple[str, dict[str, str], list[str]]] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        element = (tag, {name: value or "" for name, value in attrs}, [])
        self.elements.append(element)
        if tag not in ("meta", "img", "circle", "path", "line", "br"):
            self.open.append(element)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, {name: value or "" for name, value in attrs}, []))

    def handle_endtag(self, tag: str) -> None:
        if tag not in ("circle", "path"):
            assert self.open.pop()[0] == tag, f"a {tag} is closed that was not the last one opened"

    def handle_data(self, data: str) -> None:
        for _, _, text in self.open:
            text.append(data)


def reports(output: Path, pattern: str) -> list[Path]:
    """Return the files of this pattern, which each of the four reports has."""
    paths = sorted((output / "reports").glob(f"*/{pattern}"))
    assert len({path.relative_to(output / "reports").parts[0] for path in paths}) == 4
    return paths


def page_of(output: Path, title: str) -> Page:
    return Page((output / "reports" / title / "report.html").read_text())


def recomputed(ledger: Ledger, metric: str, keys: list[str]) -> float:
    """Return a number from the files of its trials, by the shortest way."""
    results = [ledger.result(key) for key in keys]
    if metric == VOTE:
        total = 0.0
        labels = None
        for key in keys:
            table = pq.read_table(ledger.path(f"trials/{key}/tables/scores.parquet"))
            x = table["centre"].combine_chunks().flatten().to_numpy().reshape(len(table), -1)
            total = total + np.exp(x) / np.exp(x).sum(axis=1, keepdims=True)
            labels = np.array(table["label"])
        return float(100 * np.mean(np.argmax(total, axis=1) != labels))
    name = TOP1 if metric == AVERAGE else metric
    return float(np.mean([result["metrics"][name] for result in results if result]))


def test_every_number_of_ours_names_its_runs(output: Path, ledger: Ledger) -> None:
    page = page_of(output, "cifar_vgg")
    checked = dict.fromkeys((TOP1, AVERAGE, VOTE), 0)
    runs = {run.key: run_id(run.trial) for run in read_sweep(ledger, "cifar_vgg").runs}
    checked_runs = 0
    for tag, attributes, words in page.elements:
        if "data-trials" in attributes:
            keys = attributes["data-trials"].split()
            assert keys
            assert all(ledger.result(key) for key in keys)
            if "data-runs" in attributes:
                assert {runs[key] for key in keys} == set(attributes["data-runs"].split())
                checked_runs += 1
        metric = attributes.get("data-metric", "")
        text = "".join(words).strip()
        if tag == "td" and metric in checked and re.fullmatch(r"\d+\.\d\d( ± \d\.\d\d)? \(\d+\).*", text):
            if metric == VOTE and checked[VOTE] > 2:  # reading scores by the shortest way takes long
                continue
            assert text.startswith(plain(recomputed(ledger, metric, keys)))
            assert attributes["title"].startswith(keys[0])
            checked[metric] += 1
    # Eight cells of Table 2, each in the overview and in a table of its own; four of them in Table 3 as well.
    assert checked[TOP1] == 24
    assert checked[AVERAGE] == 16
    assert checked[VOTE] > 2
    assert checked_runs > 40


@pytest.mark.parametrize("title", ["cifar_vgg", "imagenet_placement", "imagenet_placement-demo", "imagenet_dropout"])
def test_no_place_of_ours_is_without_runs(documents: dict[str, Document], title: str) -> None:
    made = documents[title]
    count = 0
    for table in made.tables.values():
        ours = [i for i, name in enumerate(table.columns) if name.startswith("ours") or name == "hold-out error"]
        for row in table.rows:
            for entry in (row[i] for i in ours):
                # A net's parameters can be counted before anything has run.
                if re.search(r"\d", entry.text) and (entry.metric != PARAMETERS or "AVR" in row[0].text):
                    assert entry.runs, (table.id, entry)
                    count += 1
    assert count > 8


def test_columns_are_paper_ours_difference_verdict(documents: dict[str, Document]) -> None:
    table = documents["cifar_vgg"].tables["table-2-cifar10-average"]
    assert table.columns == ("", "paper", "ours ± se (n)", "difference", "verdict")
    rows = {row[0].text: [entry.text for entry in row[1:]] for row in table.rows}
    assert rows["VGG"] == ["6.90 ± .03", "6.90 ± 0.03 (10)", "0.00", "reproduced"]
    assert rows["CReLU (1,3,5)"] == ["6.45 ± .07", "6.45 ± 0.07 (10)", "0.00", "reproduced"]


def test_vote_has_wilson_s_interval_over_its_pictures(documents: dict[str, Document]) -> None:
    table = documents["cifar_vgg"].tables["table-2-cifar10-vote"]
    (vgg,) = (row[2] for row in table.rows if row[0].text == "VGG")
    assert vgg.text == "5.43 (10)"
    z, p, n = 1.959964, 0.0543, 10_000
    centre, half = (p + z * z / 2 / n) / (1 + z * z / n), z * np.sqrt(p * (1 - p) / n + z * z / 4 / n**2)
    low, high = (100 * (centre + sign * half / (1 + z * z / n)) for sign in (-1, 1))
    assert vgg.sub == f"[{low:.2f}, {high:.2f}]"


def test_derived_tables_take_the_paper_s_rows(documents: dict[str, Document]) -> None:
    tables = documents["cifar_vgg"].tables
    ours = {row[0].text: row[2].text for row in tables["table-3-cifar100-vote"].rows}
    assert ours == {"VGG": "26.85 (10)", "VGG + CReLU": "23.66 (10)"}
    five = documents["imagenet_placement"].tables["table-5-parameters"]
    verdicts = {row[0].text: (row[2].text, row[4].text) for row in five.rows}
    assert verdicts["CReLU all"] == ("4.687", "reproduced")
    assert verdicts["CReLU conv1,4,7"] == ("8.605", "reproduced")
    assert verdicts["AlexNet"] == ("–", "–")


def test_page_asks_for_nothing_and_stands_alone(output: Path) -> None:
    for path in reports(output, "report.html"):
        text = path.read_text()
        page = Page(text)
        assert not page.open
        assert "default-src 'none'" in text
        assert "<script" not in text
        assert "@import" not in text
        assert "url(" not in text
        for tag, attributes, _ in page.elements:
            assert tag not in ("link", "iframe", "object", "video", "audio", "form")
            for name in ("src", "href", "srcset", "data", "action", "poster"):
                value = attributes.get(name, "")
                assert not value or value.startswith("#") or (tag == "img" and value.startswith("data:image/png;"))


def test_each_chart_of_the_page_is_a_file_as_svg_and_as_png(output: Path) -> None:
    for path in reports(output, "report.html"):
        charts = [tag for tag, _, _ in page_of(output, path.parent.name).elements if tag == "svg"]
        folder = path.parent / "figures"
        files = sorted(folder.iterdir()) if charts else []
        assert [file.suffix for file in files] == [".png", ".svg"] * len(charts)
        assert {file.stem for file in files[::2]} == {file.stem for file in files[1::2]}
        for file in files[1::2]:
            drawing = ElementTree.parse(file).getroot()
            style, ground, *shapes = drawing
            assert (drawing.tag, ground.get("fill"), "var(" in str(style.text)) == (f"{SVG}svg", "#fff", False)
            assert ".line.ours { stroke: #0b5cad }" in str(style.text)
            assert any(shape.tag == f"{SVG}text" for shape in shapes)
            with Image.open(file.with_suffix(".png")) as picture:
                width = picture.width
                colours = picture.convert("RGB").getcolors(picture.width * picture.height) or []
            assert width == pytest.approx(float(drawing.attrib["width"]) * 150 / 72, abs=1)
            assert max(colours)[1] == (255, 255, 255)
            assert len(colours) > 10
    assert (
        output / "reports" / "imagenet_placement" / "figures" / "Effects-Table-4-ImageNet-top-1-ten-crops.svg"
    ).exists()


WIDTH = "<script>document.body.dataset.width = document.documentElement.scrollWidth</script></body>"


@pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium")
def test_page_is_no_wider_than_a_phone(output: Path, tmp_path: Path) -> None:
    for path in reports(output, "report.html"):
        # Chromium's own window has a least width, a frame has none. The policy would keep the script from running.
        page = re.sub('<meta http-equiv="Content-Security-Policy"[^>]*>', "", path.read_text())
        framed = html.escape(page.replace("</body>", WIDTH))
        frame = tmp_path / "frame.html"
        frame.write_text(
            f'<iframe style="width:390px;height:844px;border:0" srcdoc="{framed}" onload="document.body.dataset.width'
            ' = this.contentDocument.body.dataset.width"></iframe>'
        )
        command = [str(CHROMIUM), "--headless", "--no-sandbox", "--hide-scrollbars", "--dump-dom", frame.as_uri()]
        dom = subprocess.run(command, check=True, capture_output=True, text=True, timeout=600).stdout
        (width,) = re.findall(r'<body data-width="(\d+)">', dom)
        assert int(width) == 390, path


def test_links_lead_to_the_runs_of_a_cell(output: Path) -> None:
    for path in reports(output, "report.html"):
        page = Page(path.read_text())
        ids = [attributes["id"] for _, attributes, _ in page.elements if "id" in attributes]
        assert len(ids) == len(set(ids))
        links = {attributes["href"][1:] for tag, attributes, _ in page.elements if tag == "a"}
        assert links <= set(ids)


def test_what_others_wrote_is_text_on_the_page(tmp_path: Path) -> None:
    ledger = Ledger(str(tmp_path / "ledger"))
    nasty = '<img src=x onerror="alert(1)">|\\'
    cell = Cell(nasty, PLACEMENTS[0].net, "imagenet", PLACEMENTS[0].recipe)
    make(ledger, Sweep("nasty", "paper", (cell,), Protocol()), placed_anywhere)
    build.run(options(tmp_path))
    folder = tmp_path / "reports" / "nasty"
    index = Page((tmp_path / "reports" / "index.html").read_text())
    assert any(nasty in "".join(words) for _, _, words in index.elements)
    assert not [tag for tag, *_ in index.elements if tag == "img"]
    page = Page((folder / "report.html").read_text())
    assert not [tag for tag, *_ in page.elements if tag == "img"]
    assert any(nasty in "".join(words) for _, _, words in page.elements)
    assert not re.search(r"(?<!\\)<img", (folder / "report.md").read_text())
    assert r"\textbackslash{}" in (folder / "tables" / "cells-imagenet-imagenet-sgd.tex").read_text()


def placed_anywhere(trial: Trial) -> Made:
    """Return one error, whatever the trial is."""
    return Made({TOP1: 41.0})


def test_synthetic_data_withhold_every_verdict(documents: dict[str, Document]) -> None:
    made = documents["imagenet_placement-demo"]
    assert "Embedded pictures" in made.banner
    assert made.tiles[0].value == "withheld"
    words = {entry.text for table in made.tables.values() for row in table.rows for entry in row}
    assert "reproduced" not in words
    assert "differs" not in words
    decisions = {row[3].text for row in made.tables["claims"].rows}
    assert decisions == {"withheld: embedded pictures", "withheld: embedded pictures; 1 of 1 seed failed of CReLU all"}
    for row in made.tables["table-4"].rows:
        for printed, ours in zip(row[1::2], row[2::2], strict=True):
            assert printed.tone == "paper"
            assert "s" in ours.marks or row[0].text == "CReLU all"
    assert "difference" not in made.tables["table-4"].columns


def test_failures_show_the_last_error_and_the_tries_it_cost(documents: dict[str, Document]) -> None:
    (row,) = documents["imagenet_placement-demo"].tables["failed"].rows
    assert [entry.text for entry in row[2:]] == ["failed", "3", "OutOfMemoryError: <b>no</b> room"]


def test_cost_is_what_the_trials_took(ledger: Ledger) -> None:
    results = read_sweep(ledger, "imagenet_dropout")
    total = document(ledger, results).tables["costs"].rows[-1]
    hours = sum(run.result["seconds"] for run in results.runs if run.result) / 3600
    assert [entry.text for entry in total] == ["all", "0", "0 s", "27", f"{hours:.1f} h", "–"]


@pytest.mark.parametrize(
    ("hardware", "gpus"),
    [
        ({"gpu_share": "0.25", "memory": "1"}, 0.25),
        ({"memory": "1"}, 1.0),
        ({"ranks": "4", "memory": "1"}, 4.0),
        ({"ranks": "4"}, 1.0),
        ({"gpus": "2", "memory": "1"}, 2.0),
    ],
)
def test_cost_is_told_in_money_by_the_share_of_a_gpu_that_each_trial_had(
    tmp_path: Path, hardware: dict[str, str], gpus: float
) -> None:
    ledger = Ledger.in_output(str(tmp_path))
    sweep = Sweep("s", "paper", (BASELINE,), Protocol(seeds=4))
    make(ledger, sweep, lambda trial: Made({TOP1: 20.0 + trial.seed}, seconds=36000.0))
    for key in ledger.results():
        result = ledger.result(key) or {}
        ledger.commit(key, result | {"hardware": {"host": "h", "device": "d"} | hardware})
    ledger.write_note("prices/s.json", {"hourly": 3.0, "share": 0.5})  # of a later session
    table = document(ledger, read_sweep(ledger, "s")).tables["costs"]
    assert table.columns[-1] == "money"
    assert table.rows[-1][-1].text == f"{4 * 10 * 3.0 * gpus:,.2f}"


def test_search_alone_shows_hold_out_errors_and_what_was_chosen(documents: dict[str, Document]) -> None:
    made = documents["imagenet_dropout"]
    chosen = {row[1].text for row in made.tables["chosen-dropout"].rows}
    assert chosen == {"0.25 after conv9"}
    note = "The only dimension is dropout after conv9: all of the importance is its own."
    assert note in made.tables["chosen-dropout"].notes
    assert {row[2].text for row in made.tables["table-4"].rows} == {"41.00 (1)"}
    assert sum(len(part.figures) for s in made.sections if s.id == "dropout" for part in s.parts[1:]) == 9  # type: ignore[union-attr]


F1 = Metric("test/f1", "higher")


@pytest.mark.parametrize(
    ("change", "metric", "heading", "words"),
    [
        ({}, PERCENT, "hold-out error", "least hold-out error of the best epoch"),
        ({"folds": 2}, PERCENT, "held-out error", "least mean over 2 folds of the held-out error of the best epoch"),
        ({}, F1, "val f1", "largest val f1 of the best epoch"),
        ({"folds": 3}, F1, "val f1", "largest mean over 3 folds of the val f1 of the best epoch"),
        ({"direction": "minimize"}, F1, "val f1", "least val f1 of the best epoch"),
        ({"objective": "best/loss", "folds": 2}, F1, "best/loss", "least mean over 2 folds of the best/loss"),
    ],
)
def test_a_search_says_what_it_chose_by(
    change: dict[str, Any], metric: Metric, heading: str, words: str, tmp_path: Path
) -> None:
    cell = dataclasses.replace(BASELINE, table="", row="", metric=metric, task="page:train" if metric.is_own else "")
    sweep = Sweep("chosen", "paper", (cell,), Protocol(ablation=False, search=Search(2, sampler="random", **change)))
    ledger = Ledger(str(tmp_path))
    make(ledger, sweep, lambda _: Made({metric.held_out: 0.5, "best/loss": 0.5}))
    table = chosen_table(read_sweep(ledger, "chosen"))
    assert table is not None
    assert table.columns[2] == heading
    assert table.notes == (f"Chosen by the {words}; the test pictures are not opened in a search.",)


def test_record_says_with_what_it_was_made(ledger: Ledger) -> None:
    results = read_sweep(ledger, "imagenet_placement")
    rows = {row[0].text: row[1].text for row in document(ledger, results).tables["provenance"].rows}
    assert rows["requirements.lock, SHA-256"] == hashlib.sha256((ROOT / "requirements.lock").read_bytes()).hexdigest()
    assert rows["data imagenet"] == "f" * 64
    assert rows["device"] == "NVIDIA H200"
    assert rows["code of the results"] == rows["code of these trials, now"]


# Formats ------------------------------------------------------------------------------------------------------


def test_csv_and_parquet_hold_the_same_numbers(output: Path, ledger: Ledger) -> None:
    for name in ("numbers", "effects", "claims"):
        folder = output / "reports" / "imagenet_placement"
        table = pq.read_table(folder / f"{name}.parquet").to_pylist()
        lines = list(csv.DictReader(io.StringIO((folder / f"{name}.csv").read_text())))
        assert len(table) == len(lines) > 8
        compared = 0
        for row, line in zip(table, lines, strict=True):
            assert line["trials"].split() == row["trials"]
            for column in ("mean", "difference", "p_holm"):
                if row.get(column) is not None:
                    assert float(line[column]) == row[column]
                    compared += 1
        assert compared > 8


def test_tidy_numbers_are_those_of_the_tables(ledger: Ledger) -> None:
    results = read_sweep(ledger, "cifar_vgg")
    made = document(ledger, results)
    averages = [line for line in tidy(results)["numbers"] if line["metric"] == AVERAGE]
    assert len(averages) == 8
    for line in averages:
        table = made.tables[f"table-2-{line['paper_dataset']}-average"]
        (row,) = (row for row in table.rows if row[0].text == line["row"])
        assert row[2].text == f"{line['mean']:.2f} ± {line['se']:.2f} ({line['n']})"
        assert [run.key for run in row[2].runs] == line["trials"]


def test_markdown_rows_have_as_many_places_as_columns(output: Path) -> None:
    for path in reports(output, "report.md"):
        width = 0
        for line in path.read_text().splitlines():
            cells = len(re.findall(r"(?<!\\)\|", line)) if line.startswith("|") else 0
            assert cells in (0, width) or width == 0
            width = cells


def test_latex_is_balanced_and_plain(output: Path) -> None:
    for path in reports(output, "tables/*.tex"):
        text = path.read_text()
        assert text.isascii()
        bare = re.sub(r"\\[\\{}%&$#_]", "", text)
        assert bare.count("{") == bare.count("}")
        assert bare.count("$") % 2 == 0
        body = text[text.index(r"\midrule") : text.index(r"\bottomrule")]
        counts = {len(re.findall(r"(?<!\\)&", line)) for line in body.splitlines() if line.endswith(r"\\")}
        assert len(counts) == 1


def test_latex_signs_are_spelled_out() -> None:
    assert tex("50 % & $x_1 ± 2 − 3 {a}\\") == r"50 \% \& \$x\_1 $\pm$ 2 $-$ 3 \{a\}\textbackslash{}"
    empty = latex_table(Table("t", "A_b", ("", "x"), "lr", ()), "t")
    assert r"\caption{A\_b}" in empty


@pytest.mark.skipif(shutil.which("pdflatex") is None, reason="needs a TeX")
def test_latex_compiles(output: Path, tmp_path: Path) -> None:
    if subprocess.run(("kpsewhich", "booktabs.sty"), capture_output=True).returncode:
        pytest.skip("this TeX has no booktabs")
    shutil.copytree(output / "reports" / "cifar_vgg", tmp_path / "tex")
    words = ("pdflatex", "-interaction=nonstopmode", "-halt-on-error", "report.tex")
    done = subprocess.run(words, cwd=tmp_path / "tex", capture_output=True, text=True, errors="replace")
    assert done.returncode == 0, done.stdout[-2000:]


# Documents ----------------------------------------------------------------------------------------------------


def test_check_passes_what_the_store_says_and_fails_what_it_does_not(
    output: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = (output / "reports" / "imagenet_placement" / "report.md").read_text()
    block = re.search(r"<!-- sweeps:imagenet_placement table-4 -->.*?<!-- /sweeps -->", text, re.DOTALL)
    assert block
    path = tmp_path / "README.md"
    padded = block[0].replace("| Baseline |", "|   Baseline    |").replace("---:", "-------:")
    path.write_text(f"# Ours\n\n{padded}\n\nand more\n")
    assert build.run(options(output, check=str(path))) == 0
    path.write_text(path.read_text().replace("41.81", "41.80"))
    assert build.run(options(output, check=str(path))) == 1
    captured = capsys.readouterr()
    assert "table-4 no longer matches the store" in captured.err
    assert "0 of 1 table matches the store" in captured.out


def test_check_sees_a_result_that_came_later(tmp_path: Path) -> None:
    sweep = Sweep("late", "paper", PLACEMENTS[:1], Protocol(seeds=2))
    ledger = Ledger(str(tmp_path / "ledger"))
    make(ledger, sweep, lambda trial: None if trial.seed else placed(trial))
    build.run(options(tmp_path))
    path = tmp_path / "reports" / "late" / "report.md"
    assert build.run(options(tmp_path, check=str(path))) == 0
    make(ledger, sweep, placed)
    assert build.run(options(tmp_path, check=str(path))) == 1


def test_check_refuses_documents_it_cannot_check(output: Path, tmp_path: Path) -> None:
    path = tmp_path / "README.md"
    for text, word in (
        ("no table", "has no table to check"),
        ("<!-- sweeps:cifar_vgg table-2-cifar10 -->\n| a |\n", "not followed by"),
        ("<!-- sweeps:cifar_vgg table-9 -->\n<!-- /sweeps -->", "no table 'table-9'"),
        ("<!-- sweeps:cifar_vg table-2-cifar10 -->\n<!-- /sweeps -->", "did you mean 'cifar_vgg'"),
    ):
        path.write_text(text)
        with pytest.raises(ValueError, match=re.escape(word)):
            build.run(options(output, check=str(path)))


def test_report_of_an_unknown_sweep_names_the_nearest(output: Path) -> None:
    with pytest.raises(ValueError, match="did you mean 'imagenet_placement'"):
        build.run(options(output, sweep="imagenet_placemnt"))
    with pytest.raises(ValueError, match="no sweep has run"):
        build.run(options(output / "nowhere"))


def test_report_leaves_the_ledger_alone_and_no_old_files(tmp_path: Path) -> None:
    ledger = Ledger(str(tmp_path / "ledger"))
    make(ledger, Sweep("two", "paper", PLACEMENTS[:2], Protocol()), placed)
    before = {path: path.read_bytes() for path in (tmp_path / "ledger").rglob("*") if path.is_file()}
    build.run(options(tmp_path))
    assert before == {path: path.read_bytes() for path in (tmp_path / "ledger").rglob("*") if path.is_file()}
    folder = tmp_path / "reports" / "two"
    stranger = folder / "notes.txt"
    stranger.write_text("mine")
    assert (folder / "tables" / "table-4-effects.tex").exists()
    make(ledger, Sweep("two", "paper", PLACEMENTS[:1], Protocol()), placed)
    build.run(options(tmp_path))
    assert not (folder / "tables" / "table-4-effects.tex").exists()
    assert not (folder / "effects.csv").exists()
    assert stranger.read_text() == "mine"


def test_report_needs_no_torch_no_ray_and_no_server_and_only_its_page_matplotlib(output: Path, tmp_path: Path) -> None:
    path = output / "reports" / "imagenet_placement" / "report.md"
    code = (
        "import argparse, sys\nfrom sweeps.report import build\n"
        "asked = dict(sweep=None, check=None, capsule=None, tracking_uri=None, to=None, open=False, watch=False, "
        f"output={str(output)!r})\n"
        f"assert build.run(argparse.Namespace(**asked | dict(check={str(path)!r}))) == 0\n"
        "assert 'matplotlib' not in sys.modules\n"
        f"build.run(argparse.Namespace(**asked | dict(sweep='imagenet_placement', to={str(tmp_path)!r})))\n"
        "assert 'matplotlib' in sys.modules\n"
        "heavy = {'torch', 'ray', 'mlflow', 'ffcv', 'torchvision'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    subprocess.run((sys.executable, "-c", code), check=True, capture_output=True)
    assert (tmp_path / "imagenet_placement" / "report.html").exists()


def test_two_hundred_runs_take_few_steps(tmp_path: Path) -> None:
    ledger = Ledger(str(tmp_path / "ledger"))
    curve = [80.0 - 70 * i / 100 for i in range(100)]
    make(ledger, Sweep("many", "paper", PLACEMENTS, Protocol(seeds=22)), lambda t: placed(t)._replace(curve=curve))
    with cProfile.Profile(builtins=False) as steps:
        results = read_sweep(ledger, "many")
        made = build.files(document(ledger, results), tidy(results))
    assert len(results.runs) == 198
    assert sum(function.callcount for function in steps.getstats()) < 7_500_000  # of Python's functions: some seconds
    assert len(made["report.html"]) < 3_000_000


def test_markdown_says_what_the_table_says() -> None:
    table = Table("t", "T", ("", "a|b"), "lr", (), ("s  name: <x>.",))
    assert markdown_table(table) == "|  | a\\|b |\n| --- | ---: |\n\n- <sup>s</sup> name: \\<x\\>.\n"
