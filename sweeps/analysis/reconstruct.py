"""What comes back of pictures from the features of a net: which layers an algorithm fits, and both algorithms on it.

Algorithm 1 (cgls.py) chains the inverses of convs. Each step amplifies what the one before left out; stopping early
damps that, so several limits are reported, and beside the picture what one layer alone loses of what it reads.
Algorithm 2 (patches.py) measures the norm of what is lost of the patch that a max-pooling window sees.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from crelu_models.activations import crelu
from crelu_models.spec import Conv, Drop, Net, Pool, seed_from
from sweeps.analysis.capture import batch_size, capture, side_read
from sweeps.analysis.cgls import Likeness, Step, back, each, inverted, likeness, ratio, unrectified
from sweeps.analysis.compute import Findings
from sweeps.analysis.pooling_ratio import Deal, clustered_se, patch_ratios
from sweeps.analysis.sources import NotApplicable
from sweeps.analysis.weights import ImageSample, LoadedNet, choose, view
from sweeps.report.render import plots
from sweeps.results.paper import LEARNED, RANDOM, printed
from sweeps.training.runtime import RuntimeConfig

# Which layers -------------------------------------------------------------------------------------------------


def unpooled(net: Net) -> list[Conv]:
    """Return the convs that Algorithm 1 goes back from: CReLU behind each from conv1 on, and no pooling."""
    found = []
    for row in net.rows:
        if isinstance(row, Drop):
            continue
        if not isinstance(row, Conv) or row.act != "crelu" or row.bn:
            break
        found.append(row)
    return found


def pooled(net: Net) -> list[tuple[Conv, Pool]]:
    """Return the convs that Algorithm 2 is about: CReLU and then max-pooling behind them."""
    rows = [row for row in net.rows if not isinstance(row, Drop)]
    pairs = itertools.pairwise(rows)
    return [
        (conv, pool)
        for conv, pool in pairs
        if isinstance(conv, Conv)
        and isinstance(pool, Pool)
        and (conv.act, pool.kind) == ("crelu", "max")
        and not conv.bn
    ]


def why_not(net: Net, layer: str, algorithm: int) -> str:
    """Return why an algorithm does not fit a conv, as a sentence."""
    rows = [row for row in net.rows if not isinstance(row, Drop)]
    place = next(i for i, row in enumerate(rows) if row.name == layer)
    if algorithm == 2:
        return f"Algorithm 2 is for a conv with CReLU and then max-pooling behind it, which {layer} has not"
    for row in rows[: place + 1]:
        if isinstance(row, Pool):
            return (
                f"{row.name} pools in front of {layer}; Algorithm 1 goes back through convs alone, "
                "and behind max-pooling there is Algorithm 2 (--algorithm 2)"
            )
        if isinstance(row, Conv) and row.act != "crelu":
            return f"behind {row.name} stands {row.act}; only CReLU keeps both phases to go back from"
        if isinstance(row, Conv) and row.bn:
            return f"{row.name} has batch norm; Algorithm 1 goes back through convs and CReLU alone"
    raise AssertionError(f"{layer} fits")


def algorithm_of(subject: LoadedNet, asked: int) -> int:
    """Return the algorithm asked for, by default 2 where CReLU meets max-pooling; Misfit where none fits."""
    net = subject.net
    algorithm = asked or (2 if pooled(net) else 1)
    if not (unpooled(net) if algorithm == 1 else pooled(net)):
        layer = next(row.name for row in net.rows if isinstance(row, Conv))
        what = why_not(net, layer, 1) if algorithm == 1 else "no conv has CReLU and max-pooling behind it"
        raise NotApplicable(f"{subject.label}: {what}")
    return algorithm


def randomised(subject: LoadedNet, seed: int, only: str = "") -> LoadedNet:
    """Return the net with every conv (or `only` this one) drawn from N(0, 1) and its bias 0: the paper's control."""
    weights = dict(subject.weights)
    for conv in subject.convs():
        if only in ("", conv.name):
            stream = torch.Generator().manual_seed(seed_from("reconstruction", seed, conv.name))
            weights[f"{conv.name}.weight"] = torch.randn(weights[f"{conv.name}.weight"].shape, generator=stream)
            weights[f"{conv.name}.bias"] = torch.zeros_like(weights[f"{conv.name}.bias"])
    return dataclasses.replace(subject, weights=weights)


# The job ------------------------------------------------------------------------------------------------------

PICTURES, LAYERS = 8, 4  # of Figure 5
PATCHES = 20_000  # of Table S1: the printed standard errors come of about as many


