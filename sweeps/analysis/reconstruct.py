"""Pictures reconstructed from the features of a net: which layers an algorithm fits, and both algorithms on them.

Algorithm 1 (cgls.py) chains the inverses of convs. Each step amplifies the loss of the one before; stopping early damps
that, so several limits are reported, and beside the picture the loss of one layer alone.
Algorithm 2 (pooling_ratio.py) measures |x - x'| / |x| of the patch that a max-pooling window sees.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor, nn

from crelu_models.activations import crelu
from crelu_models.spec import Conv, Drop, Net, Pool, seed_from
from sweeps.analysis.capture import batch_size, capture, side_read
from sweeps.analysis.cgls import Step, back, each, inverted, likeness, ratio, unrectified
from sweeps.analysis.compute import Findings, stacked
from sweeps.analysis.pooling_ratio import Deal, clustered_se, patch_ratios
from sweeps.analysis.sources import NotApplicableError
from sweeps.analysis.weights import LoadedNet, choose_layers, open_sample
from sweeps.report.render import plots
from sweeps.results.paper import LEARNED, RANDOM
from sweeps.results.paper_cells import printed_of_layer
from sweeps.training.runtime import RuntimeConfig

# Which layers -------------------------------------------------------------------------------------------------


def unpooled(net: Net) -> list[Conv]:
    """Return the convs that Algorithm 1 goes back from: CReLU behind each from conv1 on, and no pooling."""
    rows = (row for row in net.rows if not isinstance(row, Drop))
    fitting = itertools.takewhile(lambda row: isinstance(row, Conv) and row.act == "crelu" and not row.bn, rows)
    return [row for row in fitting if isinstance(row, Conv)]


def pooled(net: Net) -> list[tuple[Conv, Pool]]:
    """Return the convs that Algorithm 2 is about: CReLU and then max-pooling behind them."""
    rows = [row for row in net.rows if not isinstance(row, Drop)]
    return [
        (conv, pool)
        for conv, pool in itertools.pairwise(rows)
        if isinstance(conv, Conv)
        and isinstance(pool, Pool)
        and (conv.act, conv.bn, pool.kind) == ("crelu", False, "max")
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


def algorithm_of(loaded: LoadedNet, asked: int) -> int:
    """Return the algorithm asked for, else 2 where CReLU meets max-pooling; NotApplicableError where none fits."""
    net = loaded.net
    algorithm = asked or (2 if pooled(net) else 1)
    if not (unpooled(net) if algorithm == 1 else pooled(net)):
        why = (
            why_not(net, loaded.convs()[0].name, 1) if algorithm == 1 else "no conv has CReLU and max-pooling behind it"
        )
        raise NotApplicableError(f"{loaded.label}: {why}")
    return algorithm


def randomised(loaded: LoadedNet, seed: int, only: str = "") -> LoadedNet:
    """Return the net with every conv (or `only` this one) drawn from N(0, 1) and its bias 0: the paper's control."""
    weights = dict(loaded.weights)
    for conv in loaded.convs():
        if only in ("", conv.name):
            stream = torch.Generator().manual_seed(seed_from("reconstruction", seed, conv.name))
            weights[f"{conv.name}.weight"] = torch.randn(weights[f"{conv.name}.weight"].shape, generator=stream)
            weights[f"{conv.name}.bias"] = torch.zeros_like(weights[f"{conv.name}.bias"])
    return dataclasses.replace(loaded, weights=weights)


# The job ------------------------------------------------------------------------------------------------------

PICTURES, LAYERS = 8, 4  # of Figure 5
PATCHES = 20_000  # of Table S1: the printed standard errors come of about as many


def findings(loaded: LoadedNet, runtime: RuntimeConfig, asked: dict[str, Any]) -> Findings:
    """Reconstruct `samples` pictures (8) by Algorithm 1 or patches (20,000) by Algorithm 2, beside random weights."""
    algorithm = algorithm_of(loaded, asked["algorithm"])
    net = loaded.net
    fitting = [conv.name for conv in (unpooled(net) if algorithm == 1 else [conv for conv, _ in pooled(net)])]
    if algorithm == 1 and not asked["layers"]:
        fitting = fitting[:LAYERS]
    layers = choose_layers(
        net, fitting, asked["layers"], lambda name: f"{loaded.label}: {why_not(net, name, algorithm)}"
    )
    return (_pictures if algorithm == 1 else _patches)(loaded, runtime, asked, layers)


