"""Where filters fire, and whether they still do when the picture has moved: the invariance score.

For filter i with responses r_i(x, u, v) on picture x at place (u, v), |z| under CReLU and AVR and max(z, 0) else:

    t_i = the 99 % quantile of r_i over all pictures and places      f_i = 1 where r_i > t_i ("fires"), so 1 % of them
    L_i = sum_{x,u,v} f_i(x, u, v) * mean_T f_i(T x, u, v)  /  sum_{x,u,v} f_i(x, u, v)
    S_i = L_i / 0.01, from 1 where the move decides anew to 100 where it changes nothing; a layer's score is their mean

Thresholds are exact and come from the pictures as they are: a filter's largest responses over all batches. A filter
that fires at less than 1 % of the places has t = 0 and is counted as under-firing; S still divides by 0.01, or rare
firing would count as invariance. Filters that never fire are counted as dead and left out.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor, nn
from torch.nn import functional

from sweeps.analysis.capture import batch_size, capture, hidden, response
from sweeps.analysis.compute import Findings, stacked
from sweeps.analysis.weights import ImageSample, LoadedNet, choose_layers, open_sample
from sweeps.experiment.wording import count
from sweeps.report.render import plots
from sweeps.training.runtime import RuntimeConfig

ONE_IN = 100  # a filter fires at one place in this many

# The paper's transforms, and which set is for which pictures. Turns are in degrees, shifts in pixels (down, right).
SHIFTS = {"down 3": (3, 0), "up 3": (-3, 0), "right 3": (0, 3), "left 3": (0, -3)}
TURNS = {"turn +15": 15.0, "turn -15": -15.0}
CORNERS = {"top left": (0, 0), "top right": (0, 1), "bottom left": (1, 0), "bottom right": (1, 1)}
CIFAR = ("flip", *TURNS, *SHIFTS)
IMAGENET = ("flip", *TURNS, *CORNERS)


class Firing(NamedTuple):
    """Counts of one layer's filters (k,): threshold, firing places, and (k, transforms) those that still fire after."""

    threshold: Tensor
    fires: Tensor
    both: Tensor
    places: int

    @property
    def dead(self) -> Tensor:
        """Return which filters never fire (k,)."""
        return self.fires == 0

    @property
    def under_firing(self) -> Tensor:
        """Return which live filters respond at fewer places than they should fire at (k,)."""
        return (self.fires < self.places // ONE_IN) & (self.threshold == 0) & ~self.dead

    @property
    def scores(self) -> Tensor:
        """Return S_i (k, transforms) in 0..100, float64; nan for dead filters."""
        return self.both.double() / self.fires.double()[:, None] * ONE_IN


class Largest:
    """The `k` largest values of each filter over all batches; exact, in about two times their memory."""

    def __init__(self, k: int) -> None:
        """Start without values."""
        self.k = k
        self.parts: list[Tensor] = []
        self.width = 0
        self.floor: Tensor | None = None

    def add(self, values: Tensor) -> None:
        """Add `values` (filters, n)."""
        most = min(self.k, values.shape[1])
        if self.floor is not None:
            # A value not above the kth largest so far changes nothing.
            most = min(most, int((values > self.floor[:, None]).sum(1).max()))
        if most:
            self.parts.append(values if most == values.shape[1] else values.topk(most, sorted=False).values)
            self.width += most
        if self.width >= 2 * self.k:
            self._merge()

    def _merge(self) -> None:
        together = torch.cat(self.parts, 1)
        self.parts = [together.topk(min(self.k, together.shape[1]), sorted=False).values]
        self.width = self.parts[0].shape[1]
        if self.width == self.k:
            self.floor = self.parts[0].amin(1)

    def kth(self) -> Tensor:
        """Return the kth largest value of each filter (filters,); ValueError for fewer than k values."""
        self._merge()
        if self.width < self.k:
            raise ValueError(f"{self.width} values went by; the {self.k}th largest needs as many")
        return self.parts[0].amin(1)


def moved(images: Tensor, transform: str, crop: int, fill: str = "reflect") -> Tensor:
    """Return stored pictures (n, 3, size, size) after a transform, as the net's view (n, 3, crop, crop) of 0..255.

    Turns interpolate bilinearly; what a turn or a shift brings in from beyond the picture is by `fill` its reflection
    or "zero", black. "identity" is the centre crop. ValueError for an unknown transform.
    """
    size = images.shape[-1]
    edge, room = (size - crop) // 2, size - crop
    if transform in TURNS:
        images = turned(images.float(), TURNS[transform], fill)
    down, right = SHIFTS.get(transform, (0, 0))
    if down or right:
        mode = "constant" if fill == "zero" else fill
        images = functional.pad(images.float(), (abs(right),) * 2 + (abs(down),) * 2, mode=mode)
    top, left = edge + abs(down) - down, edge + abs(right) - right
    if transform in CORNERS:
        below, beside = CORNERS[transform]
        top, left = below * room, beside * room
    elif transform not in ("identity", "flip", *TURNS, *SHIFTS):
        raise ValueError(f"no transform {transform!r}; there are identity, {', '.join((*CIFAR, *CORNERS))}")
    crops = images[:, :, top : top + crop, left : left + crop]
    return crops.flip(3) if transform == "flip" else crops


def turned(images: Tensor, degrees: float, fill: str = "reflect") -> Tensor:
    """Return pictures (n, 3, h, w) turned anticlockwise about their centre, bilinear; beyond the edges see `moved`."""
    angle = torch.deg2rad(torch.tensor(degrees, dtype=torch.float64))
    cos, sin = float(angle.cos()), float(angle.sin())
    # The sampling grid goes from the turned picture to the one that is read; rows count downwards.
    matrix = torch.tensor([[cos, -sin, 0.0], [sin, cos, 0.0]], dtype=images.dtype, device=images.device)
    grid = functional.affine_grid(matrix.expand(len(images), 2, 3), list(images.shape), align_corners=False)
    mode = "zeros" if fill == "zero" else "reflection"
    return functional.grid_sample(images, grid, mode="bilinear", padding_mode=mode, align_corners=False)


def thresholds(
    model: nn.Sequential, acts: Mapping[str, str], pictures: int, batches: Iterable[Tensor]
) -> dict[str, Tensor]:
    """Return t_i (k,) of each layer of `acts` (activation by layer) over all `pictures` views (n, 3, h, w) in batches.

    Of m responses of a filter it is the (m // ONE_IN + 1)th largest: at most m // ONE_IN are above it. ValueError where
    there are fewer than ONE_IN places, or responses that are not finite.
    """
    largest: dict[str, Largest] = {}
    for views in batches:
        for layer, responses in _responses(model, acts, views):
            if layer not in largest:
                places = pictures * responses[0, 0].numel()
                if places < ONE_IN:
                    raise ValueError(
                        f"{count(pictures, 'picture')} have {count(places, 'place')} at {layer}: "
                        f"a filter that fires at one in {ONE_IN} needs more of them"
                    )
                largest[layer] = Largest(places // ONE_IN + 1)
            largest[layer].add(responses.transpose(0, 1).flatten(1))
    kth = {layer: values.kth() for layer, values in largest.items()}
    for layer, threshold in kth.items():
        if not threshold.isfinite().all():
            raise ValueError(f"{layer} has responses that are not finite")
    return kth


def firing(
    model: nn.Sequential,
    acts: Mapping[str, str],
    threshold: Mapping[str, Tensor],
    batches: Iterable[Iterable[Tensor]],
    transforms: int,
) -> dict[str, Firing]:
    """Count where filters fire; each batch is its views (n, 3, h, w) as they are, then after each of `transforms`."""
    counts = {
        layer: torch.zeros(len(t), 1 + transforms, dtype=torch.int64, device=t.device) for layer, t in threshold.items()
    }
    places = dict.fromkeys(threshold, 0)
    for batch in batches:
        first: dict[str, Tensor] = {}
        for column, views in enumerate(batch):
            for layer, responses in _responses(model, acts, views):
                fires = responses > threshold[layer][:, None, None]
                first.setdefault(layer, fires)
                counts[layer][:, column] += (fires & first[layer]).sum((0, 2, 3))
                places[layer] += 0 if column else responses[:, 0].numel()
    return {layer: Firing(threshold[layer], n[:, 0], n[:, 1:], places[layer]) for layer, n in counts.items()}


def _responses(model: nn.Sequential, acts: Mapping[str, str], views: Tensor) -> Iterator[tuple[str, Tensor]]:
    """Yield each layer with its responses (n, k, h, w) to a batch."""
    captured = capture(model, [f"{layer}_act" for layer in acts], views)
    for layer, act in acts.items():
        yield layer, response(captured.pop(f"{layer}_act"), act)


# The job ------------------------------------------------------------------------------------------------------

LAYERS = 7  # the paper shows conv1 to conv7


def findings(loaded: LoadedNet, runtime: RuntimeConfig, asked: dict[str, Any]) -> Findings:
    """Score the first seven convs with an activation, or the layers asked for, on test pictures.

    `samples` pictures; by default 10,000 where a net sees all of a stored picture, and 5,000 where it sees a crop.
    """
    convs = {row.name: row.act for row in hidden(loaded.net)}
    first = [*convs] if asked["layers"] else [*convs][:LAYERS]
    layers = choose_layers(loaded.net, first, asked["layers"], lambda name: f"{loaded.label}: {name} has no activation")
    sample = open_sample(loaded, runtime, asked["samples"], asked["seed"])
    cropped = sample.crop < sample.size
    if not asked["samples"]:
        sample = open_sample(loaded, runtime, 5_000 if cropped else 10_000, asked["seed"])
    transforms = IMAGENET if cropped else CIFAR
    acts = {layer: convs[layer] for layer in layers}
    counts = score(loaded, sample, acts, transforms, runtime.device, asked["fill"])
    rows = [_row(layer, filters, transforms) for layer, filters in counts.items()]
    metrics = {
        f"invariance/{name}/{row['layer']}": float(row[column])
        for name, column in (("score", "score"), ("se", "se"), ("dead", "dead"), ("under_firing", "under-firing"))
        for row in rows
    }
    metrics |= {f"invariance/filters/{row['layer']}": float(row["filters"] - row["dead"]) for row in rows}
    metrics["invariance/pictures"] = float(len(sample.indices))
    tables = {"table.parquet": stacked([_part(layer, filters, transforms) for layer, filters in counts.items()])}
    pictures = {"invariance.png": curve(rows, transforms, f"{loaded.label}: invariance of filters")}
    note = (
        f"score: 1 by chance, 100 where nothing changes; over {count(len(sample.indices), 'picture')}. "
        "Deeper maps are coarser: there a shift is less than one place"
    )
    return Findings(tables, pictures, rows, metrics, (note,))


def score(
    loaded: LoadedNet, sample: ImageSample, acts: Mapping[str, str], transforms: Sequence[str], device: str, fill: str
) -> dict[str, Firing]:
    """Return the counts of each layer of `acts` over the pictures of `sample`, in two passes over them."""
    model = loaded.model(sample.crop, device)
    count = batch_size(loaded.net, [*acts], sample.crop)
    threshold = thresholds(model, acts, len(sample.indices), sample.seen(count))
    batches = (
        (sample.normalised(moved(images, name, sample.crop, fill)) for name in ("identity", *transforms))
        for images in sample.batches(count)
    )
    return firing(model, acts, threshold, batches, len(transforms))


def _row(layer: str, filters: Firing, transforms: Sequence[str]) -> dict[str, Any]:
    scores = filters.scores[~filters.dead]
    per_filter = scores.mean(1)
    return {
        "layer": layer,
        "filters": len(filters.fires),
        "dead": int(filters.dead.sum()),
        "under-firing": int(filters.under_firing.sum()),
        "score": float(per_filter.mean()),
        "se": float(per_filter.std() / len(per_filter) ** 0.5) if len(per_filter) > 1 else float("nan"),
    } | {transform: float(scores[:, i].mean()) for i, transform in enumerate(transforms)}


def _part(layer: str, filters: Firing, transforms: Sequence[str]) -> dict[str, ArrayLike]:
    """Return the rows of the table of one layer, one a filter."""
    scores = filters.scores.cpu()
    part: dict[str, ArrayLike] = {
        "layer": layer,
        "filter": np.arange(len(scores), dtype=np.int32),
        "threshold": filters.threshold.cpu().numpy(),
        "rate": (filters.fires.double() / filters.places).cpu().numpy(),
        "dead": filters.dead.cpu().numpy(),
        "under_firing": filters.under_firing.cpu().numpy(),
        "score": scores.mean(1).numpy(),
    }
    return part | {transform: scores[:, i].numpy() for i, transform in enumerate(transforms)}


def curve(rows: Sequence[Mapping[str, Any]], transforms: Sequence[str], title: str) -> bytes:
    """Draw Figure 4 for one net: the score of each layer, and of each transform behind it."""
    figure, axes = plots.panels(1, 1, width=5.2, height=3.4, title=title)
    axis = axes[0][0]
    places = range(len(rows))
    last = [float(rows[-1][transform]) for transform in transforms]
    scores = [float(row[transform]) for row in rows for transform in transforms]
    top = max((score for score in scores if score == score), default=1.0)  # a layer of dead filters has none
    for transform, level in zip(transforms, plots.spread(last, top / 28, 0.0), strict=True):
        axis.plot(places, [row[transform] for row in rows], color=plots.GREY, linewidth=0.8, alpha=0.7)
        axis.annotate(transform, (places[-1], level), (5, 0), textcoords="offset points", fontsize=6.5, va="center",
                      color=plots.GREY)  # fmt: skip
    means, errors = ([row[name] for row in rows] for name in ("score", "se"))
    axis.errorbar(places, means, errors, color=plots.LEARNED, marker="o", label="mean ± se over filters")
    axis.set_xticks(places, [row["layer"] for row in rows])
    axis.set_ylim(bottom=0)
    axis.set_ylabel("invariance score (chance 1, at most 100)")
    plots.legend(figure, axis)
    return plots.png(figure)
