"""The commands that a sweep prints at its end: they repeat what was typed, and run as printed."""

import dataclasses
import re
import shlex
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest

from sweeps.__main__ import parser as verbs
from sweeps.cli import summary
from sweeps.cli.command import Command, program, without
from sweeps.cli.forecast import WORKER_START, Forecast, TimeEstimate, compare
from sweeps.cli.options import ExitCode, parser
from sweeps.cli.settings import Settings, settle
from sweeps.experiment.plan import Plan, TrialStatus
from sweeps.experiment.search import Search
from sweeps.experiment.sweep import Protocol, Sweep
from sweeps.experiment.trial import SECOND_SEED, Trial
from sweeps.experiment.wording import against_forecast, count
from sweeps.store.ledger import Ledger
from tests.support.sweeps import BASELINE, CRELU

ROOT = Path(__file__).parents[2]
PROGRAM = (".venv/bin/python", "-m", "sweeps.cifar_width")
GIVEN = ("--output", "my out", "--dataset", "folder:a b", "--only", "CReLU*", "!*half", "--profile", "mini", "--set",
         "recipe.epochs=3")  # fmt: skip

ABLATION = Protocol()


def settings(*words: str) -> Settings:
    typed = dataclasses.replace(settle((BASELINE,), parser("s", "").parse_args(words)), command=Command(PROGRAM, words))
    return dataclasses.replace(typed, output="/my out")


def line(code: ExitCode, *words: str, protocol: Protocol = ABLATION, profile: str = "mini", failed: int = 0) -> str:
    sweep = Sweep("cifar_width", profile, (BASELINE,), protocol)
    statuses = [TrialStatus(Trial(BASELINE, seed=seed), "failed", None) for seed in range(failed)]
    return summary._next_command(Plan(sweep, tuple(statuses)), settings(*words), code)


def test_next_of_a_cell_that_nothing_tries_again_explains_it() -> None:
    sweep = Sweep("cifar_width", "mini", (BASELINE,))
    lost = Plan(sweep, (), rates={BASELINE.key: None}, given_up={BASELINE.label: "it trains at none of the rates"})
    said = summary._next_command(lost, settings(*GIVEN), ExitCode.FAILED)
    assert said == "next      .venv/bin/python -m sweeps explain --output '/my out' cifar_width-mini Baseline"
    assert lost.remedy(BASELINE.label).startswith("--set recipe.lr=RATE")
    skipped = dataclasses.replace(lost, rates={}, statuses=(TrialStatus(Trial(BASELINE), "skipped", None),))
    assert summary._next_command(skipped, settings(*GIVEN), ExitCode.FAILED).endswith(" --retry-failed")


def test_next_line_repeats_what_was_given_with_more_seeds() -> None:
    said = line(ExitCode.DONE, *GIVEN, "--seeds", "3", protocol=Protocol(seeds=3))
    assert said.startswith("next      .venv/bin/python -m sweeps.cifar_width --output 'my out'")
    assert said.endswith("   (for smaller standard errors)")
    words = shlex.split(said.partition("   (")[0])[1:]
    assert tuple(words) == (*PROGRAM, *GIVEN, "--seeds", "5")
    again = parser("cifar_width", "").parse_args(words[len(PROGRAM) :])
    assert (again.seeds, again.only, again.dataset) == (5, ["CReLU*", "!*half"], "folder:a b")


def test_one_seed_has_no_standard_error() -> None:
    assert line(ExitCode.DONE, *GIVEN).endswith(" --seeds 3   (for standard errors)")


def test_next_line_offers_more_seeds_than_any_cell_has() -> None:
    """Fewer seeds than the ledger has would train nothing; one that failed is not tried again either."""
    sweep = Sweep("cifar_width", "mini", (BASELINE, CRELU))
    further = [Trial(CRELU, seed=1), *(Trial(BASELINE, seed=seed) for seed in range(1, 5))]
    trained = [TrialStatus(trial, "done", {}) for trial in (Trial(BASELINE), Trial(CRELU), *further[:-1])]
    statuses = (*trained, TrialStatus(further[-1], "failed", None))
    today = Plan(sweep, statuses, further=frozenset(trial.key for trial in further))
    said = summary._next_command(today, settings(*GIVEN), ExitCode.DONE)
    assert said.endswith(" --seeds 7   (for smaller standard errors)")


