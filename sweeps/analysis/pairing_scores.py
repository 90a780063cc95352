"""The least cosine of each filter with another one, its mate, and random filters beside it.

For the filters of one conv, flattened and of unit norm, w_i in R^d (section 2.1 and Definition 1.1 of the paper):

    mu_i = min_j <w_i, w_j>        mate(i) = argmin_j <w_i, w_j>

Random filters have mu below 0 as well, the more of them and the shorter: about -E[max of K - 1 normals] / sqrt(d). So
each conv stands beside draws from N(0, 1) of its shape.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from crelu_models.spec import Conv, seed_from
from sweeps.analysis.compute import Findings
from sweeps.analysis.weights import LoadedNet, choose
from sweeps.report.render import plots
from sweeps.training.runtime import RuntimeConfig

PERMUTATIONS = 1999
OPPOSITE = -0.5  # a filter with mu below this has a mate that is more its negative than not


class Pairs(NamedTuple):
    """mu (k,) float64 and mate (k,) int64 of each filter; zero filters have no direction: nan and -1."""

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
    """Return mu and mate of each filter of `weight` (k, c, h, w) or (k, d), in float64.

    mu_i = min_j <w_i, w_j> over unit filters (Definition 1.1); of equal mates the lowest. ValueError for fewer than
    two filters that are not zero.
    """
    flat = weight.double().flatten(1)
    norm = flat.norm(dim=1)
    kept = torch.nonzero(norm > 0)[:, 0]
    if len(kept) < 2:
        raise ValueError(f"{len(kept)} of {len(flat)} filters are not zero; pairs need two")
    unit = flat[kept] / norm[kept, None]
    mu, mate = (unit @ unit.T).min(dim=1)
    all_mu, all_mate = torch.full_like(norm, torch.nan), torch.full_like(norm, -1, dtype=torch.int64)
    all_mu[kept], all_mate[kept] = mu, kept[mate]
    return Pairs(all_mu, all_mate)


def random_mu(shape: torch.Size, draws: int, seed: int, layer: str = "") -> Tensor:
    """Return mu (draws, k) of filters drawn from N(0, 1) in this shape (k, c, h, w), by a stream of the layer's own."""
    stream = torch.Generator().manual_seed(seed_from("pairing", seed, layer))
    return torch.stack([pairs(torch.randn(shape, generator=stream)).mu for _ in range(draws)])


def contrast(mu: Tensor, random: Tensor, seed: int = 0) -> Contrast:
    """Compare mu (k,) of a conv with mu (draws, k) of random filters; two-sided p of the difference of means.

    p = (1 + #{|permuted difference| >= |difference|}) / (1 + PERMUTATIONS), filters dealt anew over both groups.
    """
    from scipy import stats

    ours, theirs = mu[~mu.isnan()].numpy(), random.flatten().numpy()
    gap = float(ours.mean() - theirs.mean())
    ks = stats.ks_2samp(ours, theirs, method="asymp")
    pooled, rng = np.concatenate([ours, theirs]), np.random.Generator(np.random.PCG64(seed))
    n, total, share = len(ours), pooled.sum(), len(theirs)
    extreme = 0
    for _ in range(PERMUTATIONS):
        dealt = rng.choice(pooled, n, replace=False, shuffle=False).sum()
        extreme += abs(dealt / n - (total - dealt) / share) >= abs(gap) - 1e-12
    return Contrast(
        gap,
        float(ks.statistic),
        float(ks.pvalue),
        float((ours < OPPOSITE).mean()),
        float((theirs < OPPOSITE).mean()),
        (1 + extreme) / (1 + PERMUTATIONS),
    )


# The job ------------------------------------------------------------------------------------------------------

SHOWN = 40  # pairs in the picture of filters


def findings(subject: LoadedNet, place: RuntimeConfig, asked: dict[str, Any]) -> Findings:
    """Pair the filters of every conv, or of the layers asked for, and of `samples` random draws (default 10)."""
    convs = [row.name for row in subject.net.rows if isinstance(row, Conv)]
    layers = choose(subject.net, convs, asked["layers"], str)
    draws = asked["samples"] or 10
    parts: list[dict[str, np.ndarray[Any, Any]]] = []
    rows, found = [], {}
    metrics: dict[str, float] = {}
    for layer in layers:
        weight = subject.weights[f"{layer}.weight"]
        ours, theirs = pairs(weight), random_mu(weight.shape, draws, asked["seed"], layer)
        found[layer] = (ours, theirs)
        compared = contrast(ours.mu, theirs)
        parts += [_part(layer, ours, weight), _random_part(layer, theirs)]
        rows.append(_row(layer, weight, ours, theirs, compared))
        metrics |= {f"pairing/mu/{layer}": rows[-1]["mu"], f"pairing/mu_random/{layer}": rows[-1]["random mu"]}
        metrics |= {f"pairing/gap/{layer}": compared.gap, f"pairing/ks/{layer}": compared.ks}
        metrics |= {f"pairing/below/{layer}": compared.below, f"pairing/p/{layer}": compared.p}
    tables: dict[str, Any] = {"table.parquet": {name: np.concatenate([p[name] for p in parts]) for name in parts[0]}}
    pictures = {"pairing.png": histograms(found, subject.label)}
    for layer in layers:
        weight = subject.weights[f"{layer}.weight"]
        if weight.shape[1] == 3 and weight.shape[2] > 1:
            tables["filters.parquet"] = filter_table(layer, weight, found[layer][0])
            title = f"{subject.label}: {layer} filters, each with its mate"
            pictures["filters.png"] = tiles(weight, found[layer][0], title)
    return Findings(tables, pictures, rows, metrics, ("mu: least cosine with another filter, averaged over filters",))


