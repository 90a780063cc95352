"""What the shared flags make of a sweep: groups of further cells, the search's ways, stale results."""

import dataclasses
import json
import os
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from sweeps.cifar_width import CELLS as WIDTH
from sweeps.cifar_width import PROTOCOL
from sweeps.cli import dry_run, run, summary
from sweeps.cli.forecast import TimeEstimate, cost_text
from sweeps.cli.options import ExitCode, parser
from sweeps.cli.settings import Settings, asked_part, declare, protocol_of, settle
from sweeps.cli.status import counts
from sweeps.cli.status import text as status_text
from sweeps.experiment.cell_trials import expand
from sweeps.experiment.code_fingerprint import code_fingerprint
from sweeps.experiment.metrics import TOP1
from sweeps.experiment.plan import Plan, current_plan, plan
from sweeps.experiment.profiles import scaled
from sweeps.experiment.search import Search
from sweeps.experiment.sweep import Protocol, Sweep, check_apart
from sweeps.experiment.trial import Trial
from sweeps.imagenet_placement import CELLS, CROSSED
from sweeps.launch import show_cells
from sweeps.report.build import NOT_ASKED
from sweeps.store.integrity import note_damage
from sweeps.store.lease import Drivers, Lease, claim
from tests.support.sweeps import Made, finish


def asked(*words: str, protocol: Protocol = PROTOCOL) -> Protocol:
    return protocol_of(protocol, "paper", parser("cifar_width", "").parse_args(words))


def test_flags_choose_how_dropout_is_searched_and_where_single_stops() -> None:
    protocol = asked("--search-folds", "5", "--sampler", "gp", "--match", "valid_loss")
    assert protocol == Protocol(
        ablation=False,
        single=True,
        match="valid_loss",
        folds=10,
        search=Search(20, "gp", folds=5),
        rates=PROTOCOL.rates,
    )
    assert asked() == PROTOCOL


@pytest.mark.parametrize(
    ("words", "why"),
    [
        (("--sampler", "tpe"), "--search-trials"),
        (("--match", "epoch"), "Single protocol"),
        (("--folds", "3"), "a sweep with folds"),
    ],
)
def test_flags_that_a_sweep_has_no_use_for_are_refused(words: tuple[str, ...], why: str) -> None:
    with pytest.raises(ValueError, match=why):
        asked(*words, protocol=Protocol())


def test_no_folds_may_be_asked_for_of_a_sweep_without_folds() -> None:
    assert asked("--folds", "0", protocol=Protocol()) == Protocol()


def test_the_cells_are_listed_as_json_too(capsys: pytest.CaptureFixture[str]) -> None:
    show_cells(Sweep("s", "paper", WIDTH[:2]), as_json=True)
    listed = json.loads(capsys.readouterr().out)
    assert [(cell["key"], cell["label"]) for cell in listed] == [(cell.key, cell.label) for cell in WIDTH[:2]]


def test_crossed_cells_part_optimiser_and_dropout_from_placement() -> None:
    rows = {str(cell.net.to_json()): cell for cell in CELLS}
    Sweep("imagenet_placement", "paper", (*CELLS, *CROSSED))  # none of them is a row of the paper's
    paper_rows = {cell.label: rows.get(str(cell.net.to_json())) for cell in CROSSED}
    assert {label: row and row.label for label, row in paper_rows.items()} == {
        "Baseline, Adam": "Baseline",
        "Baseline, dropout .25": None,
        "CReLU conv1-4, Adam": "CReLU conv1-4",
        "CReLU conv1,4,7, SGD": "CReLU conv1,4,7",
    }
    assert all(row.recipe != cell.recipe for cell in CROSSED if (row := paper_rows[cell.label]) is not None)
    assert CROSSED[1].net.dropout(0.0, 9).to_json() == CELLS[0].net.dropout(0.0, 9).to_json()
    # So a search of the dropout would make them one cell.
    why = r"'Baseline' and 'Baseline, dropout .25' of imagenet_placement differ only in what is searched"
    with pytest.raises(ValueError, match=why):
        check_apart(Sweep("imagenet_placement", "paper", (*CELLS, *CROSSED), Protocol(search=Search(3, "grid"))))


