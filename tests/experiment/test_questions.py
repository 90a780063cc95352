"""Questions are declared, decided wave by wave, and the same however trainings end; what is changed later is marked."""

import dataclasses
import json
import math
import random
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from sweeps.cli.options import parser
from sweeps.cli.settings import asked_part, protocol_of
from sweeps.experiment.cell_trials import expand, question_waves, sweep_trials
from sweeps.experiment.metrics import TOP1, Metric
from sweeps.experiment.plan import plan, plan_to_json
from sweeps.experiment.questions.expected_cost import expected_costs
from sweeps.experiment.questions.question import Question, check_questions
from sweeps.experiment.questions.registration import changes_of, contents, register
from sweeps.experiment.questions.rule import FIRST, LEVEL, SPENT, Look, critical, decide, follow, look_sizes
from sweeps.experiment.search import Search
from sweeps.experiment.sweep import Protocol, Sweep, sweep_from_json
from sweeps.experiment.trial import Trial
from sweeps.launch import check_decidable
from sweeps.store.ledger import Json, Ledger
from tests.support.questions import QUESTIONS, SWEEP, A, B, D, error_of


def result(trial: Trial) -> Json:
    return {"status": "finished", "metrics": {TOP1: error_of(trial), "best/val_top1_err": 10.0}, "curve": []}


def train(sweep: Sweep, seed: int | None, fails: Sequence[str] = ()) -> tuple[dict[str, Json], set[str]]:
    """Train what the plan lacks, some at a time and in any order, and forget the plan after each: a kill."""
    results: dict[str, Json] = {}
    failed: set[str] = set()
    order = random.Random(seed)
    while True:
        missing = [t for t in expand(sweep, results, failed) if t.key not in results and t.key not in failed]
        if not missing:
            return results, failed
        some = missing if seed is None else order.sample(missing, order.randint(1, len(missing)))
        for trial in some:
            if f"{trial.cell.label}{trial.seed}" in fails:
                failed.add(trial.key)
            else:
                results[trial.key] = result(trial)


def seeds(results: Mapping[str, Json], sweep: Sweep = SWEEP) -> dict[str, int]:
    trials = expand(sweep, results)
    return {cell.label: sum(t.cell == cell and t.key in results for t in trials) for cell in sweep.cells}


# Declared -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("question", "sentence"),
    [
        (Question("q", "A", "Bb", margin=1), "s has no cell 'Bb'; did you mean 'B'?"),
        (Question("q", "A", "other", margin=1), "its cells have other pictures (cifar10 and cifar100)"),
        (Question("q", "A", "B", "higher", 1), "of test error % lower is better"),
    ],
)
def test_question_that_cannot_be_asked_is_a_sentence(question: Question, sentence: str) -> None:
    cells = (A, B, dataclasses.replace(A, label="other", dataset="cifar100"))
    with pytest.raises(ValueError, match=re.escape(sentence)):
        check_questions("s", [question], cells)


def test_question_has_a_margin_and_two_cells_and_trainings() -> None:
    for margin in (0.0, -1.0, math.nan, math.inf):
        with pytest.raises(ValueError, match="its margin is a number above 0"):
            Question("q", "A", "B", margin=margin)
    with pytest.raises(ValueError, match="with itself"):
        Question("q", "A", "A", margin=1)
    with pytest.raises(ValueError, match="needs seeds or folds"):
        check_decidable("s", QUESTIONS, SWEEP.cells, Protocol(ablation=False, search=Search(4)))


