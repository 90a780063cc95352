"""Sides of a comparison, each in a process of its own, that take turns: a line asks for one, a line of JSON answers."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]


def start(module: str, *words: str) -> subprocess.Popen[str]:
    """Start one side: a benchmark's module with these words."""
    pipe = subprocess.PIPE
    command = [sys.executable, "-m", f"benchmarks.{module}", *words]
    return subprocess.Popen(command, cwd=ROOT, text=True, stdin=pipe, stdout=pipe, stderr=pipe)


def answer(process: subprocess.Popen[str]) -> Any:
    """Return the next answer of a side."""
    assert process.stdout is not None
    line = process.stdout.readline()
    assert line, process.communicate()[1]
    return json.loads(line)


def ask(process: subprocess.Popen[str], what: str = "go") -> Any:
    """Let a side take its turn, and return its answer."""
    assert process.stdin is not None
    print(what, file=process.stdin, flush=True)
    return answer(process)
