"""What is installed: the three packages with their files, the command, and nothing that is called data."""

import re
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