def findings(subject: LoadedNet, place: RuntimeConfig, asked: dict[str, Any]) -> Findings:
    """Reconstruct `samples` pictures (8) by Algorithm 1 or patches (20,000) by Algorithm 2, beside random weights."""
    algorithm = algorithm_of(subject, asked["algorithm"])
    fitting = unpooled(subject.net) if algorithm == 1 else [conv for conv, _ in pooled(subject.net)]
    names = [conv.name for conv in fitting]
    if algorithm == 1 and not asked["layers"]:
        names = names[:LAYERS]
    layers = choose(
        subject.net, names, asked["layers"], lambda name: f"{subject.label}: {why_not(subject.net, name, algorithm)}"
    )
    return (_pictures if algorithm == 1 else _patches)(subject, place, asked, layers)


def _patches(subject: LoadedNet, place: RuntimeConfig, asked: dict[str, Any], layers: Sequence[str]) -> Findings:
    """Do Algorithm 2."""
    count = asked["samples"] or PATCHES
    shown = view(subject, place, count, asked["seed"])
    deal = Deal(count, len(shown.indices), shown.crop, asked["seed"])
    parts, rows = [], []
    for conv, pool in pooled(subject.net):
        if conv.name not in layers:
            continue
        control = randomised(subject, asked["seed"], conv.name if asked["control"] == "random_layer" else "")
        batch, both = batch_size(subject.net, [conv.name], shown.crop), {}
        for name, weights in (("learned", subject), ("random", control)):
            both[name] = patch_ratios(weights, conv, pool, shown.seen(batch), deal, place.device)
            parts.append(_patch_part(shown, conv.name, name, *both[name]))
        rows.append(_patch_row(subject, conv, both, deal.pictures))
    metrics: dict[str, float] = {}
    for row in rows:
        metrics |= {f"{LEARNED}/{row['layer']}": row["learned"], f"{RANDOM}/{row['layer']}": row["random"]}
    tables = {"table.parquet": {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}}
    drawn = {"reconstruction.png": patch_histograms(tables["table.parquet"], layers, subject.label)}
    note = f"|x - x'| / |x| of patches behind max-pooling (Algorithm 2), se over pictures; control: {asked['control']}"
    return Findings(tables, drawn, rows, metrics, (note,))


def _patch_part(
    shown: ImageSample, layer: str, weights: str, ratios: Tensor, kept: Tensor
) -> dict[str, np.ndarray[Any, Any]]:
    count = len(ratios)
    return {
        "layer": np.full(count, layer, object),
        "weights": np.full(count, weights, object),
        "picture": shown.indices[np.arange(count) % len(shown.indices)],
        "ratio": ratios.numpy(),
        "columns": kept.numpy().astype(np.int32),
    }


def _patch_row(
    subject: LoadedNet, conv: Conv, both: Mapping[str, tuple[Tensor, Tensor]], pictures: int
) -> dict[str, Any]:
    row: dict[str, Any] = {"layer": conv.name, "filters": conv.filters, "patches": len(both["learned"][0])}
    for name, metric in (("learned", LEARNED), ("random", RANDOM)):
        ratios, kept = both[name]
        row |= {name: float(ratios.mean()), f"{name} se": clustered_se(ratios, pictures)}
        row |= {f"{name} columns": float(kept.double().mean())}
        printed_one = printed("S1", subject.dataset, conv.name, metric)
        row |= {f"paper {name}": str(printed_one)} if printed_one else {}
    return row


def patch_histograms(table: Mapping[str, Any], layers: Sequence[str], label: str) -> bytes:
    """Draw the ratios of learned and random filters, a panel a layer."""
    figure, axes = plots.grid(len(layers), width=3.6, height=2.6, title=f"{label}: what max-pooling loses")
    bins = np.linspace(math.floor(10 * table["ratio"].min()) / 10, 1, 81)
    for layer, axis in zip(layers, axes, strict=True):
        for name, colour in (("random", plots.RANDOM), ("learned", plots.LEARNED)):
            chosen = (table["layer"] == layer) & (table["weights"] == name)
            plots.histogram(axis, table["ratio"][chosen], bins, colour, name)
        axis.set_title(layer)
        axis.set_xlabel("|x − x′| / |x|")
        axis.set_ylabel("density")
    plots.legend(figure, axes[0])
    return plots.png(figure)


