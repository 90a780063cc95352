"""What is installed: the three packages with their files, the command, and nothing that is called data."""

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from setuptools import find_packages

from sweeps import __main__ as verbs

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())


def test_wheel_has_our_packages_and_nothing_called_data() -> None:
    packages = find_packages(str(ROOT), include=PROJECT["tool"]["setuptools"]["packages"]["find"]["include"])
    assert {name.partition(".")[0] for name in packages} == {"crelu_models", "crelu_data", "sweeps"}
    folders = {str(path.parent.relative_to(ROOT)).replace("/", ".") for path in (ROOT / "sweeps").rglob("*.py")}
    assert folders <= set(packages)
    files = PROJECT["tool"]["setuptools"]["package-data"]
    for package in ("crelu_models", "crelu_data", "sweeps"):
        named = {path for glob in files[package] for path in (ROOT / package).glob(glob)}
        others = {path for path in (ROOT / package).rglob("*") if path.is_file() and path.suffix != ".py"}
        assert {path for path in others if path.parent.name != "__pycache__"} == named


def test_citation_is_of_this_version() -> None:
    cited = re.findall(r"^version: (.+)$", (ROOT / "CITATION.cff").read_text(), re.MULTILINE)
    assert cited == [PROJECT["project"]["version"]]


def test_the_command_that_is_installed_names_itself(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    ((command, target),) = PROJECT["project"]["scripts"].items()
    assert (command, target) == (verbs.SCRIPT, "sweeps.__main__:main")
    monkeypatch.setattr(sys, "argv", [f"/usr/bin/{command}", "--help"])
    with pytest.raises(SystemExit):
        verbs.main()
    assert capsys.readouterr().out.startswith("usage: crelu-sweeps [-h]")


def pins(lock: str) -> dict[str, str]:
    """Return the versions in a lock by package; each has a hash, and no line names an index."""
    text = (ROOT / lock).read_text()
    assert "://" not in text
    entries = re.findall(r"^([\w.-]+)==(\S+)[^\n]*\\\n +--hash=sha256:", text, re.M)
    assert len(entries) == len(re.findall(r"^\S", text, re.M))
    return dict(entries)


def test_notebooks_have_a_lock_that_fits_the_other() -> None:
    installed, added = pins("requirements.lock"), pins("notebook.lock")
    assert {requirement.partition(">=")[0] for requirement in PROJECT["dependency-groups"]["notebook"]} <= added.keys()
    assert "jupyterlab" not in installed
    assert {name: version for name, version in added.items() if installed.get(name, version) != version} == {}


def planned(*words: str) -> str:
    """Return what make would run; uv's own words are not asked for."""
    command = ["make", "--no-print-directory", "-n", "-B", *words]
    return subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout


def test_setup_tells_the_size_first_and_takes_the_whole_lock() -> None:
    said = planned("setup", "CPU=")
    assert said.index(".venv takes about 7.2 GB of disk; 2.4 GB without CUDA") < said.index("uv pip sync")
    assert "--require-hashes requirements.lock" in said
    assert "--torch-backend" not in said
    assert said.rstrip().endswith("touch .venv/.complete")


def test_setup_without_cuda_takes_the_lock_but_cuda_and_torch_for_cpus() -> None:
    said = planned("setup", "CPU=1")
    assert said.index(".venv without CUDA takes about 2.4 GB of disk") < said.index("uv pip sync")
    assert "--compile-bytecode" not in said
    assert "--no-deps --torch-backend cpu" in said
    assert "--require-hashes .venv/cpu.lock" in said
    assert said.rstrip().endswith("touch .venv/.complete-cpu")
    (program,) = re.findall(r"awk '(.*?)' requirements.lock", said)
    command = ["awk", program.replace("$$", "$"), "requirements.lock"]
    kept = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout
    names, whole = set(re.findall(r"^([\w.-]+)==", kept, re.M)), pins("requirements.lock").keys()
    left_out = {name for name in whole if name.startswith(("nvidia-", "cuda-"))} | {"triton", "torch", "torchvision"}
    assert names == whole - left_out
    assert len(left_out) > 10


def test_only_ffcv_needs_linux() -> None:
    (pin,) = re.findall(r"^ffcv==.*", (ROOT / "requirements.lock").read_text(), re.M)
    assert pin.removesuffix(" \\").endswith("; sys_platform == 'linux'")
