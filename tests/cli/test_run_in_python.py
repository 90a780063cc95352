"""run() and load(): a sweep from a script or a notebook, by the code that the command line has, with errors raised."""

import dataclasses
import os
import signal
import sys
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import sweeps
from crelu_data.interrupts import HOSTED, deferred_interrupts
from crelu_models.tables import S2
from sweeps import Cell, Protocol, grid
from sweeps.cifar_width import CELLS as WIDTH
from sweeps.cli import run as cli_run
from sweeps.cli.interrupts import GracefulInterrupt
from sweeps.cli.live_view import LiveView
from sweeps.cli.options import ExitCode
from sweeps.cli.settings import Settings
from sweeps.experiment.metrics import TOP1, Metric
from sweeps.experiment.plan import Plan, plan
from sweeps.experiment.recipe import ALLCONV
from sweeps.experiment.sweep import Sweep
from sweeps.imagenet_placement import CELLS as PLACEMENT
from sweeps.report.notebook import Picture, html, in_notebook
from sweeps.store.ledger import Ledger
from tests.support.sweeps import Made, finish, make, unsearched
from tests.support.waiting import until

CELLS = grid(
    lambda act, width: Cell(f"{act} x{width:g}", S2.activation(act, 1).width(width), "cifar10", ALLCONV),
    act=("relu", "crelu"),
    width=(1.0, 0.5),
)
ERRORS = {"relu x1": 20.0, "crelu x1": 18.0, "relu x0.5": 25.0, "crelu x0.5": 24.0}


@pytest.fixture
def trained(monkeypatch: pytest.MonkeyPatch) -> list[Settings]:
    """Let no run train: each trial gets a result at once. Return the settings of each run."""
    seen: list[Settings] = []

    def train(declared: Plan, today: Plan, settings: Settings, *_: object) -> tuple[ExitCode, Plan, Plan]:
        seen.append(settings)
        for trial in today.to_do:
            finish(settings.ledger, trial, Made({TOP1: ERRORS[trial.cell.label] + 0.5 * trial.seed**2}))
        now = plan(declared.sweep, settings.ledger, {})
        return ExitCode.DONE, now, plan(today.sweep, settings.ledger, {})

    monkeypatch.setattr(cli_run, "_run", train)
    monkeypatch.setattr(cli_run, "_ensure_datasets", lambda *_: {})
    monkeypatch.setattr(cli_run, "check_splits", lambda *_: None)
    monkeypatch.setattr(cli_run, "absent_pictures", lambda *_: "")
    return seen


