"""The least cosine of each filter with another one, its pair, and whole random layers beside it.

For the filters of one conv, flattened and of unit norm, w_i in R^d (section 2.1 and Definition 1.1 of the paper):

    mu_i = min_j <w_i, w_j>        pair(i) = argmin_j <w_i, w_j>

Random filters have mu below 0 as well, the more of them and the shorter: about -E[max of K - 1 normals] / sqrt(d). So
each conv stands beside M layers of its shape, drawn from N(0, 1).

The mu of one layer share rows of its Gram matrix and are no independent sample. So no test here deals single filters:
the layer is ranked among whole random layers, p = (1 + layers at least as extreme) / (M + 1), which is exact for any M.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from crelu_models.spec import seed_from
from sweeps.analysis.compute import Findings, stacked
from sweeps.analysis.weights import LoadedNet
from sweeps.experiment.wording import count, unknown_name
from sweeps.report.render import plots
from sweeps.training.runtime import RuntimeConfig

OPPOSITE = -0.5  # a filter with mu below this has a pair that is more its negative than not
# Random layers of a conv: the least p is .001. Of many filters a layer takes long, and .005 has to do.
DRAWS, DRAWS_OF_MANY, MANY = 999, 199, 256
NUMBERS = 2**24  # in the random filters of one batch of layers

Floats = NDArray[np.float64]


class Pairs(NamedTuple):
    """mu (k,) float64 and pair (k,) int64 of each filter; zero filters have no direction: nan and -1."""

    mu: Tensor
    pair: Tensor


class Contrast(NamedTuple):
    """A layer against M random ones: each statistic with its Monte Carlo p, and the M draws' own means of mu.

    `gap` is its mean of mu less theirs (p two-sided), `ks` the Kolmogorov-Smirnov distance of its mu to all theirs,
    `below` the share of its filters under OPPOSITE; p of these two counts draws as large or larger.
    """

    gap: float
    p: float
    ks: float
    ks_p: float
    below: float
    below_p: float
    below_random: float
    means: Floats


class Compared(NamedTuple):
    """The filters of one conv, mu (M, k) of its random layers, and how the two differ."""

    learned: Pairs
    random: Tensor
    contrast: Contrast


def pairs(weight: Tensor, groups: int = 1) -> Pairs:
    """Return mu and pair of each filter of `weight` (k, c, h, w) or (k, d), in float64.

    mu_i = min_j <w_i, w_j> over unit filters (Definition 1.1); of equal pairs the lowest. In a grouped conv j is of i's
    group. ValueError for fewer than two filters that are not zero, and for nan and infinity.
    """
    flat = weight.double().flatten(1)
    if not flat.isfinite().all():
        raise ValueError("its weights are not finite")
    if groups > 1:
        if len(flat) % groups:
            raise ValueError(f"{count(len(flat), 'filter')} are not {groups} groups of equal size")
        parts = [pairs(part) for part in flat.chunk(groups)]
        size = len(flat) // groups
        offset_pairs = [torch.where(part.pair < 0, -1, part.pair + i * size) for i, part in enumerate(parts)]
        return Pairs(torch.cat([part.mu for part in parts]), torch.cat(offset_pairs))
    norm = flat.norm(dim=1)
    nonzero = torch.nonzero(norm > 0)[:, 0]
    if len(nonzero) < 2:
        raise ValueError(f"{len(nonzero)} of {count(len(flat), 'filter')} not zero; pairs need two")
    unit = flat[nonzero] / norm[nonzero, None]
    least = (unit @ unit.T).min(dim=1)
    mu, pair = torch.full_like(norm, torch.nan), torch.full_like(norm, -1, dtype=torch.int64)
    mu[nonzero], pair[nonzero] = least.values, nonzero[least.indices]
    return Pairs(mu, pair)


@functools.lru_cache(maxsize=16)
def random_mu(filters: int, inputs: int, draws: int, seed: int, layer: str = "") -> Tensor:
    """Return mu (draws, filters), float64, of layers of filters in R^inputs drawn from N(0, 1); a stream a layer.

    Cosines do not change when space is turned, so the filters W = L Q are drawn as their triangle L alone: normals
    below its diagonal, on it the root of a chi-square of inputs, inputs - 1, ... degrees (Bartlett 1933).
    """
    rng = np.random.Generator(np.random.PCG64(seed_from("pairing", seed, layer)))
    rank = min(filters, inputs)
    on = np.arange(rank)
    below = np.tri(filters, rank, -1, dtype=np.float32)
    batches = []
    for first in range(0, draws, most := max(1, NUMBERS // (filters * rank))):
        count = min(most, draws - first)
        triangle = rng.standard_normal((count, filters, rank), dtype=np.float32) * below
        triangle[:, on, on] = np.sqrt(rng.chisquare(inputs - on, (count, rank)))
        triangle /= np.linalg.norm(triangle, axis=2, keepdims=True)
        batches.append((triangle @ triangle.swapaxes(1, 2)).min(axis=2))
    return torch.from_numpy(np.concatenate(batches)).double()


def compare(weight: Tensor, draws: int, seed: int, layer: str = "", groups: int = 1) -> Compared:
    """Compare the filters `weight` (k, c, h, w) of a conv with `draws` random layers of as many filters, not zero.

    The groups of a grouped conv are drawn apart, and paired apart. ValueError as in `pairs`.
    """
    learned = pairs(weight, groups)
    nonzero = [int((~part.isnan()).sum()) for part in learned.mu.chunk(groups)]
    streams = [layer if groups == 1 else f"{layer} group {i}" for i in range(groups)]
    parts = [random_mu(k, weight[0].numel(), draws, seed, stream) for k, stream in zip(nonzero, streams, strict=True)]
    random = torch.cat(parts, dim=1)
    return Compared(learned, random, contrast(learned.mu, random))


def contrast(mu: Tensor, random: Tensor) -> Contrast:
    """Compare mu (k,) of a conv, zero filters left out, with mu (M, k) of random layers of as many filters.

    Each of the M + 1 layers is measured against the M others in the same way, so that under the null all their ranks
    are alike likely. ValueError for another number of filters.
    """
    values = mu[~mu.isnan()]
    if len(values) != random.shape[1]:
        raise ValueError(f"{count(len(values), 'filter')} against random layers of {random.shape[1]}")
    layers = torch.cat([values[None], random.double()]).numpy()
    to_others = len(layers) / len(random)  # a distance to all M + 1 layers, itself among them, times this
    means = layers.mean(1)
    gaps = (means - means.mean()) * to_others
    distances = _ks_distances(layers) * to_others
    shares = (layers < OPPOSITE).mean(1)
    return Contrast(
        gap=float(gaps[0]),
        p=_monte_carlo(np.abs(gaps)),
        ks=float(distances[0]),
        ks_p=_monte_carlo(distances),
        below=float(shares[0]),
        below_p=_monte_carlo(shares),
        below_random=float(shares[1:].mean()),
        means=means[1:],
    )


def _ks_distances(layers: Floats) -> Floats:
    """Return the Kolmogorov-Smirnov distance (n,) of each row of `layers` (n, k) to all of them together."""
    pooled, rows = np.sort(layers, axis=None), np.sort(layers, axis=1)
    steps = np.arange(layers.shape[1] + 1) / layers.shape[1]
    # A row's distribution jumps at its values: the largest distance is at one of them, or just before it.
    at, before = (np.searchsorted(pooled, rows, side) / pooled.size for side in ("right", "left"))
    distances: Floats = np.maximum(np.abs(steps[1:] - at), np.abs(before - steps[:-1])).max(axis=1)
    return distances


def _monte_carlo(statistics: Floats) -> float:
    """Return p of the first of M + 1 statistics: how many are as large as it, itself counted, over M + 1."""
    return float((statistics >= statistics[0] - 1e-12).mean())


# The job ------------------------------------------------------------------------------------------------------

SHOWN = 40  # pairs in the picture of filters
TABLED = 10  # random layers of a conv whose every filter is in the table


def findings(loaded: LoadedNet, _runtime: RuntimeConfig, asked: dict[str, Any]) -> Findings:
    """Pair the filters of every conv, or of the layers asked for, beside `samples` random layers of each."""
    names = loaded.conv_names
    for name in asked["layers"]:
        if name not in names:
            raise ValueError(unknown_name("conv", name, names, loaded.label))
    layers = [name for name in names if name in (asked["layers"] or names)]
    groups = groups_by_layer(asked["groups"], layers)
    parts: list[dict[str, ArrayLike]] = []
    drawn: list[dict[str, ArrayLike]] = []
    rows: list[dict[str, Any]] = []
    mu_by_layer: dict[str, tuple[Tensor, Tensor]] = {}
    metrics: dict[str, float] = {}
    tables: dict[str, Any] = {}
    pictures: dict[str, bytes] = {}
    for layer in layers:
        weight = loaded.weights[f"{layer}.weight"]
        draws = asked["samples"] or (DRAWS if len(weight) <= MANY else DRAWS_OF_MANY)
        try:
            compared = compare(weight, draws, asked["seed"], layer, groups.get(layer, 1))
        except ValueError as error:
            raise ValueError(f"{loaded.label}: {layer}: {error}") from None
        learned, random, _ = compared
        mu_by_layer[layer] = learned.mu, random
        parts += [_learned_part(layer, learned, weight), _random_part(layer, random[:TABLED])]
        drawn.append({"layer": layer, "draw": np.arange(draws, dtype=np.int32), "mean_mu": compared.contrast.means})
        rows.append(_row(layer, weight, compared))
        metrics |= _metrics(layer, rows[-1], compared)
        # Filters that read pictures can be looked at.
        if weight.shape[1] == 3 and weight.shape[2] > 1:
            tables["filters.parquet"] = filter_table(layer, weight, learned)
            title = f"{loaded.label}: {layer} filters, each with its pairing filter"
            pictures["filters.png"] = tiles(weight, learned, title)
    tables = {"table.parquet": stacked(parts), "draws.parquet": stacked(drawn)} | tables
    pictures = {"pairing.png": histograms(mu_by_layer, loaded.label)} | pictures
    notes = (
        "mu: least cosine with another filter, averaged over filters",
        "p: rank of the layer among whole random layers (draws) of its shape, each layer for itself; of gap two-sided",
    )
    return Findings(tables, pictures, rows, metrics, notes)


def groups_by_layer(words: Sequence[str], layers: Sequence[str]) -> dict[str, int]:
    """Return the groups of grouped convs from words such as conv2=2; ValueError for others, and for other layers."""
    groups = {}
    for word in words:
        layer, _, count = word.rpartition("=")
        if layer not in layers or not count.isdecimal() or int(count) < 1:
            raise ValueError(f"--groups takes LAYER=GROUPS of the layers {', '.join(layers)}, not {word!r}")
        groups[layer] = int(count)
    return groups


def _row(layer: str, weight: Tensor, compared: Compared) -> dict[str, Any]:
    learned, random, against = compared
    return {
        "layer": layer,
        "filters": len(weight),
        "zero": int(learned.mu.isnan().sum()),
        "inputs": weight[0].numel(),
        "mu": float(learned.mu.nanmean()),
        "sd": float(learned.mu[~learned.mu.isnan()].std()),
        "random mu": float(random.mean()),
        "random sd": float(random.std()),
        "draws": len(random),
        "gap": against.gap,
        "p": against.p,
        "KS": against.ks,
        "KS p": against.ks_p,
        f"below {OPPOSITE}": against.below,
        "below p": against.below_p,
    }


def _metrics(layer: str, row: Mapping[str, Any], compared: Compared) -> dict[str, float]:
    against = compared.contrast
    values = {
        "mu": row["mu"],
        "mu_sd": row["sd"],
        "filters": row["filters"] - row["zero"],
        "mu_random": row["random mu"],
        "mu_random_sd": float(against.means.std(ddof=1)) if len(against.means) > 1 else float("nan"),
        "gap": against.gap,
        "p": against.p,
        "ks": against.ks,
        "ks_p": against.ks_p,
        "below": against.below,
    }
    return {f"pairing/{name}/{layer}": float(value) for name, value in values.items()}


def _learned_part(layer: str, learned: Pairs, weight: Tensor) -> dict[str, ArrayLike]:
    """Return the rows of the table of one conv's learned filters; their draw is -1."""
    return {
        "layer": layer,
        "draw": np.int32(-1),
        "filter": np.arange(len(weight), dtype=np.int32),
        "pair": learned.pair.numpy().astype(np.int32),
        "mu": learned.mu.numpy(),
        "norm": weight.double().flatten(1).norm(dim=1).numpy(),
    }


