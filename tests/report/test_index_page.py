"""The index of an output's reports, and a report that is watched or opened."""

import dataclasses
import re
import time
import webbrowser
from pathlib import Path
from typing import Any, Literal
from urllib.parse import unquote

import pytest

from crelu_models.tables import S2
from sweeps.__main__ import main
from sweeps.cifar_width import CELLS as WIDTH
from sweeps.experiment.cell_trials import expand
from sweeps.experiment.metrics import TOP1, TRAIN, Metric
from sweeps.experiment.plan import current_plan, plan
from sweeps.experiment.sweep import Protocol, Sweep
from sweeps.experiment.trial import Trial
from sweeps.imagenet_placement import CELLS
from sweeps.report import build, index_page, terminal
from sweeps.report.contents import document
from sweeps.report.mlflow_notes import pages
from sweeps.report.render.document import NONE
from sweeps.results.evidence import read_sweep
from sweeps.store.lease import Lease
from sweeps.store.ledger import Ledger
from tests.support.sweeps import BASELINE, CRELU, Made, finish, make, only, unsearched

FIRST = dataclasses.replace(CRELU, label="first", net=S2)
QUESTION = "Is the first one good?"
SECOND = dataclasses.replace(CRELU, label="second")
THIRD = dataclasses.replace(CRELU, label="third", net=S2.crelu(1))


def of(trial: Trial) -> float:
    """Return a trial's error: the second cell's is the lower one."""
    return {"first": 9.0}.get(trial.cell.label, 8.0) + trial.seed % 1000


def outcome(trial: Trial) -> Made:
    return Made({TOP1: of(trial)}, seconds=1800.0)


@pytest.fixture
def output(tmp_path: Path) -> Path:
    """Return an output with a sweep that is complete, one in progress, and one with a failed trial."""
    ledger = Ledger.in_output(str(tmp_path))
    make(ledger, Sweep("whole", "paper", (FIRST,), Protocol(seeds=2), question=QUESTION), outcome)
    make(ledger, Sweep("begun", "paper", (FIRST, SECOND), Protocol(seeds=2)),
         lambda trial: outcome(trial) if trial.cell == FIRST else None)  # fmt: skip
    broken = Sweep("broken", "paper", (BASELINE, THIRD), Protocol(seeds=2))
    make(ledger, broken, outcome)
    lost = expand(broken, {})[3].key
    ledger.forget(lost)
    ledger.add_attempt(lost, {"error": "OutOfMemoryError", "final": True})
    return tmp_path


def called(monkeypatch: pytest.MonkeyPatch, output: Path, *words: str) -> int:
    monkeypatch.setattr("sys.argv", ["sweeps", "report", *words, "--output", str(output)])
    return main()


def reported(ledger: Ledger, title: str, **fields: Any) -> index_page.Reported:
    results = read_sweep(ledger, title)
    return index_page.Reported(results, document(ledger, results), **fields)


