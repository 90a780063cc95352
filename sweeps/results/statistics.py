"""Statistics of results: averages, intervals, tests, votes and verdicts, pure functions; errors are in percent.

Networks trained on folds share training pictures, so the spread over folds understates that over data sets.
Nadeau and Bengio (2003) correct the variance of a mean difference from s^2/n to s^2 (1/n + n_test/n_train),
with n - 1 degrees of freedom: 1/10 + 1/9 in ten folds, an SE 1.45 times as large. Both tests are reported.

The paper prints mean ± SE of ten folds, not the folds, so nothing can be paired there. From two such numbers

    SE = sqrt(SE_a^2 + SE_b^2)      t = (mean_a - mean_b) / SE      df: Welch and Satterthwaite
    corrected: SE_i sqrt(1 + n_i n_test/n_train) in place of SE_i    df: the smaller n - 1, as for pairs

so 10.20 ± .09 against 9.39 ± .11 has t = 5.7 at 17 degrees of freedom; corrected, t = 3.9 at 9 and p = .0035.
"""

import math
from collections.abc import Iterable
from typing import Final, Literal, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from sweeps.experiment.metrics import Average, average
from sweeps.experiment.wording import count
from sweeps.results.paper import FOLDS, Relation

# Points that a reproduction may be off by: the paper leaves recipes open.
TOLERANCE: Final = {"cifar10": 1.0, "cifar100": 2.0, "imagenet": 1.5}

EQUAL: Final = 1e-12  # of a mean: values that spread by no more are the same number

Method = Literal["mean_softmax", "mean_logit", "majority"]
METHODS: Final[tuple[Method, ...]] = ("mean_softmax", "mean_logit", "majority")
Decision = Literal["supported", "contradicted", "inconclusive", "not run", "not tested"]


class Interval(NamedTuple):
    """Ends of a confidence interval."""

    low: float
    high: float


class TTest(NamedTuple):
    """Two-sided t test of a difference, with its confidence interval."""

    se: float
    t: float
    df: float
    p: float
    interval: Interval


class Difference(NamedTuple):
    """Difference of means, a - b, tested plainly and after Nadeau and Bengio.

    `signed_rank_p` is Wilcoxon's, exact and two-sided, and `sd` that of the paired differences, 0 where all are equal;
    both are nan where the values are not paired.
    """

    difference: float
    plain: TTest
    corrected: TTest
    signed_rank_p: float
    sd: float = math.nan


class McNemar(NamedTuple):
    """McNemar's test of two networks on the same pictures: errors of a minus errors of b in percent, and the exact p.

    `only_a` and `only_b` count the pictures that one of them alone gets right.
    """

    difference: float
    only_a: int
    only_b: int
    p: float
    interval: Interval


class Order(NamedTuple):
    """Order of pairs of rows: how many stand as in the paper, how many the other way, and how many are equal."""

    same: int
    opposite: int
    tied: int


class Verdict(NamedTuple):
    """Verdict on ours - paper: 95 % interval, margin (all in points), and the word; `why` it is withheld."""

    difference: float
    interval: Interval
    margin: float
    word: Literal["reproduced", "differs", "inconclusive", "withheld", "not run"]
    why: str = ""


def mean_se(values: ArrayLike) -> Average:
    """Average values (n,); ValueError for none, and for one that is not finite."""
    return average(_vector("values", values).tolist())


def t_interval(average: Average, level: float = 0.95) -> Interval:
    """Bound the mean that an average estimates by Student's t; nan without a spread: for one value, or equal ones."""
    if not average.se > EQUAL * abs(average.mean):
        return Interval(math.nan, math.nan)
    half = _t_quantile(average.n - 1, level) * average.se
    return Interval(average.mean - half, average.mean + half)


def fold_interval(average: Average, test_fraction: float, level: float = 0.95) -> Interval:
    """Bound the mean over folds as `t_interval` does, by the standard error after Nadeau and Bengio."""
    return t_interval(average._replace(se=average.se * _widen(average.n, test_fraction)), level)