def _random_part(layer: str, random: Tensor) -> dict[str, ArrayLike]:
    draws, k = random.shape
    return {
        "layer": layer,
        "draw": np.repeat(np.arange(draws, dtype=np.int32), k),
        "filter": np.tile(np.arange(k, dtype=np.int32), draws),
        "pair": np.int32(-1),
        "mu": random.flatten().numpy(),
        "norm": np.nan,
    }


def filter_table(layer: str, weight: Tensor, learned: Pairs) -> dict[str, Any]:
    """Return the filters of a conv that reads pictures, as lists of c * h * w numbers, with their pairs."""
    k, _, height, width = weight.shape
    return {
        "layer": [layer] * k,
        "filter": list(range(k)),
        "pair": learned.pair.tolist(),
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
        for image, column in zip(scaled, (left, left + width + gap), strict=True):
            sheet[top : top + height, column : column + width] = image.permute(1, 2, 0)
        axis.text(left, top - 1, f"{i}, {pair}: μ {learned.mu[i]:.2f}", fontsize=7, va="bottom")
    axis.imshow(sheet.numpy(), interpolation="nearest")
    axis.set_axis_off()
    return plots.png(figure)


def mu_bins(mu_of_layers: Iterable[tuple[Tensor, Tensor]]) -> Floats:
    """Return the edges of bins for mu: up to 0.2, or to the next tenth above a larger value, as few filters have."""
    most = max(float(mu[~mu.isnan()].max()) for both in mu_of_layers for mu in both)
    return np.linspace(-1, max(0.2, math.ceil(10 * most) / 10), 49)


def histograms(mu_by_layer: dict[str, tuple[Tensor, Tensor]], label: str) -> bytes:
    """Draw Figures 2 and 3: mu of the learned filters of each conv over that of random ones."""
    figure, axes = plots.grid(len(mu_by_layer), title=f"{label}: least cosine μ of each filter with another")
    bins = mu_bins(mu_by_layer.values())
    for (layer, (learned, random)), axis in zip(mu_by_layer.items(), axes, strict=True):
        plots.histogram(axis, random.flatten().numpy(), bins, plots.RANDOM, "random")
        plots.histogram(axis, learned.numpy(), bins, plots.LEARNED, "learned")
        axis.set(title=f"{layer} ({count(len(learned), 'filter')})", xlabel="μ", ylabel="density")
    plots.legend(figure, axes[0])
    return plots.png(figure)
