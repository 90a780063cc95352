"""Correlations of the weights that go out of the two phases of CReLU filters.

Behind a conv with k filters and CReLU the next conv reads 2k channels: V is (o, 2k, h, w), u_c = V[:, c] flattened and
of unit norm are the weights that go out of channel c.

    pair      <u_i, u_{i+k}>            the two phases of filter i: k numbers
    non-pair  <u_i, u_{j+k}>, i != j    phases of different filters: k (k - 1) numbers

The paper prints means with deviations as large, all positive: of absolute values, most likely. So the absolute cosine
is the figure to compare, with the signed one and the correlation after each u is centred beside it. Random weights do
not give 0 but sqrt(2 / (pi dim)), dim = o h w, which the paper leaves out: 0.08 where the next conv is 1x1 with 96
filters.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from crelu_models.spec import CHANNEL_FACTOR, Conv, Linear, Net
from sweeps.analysis.compute import Findings
from sweeps.analysis.sources import NotApplicable
from sweeps.analysis.weights import LoadedNet, choose
from sweeps.report.render import plots
from sweeps.results.paper import NON_PAIR, PAIR, printed
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
    """Return E|cosine| of two random directions of the length of outgoing weights: about sqrt(2 / (pi dim))."""
    return math.sqrt(2 / (math.pi * weight[:, 0].numel()))


def read_by(net: Net) -> dict[str, str]:
    """Return, for each conv that gives two phases, the conv that reads them; pooling and dropout change no channel."""
    found, before = {}, ""
    for row in net.rows:
        if isinstance(row, Conv | Linear):
            if before and isinstance(row, Conv):
                found[before] = row.name
            before = row.name if CHANNEL_FACTOR[row.act] == 2 else ""
    return found


# The job ------------------------------------------------------------------------------------------------------


def findings(subject: LoadedNet, place: RuntimeConfig, asked: dict[str, Any]) -> Findings:
    """Correlate the outgoing weights of every conv with two phases, or of the layers asked for."""
    readers = read_by(subject.net)
    if not readers:
        raise NotApplicable(
            f"{subject.label}: no conv has CReLU and a conv behind it, so no filter has two phases to compare"
        )
    layers = choose(
        subject.net, [*readers], asked["layers"], lambda name: f"{subject.label}: {name} gives no two phases to a conv"
    )
    rows, parts, drawn = [], [], {}
    metrics: dict[str, float] = {}
    for layer in layers:
        weight = subject.weights[f"{readers[layer]}.weight"]
        cosine, pearson = correlations(weight), correlations(weight, centred=True)
        rows.append(_row(subject, layer, cosine, pearson, floor(weight)))
        parts.append(_part(layer, cosine, pearson))
        drawn[layer] = (cosine, floor(weight))
        metrics |= {f"{PAIR}/{layer}": rows[-1]["pair"], f"{NON_PAIR}/{layer}": rows[-1]["non-pair"]}
        metrics |= {f"outgoing/pair_signed/{layer}": rows[-1]["pair signed"], f"outgoing/floor/{layer}": floor(weight)}
    tables = {
        "table.parquet": {name: np.concatenate([part[name] for part in parts]) for name in parts[0]},
        "non_pairs.parquet": _non_pairs(drawn),
    }
    note = (
        "mean ± sd of absolute cosines of outgoing weights; floor: that of random weights, which the paper leaves out"
    )
    pictures = {"outgoing.png": histograms(drawn, subject.label)}
    return Findings(tables, pictures, rows, metrics, (note,))


def _row(subject: LoadedNet, layer: str, cosine: Correlations, pearson: Correlations, least: float) -> dict[str, Any]:
    row: dict[str, Any] = {"layer": layer, "filters": len(cosine.pair), "zero": int(cosine.pair.isnan().sum())}
    for name, values in (("pair", cosine.pair), ("non-pair", cosine.non_pair)):
        sizes = values[~values.isnan()].abs()
        row |= {name: float(sizes.mean()), f"{name} sd": float(sizes.std())}
        paper = printed("6", subject.dataset, layer, PAIR if name == "pair" else NON_PAIR)
        row |= {f"paper {name}": str(paper)} if paper else {}
    return row | {
        "floor": least,
        "pair signed": float(cosine.pair.nanmean()),
        "non-pair signed": float(cosine.non_pair.nanmean()),
        "pair Pearson": float(pearson.pair.abs().nanmean()),
        "non-pair Pearson": float(pearson.non_pair.abs().nanmean()),
    }


def _part(layer: str, cosine: Correlations, pearson: Correlations) -> dict[str, np.ndarray[Any, Any]]:
    """Return the rows of the table, one a filter: its pair, and the mean size of its non-pairs."""
    k = len(cosine.pair)
    return {
        "layer": np.full(k, layer, object),
        "filter": np.arange(k, dtype=np.int32),
        "pair": cosine.pair.numpy(),
        "pair_pearson": pearson.pair.numpy(),
        "non_pair_abs": cosine.non_pair.abs().nanmean(1).numpy(),
        "non_pair_pearson_abs": pearson.non_pair.abs().nanmean(1).numpy(),
    }


def _non_pairs(drawn: Mapping[str, tuple[Correlations, float]]) -> dict[str, Any]:
    """Return all non-pairs as counts in bins of a hundredth: there are up to a million a layer."""
    edges = np.linspace(-1, 1, 201)
    layers = [*drawn]
    counts = [np.histogram(drawn[layer][0].non_pair.nan_to_num(nan=2).numpy(), edges)[0] for layer in layers]
    return {
        "layer": np.repeat(np.array(layers, object), len(edges) - 1),
        "from": np.tile(edges[:-1], len(layers)),
        "to": np.tile(edges[1:], len(layers)),
        "count": np.concatenate(counts),
    }


def histograms(drawn: Mapping[str, tuple[Correlations, float]], label: str) -> bytes:
    """Draw the signed cosines of pairs and of non-pairs, a panel a layer; dotted: the size of a random one."""
    figure, axes = plots.grid(len(drawn), title=f"{label}: outgoing weights of a filter's two phases")
    bins = np.linspace(-1, 1, 61)
    for (layer, (cosine, least)), axis in zip(drawn.items(), axes, strict=True):
        plots.histogram(axis, cosine.non_pair.flatten().numpy(), bins, plots.RANDOM, "non-pair")
        plots.histogram(axis, cosine.pair.numpy(), bins, plots.LEARNED, "pair")
        for sign in (-1, 1):
            axis.axvline(sign * least, color=plots.GREY, linewidth=0.9, linestyle=":")
        axis.set_title(layer)
        axis.set_xlabel("cosine")
        axis.set_ylabel("density")
    plots.legend(figure, axes[0])
    return plots.png(figure)
