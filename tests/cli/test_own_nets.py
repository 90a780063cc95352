"""Nets of a user's on a folder of pictures, by the real command: searched, packed, killed twice, proved, reported.

The page lies beside files of the researcher's own whose names are those of our modules.
"""

from __future__ import annotations

import re
import signal
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest

from sweeps.experiment.study import study
from sweeps.store.ledger import Json
from tests.support.commands import wait_for
from tests.support.own_nets import CELLS, SEEDS, WORDS, User, expected_effects, expected_factors, mean

POINTS = 3
MODEL = "own-nets"
# Errors of registered models on the test pictures, computed where the page is not: their code travels with them.
SCORE = """import sys
from pathlib import Path
import mlflow
import numpy as np
from PIL import Image

mlflow.set_tracking_uri(sys.argv[1])
files = [sorted(folder.iterdir()) for folder in sorted(Path(sys.argv[2]).iterdir())]
pictures = np.stack([np.asarray(Image.open(file)) for names in files for file in names])
labels = np.repeat([0, 1], [len(names) for names in files])
for alias in sys.argv[3:]:
    scores = mlflow.pyfunc.load_model(alias).predict(pictures)
    print(100 * np.mean(scores.argmax(1) != labels))
"""


@pytest.fixture(scope="module")
def swept(tmp_path_factory: pytest.TempPathFactory) -> tuple[User, str]:
    """Return the user of a page whose driver was killed twice, and what the last command has printed."""
    user = User(tmp_path_factory.mktemp("own_nets"), "models:resnet", "layers.*.act", POINTS)
    words = (*WORDS, "--register", MODEL)
    kept: dict[str, Json] = {}
    for number in (2, 12):
        with user.start(*words) as driver:
            wait_for(f"{number} results", lambda number=number: len(user.ledger.results()) >= number, driver)  # type: ignore[misc]
            driver.send_signal(signal.SIGKILL)
        kept |= user.ledger.results()
    assert 12 <= len(kept) < 30
    with user.start(*words) as driver:
        said, errors = driver.communicate(timeout=400)
    assert driver.returncode == 0, errors
    assert kept.items() <= user.ledger.results().items(), "a trial that was done has been trained again"
    return user, said


def test_the_page_is_short(swept: tuple[User, str]) -> None:
    assert len(swept[0].page.splitlines()) <= 25


def test_each_cell_is_searched_and_trained_with_what_its_search_chose(swept: tuple[User, str]) -> None:
    user, said = swept
    assert "30 of 30 trials are done" in said
    today = user.planned()
    results = user.ledger.results()
    assert {result["status"] for result in results.values()} == {"finished"}
    search = today.sweep.protocol.search
    assert search is not None
    assert [cell.label for cell in today.sweep.cells] == CELLS
    for cell in today.sweep.cells:
        cell_study = study(search, cell, results, ())
        assert cell_study.winner is not None
        held_out = [results[trial.key]["metrics"]["best/val_top1_err"] for trial in cell_study.trials]
        assert (len(held_out), cell_study.winner.value) == (POINTS, min(held_out))
        finals = [s.trial for s in today.statuses if s.trial.cell == cell and s.trial.phase == "ablation"]
        assert [trial.seed for trial in finals] == list(range(SEEDS))
        assert {trial.choices for trial in finals} == {cell_study.winner.trial.choices}
    # Four trainings took each batch together: none of them knows its share of the reading alone.
    rows = [user.ledger.read_json(f"trials/{key}/history.json") for key in results]
    assert not any("sys/data_share" in row for history in rows for row in history or ())


def test_report_has_effects_factors_and_responses(swept: tuple[User, str]) -> None:
    user, said = swept
    errors = user.errors()
    assert len(set(errors.values())) > 2, "no effect is seen where all errors are alike"
    effects = pd.read_csv(user.report / "effects.csv").set_index("row")
    assert effects["difference"].to_dict() == pytest.approx(expected_effects(errors))
    for label in CELLS[1:]:
        assert effects.loc[label, ["n", "over", "reference"]].tolist() == [SEEDS, "seeds", "resnet relu"]
    factors = pd.read_csv(user.report / "factors.csv").set_index(["factors", "levels"])["difference"]
    assert factors.to_dict() == pytest.approx(expected_factors(errors))
    assert f"{mean(errors, 'vit crelu'):.2f} ±" in said

    # A chart of each dimension of each search, whose points are too few for their importance.
    assert "No table of importance: a cell needs 20 points" in (user.report / "report.md").read_text()
    page = (user.report / "report.html").read_text()
    for axis in ("recipe.lr", "recipe.weight_decay"):
        drawn = re.findall(rf"([\w ]+): hold-out error by {re.escape(axis)}", page)
        assert sorted(set(drawn)) == sorted(CELLS)


def test_registered_winners_score_as_the_table_says(swept: tuple[User, str], tmp_path: Path) -> None:
    user, said = swept
    assert f"{MODEL} has 6 winners of 6 cells, 6 new" in said
    (tmp_path / "score.py").write_text(SCORE)
    names = [f"models:/{MODEL}@{label.replace(' ', '-')}" for label in CELLS]
    words = ("score.py", f"sqlite:///{user.out}/mlflow.db", str(user.folder / "pictures" / "val"), *names)
    scored = subprocess.run(
        [sys.executable, *words], cwd=tmp_path, env=user.environment, capture_output=True, text=True, check=False,
        timeout=300,
    )  # fmt: skip
    assert scored.returncode == 0, scored.stderr
    today = user.planned()
    winners = [today.winner(cell) for cell in today.sweep.cells]
    errors = user.errors()
    expected = [errors[winner.cell.label, winner.seed] for winner in winners if winner is not None]
    assert [float(line) for line in scored.stdout.splitlines()] == expected


def test_both_nets_are_proved_to_resume_bit_for_bit(swept: tuple[User, str]) -> None:
    user, _ = swept
    labels = ("resnet crelu", "vit crelu")
    for proof in [user.prove(label) for label in labels]:
        said, errors = proof.communicate(timeout=400)
        assert proof.returncode == 0, errors
        assert "killed 1 time, weights, curves and scores are bit for bit those of a training without" in said
    cells = {cell.label: cell.key for cell in user.planned().sweep.cells}
    assert user.ledger.names("verified") == sorted(f"{cells[label]}.json" for label in labels)