def test_index_has_each_sweep_its_state_its_tables_and_links_that_lead_somewhere(
    output: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert called(monkeypatch, output) == 0
    folder = output / "reports"
    assert capsys.readouterr().out.splitlines()[-1] == f"index      {folder / 'index.html'}"
    text = (folder / "index.html").read_text()
    links = set(re.findall(r'href="([^"#]+)(?:#([^"]*))?"', text))
    assert {page for page, _ in links} == {
        "begun/report.html", "broken/report.html", "grade/grade.html", "whole/report.html"
    }  # fmt: skip
    for page, anchor in links:
        target = (folder / unquote(page)).read_text()
        assert not anchor or f'id="{anchor}"' in target
    assert '<dt>sweeps complete</dt><dd class="big">1 of 3</dd>' in text
    assert text.count(QUESTION) == 1
    ledger = Ledger.in_output(str(output))
    sweeps = [reported(ledger, title) for title in ("whole", "begun", "broken")]
    assert [index_page.state(sweep).text for sweep in sweeps] == ["complete", "2 to do", "1 failed"]
    assert index_page.state(reported(ledger, "begun", driver={"pid": 1})).text == "trains now"


def test_question_of_a_page_stands_beneath_the_title(output: Path) -> None:
    ledger = Ledger.in_output(str(output))
    for title, question in (("whole", QUESTION), ("begun", "")):
        folder = build.make(ledger, title, output / "reports", "", quiet=True).page.parent
        head = f'<p class="kicker">{title}</p>\n<h1>{question}</h1>' if question else f"<header>\n<h1>{title}</h1>"
        assert head in (folder / "report.html").read_text()
        assert (folder / "report.md").read_text().startswith(f"# {title}\n\n{question or '- 2 trainings'}")
        assert (f"{{{title}}}\n\\par\\noindent {question}" in (folder / "report.tex").read_text()) is bool(question)
        today = current_plan(ledger, title)
        assert terminal.as_json(today, terminal.lines(today, {}, ledger))["question"] == question


def test_hours_and_trainings_that_sweeps_share_are_counted_once(output: Path) -> None:
    ledger = Ledger.in_output(str(output))
    shown = index_page.index_document([reported(ledger, title) for title in ("whole", "begun", "broken")], None)
    assert len(ledger.results()) == 3  # the baseline is the first cell, as a row of the paper
    assert [(tile.value, tile.sub) for tile in shown.tiles[1:]] == [("3", "1 failed"), ("1.5 h", "")]


@pytest.mark.parametrize(("dataset", "shows"), [("imagenet", True), ("synthetic", False)])
def test_number_of_the_paper_stands_beside_none_of_other_pictures(dataset: str, shows: bool, tmp_path: Path) -> None:
    ledger = Ledger.in_output(str(tmp_path))
    cell = dataclasses.replace(CELLS[0], dataset=dataset)
    make(ledger, Sweep("s", "paper", (cell,), Protocol()), lambda _: Made({TOP1: 40.0}))
    shown = index_page.index_document([reported(ledger, "s")], None)
    assert shown.tiles[0].label == "sweep complete"
    ((_, sweep, best, ours, paper, _),) = shown.sections[1].tables[0].rows
    assert best.text == cell.label
    assert ours.text != NONE
    assert (paper.text != NONE, sweep.sub == "") == (shows, shows)


def test_number_of_the_paper_stands_beside_none_of_a_folder_or_another_set(tmp_path: Path) -> None:
    """In no view: where there is no room for the sentence that explains it, the number is left out."""
    ledger = Ledger.in_output(str(tmp_path))
    for dataset in ("folder:/a/flowers", "cifar10"):
        title = f"on-{dataset[:6]}"
        cell = dataclasses.replace(WIDTH[0], label="x", dataset=dataset, paper_dataset="cifar100")
        make(ledger, unsearched(title, (cell,), Protocol()), lambda _: Made({TOP1: 40.0}))
        sweep = reported(ledger, title)
        assert sweep.report.banner == ""
        (row,) = index_page.index_document([sweep], None).tables["results"].rows
        assert (row[1].sub, row[3].text, row[4].text) == ("not the paper's runs", "40.00 (1)", NONE)
        note = pages(sweep.results, "1", {cell.key: "a" * 32}, "a" * 32)[cell.key].note
        assert "|  | ours ± se (n) |\n" in note
        assert "<sup>o</sup> other data: trained on other data than the paper's: no verdict." in note
        today = plan(sweep.results.sweep, ledger, {})
        assert "nothing follows from that" in terminal.notes(today, terminal.lines(today, {}, ledger))


def test_best_cell_is_not_the_one_that_learned_its_training_pictures_best(tmp_path: Path) -> None:
    ledger = Ledger.in_output(str(tmp_path))
    cells = only(WIDTH, "cifar10")[:2]
    errors = {cells[0].label: (1.0, 9.0), cells[1].label: (2.0, 8.0)}

    def outcome(trial: Trial) -> Made:
        train, test = errors[trial.cell.label]
        return Made(
            {TRAIN: train, TOP1: test} if trial.phase == "match" else {TOP1: 7.0} if trial.phase == "fold" else {}
        )

    expected = {
        True: ["Double", "8.00 (1)", "8.65", "single"],
        False: ["Baseline", "7.00 ± 0.00 (2)", "10.20", "average"],  # of equal ones the first; without Single
    }
    for single, words in expected.items():
        title = f"single-{single}"
        make(ledger, unsearched(title, cells, Protocol(ablation=False, single=single, folds=2)), outcome)
        (row,) = index_page.index_document([reported(ledger, title)], None).tables["results"].rows
        assert [entry.text for entry in row[2:]] == words


@pytest.mark.parametrize(("better", "best"), [("lower", "second"), ("higher", "first")])
def test_result_is_the_best_cell_as_its_metric_has_it(
    better: Literal["lower", "higher"], best: str, tmp_path: Path
) -> None:
    ledger = Ledger.in_output(str(tmp_path))
    metric = Metric("test/loss", better=better)
    cells = tuple(dataclasses.replace(cell, metric=metric, task="page:train") for cell in (FIRST, SECOND))
    make(ledger, Sweep("own", "paper", cells, Protocol(seeds=2)), lambda trial: Made({metric.final: of(trial)}))
    table = index_page.index_document([reported(ledger, "own")], None).tables["results"]
    assert [[entry.text for entry in row][2:] for row in table.rows] == [
        [best, {"first": "9.500 ± 0.500 (2)", "second": "8.500 ± 0.500 (2)"}[best], "–", "test loss"]
    ]


def test_table_without_a_number_says_so(tmp_path: Path) -> None:
    ledger = Ledger.in_output(str(tmp_path))
    make(ledger, Sweep("new", "paper", (FIRST,), Protocol()), lambda _: None)
    shown = index_page.index_document([reported(ledger, "new")], None)
    assert [row[2].text for row in shown.tables["results"].rows] == ["none yet"]
    assert shown.tables["sweeps"].rows[0][1].text == "1 to do"


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (b'{"sweep": "half", "prof', "is damaged; to write it anew, start the sweep again"),
        (b"", "is damaged; to write it anew, start the sweep again"),
        (b'{"a": 1}', "is not a plan: KeyError('protocol')"),
    ],
)
@pytest.mark.parametrize("verb", ["status", "report", "grade"])
def test_a_plan_that_cannot_be_read_is_named_and_the_others_are_shown(
    verb: str,
    content: bytes,
    why: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    ledger = Ledger.in_output(str(tmp_path))
    make(ledger, Sweep("good", "paper", (BASELINE, CRELU), Protocol()), outcome)
    ledger.write("plans/bad.json", content)
    ledger.write("plans/notes.txt", b"no plan at all")

    def called(*words: str) -> tuple[int, str, list[str]]:
        monkeypatch.setattr("sys.argv", ["sweeps", *words, "--output", str(tmp_path)])
        code = main()
        out, err = capsys.readouterr()
        return code, out, err.splitlines()

    code, out, err = called(verb)
    assert code == 1
    assert "good" in out or verb == "grade"
    assert sum(sentence.startswith("left out:") for sentence in err) == 1
    assert err[-1] == f"left out: {tmp_path}/ledger/plans/bad.json {why}"
    if verb != "grade":
        assert called(verb, "good")[0] == 0
        code, out, err = called(verb, "bad")
        assert (code, out, err[-1]) == (2, "", f"error: {tmp_path}/ledger/plans/bad.json {why}")


def test_one_sweep_that_is_named_gets_no_index(output: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert called(monkeypatch, output, "whole") == 0
    assert (output / "reports" / "whole" / "report.html").exists()
    assert not (output / "reports" / "index.html").exists()


def test_sweep_in_progress_is_written_again_as_trials_end_until_ctrl_c(
    output: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    ledger = Ledger.in_output(str(output))
    to_do = [run.trial for run in read_sweep(ledger, "begun").runs if run.state == "new"]
    page = output / "reports" / "begun" / "report.html"
    pages: list[str] = []

    def sleep(_: float) -> None:
        pages.append(page.read_text())
        if len(pages) == 1:
            finish(ledger, to_do[0], outcome(to_do[0]))
        if len(pages) == 4:
            raise KeyboardInterrupt

    monkeypatch.setattr(time, "sleep", sleep)
    times: list[str] = []
    written = build.make
    monkeypatch.setattr(build, "make", lambda *arguments: times.append("") or written(*arguments))
    with Lease(ledger, "begun"):
        assert called(monkeypatch, output, "begun", "--watch") == 0
    assert len(times) == 2
    assert pages[0] != pages[1]
    assert pages[1] == pages[2] == pages[3]
    assert "no longer watched" in capsys.readouterr().err


@pytest.mark.parametrize("answers", [True, False])
def test_page_is_opened_in_the_browser(
    answers: bool, output: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    opened: list[str] = []
    monkeypatch.setattr(webbrowser, "open", lambda address: opened.append(address) or answers)
    assert called(monkeypatch, output, "whole", "--open") == 0
    page = output / "reports" / "whole" / "report.html"
    assert opened == [page.as_uri()]
    assert capsys.readouterr().err == ("" if answers else f"no browser is at hand here: open {page}\n")


@pytest.mark.parametrize(
    "words", [("--check", "README.md", "--open"), ("--check", "README.md", "--watch"), ("--from", "a.zip", "--watch")]
)
def test_flags_that_do_not_go_together_are_refused(
    words: tuple[str, ...], output: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert called(monkeypatch, output, *words) == 2
    assert capsys.readouterr().err.startswith(f"error: {'--watch' if '--from' in words else '--check'} ")
