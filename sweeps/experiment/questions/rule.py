"""Rule that decides questions look by look: group-sequential intervals of paired differences.

Looks are taken at 3 pairs or more and after each wave. At look k, with n pairs and I = 1 / (1/n + c) of information,

    interval    mean ± t(n - 1, p_k) s sqrt(1/n + c)       c = 0 over seeds, 1 / (K - 1) over folds of K
    spent       0.85 a (I / I_N)^2 by look k, a the level of one side, N the largest number of pairs

c is Nadeau and Bengio's correction (2003). The p_k spend the level after Lan and DeMets (1983), by Kim and DeMets'
power function (1987); the crossing probabilities are those of Armitage, McPherson and Rowe (1969), in which the means
at two looks have the covariance of the later one. The t at the level p_k is the small-sample form of Jennison and
Turnbull (2000, section 4.4); it is a little liberal below ten pairs, so 15 % of each level is never spent. The
intervals are repeated ones (Jennison and Turnbull 1989): at one a they cover the truth at all looks together. As a
grows with each decision (below), only wrong answers are held to the level, not the intervals of all questions.

    for       the interval lies above 0        against   it lies below 0
    equal     the narrower interval, at level 2 a per side, lies within ± margin, and the wide one decides nothing

"Equal" rejects both "at least a margin better" and "at least a margin worse". At most one of the two is true, so each
is tested at level 2 a: two one-sided tests (Schuirmann 1987).

With m questions there are 2 m one-sided statements. A question that is decided for or against has rejected one of them,
so a = 0.05 / (2 m - r) after r such decisions (Holm 1979; over looks: Maurer and Bretz 2013). "Equal" passes nothing
on: the difference may be 0, and then both of its sides are true.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Final, Literal, NamedTuple

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

FIRST: Final = 3  # pairs of the first look: two have hardly a spread
LEVEL: Final = 0.05  # chance of any wrong decision on a page
SPENT: Final = 0.85  # of each level
GRID: Final = 600  # points of a density
NAME: Final = (
    "group-sequential t intervals, 0.85 a (I / I_N)^2 spent, 2 a if equal, Holm over sides, looks a quarter apart"
)

Decision = Literal["for", "against", "equal", "undecided", "open"]
# The words for each decision.
DECISIONS: Final[dict[Decision, str]] = {
    "for": "yes",
    "against": "no, the opposite",
    "equal": "no difference larger than the margin",
    "undecided": "undecided at the largest number",
    "open": "open: more is to come",
}


def decision_words(decision: Decision, given_up: Sequence[str] = ()) -> str:
    """Return a decision for people; `given_up` are the labels of its question's cells that were given up.

    Such a question stays without an answer, however many trainings the other cell has.
    """
    if decision in ("open", "undecided") and given_up:
        return f"undecided: {given_up_words(given_up)}"
    return DECISIONS[decision]


def given_up_words(labels: Sequence[str]) -> str:
    """Return which cells were given up."""
    return f"{' and '.join(labels)} {'was' if len(labels) == 1 else 'were'} given up"


class Look(NamedTuple):
    """Look at a question: pairs so far, mean gain of the cell over its rival, and the interval for yes or no."""

    n: int
    gain: float
    low: float
    high: float


class Trajectory(NamedTuple):
    """Trajectory of a question: its looks so far, and its decision, "open" while more are to come."""

    looks: tuple[Look, ...]
    decision: Decision

    @property
    def is_decided(self) -> bool:
        """Return whether the question has an answer; one that ended undecided has none."""
        return self.decision not in ("open", "undecided")


class Trajectories(NamedTuple):
    """Trajectories of all questions of a page, and how many seeds or folds each needs now."""

    trajectories: tuple[Trajectory, ...]
    needed: tuple[int, ...]


def look_sizes(first: int, most: int) -> list[int]:
    """Return the numbers of pairs at which is looked: a quarter more each time, and one more at least."""
    sizes = [min(max(FIRST, first), most)]
    while sizes[-1] < most:
        sizes.append(min(most, sizes[-1] + max(1, sizes[-1] // 4)))
    return sizes


def follow(
    gains: Sequence[Mapping[int, float]],
    settled: Sequence[int],
    margins: Sequence[float],
    first: int,
    most: int,
    folds: int = 0,
) -> Trajectories:
    """Return how questions are decided, wave by wave: a pure function of what is known.

    `gains` has of each question the gain of every pair by its number. `settled` says up to which number, exclusive,
    each question has all it will get. A wave is looked at once it is settled for all questions that are open, so the
    order in which trainings end decides nothing. Gains beyond the wave that decides are not looked at.
    """
    looks: list[list[Look]] = [[] for _ in gains]
    decisions: list[Decision] = ["open"] * len(gains)
    needed = [0] * len(gains)
    for size in look_sizes(first, most):
        waiting = [i for i, decision in enumerate(decisions) if decision == "open"]
        for i in waiting:
            needed[i] = size
        if any(settled[i] < size for i in waiting):
            return _trajectories(looks, decisions, needed)
        passed = -1
        new_looks: dict[int, Look] = {}
        # A decision may widen the level of the others at the same look.
        while passed != (passed := sum(decision in ("for", "against") for decision in decisions)):
            level = LEVEL / (2 * len(gains) - passed)
            for i in waiting:
                if decisions[i] == "open":
                    values = [gains[i][number] for number in range(size) if number in gains[i]]
                    before = [look.n for look in looks[i]]
                    new_looks[i] = _look(values, before, most, level, folds)
                    decisions[i] = decide(new_looks[i], _look(values, before, most, 2 * level, folds), margins[i])
        for i, look in new_looks.items():
            looks[i].append(look)
    over: list[Decision] = ["undecided" if decision == "open" else decision for decision in decisions]
    return _trajectories(looks, over, needed)


def _trajectories(
    looks: Sequence[Sequence[Look]], decisions: Sequence[Decision], needed: Sequence[int]
) -> Trajectories:
    trajectories = tuple(
        Trajectory(tuple(question_looks), decision) for question_looks, decision in zip(looks, decisions, strict=True)
    )
    return Trajectories(trajectories, tuple(needed))


def decide(look: Look, narrow: Look, margin: float) -> Decision:
    """Return what a look decides, "open" where nothing; `narrow` is the same look at twice the level."""
    if look.low > 0:
        return "for"
    if look.high < 0:
        return "against"
    return "equal" if -margin < narrow.low and narrow.high < margin else "open"


def _look(values: Sequence[float], before: Sequence[int], most: int, level: float, folds: int) -> Look:
    """Return the look at some gains; its interval is infinite where it would be no wider than at the last look."""
    n = len(values)
    mean = math.fsum(values) / n if n else math.nan
    squares = math.fsum((value - mean) ** 2 for value in values)
    scale = max(map(abs, values), default=0.0)
    # Equal differences have no spread to judge by; failed trainings may leave no new pair.
    if n < FIRST or n <= max(before, default=0) or squares <= (1e-9 * scale) ** 2:
        return Look(n, mean, -math.inf, math.inf)
    counted = [size for size in dict.fromkeys(before) if FIRST <= size < n]
    half = critical((*counted, n), most, level, folds) * math.sqrt(squares / (n - 1) / information(n, folds))
    return Look(n, mean, mean - half, mean + half)


def information(n: int, folds: int = 0) -> float:
    """Return the information of n pairs in units of one pair's; folds share pictures, so theirs has a limit."""
    return 1 / (1 / n + (1 / (folds - 1) if folds > 1 else 0.0))


