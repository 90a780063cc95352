"""The list of mutations fits the tree: each applies, compiles, and names tests that are there."""

import re
from pathlib import Path

import pytest

from benchmarks.mutations import MUTATIONS, ROOT, Mutation, MutationRun, table

ROOMS = {"crelu_models", "data", "sweeps/experiment", "sweeps/store", "sweeps/training", "sweeps/results",
         "sweeps/execution", "sweeps/tracking"}  # fmt: skip


def fault(mutation: Mutation) -> str:
    """Return what is wrong with a mutation of the tree, or nothing."""
    try:
        content = mutation.apply(ROOT)
        compile(content, mutation.file, "exec")
    except (OSError, ValueError, SyntaxError) as error:
        return f"{mutation.name}: {error}"
    return f"{mutation.name}: changes nothing" if mutation.old == mutation.new else ""


def test_every_mutation_applies_once_and_still_compiles() -> None:
    assert [message for mutation in MUTATIONS if (message := fault(mutation))] == []


@pytest.mark.parametrize(
    ("file", "old", "new", "message"),
    [
        ("a.py", "x = 1", "x = 2", ""),
        ("a.py", "x = 1", "x = 1", "changes nothing"),
        ("a.py", "y = 1", "y = 2", "0 times, not once"),
        ("a.py", "x = 1", "x = (", "never closed"),
        ("a.py", "x = 1", "return", "outside function"),
        ("b.py", "x = 1", "x = 2", "No such file"),
    ],
)
def test_what_is_wrong_with_a_mutation_is_found(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, file: str, old: str, new: str, message: str
) -> None:
    (tmp_path / "a.py").write_text("x = 1\n")
    monkeypatch.setitem(globals(), "ROOT", tmp_path)
    assert bool(fault(Mutation(file, old, new, ()))) == bool(message)
    assert message in fault(Mutation(file, old, new, ()))


def test_tests_of_every_mutation_are_there() -> None:
    named: dict[str, set[str]] = {}
    for file, _, name in (test.partition("::") for mutation in MUTATIONS for test in mutation.tests):
        named.setdefault(file, set()).add(name)
    defined = {
        file: {"", *re.findall(r"^def (\w+)\(", (ROOT / file).read_text(), re.MULTILINE)}
        for file in named
        if (ROOT / file).is_file()
    }
    assert [f"{file}::{name}" for file, names in named.items() for name in names - defined.get(file, set())] == []


def test_mutations_are_many_and_cover_the_rooms() -> None:
    assert len({mutation.name for mutation in MUTATIONS}) == len(MUTATIONS) >= 75
    assert {mutation.room for mutation in MUTATIONS} >= ROOMS


def test_text_that_occurs_no_more_or_twice_is_an_error_that_names_it(tmp_path: Path) -> None:
    (tmp_path / "a.py").write_text("x = 1\nx = 1\n")
    for old in ("y = 1", "x = 1"):
        with pytest.raises(ValueError, match=rf"a\.py has '{old}'"):
            Mutation("a.py", old, "x = 2", ()).apply(tmp_path)


def test_share_counts_what_survived_and_what_says_nothing() -> None:
    chosen = [Mutation(f"data/{name}.py", name, "|", ()) for name in "abcd"]
    words = ("caught", "caught", "survived", "invalid")
    outcomes = {
        each.name: MutationRun(word, "tests/x.py::test_y[z]", 1.0) for each, word in zip(chosen, words, strict=True)
    }
    text = table(chosen, outcomes)
    assert "| data | 4 | 2 | 1 | 1 |" in text
    assert "50.0 % caught" in text
    assert "| data/a.py | `a` → `\\|` | test_y |" in text