# Algorithm 2 --------------------------------------------------------------------------------------------------


def _patches(loaded: LoadedNet, runtime: RuntimeConfig, asked: dict[str, Any], layers: Sequence[str]) -> Findings:
    count = asked["samples"] or PATCHES
    sample = open_sample(loaded, runtime, count, asked["seed"])
    deal = Deal(count, len(sample.indices), sample.crop, asked["seed"])
    parts: list[dict[str, ArrayLike]] = []
    rows = []
    metrics: dict[str, float] = {}
    for conv, pool in pooled(loaded.net):
        if conv.name not in layers:
            continue
        control = randomised(loaded, asked["seed"], conv.name if asked["control"] == "random_layer" else "")
        batch = batch_size(loaded.net, [conv.name], sample.crop)
        row: dict[str, Any] = {"layer": conv.name, "filters": conv.filters, "patches": count}
        for name, net, metric in (("learned", loaded, LEARNED), ("random", control, RANDOM)):
            ratios, columns = patch_ratios(net, conv, pool, sample.seen(batch), deal, runtime.device)
            parts.append({
                "layer": conv.name,
                "weights": name,
                "picture": sample.indices[np.arange(count) % len(sample.indices)],
                "ratio": ratios.numpy(),
                "columns": columns.numpy().astype(np.int32),
            })  # fmt: skip
            row |= {name: float(ratios.mean()), f"{name} se": clustered_se(ratios, deal.pictures)}
            row |= {f"{name} columns": float(columns.double().mean())}
            paper = printed_of_layer("S1", loaded.dataset, conv.name, metric, loaded.net, loaded.cell)
            row |= {f"paper {name}": str(paper)} if paper else {}
            metrics |= {f"{metric}/{conv.name}": row[name], f"{metric}_se/{conv.name}": row[f"{name} se"]}
        metrics |= {f"reconstruction/patches/{conv.name}": count, "reconstruction/pictures": deal.pictures}
        rows.append(row)
    table = stacked(parts)
    pictures = {"reconstruction.png": patch_histograms(table, layers, loaded.label)}
    note = f"|x - x'| / |x| of patches behind max-pooling (Algorithm 2), se over pictures; control: {asked['control']}"
    return Findings({"table.parquet": table}, pictures, rows, metrics, (note,))


def patch_histograms(table: Mapping[str, Any], layers: Sequence[str], label: str) -> bytes:
    """Draw the ratios of learned and random filters, a panel a layer."""
    figure, axes = plots.grid(len(layers), width=3.6, height=2.6, title=f"{label}: what max-pooling loses")
    bins = np.linspace(math.floor(10 * table["ratio"].min()) / 10, 1, 81)
    for layer, axis in zip(layers, axes, strict=True):
        for name, colour in (("random", plots.RANDOM), ("learned", plots.LEARNED)):
            chosen = (table["layer"] == layer) & (table["weights"] == name)
            plots.histogram(axis, table["ratio"][chosen], bins, colour, name)
        axis.set(title=layer, xlabel="|x − x′| / |x|", ylabel="density")
    plots.legend(figure, axes[0])
    return plots.png(figure)


# Algorithm 1 --------------------------------------------------------------------------------------------------


def _pictures(loaded: LoadedNet, runtime: RuntimeConfig, asked: dict[str, Any], layers: Sequence[str]) -> Findings:
    sample = open_sample(loaded, runtime, asked["samples"] or PICTURES, asked["seed"])
    limits = sorted({max(1, limit) for limit in asked["iterations"]})
    x = torch.cat([*sample.seen(250)]).double()
    parts: list[dict[str, ArrayLike]] = []
    drawn: dict[int, dict[str, Tensor]] = {limit: {} for limit in limits}
    for name, net in (("learned", loaded), ("random", randomised(loaded, asked["seed"]))):
        model = net.model(sample.crop, runtime.device, torch.float64)
        images = chain(model, chain_steps(net, layers[-1], sample.crop, model), layers, x, limits)
        for (layer, limit), (one_layer, image) in images.items():
            like = likeness(x, image, sample.std)
            parts.append({
                "layer": layer,
                "weights": name,
                "iterations": np.int32(limit),
                "picture": sample.indices,
                "one_layer": one_layer.numpy(),
                "image": ratio(x, image).cpu().numpy(),
                "cosine": like.cosine.cpu().numpy(),
                "psnr": like.psnr.cpu().numpy(),
            })  # fmt: skip
            if name == "learned":
                drawn[limit][layer] = sample.pixels(image * each(like.scale, image))
    table = stacked(parts)
    rows = [_picture_row(table, layer, limit) for layer in layers for limit in limits]
    metrics: dict[str, float] = {}
    for row in rows[len(limits) - 1 :: len(limits)]:
        metrics |= {f"reconstruction/one_layer/{row['layer']}": row["one layer"]}
        metrics |= {f"reconstruction/one_layer_se/{row['layer']}": row["± se"]}
        metrics |= {f"reconstruction/one_layer_random/{row['layer']}": row["random"]}
    metrics |= {f"reconstruction/picture_{row['iterations']}/{row['layer']}": row["picture"] for row in rows}
    metrics["reconstruction/pictures"] = len(x)
    pictures = {
        f"reconstruction_{limit}.png": strip(
            sample.pixels(x), drawn[limit], f"{loaded.label}: {limit} iterations a layer"
        )
        for limit in limits
    }
    note = (
        "one layer: |x - x'| / |x| of what the conv reads; picture: of the picture, through all layers (Algorithm 1). "
        "Chained pseudoinverses amplify what is lost: fewer iterations may look better"
    )
    return Findings({"table.parquet": table}, pictures, rows, metrics, (note,))


