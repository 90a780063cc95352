"""The statistics: against the numbers they must give, scipy, naive versions, identities and simulations."""

import itertools
import math
from statistics import NormalDist
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import stats

from sweeps.experiment.metrics import AVERAGE, Average
from sweeps.results.paper import FOLDS, Relation, printed
from sweeps.results.statistics import (
    Decision,
    Difference,
    Interval,
    Method,
    decide,
    decide_all,
    fold_interval,
    holm,
    mcnemar_exact,
    mean_se,
    order,
    p_beyond,
    p_within,
    paired,
    seeds_needed,
    t_interval,
    t_power,
    verdict,
    votes,
    welch,
    wilson,
)

RUNS = 2_000  # simulations of a test; their own error is 0.5 points at a rate of 5 %


def average(table: str, dataset: str, row: str) -> Average:
    entry = printed(table, dataset, row, AVERAGE)
    assert entry is not None
    assert entry.se is not None
    return Average(entry.value, entry.se, FOLDS)


def from_print(table: str, dataset: str, a: str, b: str) -> Difference:
    return welch(average(table, dataset, a), average(table, dataset, b), test_fraction=1 / FOLDS)


# What the printed means and standard errors support -------------------------------------------------------


@pytest.mark.parametrize(
    ("table", "dataset", "row", "t", "corrected_t", "digits", "corrected_p"),
    [
        ("1", "cifar10", "CReLU", 5.7, 3.9, 1, 0.0035),
        ("1", "cifar10", "CReLU half", 6.0, 4.1, 1, 0.0026),
        ("1", "cifar100", "CReLU", 28, 19, 0, 1.2e-8),
        ("2", "cifar10", "CReLU (1,3)", 12.5, 8.6, 1, 1.2e-5),
    ],
)
def test_crelu_differs_from_the_baseline_in_print(
    table: str, dataset: str, row: str, t: float, corrected_t: float, digits: int, corrected_p: float
) -> None:
    comparison = from_print(table, dataset, "Baseline" if table == "1" else "VGG", row)
    assert round(comparison.plain.t, digits) == t
    assert round(comparison.corrected.t, digits) == corrected_t
    assert comparison.corrected.df == FOLDS - 1
    assert comparison.corrected.p == pytest.approx(corrected_p, rel=0.05)
    assert comparison.plain.p < 1e-4


def test_the_p_of_the_rounded_t_is_004_at_nine_degrees_of_freedom_and_at_no_more() -> None:
    # .004 is what t = 3.9, as printed, has at 9 degrees of freedom; unrounded it is .0035.
    corrected = from_print("1", "cifar10", "Baseline", "CReLU").corrected
    assert round(2 * float(stats.t.sf(round(corrected.t, 1), 9)), 3) == 0.004
    assert round(2 * float(stats.t.sf(round(corrected.t, 1), 18)), 3) == 0.001


@pytest.mark.parametrize(
    ("table", "dataset", "a", "b", "p"),
    [
        ("2", "cifar100", "CReLU (1,3)", "CReLU (1,3,5)", 0.27),
        ("2", "cifar10", "CReLU (1)", "CReLU (1,3)", 1.0),
        ("2", "cifar10", "CReLU (1,3)", "CReLU (1,3,5)", 1.0),
        ("1", "cifar10", "AVR", "Baseline", 0.66),
    ],
)
def test_print_does_not_support_an_order(table: str, dataset: str, a: str, b: str, p: float) -> None:
    comparison = from_print(table, dataset, a, b)
    assert comparison.plain.p == pytest.approx(p, abs=0.005)
    assert comparison.corrected.p >= comparison.plain.p
    assert decide("higher", comparison.difference, comparison.plain.p) == "inconclusive"


def test_placement_1_to_1_3_is_an_order_on_cifar100() -> None:
    comparison = from_print("2", "cifar100", "CReLU (1,3)", "CReLU (1)")
    assert decide("lower", comparison.difference, comparison.corrected.p) == "supported"
    assert round(comparison.corrected.p, 2) == 0.01