def wilson(errors: int, n: int, level: float = 0.95) -> Interval:
    """Bound an error rate, in percent, by Wilson's score interval from the wrong pictures among n."""
    from scipy import stats

    if not 0 <= errors <= n or n < 1:
        raise ValueError(f"{count(errors, 'error')} among {count(n, 'picture')}; expected 0 <= errors <= n and n >= 1")
    bounds = stats.binomtest(errors, n).proportion_ci(level, "wilson")
    return Interval(100 * float(bounds.low), 100 * float(bounds.high))


def paired(a: ArrayLike, b: ArrayLike, test_fraction: float | None = None, level: float = 0.95) -> Difference:
    """Compare the values (n,) of two cells on the same folds or seeds.

    `test_fraction` is the share of the pictures that each fold holds out, 0.1 for ten folds; None or 0 (seeds
    on one training set) corrects nothing. Differences that are all equal leave no spread to test by: p is then
    the signed-rank p and the interval nan. One pair tests nothing: all nan.
    """
    x, y = _vector("a", a), _vector("b", b)
    if len(x) != len(y):
        raise ValueError(f"{len(x)} values against {len(y)}; pairs need as many on either side")
    widen = _widen(len(x), test_fraction)
    mean, se, n = mean_se(x - y)
    # 0.3 - 0.2 is not 0.2 - 0.1 in binary: rounded to 12 digits of the values, equal differences are equal.
    unit = float(np.abs([x, y]).max()) or 1.0
    d: NDArray[np.float64] = np.round((x - y) / unit, 12)
    rank_p = _signed_rank_p(d)
    if n > 1 and np.all(d == d[0]):
        t = math.copysign(math.inf, mean) if d[0] else 0.0
        test = TTest(0.0, t, n - 1, rank_p, Interval(math.nan, math.nan))
        return Difference(mean, test, test, rank_p, 0.0)
    plain, corrected = (_t_test(mean, width, n - 1, level) for width in (se, widen * se))
    return Difference(mean, plain, corrected, rank_p, se * math.sqrt(n))


def welch(a: Average, b: Average, test_fraction: float | None = None, level: float = 0.95) -> Difference:
    """Compare two averages that are not paired, such as printed ones; the module's head has the formula."""
    if min(a.n, b.n) < 2 or not (a.se > 0 and b.se > 0):
        raise ValueError(f"{a} against {b}; each needs at least 2 values and a standard error above 0")
    difference, se = a.mean - b.mean, math.hypot(a.se, b.se)
    plain = _t_test(difference, se, se**4 / (a.se**4 / (a.n - 1) + b.se**4 / (b.n - 1)), level)
    if not test_fraction:
        return Difference(difference, plain, plain, math.nan)
    wide = math.hypot(a.se * _widen(a.n, test_fraction), b.se * _widen(b.n, test_fraction))
    return Difference(difference, plain, _t_test(difference, wide, min(a.n, b.n) - 1, level), math.nan)


def mcnemar_exact(correct_a: ArrayLike, correct_b: ArrayLike, level: float = 0.95) -> McNemar:
    """Compare two networks by which pictures (n,) each gets right, two booleans a picture.

    p is that of the exact binomial test, the interval Bonett and Price's (2012). Both speak of these two networks
    on other pictures, not of other trainings.
    """
    from scipy import stats

    a, b = np.asarray(correct_a), np.asarray(correct_b)
    if a.dtype != bool or b.dtype != bool or a.ndim != 1 or a.shape != b.shape or not len(a):
        raise ValueError(f"{a.dtype} {a.shape} against {b.dtype} {b.shape}; expected two bool (n,)")
    n, only_a, only_b = len(a), int(np.sum(a & ~b)), int(np.sum(b & ~a))
    p = float(stats.binomtest(only_a, only_a + only_b).pvalue) if only_a + only_b else 1.0
    up, down = (only_b + 1) / (n + 2), (only_a + 1) / (n + 2)
    half = float(stats.norm.isf((1 - level) / 2)) * math.sqrt((up + down - (up - down) ** 2) / (n + 2))
    low, high = 100 * max(-1.0, up - down - half), 100 * min(1.0, up - down + half)
    return McNemar(100 * (only_b - only_a) / n, only_a, only_b, p, Interval(low, high))


