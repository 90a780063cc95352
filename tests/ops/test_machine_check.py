"""The doctor of a machine names what is missing, and what to do: each fault is planted."""

import importlib.util
import json
import os
import re
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from crelu_data.write import prepare
from sweeps.ops import machine_check
from sweeps.ops.machine_check import (
    GIB,
    Finding,
    Request,
    TorchFacts,
    check_machine,
    disks,
    libraries,
    memory,
    mlflow,
    pictures,
    processors,
    program,
    settings,
    shared_memory,
    torch_and_gpus,
)
from tests.support.commands import environment

ROOT = Path(__file__).resolve().parents[2]
PICTURES = "synthetic:classes=2,train=20,test=10"
CPU_BUILD = TorchFacts("2.14.0+cpu", "", ())
CUDA_BUILD = TorchFacts("2.14.0", "13.0", ())
SEEN = TorchFacts("2.14.0", "13.0", ("NVIDIA H100",))
CARD = ("NVIDIA H100, 81559 MiB, 580.1",)


def said(findings: object) -> tuple[str, str]:
    """Return the one finding."""
    (finding,) = findings  # type: ignore[misc]
    assert isinstance(finding, Finding)
    return finding.state, finding.sentence


@pytest.mark.parametrize(
    ("facts", "listed", "state", "words"),
    [
        (TorchFacts("", "", (), "ImportError: libcudart.so.13"), None, "WRONG", "PyTorch does not load: ImportError: "),
        (CPU_BUILD, None, "note", "built for the CPU alone; no GPU here"),
        (CPU_BUILD, CARD, "WRONG", "the CPU alone, beside NVIDIA H100, 81559 MiB, 580.1: make -B setup CPU= installs"),
        (CUDA_BUILD, CARD, "WRONG", "does not see NVIDIA H100, 81559 MiB, 580.1: the driver must be of CUDA 13.0"),
        (CUDA_BUILD, (), "WRONG", "nvidia-smi lists no GPU"),
        (SEEN, CARD, "ok", "built for CUDA 13.0: NVIDIA H100, 81559 MiB"),
        (SEEN, None, "ok", "built for CUDA 13.0: NVIDIA H100"),
    ],
)
def test_what_torch_and_the_driver_say_is_told(
    facts: TorchFacts, listed: tuple[str, ...] | None, state: str, words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    told = said(torch_and_gpus(facts, listed))
    assert told[0] == state
    assert words in told[1]


def test_a_gpu_that_a_variable_hides_is_no_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    state, words = said(torch_and_gpus(CUDA_BUILD, CARD))
    assert (state, "CUDA_VISIBLE_DEVICES hides NVIDIA H100" in words) == ("note", True)


def test_libraries_of_another_version_and_missing_ones_are_named() -> None:
    wanted = ["numpy>=99", "nosuchlibrary>=1", "pytest>=1", 'nothere>=1; extra == "serve"']
    numpy, missing = libraries(wanted)
    assert numpy.state == missing.state == "WRONG"
    assert numpy.sentence.endswith("and numpy>=99 is needed: make -B setup")
    assert missing.sentence == "nosuchlibrary is not installed: make -B setup"
    assert said(libraries(wanted[2:])) == ("ok", "all 1 are installed, in versions that serve")
    assert said(libraries())[0] == "ok"


@pytest.mark.parametrize("has_pip", [True, False])
def test_without_a_makefile_what_helps_is_pip_or_uv(
    has_pip: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Such as after `pip install .`: doctor named make's command, which has nothing to make there."""
    monkeypatch.setattr(machine_check, "ROOT", tmp_path)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object() if has_pip else None)
    monkeypatch.setattr(sys, "orig_argv", ["python"])
    install = "python -m pip install" if has_pip else f"uv pip install --python {sys.executable}"
    numpy, missing = libraries(["numpy>=99", "nosuchlibrary[b,a]<3,>=1"])
    assert numpy.sentence.endswith(f"and numpy>=99 is needed: {install} 'numpy>=99'")
    assert missing.sentence == f"nosuchlibrary is not installed: {install} 'nosuchlibrary[a,b]<3,>=1'"
    torch = f"{install} --force-reinstall torch torchvision"
    broken, for_cpus = TorchFacts("", "", (), "no such file"), CPU_BUILD
    assert said(torch_and_gpus(broken, None))[1] == f"PyTorch does not load: no such file: {torch}"
    assert said(torch_and_gpus(for_cpus, CARD))[1].endswith(f": {torch} installs the one that uses the GPU")
    monkeypatch.setattr(machine_check, "PROJECT", "no-such-project")
    assert said(libraries())[1] == f"the project is not installed in this environment: {install} ."


@pytest.mark.parametrize("name", ["sweeps.py", "sweeps/__init__.py"])
def test_a_file_that_hides_the_package_from_pages_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "sweeps").mkdir()  # without an __init__.py Python passes over it
    assert [finding.state for finding in program()] == ["ok"]
    file = tmp_path / name
    file.write_text("")
    (tmp_path / "page.py").write_text("from sweeps import Cell\n")
    done = subprocess.run((sys.executable, "page.py"), cwd=tmp_path, capture_output=True, text=True, check=False)
    last = done.stderr.splitlines()[-1]
    assert last == f"ImportError: cannot import name 'Cell' from 'sweeps' ({file})"
    row = "ImportError: cannot import name 'Cell' from 'sweeps' (/your/folder/sweeps.py)"
    assert f"| `{row}` |" in (ROOT / "docs" / "troubleshooting.md").read_text()
    _, finding = program()
    assert finding == ("WRONG", f"{file} hides this project's sweeps from the pages beside it: rename it")


