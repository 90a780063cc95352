"""One rule says how things are counted: no sentence has a number before a noun that is always in the plural."""

import ast
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import pytest

from sweeps.experiment.wording import count, is_line, plural, question_of

ROOT = Path(__file__).resolve().parents[2]
NOUNS = (
    "attempt", "byte", "cell", "class", "claim", "entry", "epoch", "error", "family", "file", "filter", "fold", "hour",
    "layer", "machine", "member", "name", "network", "pair", "picture", "place", "point", "process", "rank", "record",
    "request", "result", "row", "run", "seed", "session", "step", "study", "suggestion", "sweep", "test", "time",
    "training", "trial", "unit", "view", "worker",
)  # fmt: skip
PLURALS = frozenset(plural(2, noun) for noun in NOUNS)
# Databases, prepared sets and groups of ranks have more than one of these; the others are no numbers but names.
NEVER_ONE = {
    "{path.stat().st_size} bytes", "{sidecar.count} pictures", "{sidecar.classes} classes", "{ranks} ranks",
    "{self.ranks.size} ranks", "{layer} filters", "{path} names", "{cell.label} names",
}  # fmt: skip


def counted(source: str) -> Iterator[tuple[int, str]]:
    """Yield each f-string in which a number stands before a noun in the plural, by line."""
    for node in ast.walk(ast.parse(source)):
        parts = node.values if isinstance(node, ast.JoinedStr) else []
        for value, after in pairwise(parts):
            if not isinstance(value, ast.FormattedValue) or not isinstance(after, ast.Constant):
                continue
            word = str(after.value).split(" ")[1:2] if str(after.value).startswith(" ") else []
            is_constant = isinstance(value.value, ast.Name) and value.value.id.isupper()
            is_whole = value.format_spec is None or ast.unparse(value.format_spec) in ("f','", "f''")
            if word and word[0].strip(".,;:)]") in PLURALS and is_whole and not is_constant:
                yield value.lineno, f"{{{ast.unparse(value.value)}}} {word[0].strip('.,;:)]')}"


def test_no_sentence_counts_one_thing_in_the_plural() -> None:
    sentences = {
        f"{path.relative_to(ROOT)}:{line}: {text}"
        for path in sorted((ROOT / "sweeps").rglob("*.py"))
        for line, text in counted(path.read_text())
        if text not in NEVER_ONE
    }
    assert sentences == set()


@pytest.mark.parametrize(("n", "noun", "words"), [
    (1, "cell", "1 cell"), (0, "cell", "0 cells"), (2, "study", "2 studies"), (1, "study", "1 study"),
    (1234, "trial", "1,234 trials"), (2, "class", "2 classes"), (1, "class", "1 class"), (2, "batch", "2 batches"),
    (2, "epoch", "2 epochs"),
    (3, "key", "3 keys"),
])  # fmt: skip
def test_count_is_plain_english(n: int, noun: str, words: str) -> None:
    assert count(n, noun) == words


@pytest.mark.parametrize(("docstring", "question"), [
    ("Does it help?", "Does it help?"),
    ("Does it help,\nand how much? By a lot.\n\nMore of it.", "Does it help, and how much?"),
    ("Does it help? Nine places (Table 4).\n\nMore of it.", "Does it help? Nine places (Table 4)."),
    ("\n    Does it\n    help\n\n    More of it.\n", "Does it help"),
    ("", ""), (None, ""),
])  # fmt: skip
def test_question_of_a_page_is_its_first_line_to_the_end_of_the_sentence(docstring: str | None, question: str) -> None:
    assert question_of(docstring) == question


@pytest.mark.parametrize("text", ["a", "é 猫", "a\u3000b", "x1 (w=0.5)", " a "])
def test_a_line_has_letters_of_any_script(text: str) -> None:
    assert is_line(text)


@pytest.mark.parametrize("text", ["", " ", "a\nb", "a\n", "a\tb", "\x1b[2J", "a\u2028b", 5, None])
def test_no_line_is_empty_several_or_has_control_characters(text: object) -> None:
    assert not is_line(text)


def test_rule_sees_what_it_is_for() -> None:
    assert [text for _, text in counted('f"{len(done):,} trainings, {failed} failed"')] == ["{len(done)} trainings"]
    assert list(counted('f"{MOST} cells {name!r}, which no cell has; {n} of them"')) == []