@pytest.mark.parametrize(
    ("percent", "n", "low", "high"),
    [
        (9.17, 10_000, 8.62, 9.75),
        (8.43, 10_000, 7.90, 8.99),
        (6.35, 10_000, 5.89, 6.84),
        (6.06, 10_000, 5.61, 6.54),
        (36.30, 10_000, 35.36, 37.25),
        (41.81, 50_000, 41.38, 42.24),
        (39.82, 50_000, 39.39, 40.25),
    ],
)
def test_wilson_bounds_a_printed_error(percent: float, n: int, low: float, high: float) -> None:
    interval = wilson(round(percent * n / 100), n)
    assert (round(interval.low, 2), round(interval.high, 2)) == (low, high)


def test_single_networks_of_cifar10_overlap_and_conv1_4_does_not_overlap_the_baseline() -> None:
    assert wilson(917, 10_000).low < wilson(843, 10_000).high
    assert wilson(20_905, 50_000).low > wilson(19_910, 50_000).high


# Averages and intervals ------------------------------------------------------------------------------------


def test_mean_and_standard_error_of_a_hand_made_sample() -> None:
    assert mean_se([1, 2, 3, 4]) == pytest.approx((2.5, math.sqrt(5 / 3) / 2, 4))
    alone = mean_se([7.5])
    assert (alone.mean, alone.n) == (7.5, 1)
    assert math.isnan(alone.se)
    assert math.isnan(t_interval(alone).low)


@pytest.mark.parametrize("values", [[], [[1.0, 2.0]], [1.0, math.nan], [math.inf]])
def test_an_average_of_nothing_or_of_nan_is_an_error(values: list[float]) -> None:
    with pytest.raises(ValueError, match="finite"):
        mean_se(values)


@pytest.mark.parametrize("errors", [0, 1, 13, 50, 99, 100])
@pytest.mark.parametrize("level", [0.5, 0.95, 0.999])
def test_wilson_bounds_are_the_rates_at_which_the_score_test_just_rejects(errors: int, level: float) -> None:
    # Wilson (1927): |p - rate| = z sqrt(rate (1 - rate) / n) at either end.
    z = NormalDist().inv_cdf(0.5 + level / 2)
    for bound in wilson(errors, 100, level):
        rate = bound / 100
        assert abs(errors / 100 - rate) == pytest.approx(z * math.sqrt(rate * (1 - rate) / 100), abs=1e-9)
    assert wilson(errors, 100, level).low <= errors <= wilson(errors, 100, level).high


def test_wilson_of_a_published_example() -> None:
    # Newcombe (1998), Statistics in Medicine 17, 857-872, Table I, method 3: 81 of 263, 15 of 148, 0 of 20, 1 of 29.
    expected = {(81, 263): (25.53, 36.62), (15, 148): (6.24, 16.05), (0, 20): (0, 16.11), (1, 29): (0.61, 17.18)}
    for (errors, n), bounds in expected.items():
        assert wilson(errors, n) == pytest.approx(bounds, abs=0.005)


@pytest.mark.parametrize(("errors", "n"), [(-1, 10), (11, 10), (0, 0)])
def test_wilson_refuses_impossible_counts(errors: int, n: int) -> None:
    with pytest.raises(ValueError, match=f"{errors} errors among {n}"):
        wilson(errors, n)


def test_a_t_interval_has_the_quantiles_of_student_s_tables() -> None:
    for n, level, quantile in ((2, 0.95, 12.706), (7, 0.9, 1.943), (10, 0.95, 2.262), (31, 0.99, 2.750)):
        low, high = t_interval(Average(10.0, 2.0, n), level)
        assert (10 - low) / 2 == pytest.approx((high - 10) / 2) == pytest.approx(quantile, abs=0.0005)


def test_intervals_cover_the_truth_as_often_as_they_say() -> None:
    rng = np.random.default_rng(1)
    shared = rng.normal(20, 2, (RUNS, 10))  # a fold's difficulty, felt by both cells
    a, b = shared + rng.normal(0.4, 0.3, shared.shape), shared + rng.normal(0, 0.3, shared.shape)
    intervals = [paired(x, y).plain.interval for x, y in zip(a, b, strict=True)]
    assert 0.93 < np.mean([low < 0.4 < high for low, high in intervals]) < 0.97
    means = [t_interval(mean_se(x)) for x in a]
    assert 0.93 < np.mean([low < 20.4 < high for low, high in means]) < 0.97
    wrong = rng.binomial(600, 0.09, RUNS)
    rates = [wilson(int(errors), 600) for errors in wrong]
    assert 0.93 < np.mean([low < 9 < high for low, high in rates]) < 0.97
    odds = [0.85, 0.06, 0.04, 0.05]  # both right, only a, only b, none
    outcome = rng.choice(4, (RUNS, 600), p=odds)
    bounds = [mcnemar_exact((row == 0) | (row == 1), (row == 0) | (row == 2)).interval for row in outcome]
    assert 0.93 < np.mean([low < -2 < high for low, high in bounds]) < 0.97


