"""What the shared flags make of a sweep: groups of further cells, the search's ways, stale results."""

from pathlib import Path
from typing import Any

import pytest

from sweeps.cifar_width import CELLS as WIDTH
from sweeps.cifar_width import PROTOCOL
from sweeps.cli import run
from sweeps.cli.forecast import TimeEstimate, cost_text
from sweeps.cli.options import parser
from sweeps.cli.settings import protocol_of, settle
from sweeps.experiment.code_fingerprint import code_fingerprint
from sweeps.experiment.plan import Protocol, Sweep, expand, plan
from sweeps.experiment.profiles import scaled
from sweeps.experiment.search import Search
from sweeps.imagenet_placement import CELLS, CROSSED


def asked(*words: str, protocol: Protocol = PROTOCOL) -> Protocol:
    return protocol_of(protocol, "paper", parser("cifar_width", "").parse_args(words))


def test_flags_choose_how_dropout_is_searched_and_where_single_stops() -> None:
    found = asked("--search-folds", "5", "--sampler", "gp", "--match", "valid_loss")
    assert found == Protocol(
        ablation=False, single=True, match="valid_loss", folds=10, search=Search(20, "gp", folds=5)
    )
    assert asked() == PROTOCOL


@pytest.mark.parametrize(
    ("words", "why"), [(("--sampler", "tpe"), "--search-trials"), (("--match", "epoch"), "Single protocol")]
)
def test_flags_that_a_sweep_has_no_use_for_are_refused(words: tuple[str, ...], why: str) -> None:
    with pytest.raises(ValueError, match=why):
        asked(*words, protocol=Protocol())


def test_crossed_cells_part_optimiser_and_dropout_from_placement() -> None:
    rows = {str(cell.net.to_json()): cell for cell in CELLS}
    Sweep("imagenet_placement", "paper", (*CELLS, *CROSSED))  # none of them is a row of the paper's
    found = {cell.label: rows.get(str(cell.net.to_json())) for cell in CROSSED}
    assert {label: row and row.label for label, row in found.items()} == {
        "Baseline, Adam": "Baseline",
        "Baseline, dropout .25": None,
        "CReLU conv1-4, Adam": "CReLU conv1-4",
        "CReLU conv1,4,7, SGD": "CReLU conv1,4,7",
    }
    assert all(row.recipe != cell.recipe for cell in CROSSED if (row := found[cell.label]) is not None)
    assert CROSSED[1].net.dropout(0.0, 9).to_json() == CELLS[0].net.dropout(0.0, 9).to_json()


def test_further_groups_are_offered_only_where_there_are_some() -> None:
    assert parser("imagenet_placement", "", ("crossed",)).parse_args(["--also", "crossed"]).also == ["crossed"]
    with pytest.raises(SystemExit):
        parser("cifar_width", "").parse_args(["--also", "crossed"])


class Terminal:
    """Stands for a terminal on which someone answers."""

    def __init__(self, answer: str, terminal: bool = True) -> None:
        self.answer, self.terminal, self.said = answer, terminal, ""

    def isatty(self) -> bool:
        return self.terminal

    def readline(self) -> str:
        return self.answer + "\n"

    def write(self, text: str) -> int:
        self.said += text
        return len(text)

    def flush(self) -> None:
        pass


@pytest.mark.parametrize(
    ("words", "answer", "terminal", "left"),
    [
        ((), "y", True, 1),
        ((), "n", True, 2),
        ((), "y", False, 2),
        (("--stale", "retrain"), "n", False, 1),
        (("--stale", "keep"), "y", True, 2),
        (("--yes",), "n", True, 1),
        (("--yes", "--stale", "keep"), "y", True, 2),
    ],
)
def test_stale_results_are_trained_anew_only_where_someone_says_so(
    words: tuple[str, ...], answer: str, terminal: bool, left: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sweep = Sweep("s", "demo", tuple(scaled(cell, "demo") for cell in WIDTH[:2]), Protocol())
    options = parser("s", "").parse_args([*words, "--output", str(tmp_path), "--profile", "demo"])
    settings = settle(sweep.cells, options)
    first, second = expand(sweep, {})
    for trial, code in ((first, code_fingerprint(first.cell.net)), (second, "older")):
        result: dict[str, Any] = {"key": trial.key, "status": "finished", "fingerprint": "", "code": code}
        settings.ledger.commit(trial.key, result | {"metrics": {}, "curve": []})
    today = plan(sweep, settings.ledger, {})
    assert [standing.state for standing in today.statuses] == ["done", "stale"]
    person = Terminal(answer, terminal)
    monkeypatch.setattr(run.sys, "stdin", person)
    monkeypatch.setattr(run.sys, "stderr", person)
    assert run._forget_stale(today, settings) == (left == 1)
    assert len(settings.ledger.results()) == left
    assert ("Train them anew?" in person.said) == (terminal and not words)


@pytest.mark.parametrize(
    ("hourly", "share", "told"),
    [
        (2.5, 1.0, "costs 5.00 (2.50 to 10.00) at 2.5 an hour"),
        (4.0, 0.25, "costs 2.00 (1.00 to 4.00) at 4 an hour"),
        (0.0, 1.0, ""),
    ],
)
def test_forecast_is_told_in_money(hourly: float, share: float, told: str) -> None:
    assert cost_text(TimeEstimate(7200.0, 3600.0, 14400.0), hourly, share) == told


def test_price_comes_from_flag_environment_or_not_at_all(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert parser("s", "").parse_args([]).price_per_gpu_hour == 0
    monkeypatch.setenv("CRELU_PRICE_PER_GPU_HOUR", "3.5")
    assert parser("s", "").parse_args([]).price_per_gpu_hour == 3.5
    assert parser("s", "").parse_args(["--price-per-gpu-hour", "2"]).price_per_gpu_hour == 2
    monkeypatch.setenv("CRELU_PRICE_PER_GPU_HOUR", "cheap")
    with pytest.raises(SystemExit) as end:
        parser("s", "").parse_args([])
    assert end.value.code == 2
    assert "'cheap'" in capsys.readouterr().err
