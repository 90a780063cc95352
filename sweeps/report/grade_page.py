"""Grade of a reproduction for people: as lines, as a page, as Markdown and as JSON."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from importlib import import_module
from pathlib import Path

from sweeps.report.files import write_atomically
from sweeps.report.render.document import Document, Entry, Section, Table, Tile
from sweeps.report.render.formats import markdown
from sweeps.report.render.html import page
from sweeps.results.evidence import SweepResults, read_sweep, readable_titles
from sweeps.results.grade import Graded, grade, stage_counts
from sweeps.results.reproduction_trees import TREES, Branch
from sweeps.store.ledger import Json, Ledger
from sweeps.store.local_uris import reports_in

WORDS = (
    "Each number, sentence, figure and theorem is a leaf. Its items pass checks in this order: run (5 % of the score), "
    "at the paper's scale (15 %), on the paper's data (20 %), with enough trainings (20 %), in agreement (40 %). "
    "An item stops at the first that it fails. A leaf's score is the mean of its items', a part's the weighted mean of "
    "its own parts. Figures and theorems have fewer checks.",
    "GPU-hours are estimated from operations at 20 TFLOP/s: ten folds, or two seeds, of each row that lacks them.",
)

PAGE = "grade.html"
SHOWN = 2  # levels below the paper in the page's first table, which is folded where it is long


def arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `grade`; --output is every verb's."""
    known = ", ".join(TREES)
    parser.add_argument("tree", nargs="?", default="crelu", help=f"{known}, or module:NAME of your own (default crelu)")
    parser.add_argument("--json", action="store_true", help="as JSON")
    parser.add_argument("--to", metavar="DIR", help="write the page there (default OUTPUT/reports/grade)")


def run(options: argparse.Namespace) -> int:
    """Print the grade of a paper from the sweeps of an output, and write its page."""
    tree = tree_named(options.tree)
    ledger = Ledger.in_output(options.output)
    readable, left_out = declared(ledger)
    all_results = [read_sweep(ledger, title) for title in readable]
    for sentence in left_out:
        print(sentence, file=sys.stderr)
    graded = grade(tree, all_results)
    if options.json:
        changed = changed_questions(all_results)
        print(json.dumps(as_json(graded) | ({"changed": changed} if changed else {}), indent=1))
        return bool(left_out)
    print("\n".join([*lines(graded), *changed_questions(all_results)]))
    if options.to or "://" not in options.output:
        folder = Path(options.to) if options.to else reports_in(options.output) / "grade"
        print(f"page       {write(graded, all_results, folder)}")
    return bool(left_out)


def write(graded: Graded, all_results: Sequence[SweepResults], folder: Path) -> Path:
    """Write the page of a grade into a folder, with the same as Markdown, and return its path."""
    document = graded_document(graded, [results.title for results in all_results], changed_questions(all_results))
    write_atomically(folder / "grade.md", markdown(document).encode())
    path = folder / PAGE
    write_atomically(path, page(document).encode())
    return path


def changed_questions(all_results: Sequence[SweepResults]) -> list[str]:
    """Return a sentence for each change of a sweep's questions after its first training."""
    return [f"{results.title}: {change.sentence}" for results in all_results for change in results.changes]


def declared(ledger: Ledger) -> tuple[list[str], list[str]]:
    """Return the sweeps of a ledger, and why others are left out.

    None where none has run, which is a grade of 0; ValueError where the output is not there at all: its name is wrong.
    """
    is_there = not ledger.local or Path(ledger.root).parent.is_dir()
    return readable_titles(ledger) if ledger.names("plans") or not is_there else ([], [])


def tree_named(name: str) -> Branch:
    """Return a tree by its name, or that of a module of the user's; ValueError where there is none."""
    if name in TREES:
        return TREES[name]
    module, _, attribute = name.partition(":")
    if not attribute:
        raise ValueError(f"there is no tree {name!r}; there are: {', '.join(TREES)}, or module:NAME of your own")
    try:
        tree = getattr(import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        raise ValueError(f"the tree {name} is not to be had: {error}") from None
    if not isinstance(tree, Branch):
        raise ValueError(f"{name} is no tree: it is {type(tree).__name__}, and has to be a Branch")
    return tree


def lines(graded: Graded, depth: int = 0) -> Iterator[str]:
    """Yield a line for each part, with its score, what it lacks, and the hours that this takes."""
    yield f"{graded.score:6.1%}  {'  ' * depth}{graded.title}{_lacking(graded, ': ')}"
    for part in graded.parts:
        yield from lines(part, depth + 1)


def _lacking(graded: Graded, before: str) -> str:
    """Return the hours that it takes to get what a part lacks, else what its items fail; empty where all pass."""
    if graded.parts and graded.hours >= 1:
        return f"{before}about {graded.hours:,.0f} GPU-hours to go"
    counts = stage_counts(graded)
    words = [f"{number} not {check}" for check, number in counts.items() if check]
    return f"{before}{', '.join(words)} (of {sum(counts.values())})" if words else ""


def as_json(graded: Graded) -> Json:
    """Return the grade of a part as JSON."""
    items = [
        {"name": item.name, "score": item.score, "fails": item.missing, "why": item.why, "gpu_hours": item.hours}
        for item in graded.items
    ]
    return {
        "title": graded.title,
        "weight": graded.weight,
        "score": graded.score,
        "gpu_hours": graded.hours,
        "items": items,
        "parts": [as_json(part) for part in graded.parts],
    }


def graded_document(graded: Graded, sweeps: list[str], changed: Sequence[str] = ()) -> Document:
    """Return the page of a grade: the score of each part, then each item that falls short, by part."""
    source = f"From {', '.join(sweeps)}." if sweeps else "No sweep has run in this output."
    sections = [Section("parts", "Score by part", (source, *changed, *WORDS), (_parts_table(graded),))]
    for number, part in enumerate(graded.parts):
        rows = tuple(_short_items(part))
        if rows:
            table = Table(f"short-{number}", part.title, ("", "fails", "why", "GPU-hours"), "lllr", rows)
            sections.append(Section(f"part-{number}", part.title, (), (table,), folded=True))
    counts = stage_counts(graded)
    shown = sum(counts.values())
    tiles = (
        Tile(f"{graded.score:.0%}", "reproduced", "weighted over all parts"),
        Tile(f"{counts.get('', 0)} of {shown}", "items pass all checks"),
        Tile(f"{graded.hours:,.0f}", "GPU-hours to go", "for trainings that are missing"),
    )
    return Document(graded.title, "How much of it has been reproduced?", "", tiles, tuple(sections))


def _parts_table(graded: Graded) -> Table:
    rows = tuple(_part_rows(graded, 0))
    return Table("grade", "", ("part", "weight", "score", "falls short"), "lrrl", rows)


def _part_rows(graded: Graded, depth: int) -> Iterator[tuple[Entry, ...]]:
    indent = "\N{EM SPACE}" * depth
    short = _lacking(graded, "")
    yield (
        Entry(f"{indent}{graded.title}"),
        Entry(f"{graded.weight:g}"),
        Entry(f"{graded.score:.0%}", tone="good" if graded.score == 1 else ""),
        Entry(short, tone="muted"),
    )
    for part in graded.parts if depth < SHOWN else ():
        yield from _part_rows(part, depth + 1)


def _short_items(graded: Graded) -> Iterator[tuple[Entry, ...]]:
    for leaf in graded.leaves():
        for item in leaf.items:
            if item.missing:
                hours = f"{item.hours:,.0f}" if item.hours else ""
                yield Entry(item.name, sub=leaf.title), Entry(item.missing), Entry(item.why), Entry(hours)