def test_no_file_of_a_checkout_hides_its_packages(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    assert [finding.state for finding in program()] == ["ok"]


def test_cores_say_what_limits_them() -> None:
    assert said(processors(2, 2)) == ("ok", "2 cores")
    assert said(processors(2, 16)) == ("ok", "2 of 16 cores, by affinity, control group or SLURM")
    state, words = said(processors(1, 1))
    assert (state, words.startswith("1 core: ")) == ("note", True)
    assert said(processors(1, 8))[0] == "note"


def test_little_memory_is_wrong() -> None:
    assert said(memory(2 * GIB)) == ("ok", "2.0 GiB free")
    assert said(memory(GIB)) == ("WRONG", "1.0 GiB free: a sweep of small nets takes 2 GiB")


def test_shared_memory_that_is_small_or_missing_has_its_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_TMPDIR", raising=False)
    monkeypatch.setenv("TMPDIR", "/x")
    assert said(shared_memory(free=64 << 20)) == (
        "WRONG", "/dev/shm has only 64 MiB free: in a container, start it with --shm-size=1g",
    )  # fmt: skip
    assert said(shared_memory("/nosuchfolder"))[1].startswith("/nosuchfolder is not there: in a container, ")
    monkeypatch.setenv("TMPDIR", "/" + 99 * "x")
    assert "too long for Ray's sockets" in [*shared_memory()][-1].sentence


def test_a_folder_that_cannot_be_written_is_wrong(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    results, data = disks(Request(tmp_path / "file" / "out", str(tmp_path / "data")))
    assert (results.state, data.state) == ("WRONG", "ok")
    assert results.sentence.startswith(f"results: {tmp_path}/file/out cannot be written to")
    assert data.sentence.endswith(f"{tmp_path}/data, which will be made")


def test_pictures_are_listed_and_what_is_not_whole_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CRELU_DATA", raising=False)
    asked = Request(tmp_path, str(tmp_path / "data"))
    assert said(pictures(asked))[0] == "WRONG"
    monkeypatch.setenv("HOME", str(tmp_path))
    assert said(pictures(Request(tmp_path)))[1].endswith("the demo needs none")
    (tmp_path / "data").mkdir()
    state, words = said(pictures(asked))
    assert (state, words.startswith("none are prepared in ")) == ("WRONG", True)
    prepare(PICTURES, tmp_path / "data")
    assert said(pictures(asked)) == ("ok", f"{PICTURES}: 20 pictures to train on, 2 classes")
    next((tmp_path / "data").glob("*-train.beton")).unlink()
    state, words = said(pictures(asked))
    assert state == "WRONG"
    assert words.endswith(f"python -m crelu_data prepare {PICTURES} --fresh --data-dir {tmp_path}/data")
    next((tmp_path / "data").glob("*-train.json")).write_text(json.dumps({"odd": 1}))
    assert said(pictures(asked))[0] == "WRONG"


def test_command_for_pictures_that_are_missing_can_be_typed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CRELU_DATA_SOURCE", raising=False)
    prepare(PICTURES, tmp_path / "my data")
    next((tmp_path / "my data").glob("*-train.beton")).unlink()
    words = said(pictures(Request(tmp_path, str(tmp_path / "my data"))))[1]
    assert words.endswith(f"python -m crelu_data prepare {PICTURES} --fresh --data-dir '{tmp_path}/my data'")


def test_pictures_that_a_sweep_pulls_are_no_fault(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CRELU_DATA_SOURCE", "s3://bucket/data")
    asked = Request(tmp_path, str(tmp_path / "data"))
    for _ in ("no folder", "an empty one"):
        assert said(pictures(asked)) == (
            "note", f"none are in {tmp_path}/data: a sweep pulls them from s3://bucket/data"
        )  # fmt: skip
        (tmp_path / "data").mkdir(exist_ok=True)
    prepare(PICTURES, tmp_path / "data")
    next((tmp_path / "data").glob("*-train.beton")).unlink()
    assert said(pictures(asked)) == (
        "note", f"{PICTURES}: its pictures are not here; a sweep pulls them from s3://bucket/data"
    )  # fmt: skip


def test_output_in_a_bucket_has_no_room_to_look_at_and_no_store_of_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    asked = Request("s3://bucket/out", str(tmp_path))
    results, data = disks(asked)
    assert (results.state, data.state) == ("note", "ok")
    state, words = said(mlflow(asked))
    assert (state, "say by --tracking-uri" in words) == ("WRONG", True)


def test_gpus_are_those_that_pytorch_sees() -> None:
    def named(gpus: tuple[str, ...], listed: tuple[str, ...]) -> list[str]:
        facts = TorchFacts("2.11", "12.8", gpus, "")
        return [finding.sentence.rpartition(": ")[2] for finding in torch_and_gpus(facts, listed)]

    both = ("A, 80 GiB", "B, 80 GiB")
    assert named(("A",), both) == ["A"]
    assert named(("B", "A"), both) == [*both]
    assert named(("A",), both[:1]) == ["A, 80 GiB"]
    assert named(("A MIG 1g.10gb",), both[:1]) == ["A MIG 1g.10gb"]


def test_a_dead_mlflow_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    assert said(mlflow(Request(tmp_path)))[0] == "ok"
    assert not [*tmp_path.iterdir()]
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        port = closed.getsockname()[1]
    state, words = said(mlflow(Request(tmp_path, tracking_uri=f"http://127.0.0.1:{port}")))
    assert (state, "nothing listens there: start the server" in words) == ("WRONG", True)
    (tmp_path / "mlflow.db").write_bytes(b"no database at all" * 99)
    assert "the file is damaged" in said(mlflow(Request(tmp_path)))[1]


def test_each_setting_has_its_value_and_where_it_came_from() -> None:
    asked = Request("/out", "/data", tracking_uri="https://me:secret@host")
    variables = {"CRELU_DATA": "/other", "RAY_ADDRESS": "10.0.0.1", "HOME": "/home", "CI": "",
                   "CRELU_NOTIFY": "https://host/secret", "CRELU_PRICE_PER_GPU_HOUR": "3.5"}  # fmt: skip
    assert [finding.sentence for finding in settings(asked, variables)] == [
        "--output: /out, by the flag",
        "--data-dir: /data, by the flag",
        "--data-source: none, by default",
        "--address: 10.0.0.1, by $RAY_ADDRESS",
        "--tracking-uri: https://host, by the flag",
        "--experiment: the sweep's name, by default",
        "--price-per-gpu-hour: 3.5, by $CRELU_PRICE_PER_GPU_HOUR",
        "--notify: an address that is not shown, by $CRELU_NOTIFY",
        "$IMAGENET_DIR: not set",
        "$CUDA_VISIBLE_DEVICES: not set",
        "$OMP_NUM_THREADS: not set",
        "$RAY_TMPDIR: not set",
        "$TMPDIR: not set",
        "$NO_COLOR: not set",
        "$CI: (empty)",
    ]
    first = next(settings(Request("/here/outputs", is_default_output=True), {}))
    assert first.sentence == "--output: /here/outputs, by default"


# What Python runs first in a process: shared memory is gone.
WITHOUT_SHM = """import os

real = os.statvfs


def statvfs(path):
    if path == "/dev/shm":
        raise FileNotFoundError(2, "No such file or directory", path)
    return real(path)


os.statvfs = statvfs
"""


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="cores are taken away by Linux's affinity")
def test_command_names_each_fault_that_is_planted(tmp_path: Path) -> None:
    (tmp_path / "planted" / "torch").mkdir(parents=True)
    (tmp_path / "planted" / "torch" / "__init__.py").write_text("raise ImportError('libcudart.so.13 is not there')\n")
    (tmp_path / "planted" / "sitecustomize.py").write_text(WITHOUT_SHM)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    words = ["--data-dir", str(tmp_path / "no data"), "--tracking-uri", f"http://127.0.0.1:{port}",
             "--address", "127.0.0.1:1", "--output", str(tmp_path / "out")]  # fmt: skip
    root = Path(machine_check.__file__).parents[2]
    user = environment(tmp_path, PYTHONPATH=f"{tmp_path / 'planted'}:{root}")
    core = min(os.sched_getaffinity(0))
    ended = subprocess.run([sys.executable, "-m", "sweeps", "doctor", *words], env=user, cwd=tmp_path, text=True,
                           capture_output=True, preexec_fn=lambda: os.sched_setaffinity(0, {core}))  # fmt: skip
    assert ended.returncode == 1, ended.stderr
    for line in (
        r"shm +WRONG +/dev/shm is not there",
        r"cores +note +1 of \d+ cores, .*give 2 or more|cores +note +1 core: ",
        r"pictures +WRONG +.*/no data is not there",
        rf"mlflow +WRONG +http://127.0.0.1:{port} takes no runs",
        r"torch +WRONG +PyTorch does not load: ImportError: libcudart.so.13 is not there",
        r"settings +ok +--data-dir: .*/no data, by the flag",
    ):
        assert re.search(f"^({line})", ended.stdout, re.MULTILINE), (line, ended.stdout)


def test_the_lines_are_printed_in_order_and_one_that_is_wrong_is_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("CRELU_DATA", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setattr(machine_check, "torch_facts", lambda: CPU_BUILD)
    monkeypatch.setattr(machine_check, "driver_gpus", lambda: None)
    monkeypatch.setattr(machine_check, "memory", lambda: memory(8 * GIB))
    answers = {"ray": ('{"CPU": 2, "GPU": 0}', ""), "ffcv": ("threads", "")}
    monkeypatch.setattr(machine_check, "_run", lambda code, *_: answers["ray" if "init_ray" in code else "ffcv"])
    assert check_machine(Request(tmp_path / "out"))
    lines = capsys.readouterr().out.splitlines()
    names = [*dict.fromkeys(line.split()[0] for line in lines)]
    assert names == ["program", "libraries", "torch", "ffcv", "cores", "memory", "shm", "disk", "pictures", "ray",
                     "mlflow", "settings"]  # fmt: skip
    answers["ray"] = ("", "no Ray cluster answers at 10.0.0.1: start it")
    assert not check_machine(Request(tmp_path / "out"))
    told = capsys.readouterr()
    assert "ray        WRONG  no Ray cluster answers at 10.0.0.1: start it" in told.out
    assert told.err.startswith("1 line WRONG")
    monkeypatch.setitem(sys.modules, "sweeps.execution.cluster_address", None)  # it imports what is missing
    assert not check_machine(Request(tmp_path / "out"))
    told = capsys.readouterr()
    assert "shm        WRONG  not known without sweeps.execution.cluster_address" in told.out
    assert told.err.startswith("2 lines WRONG")


def test_a_process_that_fails_is_told_by_its_last_line() -> None:
    assert machine_check._run("print(7)")[0] == "7\n"
    assert machine_check._run("raise ValueError('no such thing')") == ("", "ValueError: no such thing")
