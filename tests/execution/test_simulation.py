"""Simulated worlds of the queue: none loses a trial or trains one twice at once, and a planted fault is found."""

from __future__ import annotations

import pytest

from tests.support.queue_worlds import ASKING_WORLDS, HALVED_WORLDS, PLANTED, run_world

WORLDS = 40
# Where to look for a planted fault: about a world in a hundred shows it, and these begin shortly before one.
FIRST = {"packs": 170, "claims": 240}


def test_no_simulated_world_loses_a_trial_or_trains_one_twice_at_once() -> None:
    outcomes = [run_world(seed) for seed in range(WORLDS)]
    assert {outcome.seed: outcome.faults for outcome in outcomes if outcome.faults} == {}
    counts = sum((outcome.counts for outcome in outcomes), outcomes[0].counts.__class__())
    # The worlds are worlds: all that may befall does, and there is something to lose.
    for name in ("kill a worker", "lose a worker", "kill a driver", "end a Tuner", "interrupt", "freeze", "fail a disk",
                 "finish a trial", "assignments of packs"):  # fmt: skip
        assert counts[name] >= 3, name
    assert counts["trials trained"] > 3 * WORLDS


def test_no_simulated_world_of_halved_searches_pauses_or_promotes_another_trial() -> None:
    outcomes = [run_world(HALVED_WORLDS + seed) for seed in range(WORLDS // 4)]
    assert {outcome.seed: outcome.faults for outcome in outcomes if outcome.faults} == {}
    assert sum(outcome.counts["paused"] for outcome in outcomes) > WORLDS // 2


def test_no_simulated_world_of_questions_decides_or_trains_otherwise() -> None:
    outcomes = [run_world(ASKING_WORLDS + seed) for seed in range(WORLDS // 2)]
    assert {outcome.seed: outcome.faults for outcome in outcomes if outcome.faults} == {}
    counts = sum((outcome.counts for outcome in outcomes), outcomes[0].counts.__class__())
    assert min(counts[word] for word in ("for", "against", "undecided")) >= 1


@pytest.mark.parametrize("name", PLANTED)
def test_fault_that_was_mended_is_found_when_it_is_planted_again(name: str) -> None:
    assert any(run_world(seed, name).faults for seed in range(FIRST[name], FIRST[name] + 400))


def test_seed_repeats_its_history() -> None:
    first, again = run_world(3), run_world(3)
    assert len(first.history.splitlines()) > 20
    assert again.history == first.history
