"""What cannot be imported or built on a worker alone is on the ledger and on the screen within seconds, through Ray."""

import subprocess
import sys
import time
from pathlib import Path

from sweeps.experiment.plan import current_plan
from sweeps.store.ledger import Ledger
from tests.support.commands import environment

PAGE = '''"""Which net has the lower error?"""

from sweeps import Cell, Model, Protocol, Recipe, main

PICTURES = "synthetic:size=32,classes=2,train=40,test=20"
RECIPE = Recipe("mine", "adam", batch=16, epochs=1, lr=0.003, init="own")
CELLS = [Cell(f"{module} {name}", Model(f"{module}:{name}", size=32), PICTURES, RECIPE)
         for module, name in (("nets", "net"), ("nets", "weights"), ("lacking", "net"))]
CELLS.append(Cell("own training", Model("nets:net", size=32), PICTURES, RECIPE, task="lacking:train"))

if __name__ == "__main__":
    main("page", __doc__, CELLS, Protocol(seeds=1))
'''
NETS = """import os
from torch import nn

def net(num_classes):
    return nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, num_classes))

def weights(num_classes):
    if "RAY_RAYLET_PID" in os.environ:
        raise RuntimeError("no weights of mine here")
    return net(num_classes)
"""
LACKING = """import os
from nets import net

if "RAY_RAYLET_PID" in os.environ:
    import package_of_my_laptop

def train(trial, data, run):
    return {}
"""
# The line of the user's code is the last of the trace that lies in the user's folder.
ERRORS = {
    "nets weights": "RuntimeError: no weights of mine here (nets.py, line 9 in weights)",
    "lacking net": "ModuleNotFoundError: No module named 'package_of_my_laptop' (lacking.py, line 5)",
    "own training": "ModuleNotFoundError: No module named 'package_of_my_laptop' (lacking.py, line 5)",
}
SOON = 30.0  # seconds after the start of a trial


def test_what_fails_on_a_worker_alone_is_told_at_once_with_the_line_of_the_users_code(tmp_path: Path) -> None:
    for name, source in {"page": PAGE, "nets": NETS, "lacking": LACKING}.items():
        (tmp_path / f"{name}.py").write_text(source)
    words = [sys.executable, "page.py", "--profile", "paper", "--max-concurrent", "1", "--output", "out"]
    user = environment(tmp_path, PYTHONPATH=str(Path(__file__).resolve().parents[2]))
    came: dict[str, float] = {}
    with (
        (tmp_path / "said").open("w") as said,
        subprocess.Popen(words, cwd=tmp_path, env=user, stdout=said, stderr=subprocess.PIPE, text=True) as driver,
    ):
        assert driver.stderr is not None
        for line in driver.stderr:
            came.setdefault(line.partition(" ")[2], time.time())
    assert driver.returncode == 1, came
    table = (tmp_path / "said").read_text()
    assert "1 of 4 trials are done, 3 failed." in table
    ledger = Ledger(str(tmp_path / "out" / "ledger"))
    for status in current_plan(ledger, "page").statuses:
        label = status.trial.cell.label
        if label not in ERRORS:
            assert status.result is not None
            continue
        (attempt,) = ledger.attempts(status.trial.key)
        assert attempt["error"].endswith(ERRORS[label])
        assert attempt["final"]
        began = came[f"{label} s0: training\n"]
        (told,) = (when for line, when in came.items() if line.startswith(f"{label} s0: failed: {attempt['error']}"))
        assert attempt["time"] - began < SOON
        assert told - began < SOON
        assert f"  failed: {label} s0: {attempt['error']}\n" in table
