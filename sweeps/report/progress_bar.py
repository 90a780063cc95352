"""Progress bar on a terminal for work of some parts that takes more than two seconds; elsewhere nothing is shown."""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final

PATIENCE: Final = 2.0  # seconds for which work shows no bar


@contextmanager
def progress_bar(doing: str, parts: int, quiet: bool = False) -> Iterator[Callable[[str], None]]:
    """Yield a function to call at the beginning of each of `parts`, with its name: the bar counts those before it.

    What is printed meanwhile stands above the bar, which is gone at the end.
    """
    if quiet or not sys.stderr.isatty() or os.environ.get("CI"):
        yield lambda _: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    console = Console(stderr=True, markup=False, emoji=False, highlight=False)
    words = TextColumn("{task.description}", markup=False)
    bar = Progress(
        words, BarColumn(bar_width=20), MofNCompleteColumn(), TimeElapsedColumn(), console=console, transient=True
    )
    task = bar.add_task(doing, total=parts)
    begun = 0
    timer = threading.Timer(PATIENCE, bar.start)
    timer.daemon = True

    def begin(name: str) -> None:
        nonlocal begun
        bar.update(task, completed=begun, description=f"{doing}: {name}" if name else doing)
        begun += 1

    timer.start()
    try:
        yield begin
    finally:
        timer.cancel()
        timer.join()
        bar.stop()