@pytest.mark.parametrize(
    ("protocol", "sentence"),
    [
        ({"until": 2}, "at least 3 seeds"),
        ({"until": 6, "folds": 5}, "at most its 5 folds"),
        ({"until": 6, "ablation": False}, "needs seeds or folds"),
    ],
)
def test_largest_number_is_one_that_the_protocol_reaches(protocol: dict[str, int], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        Protocol(**protocol)  # type: ignore[arg-type]


def test_command_line_says_until_decided_and_what_does_not_go_with_it() -> None:
    options = parser("s", "").parse_args(["--until-decided", "12"])
    assert protocol_of(Protocol(), "paper", options).until == 12
    assert protocol_of(Protocol(until=9), "paper", options).until == 12
    assert protocol_of(Protocol(until=9), "paper", parser("s", "").parse_args([])).until == 9
    with pytest.raises(ValueError, match="no question to decide"):
        dataclasses.replace(SWEEP, questions=())
    with pytest.raises(ValueError, match="leave out --seeds"):
        asked_part(SWEEP, parser("s", "").parse_args(["--seeds", "5"]))
    with pytest.raises(ValueError, match="--only leaves out 'C'"):
        asked_part(SWEEP, parser("s", "").parse_args(["--only", "A", "B"]))
    assert len(asked_part(SWEEP, parser("s", "").parse_args(["--only", "!D"])).cells) == 3


def test_plan_on_the_ledger_has_the_questions(tmp_path: Path) -> None:
    today = plan(SWEEP, Ledger(str(tmp_path)), {})
    assert sweep_from_json(json.loads(json.dumps(plan_to_json(today)))) == SWEEP


# The rule -------------------------------------------------------------------------------------------------------------


def test_looks_are_a_quarter_apart_and_end_at_the_largest_number() -> None:
    assert look_sizes(1, 12) == [3, 4, 5, 6, 7, 8, 10, 12]
    assert look_sizes(5, 12) == [5, 6, 7, 8, 10, 12]
    assert look_sizes(20, 12) == [12]


def test_only_look_is_a_t_test_at_the_level_that_is_spent() -> None:
    assert critical((9,), 9, 0.025) == pytest.approx(stats.t.isf(0.025 * SPENT, 8), rel=1e-5)


def test_two_looks_spend_what_two_normals_cross() -> None:
    level = 0.025
    early, late = 6, 12
    first, second = (
        stats.norm.isf(stats.t.sf(critical(sizes, late, level), sizes[-1] - 1)) for sizes in ((early,), (early, late))
    )
    assert stats.norm.sf(first) == pytest.approx(SPENT * level / 4, rel=1e-4)
    root = math.sqrt(early / late)
    stays = stats.multivariate_normal([0, 0], [[1, root], [root, 1]]).cdf([first, second])
    assert 1 - stays == pytest.approx(SPENT * level, rel=1e-3)


def test_folds_have_less_information_to_come_so_the_first_look_spends_more() -> None:
    assert critical((3,), 10, 0.025, folds=10) < critical((3,), 10, 0.025) / 1.5


@pytest.mark.parametrize(
    ("low", "high", "narrow", "decision"),
    [
        (0.1, 9, (0.2, 8), "for"),
        (-9, -0.1, (-8, -0.2), "against"),
        (0.1, 0.4, (0.2, 0.3), "for"),
        (-0.6, 0.6, (-0.4, 0.4), "equal"),
        (-0.1, 0.6, (0.1, 0.4), "equal"),
        (-0.7, 0.4, (-0.6, 0.3), "open"),
        (-0.4, 0.7, (-0.3, 0.6), "open"),
    ],
)
def test_interval_decides(low: float, high: float, narrow: tuple[float, float], decision: str) -> None:
    assert decide(Look(5, 0.0, low, high), Look(5, 0.0, *narrow), 0.5) == decision


def test_no_difference_is_two_one_sided_tests_at_the_level_of_a_question() -> None:
    values = {0: -0.5, 1: 0.5, 2: 0.1, 3: -0.1}
    half = critical((4,), 4, LEVEL) * float(np.std([*values.values()], ddof=1)) / 2
    decisions = [
        follow([values], [4], [margin], 4, 4).trajectories[0].decision for margin in (1.001 * half, 0.999 * half)
    ]
    assert decisions == ["equal", "undecided"]


@pytest.mark.parametrize("effect", [1.0, -1.0])
def test_no_difference_is_rarely_said_of_a_margin(effect: float) -> None:
    stream = np.random.default_rng(2)
    sweeps = 500
    wrong = 0
    for _ in range(sweeps):
        errors = stream.standard_normal((3, 15))
        gains = [dict(enumerate((effect + errors[i] - errors[0]).tolist())) for i in (1, 2)]
        trajectories = follow(gains, [15, 15], [1.0, 1.0], 3, 15).trajectories
        wrong += any(trajectory.decision == "equal" for trajectory in trajectories)
    assert 0 < wrong <= sweeps * (0.05 + 2 * math.sqrt(0.05 * 0.95 / sweeps))


def test_decision_for_widens_the_level_of_the_others_and_equal_does_not() -> None:
    clear = {0: 5.0, 1: 5.1, 2: 4.9}
    close = {0: 0.0, 1: 0.001, 2: -0.001}
    vague = {0: 1.0, 1: 2.0, 2: 3.5}
    widths = []
    for other in (clear, close, vague):
        trajectories = follow([other, vague], [3, 3], [1.0, 1.0], 3, 3).trajectories
        widths.append(trajectories[1].looks[0].high - trajectories[1].looks[0].low)
    assert widths[0] < widths[1] == widths[2]
    look = follow([vague], [3], [1.0], 3, 3).trajectories[0].looks[0]
    half = critical((3,), 3, LEVEL / 2) * float(np.std([1.0, 2.0, 3.5], ddof=1)) / math.sqrt(3)
    assert (look.low, look.high) == pytest.approx((look.gain - half, look.gain + half))


def test_equal_differences_and_failed_pairs_decide_nothing() -> None:
    assert follow([{0: 1.0, 1: 1.0, 2: 1.0}], [3], [0.5], 3, 3).trajectories[0].decision == "undecided"
    looks = follow([{0: 5.0, 2: 5.1, 3: 4.9}], [4], [0.5], 3, 4).trajectories[0].looks
    assert [look.n for look in looks] == [2, 3]
    assert math.isinf(looks[0].high)
    assert math.isfinite(looks[1].high)


def test_wave_waits_for_all_open_questions() -> None:
    clear = dict(enumerate([5.0, 5.1, 4.9, 5.0]))
    waits = follow([clear, {}], [3, 2], [1.0, 1.0], 3, 8)
    assert [trajectory.decision for trajectory in waits.trajectories] == ["open", "open"]
    assert waits.needed == (3, 3)


def test_wrong_decisions_are_rare_where_cells_are_alike() -> None:
    stream = np.random.default_rng(1)
    sweeps = 500
    wrong = 0
    for _ in range(sweeps):
        errors = stream.standard_t(4, (3, 15))
        gains = [dict(enumerate((errors[i] - errors[0]).tolist())) for i in (1, 2)]
        trajectories = follow(gains, [15, 15], [0.4, 0.4], 3, 15).trajectories
        wrong += any(trajectory.decision in ("for", "against") for trajectory in trajectories)
    assert 0 < wrong <= sweeps * (0.05 + 2 * math.sqrt(0.05 * 0.95 / sweeps))


# The plan -------------------------------------------------------------------------------------------------------------


def test_seeds_come_until_questions_are_decided_and_only_where_they_are_open() -> None:
    results, _ = train(SWEEP, None)
    counts = seeds(results)
    assert FIRST <= counts["B"] < counts["A"] == counts["C"] <= 12
    assert counts["D"] == 1


@pytest.mark.parametrize("fails", [(), ("B1", "C3")])
def test_trials_are_the_same_in_any_order_and_after_any_kill(fails: tuple[str, ...]) -> None:
    expected = train(SWEEP, None, fails)
    for seed in range(12):
        assert train(SWEEP, seed, fails) == expected


def test_more_seeds_on_the_ledger_count_and_change_no_decision() -> None:
    results, _ = train(SWEEP, None)
    earlier = {trial.key: result(trial) for trial in (Trial(B, seed=seed) for seed in range(12))}
    both = results | earlier
    parts = sweep_trials(SWEEP, both)
    assert not [trial for trial in expand(SWEEP, both) if trial.key not in both]
    assert len(parts[B.key].protocol) + len(parts[B.key].further) == 12
    assert len(parts[A.key].protocol) == seeds(results)["A"]


def test_folds_come_one_by_one() -> None:
    sweep = dataclasses.replace(SWEEP, protocol=Protocol(ablation=False, folds=10, until=10))
    results, _ = train(sweep, 3)
    counts = seeds(results, sweep)
    assert FIRST <= counts["B"] < 10 == counts["D"]
    assert (results, set()) == train(sweep, 5)


def test_single_waits_for_both_phases() -> None:
    sweep = dataclasses.replace(SWEEP, protocol=Protocol(ablation=False, single=True, until=6))
    first = plan(sweep, Ledger("/nowhere"), {})
    of_a = [trial.phase for trial in (*first.to_do, *first.pending) if trial.cell == A]
    assert sorted(of_a) == ["holdout"] * 3 + ["match"] * 3
    results, failed = train(sweep, 2, ("A1",))
    parts = {key: part for key, part in sweep_trials(sweep, results, failed).items() if key}
    assert not [trial for part in parts.values() for trial in part.pending]
    # The first phase that failed has no second: its pair is missing, and the others are looked at.
    trajectories = question_waves(sweep, parts, results, failed).trajectories
    assert "open" not in [trajectory.decision for trajectory in trajectories]
    assert trajectories[0].looks[0].n == 2


def test_second_phases_are_those_of_the_seeds_that_are_needed() -> None:
    sweep = dataclasses.replace(SWEEP, protocol=Protocol(seeds=5, ablation=False, single=True, until=4))
    first = sweep_trials(sweep, {})
    counts = {cell.label: (len(first[cell.key].protocol), len(first[cell.key].pending)) for cell in (A, D)}
    assert counts == {"A": (4, 4), "D": (5, 5)}
    results, failed = train(sweep, None)
    assert not [trial for part in sweep_trials(sweep, results, failed).values() for trial in part.pending]


def test_search_comes_first_and_what_follows_is_counted() -> None:
    sweep = dataclasses.replace(SWEEP, protocol=Protocol(search=Search(2, wave=2), until=8))
    parts = sweep_trials(sweep, {})
    assert [trial.phase for trial in parts[A.key].pending] == ["ablation"] * 3
    assert [trial.phase for trial in parts[D.key].pending] == ["ablation"]


def test_higher_is_better_where_the_metric_says_so() -> None:
    metric = Metric("test/f1", "higher")
    cells = [dataclasses.replace(cell, metric=metric, task="page:train") for cell in (A, B)]
    sweep = Sweep("s", "paper", tuple(cells), Protocol(until=3), questions=QUESTIONS[:1])
    results = {
        trial.key: {"metrics": {"final/test_f1": 0.9 - 0.2 * (trial.cell.label == "B") + 0.001 * trial.seed**2}}
        for trial in expand(sweep, {})
    }
    for key in [t.key for t in expand(sweep, {}) if t.cell.label == "A" and t.seed == 1]:
        results[key]["metrics"]["final/test_f1"] += 0.01
    parts = {key: part for key, part in sweep_trials(sweep, results).items() if key}
    trajectory = question_waves(sweep, parts, results, ()).trajectories[0]
    assert trajectory.looks[0].gain > 0.19
    assert trajectory.decision == "for"


def test_price_falls_with_the_effect_and_is_the_same_each_time() -> None:
    design = SWEEP.protocol.design
    lines = expected_costs(QUESTIONS, design)
    assert lines == expected_costs(QUESTIONS, design)
    assert [line.case for line in lines] == ["no difference", "1 margin", "2 margins", "3 margins"]
    taken = [line.trainings for line in lines]
    assert taken[1:] == sorted(taken[1:], reverse=True)
    assert 9 <= taken[-1] < 0.7 * 36 < taken[0] <= 36
    assert lines[1].decided > 0.7
    (*same, printed) = expected_costs(QUESTIONS, design, [3 * question.margin for question in QUESTIONS])
    assert (same, printed.case) == (lines, "as printed")
    assert printed.trainings == pytest.approx(taken[-1], rel=0.2)
    assert expected_costs(QUESTIONS, design, [0.0, 0.0])[-1].trainings > 1.3 * printed.trainings


# The registration -----------------------------------------------------------------------------------------------------


def test_change_before_the_first_training_is_none_and_after_it_is_marked(tmp_path: Path) -> None:
    ledger = Ledger(str(tmp_path))
    now = contents(QUESTIONS, SWEEP.cells, SWEEP.protocol.design)
    register(ledger, "s", now | {"largest": 9}, 0)
    register(ledger, "s", now, 0)
    register(ledger, "s", now, 7)
    assert changes_of(ledger, "s") == ()
    other = contents(QUESTIONS[:1], SWEEP.cells, SWEEP.protocol.design._replace(most=20))
    register(ledger, "s", other, 7)
    register(ledger, "s", other, 9)
    assert [change.sentence for change in changes_of(ledger, "s")] == [
        "the questions were changed after 7 trainings",
        "the largest number was changed from 12 to 20 after 7 trainings",
    ]


def test_other_recipe_of_a_cell_is_a_change(tmp_path: Path) -> None:
    ledger = Ledger(str(tmp_path))
    now = contents(QUESTIONS, SWEEP.cells, SWEEP.protocol.design)
    register(ledger, "s", now, 0)
    register(ledger, "s", now | {"cells": now["cells"] | {"A": "other"}}, 2)
    assert [change.sentence for change in changes_of(ledger, "s")] == ["the cells were changed after 2 trainings"]


def test_registration_after_trainings_is_marked(tmp_path: Path) -> None:
    ledger = Ledger(str(tmp_path))
    register(ledger, "s", contents(QUESTIONS, SWEEP.cells, SWEEP.protocol.design), 1)
    assert [change.sentence for change in changes_of(ledger, "s")] == ["the questions were registered after 1 training"]
