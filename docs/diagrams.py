"""Draw the two pictures of architecture.md: python docs/diagrams.py writes docs/pictures/{rooms,trial}.svg.

In the site they stand inside the page and take its colours, light or dark; as files they follow the reader's system.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from xml.sax.saxutils import escape

PICTURES = Path(__file__).parent / "pictures"
STYLE = """
  svg.crelu { --ink: var(--color-foreground-primary, #1f2328); --soft: var(--color-foreground-secondary, #57606a);
    --fill: var(--color-background-secondary, #f6f8fa); --edge: var(--color-foreground-border, #8c959f);
    --accent: var(--color-brand-primary, #0a58ca); }
  @media (prefers-color-scheme: dark) { svg.crelu { --ink: var(--color-foreground-primary, #e6edf3);
    --soft: var(--color-foreground-secondary, #9da7b3); --fill: var(--color-background-secondary, #161b22);
    --edge: var(--color-foreground-border, #6e7681); --accent: var(--color-brand-primary, #6ea8fe); } }
  svg.crelu text { font: 13px system-ui, "Segoe UI", "DejaVu Sans", sans-serif; fill: var(--soft); }
  svg.crelu text.name { font-weight: 600; font-size: 15px; fill: var(--ink); }
  svg.crelu text.file { font: 12px ui-monospace, "DejaVu Sans Mono", monospace; }
  svg.crelu rect { fill: var(--fill); stroke: var(--edge); stroke-width: 1; }
  svg.crelu rect.main { stroke: var(--accent); stroke-width: 1.5; }
  svg.crelu rect.band { fill: none; stroke-dasharray: 4 4; }
  svg.crelu path { fill: none; stroke: var(--edge); stroke-width: 1.3; }
  svg.crelu path.main { stroke: var(--accent); stroke-width: 1.6; }
  svg.crelu path.head { fill: var(--edge); stroke: none; }
  svg.crelu path.head.main { fill: var(--accent); }
"""


def picture(name: str, title: str, width: int, height: int, parts: Sequence[str]) -> None:
    """Write one picture."""
    head = f'<svg class="crelu" xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" role="img"'
    label = f' aria-labelledby="{name}-title"><title id="{name}-title">{escape(title)}</title>'
    body = "\n".join(parts)
    drawing = f"{head}{label}\n<style>{STYLE}</style>\n{body}\n</svg>\n"
    (PICTURES / f"{name}.svg").write_text(drawing)


def box(x: float, y: float, width: float, height: float, name: str, *lines: str, kind: str = "") -> str:
    """Return a box with a name and lines of text, centred."""
    middle = x + width / 2
    top = y + height / 2 - 8.5 * len(lines) + 5
    texts = [f'<text class="name" x="{middle}" y="{top}" text-anchor="middle">{escape(name)}</text>']
    texts += [
        f'<text x="{middle}" y="{top + 17 * number + 1}" text-anchor="middle">{escape(line)}</text>'
        for number, line in enumerate(lines, 1)
    ]
    return f'<rect class="{kind}" x="{x}" y="{y}" width="{width}" height="{height}" rx="7"/>' + "".join(texts)


def label(x: float, y: float, text: str, kind: str = "", anchor: str = "start") -> str:
    """Return a line of text."""
    return f'<text class="{kind}" x="{x}" y="{y}" text-anchor="{anchor}">{escape(text)}</text>'


def arrow(*points: tuple[float, float], kind: str = "") -> str:
    """Return a line through `points` with a head at its end; its last stretch is straight across or straight down."""
    (x0, y0), (x, y) = points[-2:]
    across, down = (x > x0) - (x < x0), (y > y0) - (y < y0)
    line = " L".join(f"{px} {py}" for px, py in [*points[:-1], (x - 6 * across, y - 6 * down)])
    side = [(x - 8 * across + 4.5 * down, y - 8 * down + 4.5 * across),
            (x - 8 * across - 4.5 * down, y - 8 * down - 4.5 * across)]  # fmt: skip
    head = " L".join(f"{px} {py}" for px, py in [(x, y), *side])
    return f'<path class="{kind}" d="M{line}"/><path class="head {kind}" d="M{head} Z"/>'


def rooms() -> None:
    """Draw the rooms, and who imports whom."""
    rows = [12, 104, 196, 298, 390, 482, 574, 666]
    tall = 62
    parts = [
        box(20, rows[0], 460, tall, "five pages, and yours", "python -m sweeps.NAME", kind="main"),
        box(500, rows[0], 220, tall, "__main__", "python -m sweeps VERB", kind="main"),
        box(20, rows[1], 460, tall, "launch", "the door of a page: main, Cell, Protocol, Search, recipes"),
        box(20, rows[2], 220, tall, "analysis", "jobs on finished weights"),
        box(260, rows[2], 220, tall, "cli", "options, live view, status"),
        box(500, rows[2], 220, tall, "ops", "MLflow's server, doctor"),
        box(20, rows[3], 330, tall, "report", "table, page, Markdown, LaTeX, charts"),
        box(390, rows[3], 330, tall, "execution", "Ray: workers, packs, ranks, resources"),
        box(20, rows[4], 220, tall, "results", "statistics, verdicts, claims"),
        box(260, rows[4], 220, tall, "tracking", "MLflow, from the ledger"),
        box(500, rows[4], 220, tall, "training", "one trial; torch, no Ray"),
        box(20, rows[5], 700, tall, "experiment", "what is compared: cells, trials, recipes, searches, plans"),
        box(390, rows[6], 330, tall, "store", "the ledger: the state of record, as files"),
        box(20, rows[7], 330, tall, "crelu_models", "the paper's networks", kind="main"),
        box(390, rows[7], 330, tall, "data", ".beton files: write, read, augment", kind="main"),
    ]

    def down(x: float, upper: int, lower: int) -> str:
        return arrow((x, rows[upper] + tall), (x, rows[lower]))

    parts += [
        down(250, 0, 1),
        down(370, 1, 2),
        down(640, 0, 2),
        arrow((550, rows[0] + tall), (550, 181), (440, 181), (440, rows[2])),
        down(100, 2, 3),
        arrow((190, rows[2] + tall), (190, 278), (420, 278), (420, rows[3])),
        *(down(x, 2, 3) for x in (300, 455, 610)),
        down(370, 2, 4),
        down(130, 3, 4),
        down(610, 3, 4),
        *(down(x, 4, 5) for x in (130, 370, 610)),
        down(305, 3, 4),
        down(185, 5, 7),
        *(down(555, row, row + 1) for row in (5, 6)),
        arrow((390, rows[7] + tall / 2), (350, rows[7] + tall / 2)),
    ]
    title = "The rooms of the project: a room imports only from rooms below it"
    picture("rooms", title, 740, rows[7] + tall + 12, parts)


def trial() -> None:
    """Draw the way of a trial, and the files of the ledger that each step writes."""
    width, tall, top, gap = 136, 84, 16, 20
    left = [16 + number * (width + gap) for number in range(5)]
    steps = (
        ("Page", "cells, protocol,", "search"),
        ("Plan", "which trials exist,", "which are missing"),
        ("Queue", "a Ray worker takes", "the next trial"),
        ("Train", "epoch by epoch,", "with checkpoints"),
        ("Test", "the test set,", "once, at the end"),
    )
    parts = [box(x, top, width, tall, *step) for x, step in zip(left, steps, strict=True)]
    middle = top + tall / 2
    parts += [arrow((x + width, middle), (x + width + gap, middle), kind="main") for x in left[:-1]]

    band, high = 166, 74
    parts += [f'<rect class="band" x="8" y="{band - 24}" width="{left[-1] + width}" height="{high + 34}" rx="9"/>',
              label(16, band - 6, "The ledger: files on a disk or in a bucket")]  # fmt: skip
    files = (
        ("plans/", "what was", "declared"),
        ("results/", "read: what is", "already done"),
        ("leases/, claims/", "who drives,", "who trains"),
        ("checkpoints/", "the last two", "states"),
        ("trials/, results/", "KEY.json is written", "last: the commit"),
    )
    ways = ("down", "up", "down", "both", "down")
    for x, (name, *lines), way in zip(left, files, ways, strict=True):
        centre = x + width / 2
        parts.append(label(centre, band + 24, name, "file", "middle"))
        parts += [label(centre, band + 42 + 16 * n, line, anchor="middle") for n, line in enumerate(lines)]
        ends = ((centre, top + tall), (centre, band - 24))
        if way == "both":
            parts += [arrow((centre - 10, ends[0][1]), (centre - 10, ends[1][1])),
                      arrow((centre + 10, ends[1][1]), (centre + 10, ends[0][1]))]  # fmt: skip
        else:
            parts.append(arrow(*(ends if way == "down" else ends[::-1])))

    low = band + high + 50
    shown = (
        ("MLflow", "a run a trial, under", "a run a cell"),
        ("Table", "on the terminal, when", "the sweep ends"),
        ("Report", "page, Markdown, LaTeX,", "CSV, Parquet"),
        ("Analysis", "the paper's figures,", "from the weights"),
    )
    wide = 170
    places = [16 + n * (wide + 26.7) for n in range(4)]
    parts += [box(x, low, wide, tall, *what) for x, what in zip(places, shown, strict=True)]
    parts += [arrow((x + wide / 2, band + high + 10), (x + wide / 2, low)) for x in places]
    title = "The way of a trial, from a page to the table, and the files of the ledger on its way"
    picture("trial", title, left[-1] + width + 16, low + tall + 16, parts)


if __name__ == "__main__":
    rooms()
    trial()
