"""The list of mutations fits the tree: each applies, compiles, and names tests that are there."""

import re

import pytest

from benchmarks.mutations import MUTATIONS, ROOT, Mutation, Outcome, table

ROOMS = {"crelu_models", "data", "sweeps/experiment", "sweeps/store", "sweeps/training", "sweeps/results",
         "sweeps/execution", "sweeps/tracking"}  # fmt: skip


@pytest.mark.parametrize("mutation", MUTATIONS, ids=lambda mutation: mutation.name)
def test_mutation_applies_once_and_still_compiles(mutation: Mutation) -> None:
    content = mutation.apply(ROOT)
    assert content != (ROOT / mutation.file).read_text()
    compile(content, mutation.file, "exec")


@pytest.mark.parametrize("test", sorted({test for mutation in MUTATIONS for test in mutation.tests}))
def test_tests_of_a_mutation_are_there(test: str) -> None:
    file, _, name = test.partition("::")
    assert (ROOT / file).is_file()
    assert not name or re.search(rf"^def {name}\(", (ROOT / file).read_text(), re.MULTILINE)


def test_mutations_are_many_and_cover_the_rooms() -> None:
    assert len({mutation.name for mutation in MUTATIONS}) == len(MUTATIONS) >= 75
    assert {mutation.room for mutation in MUTATIONS} >= ROOMS


def test_text_that_occurs_no_more_or_twice_is_an_error_that_names_it(tmp_path) -> None:
    (tmp_path / "a.py").write_text("x = 1\nx = 1\n")
    for old in ("y = 1", "x = 1"):
        with pytest.raises(ValueError, match=rf"a\.py has '{old}'"):
            Mutation("a.py", old, "x = 2", ()).apply(tmp_path)


def test_share_counts_what_survived_and_what_says_nothing() -> None:
    chosen = [Mutation(f"data/{name}.py", name, "|", ()) for name in "abcd"]
    words = ("caught", "caught", "survived", "invalid")
    outcomes = {
        each.name: Outcome(word, "tests/x.py::test_y[z]", 1.0) for each, word in zip(chosen, words, strict=True)
    }
    text = table(chosen, outcomes)
    assert "| data | 4 | 2 | 1 | 1 |" in text
    assert "50.0 % caught" in text
    assert "| data/a.py | `a` → `\\|` | test_y |" in text