def test_results_are_those_of_the_command_line(
    tmp_path: Path, trained: list[Settings], capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "out"
    results = sweeps.run("birds", CELLS, Protocol(seeds=3), output=output, profile="mini")
    assert (results.title, results.finished) == ("birds-mini", True)
    assert trained[0].hosted
    said = capsys.readouterr()
    assert said.out == ""
    assert "birds-mini: 12 of 12 trials done" in said.err
    text = repr(results.table())
    assert "crelu x0.5" in text
    assert "24.83" in text
    assert "<pre" in results.table()._repr_html_()
    frame = results.frame()
    assert len(frame) == 12
    assert set(frame["factor.act"]) == {"relu", "crelu"}
    means = frame.groupby("factor.act")["final/test_top1_err"].mean()
    assert means["relu"] - means["crelu"] == pytest.approx(1.5)
    versus = results.effects(versus="crelu x1").set_index("row")["difference"]
    assert versus["relu x1"] == pytest.approx(2)
    assert "crelu x1" not in versus.index
    assert set(results.effects()["reference"]) == {"relu x1"}
    factors = results.factors().set_index("factors")
    assert factors.loc["act", "difference"] == pytest.approx(-1.5)
    assert factors.loc["act × width", "difference"] == pytest.approx(1)
    assert results.report() == output / "reports/birds-mini/report.html"
    loaded = sweeps.load(output)
    assert [*loaded] == ["birds-mini"]
    assert loaded["birds-mini"].frame().equals(frame)
    assert loaded.frame()["sweep"].unique().tolist() == ["birds-mini"]
    table = (output / "ledger/results-birds-mini.csv").read_text()
    assert table.count("\n") == 13
    assert "factor.width" in table.partition("\n")[0]


def test_reference_is_a_cell_by_its_whole_label_or_one_that_stands_for_no_other(tmp_path: Path) -> None:
    ledger = Ledger.in_output(str(tmp_path))
    errors = {"CReLU": 10.0, "Baseline": 12.0, "Double": 11.0}
    make(
        ledger,
        unsearched("width", tuple(cell for cell in WIDTH if cell.row in errors), Protocol(seeds=2)),
        lambda trial: Made({TOP1: errors[trial.cell.row] + 20 * (trial.cell.dataset == "cifar100") + trial.seed**2}),
    )
    results = sweeps.load(tmp_path)["width"]
    with pytest.raises(ValueError, match="several cells 'CReLU': say which, 'CReLU cifar10' or 'CReLU cifar100'"):
        results.effects(versus="CReLU")
    for dataset in ("cifar10", "cifar100"):
        frame = results.effects(versus=f"CReLU {dataset}").set_index("row")
        assert set(frame["dataset"]) == set(frame["paper_dataset"]) == {dataset}
        assert frame.loc["Baseline", "difference"] == pytest.approx(2)
        keys = {cell.row: cell.key for cell in WIDTH if cell.dataset == dataset}
        assert frame.loc["Baseline", "cell_key"] == keys["Baseline"]
        assert set(frame["reference_key"]) == {keys["CReLU"]}
    assert set(results.effects()["dataset"]) == {"cifar10", "cifar100"}
    one = tuple(cell for cell in WIDTH if cell.dataset == "cifar10" and cell.row in errors)
    make(ledger, unsearched("one", one, Protocol(seeds=2)), lambda trial: Made({TOP1: errors[trial.cell.row]}))
    assert len(sweeps.load(tmp_path)["one"].effects(versus="CReLU")) == 2


def test_reference_is_no_row_of_a_table_that_is_made_of_another_one(tmp_path: Path) -> None:
    ledger = Ledger.in_output(str(tmp_path))
    cells = tuple(cell for cell in PLACEMENT if cell.row in ("Baseline", "CReLU conv1-4", "CReLU conv1-9"))
    make(ledger, unsearched("placement", cells, Protocol(seeds=2)), lambda trial: Made({TOP1: 40.0 + trial.seed}))
    frame = sweeps.load(tmp_path)["placement"].effects(versus="CReLU conv1-4")
    assert set(frame["table"]) == {"4"}
    assert set(frame["row"]) == {"Baseline", "CReLU conv1-9"}


def test_what_cannot_be_run_is_a_value_error(tmp_path: Path, trained: list[Settings]) -> None:
    def refused(sentence: str, **words: Any) -> None:
        with pytest.raises(ValueError, match=sentence):
            sweeps.run("birds", CELLS, output=tmp_path, **words)

    refused("^--profile: there is no 'huge'; there are: paper, mini, demo$", profile="huge")
    refused("--dry-run is for the command line", flags=["--dry-run"])
    refused("--help asks for no run$", flags=["--help"])
    refused("^there is no option --sedes; did you mean --seeds\\?$", flags=["--sedes"])
    refused("birds has no cell 'gelu'", profile="mini", only=["gelu"])
    with pytest.raises(ValueError, match=r"letters, digits and .*, not 'my birds'$"):
        sweeps.run("my birds", CELLS, output=tmp_path)
    with pytest.raises(ValueError, match="there is no module 'nowhere' beside the page"):
        sweeps.run("birds", [dataclasses.replace(CELLS[0], task="nowhere:train")], output=tmp_path)
    assert trained == []
    with pytest.raises(ValueError, match="no sweep has run in"):
        sweeps.load(tmp_path)
    sweeps.run("birds", CELLS, output=tmp_path, profile="mini", flags=["-q"])
    with pytest.raises(ValueError, match="did you mean 'birds-mini'"):
        sweeps.load(tmp_path)["birds"]
    with pytest.raises(ValueError, match="birds-mini has no cell 'crelu'"):
        sweeps.load(tmp_path)["birds-mini"].effects(versus="crelu")


def test_a_ray_that_cannot_start_here_is_told_before_pictures_are_prepared(
    tmp_path: Path, trained: list[Settings], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("RAY_TMPDIR", raising=False)
    monkeypatch.setenv("TMPDIR", "/" + 90 * "x")
    with pytest.raises(ValueError, match=r"^TMPDIR is 52 bytes too long for Ray's sockets"):
        sweeps.run("birds", CELLS, output=tmp_path, flags=["--data-dir", str(tmp_path), "--address", "local"])
    assert trained == []


def test_a_metric_is_that_of_all_cells(
    tmp_path: Path, trained: list[Settings], monkeypatch: pytest.MonkeyPatch
) -> None:
    scores = {label: error / 100 for label, error in ERRORS.items()}
    f1 = Metric("test/f1", better="higher")

    def train(declared: Plan, today: Plan, settings: Settings, *_: object) -> tuple[ExitCode, Plan, Plan]:
        for trial in today.to_do:
            assert trial.cell.metric == f1
            finish(settings.ledger, trial, Made({f1.final: scores[trial.cell.label]}))
        return ExitCode.DONE, plan(declared.sweep, settings.ledger, {}), plan(today.sweep, settings.ledger, {})

    monkeypatch.setattr(cli_run, "_run", train)
    (tmp_path / "mine.py").write_text("def train(trial, data, run):\n    return {}\n")
    monkeypatch.syspath_prepend(tmp_path)
    cells = [dataclasses.replace(cell, task="mine:train") for cell in CELLS]
    results = sweeps.run("birds", cells, output=tmp_path / "out", profile="mini", metric=f1)
    frame = results.frame().set_index("cell")
    assert frame["final/test_f1"].to_dict() == scores
    with pytest.raises(ValueError, match=r"'relu x1' is to be compared by test/f1, which a training function returns"):
        sweeps.run("birds", CELLS, output=tmp_path / "out", metric=f1)


def test_an_interrupted_run_raises_and_the_same_call_goes_on(
    tmp_path: Path, trained: list[Settings], monkeypatch: pytest.MonkeyPatch
) -> None:
    train = cli_run._run
    monkeypatch.setattr(cli_run, "_run", lambda declared, today, *_: (ExitCode.INTERRUPTED, declared, today))
    with pytest.raises(KeyboardInterrupt, match="the same call resumes"):
        sweeps.run("birds", CELLS, output=tmp_path, profile="mini")
    monkeypatch.setattr(cli_run, "_run", train)
    assert sweeps.run("birds", CELLS, output=tmp_path, profile="mini").finished


def test_the_second_interrupt_of_a_hosted_run_raises_and_ends_no_process() -> None:
    stops: list[int] = []
    state: Any = SimpleNamespace(stop=lambda: stops.append(1))
    sentences: list[str] = []
    with GracefulInterrupt(state, sentences.append, hosted=True) as interrupt:
        signal.raise_signal(signal.SIGINT)
        assert (interrupt.caught, stops) == (1, [1])
        assert "the same call resumes" in sentences[0]
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)


def test_the_second_interrupt_before_a_hosted_run_trains_raises_and_ends_no_process(
    tmp_path: Path, trained: list[Settings], monkeypatch: pytest.MonkeyPatch
) -> None:
    ended: list[int] = []

    def start(*_: object) -> None:
        with deferred_interrupts():
            signal.raise_signal(signal.SIGINT)
            signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(cli_run, "_run", start)
    monkeypatch.setattr(os, "_exit", ended.append)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it
    try:
        with pytest.raises(KeyboardInterrupt):
            sweeps.run("birds", CELLS, output=tmp_path, profile="mini")
    finally:
        signal.signal(signal.SIGINT, before)
    assert ended == []
    assert not HOSTED.is_set()


def test_a_lease_that_is_lost_interrupts_the_process_of_a_user(capfd: pytest.CaptureFixture[str]) -> None:
    later = threading.Timer(0.2, cli_run._interrupt, ("another driver has taken over",))

    def work() -> None:
        later.start()
        threading.Event().wait(60)

    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it
    try:
        with pytest.raises(KeyboardInterrupt):
            work()
    finally:
        signal.signal(signal.SIGINT, before)
    later.join()
    assert "another driver has taken over; the same call resumes" in capfd.readouterr().err


def test_a_notebook_shows_one_picture_that_changes(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    shown: list[str] = []
    texts: list[str] = []

    def update(bundle: dict[str, str], raw: bool) -> None:
        assert raw
        shown.append(bundle["text/html"])
        texts.append(bundle["text/plain"])

    def display(bundle: dict[str, str], raw: bool, display_id: bool) -> object:
        assert display_id
        update(bundle, raw)
        return SimpleNamespace(update=update)

    assert not in_notebook()
    shell = SimpleNamespace(get_ipython=lambda: SimpleNamespace(kernel=1))
    monkeypatch.setitem(sys.modules, "IPython", shell)  # type: ignore[arg-type]
    monkeypatch.setitem(sys.modules, "IPython.display", SimpleNamespace(display=display))  # type: ignore[arg-type]
    assert in_notebook()
    picture = Picture("first <b>")
    picture.start()
    picture.update("second")
    picture.stop()
    assert ["first &lt;b&gt;" in shown[0], "second" in shown[1], len(shown)] == [True, True, 2]
    assert texts == ["first <b>\n", "second\n"]
    sweep = Sweep("birds", "mini", CELLS, Protocol())
    with LiveView(plan(sweep, Ledger(str(tmp_path)), {}), live=False, quiet=False) as view:
        view.log("a word")
        assert "crelu x0.5" in shown[2]
        until(lambda: "a word" in shown[-1], "the next picture", 60)
    assert html("a", "b").count("<pre") == 1


def test_a_page_of_factors_prints_their_effects(
    tmp_path: Path, trained: list[Settings], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["birds.py", "--output", str(tmp_path), "--profile", "mini"]
    monkeypatch.setattr(sys, "argv", words)
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        with pytest.raises(SystemExit) as ended:
            sweeps.main("birds", "Which?", CELLS, dataclasses.replace(Protocol(), seeds=3))
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
    assert ended.value.code == 0
    lines = capsys.readouterr().out.splitlines()
    head = lines.index("Factors: act, width")
    assert lines[head + 2].split()[:4] == ["act", "crelu", "relu", "top-1"]
    assert "−1.50" in lines[head + 2]
