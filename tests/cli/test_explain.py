"""The explanation of a cell or a trial says what it is, where it stands, why, and what may be done."""

import dataclasses
from pathlib import Path

import pytest

from crelu_models.tables import S2
from sweeps.__main__ import parser
from sweeps.experiment.cell_trials import expand
from sweeps.experiment.code_fingerprint import cell_fingerprint
from sweeps.experiment.metrics import TOP1
from sweeps.experiment.rates import RateStudy
from sweeps.experiment.search import Search
from sweeps.experiment.sweep import Protocol, Sweep
from sweeps.experiment.trial import Trial
from sweeps.store import checkpoint
from sweeps.store.ledger import Ledger
from tests.support.sweeps import BASELINE, CRELU, Made, make

SWEEP = Sweep("s", "demo", (BASELINE, CRELU), Protocol(seeds=2, folds=2))


@pytest.fixture
def output(tmp_path: Path) -> Path:
    """Return an output with a trial in each state: done, failed, diverged, begun, new."""
    ledger = Ledger(str(tmp_path / "ledger"))
    trials = {f"{trial.cell.label} {trial.label}": trial for trial in expand(SWEEP, {})}
    endings = {
        "Baseline s0": Made({TOP1: 9.5}, events=("diverged in epoch 1: it begins anew",), restarts=1),
        "Baseline f0": Made({TOP1: 90.0}, status="diverged", ending="dead"),
    }
    failed, begun = trials["Baseline s1"], trials["CReLU conv1-4 s0"]
    for _ in range(2):
        ledger.add_attempt(failed.key, {"error": "OSError: no disk", "host": "node7", "time": 1.8e9})
    ledger.add_attempt(failed.key, {"error": "KeyError: 'x'", "final": True, "host": "node8", "time": 1.8e9})
    ledger.write(f"checkpoints/{begun.key}/00002-00000000.safetensors", b"")
    make(ledger, SWEEP, lambda trial: endings.get(f"{trial.cell.label} {trial.label}"))
    ledger.write(f"trials/{trials['Baseline s0'].key}/tables/scores.parquet", b"")
    return tmp_path


def told(output: Path, *words: str, capsys: pytest.CaptureFixture[str]) -> str:
    """Return what the verb prints."""
    options = parser().parse_args(["explain", "s-demo", *words, "--output", str(output)])
    assert options.verb(options) == 0
    return capsys.readouterr().out


def key(label: str) -> str:
    """Return the key of the trial with this label."""
    trials: list[Trial] = [trial for trial in expand(SWEEP, {}) if f"{trial.cell.label} {trial.label}" == label]
    return trials[0].key


