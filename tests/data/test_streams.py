"""A stream that cannot say a sign, or that is closed, costs a line and not the command."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SAY = "import os\nfrom crelu_data.streams import make_lasting\nmake_lasting()\n"


def say(code: str, **how: object) -> "subprocess.CompletedProcess[bytes]":
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("LC_", "LANG", "PYTHON"))}
    words: dict[str, object] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "env": environment} | how
    return subprocess.run([sys.executable, "-c", SAY + code], cwd=ROOT, timeout=60, check=False, **words)  # type: ignore[call-overload, no-any-return]


@pytest.mark.parametrize(
    ("encoding", "line"),
    [
        ("ascii", b"9.5 +- 0.1+ a-b \\xe9 \\udcff\n"),
        ("latin-1", b"9.5 \xb1 0.1+ a-b \xe9 \\udcff\n"),
        ("cp437", b"9.5 \xf1 0.1+ a-b \x82 \\udcff\n"),
        ("utf-8", "9.5 ± 0.1† a–b é \\udcff\n".encode()),
    ],
)
def test_signs_that_a_stream_has_not_are_spelled(encoding: str, line: bytes) -> None:
    done = say("print('9.5 ± 0.1† a–b é \\udcff')", env=dict(os.environ) | {"PYTHONIOENCODING": encoding})
    assert (done.returncode, done.stdout, done.stderr) == (0, line, b"")


def test_a_reader_who_leaves_stops_nothing(tmp_path: Path) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    try:
        done = say(
            f"for line in range(9): print('x' * 9000, flush=True)\nopen({str(tmp_path / 'made')!r}, 'w').close()",
            stdout=writing,
        )
    finally:
        os.close(writing)
    assert (done.returncode, done.stderr) == (0, b"")
    assert (tmp_path / "made").exists()


def test_standard_errors_may_go_too() -> None:
    reading, writing = os.pipe()
    os.close(reading)
    try:
        done = say("import sys\nfor line in range(9): print('x', file=sys.stderr)\nprint('done')", stderr=writing)
    finally:
        os.close(writing)
    assert (done.returncode, done.stdout) == (0, b"done\n")


def test_streams_that_were_closed_before_are_no_error() -> None:
    shell = f'exec "{sys.executable}" -c "$0" >&- 2>&-'
    code = SAY + "import sys\nprint('x')\nprint('y', file=sys.stderr)\nsys.exit(0 if not sys.stdout.isatty() else 1)"
    assert subprocess.run(["sh", "-c", shell, code], cwd=ROOT, check=False, timeout=60).returncode == 0


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no /dev/full here")
def test_a_full_disk_under_a_stream_stops_nothing() -> None:
    with open("/dev/full", "wb") as full:
        done = say("for line in range(3): print('x' * 9000, flush=True)", stdout=full)
    assert (done.returncode, done.stderr) == (0, b"")