def command_line(folder: Path, *words: str) -> tuple[Sweep, Sweep, Settings]:
    """Return what cifar_width declares, what of it a command line asks for, and the settings."""
    options = parser("cifar_width", "").parse_args(
        [*words, "--profile", "demo", "--output", str(folder), "--data-dir", str(folder / "data")]
    )
    settings = settle(WIDTH, options)
    sweep = declare("cifar_width", WIDTH, Protocol(seeds=2), options, settings)
    return sweep, asked_part(sweep, options), settings


def test_only_and_seeds_choose_what_is_trained_and_never_what_is_declared(tmp_path: Path) -> None:
    plain, all_of_it, _ = command_line(tmp_path)
    sweep, part, _ = command_line(tmp_path, "--only", "CReLU*", "--seeds", "3")
    assert all_of_it == plain == sweep
    assert len(sweep.cells) == 5
    assert sweep.protocol.seeds == 1  # the demo's
    assert [cell.label.split()[0] for cell in part.cells] == ["CReLU", "CReLU"]
    assert part.protocol.seeds == 3
    assert len(part.others) == 3
    with pytest.raises(ValueError, match="has no cell"):
        command_line(tmp_path, "--only", "Relu*x")


def test_dry_run_shows_every_declared_cell_and_counts_what_is_asked_for(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sweep, part, settings = command_line(tmp_path, "--only", "CReLU*", "--seeds", "3")
    first = expand(sweep, {})[0]
    settings.ledger.commit(first.key, {"key": first.key, "fingerprint": "", "code": code_fingerprint(first.cell.net)})
    dry_run.dry_run(sweep, part, settings)
    lines = capsys.readouterr().out.splitlines()
    rows = {cell.label: next(line for line in lines if line.startswith(cell.label + " ")) for cell in sweep.cells}
    unasked = {label for label, row in rows.items() if row.endswith("not asked for")}
    assert unasked == {cell.label for cell in part.others}
    assert rows[first.cell.label].split()[2:] == [*"1..1....", "not", "asked", "for"]
    assert "6 trials, 6 of them to train" in "\n".join(lines)
    # A cell of this sweep; others may have been trained here.
    assert "no forecast: none of these cells has been trained on this hardware yet" in "\n".join(lines)


def test_cells_that_are_not_asked_for_stay_in_plan_table_and_parquet(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    sweep, part, settings = command_line(tmp_path, "--only", "CReLU e*", "--price-per-gpu-hour", "2")
    for trial in expand(sweep, {}):
        finish(settings.ledger, trial, Made({TOP1: 50.0}))
    settings.ledger.write_note(f"prices/{sweep.title}.json", {"hourly": 3.0, "share": 0.5})
    monkeypatch.setattr(run, "_run", lambda declared, today, *_: (ExitCode.DONE, declared, today))
    monkeypatch.setattr(run, "_ensure_datasets", lambda *_: {})
    monkeypatch.setattr(summary, "_report", lambda *_: (None, "", NOT_ASKED))
    ended = run.run_sweep(sweep, part, settings)
    summary.print_summary(ended, settings)
    assert ended.code == ExitCode.DONE
    table = capsys.readouterr().out
    assert all(cell.label in table for cell in sweep.cells)
    assert "1 of 1 trial is done" in table
    assert "not asked for: " in table
    assert current_plan(settings.ledger, sweep.title).sweep == sweep
    # A price that is given once all is trained is the report's.
    assert settings.ledger.read_json(f"prices/{sweep.title}.json") == {"hourly": 2.0, "share": 0.5}
    content = settings.ledger.read(f"results-{sweep.title}.parquet")
    assert content is not None
    assert set(pq.read_table(pa.BufferReader(content)).column("cell").to_pylist()) == {c.label for c in sweep.cells}


@pytest.mark.parametrize(
    ("lacking", "failing", "code"), [(0, 0, ExitCode.DONE), (0, 1, ExitCode.FAILED), (1, 0, ExitCode.BUDGET)]
)
def test_budget_that_is_used_up_by_the_last_epochs_leaves_a_sweep_done(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lacking: int, failing: int, code: ExitCode
) -> None:
    sweep, _, settings = command_line(tmp_path, "--quiet")

    def train(today: Plan, *_: object) -> ExitCode:
        for trial in today.to_do[lacking + failing :]:
            finish(settings.ledger, trial, Made({TOP1: 50.0}))
        for trial in today.to_do[:failing]:
            settings.ledger.add_attempt(trial.key, {"error": "ValueError: no", "final": True})
        return ExitCode.BUDGET

    tracker = SimpleNamespace(register=lambda *_: None, waiting=lambda: 0, close=lambda *_: 0)
    monkeypatch.setattr("sweeps.tracking.tracker.Tracker", lambda *_: tracker)
    monkeypatch.setattr(run, "_run_trials", train)
    monkeypatch.setattr(summary, "_report", lambda *_: (None, "", NOT_ASKED))
    today = plan(sweep, settings.ledger, {})
    ended, declared, today = run._run(today, today, settings, {}, {})
    assert summary.conclude(declared, today, settings, {}, ended).code == code


def without_training(monkeypatch: pytest.MonkeyPatch) -> list[list[Trial]]:
    """Let sweeps run without training or report; return what each would train."""
    to_do: list[list[Trial]] = []

    def without(declared: Plan, today: Plan, settings: Settings, *_: object) -> tuple[ExitCode, Plan, Plan]:
        to_do.append(today.to_do)
        return (ExitCode.DONE, *run._read_files(declared, today, settings))

    monkeypatch.setattr(run, "_run", without)
    monkeypatch.setattr(run, "_ensure_datasets", lambda *_: {})
    monkeypatch.setattr(summary, "_report", lambda *_: (None, "", NOT_ASKED))
    return to_do


def test_trial_with_a_damaged_file_is_told_and_trained_anew_when_asked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    sweep, part, settings = command_line(tmp_path)
    ledger = settings.ledger
    (first, *others) = expand(sweep, {})
    for trial in (first, *others):
        finish(ledger, trial, Made({TOP1: 50.0}))
    digest = ledger.sha256(f"trials/{first.key}/history.json")
    ledger.commit(first.key, (ledger.result(first.key) or {}) | {"files": {"history.json": digest}})
    ledger.write("results/.k.json.1.2.part", b"half")
    os.utime(f"{ledger.root}/results/.k.json.1.2.part", (0, 0))
    ledger.write(f"checkpoints/{first.key}/00001-00000000.safetensors", b"left by a kill")
    history = Path(ledger.path(f"trials/{first.key}/history.json"))
    history.write_bytes(history.read_bytes()[:-1] + b" ")
    to_do = without_training(monkeypatch)
    why = f"trials/{first.key}/history.json is damaged: its SHA-256 is not the one in the trial's result"
    for _ in range(2):  # seen at the end of the first run, noted for the second
        ended = run.run_sweep(sweep, part, settings)
        summary.print_summary(ended, settings)
        assert ended.code == ExitCode.FAILED
        shown = capsys.readouterr().out
        assert f"damaged: {first.cell.label} {first.label}: {why}" in shown
        assert f"{len(others)} of {len(others) + 1} trials are done, 1 failed" in shown
        assert "--retry-failed" in shown
        table = f"{settings.output}/ledger/results-{sweep.title}"
        assert f"results   {table}.parquet\n          {table}.csv\n" in shown
    summary.print_summary(ended._replace(results="s3://bucket/out/results-a.parquet"), settings)
    assert "\n          s3://bucket/out/results-a.csv\n" in capsys.readouterr().out
    dry_run.dry_run(sweep, part, settings)
    assert f"{first.cell.label} {first.label}: {why}" in capsys.readouterr().out
    run.run_sweep(sweep, part, dataclasses.replace(settings, retry_failed=True))
    assert to_do == [[], [], [first]]
    # What a kill had left is gone since the first start.
    assert ledger.folders("checkpoints") == []
    assert ".k.json.1.2.part" not in os.listdir(f"{ledger.root}/results")


@pytest.mark.parametrize("left", ["nothing", "half"])
def test_lost_file_that_no_table_reads_is_told_at_the_start_and_trained_anew_when_asked(
    left: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    sweep, part, settings = command_line(tmp_path)
    ledger = settings.ledger
    (first, second, *others) = expand(sweep, {})
    for trial in (first, second, *others):
        finish(ledger, trial, Made({TOP1: 50.0}))
        ledger.write(f"trials/{trial.key}/weights.safetensors", b"weights")
        digest = ledger.sha256(f"trials/{trial.key}/weights.safetensors")
        result = {name: value for name, value in (ledger.result(trial.key) or {}).items() if name != "sizes"}
        ledger.commit(trial.key, result | {"files": {"weights.safetensors": digest}})
    weights = Path(ledger.path(f"trials/{first.key}/weights.safetensors"))
    weights.unlink() if left == "nothing" else weights.write_bytes(b"wei")
    Path(ledger.path(f"results/{second.key}.json")).write_bytes(b"{")
    to_do = without_training(monkeypatch)
    why = f"trials/{first.key}/weights.safetensors is {'missing' if left == 'nothing' else 'damaged: its size is'}"
    ended = run.run_sweep(sweep, part, settings)
    summary.print_summary(ended, settings)
    assert ended.code == ExitCode.FAILED
    assert f"damaged: {first.cell.label} {first.label}: {why}" in capsys.readouterr().out
    assert ledger.names("damaged") == [f"{first.key}.json"]
    # Status counts both as damaged, neither as new nor as failed.
    plan = current_plan(ledger, sweep.title)
    shown = status_text(plan, None).splitlines()
    assert shown[1].split()[7] == "damaged"
    counted = [counts(plan, trial.cell) for trial in (first, second)]
    assert [(each["damaged"], each["failed"], each["new"], each["done"]) for each in counted] == [(1, 0, 0, 0)] * 2
    (line,) = (line for line in shown if why in line)
    assert line.startswith(f"{first.cell.label} {first.label}: ")
    assert line.endswith("; --retry-failed trains it anew")
    assert any("is damaged; it is trained anew" in line and "--retry-failed" not in line for line in shown)
    run.run_sweep(sweep, part, dataclasses.replace(settings, retry_failed=True))
    assert why in capsys.readouterr().err
    assert to_do == [[second], [first, second]]


def test_table_at_the_end_has_what_was_trained_just_now_and_what_was_not_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "140")
    sweep, part, settings = command_line(tmp_path, "--only", "CReLU e*")
    two_seeds = dataclasses.replace(sweep, protocol=dataclasses.replace(sweep.protocol, seeds=2))
    (now,) = expand(part, {})
    for trial in expand(two_seeds, {}):
        if trial.cell != now.cell:
            finish(settings.ledger, trial, Made({TOP1: 40.0}))

    def train(*_: object) -> tuple[ExitCode, Plan, Plan]:
        finish(settings.ledger, now, Made({TOP1: 31.25}))
        return ExitCode.DONE, plan(sweep, settings.ledger, {}), plan(part, settings.ledger, {})

    monkeypatch.setattr(run, "_run", train)
    monkeypatch.setattr(run, "_ensure_datasets", lambda *_: {})
    monkeypatch.setattr(run, "check_splits", lambda *_: None)
    monkeypatch.setattr(summary, "_report", lambda *_: (None, "", NOT_ASKED))
    ended = run.run_sweep(sweep, part, settings)
    summary.print_summary(ended, settings)
    assert ended.code == ExitCode.DONE
    table = capsys.readouterr().out
    others = [cell.label for cell in part.others]
    assert "31.25" in next(line for line in table.splitlines() if line.startswith(now.cell.label))
    assert all("40.00" in next(line for line in table.splitlines() if line.startswith(label)) for label in others)
    assert f"1 seed declared, 2 on the ledger of {', '.join(others)}." in table
    assert "1 of 1 trial is done." in table


def test_what_failed_or_is_stale_of_a_further_seed_leaves_the_declared_ones_done(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    sweep, part, settings = command_line(tmp_path, "--only", "CReLU e*")
    longer = dataclasses.replace(part, protocol=dataclasses.replace(part.protocol, seeds=3))
    first, second, third = expand(longer, {})
    for trial in (first, second):
        finish(settings.ledger, trial, Made({TOP1: 50.0}))
        settings.ledger.commit(trial.key, (settings.ledger.result(trial.key) or {}) | {"code": "older"})
    settings.ledger.add_attempt(third.key, {"error": "no", "final": True})
    without_training(monkeypatch)
    ended = run.run_sweep(sweep, part, settings)
    summary.print_summary(ended, settings)
    assert ended.code == ExitCode.DONE
    shown = capsys.readouterr().out
    name = f"{third.cell.label} {third.label}"
    assert f"  failed: {name}: no; of a further seed: --retry-failed --seeds 3 trains it anew\n" in shown
    for way in ("--stale retrain trains it anew", "of a further seed: --stale retrain --seeds 2 trains it anew"):
        assert re.search(rf"^1 is stale \(.*\); {way}\.$", shown, re.MULTILINE)
    (following,) = (line for line in shown.splitlines() if line.startswith("next "))
    assert "--retry-failed" not in following
    both = plan(longer, settings.ledger, {})
    assert summary._next_command(both, settings, ExitCode.FAILED).endswith("--retry-failed")


def test_fresh_and_retry_leave_alone_what_is_not_asked_for(tmp_path: Path) -> None:
    sweep, part, settings = command_line(tmp_path, "--only", "CReLU e*", "--fresh")
    longer = dataclasses.replace(part, protocol=dataclasses.replace(part.protocol, seeds=2))
    for trial in (*expand(sweep, {}), *expand(longer, {})):
        result = {"key": trial.key, "status": "finished", "fingerprint": "", "code": code_fingerprint(trial.cell.net)}
        settings.ledger.commit(trial.key, result | {"metrics": {}, "curve": []})
    today = run._current_plan(part, settings, {}, print)
    assert [(status.trial.seed, status.state) for status in today.statuses] == [(0, "new"), (1, "done")]
    assert plan(sweep, settings.ledger, {}).count("done") == len(sweep.cells)  # four others, and a further seed


@pytest.mark.parametrize(
    ("words", "way"),
    [
        (("--fresh",), "leave out --fresh"),
        (("--retry-failed",), "leave out --retry-failed"),
        (("--stale", "retrain"), "give --stale keep"),
    ],
)
def test_trial_that_another_sweep_trains_now_is_not_forgotten(words: tuple[str, ...], way: str, tmp_path: Path) -> None:
    _, part, settings = command_line(tmp_path, "--only", "CReLU e*", *words)
    ledger = settings.ledger
    (trial,) = expand(part, {})
    finish(ledger, trial, Made({TOP1: 50.0}))
    news = {"files": {"history.json": "0" * 64}} if settings.retry_failed else {"code": "older"}
    ledger.commit(trial.key, (ledger.result(trial.key) or {}) | news)
    if settings.retry_failed:
        note_damage(ledger, trial.key, f"trials/{trial.key}/history.json is damaged")
    result = ledger.result(trial.key)
    with Lease(ledger, "other"):
        assert claim(Drivers(ledger), "other", trial.key)
        sentence = f"{trial.label} is trained now by the driver of other: end that, or {way}"
        with pytest.raises(ValueError, match=re.escape(sentence)):
            run._current_plan(part, settings, {}, print)
        if settings.stale == "retrain":  # it may have been claimed since
            with pytest.raises(ValueError, match=re.escape(sentence)):
                run._forget_stale(plan(part, ledger, {}), settings)
        assert ledger.result(trial.key) == result
        assert f"{trial.key}.json" in ledger.names("claims")
    assert run._current_plan(part, settings, {}, print).to_do == [trial]
    assert ledger.result(trial.key) is None


def test_retry_failed_trains_what_was_skipped_and_fresh_forgets_that(tmp_path: Path) -> None:
    _, part, settings = command_line(tmp_path, "--only", "CReLU e*", "--seeds", "4", "--retry-failed")
    trials = expand(part, {})
    for trial in trials[:2]:
        finish(settings.ledger, trial, Made({TOP1: 80.0}, status="diverged"))
    assert plan(part, settings.ledger, {}).count("skipped") == 2
    assert run._current_plan(part, settings, {}, print).to_do == trials[2:]
    assert plan(part, settings.ledger, {}).given_up == {}
    fresh = dataclasses.replace(settings, retry_failed=False, fresh=True)
    assert run._current_plan(part, fresh, {}, print).to_do == trials
    assert settings.ledger.names("insisted") == []


def test_further_groups_are_offered_only_where_there_are_some() -> None:
    assert parser("imagenet_placement", "", ("crossed",)).parse_args(["--also", "crossed"]).also == ["crossed"]
    with pytest.raises(SystemExit):
        parser("cifar_width", "").parse_args(["--also", "crossed"])


class Terminal:
    """Stands for a terminal on which someone answers."""

    def __init__(self, answer: str, terminal: bool = True) -> None:
        self.answer = answer
        self.terminal = terminal
        self.said = ""

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