def test_a_sweep_is_told_cell_by_cell(output: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = told(output, capsys=capsys)
    assert "Baseline: S2 on cifar10, by the recipe allconv\n  4 trials: 1 new, 2 done, 1 failed\n" in text
    assert "\n\nCReLU conv1-4: S2.crelu(1, 2, 3, 4) on cifar10" in text
    assert "4 trials: 3 new, 1 running" in text
    assert "  test error %: none yet" in text
    assert f"\n    {key('Baseline s0')}" not in text


def test_a_cell_that_the_paper_does_not_judge_says_why(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shorter = dataclasses.replace(BASELINE, recipe=dataclasses.replace(BASELINE.recipe, epochs=2))
    make(Ledger.in_output(str(tmp_path)), Sweep("s", "demo", (shorter,)), lambda _: Made({TOP1: 9.5}))
    for words in ((), ("Baseline",)):
        text = told(tmp_path, *words, capsys=capsys)
        assert "\n  no verdict by the paper's number: another recipe: epochs 2, not " in text


def test_a_cell_is_told_with_its_net_and_each_trial(output: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = told(output, "baseline", capsys=capsys)
    assert "\n    conv1    3x3x3x96" in text
    assert f"\n    s1  {key('Baseline s1')}  failed   KeyError: 'x'\n" in text
    assert "1 of 2 folds died, 1 of 2 seeds failed" in text or "1 of 2 seeds failed, 1 of 2 folds died" in text


def test_a_failed_trial_has_its_attempts_and_what_to_do(output: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = told(output, "Baseline", "s1", capsys=capsys)
    assert (
        "  stands    failed: it has failed: KeyError: 'x'; the sweep's command with --retry-failed tries it again"
        in text
    )
    assert "  attempt   1 of 3 on node7, 2027-01-15" in text
    assert "not tried again: KeyError: 'x'\n" in text
    assert text.count("  attempt   ") == 3
    assert str(output / "ledger" / "attempts" / key("Baseline s1") / "0003.json") in text


def test_a_done_trial_has_its_numbers_events_run_and_files(output: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = told(output, key("Baseline s0")[:8], capsys=capsys)
    assert text.startswith(f"Baseline s0, trial {key('Baseline s0')} of s-demo\n")
    assert "  stands    done: it is done, and its result stands\n" in text
    assert "  ended     finished (schedule) after 10 epochs, 600 s on NVIDIA H200\n" in text
    assert "  numbers   final/test_top1_err 9.5, best/val_top1_err 10, best/epoch 10\n" in text
    assert "  event     diverged in epoch 1: it begins anew\n" in text
    assert "  mlflow    run " in text
    assert f"  files     {output}/ledger/results/{key('Baseline s0')}.json\n" in text
    assert text.rstrip().endswith(f"trials/{key('Baseline s0')}/tables/scores.parquet")
    assert "ended     dead (dead)" in told(output, "Baseline", "f0", capsys=capsys)


def test_trials_to_come_say_how_many_start_before(output: Path, capsys: pytest.CaptureFixture[str]) -> None:
    begun = told(output, "CReLU conv1-4", "s0", capsys=capsys)
    assert "  stands    running: it has begun and has a checkpoint; the sweep's command goes on with it\n" in begun
    assert "00002-00000000.safetensors" in begun
    # CReLU's seed 0 is the first to do, then CReLU's fold 0 and 1 and Baseline's fold 1 come with the first seed.
    assert "1 trial of this sweep starts before it" in told(output, "CReLU conv1-4", "f0", capsys=capsys)
    fold = told(output, "Baseline", "f1", capsys=capsys)
    assert "  draws     seed 1; fold 1 of 2 held out\n" in fold
    assert "  stands    new: it has not begun; 2 trials of this sweep start before it\n" in fold


def test_trials_that_wait_are_counted_with_what_they_wait_for(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sweep = Sweep("s", "demo", (BASELINE,), Protocol(ablation=False, single=True))
    make(Ledger(str(tmp_path / "ledger")), sweep, lambda _: None)
    assert "2 trials: 1 new, 1 to follow when those before them are done\n" in told(tmp_path, capsys=capsys)


def test_training_at_a_studied_rate_is_told_as_that(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    errors = {0.25: 20.0, 0.1: 10.0}
    protocol = Protocol(ablation=False, single=True, rates=RateStudy("Baseline", tuple(errors)))
    sweep = Sweep("s", "demo", (BASELINE,), protocol)
    make(Ledger(str(tmp_path / "ledger")), sweep, lambda trial: Made({TOP1: 9.0}, curve=[errors[trial.rate]]))
    what = "  what      a training of the baseline at one of the rates that its study tries"
    assert f"{what}\n" in told(tmp_path, "Baseline", "s0 holdout lr=0.25", capsys=capsys)
    chosen = told(tmp_path, "Baseline", "s0 holdout lr=0.1", capsys=capsys)
    assert f"{what}, and the first phase of Single\n" in chosen


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (("Baselin",), "s-demo has no cell 'Baselin'; did you mean 'Baseline'?"),
        (("Baseline", "s7"), "Baseline has no trial 's7'; did you mean 's1'?"),
    ],
)
def test_names_that_are_not_there_are_a_sentence(output: Path, words: tuple[str, ...], sentence: str) -> None:
    options = parser().parse_args(["explain", "s-demo", *words, "--output", str(output)])
    with pytest.raises(ValueError, match=r".") as error:
        options.verb(options)
    assert str(error.value).startswith(sentence)


def test_the_beginning_of_a_name_is_enough_where_no_other_has_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cell = dataclasses.replace(BASELINE, net=S2.dropout(0.5, "pool1"))
    ledger = Ledger(str(tmp_path / "ledger"))
    make(ledger, Sweep("s", "demo", (cell,), Protocol(search=Search(2))), lambda _: None)
    assert "  draws     seed 0; the hold-out left out; dropout 0 after input, 0 after pool1" in told(
        tmp_path, "Baseline", "s0 holdout input=0 pool1=0 pool2=0", capsys=capsys
    )
    options = parser().parse_args(["explain", "s-demo", "Baseline", "s0", "--output", str(tmp_path)])
    with pytest.raises(
        ValueError, match=r"Baseline has 2 trials that begin with 's0': s0 holdout input=0 pool1=0 pool2=0, s0 "
    ):
        options.verb(options)
    make(ledger, Sweep("s", "demo", (BASELINE,), Protocol(ablation=False, single=True)), lambda _: None)
    assert "trial" in told(tmp_path, "Baseline", "s0", capsys=capsys)


def test_a_cell_that_was_given_up_says_why_and_what_trains_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sweep = Sweep("s", "demo", (BASELINE, CRELU), Protocol(seeds=4))
    lost = Made({TOP1: 90.0}, status="diverged")

    def outcome(trial: Trial) -> Made | None:
        if trial.cell == BASELINE:
            return lost if trial.seed < 2 else None
        return Made({TOP1: 9.0})

    make(Ledger(str(tmp_path / "ledger")), sweep, outcome)
    why = "the first 2 trainings of this cell diverged; the others are skipped (--retry-failed trains them)"
    for words in ((), ("Baseline",)):
        assert told(tmp_path, *words, capsys=capsys).count(f"  given up: {why}\n") == 1
    assert "given up" not in told(tmp_path, CRELU.label, capsys=capsys)
    assert told(tmp_path, "Baseline", capsys=capsys).count("  done (diverged)\n") == 2
    assert "(" not in told(tmp_path, CRELU.label, capsys=capsys).partition("s0")[2]


def test_a_trial_under_way_says_how_far_it_has_come(output: Path, capsys: pytest.CaptureFixture[str]) -> None:
    state = {"epoch": 10, "code": cell_fingerprint(CRELU)}
    trial = key("CReLU conv1-4 s0")
    checkpoint.save(Ledger(str(output / "ledger")), trial, 10, 0, checkpoint.Checkpoint({}, state))
    epochs = CRELU.recipe.epochs
    assert f"  running   after epoch 10 of {epochs}\n" in told(output, CRELU.label, capsys=capsys)
    stands = f"it has begun and has a checkpoint: after epoch 10 of {epochs}; the sweep's command goes on with it"
    assert stands in told(output, trial, capsys=capsys)
