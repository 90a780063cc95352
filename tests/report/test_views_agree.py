"""What the page warns of, every other view says too: the note of MLflow, the files, the terminal, --json and status."""

import dataclasses
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from sweeps import cifar_width
from sweeps.cli import status
from sweeps.experiment.metrics import PARAMETERS, TOP1, TRAIN
from sweeps.experiment.plan import current_plan, plan, plan_to_json
from sweeps.experiment.sweep import Protocol, Sweep
from sweeps.experiment.trial import Trial
from sweeps.report import terminal
from sweeps.report.mlflow_notes import pages
from sweeps.report.result_tables import result_tables
from sweeps.report.tidy import tidy
from sweeps.results.cell_numbers import groups
from sweeps.results.evidence import SweepResults, read_sweep
from sweeps.results.marks import MARKS
from sweeps.store.ledger import Ledger
from sweeps.tracking.layout import Page, charts_address, compare_address, run_address, table_address
from tests.support.sweeps import BASELINE, Made, make, only, unsearched

FALLING = [50.0 - epoch for epoch in range(30)]
PAIR = tuple(
    dataclasses.replace(BASELINE, label=label, table="", row="", net=net)
    for label, net in (("A", BASELINE.net), ("B", BASELINE.net.crelu(1)))
)
SMALL = tuple(
    dataclasses.replace(cell, recipe=dataclasses.replace(cell.recipe, epochs=2))
    for cell in only(cifar_width.CELLS, "cifar10")[:2]
)


def stale_pair(ledger: Ledger) -> str:
    """Make two cells of no table with stale trainings; those of the second one were begun anew, and still fall."""
    sweep = Sweep("pair", "paper", PAIR, Protocol(seeds=3))

    def outcome(trial: Trial) -> Made:
        again = trial.cell.label == "B"
        return Made({TOP1: 9.0 + 0.1 * trial.seed}, restarts=2 * again, curve=FALLING if again else [])

    make(ledger, sweep, outcome)
    ledger.write_json(
        "plans/pair.json", plan_to_json(plan(sweep, ledger, {})) | {"fingerprints": {"cifar10": "e" * 64}}
    )
    return sweep.title


def small_table(ledger: Ledger) -> str:
    """Make two rows of Table 1 that are trained for 2 epochs of 350."""
    sweep = unsearched("cifar_width", SMALL, Protocol(ablation=False, single=True, folds=2), profile="demo")
    errors = {"match": {TOP1: 9.2, TRAIN: 1.1}, "fold": {TOP1: 10.2}}
    make(ledger, sweep, lambda trial: Made(errors.get(trial.phase, {}), curve=[]))
    return sweep.title


def noted(results: SweepResults) -> dict[str, Page]:
    """Return the page of each cell's run in MLflow, by the cell's label."""
    of_cells = pages(results, "1", {cell.cell.key: "a" * 32 for cell in results.cells}, "a" * 32)
    return {cell.cell.label: of_cells[cell.cell.key] for cell in results.cells}


@pytest.mark.parametrize("sweep", [stale_pair, small_table])
def test_note_and_csv_have_the_marks_of_the_page_and_the_note_explains_them(
    sweep: Callable[[Ledger], str], tmp_path: Path
) -> None:
    ledger = Ledger(str(tmp_path))
    results = read_sweep(ledger, sweep(ledger))
    (group,) = groups(results)
    in_files = {(line["row"], line["metric"]): line["marks"] for line in tidy(results)["numbers"]}
    overview = result_tables(group, None)[0]
    for row, line in zip(group.rows, overview.rows, strict=True):
        assert row.results is not None
        note = noted(results)[row.results.cell.label].note
        shown = {entry.metric: entry for entry in line if entry.metric}
        used = {mark for entry in shown.values() for mark in entry.marks}
        for metric, entry in shown.items():
            raised = f"<sup>{','.join(entry.marks)}</sup>" if entry.marks else ""
            assert f"| {entry.text}{raised} |" in note
            assert in_files[row.label, metric] == [MARKS[mark][0] for mark in entry.marks]
        explained = [words for words in note.splitlines() if words.startswith("- <sup>")]
        assert [words[7] for words in explained] == [mark for mark in MARKS if mark in used]
        assert used


def test_marks_of_the_second_cell_are_these(tmp_path: Path) -> None:
    ledger = Ledger(str(tmp_path))
    results = read_sweep(ledger, stale_pair(ledger))
    assert "(3)<sup>x</sup> |" in noted(results)["A"].note
    assert "(3)<sup>r,u,x</sup> |" in noted(results)["B"].note
    assert "- <sup>r</sup> restarted: a training diverged or died and was begun anew with another seed.\n" in (
        noted(results)["B"].note
    )


def test_note_leads_to_the_report_the_table_its_charts_and_the_compare_view(tmp_path: Path) -> None:
    ledger = Ledger(str(tmp_path))
    results = read_sweep(ledger, small_table(ledger))
    (line,) = [line for line in noted(results)[SMALL[0].label].note.splitlines() if line.startswith("[the report]")]
    runs = ["a" * 32] * len(results.cells)
    assert re.findall(r"\((#.*?)\)", line) == [
        run_address("1", "a" * 32, "report/report.html"),
        table_address("1"),
        charts_address("1"),
        compare_address("1", runs),
    ]