def test_welch_intervals_cover_unequal_spreads() -> None:
    rng = np.random.default_rng(2)
    pairs = zip(rng.normal(1, 3, (RUNS, 6)), rng.normal(0, 1, (RUNS, 12)), strict=True)
    intervals = [welch(mean_se(a), mean_se(b)).plain.interval for a, b in pairs]
    assert 0.93 < np.mean([low < 1 < high for low, high in intervals]) < 0.97


# Paired and unpaired tests ---------------------------------------------------------------------------------


@pytest.mark.parametrize("n", [2, 3, 5, 10, 30])
def test_paired_agrees_with_scipy(n: int) -> None:
    rng = np.random.default_rng(n)
    a, b = rng.normal(10.2, 0.3, n), rng.normal(9.9, 0.3, n)
    comparison = paired(a, b, level=0.9)
    expected = stats.ttest_rel(a, b)
    assert comparison.difference == pytest.approx(np.mean(a - b))
    assert (comparison.plain.t, comparison.plain.p) == pytest.approx((expected.statistic, expected.pvalue))
    assert comparison.plain.interval == pytest.approx(tuple(expected.confidence_interval(0.9)))
    assert comparison.signed_rank_p == pytest.approx(stats.wilcoxon(a, b, method="exact").pvalue)


def test_the_signed_rank_p_counts_every_sign_with_ties_and_zeros() -> None:
    some = np.random.default_rng(10).integers(-3, 5, (20, 7)).tolist()
    for differences in ([0, 0.5, -0.5, 2.5, 2.5, 1], [3, 3, 3, 3], [0, 0, 0], *some):
        d = np.array([x for x in differences if x != 0])
        ranks = stats.rankdata(np.abs(d))
        sums = [np.dot(signs, ranks) for signs in itertools.product([0, 1], repeat=len(d))]
        w = ranks[d > 0].sum()
        tail = min(np.mean([s <= w for s in sums]), np.mean([s >= w for s in sums]))
        p = paired(np.array(differences) + 10, np.full(len(differences), 10.0)).signed_rank_p
        assert p == pytest.approx(min(1, 2 * tail)), differences


def test_ten_folds_widen_the_standard_error_by_145_percent() -> None:
    rng = np.random.default_rng(3)
    a, b = rng.normal(10, 0.3, 10), rng.normal(9.8, 0.3, 10)
    comparison = paired(a, b, test_fraction=0.1)
    variance = np.var(a - b, ddof=1)
    assert comparison.corrected.se == pytest.approx(math.sqrt(variance * (1 / 10 + 1 / 9)))
    assert round(comparison.corrected.se / comparison.plain.se, 2) == 1.45
    t = (a - b).mean() / comparison.corrected.se
    assert (comparison.corrected.t, comparison.corrected.p) == pytest.approx((t, 2 * stats.t.sf(abs(t), 9)))
    wide, narrow = comparison.corrected.interval, comparison.plain.interval
    assert wide.high - wide.low == pytest.approx(math.sqrt(1 + 10 / 9) * (narrow.high - narrow.low))


@pytest.mark.parametrize("nothing", [None, 0.0])
def test_seeds_on_one_training_set_are_not_corrected(nothing: float | None) -> None:
    a, b = [10.1, 10.3, 9.9], [9.8, 9.7, 9.9]
    assert paired(a, b, nothing).corrected == paired(a, b).plain
    both = mean_se(a), mean_se(b)
    assert welch(*both, nothing).corrected == welch(*both).plain


def test_exchanging_the_sides_turns_the_sign_alone() -> None:
    a, b = [10.1, 10.3, 9.9, 10.0], [9.8, 9.7, 9.9, 10.2]
    forth, back = paired(a, b, 0.1), paired(b, a, 0.1)
    assert forth.difference == pytest.approx(-back.difference)
    for forward, reverse in ((forth.plain, back.plain), (forth.corrected, back.corrected)):
        assert (forward.t, forward.p, forward.se) == pytest.approx((-reverse.t, reverse.p, reverse.se))
        assert forward.interval == pytest.approx((-reverse.interval.high, -reverse.interval.low))
    assert forth.signed_rank_p == back.signed_rank_p


