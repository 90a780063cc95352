"""The verb verify-resume notes a proof where there is one, and says in a sentence why there is none."""

from pathlib import Path

import pytest

from sweeps.__main__ import parser
from sweeps.execution import verify_resume
from sweeps.execution.verify_resume import Verdict
from sweeps.experiment.plan import plan, plan_to_json
from sweeps.experiment.sweep import Sweep
from sweeps.experiment.trial import Cell, Trial
from sweeps.store.ledger import Json, Ledger
from sweeps.training import runtime
from sweeps.training.runtime import RuntimeConfig
from tests.support.sweeps import BASELINE
from tests.support.trials import trial_of

EMBEDDED = trial_of("allconv with dropout").cell


class Proof:
    """Proofs of declared cells in an output folder; no process trains, so many `kills` have changed nothing."""

    def __init__(self, output: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.output = output
        self.ledger = Ledger.in_output(str(output))
        self.kills = 3
        self.configs: list[RuntimeConfig] = []
        monkeypatch.setattr(verify_resume, "verify", self._verify)

    def _verify(self, trial: Trial, config: RuntimeConfig, folder: str, kills: int, seed: int) -> Verdict:
        self.configs.append(config)
        return Verdict(self.kills, ())

    def run(self, *words: str, cell: Cell = EMBEDDED) -> int:
        """Verify a cell by the command line."""
        self.ledger.write_json("plans/s.json", plan_to_json(plan(Sweep("s", "paper", (cell,)), self.ledger, {})))
        folders = ["--output", str(self.output), "--data-dir", str(self.output / "data")]
        options = parser().parse_args(["verify-resume", "s", *folders, *words])
        return int(options.verb(options))

    @property
    def noted(self) -> list[Json | None]:
        """Return the proofs on the ledger."""
        return [self.ledger.read_json(f"verified/{name}") for name in self.ledger.names("verified")]


@pytest.fixture
def proof(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Proof:
    """Return proofs in an empty folder."""
    return Proof(tmp_path, monkeypatch)


def test_a_proof_is_noted_with_its_kills(proof: Proof, capsys: pytest.CaptureFixture[str]) -> None:
    assert proof.run() == 0
    (noted,) = proof.noted
    assert noted is not None
    assert noted["kills"] == 3
    assert "killed 3 times, weights, curves and scores are bit for bit" in capsys.readouterr().out


def test_a_training_that_ends_before_a_kill_proves_nothing(proof: Proof, capsys: pytest.CaptureFixture[str]) -> None:
    proof.kills = 0
    with pytest.raises(ValueError, match="its training ended before it was killed, so nothing is proved"):
        proof.run()
    assert proof.noted == []
    assert "bit for bit" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--kills", "0"], "a whole number of at least 1, not '0'"),
        (["--kills", "-1"], "a whole number of at least 1, not '-1'"),
        (["--device", "gpu"], "there is no 'gpu'"),
    ],
)
def test_words_by_which_nothing_is_proved_are_refused(
    words: list[str], expected: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        parser().parse_args(["verify-resume", "s", *words])
    assert ended.value.code == 2
    assert expected in capsys.readouterr().err


def test_pictures_that_are_not_there_are_named_before_anything_trains(proof: Proof) -> None:
    with pytest.raises(ValueError, match="cifar10 is not prepared: looked for "):
        proof.run(cell=BASELINE)
    assert proof.configs == []


def test_a_gpu_that_is_not_there_is_refused(proof: Proof, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runtime, "available_device", lambda: "cpu")
    with pytest.raises(ValueError, match="--device cuda: there is no GPU here that torch can use"):
        proof.run("--device", "cuda")
    assert proof.configs == []


def test_the_reader_is_one_that_is_installed_unless_another_is_asked_for(
    proof: Proof, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("crelu_data.load.default_reader", lambda: "threads")
    proof.run()
    proof.run("--reader", "ffcv")
    assert [config.reader for config in proof.configs] == ["threads", "ffcv"]
