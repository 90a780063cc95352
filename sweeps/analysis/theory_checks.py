"""The paper's theorems in numbers: Propositions 2.1, A.5, C.1, and Theorem 4.1 with its counterexample.

Proposition 2.1   x' = (W^T)^+ z from CReLU(W^T x) is the projection of x on span(W): |x|^2 = |x'|^2 + |x - x'|^2.
Theorem A.5       x = sum_i c_i w_i^{j_i}, W_x its columns, W~_x those that max-pooling selects in the phase of c_i:
                      |x - x'| / |x| <= sqrt((largest eigenvalue of W~^T W~ - least of W_x^T W_x) / that least)
                  It holds in every case tried; at 1 and above it says nothing, as for all but few filters. A step of
                  its proof, |W_x^T x| <= |W~_x^T x|, fails in some cases, where c_i and <w_i, x> differ in sign.
Theorem C.1       For a random subspace of dimension k, E|x_s|^2 = k / d |x|^2. The norm itself is a little smaller:
                      E|x_s| / |x| = G((k+1)/2) G(d/2) / (G(k/2) G((d+1)/2)) < sqrt(k / d)
Theorem 4.1       Rademacher complexity of a CReLU layer against a linear one, with signs s, L points, f in F:
                      a = 2/L sum_i s_i max(f_i, 0)    b = 2/L sum_i s_i max(-f_i, 0)
                      ratio = E sup_f sqrt(a^2 + b^2) / E sup_f |a - b|, at most 1 as the theorem has it
                  It takes the sign of a b for granted. For one function with values (1, -1) the ratio is sqrt(2), which
                  is also the most that one function can give (Khintchine); any class stays below 4. The message, that
                  CReLU is as complex as ReLU up to a constant, stands.

Without weights all is drawn at random; with weights A.5 and 4.1 are tried on conv1's filters and embedded pictures.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from crelu_data.synthetic import picture as embedded
from crelu_models.activations import crelu
from crelu_models.spec import seed_from
from sweeps.analysis.cgls import unrectified
from sweeps.analysis.compute import Findings
from sweeps.analysis.pooling_ratio import patch_columns
from sweeps.analysis.weights import LoadedNet
from sweeps.experiment.wording import count
from sweeps.report.render import plots
from sweeps.store.tables import columns_of
from sweeps.training.runtime import RuntimeConfig

EXACT = 12  # points up to which all signs are enumerated


def _stream(*names: str | int) -> torch.Generator:
    """Return a stream of random numbers of its own for each use."""
    return torch.Generator().manual_seed(seed_from(*names))


def projection(w: Tensor, y: Tensor) -> Tensor:
    """Return x' (n, d) from y = CReLU(W^T x) (n, 2k), W (d, k): undo CReLU, then the pseudoinverse of W^T."""
    reconstructed: Tensor = unrectified(y) @ torch.linalg.pinv(w)
    return reconstructed


class PoolingBound(NamedTuple):
    """One case of Theorem A.5: |x - x'| / |x|, its bound, and whether the proof's step |W^T x| <= |W~^T x| holds."""

    ratio: float
    bound: float
    step: bool

    @property
    def vacuous(self) -> bool:
        """Return whether the bound is 1 or more: no ratio is above 1."""
        return self.bound >= 1


def pooling_bound(shifted: Tensor, places: Tensor, coefficients: Tensor) -> PoolingBound:
    """Return Theorem A.5 for x = sum c_i w_i^{j_i}: `shifted` (k, n, d) filters at each place, j (k,), c (k,).

    The bound is clamped at 0 from below. lambda are eigenvalues of Gram matrices, squared singular values.
    """
    filters = torch.arange(len(shifted))
    true = shifted[filters, places]
    x = coefficients @ true
    responses = shifted @ x
    phase = torch.where(coefficients > 0, responses.argmax(1), responses.argmin(1))
    selected = shifted[filters, phase]
    lost = x - torch.linalg.pinv(selected) @ (selected @ x)
    least, most = torch.linalg.svdvals(true)[-1] ** 2, torch.linalg.svdvals(selected)[0] ** 2
    bound = float((most - least).clamp(min=0).div(least).sqrt())
    step = bool((true @ x).norm() <= (selected @ x).norm() * (1 + 1e-12))
    return PoolingBound(float(lost.norm() / x.norm()), bound, step)


def shifts(filters: Tensor, n: int) -> Tensor:
    """Return filters (k, l) at each of n places of a line: (k, n, l + n - 1)."""
    k, length = filters.shape
    placed = filters.new_zeros(k, n, length + n - 1)
    for place in range(n):
        placed[:, place, place : place + length] = filters
    return placed


