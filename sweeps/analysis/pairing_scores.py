"""The least cosine of each filter with another one, its pair, and random filters beside it.

For the filters of one conv, flattened and of unit norm, w_i in R^d (section 2.1 and Definition 1.1 of the paper):

    mu_i = min_j <w_i, w_j>        pair(i) = argmin_j <w_i, w_j>

Random filters have mu below 0 as well, the more of them and the shorter: about -E[max of K - 1 normals] / sqrt(d). So
each conv stands beside draws from N(0, 1) of its shape.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor

from crelu_models.spec import seed_from
from sweeps.analysis.compute import Findings, stacked
from sweeps.analysis.weights import LoadedNet, choose_layers
from sweeps.report.render import plots
from sweeps.training.runtime import RuntimeConfig

PERMUTATIONS = 1999
OPPOSITE = -0.5  # a filter with mu below this has a pair that is more its negative than not


class Pairs(NamedTuple):
    """mu (k,) float64 and pair (k,) int64 of each filter; zero filters have no direction: nan and -1."""

    mu: Tensor
    pair: Tensor


class Contrast(NamedTuple):
    """Learned mu against random mu: difference of means, Kolmogorov-Smirnov, shares below OPPOSITE, permutation p."""

    gap: float
    ks: float
    ks_p: float
    below: float
    below_random: float
    p: float


def pairs(weight: Tensor) -> Pairs:
    """Return mu and pair of each filter of `weight` (k, c, h, w) or (k, d), in float64.

    mu_i = min_j <w_i, w_j> over unit filters (Definition 1.1); of equal pairs the lowest. ValueError for fewer than
    two filters that are not zero.
    """
    flat = weight.double().flatten(1)
    norm = flat.norm(dim=1)
    nonzero = torch.nonzero(norm > 0)[:, 0]
    if len(nonzero) < 2:
        raise ValueError(f"{len(nonzero)} of {len(flat)} filters are not zero; pairs need two")
    unit = flat[nonzero] / norm[nonzero, None]
    least = (unit @ unit.T).min(dim=1)
    mu, pair = torch.full_like(norm, torch.nan), torch.full_like(norm, -1, dtype=torch.int64)
    mu[nonzero], pair[nonzero] = least.values, nonzero[least.indices]
    return Pairs(mu, pair)


def random_mu(shape: torch.Size, draws: int, seed: int, layer: str = "") -> Tensor:
    """Return mu (draws, k) of filters drawn from N(0, 1) in this shape (k, c, h, w), a stream a layer."""
    stream = torch.Generator().manual_seed(seed_from("pairing", seed, layer))
    return torch.stack([pairs(torch.randn(shape, generator=stream)).mu for _ in range(draws)])


def contrast(mu: Tensor, random: Tensor, seed: int = 0) -> Contrast:
    """Compare mu (k,) of a conv with mu (draws, k) of random filters; two-sided p of the difference of means.

    p = (1 + #{|permuted difference| >= |difference|}) / (1 + PERMUTATIONS), filters dealt anew over both groups.
    """
    from scipy import stats

    learned, drawn = mu[~mu.isnan()].numpy(), random.flatten().numpy()
    gap = float(learned.mean() - drawn.mean())
    ks = stats.ks_2samp(learned, drawn, method="asymp")
    pooled = np.concatenate([learned, drawn])
    rng = np.random.Generator(np.random.PCG64(seed))
    n, total = len(learned), pooled.sum()
    extreme = 0
    for _ in range(PERMUTATIONS):
        dealt = rng.choice(pooled, n, replace=False, shuffle=False).sum()
        extreme += abs(dealt / n - (total - dealt) / len(drawn)) >= abs(gap) - 1e-12
    below, below_random = (float((values < OPPOSITE).mean()) for values in (learned, drawn))
    p = (1 + extreme) / (1 + PERMUTATIONS)
    return Contrast(gap, float(ks.statistic), float(ks.pvalue), below, below_random, p)


# The job ------------------------------------------------------------------------------------------------------

SHOWN = 40  # pairs in the picture of filters


def findings(loaded: LoadedNet, _runtime: RuntimeConfig, asked: dict[str, Any]) -> Findings:
    """Pair the filters of every conv, or of the layers asked for, and of `samples` random draws (default 10)."""
    layers = choose_layers(loaded.net, [conv.name for conv in loaded.convs()], asked["layers"], str)
    draws = asked["samples"] or 10
    parts: list[dict[str, ArrayLike]] = []
    rows: list[dict[str, Any]] = []
    mu_by_layer: dict[str, tuple[Tensor, Tensor]] = {}
    metrics: dict[str, float] = {}
    tables: dict[str, Any] = {}
    pictures: dict[str, bytes] = {}
    for layer in layers:
        weight = loaded.weights[f"{layer}.weight"]
        learned, random = pairs(weight), random_mu(weight.shape, draws, asked["seed"], layer)
        compared = contrast(learned.mu, random)
        mu_by_layer[layer] = learned.mu, random
        parts += [_learned_part(layer, learned, weight), _random_part(layer, random)]
        rows.append(_row(layer, weight, learned, random, compared))
        metrics |= {f"pairing/mu/{layer}": rows[-1]["mu"], f"pairing/mu_random/{layer}": rows[-1]["random mu"]}
        metrics |= {f"pairing/{name}/{layer}": getattr(compared, name) for name in ("gap", "ks", "below", "p")}
        # Filters that read pictures can be looked at.
        if weight.shape[1] == 3 and weight.shape[2] > 1:
            tables["filters.parquet"] = filter_table(layer, weight, learned)
            title = f"{loaded.label}: {layer} filters, each with its pairing filter"
            pictures["filters.png"] = tiles(weight, learned, title)
    tables = {"table.parquet": stacked(parts)} | tables
    pictures = {"pairing.png": histograms(mu_by_layer, loaded.label)} | pictures
    return Findings(tables, pictures, rows, metrics, ("mu: least cosine with another filter, averaged over filters",))


def _row(layer: str, weight: Tensor, learned: Pairs, random: Tensor, compared: Contrast) -> dict[str, Any]:
    return {
        "layer": layer,
        "filters": len(weight),
        "zero": int(learned.mu.isnan().sum()),
        "inputs": weight[0].numel(),
        "mu": float(learned.mu.nanmean()),
        "random mu": float(random.mean()),
        "random sd": float(random.std()),
        "gap": compared.gap,
        "KS": compared.ks,
        "KS p": compared.ks_p,
        f"below {OPPOSITE}": compared.below,
        "p": compared.p,
    }


def _learned_part(layer: str, learned: Pairs, weight: Tensor) -> dict[str, ArrayLike]:
    """Return the rows of the table of one conv's learned filters; their draw is -1."""
    return {
        "layer": layer,
        "draw": np.int32(-1),
        "filter": np.arange(len(weight), dtype=np.int32),
        "mate": learned.pair.numpy().astype(np.int32),
        "mu": learned.mu.numpy(),
        "norm": weight.double().flatten(1).norm(dim=1).numpy(),
    }


def _random_part(layer: str, random: Tensor) -> dict[str, ArrayLike]:
    draws, k = random.shape
    return {
        "layer": layer,
        "draw": np.repeat(np.arange(draws, dtype=np.int32), k),
        "filter": np.tile(np.arange(k, dtype=np.int32), draws),
        "mate": np.int32(-1),
        "mu": random.flatten().numpy(),
        "norm": np.nan,
    }


def filter_table(layer: str, weight: Tensor, learned: Pairs) -> dict[str, Any]:
    """Return the filters of a conv that reads pictures, as lists of c * h * w numbers, with their pairs."""
    k, _, height, width = weight.shape
    return {
        "layer": [layer] * k,
        "filter": list(range(k)),
        "mate": learned.pair.tolist(),
        "mu": learned.mu.tolist(),
        "height": [height] * k,
        "width": [width] * k,
        "weights": list(weight.float().flatten(1).numpy()),
    }


def tiles(weight: Tensor, learned: Pairs, title: str, across: int = 8) -> bytes:
    """Draw Figure 1: the filters (k, 3, h, w) of least mu, each beside its pair, both on one scale."""
    ranked = [int(i) for i in learned.mu.argsort() if learned.pair[i] >= 0][:SHOWN]
    _, _, height, width = weight.shape
    head, gap = max(3, height // 3), max(1, width // 8)
    down_pitch, across_pitch = height + head, 2 * width + 3 * gap
    across = min(across, len(ranked))
    down = -(-len(ranked) // across)
    sheet = torch.ones(down * down_pitch, across * across_pitch, 3, dtype=torch.float64)
    figure, axes = plots.panels(1, 1, width=9.0, height=9.0 * sheet.shape[0] / sheet.shape[1], title=title)
    axis = axes[0][0]
    for place, i in enumerate(ranked):
        top, left = place // across * down_pitch + head, place % across * across_pitch
        pair = int(learned.pair[i])
        both = weight[[i, pair]].double()
        scaled = (both - both.min()) / (both.max() - both.min()).clamp(min=1e-12)
        for image, at in zip(scaled, (left, left + width + gap), strict=True):
            sheet[top : top + height, at : at + width] = image.permute(1, 2, 0)
        axis.text(left, top - 1, f"{i}, {pair}: μ {learned.mu[i]:.2f}", fontsize=7, va="bottom")
    axis.imshow(sheet.numpy(), interpolation="nearest")
    axis.set_axis_off()
    return plots.png(figure)


def histograms(mu_by_layer: dict[str, tuple[Tensor, Tensor]], label: str) -> bytes:
    """Draw Figures 2 and 3: mu of the learned filters of each conv over that of random ones."""
    figure, axes = plots.grid(len(mu_by_layer), title=f"{label}: least cosine μ of each filter with another")
    bins = np.linspace(-1, 0.2, 49)
    for (layer, (learned, random)), axis in zip(mu_by_layer.items(), axes, strict=True):
        plots.histogram(axis, random.flatten().numpy(), bins, plots.RANDOM, "random")
        plots.histogram(axis, learned.numpy(), bins, plots.LEARNED, "learned")
        axis.set(title=f"{layer} ({len(learned)} filters)", xlabel="μ", ylabel="density")
    plots.legend(figure, axes[0])
    return plots.png(figure)