def test_equal_differences_are_tested_by_their_signs_alone() -> None:
    comparison = paired([10.3, 9.9, 11.2], [10.2, 9.8, 11.1])  # 0.1 thrice, but not in binary
    assert comparison.plain.p == comparison.signed_rank_p == 0.25
    assert comparison.plain.t == math.inf
    assert math.isnan(comparison.plain.interval.low)
    none = paired([1, 2, 3], [1, 2, 3])
    assert (none.difference, none.plain.t, none.plain.p) == (0, 0, 1)


def test_one_pair_decides_nothing() -> None:
    comparison = paired([40.0], [41.0])
    assert comparison.difference == -1
    assert all(math.isnan(x) for x in (*comparison.plain.interval, comparison.plain.t, comparison.plain.p))
    assert math.isnan(comparison.signed_rank_p)
    assert decide("lower", comparison.difference, comparison.plain.p) == "inconclusive"


def test_pairs_need_as_many_values_on_either_side() -> None:
    with pytest.raises(ValueError, match="3 values against 2"):
        paired([1, 2, 3], [1, 2])
    with pytest.raises(ValueError, match="test_fraction 1"):
        paired([1, 2, 3], [1, 2, 4], test_fraction=1.0)


def test_welch_agrees_with_scipy() -> None:
    rng = np.random.default_rng(4)
    a, b = rng.normal(10, 1, 8), rng.normal(9, 3, 5)
    test = welch(mean_se(a), mean_se(b), level=0.99).plain
    expected = stats.ttest_ind(a, b, equal_var=False)
    assert (test.t, test.p, test.df) == pytest.approx((expected.statistic, expected.pvalue, expected.df))
    assert test.interval == pytest.approx(tuple(expected.confidence_interval(0.99)))


@pytest.mark.parametrize("lame", [Average(9.0, math.nan, 1), Average(9.0, 0.0, 10)])
def test_welch_needs_standard_errors(lame: Average) -> None:
    with pytest.raises(ValueError, match="standard error above 0"):
        welch(Average(10, 0.1, 10), lame)


def test_mcnemar_counts_signs_and_errors_in_percent() -> None:
    a = np.array([True] * 90 + [False] * 10)
    b = np.array([True] * 83 + [False] * 7 + [True] * 4 + [False] * 6)
    comparison = mcnemar_exact(a, b)
    assert (comparison.only_a, comparison.only_b) == (7, 4)
    assert comparison.difference == pytest.approx(10 - 13)  # a errs on 10 of 100 pictures, b on 13
    assert comparison.p == pytest.approx(2 * sum(math.comb(11, k) for k in range(5)) / 2**11)
    up, down = 5 / 102, 8 / 102  # one picture more on either side
    half = 1.959964 * math.sqrt((up + down - (up - down) ** 2) / 102)
    assert comparison.interval == pytest.approx((100 * (up - down - half), 100 * (up - down + half)), abs=1e-4)


def test_mcnemar_of_a_network_with_itself_is_no_difference() -> None:
    a = np.array([True, False, True])
    assert mcnemar_exact(a, a)[:4] == (0.0, 0, 0, 1.0)
    with pytest.raises(ValueError, match="expected two bool"):
        mcnemar_exact(a, a.astype(int))
    with pytest.raises(ValueError, match="expected two bool"):
        mcnemar_exact(a, a[:2])


# Many comparisons ------------------------------------------------------------------------------------------


def naive_holm(p: list[float]) -> list[float]:
    adjusted = [math.nan] * len(p)
    worst = 0.0
    for rank, i in enumerate(sorted(range(len(p)), key=lambda i: p[i])):
        worst = max(worst, (len(p) - rank) * p[i])
        adjusted[i] = min(1.0, worst)
    return adjusted


@pytest.mark.parametrize("p", [[0.01, 0.04, 0.03, 0.005], [0.2], [0.9, 0.8], [0.01, 0.01, 1.0], []])
def test_holm_agrees_with_a_naive_version(p: list[float]) -> None:
    assert holm(p).tolist() == pytest.approx(naive_holm(p))