def chain_steps(loaded: LoadedNet, last: str, size: int, model: nn.Sequential) -> list[Step]:
    """Return the steps from conv1 to the conv `last`, for pictures of side `size`, with the model's weights."""
    steps = []
    for conv in unpooled(loaded.net):
        layer = model.get_submodule(conv.name)
        assert isinstance(layer, nn.Conv2d)
        assert layer.bias is not None
        side = side_read(loaded.net, conv.name, size)
        steps.append(Step(conv.name, layer.weight, layer.bias, conv.stride, conv.pad, side))
        if conv.name == last:
            break
    return steps


def chain(
    model: nn.Sequential, steps: Sequence[Step], layers: Sequence[str], x: Tensor, limits: Sequence[int]
) -> dict[tuple[str, int], tuple[Tensor, Tensor]]:
    """Return by layer and limit the one-layer ratio (n,), and the picture (n, 3, h, w) that features go back to."""
    images: dict[tuple[str, int], tuple[Tensor, Tensor]] = {}
    for place, step in enumerate(steps):
        if step.name not in layers:
            continue
        captured = capture(model, [step.name, f"{step.name}_act"], x)
        features = crelu(captured[f"{step.name}_act"])
        z = unrectified(features) - step.bias[:, None, None]
        inputs = inverted(z, step.weight, step.stride, step.pad, step.size, limits)
        for limit, read in zip(limits, inputs, strict=True):
            one_layer = ratio(captured[step.name], read).cpu()
            images[step.name, limit] = (one_layer, back(read, steps[:place], limit))
    return images


def _picture_row(table: Mapping[str, Any], layer: str, limit: int) -> dict[str, Any]:
    def mean(column: str, weights: str) -> tuple[float, float]:
        chosen = (table["layer"] == layer) & (table["iterations"] == limit) & (table["weights"] == weights)
        values = table[column][chosen]
        return float(values.mean()), float(values.std(ddof=1) / len(values) ** 0.5) if len(values) > 1 else math.nan

    one_layer, one_layer_se = mean("one_layer", "learned")
    image, image_se = mean("image", "learned")
    return {
        "layer": layer,
        "iterations": limit,
        "one layer": one_layer,
        "± se": one_layer_se,
        "random": mean("one_layer", "random")[0],
        "picture": image,
        "picture se": image_se,
        "picture random": mean("image", "random")[0],
        "cosine": mean("cosine", "learned")[0],
        "PSNR dB": mean("psnr", "learned")[0],
    }


def strip(originals: Tensor, reconstructed: Mapping[str, Tensor], title: str) -> bytes:
    """Draw Figure 5: a row a picture (pixels on 0..1), the original, then what each layer's features go back to."""
    columns = {"original": originals} | dict(reconstructed)
    figure, axes = plots.panels(len(originals), len(columns), width=1.5, height=1.5, title=title)
    for row in range(len(originals)):
        for axis, (name, images) in zip(axes[row], columns.items(), strict=True):
            axis.imshow(images[row].clamp(0, 1).permute(1, 2, 0).cpu().numpy(), interpolation="nearest")
            axis.set_axis_off()
            if row == 0:
                axis.set_title(name)
    return plots.png(figure)