@lru_cache(maxsize=4096)
def critical(sizes: tuple[int, ...], most: int, level: float, folds: int = 0) -> float:
    """Return the t beyond which the last of the looks at `sizes` pairs decides at a one-sided level."""
    from scipy import special

    times = tuple(information(n, folds) / information(most, folds) for n in sizes)
    return float(-special.stdtrit(sizes[-1] - 1, _crossing(times, level)[0]))


@lru_cache(maxsize=4096)
def _crossing(
    times: tuple[float, ...], level: float
) -> tuple[float, NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """Return the last look's nominal level, and its Brownian density below the bounds so far as points and weights."""
    import numpy as np
    from scipy import optimize, special

    now, before = times[-1], times[-2] if len(times) > 1 else 0.0
    spends = SPENT * level * (now**2 - before**2)
    if before:
        _, points, weights, density = _crossing(times[:-1], level)
    else:
        points, weights, density = np.zeros(1), np.ones(1), np.ones(1)
    mass, step = weights * density, math.sqrt(now - before)

    def excess(z: float) -> float:
        return float(np.sum(mass * special.ndtr((points - z * math.sqrt(now)) / step))) - spends

    z = float(optimize.brentq(excess, 0.0, 37.0, xtol=1e-7))
    reached = np.linspace(-8.0, min(z, 8.0), GRID) * math.sqrt(now)
    areas = np.full(GRID, reached[1] - reached[0])
    areas[[0, -1]] /= 2
    moves = (reached[:, None] - points[None]) / step
    below = np.exp(-(moves**2) / 2) @ mass / (step * math.sqrt(2 * math.pi))
    return float(special.ndtr(-z)), reached, areas, below
