"""Failures are one fault if type and innermost line of our code agree: in a checkout, installed, or on a worker."""

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from sweeps.execution.failures import failure_signature
from sweeps.store.ledger import failed_attempt
from sweeps.training.splits import open_splits
from tests.support.trials import runtime_config, trial_of

ROOT = Path(__file__).parents[2]
TRACE = """Traceback (most recent call last):
  File "{root}/sweeps/execution/worker.py", line 70, in work
  File "{root}/sweeps/training/trainer.py", line 163, in run
  File "{root}/crelu_data/load.py", line 9, in batches
  File "{libraries}/torch/utils/data/dataloader.py", line 99, in __next__
  File "{libraries}/torch/nn/functional.py", line 7, in linear
RuntimeError: record 5
"""


@pytest.mark.parametrize(
    ("root", "libraries"),
    [
        ("/home/me/crelu", "/home/me/crelu/.venv/lib/python3.11/site-packages"),
        ("/usr/lib/python3.11/site-packages", "/usr/lib/python3.11/site-packages"),
        ("/tmp/ray/session_1/runtime_resources/working_dir_files/_ray_pkg_0", "/opt/data/lib"),
        ("/data/sweeps/data", "/data/sweeps/.venv/lib/python3.11/site-packages"),
    ],
)
def test_innermost_line_of_ours_is_named_wherever_the_code_lies(root: str, libraries: str) -> None:
    trace = TRACE.format(root=root, libraries=libraries)
    assert (
        failure_signature({"error": "RuntimeError: record 5", "trace": trace}) == "RuntimeError at crelu_data/load.py:9"
    )


def test_hung_process_is_known_by_the_line_it_hangs_in() -> None:
    trace = (
        "Thread 0x1 (most recent call first):\n"
        '  File "/usr/lib/python3.11/queue.py", line 180 in get\n'
        '  File "/x/crelu_data/load.py", line 9 in batches\n'
        '  File "/x/sweeps/execution/worker.py", line 70 in work\n'
    )
    assert failure_signature({"error": "Hang: no step for 1800 s", "trace": trace}) == "Hang at crelu_data/load.py:9"


def test_failure_without_a_line_of_ours_is_known_by_its_type() -> None:
    assert failure_signature({"error": "the worker process died 3 times"}) == "the worker process died 3 times"
    trace = 'File "/usr/lib/python3.11/site-packages/torch/utils/data/dataloader.py", line 9, in __next__'
    assert failure_signature({"error": "OSError: no space", "trace": trace}) == "OSError"


def test_a_real_error_is_named_by_its_own_line(data: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="planned") as caught:
        open_splits(trial_of("All-CNN-B"), runtime_config(data, tmp_path, fingerprint="other"))
    signature = failure_signature(failed_attempt(caught.value, final=True))
    file, _, number = signature.removeprefix("ValueError at ").partition(":")
    assert file == "sweeps/training/splits.py"
    assert "raise ValueError" in (ROOT / file).read_text().splitlines()[int(number) - 1]


def test_an_installed_package_names_its_lines_too(tmp_path: Path) -> None:
    """The packages are copied to where an installation puts them, and run from another folder."""
    archive, installed = tmp_path / "copy.zip", tmp_path / "site-packages"
    with zipfile.ZipFile(archive, "w") as copy:
        for package in ("sweeps", "crelu_data", "crelu_models"):
            for path in (ROOT / package).rglob("*.py"):
                copy.write(path, path.relative_to(ROOT))
    zipfile.ZipFile(archive).extractall(installed)
    code = (
        "from sweeps.execution.failures import failure_signature\n"
        "from sweeps.experiment.trial import trial_from_json\n"
        "from sweeps.store.ledger import failed_attempt\n"
        "try:\n    trial_from_json({})\n"
        "except ValueError as error:\n    print(failure_signature(failed_attempt(error, final=True)))\n"
    )
    words = [sys.executable, "-W", "ignore", "-c", f"import sys; sys.path.insert(0, {str(installed)!r})\n{code}"]
    done = subprocess.run(words, capture_output=True, text=True, timeout=120, cwd=tmp_path, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("ValueError at sweeps/experiment/trial.py:"), done.stdout
