"""What does a person see in the first hour? Pictures of the demo on a terminal, in MLflow and of its report.

    python -m benchmarks.first_hour FOLDER                 # trains the demo in FOLDER/outputs: minutes
    python -m benchmarks.first_hour FOLDER --output DIR    # the demo is done there: no training, no live view

The demo runs in tmux on a terminal of 80x24, which then grows to 200x60; Ctrl-C is typed, and the same command resumes.
MLflow's table, charts and compare view, and the report on a desktop and a phone, are drawn by a headless Chromium. Each
is a PNG in FOLDER, to be looked at. What a terminal or MLflow's table shows is also a text of the same name, which
tests/test_first_hour.py compares with what the code prints. To renew the pictures of the docs:

    cp FOLDER/*.png FOLDER/*.txt docs/pictures

Needs tmux and chromium: apt-get install tmux chromium.
"""

from __future__ import annotations

import argparse
import html.parser
import re
import shlex
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
SWEEP = "sweeps.imagenet_placement"
TITLE = "imagenet_placement-demo"
SMALL, LARGE = (80, 24), (200, 60)
DESKTOP, PHONE, TABLE, CHARTS, COMPARED = (1280, 900), (390, 844), (1414, 660), (1414, 1080), (1000, 620)
PATIENCE = 3600.0  # seconds
ASSISTANT = 0.35  # of a picture's width: what MLflow's assistant takes besides, at the right, in a new browser
SETTLED = 60_000  # virtual milliseconds for a page's scripts
MOUSE = "primaryHoverType=2,availableHoverTypes=2"  # else charts show the tools that a mouse over them brings up
LETTER = (8.43, 20)  # pixels of a letter and of a line, in pictures of a terminal
PAGE = """<html><body style="margin:0;padding:12px 16px;background:#191919;color:#b9bcba">
<pre style="margin:0;font:14px/20px 'DejaVu Sans Mono',monospace">{code}</pre></body></html>"""


class Terminal:
    """A terminal of some size in tmux, with its own server."""

    def __init__(self, size: tuple[int, int], command: list[str]) -> None:
        """Run a command in it, from the root of the project."""
        self.name = f"first-hour-{time.time_ns()}"
        self.size = size
        # The shell stays, so that the last lines do.
        words = f"cd {shlex.quote(str(ROOT))}; {shlex.join(command)}; echo exit $?; sleep {PATIENCE:.0f}"
        self._tmux("new-session", "-d", "-x", str(size[0]), "-y", str(size[1]), "bash", "-c", words)

    def _tmux(self, *words: str) -> str:
        command = ["tmux", "-L", self.name, *words]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout

    def shown(self) -> str:
        """Return what stands on it, with its colours."""
        return self._tmux("capture-pane", "-e", "-p")

    def resize(self, size: tuple[int, int]) -> None:
        """Give it another size, as a window is drawn larger."""
        self.size = size
        self._tmux("resize-window", "-x", str(size[0]), "-y", str(size[1]))
        time.sleep(3.0)

    def interrupt(self) -> None:
        """Type Ctrl-C."""
        self._tmux("send-keys", "C-c")

    def wait_for(self, pattern: str) -> None:
        """Wait until a line on it fits a pattern."""
        until(lambda: re.search(pattern, self.shown()) is not None, f"{pattern!r} on the terminal")

    def close(self) -> None:
        """End it, and what runs in it."""
        self._tmux("kill-server")

    def draw(self, path: Path) -> None:
        """Draw it as a picture."""
        draw_text(self.shown(), self.size, path)


def until(ready: Callable[[], bool], what: str) -> None:
    """Wait for something; TimeoutError where it does not come."""
    ends = time.monotonic() + PATIENCE
    while not ready():
        if time.monotonic() > ends:
            raise TimeoutError(what)
        time.sleep(0.2)


def draw_text(ansi: str, size: tuple[int, int], path: Path) -> None:
    """Draw the text of a terminal, with its colours, as a picture; the text alone beside it."""
    import io

    from rich.console import Console
    from rich.terminal_theme import DIMMED_MONOKAI
    from rich.text import Text

    path.with_suffix(".txt").write_text(f"{Text.from_ansi(ansi.rstrip()).plain}\n", encoding="utf-8")
    columns, lines = size[0], len(ansi.rstrip().splitlines())
    console = Console(record=True, file=io.StringIO(), width=columns, force_terminal=True, color_system="truecolor")
    console.print(Text.from_ansi(ansi.rstrip()), soft_wrap=True)
    page = path.with_suffix(".html")
    code = console.export_html(theme=DIMMED_MONOKAI, inline_styles=True, code_format=PAGE)
    page.write_text(code, encoding="utf-8")
    screenshot(page.as_uri(), (int(columns * LETTER[0]) + 32, lines * LETTER[1] + 24), path)
    page.unlink()


def screenshot(address: str, size: tuple[int, int], path: Path, right: float = 0.0) -> None:
    """Draw a page as a picture of this size, in few enough colours for a small file; those of small dots are kept.

    The page is wider by a share of that, `right` of the picture.
    """
    from PIL import Image

    _chromium(f"--window-size={int(size[0] * (1 + right))},{size[1]}", f"--screenshot={path}", address)
    with Image.open(path) as picture:
        small = picture.crop((0, 0, *size)).convert("RGB").quantize(256, method=Image.Quantize.MAXCOVERAGE)
    small.save(path, optimize=True)
    print(f"{path}  {size[0]}x{size[1]}, {path.stat().st_size / 1e3:.0f} kB", flush=True)


