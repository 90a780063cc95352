"""Successive halving: arms train to a rung, and one in `factor` of those that have reached it goes on to the next.

The rule is ASHA's (Li et al. 2020): a free worker promotes the best arm among the best 1/factor of a rung, from the top
rung down; where there is none, it begins a new arm. Here `workers` of equal speed are played on a clock that counts
epochs. So the values alone decide: neither the order in which trainings really end, nor a kill, nor another driver
changes a decision. A training begins as soon as its turn is certain.
"""

from __future__ import annotations

import math
import random
from functools import cache
from typing import NamedTuple

# Rungs below the last epoch, where nothing else is asked for. With three, curves that cross mislead the first one: over
# benchmarks.bench_search the winner is then worse by two points, with two by an eighth of a point.
DEPTH = 2
PLAYED = 500  # arms of brackets that are played for a forecast


class Job(NamedTuple):
    """Training of an arm up to a rung, which ends at this epoch of the clock."""

    end: int
    arm: int
    rung: int


def rungs(epochs: int, factor: int, first: int = 0) -> tuple[int, ...]:
    """Return the epochs at which arms pause, rising to the last: each a factor from the next, none below the first."""
    least = first or 1
    steps = [-(-epochs // factor**depth) for depth in range(64 if first else DEPTH + 1)]
    return tuple(sorted({step for step in steps if step >= least} | {epochs}))


@cache
def bracket_epochs(arms: int, workers: int, steps: tuple[int, ...], factor: int) -> float:
    """Return the epochs that so many arms train together: the mean over brackets that are played with random values."""
    draw = random.Random(0)
    plays = max(1, PLAYED // arms)
    return sum(_played(Bracket(arms, workers, steps, factor), draw) for _ in range(plays)) / plays


def _played(bracket: Bracket, draw: random.Random) -> int:
    """Play a bracket to its end with a random value for each arm, and return the epochs that it trains."""
    values = [draw.random() for _ in range(bracket.arms)]
    while True:
        while bracket.begin_next() is not None:
            pass
        job = bracket.first_to_end()
        if job is None:
            return sum(max(epoch for epoch, _ in bracket.rungs_of(arm)) for arm in range(bracket.begun))
        bracket.finish(job, values[job.arm])


class Bracket:
    """Successive halving under way: the values of its arms by rung, the jobs that run, and its clock."""

    def __init__(self, arms: int, workers: int, steps: tuple[int, ...], factor: int) -> None:
        """Begin with no arm; `steps` are the epochs of the rungs."""
        self.arms = arms
        self.workers = workers
        self.steps = steps
        self.factor = factor
        self.clock = 0
        self.begun = 0
        self.running: list[Job] = []
        self.values: list[dict[int, float]] = [{} for _ in steps]  # by rung, then arm: the less the better, nan: failed
        self.promoted: list[set[int]] = [set() for _ in steps]

    def begin_next(self) -> Job | None:
        """Begin the next job and return it; None where every worker is busy, or nobody may go on."""
        if len(self.running) >= self.workers:
            return None
        job = self._promotion() or self._new_arm() or self._last_promotion()
        if job is not None:
            self.running.append(job)
        return job

    def first_to_end(self) -> Job | None:
        """Return the running job that ends first, by the clock; None where none runs."""
        return min(self.running, default=None)

    def finish(self, job: Job, value: float) -> None:
        """End a job with its value."""
        self.running.remove(job)
        self.clock = job.end
        self.values[job.rung][job.arm] = value

    def drop(self, job: Job) -> None:
        """Take back the job of a new arm that does not come: no more do."""
        self.running.remove(job)
        self.begun -= 1
        self.arms = self.begun

    def rungs_of(self, arm: int) -> tuple[tuple[int, float], ...]:
        """Return the rungs that an arm has reached, as epoch and value."""
        return tuple((step, values[arm]) for step, values in zip(self.steps, self.values, strict=True) if arm in values)

    def _promotion(self) -> Job | None:
        """Return the job of an arm among the best of its rung, the highest rung first."""
        for rung in reversed(range(len(self.steps) - 1)):
            best = self._ranked(rung)[: len(self.values[rung]) // self.factor]
            arm = next((arm for arm in best if arm not in self.promoted[rung]), None)
            if arm is not None:
                return self._promote(arm, rung)
        return None

    def _new_arm(self) -> Job | None:
        if self.begun >= self.arms:
            return None
        self.begun += 1
        return Job(self.clock + self.steps[0], self.begun - 1, 0)

    def _last_promotion(self) -> Job | None:
        """Return the job of the best arm of the highest rung where all is quiet and no arm has reached the last one."""
        if self.running or any(map(math.isfinite, self.values[-1].values())):
            return None
        for rung in reversed(range(len(self.steps) - 1)):
            arm = next((arm for arm in self._ranked(rung) if arm not in self.promoted[rung]), None)
            if arm is not None:
                return self._promote(arm, rung)
        return None

    def _ranked(self, rung: int) -> list[int]:
        """Return the arms that have reached a rung, the best first, of equal ones the earlier; failed ones left out."""
        values = self.values[rung]
        return sorted((arm for arm in values if math.isfinite(values[arm])), key=lambda arm: (values[arm], arm))

    def _promote(self, arm: int, rung: int) -> Job:
        self.promoted[rung].add(arm)
        return Job(self.clock + self.steps[rung + 1] - self.steps[rung], arm, rung + 1)