def test_holm_does_not_count_what_was_not_tested() -> None:
    adjusted = holm([0.01, math.nan, 0.03, math.nan])
    assert adjusted[[0, 2]].tolist() == pytest.approx(naive_holm([0.01, 0.03]))
    assert np.isnan(adjusted[[1, 3]]).all()
    with pytest.raises(ValueError, match="expected 0 to 1"):
        holm([0.5, 1.5])


def test_holm_lies_between_p_and_bonferroni_and_keeps_the_order() -> None:
    p = np.random.default_rng(5).random((50, 7))
    adjusted = holm(p)
    assert np.all(adjusted >= p)
    assert np.all(adjusted <= np.minimum(1, 7 * p))
    assert adjusted.tolist() == [pytest.approx(naive_holm(row.tolist())) for row in p]
    ordered = np.take_along_axis(adjusted, np.argsort(p, axis=-1), -1)
    assert np.all(np.diff(ordered, axis=-1) >= 0)


def test_without_an_effect_holm_errs_in_at_most_5_percent_of_tables() -> None:
    # Table 4's comparisons: eight cells, each with the same baseline, so correlated. Ten paired values each.
    rng = np.random.default_rng(6)
    errors = rng.normal(40, 0.3, (RUNS, 9, 10))
    d = errors[:, 1:] - errors[:, :1]
    t = d.mean(-1) / (d.std(-1, ddof=1) / math.sqrt(10))
    p = 2 * stats.t.sf(np.abs(t), 9)
    assert p[0, 0] == pytest.approx(paired(errors[0, 1], errors[0, 0]).plain.p)
    family = np.mean((holm(p) < 0.05).any(axis=-1))
    assert 0.01 < family < 0.05 + 3 * math.sqrt(0.05 * 0.95 / RUNS)
    assert np.mean((p < 0.05).any(axis=-1)) > 0.15  # what it would be without


def vote(scores: NDArray[np.floating[Any]], method: Method = "mean_softmax") -> NDArray[np.intp]:
    return votes(scores)[method]


# Votes -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["mean_softmax", "mean_logit", "majority"])
@pytest.mark.parametrize("dtype", [np.float16, np.float32])
def test_votes_agree_with_a_naive_version(method: str, dtype: type[np.floating[Any]]) -> None:
    scores: NDArray[np.floating[Any]] = np.random.default_rng(7).normal(0, 2, (5, 200, 6)).astype(dtype)
    expected = []
    for picture in range(200):
        logits = scores[:, picture].astype(float)
        odds = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
        if method == "majority":
            ballots = np.bincount(logits.argmax(1), minlength=6)
            expected.append(max(range(6), key=lambda c: (ballots[c], odds.mean(0)[c])))
        else:
            expected.append(int((odds if method == "mean_softmax" else logits).mean(0).argmax()))
    assert vote(scores, method).tolist() == expected  # type: ignore[arg-type]


def test_methods_of_voting_differ_where_one_network_is_sure() -> None:
    # Two networks lean to class 0, one is certain of class 2; class 1 is second for all in logits.
    scores = np.array([[[1.0, 0.9, -9.0]], [[1.0, 0.9, -9.0]], [[-20.0, 8.0, 12.0]]])
    assert vote(scores, "majority").tolist() == [0]
    assert vote(scores, "mean_logit").tolist() == [1]
    assert vote(np.array([[[1.0, 0.0]], [[0.0, 3.0]]]), "majority").tolist() == [1]  # a tie, by mean softmax


@pytest.mark.parametrize("method", ["mean_softmax", "mean_logit", "majority"])
def test_equal_classes_go_to_the_lowest(method: str) -> None:
    assert vote(np.zeros((4, 3, 5)), method).tolist() == [0, 0, 0]  # type: ignore[arg-type]


@pytest.mark.parametrize("method", ["mean_softmax", "mean_logit", "majority"])
def test_a_vote_of_one_is_its_own_and_members_may_change_places(method: str) -> None:
    scores = np.random.default_rng(8).normal(size=(4, 50, 10))
    assert vote(scores[:1], method).tolist() == scores[0].argmax(1).tolist()  # type: ignore[arg-type]
    assert vote(scores, method).tolist() == vote(scores[::-1], method).tolist()  # type: ignore[arg-type]


def test_large_scores_do_not_overflow() -> None:
    assert vote(np.array([[[60_000.0, 0.0]], [[0.0, 1.0]]])).tolist() == [0]


