"""Notebooks: whether this process is one, and a picture in its output that changes while cells train."""

from __future__ import annotations

import io
import sys
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from rich.console import Console, RenderableType

WIDTH: Final = 140  # letters of a line
PRE: Final = "<pre style='line-height: 1.35; font-family: ui-monospace, Menlo, Consolas, monospace'>{code}</pre>"


def in_notebook() -> bool:
    """Return whether this process is the kernel of a notebook, which shows HTML."""
    shell = sys.modules.get("IPython")
    shell = shell.get_ipython() if shell is not None else None
    return shell is not None and hasattr(shell, "kernel")


def html(*pictures: RenderableType) -> str:
    """Return what rich draws as HTML with its styles inside."""
    return _drawn(pictures).export_html(inline_styles=True, code_format=PRE)


def _drawn(pictures: Iterable[RenderableType]) -> Console:
    from rich.console import Console

    console = Console(
        file=io.StringIO(), record=True, width=WIDTH, markup=False, emoji=False, highlight=False, force_jupyter=False
    )
    for picture in pictures:
        console.print(picture)
    return console


def _bundle(picture: RenderableType) -> dict[str, str]:
    """Return a picture as HTML, and as text for an output that shows no HTML."""
    return {"text/html": html(picture), "text/plain": _drawn([picture]).export_text()}


class Picture:
    """Picture in the output of a notebook's cell, as rich's Live is one on a terminal."""

    def __init__(self, first: RenderableType) -> None:
        """Prepare to show the first picture."""
        self.first = first
        self.handle: Any = None

    def start(self) -> None:
        """Show the first picture."""
        from IPython.display import display

        self.handle = display(_bundle(self.first), raw=True, display_id=True)

    def update(self, picture: RenderableType) -> None:
        """Show another picture in its place."""
        self.handle.update(_bundle(picture), raw=True)

    def stop(self) -> None:
        """Leave the last picture where it is."""