def holm(p_values: ArrayLike) -> NDArray[np.float64]:
    """Adjust p values (..., m) over the last axis by Holm's step-down; nan is not counted and stays nan."""
    p = np.asarray(p_values, np.float64)
    if np.any((p < 0) | (p > 1)):
        raise ValueError(f"p values from {np.nanmin(p)} to {np.nanmax(p)}; expected 0 to 1")
    rank = np.argsort(p, axis=-1)
    factors = np.sum(~np.isnan(p), axis=-1, keepdims=True) - np.arange(p.shape[-1])
    steps = np.take_along_axis(p, rank, -1) * np.maximum(factors, 1)
    adjusted = np.empty_like(p)
    np.put_along_axis(adjusted, rank, np.minimum(np.maximum.accumulate(steps, axis=-1), 1.0), -1)
    return adjusted


def votes(scores: ArrayLike) -> dict[Method, NDArray[np.intp]]:
    """Return the classes (n,) that k networks with scores (k, n, c) before softmax choose together, by method.

    The paper's vote is "mean_softmax". Of equal classes the lowest wins; in "majority" the one of higher mean
    softmax, then the lowest, and a network that gives all classes the same score votes for none.
    """
    from scipy import special

    x = np.asarray(scores)
    if x.ndim != 3 or 0 in x.shape or not np.all(np.isfinite(x)):
        raise ValueError(f"scores {x.shape}; expected finite numbers of shape (networks, pictures, classes)")
    softmax, logit, counts = np.zeros(x.shape[1:]), np.zeros(x.shape[1:]), np.zeros(x.shape[1:], np.int64)
    for member in x:
        logits = member.astype(np.float64)
        logit += logits
        softmax += special.softmax(logits, axis=1)
        counts[np.arange(len(logits)), logits.argmax(axis=1)] += logits.min(axis=1) < logits.max(axis=1)
    elected = np.where(counts < counts.max(axis=1, keepdims=True), -1.0, softmax)
    means = {"mean_softmax": softmax, "mean_logit": logit, "majority": elected}
    return {method: means[method].argmax(axis=1) for method in METHODS}


def order(ours: ArrayLike, paper: ArrayLike) -> Order:
    """Count the pairs of rows (n,) in the printed order; pairs that the paper prints as equal are left out."""
    x, y = _vector("ours", ours), _vector("paper", paper)
    if len(x) != len(y):
        raise ValueError(f"{count(len(x), 'row')} against {len(y)} printed ones; expected as many")
    i, j = np.triu_indices(len(x), 1)
    agreement = (np.sign(x[i] - x[j]) * np.sign(y[i] - y[j]))[y[i] != y[j]]
    return Order(int(np.sum(agreement > 0)), int(np.sum(agreement < 0)), int(np.sum(agreement == 0)))