@pytest.mark.parametrize("scores", [np.zeros((2, 3)), np.zeros((0, 3, 4)), np.full((1, 1, 2), np.nan)])
def test_a_vote_needs_finite_scores_of_three_axes(scores: NDArray[np.float64]) -> None:
    with pytest.raises(ValueError, match="networks, pictures, classes"):
        vote(scores)


# Verdicts and decisions ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("ours", "half", "theirs", "se_theirs", "dataset", "word"),
    [
        (8.05, 0.0, 7.05, None, "cifar10", "reproduced"),  # over 1 in binary
        (10.17, 0.0, 9.17, None, "cifar10", "reproduced"),
        (10.18, 0.0, 9.17, None, "cifar10", "differs"),
        (9.17, 1.0, 9.17, None, "cifar10", "reproduced"),
        (9.17, 1.01, 9.17, None, "cifar10", "inconclusive"),
        (9.67, 0.6, 9.17, None, "cifar10", "inconclusive"),  # near, and not known well enough
        (60.0, 30.0, 9.17, None, "cifar10", "differs"),
        (39.0, 30.0, 9.17, None, "cifar10", "inconclusive"),
        (10.80, 0.7, 9.17, None, "cifar10", "inconclusive"),
        (10.80, 0.6, 9.17, None, "imagenet", "inconclusive"),
        (11.00, 0.2, 9.17, None, "imagenet", "differs"),
        (34.30, 0.0, 36.30, None, "cifar100", "reproduced"),
        (math.nan, math.nan, 10.20, 0.09, "cifar10", "not run"),
    ],
)
def test_a_number_is_reproduced_where_its_interval_lies_within_the_margin(
    ours: float, half: float, theirs: float, se_theirs: float | None, dataset: str, word: str
) -> None:
    judgement = verdict(Average(ours, half, 3), Interval(ours - half, ours + half), theirs, se_theirs, dataset)
    assert judgement.word == word
    assert judgement.margin == {"cifar10": 1.0, "cifar100": 2.0, "imagenet": 1.5}[dataset]
    assert judgement.difference == pytest.approx(ours - theirs, nan_ok=True)


def test_the_printed_standard_error_widens_the_interval_of_a_difference() -> None:
    # Ten folds on either side, se .11 and .09, each sqrt(1 + 10/9) as large after correction, t(9) = 2.262.
    ours = Average(9.39, 0.11, 10)
    judgement = verdict(ours, fold_interval(ours, 0.1), 10.20, 0.09, "cifar10")
    half = 2.262157 * math.sqrt(1 + 10 / 9) * math.hypot(0.11, 0.09)
    assert judgement.interval == pytest.approx((-0.81 - half, -0.81 + half), abs=1e-6)
    assert judgement.word == "inconclusive"
    alone = verdict(ours, fold_interval(ours, 0.1), 10.20, None, "cifar10")
    assert alone.interval.high == pytest.approx(-0.81 + 2.262157 * math.sqrt(1 + 10 / 9) * 0.11, abs=1e-6)


def test_a_data_set_without_printed_numbers_has_no_verdict() -> None:
    with pytest.raises(ValueError, match=r"synthetic.*cifar10, cifar100, imagenet"):
        verdict(Average(10, 0.1, 3), Interval(9.9, 10.1), 10, 0.1, "synthetic")


@pytest.mark.parametrize(
    ("relation", "difference", "p", "expected"),
    [
        ("lower", -0.5, 0.01, "supported"),
        ("lowest", -0.5, 0.01, "supported"),
        ("lower", 0.5, 0.01, "contradicted"),
        ("lower", -0.5, 0.05, "inconclusive"),
        ("higher", 0.5, 0.01, "supported"),
        ("higher", -0.5, 0.01, "contradicted"),
        ("not lower", 0.5, 0.01, "supported"),
        ("not lower", 0.5, 0.3, "inconclusive"),
        ("not lower", -0.5, 0.01, "contradicted"),
        ("lower", 0.0, 0.01, "inconclusive"),
        ("lower", -0.5, math.nan, "inconclusive"),
        ("lower", math.nan, math.nan, "not run"),
        ("within", math.nan, math.nan, "not run"),
    ],
)
def test_a_direction_is_decided_by_its_adjusted_p(
    relation: Relation, difference: float, p: float, expected: Decision
) -> None:
    assert decide(relation, difference, p) == expected