def _chromium(*words: str) -> str:
    """Run a headless Chromium, and return what it prints."""
    command = [
        shutil.which("chromium") or "chromium-browser", "--headless", "--no-sandbox", "--hide-scrollbars",
        f"--virtual-time-budget={SETTLED}", f"--blink-settings={MOUSE}", *words,
    ]  # fmt: skip
    return subprocess.run(command, check=True, capture_output=True, text=True, timeout=300).stdout


class Columns(html.parser.HTMLParser):
    """The columns of the table on MLflow's page, by their number from the left: the heading, then its cells."""

    def __init__(self, page: str) -> None:
        """Read the page."""
        super().__init__()
        self.headings: dict[int, str] = {}
        self.cells: dict[int, list[str]] = {}
        self.open: list[tuple[str, int]] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Begin a heading or cell; what stands within one belongs to it."""
        if tag == "div":
            named = dict(attrs)
            role, column = named.get("role") or "", int(named.get("aria-colindex") or 0)
            self.open.append((role, column))
            if role == "columnheader" and column:
                self.headings[column] = ""  # that of several columns together comes before theirs
            elif role == "gridcell":
                self.cells.setdefault(column, []).append("")

    def handle_endtag(self, tag: str) -> None:
        """End what was begun."""
        if tag == "div" and self.open:
            self.open.pop()

    def handle_data(self, data: str) -> None:
        """Add words to the heading or cell that they stand in."""
        for role, column in self.open:
            if role == "columnheader" and column:
                self.headings[column] += data
            elif role == "gridcell":
                self.cells[column][-1] += data


def write_columns(address: str, size: tuple[int, int], path: Path) -> None:
    """Write the columns of MLflow's table from the left, a line each: the heading and its cells from above."""
    page = Columns(_chromium(f"--window-size={size[0]},{size[1]}", "--dump-dom", address))
    texts = [[page.headings[column], *page.cells.get(column, [])] for column in sorted(page.headings)]
    lines = [[" ".join(text.split()) for text in line] for line in texts]
    path.write_text("".join("  ".join(line) + "\n" for line in lines if line[0]), encoding="utf-8")


def draw_run(folder: Path, output: Path) -> None:
    """Run the demo, and draw its live view at two sizes, an interrupt and the end."""
    python = ".venv/bin/python" if (ROOT / ".venv/bin/python").exists() else sys.executable  # as a person types it
    command = [python, "-m", SWEEP, "--profile", "demo", "--output", str(output)]
    first = Terminal(SMALL, command)
    try:
        first.wait_for(r"\b[3-9]/9 done, 2 training, about")
        first.draw(folder / "live-80x24.png")
        first.resize(LARGE)
        first.draw(folder / "live-200x60.png")
        first.interrupt()
        first.wait_for("stopping: ")
        first.draw(folder / "interrupted.png")
        first.wait_for("exit 130")
        first.draw(folder / "resume.png")
    finally:
        first.close()
    again = Terminal(LARGE, command)
    try:
        again.wait_for(r"exit \d")
        again.draw(folder / "table.png")
    finally:
        again.close()


@contextmanager
def mlflow_ui(output: Path) -> Iterator[str]:
    """Yield the address of an MLflow server over an output's runs."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    command = [str(Path(sys.executable).with_name("mlflow")), "ui", "--workers", "1", "--port", str(port),
               "--backend-store-uri", f"sqlite:///{output.absolute()}/mlflow.db"]  # fmt: skip
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        until(lambda: _answers(f"http://127.0.0.1:{port}/health"), "MLflow's server")
        yield f"http://127.0.0.1:{port}"
    finally:
        server.terminate()
        server.wait()


def _answers(address: str) -> bool:
    try:
        with urllib.request.urlopen(address, timeout=10):
            return True
    except OSError:
        return False


def draw_mlflow(folder: Path, output: Path) -> None:
    """Draw the table of runs, its charts, and the cells beside each other."""
    from sweeps.tracking.layout import charts_address, compare_address, table_address

    with mlflow_ui(output) as server:
        from mlflow import MlflowClient

        client = MlflowClient(server)
        (experiment,) = client.search_experiments(filter_string=f"name = '{TITLE}'")
        runs = client.search_runs([experiment.experiment_id])
        cells = [run.info.run_id for run in runs if "mlflow.parentRunId" not in run.data.tags]
        number = experiment.experiment_id
        screenshot(f"{server}/{table_address(number)}", TABLE, folder / "mlflow.png", ASSISTANT)
        # So wide that no column is left out.
        write_columns(f"{server}/{table_address(number)}", (4000, TABLE[1]), folder / "mlflow.txt")
        screenshot(f"{server}/{charts_address(number)}", CHARTS, folder / "mlflow-charts.png", ASSISTANT)
        screenshot(f"{server}/{compare_address(number, cells)}", COMPARED, folder / "compare.png", ASSISTANT)


def main() -> None:
    """Draw all pictures of the first hour."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--output", type=Path, help="of a demo that is done (default: train it in FOLDER/outputs)")
    options = parser.parse_args()
    folder: Path = options.folder.absolute()
    folder.mkdir(parents=True, exist_ok=True)
    output = (options.output or folder / "outputs").absolute()
    if options.output is None:
        draw_run(folder, output)
    page = (output / "reports" / TITLE / "report.html").as_uri()
    screenshot(page, DESKTOP, folder / "report-desktop.png")
    screenshot(page, PHONE, folder / "report-phone.png")
    draw_mlflow(folder, output)


if __name__ == "__main__":
    main()