def verdict(ours: Average, interval: Interval, paper: float, se_paper: float | None, dataset: str) -> Verdict:
    """Judge one number by equivalence, within the data set's TOLERANCE of the paper's.

    It is reproduced where the 95 % interval of ours - paper lies inside ±TOLERANCE, differs where it lies wholly
    outside, and is else inconclusive. `interval` is that of ours; the half-width of the paper's, whose standard errors
    are all of ten folds, is added in quadrature. `ours` nan is "not run".
    """
    if dataset not in TOLERANCE:
        raise ValueError(f"no tolerance for data set {dataset!r}; the paper has {', '.join(TOLERANCE)}")
    difference = ours.mean - paper
    margin = TOLERANCE[dataset]
    if math.isnan(difference):
        return Verdict(difference, Interval(math.nan, math.nan), margin, "not run")
    printed = fold_interval(Average(paper, se_paper, FOLDS), 1 / FOLDS).high - paper if se_paper else 0.0
    low = difference - math.hypot(ours.mean - interval.low, printed)
    high = difference + math.hypot(interval.high - ours.mean, printed)
    # Printed decimals are not exact in binary: 10.17 - 9.17 is 1.0000000000000000 or a little more.
    reach = margin + 1e-9
    if -reach <= low and high <= reach:
        return Verdict(difference, Interval(low, high), margin, "reproduced")
    outside = low > reach or high < -reach
    return Verdict(difference, Interval(low, high), margin, "differs" if outside else "inconclusive")


def decide(relation: Relation, difference: float, p: float, margin: float = 0.0, alpha: float = 0.05) -> Decision:
    """Decide one comparison from row - rival and its p adjusted over the page, which has to be below alpha.

    "not lower" therefore needs a difference above 0 to be supported. The p of "within" is `p_within`. A difference of
    nan is "not run"; a p of nan (one seed) decides nothing.
    """
    if math.isnan(difference):
        return "not run"
    if not p < alpha or (difference == 0 and relation != "within"):
        return "inconclusive"
    if relation == "within":
        return "supported" if abs(difference) <= margin else "contradicted"
    return "supported" if (difference < 0) == (relation in ("lower", "lowest")) else "contradicted"


def decide_all(decisions: Iterable[Decision]) -> Decision:
    """Decide a claim from its comparisons: one contradicts it, all must support it; without any it is "not run".

    Those "not tested" do not enter; a claim that has no others is "inconclusive".
    """
    reached = set(decisions)
    for worst in ("contradicted", "not run", "inconclusive"):
        if worst in reached:
            return worst
    if "supported" in reached:
        return "supported"
    return "inconclusive" if reached else "not run"


def p_within(margin: float, difference: float, se: float, df: float) -> float:
    """Return the p of what a difference says of ±margin: that it is inside, or outside; nan without a spread.

    Inside it is the larger p of two one-sided tests (Schuirmann 1987), so p < .05 where the 90 % interval lies inside
    too; outside it is `p_beyond`.
    """
    from scipy import special

    if abs(difference) > margin or not se > 0:
        return p_beyond(margin, difference, se, df)
    return float(special.stdtr(df, (abs(difference) - margin) / se))


def p_beyond(margin: float, difference: float, se: float, df: float) -> float:
    """Return the two-sided p of a difference that lies beyond ±margin by chance alone; nan without a spread."""
    from scipy import special

    if not se > 0:
        return math.nan
    return min(1.0, 2 * float(special.stdtr(df, -(abs(difference) - margin) / se)))


def seeds_needed(
    sd: float,
    difference: float,
    alpha: float = 0.05,
    power: float = 0.8,
    have: int = 0,
    most: int = 100_000,
    test_fraction: float | None = None,
) -> int | None:
    """Count the seeds, or folds, to add to `have` for a paired t test to find `difference` with this power.

    `sd` is that of the paired differences, `test_fraction` as in `paired`. The least n is exact, by the noncentral F
    of t squared. None: a difference of 0, or more than `most` in all. Folds may never be enough: their corrected
    variance stays above s^2 n_test/n_train. From a few seeds' sd and difference it is a rough guide.
    """
    if not (sd >= 0 and math.isfinite(sd) and math.isfinite(difference)):
        raise ValueError(f"sd {sd}, difference {difference}; expected finite numbers and sd >= 0")
    if not (0 < alpha < 1 and 0 < power < 1):
        raise ValueError(f"alpha {alpha}, power {power}; both lie between 0 and 1")
    if difference == 0 or (sd > 0 and t_power(most, sd, difference, alpha, test_fraction) < power):
        return None
    low, high = 1, most if sd > 0 else 2  # power(low) is too small, power(high) is enough
    while high - low > 1:
        middle = (low + high) // 2
        enough = t_power(middle, sd, difference, alpha, test_fraction) >= power
        low, high = (low, middle) if enough else (middle, high)
    return max(0, high - have)