def _row(layer: str, weight: Tensor, ours: Pairs, theirs: Tensor, compared: Contrast) -> dict[str, Any]:
    return {
        "layer": layer,
        "filters": len(weight),
        "zero": int(ours.mu.isnan().sum()),
        "inputs": weight[0].numel(),
        "mu": float(ours.mu.nanmean()),
        "random mu": float(theirs.mean()),
        "random sd": float(theirs.std()),
        "gap": compared.gap,
        "KS": compared.ks,
        "KS p": compared.ks_p,
        f"below {OPPOSITE}": compared.below,
        "p": compared.p,
    }


def _part(layer: str, ours: Pairs, weight: Tensor) -> dict[str, np.ndarray[Any, Any]]:
    """Return the rows of the table of one conv's learned filters; draw -1 is what was learned."""
    k = len(ours.mu)
    return {
        "layer": np.full(k, layer, object),
        "draw": np.full(k, -1, np.int32),
        "filter": np.arange(k, dtype=np.int32),
        "mate": ours.pair.numpy().astype(np.int32),
        "mu": ours.mu.numpy(),
        "norm": weight.double().flatten(1).norm(dim=1).numpy(),
    }


def _random_part(layer: str, theirs: Tensor) -> dict[str, np.ndarray[Any, Any]]:
    draws, k = theirs.shape
    return {
        "layer": np.full(draws * k, layer, object),
        "draw": np.repeat(np.arange(draws, dtype=np.int32), k),
        "filter": np.tile(np.arange(k, dtype=np.int32), draws),
        "mate": np.full(draws * k, -1, np.int32),
        "mu": theirs.flatten().numpy(),
        "norm": np.full(draws * k, np.nan),
    }


def filter_table(layer: str, weight: Tensor, found: Pairs) -> dict[str, Any]:
    """Return the filters of a conv that reads pictures, as lists of c * h * w numbers, with their mates."""
    k, _, height, width = weight.shape
    return {
        "layer": [layer] * k,
        "filter": list(range(k)),
        "mate": found.pair.tolist(),
        "mu": found.mu.tolist(),
        "height": [height] * k,
        "width": [width] * k,
        "weights": list(weight.float().flatten(1).numpy()),
    }


def tiles(weight: Tensor, found: Pairs, title: str, across: int = 8) -> bytes:
    """Draw Figure 1: the filters (k, 3, h, w) of least mu, each beside its mate, both on one scale."""
    ranked = [int(i) for i in found.mu.argsort() if found.pair[i] >= 0][:SHOWN]
    _, _, height, width = weight.shape
    head, gap = max(3, height // 3), max(1, width // 8)
    across = min(across, len(ranked))
    down = -(-len(ranked) // across)
    sheet = torch.ones(down * (height + head), across * (2 * width + 3 * gap), 3, dtype=torch.float64)
    figure, axes = plots.panels(1, 1, width=9.0, height=9.0 * sheet.shape[0] / sheet.shape[1], title=title)
    axis = axes[0][0]
    for place, i in enumerate(ranked):
        top, left = place // across * (height + head) + head, place % across * (2 * width + 3 * gap)
        both = weight[[i, int(found.pair[i])]].double()
        shown = (both - both.min()) / (both.max() - both.min()).clamp(min=1e-12)
        sheet[top : top + height, left : left + width] = shown[0].permute(1, 2, 0)
        sheet[top : top + height, left + width + gap : left + 2 * width + gap] = shown[1].permute(1, 2, 0)
        axis.text(left, top - 1, f"{i}, {int(found.pair[i])}: μ {found.mu[i]:.2f}", fontsize=7, va="bottom")
    axis.imshow(sheet.numpy(), interpolation="nearest")
    axis.set_axis_off()
    return plots.png(figure)


def histograms(found: dict[str, tuple[Pairs, Tensor]], label: str) -> bytes:
    """Draw Figures 2 and 3: mu of the learned filters of each conv over that of random ones."""
    figure, axes = plots.grid(len(found), title=f"{label}: least cosine μ of each filter with another")
    bins = np.linspace(-1, 0.2, 49)
    for (layer, (ours, theirs)), axis in zip(found.items(), axes, strict=True):
        plots.histogram(axis, theirs.flatten().numpy(), bins, plots.RANDOM, "random")
        plots.histogram(axis, ours.mu.numpy(), bins, plots.LEARNED, "learned")
        axis.set_title(f"{layer} ({len(ours.mu)} filters)")
        axis.set_xlabel("μ")
        axis.set_ylabel("density")
    plots.legend(figure, axes[0])
    return plots.png(figure)