@pytest.mark.parametrize(
    ("difference", "p", "expected"),
    [
        (0.1, 0.01, "supported"),
        (0.0, 0.01, "supported"),
        (0.9, 0.01, "contradicted"),
        (-0.9, 0.01, "contradicted"),
        (0.1, 0.06, "inconclusive"),  # inside alone, and not after Holm
        (0.9, 0.06, "inconclusive"),
        (0.1, math.nan, "inconclusive"),  # one seed
    ],
)
def test_within_is_decided_by_its_adjusted_p(difference: float, p: float, expected: Decision) -> None:
    assert decide("within", difference, p, margin=0.5) == expected


def test_p_within_a_margin_is_that_of_two_one_sided_tests() -> None:
    for difference in (0.0, 0.2, -0.3):
        sides = [stats.t.sf((0.5 - difference) / 0.1, 4), stats.t.sf((0.5 + difference) / 0.1, 4)]
        assert p_within(0.5, difference, 0.1, 4) == pytest.approx(max(sides))
    assert p_within(0.5, -0.9, 0.1, 4) == p_beyond(0.5, -0.9, 0.1, 4)
    assert math.isnan(p_within(0.5, 0.3, 0.0, 4))


@pytest.mark.parametrize("folds", [0, 10])
def test_a_difference_on_the_margin_is_taken_to_be_within_in_five_percent(folds: int) -> None:
    n, share = folds or 4, 1 / folds if folds else 0.0
    # Over folds the differences share a part of their error, of correlation 0.1, by which they are corrected.
    stream = np.random.default_rng(3)
    shared = stream.normal(0, 1, (RUNS, 1))
    values = 0.5 + 0.3 * (math.sqrt(share) * shared + math.sqrt(1 - share) * stream.normal(0, 1, (RUNS, n)))
    supported, agreed = [], []
    for row in values:
        test = paired(row, np.zeros(n), share, level=0.9).corrected
        decision = decide("within", row.mean(), p_within(0.5, row.mean(), test.se, n - 1), margin=0.5)
        supported.append(decision == "supported")
        outside = paired(row, np.zeros(n), share, level=0.95).corrected.interval
        inside = test.interval.low > -0.5 and test.interval.high < 0.5
        by_interval = "supported" if inside else "contradicted" if outside.low > 0.5 else "inconclusive"
        agreed.append(decision == by_interval)
    assert all(agreed)
    assert 0.03 < np.mean(supported) <= 0.055


def test_p_beyond_a_margin_is_that_of_a_t_test_from_its_edge() -> None:
    assert p_beyond(0.5, 0.9, 0.1, 4) == pytest.approx(2 * stats.t.sf(4.0, 4))
    assert p_beyond(0.5, -0.9, 0.1, 4) == pytest.approx(2 * stats.t.sf(4.0, 4))
    assert p_beyond(0.5, 0.3, 0.1, 4) == 1.0
    assert math.isnan(p_beyond(0.5, 0.9, 0.0, 4))
    # A difference that lies on the margin is taken for one beyond it in 2.5 % of the cases.
    d = np.random.default_rng(5).normal(0.5, 0.3, (RUNS, 5))
    beyond = [p_beyond(0.5, row.mean(), row.std(ddof=1) / math.sqrt(5), 4) < 0.05 for row in d]
    assert 0.01 < np.mean(beyond) < 0.04


def test_a_claim_needs_all_of_its_comparisons() -> None:
    assert decide_all(["supported", "supported"]) == "supported"
    assert decide_all(["supported", "inconclusive"]) == "inconclusive"
    assert decide_all(["supported", "not run", "inconclusive"]) == "not run"
    assert decide_all(["not run", "contradicted", "supported"]) == "contradicted"
    assert decide_all([]) == "not run"


def test_what_is_not_tested_decides_no_claim() -> None:
    assert decide_all(["supported", "not tested"]) == "supported"
    assert decide_all(["contradicted", "not tested"]) == "contradicted"
    assert decide_all(["not run", "not tested"]) == "not run"
    assert decide_all(["not tested", "not tested"]) == "inconclusive"