def test_two_phases_of_a_further_seed_are_one_seed() -> None:
    sweep = Sweep("cifar_width", "mini", (BASELINE,), Protocol(ablation=False, single=True))
    first = Trial(BASELINE, "holdout", 1)
    second = Trial(BASELINE, "match", SECOND_SEED + 1, match="epoch", reference=first.key)
    statuses = tuple(TrialStatus(trial, "done", {}) for trial in (first, second))
    today = Plan(sweep, statuses, further=frozenset((first.key, second.key)))
    assert " --seeds 4 " in summary._next_command(today, settings(*GIVEN), ExitCode.DONE)


@pytest.mark.parametrize(
    ("code", "words", "failed", "more"),
    [
        (ExitCode.INTERRUPTED, ("--fresh", "--smoke-test"), 0, ("--smoke-test",)),
        (ExitCode.INTERRUPTED, ("--stale", "retrain", "--yes"), 0, ()),
        (ExitCode.INTERRUPTED, ("--stale=keep",), 0, ("--stale=keep",)),
        (ExitCode.BUDGET, ("--max-gpu-hours", "5"), 0, ("--max-gpu-hours", "5")),
        (ExitCode.BUDGET, ("--max-gpu-hours", "0", "--fail-fast"), 0, ("--fail-fast",)),
        (ExitCode.FAILED, ("--retry-failed", "--seeds=2"), 1, ("--seeds=2", "--retry-failed")),
        (ExitCode.FAILED, ("--seeds=2", "--resume"), 0, ("--seeds=2",)),
        (ExitCode.DONE, ("--seeds=2", "--fresh"), 0, ("--seeds", "3")),
    ],
)
def test_what_is_asked_for_once_is_not_repeated(
    code: ExitCode, words: tuple[str, ...], failed: int, more: tuple[str, ...]
) -> None:
    said = line(code, *GIVEN, *words, failed=failed)
    assert tuple(shlex.split(said.partition("   (")[0])[1:]) == (*PROGRAM, *GIVEN, *more)


def test_smoke_test_is_followed_by_the_sweep_and_a_search_by_its_capsule() -> None:
    assert line(ExitCode.DONE, "--smoke-test", "--output", "o", profile="smoke") == (
        "next      .venv/bin/python -m sweeps.cifar_width --output o   (the sweep itself)"
    )
    searched = Protocol(ablation=False, search=Search(3))  # which more seeds would not change
    said = line(ExitCode.DONE, protocol=searched)
    assert said == (
        "next      .venv/bin/python -m sweeps export cifar_width-mini cifar_width-mini.zip --output '/my out'"
    )
    verb = verbs().parse_args(shlex.split(said)[4:])
    assert (verb.sweep, verb.output) == ("cifar_width-mini", "/my out")


@pytest.mark.parametrize(
    ("called", "expected"),
    [
        (["python3", "-X", "dev", "-m", "sweeps.s", "--seeds", "1"], ("python3", "-X", "dev", "-m", "sweeps.s")),
        ([".venv/bin/python", "-c", "code", "s", "--seeds", "1"], (".venv/bin/python", "-m", "sweeps.s")),
        (["/v/bin/python", "/v/bin/pytest", "--seeds", "1"], ("/v/bin/python", "-m", "sweeps.s")),
        (["python", "-m", "mine.s", "--seeds", "1"], ("python", "-m", "mine.s")),  # a page of one's own, elsewhere
        (["python", "/my pages/s.py", "--seeds", "1"], ("python", "/my pages/s.py")),
        (["python", "-m", "mine.s", "--seeds", "2"], ("python", "-m", "sweeps.s")),  # it had other arguments
    ],
)
def test_program_is_the_one_that_was_called(called: list[str], expected: tuple[str, ...]) -> None:
    assert program("sweeps.s", called, ["--seeds", "1"]) == expected