def _pictures(subject: LoadedNet, place: RuntimeConfig, asked: dict[str, Any], layers: Sequence[str]) -> Findings:
    """Do Algorithm 1."""
    shown = view(subject, place, asked["samples"] or PICTURES, asked["seed"])
    limits = sorted({max(1, limit) for limit in asked["iterations"]})
    parts, drawn = [], {}
    for name, weights in (("learned", subject), ("random", randomised(subject, asked["seed"]))):
        model = weights.model(shown.crop, place.device, torch.float64)
        x = torch.cat([*shown.seen(250)]).double()
        found = chain(model, chain_steps(weights, layers[-1], shown.crop, model), layers, x, limits)
        for (layer, limit), (one_layer, image) in found.items():
            like = likeness(x, image, shown.std)
            parts.append(_picture_part(shown, name, layer, limit, one_layer, ratio(x, image), like))
            if name == "learned":
                drawn[layer, limit] = shown.pixels(image * each(like.scale, image))
    table = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    rows = [_picture_row(table, layer, limit) for layer in layers for limit in limits]
    metrics: dict[str, float] = {}
    for row in rows[len(limits) - 1 :: len(limits)]:
        metrics |= {f"reconstruction/one_layer/{row['layer']}": row["one layer"]}
        metrics |= {f"reconstruction/one_layer_random/{row['layer']}": row["random"]}
    for row in rows:
        metrics |= {f"reconstruction/picture_{row['iterations']}/{row['layer']}": row["picture"]}
    pictures = {
        f"reconstruction_{limit}.png": strip(
            shown.pixels(x),
            {layer: drawn[layer, limit] for layer in layers},
            f"{subject.label}: {limit} iterations a layer",
        )
        for limit in limits
    }
    note = (
        "one layer: |x - x'| / |x| of what the conv reads; picture: of the picture, through all layers (Algorithm 1). "
        "Chained pseudoinverses amplify what is lost: fewer iterations may look better"
    )
    return Findings({"table.parquet": table}, pictures, rows, metrics, (note,))


def chain_steps(subject: LoadedNet, last: str, size: int, model: nn.Sequential) -> list[Step]:
    """Return the steps from conv1 to the conv `last`, for pictures of side `size`, with the model's own weights."""
    steps = []
    for conv in unpooled(subject.net):
        layer = model.get_submodule(conv.name)
        assert isinstance(layer, nn.Conv2d)
        assert layer.bias is not None
        reads = side_read(subject.net, conv.name, size)
        steps.append(Step(conv.name, layer.weight, layer.bias, conv.stride, conv.pad, reads))
        if conv.name == last:
            break
    return steps


def chain(
    model: nn.Sequential, steps: Sequence[Step], layers: Sequence[str], x: Tensor, limits: Sequence[int]
) -> dict[tuple[str, int], tuple[Tensor, Tensor]]:
    """Return by layer and limit the one-layer ratio (n,), and the picture (n, 3, h, w) that features go back to."""
    found: dict[tuple[str, int], tuple[Tensor, Tensor]] = {}
    for place, step in enumerate(steps):
        if step.name not in layers:
            continue
        captured = capture(model, [step.name, f"{step.name}_act"], x)
        features = crelu(captured[f"{step.name}_act"])
        z = unrectified(features) - step.bias[:, None, None]
        for limit, read in zip(limits, inverted(z, step.weight, step.stride, step.pad, step.size, limits), strict=True):
            image = back(read, steps[:place], limit)
            found[step.name, limit] = (ratio(captured[step.name], read).cpu(), image)
    return found


def _picture_part(
    shown: ImageSample, weights: str, layer: str, limit: int, one_layer: Tensor, image: Tensor, like: Likeness
) -> dict[str, np.ndarray[Any, Any]]:
    n = len(one_layer)
    return {
        "layer": np.full(n, layer, object),
        "weights": np.full(n, weights, object),
        "iterations": np.full(n, limit, np.int32),
        "picture": shown.indices,
        "one_layer": one_layer.numpy(),
        "image": image.cpu().numpy(),
        "cosine": like.cosine.cpu().numpy(),
        "psnr": like.psnr.cpu().numpy(),
    }


def _picture_row(table: Mapping[str, Any], layer: str, limit: int) -> dict[str, Any]:
    def mean(column: str, weights: str) -> tuple[float, float]:
        chosen = (table["layer"] == layer) & (table["iterations"] == limit) & (table["weights"] == weights)
        values = table[column][chosen]
        return float(values.mean()), float(values.std(ddof=1) / len(values) ** 0.5) if len(values) > 1 else math.nan

    one, one_se = mean("one_layer", "learned")
    image, image_se = mean("image", "learned")
    return {
        "layer": layer,
        "iterations": limit,
        "one layer": one,
        "± se": one_se,
        "random": mean("one_layer", "random")[0],
        "picture": image,
        "picture se": image_se,
        "picture random": mean("image", "random")[0],
        "cosine": mean("cosine", "learned")[0],
        "PSNR dB": mean("psnr", "learned")[0],
    }


def strip(originals: Tensor, found: Mapping[str, Tensor], title: str) -> bytes:
    """Draw Figure 5: a row a picture (pixels on 0..1), the original, then what each layer's features go back to."""
    shown = {"original": originals} | dict(found)
    figure, axes = plots.panels(len(originals), len(shown), width=1.5, height=1.5, title=title)
    for row in range(len(originals)):
        for axis, (name, images) in zip(axes[row], shown.items(), strict=True):
            axis.imshow(images[row].clamp(0, 1).permute(1, 2, 0).cpu().numpy(), interpolation="nearest")
            axis.set_axis_off()
            if row == 0:
                axis.set_title(name)
    return plots.png(figure)