def test_an_order_is_counted_by_pairs() -> None:
    assert order([1, 2, 3, 4], [10, 20, 30, 40]) == (6, 0, 0)
    assert order([4, 3, 2, 1], [10, 20, 30, 40]) == (0, 6, 0)
    assert order([1, 3, 2], [6.9, 6.45, 6.45]) == (0, 2, 0)  # the printed tie is no order
    assert order([5, 5, 6], [1, 2, 3]) == (2, 0, 1)
    ours, theirs = np.random.default_rng(9).random((2, 12))
    counts = order(ours, theirs)
    tau = (counts.same - counts.opposite) / (counts.same + counts.opposite)
    assert tau == pytest.approx(stats.kendalltau(ours, theirs).statistic)
    with pytest.raises(ValueError, match="2 rows against 3"):
        order([1, 2], [1, 2, 3])


# How many seeds --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("sd", "difference"), [(1, 1), (1, 0.5), (0.3, -0.1), (0.2, 0.5), (1, 3), (0.3, 5)])
@pytest.mark.parametrize(("alpha", "power"), [(0.05, 0.8), (0.01, 0.9)])
def test_the_seeds_needed_are_the_least_that_reach_the_power(
    sd: float, difference: float, alpha: float, power: float
) -> None:
    n = seeds_needed(sd, difference, alpha, power)

    def reached(m: int) -> float:
        """Integrate P(z > cut s) over the sample's deviation s, a scaled chi; the other tail is below 1e-4."""
        cut = stats.t.isf(alpha / 2, m - 1)
        shift = math.sqrt(m) * abs(difference) / sd
        df = m - 1
        s = np.linspace(1e-9, 1 + 8 / math.sqrt(df), 4001)
        log = df / 2 * math.log(df / 2) - math.lgamma(df / 2) + math.log(2) + (df - 1) * np.log(s) - df * s**2 / 2
        return float(np.trapezoid(np.exp(log) * stats.norm.sf(cut * s - shift), s))

    assert n == next(m for m in range(2, 10_000) if reached(m) >= power)
    assert t_power(n, sd, difference, alpha) == pytest.approx(reached(n), abs=1e-4)


@pytest.mark.parametrize(("sd", "difference", "power"), [(0.3, 0.3, 0.8), (0.3, 0.15, 0.8), (0.5, 0.3, 0.9)])
def test_simulated_seeds_reach_the_power(sd: float, difference: float, power: float) -> None:
    n = seeds_needed(sd, difference, power=power)
    assert n is not None
    d = np.random.default_rng(n).normal(difference, sd, (RUNS, n))
    rate = np.mean([paired(row, np.zeros(n)).plain.p < 0.05 for row in d])
    assert abs(rate - power) < 0.05
    assert t_power(n, sd, difference) == pytest.approx(rate, abs=0.03)


def test_seeds_at_hand_are_taken_off() -> None:
    assert seeds_needed(1, 0.5) == 34  # the textbook number for an effect of 0.5 sd, 5 %, 80 %
    assert seeds_needed(1, 0.5, have=30) == 4
    assert seeds_needed(1, 0.5, have=40) == 0


def test_what_no_number_of_seeds_settles_is_none() -> None:
    assert seeds_needed(1, 0) is None
    assert seeds_needed(1, 0.1, most=100) is None
    assert seeds_needed(0, 0.1) == 2
    with pytest.raises(ValueError, match="sd nan"):
        seeds_needed(math.nan, 1)
    with pytest.raises(ValueError, match="power 1"):
        seeds_needed(1, 1, power=1)


def test_further_folds_are_counted_by_the_corrected_variance() -> None:
    # Ten folds: the variance of a mean difference is sd^2 (1/n + 1/9), by hand from the noncentral F.
    def power(n: int, difference: float) -> float:
        effect = difference**2 / (1 / n + 1 / 9)
        return float(stats.ncf.sf(stats.f.isf(0.05, 1, n - 1), 1, n - 1, effect))

    for difference in (1.0, 1.5, 3.0):
        n = seeds_needed(1.0, difference, test_fraction=0.1)
        assert n == next(m for m in range(2, 1000) if power(m, difference) >= 0.8)
    # More folds never shrink the variance below sd^2 / 9, so .8 sd is out of reach; of seeds, 15 are enough.
    assert power(100_000, 0.8) < 0.8
    assert seeds_needed(1.0, 0.8, test_fraction=0.1) is None
    assert seeds_needed(1.0, 0.8) == 15
