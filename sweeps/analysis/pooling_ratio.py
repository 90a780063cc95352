"""The loss of a patch behind CReLU and max-pooling: Algorithm 2 of the paper, by Gram matrices.

One pooling window of m x m places sees a patch x in R^D of the conv's input. Filter i at place j is a column w_i^j with
response z_i^j = <w_i^j, x>. The pool selects, for either phase of each filter, its largest value and (unpooling) its
place; W holds the columns whose phase is above 0. With z the selected responses less the bias

    x' = (W^T)^+ z      |x - x'| / |x| = sqrt(1 - z^T (W^T W)^+ z / |x|^2)

which takes only the Gram matrix of all columns, computed once, and none of its size D for a patch.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import NamedTuple

import torch
from torch import Tensor

from crelu_models.spec import Conv, Pool, seed_from
from sweeps.analysis.capture import capture, side_read
from sweeps.analysis.weights import LoadedNet

CUT = 1e-10  # of an eigenvalue against the largest: below it a direction is not spanned
NUMBERS = 2**24  # in the Gram matrices of one batch of patches


def patch_columns(weight: Tensor, window: int, stride: int = 1) -> Tensor:
    """Return W (D, k * window^2), float64: filter i at place j of a pooling window is column i * window^2 + j.

    `weight` is (k, c, h, h), `stride` the conv's; a window sees c * ((window - 1) * stride + h)^2 = D numbers.
    """
    k, c, height, _ = weight.shape
    side = (window - 1) * stride + height
    placed = weight.new_zeros(k, window * window, c, side, side, dtype=torch.float64)
    for j in range(window * window):
        top, left = stride * (j // window), stride * (j % window)
        placed[:, j, :, top : top + height, left : left + height] = weight
    return placed.flatten(2).flatten(0, 1).T.contiguous()


def pooled_columns(activation: Tensor) -> Tensor:
    """Return which columns max-pooling of both phases selects: bool (n, k, window^2) for activations of that shape.

    The largest value of each phase, where it is above 0; of equal ones the first.
    """
    selected = torch.zeros_like(activation, dtype=torch.bool)
    for phase in (activation, -activation):
        value, place = phase.max(2, keepdim=True)
        selected |= torch.zeros_like(selected).scatter_(2, place, value > 0)
    return selected


def pooled_ratio(size: Tensor, z: Tensor, selected: Tensor, gram: Tensor) -> Tensor:
    """Return |x - x'| / |x| (n,) of patches: squared norms `size` (n,), responses z and `selected` (n, columns).

    sqrt(1 - z^T G^+ z / |x|^2) over the selected columns, G their part of `gram` = W^T W, by eigenvalues above CUT.
    """
    most = max(1, int(selected.sum(1).max()))
    # Selected columns first, filled up with others that are then put to zero: one shape for the whole batch.
    chosen = selected.to(torch.int8).argsort(dim=1, descending=True, stable=True)[:, :most]
    real = selected.gather(1, chosen)
    part = gram[chosen[:, :, None], chosen[:, None, :]] * (real[:, :, None] & real[:, None, :])
    values, vectors = torch.linalg.eigh(part)
    along = torch.einsum("nij,ni->nj", vectors, z.gather(1, chosen) * real)
    spanned = values > CUT * values[:, -1:]
    explained = torch.where(spanned, along.square() / values, 0.0).sum(1)
    # A patch of zeros has nothing to lose.
    return torch.where(size > 0, (1 - explained / size).clamp(min=0), 0.0).sqrt()


class Deal(NamedTuple):
    """Patches dealt over pictures: how many of each, the pictures' side, and the seed."""

    patches: int
    pictures: int
    size: int
    seed: int = 0


def patch_ratios(
    loaded: LoadedNet, conv: Conv, pool: Pool, views: Iterable[Tensor], deal: Deal, device: str = "cpu"
) -> tuple[Tensor, Tensor]:
    """Return |x - x'| / |x| and the selected columns of patches of `views` (n, 3, h, w), each (deal.patches,).

    Patch r is of picture r modulo their number, at a pooling window chosen uniformly among those that see no padding.
    """
    weight, bias = (loaded.weights[f"{conv.name}.{part}"].double().to(device) for part in ("weight", "bias"))
    w = patch_columns(weight, pool.kernel, conv.stride)
    gram = w.T @ w
    side = (pool.kernel - 1) * conv.stride + conv.kernel
    starts = torch.tensor(inner_starts(conv, pool, side_read(loaded.net, conv.name, deal.size)))
    stream = torch.Generator().manual_seed(seed_from("patches", deal.seed, conv.name))
    corner = starts[torch.randint(len(starts), (deal.patches, 2), generator=stream)]
    picture_of = torch.arange(deal.patches) % deal.pictures
    ratios, counts = torch.empty(deal.patches, dtype=torch.float64), torch.empty(deal.patches, dtype=torch.int64)
    model = loaded.model(deal.size, device)
    most = max(1, NUMBERS // (2 * len(weight)) ** 2)
    first = 0
    for pictures in views:
        read = capture(model, [conv.name], pictures)[conv.name]
        patches_here = torch.nonzero((first <= picture_of) & (picture_of < first + len(pictures)))[:, 0]
        for chunk in torch.split(patches_here, most):
            corners = zip((picture_of[chunk] - first).tolist(), corner[chunk].tolist(), strict=True)
            x = torch.stack([read[i, :, y : y + side, x : x + side] for i, (y, x) in corners]).double().flatten(1)
            z = x @ w
            chosen = pooled_columns(z.view(len(x), len(weight), -1) + bias[:, None]).flatten(1)
            ratios[chunk] = pooled_ratio(x.square().sum(1), z, chosen, gram).cpu()
            counts[chunk] = chosen.sum(1).cpu()
        first += len(pictures)
    return ratios, counts


def inner_starts(conv: Conv, pool: Pool, side: int) -> list[int]:
    """Return where the patches of the pooling windows begin that see no padding; ValueError where all do."""
    span = (pool.kernel - 1) * conv.stride + conv.kernel
    starts = [(u * pool.stride - pool.pad) * conv.stride - conv.pad for u in range(side)]
    inner = [start for start in starts if 0 <= start <= side - span]
    if not inner:
        raise ValueError(f"{conv.name} reads maps of side {side}; a window that sees no padding needs {span} and more")
    return inner


def clustered_se(values: Tensor, clusters: int) -> float:
    """Return the standard error of the mean of values (n,) where value r belongs to cluster r modulo `clusters`.

    Patches of one picture are alike: sum the deviations within pictures before squaring (nan for one picture).
    """
    if clusters < 2:
        return math.nan
    deviation = values - values.mean()
    sums = torch.zeros(clusters, dtype=values.dtype).index_add_(0, torch.arange(len(values)) % clusters, deviation)
    return float((sums.square().sum() * clusters / (clusters - 1)).sqrt() / len(values))