def t_power(n: int, sd: float, difference: float, alpha: float = 0.05, test_fraction: float | None = None) -> float:
    """Return the chance of p < alpha in a two-sided paired t test on n > 1 differences of deviation sd > 0.

    With `test_fraction` it is the test that Nadeau and Bengio correct, of variance sd^2 (1/n + n_test/n_train).
    """
    from scipy import stats

    # t^2 has a noncentral F: both tails at once, where scipy's noncentral t is nan far out in one.
    effect = (difference / sd) ** 2 * n / _widen(n, test_fraction) ** 2
    return float(stats.ncf.sf(stats.f.isf(alpha, 1, n - 1), 1, n - 1, effect))


def error_of_mean(sd: float, n: int, test_fraction: float | None = None) -> float:
    """Return the standard error of the mean of n paired differences of deviation sd, as `paired` has it."""
    return sd / math.sqrt(n) * _widen(n, test_fraction)


def _vector(name: str, values: ArrayLike) -> NDArray[np.float64]:
    x = np.asarray(values, np.float64)
    if x.ndim != 1 or not len(x) or not np.all(np.isfinite(x)):
        raise ValueError(f"{name} {x!r}; expected one dimension of at least one finite number")
    return x


def _widen(n: int, test_fraction: float | None) -> float:
    """Return sqrt((1/n + n_test/n_train) / (1/n)), what Nadeau and Bengio multiply a standard error by."""
    fraction = test_fraction or 0.0
    if not 0 <= fraction < 1:
        raise ValueError(f"test_fraction {fraction}; expected the share held out, 0 <= share < 1")
    return math.sqrt(1 + n * fraction / (1 - fraction))


def _t_quantile(df: float, level: float) -> float:
    """Return the two-sided quantile of Student's t, nan for df = 0; 100 times as fast as scipy.stats.t."""
    from scipy import special

    if not 0 < level < 1:
        raise ValueError(f"level {level}; expected between 0 and 1, such as 0.95")
    return float(special.stdtrit(df, 0.5 + level / 2))


def _t_test(difference: float, se: float, df: float, level: float) -> TTest:
    """Test a difference by its standard error: scipy.stats tests samples, and corrects nothing."""
    from scipy import special

    half = _t_quantile(df, level) * se
    t = difference / se
    return TTest(se, t, df, 2 * float(special.stdtr(df, -abs(t))), Interval(difference - half, difference + half))


def _signed_rank_p(differences: NDArray[np.float64]) -> float:
    """Return Wilcoxon's exact two-sided p: zeros dropped, ties at their mean rank, all 2^n signs counted.

    Test errors are multiples of a picture, so ties are common. scipy.stats.wilcoxon is exact without ties alone; its
    permutation test counts 2^n signs one by one, where this sums over ranks.
    """
    if len(differences) < 2:
        return math.nan
    d = differences[differences != 0]
    size, inverse, count = np.unique(np.abs(d), return_inverse=True, return_counts=True)
    last = np.cumsum(count)
    ranks = (2 * last - count + 1)[inverse] if len(size) else np.zeros(0, np.int64)  # doubled: whole numbers
    chance = np.zeros(int(ranks.sum()) + 1)
    chance[0] = 1.0
    for rank in ranks:
        chance[rank:] = (chance[rank:] + chance[: len(chance) - rank]) / 2
        chance[:rank] /= 2
    w = int(ranks[d > 0].sum())
    return min(1.0, 2 * float(min(chance[: w + 1].sum(), chance[w:].sum())))