def expected_norm(d: int, k: int) -> float:
    """Return E|x_s| for a unit vector in R^d on a random subspace of dimension k (Theorem C.1 in its true form)."""
    logs = math.lgamma((k + 1) / 2) + math.lgamma(d / 2) - math.lgamma(k / 2) - math.lgamma((d + 1) / 2)
    return math.exp(logs)


def subspace_norms(d: int, k: int, draws: int, seed: int) -> Tensor:
    """Return |x_s| (draws,) of a unit vector on random subspaces of dimension k of R^d."""
    stream = _stream("subspace", seed, d, k)
    norms = []
    for some in torch.split(torch.arange(draws), max(1, 2**22 // (d * k))):
        basis = torch.randn(len(some), d, k, generator=stream, dtype=torch.float64)
        # Any unit vector will do, so e = (1, 0, ...): |P e|^2 = e^T B (B^T B)^-1 B^T e.
        first = basis[:, 0]
        norms.append((first * torch.linalg.solve(basis.mT @ basis, first)).sum(1).sqrt())
    return torch.cat(norms)


class Ratio(NamedTuple):
    """A ratio of Rademacher complexities, CReLU to linear, with its standard error (0 where it is exact)."""

    value: float
    se: float


def rademacher_ratio(values: Tensor, draws: int, seed: int) -> Ratio:
    """Return E sup_f sqrt(a^2 + b^2) / E sup_f |a - b| for a finite class with `values` f(x_i) (f, L).

    Over all signs where L <= EXACT, else over `draws` of them.
    """
    points = values.shape[1]
    if points <= EXACT:
        signs = torch.tensor([*itertools.product((-1.0, 1.0), repeat=points)], dtype=torch.float64)
    else:
        stream = _stream("signs", seed, *values.shape)
        signs = torch.randint(2, (draws, points), generator=stream).double() * 2 - 1
    above, below = values.double().clamp(min=0).T, (-values.double()).clamp(min=0).T
    tops = []
    for some in torch.split(signs, max(1, 2**23 // len(values))):
        a, b = some @ above, some @ below
        tops.append(torch.stack([torch.hypot(a, b).amax(1), (a - b).abs().amax(1)]))
    both, linear = torch.cat(tops, 1)
    value = float(both.mean() / linear.mean())
    se = 0.0 if points <= EXACT else float((both - value * linear).std() / linear.mean() / len(both) ** 0.5)
    return Ratio(value, se)


def directions(dimension: int, count: int) -> Tensor:
    """Return `count` unit vectors spread evenly over the circle or the sphere: a dense part of the unit ball's edge."""
    if dimension == 2:
        angle = torch.arange(count, dtype=torch.float64) * math.pi / count  # f and -f have the same ratio
        return torch.stack([angle.cos(), angle.sin()], 1)
    if dimension != 3:
        raise ValueError(f"directions are spread over the circle or the sphere, not in {dimension} dimensions")
    height = 1 - (2 * torch.arange(count, dtype=torch.float64) + 1) / count
    turn = torch.arange(count, dtype=torch.float64) * math.pi * (3 - math.sqrt(5))
    radius = (1 - height.square()).sqrt()
    return torch.stack([radius * turn.cos(), radius * turn.sin(), height], 1)


def natural_patches(count: int, kernel: int, seed: int) -> Tensor:
    """Return patches (count, 3 * kernel^2), float64, of embedded pictures: less their mean, over their deviation."""
    rng = np.random.Generator(np.random.PCG64(seed_from("patches", seed, kernel)))
    patches = []
    for index in range(count):
        drawn = torch.from_numpy(embedded(seed, index % 100, index % 10, 32, 10)).double().permute(2, 0, 1)
        top, left = rng.integers(0, 33 - kernel, 2)
        patches.append(drawn[:, top : top + kernel, left : left + kernel].flatten())
    stacked = torch.stack(patches)
    return (stacked - stacked.mean()) / stacked.std()


# The job ------------------------------------------------------------------------------------------------------

CASES, SIGNS = 1000, 2000  # of Theorem A.5 for each setting; draws of signs for Theorem 4.1
LINES = ((1, 9, 5), (2, 9, 5), (2, 50, 3), (4, 20, 5), (8, 20, 5))  # filters, their length, shifts on a line
POINTS = 200


def findings(loaded: LoadedNet, _runtime: RuntimeConfig, asked: dict[str, Any]) -> Findings:
    """Put each theorem to numbers, or A.5 and 4.1 for a run's conv1; `samples` cases and draws (1,000 and 2,000)."""
    seed = asked["seed"]
    conv1 = loaded.weights.get("conv1.weight")
    bounds = pooling_cases(conv1, asked["samples"] or CASES, seed)
    ratios = rademacher_cases(conv1, asked["samples"] or SIGNS, seed)
    rows = _norm_rows(seed) + _projection_rows(seed) if conv1 is None else []
    rows += [_pooling_row(name, cases) for name, cases in bounds.items()]
    rows += [_ratio_row(name, ratio) for name, ratio in ratios.items()]
    rows.sort(key=lambda row: str(row["statement"]))
    broken = sum(_violations(cases) for cases in bounds.values())
    metrics = {"theory/bound_violations": float(broken)}
    if conv1 is None:
        metrics["theory/ratio_counterexample"] = ratios[COUNTEREXAMPLE].value
    else:
        metrics["theory/ratio_conv1"] = ratios[CONV1].value
    notes = (
        f"Theorem A.5 was violated in {broken or 'no'} case; where its bound is 1 or more it says nothing",
        "Theorem 4.1 is false with the constant 1: f = (1, -1) gives sqrt(2). Up to a constant below 4 it stands",
    )
    return Findings({"table.parquet": columns_of(rows)}, {"theory.png": drawing(bounds, ratios)}, rows, metrics, notes)


def _row(statement: str, case: str, measured: float, se: float, stated: str, verdict: str) -> dict[str, Any]:
    return {"statement": statement, "case": case, "measured": measured, "se": se, "stated": stated, "verdict": verdict}


def _projection_rows(seed: int) -> list[dict[str, Any]]:
    """Measure Proposition 2.1, |x|^2 = |x'|^2 + |x - x'|^2, for fewer and for more filters than inputs."""
    rows = []
    for d, k in ((75, 30), (30, 75)):
        stream = _stream("projection", seed, d, k)
        w, x = (torch.randn(n, m, generator=stream, dtype=torch.float64) for n, m in ((d, k), (100, d)))
        reconstructed = projection(w, crelu(x @ w))
        total, explained, lost = (part.square().sum(1) for part in (x, reconstructed, x - reconstructed))
        error = float(((explained + lost - total) / total).abs().max())
        verdict = "holds; nothing is lost" if float((lost / total).max()) < 1e-12 else "holds"
        rows.append(_row("Prop. 2.1", f"{count(k, 'filter')} in R^{d}", error, math.nan, "0", verdict))
    return rows


def pooling_cases(conv1: Tensor | None, cases: int, seed: int) -> dict[str, list[PoolingBound]]:
    """Draw cases of Theorem A.5: random filters on a line, or 2 and 8 of conv1's (k, 3, h, h) at 3 x 3 places each."""
    bounds = {}
    for k, length, n in LINES if conv1 is None else ():
        stream = _stream("pooling", seed, k, length, n)
        filters = (torch.randn(k, length, generator=stream, dtype=torch.float64) for _ in range(cases))
        name = f"{k} random of length {length}, {n} shifts"
        bounds[name] = [_random_bound(shifts(some, n), stream) for some in filters]
    for k in (2, 8):
        if conv1 is None or k > len(conv1):
            break
        stream = _stream("pooling", seed, "conv1", k)
        chosen = (torch.randperm(len(conv1), generator=stream)[:k] for _ in range(cases // 4 + 1))
        shifted = [patch_columns(conv1[some], 3).T.view(k, 9, -1) for some in chosen]
        bounds[f"{k} of conv1, 3 x 3 shifts"] = [_random_bound(filters, stream) for filters in shifted]
    return bounds


def _random_bound(shifted: Tensor, stream: torch.Generator) -> PoolingBound:
    """Return the bound for filters (k, n, d) at random places with normal coefficients."""
    k, n, _ = shifted.shape
    places = torch.randint(n, (k,), generator=stream)
    return pooling_bound(shifted, places, torch.randn(k, generator=stream, dtype=shifted.dtype))


def _violations(cases: Sequence[PoolingBound]) -> int:
    return sum(case.ratio > case.bound + 1e-9 for case in cases)


def _pooling_row(name: str, cases: Sequence[PoolingBound]) -> dict[str, Any]:
    vacuous = sum(case.vacuous for case in cases) / len(cases)
    failing = sum(not case.step for case in cases) / len(cases)
    broken = _violations(cases)
    holds = "holds" if not broken else f"violated {count(broken, 'time')}"
    verdict = f"{holds}; says nothing in {vacuous:.0%}, a step of the proof fails in {failing:.0%}"
    mean = sum(case.ratio for case in cases) / len(cases)
    bound = float(np.median([case.bound for case in cases]))
    return _row("Thm. A.5", name, mean, math.nan, f"at most {bound:.3g} (median)", verdict)


def _norm_rows(seed: int) -> list[dict[str, Any]]:
    """Measure Theorem C.1, squared and as it is stated."""
    rows = []
    for d, k, draws in ((10, 2, 20_000), (1200, 48, 500)):
        norms = subspace_norms(d, k, draws, seed)
        for power, stated, true in ((2, k / d, k / d), (1, math.sqrt(k / d), expected_norm(d, k))):
            values = norms**power
            verdict = "holds" if power == 2 else f"a bound from above: exactly {true:.4f}"
            se = float(values.std() / draws**0.5)
            name = f"E|x_s|{'^2' * (power == 2)}, {k} of {d} dimensions"
            rows.append(_row("Thm. C.1", name, float(values.mean()), se, f"{stated:.4f}", verdict))
    return rows


COUNTEREXAMPLE, CONV1 = "f = (1, -1) on two points", "conv1's filters on picture patches"


def rademacher_cases(conv1: Tensor | None, draws: int, seed: int) -> dict[str, Ratio]:
    """Return the ratio of Theorem 4.1 for the counterexample, random and linear classes; or for conv1's filters."""
    if conv1 is not None:
        values = conv1.double().flatten(1) @ natural_patches(POINTS, conv1.shape[2], seed).T
        return {CONV1: rademacher_ratio(values, draws, seed)}
    stream = _stream("rademacher", seed)
    classes = {COUNTEREXAMPLE: torch.tensor([[1.0, -1.0]])}
    for size in (1, 8, 512):
        classes[f"normal functions: {size}, on {POINTS} points"] = torch.randn(size, POINTS, generator=stream)
    for dimension in (2, 3):
        points = torch.randn(POINTS, dimension, generator=stream, dtype=torch.float64)
        classes[f"linear, unit ball of R^{dimension}"] = directions(dimension, 2000) @ points.T
    patches = natural_patches(POINTS, 3, seed)
    axes = torch.linalg.svd(patches, full_matrices=False).Vh
    for dimension in (2, 3):
        points = patches @ axes[:dimension].T
        classes[f"linear, {dimension} first axes of 3 x 3 picture patches"] = directions(dimension, 2000) @ points.T
    return {name: rademacher_ratio(values, draws, seed) for name, values in classes.items()}


def _ratio_row(case: str, ratio: Ratio) -> dict[str, Any]:
    above = ratio.value > 1 + 3 * ratio.se
    verdict = "above 1: as stated it is false" if above else "not above 1 beyond chance"
    return _row("Thm. 4.1", case, ratio.value, ratio.se, "at most 1", verdict)


def drawing(bounds: dict[str, list[PoolingBound]], ratios: dict[str, Ratio]) -> bytes:
    """Draw the bound of Theorem A.5 against what is lost, and the ratios of Theorem 4.1."""
    figure, axes = plots.panels(1, 2, width=5.2, height=3.4)
    left, right = axes[0]
    for name, cases in bounds.items():
        left.plot([c.bound for c in cases], [c.ratio for c in cases], ".", markersize=2.5, alpha=0.5, label=name)
    left.axvspan(1, 1e3, color="#f2f2f2", zorder=0)
    left.plot([1e-2, 1], [1e-2, 1], color=plots.GREY, linewidth=0.8)
    left.set(xscale="log", xlim=(0.05, 1e2), ylim=(0, 1), xlabel="bound (grey: says nothing)", ylabel="|x − x′| / |x|")
    left.set_title("Theorem A.5: what is lost against its bound")
    left.legend(fontsize=6, markerscale=3)
    values, errors = ([*column] for column in zip(*((r.value, 2 * r.se) for r in ratios.values()), strict=True))
    places = range(len(ratios))
    right.errorbar(values, places, xerr=errors, fmt="o", color=plots.LEARNED)
    right.axvline(1, color=plots.RANDOM, linewidth=1)
    right.set_yticks(places, [*ratios], fontsize=7)
    right.invert_yaxis()
    right.set(title="Theorem 4.1: ratio of complexities", xlabel="CReLU to linear (± 2 se; at most 1 as stated)")
    return plots.png(figure)