def test_number_of_the_paper_is_no_metric_beside_trainings_that_are_not_its(tmp_path: Path) -> None:
    ledger = Ledger(str(tmp_path))
    page = noted(read_sweep(ledger, small_table(ledger)))[SMALL[0].label]
    assert "withheld: another recipe: epochs 2, not 350" in page.note
    assert not [name for name in page.metrics if name.startswith("paper/")]
    assert {TOP1.replace("final", "agg") + "_mean", PARAMETERS} <= page.metrics.keys()


@pytest.mark.parametrize("sweep", [stale_pair, small_table])
def test_json_has_the_marks_and_the_reasons_of_the_files(sweep: Callable[[Ledger], str], tmp_path: Path) -> None:
    ledger = Ledger(str(tmp_path))
    today = current_plan(ledger, sweep(ledger))
    lines = {
        (line["cell_key"], line["metric"]): line for line in tidy(read_sweep(ledger, today.sweep.title))["numbers"]
    }
    told = terminal.as_json(today, terminal.lines(today, {"cifar10": 10}, ledger))
    for cell, shown in zip(today.sweep.cells, told["cells"], strict=True):
        for metric, number in shown["numbers"].items():
            line = lines[cell.key, metric]
            assert (number["marks"], number["withheld"]) == (line["marks"], line["withheld"])


def test_terminal_says_why_a_number_of_the_paper_is_none_of_ours(tmp_path: Path) -> None:
    ledger = Ledger(str(tmp_path))
    today = current_plan(ledger, small_table(ledger))
    rows = terminal.lines(today, {"cifar10": 10}, ledger)
    text = terminal.text(today, rows, 140, colour=False)
    first = next(line for line in text.splitlines() if line.startswith("Baseline"))
    assert re.findall(r"\(.*?\)", first) == ["(1.09)", "(9.17)", "(10.20±.09)", "(7.55)"]
    assert "nothing follows from that\nall cells: another recipe: epochs 2, not 350\n" in text
    assert first.endswith("one training, equal trainings")
    coloured = terminal.text(today, rows, 140, colour=True)
    assert "\x1b[90m(9.17)\x1b[0m" in coloured
    of_one = terminal.notes(today, [rows[0], rows[1]._replace(other="")])
    assert of_one.endswith(f"\n{SMALL[0].label}: another recipe: epochs 2, not 350")


def test_terminal_has_the_paper_s_number_bare_beside_its_own_trainings(tmp_path: Path) -> None:
    ledger = Ledger(str(tmp_path))
    cells = only(cifar_width.CELLS, "cifar10")[:1]
    sweep = unsearched("cifar_width", cells, Protocol(ablation=False, single=True))
    make(ledger, sweep, lambda trial: Made({TOP1: 9.2} if trial.phase == "match" else {}, curve=FALLING))
    today = current_plan(ledger, sweep.title)
    text = terminal.text(today, terminal.lines(today, {"cifar10": 10}, ledger), 140, colour=False)
    assert "(" not in text
    assert "under-trained, one training" in text


def test_terminal_of_results_that_no_report_reads_says_why(tmp_path: Path) -> None:
    ledger = Ledger(str(tmp_path))
    sweep = unsearched("cifar_width", SMALL[:1], Protocol())
    make(ledger, sweep, lambda _: Made({TOP1: 1e13}))
    today = current_plan(ledger, sweep.title)
    rows = terminal.lines(today, {"cifar10": 10}, ledger)
    assert rows[0].numbers[TOP1].mean == 1e13
    assert "has a metric of 1e+13" in terminal.notes(today, rows)
    assert "has a metric of 1e+13" in terminal.as_json(today, rows)["cells"][0]["numbers"][TOP1]["withheld"]


def test_status_says_what_befell_trainings(tmp_path: Path) -> None:
    ledger = Ledger(str(tmp_path))
    today = current_plan(ledger, stale_pair(ledger))
    _, _, first, second = status.text(today, None).splitlines()
    assert first.endswith("(n 3)")
    assert second.endswith("(n 3); restarted:2")
    assert [cell["flags"] for cell in status.as_json(today, None)["cells"]] == [["stale"], ["restarted:2", "stale"]]
    # Stale results are no work left, and not all that was asked for.
    assert status.text(today, None).startswith("pair: no driver runs; 1.00 h of training so far")


def test_status_says_whether_the_command_would_go_on(tmp_path: Path) -> None:
    ledger = Ledger(str(tmp_path))
    sweep = unsearched("cifar_width", SMALL[:2], Protocol())
    for made, says in ((None, "the sweep's command resumes it"), (Made({TOP1: 10.0}), "all is trained")):
        make(ledger, sweep, lambda _, made=made: made)
        said = status.text(current_plan(ledger, sweep.title), None)
        assert said.startswith(f"cifar_width: no driver runs; {says}; ")


def test_files_say_why_nothing_is_judged_on_other_data(tmp_path: Path) -> None:
    ledger = Ledger(str(tmp_path))
    cell = dataclasses.replace(SMALL[0], dataset="synthetic")
    sweep = unsearched("cifar_width", (cell,), Protocol())
    make(ledger, sweep, lambda _: Made({TOP1: 40.0}))
    lines = {line["metric"]: line for line in tidy(read_sweep(ledger, sweep.title))["numbers"]}
    assert lines[TOP1]["withheld"] == lines[PARAMETERS]["withheld"] == "embedded pictures"
    assert lines[TOP1]["verdict"] == ""
