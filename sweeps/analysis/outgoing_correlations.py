"""Correlations of the weights that go out of the two phases of CReLU filters.

Behind a conv with k filters and CReLU the next conv reads 2k channels: V is (o, 2k, h, w), u_c = V[:, c] flattened and
of unit norm are the weights that go out of channel c.

    pair      <u_i, u_{i+k}>            the two phases of filter i: k numbers
    non-pair  <u_i, u_{j+k}>, i != j    phases of different filters: k (k - 1) numbers

The paper prints means with deviations as large, all positive: of absolute values, most likely. So the absolute cosine
is the figure to compare, with the signed one and the correlation after each u is centred beside it. Random weights do
not give 0 but, with n = o h w,

    E|cos| = Gamma(n / 2) / (sqrt(pi) Gamma((n + 1) / 2)),    about sqrt(2 / (pi n))

which the paper leaves out: 0.08 where the next conv is 1x1 with 96 filters.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor

from crelu_models.spec import CHANNEL_FACTOR, Conv, Linear, Net
from sweeps.analysis.compute import Findings, stacked
from sweeps.analysis.sources import NotApplicableError
from sweeps.analysis.weights import LoadedNet, choose_layers
from sweeps.report.render import plots
from sweeps.results.paper import NON_PAIR, PAIR
from sweeps.results.paper_cells import printed_of_layer
from sweeps.training.runtime import RuntimeConfig


class Correlations(NamedTuple):
    """Signed correlations of outgoing weights, float64: pair (k,), non-pair (k, k - 1); nan where weights are zero."""

    pair: Tensor
    non_pair: Tensor


def correlations(weight: Tensor, centred: bool = False) -> Correlations:
    """Return the cosines of outgoing weights for `weight` (o, 2k, h, w); Pearson's correlations where `centred`.

    ValueError for an odd number of inputs: they are two phases of each filter, the positive ones first.
    """
    if weight.shape[1] % 2:
        raise ValueError(f"{weight.shape[1]} inputs are not two phases of each filter")
    u = weight.double().transpose(0, 1).flatten(1)
    if centred:
        u = u - u.mean(1, keepdim=True)
    # Zero weights, or constant ones when centred, have no direction: 0 / 0.
    u = u / u.norm(dim=1, keepdim=True)
    k = len(u) // 2
    both = u[:k] @ u[k:].T
    others = ~torch.eye(k, dtype=torch.bool)
    return Correlations(both.diagonal().clone(), both[others].view(k, k - 1))


def floor(weight: Tensor) -> float:
    """Return E|cosine| of two random directions of the length of outgoing weights."""
    n = weight[:, 0].numel()
    return math.exp(math.lgamma(n / 2) - math.lgamma((n + 1) / 2)) / math.sqrt(math.pi)


def read_by(net: Net) -> dict[str, str]:
    """Return, for each conv that gives two phases, the conv that reads them; pooling and dropout change no channel."""
    readers = {}
    before = ""
    for row in net.rows:
        if isinstance(row, Conv | Linear):
            if before and isinstance(row, Conv):
                readers[before] = row.name
            before = row.name if CHANNEL_FACTOR[row.act] == 2 else ""
    return readers


# The job ------------------------------------------------------------------------------------------------------


def findings(loaded: LoadedNet, _runtime: RuntimeConfig, asked: dict[str, Any]) -> Findings:
    """Correlate the outgoing weights of every conv with two phases, or of the layers asked for."""
    label = loaded.label
    readers = read_by(loaded.net)
    if not readers:
        raise NotApplicableError(
            f"{label}: no conv has CReLU and a conv behind it, so no filter has two phases to compare"
        )
    layers = choose_layers(
        loaded.net, [*readers], asked["layers"], lambda name: f"{label}: {name} gives no two phases to a conv"
    )
    rows = []
    parts = []
    cosines = {}
    metrics: dict[str, float] = {}
    for layer in layers:
        weight = loaded.weights[f"{readers[layer]}.weight"]
        cosine = correlations(weight)
        pearson = correlations(weight, centred=True)
        least = floor(weight)
        rows.append(_row(loaded, layer, cosine, pearson, least))
        parts.append(_part(layer, cosine, pearson))
        cosines[layer] = (cosine, least)
        metrics |= {f"{PAIR}/{layer}": rows[-1]["pair"], f"{NON_PAIR}/{layer}": rows[-1]["non-pair"]}
        metrics |= {f"{PAIR}_sd/{layer}": rows[-1]["pair sd"], f"{NON_PAIR}_sd/{layer}": rows[-1]["non-pair sd"]}
        metrics |= {f"outgoing/filters/{layer}": rows[-1]["filters"] - rows[-1]["zero"]}
        metrics |= {f"outgoing/pair_signed/{layer}": rows[-1]["pair signed"], f"outgoing/floor/{layer}": least}
    tables = {"table.parquet": stacked(parts), "non_pairs.parquet": _non_pairs(cosines)}
    note = (
        "mean ± sd of absolute cosines of outgoing weights; floor: that of random weights, which the paper leaves out"
    )
    return Findings(tables, {"outgoing.png": histograms(cosines, label)}, rows, metrics, (note,))


def _row(loaded: LoadedNet, layer: str, cosine: Correlations, pearson: Correlations, least: float) -> dict[str, Any]:
    row: dict[str, Any] = {"layer": layer, "filters": len(cosine.pair), "zero": int(cosine.pair.isnan().sum())}
    for name, values, metric in (("pair", cosine.pair, PAIR), ("non-pair", cosine.non_pair, NON_PAIR)):
        sizes = values[~values.isnan()].abs()
        row |= {name: float(sizes.mean()), f"{name} sd": float(sizes.std())}
        paper = printed_of_layer("6", loaded.dataset, layer, metric, loaded.net, loaded.cell)
        row |= {f"paper {name}": str(paper)} if paper else {}
    return row | {
        "floor": least,
        "pair signed": float(cosine.pair.nanmean()),
        "non-pair signed": float(cosine.non_pair.nanmean()),
        "pair Pearson": float(pearson.pair.abs().nanmean()),
        "non-pair Pearson": float(pearson.non_pair.abs().nanmean()),
    }


def _part(layer: str, cosine: Correlations, pearson: Correlations) -> dict[str, ArrayLike]:
    """Return the rows of the table, one a filter: its pair, and the mean size of its non-pairs."""
    return {
        "layer": layer,
        "filter": np.arange(len(cosine.pair), dtype=np.int32),
        "pair": cosine.pair.numpy(),
        "pair_pearson": pearson.pair.numpy(),
        "non_pair_abs": cosine.non_pair.abs().nanmean(1).numpy(),
        "non_pair_pearson_abs": pearson.non_pair.abs().nanmean(1).numpy(),
    }


def _non_pairs(cosines: Mapping[str, tuple[Correlations, float]]) -> dict[str, Any]:
    """Return all non-pairs as counts in bins of a hundredth, as a layer may have a million."""
    edges = np.linspace(-1, 1, 201)
    parts: list[dict[str, ArrayLike]] = []
    for layer, (cosine, _) in cosines.items():
        # A value beyond the last edge stands for nan, and is counted nowhere; rounding takes no cosine beyond.
        counts = np.histogram(cosine.non_pair.clamp(-1, 1).nan_to_num(nan=2).numpy(), edges)[0]
        parts.append({"layer": layer, "from": edges[:-1], "to": edges[1:], "count": counts})
    return stacked(parts)


def histograms(cosines: Mapping[str, tuple[Correlations, float]], label: str) -> bytes:
    """Draw the signed cosines of pairs and of non-pairs, a panel a layer; dotted: the size of a random one."""
    figure, axes = plots.grid(len(cosines), title=f"{label}: outgoing weights of a filter's two phases")
    bins = np.linspace(-1, 1, 61)
    for (layer, (cosine, least)), axis in zip(cosines.items(), axes, strict=True):
        plots.histogram(axis, cosine.non_pair.flatten().numpy(), bins, plots.RANDOM, "non-pair")
        plots.histogram(axis, cosine.pair.numpy(), bins, plots.LEARNED, "pair")
        for sign in (-1, 1):
            axis.axvline(sign * least, color=plots.GREY, linewidth=0.9, linestyle=":")
        axis.set(title=layer, xlabel="cosine", ylabel="density")
    plots.legend(figure, axes[0])
    return plots.png(figure)