def test_command_is_the_one_of_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    words = ["--seeds", "3", "--only", "a b"]
    monkeypatch.setattr("sys.argv", ["sweeps/s.py", *words])
    monkeypatch.setattr("sys.orig_argv", [".venv/bin/python", "-X", "dev", "-m", "sweeps.s", *words])
    assert Command.typed("sweeps.s").again() == ".venv/bin/python -X dev -m sweeps.s --seeds 3 --only 'a b'"


def test_flag_is_left_out_with_its_words() -> None:
    assert without(("-q", "--seeds", "3", "--only", "a", "--seeds=4"), "--seeds", 1) == ("-q", "--only", "a")
    assert without(("--fresh", "--only", "--fresh-one"), "--fresh", 0) == ("--only", "--fresh-one")


@pytest.mark.parametrize(
    ("actual", "said"),
    [(120.0, "+20%"), (50.0, "-50%"), (200.0, "+100%"), (250.0, "2.5 times as long"), (3913.0, "39 times as long")],
)
def test_time_far_above_its_forecast_is_a_factor(actual: float, said: str) -> None:
    assert against_forecast(actual, 100.0) == said


def test_one_thing_is_not_many() -> None:
    assert [count(n, "trial") for n in (0, 1, 2, 1200)] == ["0 trials", "1 trial", "2 trials", "1,200 trials"]
    assert (count(1, "study"), count(3, "study")) == ("1 study", "3 studies")


# A number in braces and a noun behind it, as in {len(trials)} trials: for one of them it would be wrong.
# A constant is no such number.
UNCOUNTED = re.compile(
    r"\{(?!count\(|counted\(|[A-Z_]+\})[^{}]*\} (?:trials|cells|runs|seeds|folds|results|studies|CPUs|GPUs|findings)\b"
)
SPOKEN = [path for room in ("sweeps", "data", "crelu_models") for path in sorted((ROOT / room).rglob("*.py"))]


def test_a_person_is_told_numbers_of_things_by_count() -> None:
    assert len(SPOKEN) > 100
    assert UNCOUNTED.search("f'{len(trials)} trials'")
    assert UNCOUNTED.search("f'{total} findings'")
    assert not UNCOUNTED.search("f'fewer than {ENOUGH} trials'")
    found = {str(path.relative_to(ROOT)): UNCOUNTED.findall(path.read_text()) for path in SPOKEN}
    assert {path: words for path, words in found.items() if words} == {}


def test_what_trials_took_stands_beside_their_forecast(tmp_path: Path) -> None:
    ledger = Ledger(str(tmp_path))
    trial = Trial(BASELINE)
    said = list[str]()
    ledger.commit(trial.key, {"status": "finished"})
    forecast = SimpleNamespace(
        settings=SimpleNamespace(ledger=ledger),
        plan=SimpleNamespace(sweep=Sweep("s", "paper", (BASELINE,))),
        announced={BASELINE.key: None},
        epochs_before={},
        at_once=2,
        estimates=lambda trials, _, to_the_end: [TimeEstimate(100.0 - WORKER_START, 0.0, 0.0) for _ in trials],
    )
    compare(cast(Forecast, forecast), [(trial, 3913.0)], said.append)
    compare(cast(Forecast, forecast), [(trial, 120.0)], said.append)
    assert said == [
        "1 trial: forecast 100 s of trials, actual 3913 s (39 times as long)",
        "1 trial: forecast 100 s of trials, actual 120 s (+20%)",
    ]


@pytest.mark.parametrize("word", ["0", "1e6", "inf"])
def test_hours_of_a_session_may_be_any_number(word: str) -> None:
    assert parser("s", "").parse_args(["--max-gpu-hours", word]).max_gpu_hours == float(word)
