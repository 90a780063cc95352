"""Views of stored pictures on the training device: normalised crops with mirror images, shifts and lighting.

Every draw is a hash of (seed, epoch, sample id), and no generator has a state. A view thus depends neither on the batch
nor on the worker nor on the cell, and a resumed training needs only its position.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from crelu_data.datasets import SPLITMIX64

_MASK = (1 << 64) - 1
# Streams of draws, one for each use.
_ROW, _COLUMN, _FLIP, _LIGHT = range(4)
Rows = np.ndarray[Any, Any]
_PART = 1 << 20  # bytes that stay in a core's cache between two operations


def training_view(
    images: Tensor,
    ids: Tensor,
    *,
    seed: int,
    epoch: int,
    crop: int,
    flip: bool,
    shift: int,
    lighting: float,
    mean: Sequence[float],
    std: Sequence[float],
    eigenvalues: Sequence[float],
    eigenvectors: Sequence[Sequence[float]],
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """Return the training views (n, 3, crop, crop), channels last, of uint8 pictures (n, 3, h, w) with ids (n,).

    A view is a crop at a uniform position of the picture with a border of `shift` pixels in the mean colour, zero after
    normalisation. Half of the crops are mirrored, and all get Krizhevsky's lighting of standard deviation `lighting`
    (0: none). Colours are in 0..1; column k of `eigenvectors` belongs to eigenvalue k. ValueError where the crop is
    larger than the picture.
    """
    side = images.shape[2] + 2 * shift
    _check_crop(crop, side, images)
    base = _base(seed, epoch)
    top = _integers(base, ids, _ROW, side - crop + 1) - shift
    left = _integers(base, ids, _COLUMN, side - crop + 1) - shift
    mirrored = (_uniform(base, ids, _FLIP) < 0.5) if flip else torch.zeros_like(ids, dtype=torch.bool)
    light = _light(base, ids, lighting, eigenvalues, eigenvectors, std) if lighting else None
    if shift:
        cut = _cut(_normalised(images, mean, std, shift), top + shift, left + shift, crop, mirrored)
    else:
        cut = _normalised(_cut(images, top, left, crop, mirrored), mean, std)
    cut = cut.to(dtype)
    return cut if light is None else cut + light.to(dtype)[:, :, None, None]


def centre_view(
    images: Tensor,
    *,
    crop: int,
    mean: Sequence[float],
    std: Sequence[float],
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """Return the centre crops (n, 3, crop, crop), normalised, channels last, of uint8 pictures (n, 3, h, w)."""
    _check_crop(crop, images.shape[2], images)
    first = (images.shape[2] - crop) // 2
    middle = slice(first, first + crop)
    return _normalised(images[:, :, middle, middle], mean, std).to(dtype)


def ten_views(
    images: Tensor,
    *,
    crop: int,
    mean: Sequence[float],
    std: Sequence[float],
    dtype: torch.dtype = torch.float32,
) -> Iterator[Tensor]:
    """Yield the ten views (n, 3, crop, crop): the four corners and the centre, each followed by its mirror image."""
    _check_crop(crop, images.shape[2], images)
    far = images.shape[2] - crop
    normalised = _normalised(images, mean, std).to(dtype)
    for top, left in ((0, 0), (0, far), (far, 0), (far, far), (far // 2, far // 2)):
        view = normalised[:, :, top : top + crop, left : left + crop].contiguous(memory_format=torch.channels_last)
        yield view
        yield view.flip(3).contiguous(memory_format=torch.channels_last)


def _check_crop(crop: int, side: int, images: Tensor) -> None:
    """Raise ValueError unless the pictures are square and a crop fits into a side of this length."""
    if images.shape[2] != images.shape[3] or not 0 < crop <= side:
        raise ValueError(
            f"no {crop}-pixel crop of pictures {tuple(images.shape[2:])}: they must be square and large enough"
        )


def _normalised(images: Tensor, mean: Sequence[float], std: Sequence[float], border: int = 0) -> Tensor:
    """Return (pixel / 255 - mean) / std of uint8 (n, 3, h, w), computed as one product and one sum.

    The result is float32 and channels last, with a border of `border` zeros.
    """
    n, _, height, width = images.shape
    # One factor per byte of a row: on the CPU a broadcast over three channels is nine times slower.
    scale = torch.tensor([1 / (255 * s) for s in std], device=images.device).repeat(width)
    offset = torch.tensor([-m / s for m, s in zip(mean, std, strict=True)], device=images.device).repeat(width)
    result = (torch.zeros if border else torch.empty)(
        n, height + 2 * border, width + 2 * border, 3, device=images.device
    )
    inside = result[:, border : border + height, border : border + width]
    count = max(1, _PART // max(1, 12 * height * width)) if images.device.type == "cpu" else max(1, n)
    for first in range(0, n, count):
        part = inside[first : first + count].copy_(images[first : first + count].permute(0, 2, 3, 1))
        part.flatten(2).mul_(scale).add_(offset)
    return result.permute(0, 3, 1, 2)


def _cut(images: Tensor, top: Tensor, left: Tensor, crop: int, mirrored: Tensor) -> Tensor:
    """Return one crop of each picture, mirrored where `mirrored` is set: (n, 3, crop, crop), channels last."""
    n, _, height, width = images.shape
    if images.device.type == "cpu":
        return _rows(images, top, left, crop, mirrored).permute(0, 3, 1, 2)
    steps = torch.arange(crop, device=images.device)
    rows = top[:, None] + steps
    columns = left[:, None] + torch.where(mirrored[:, None], crop - 1 - steps, steps)
    flat = images.permute(0, 2, 3, 1).reshape(n * height * width, 3)
    first = torch.arange(n, device=images.device)[:, None] * height
    index = ((first + rows)[:, :, None] * width + columns[:, None, :]).reshape(-1)
    return flat[index].view(n, crop, crop, 3).permute(0, 3, 1, 2)


def _rows(images: Tensor, top: Tensor, left: Tensor, crop: int, mirrored: Tensor) -> Tensor:
    """Return one crop of each picture, mirrored where `mirrored` is set, on the CPU: (n, crop, crop, 3).

    NumPy copies complete rows of crops, 35 times as fast as a slice per picture; torch mirrors many at once.
    """
    n, _, height, width = images.shape
    pixels = images.permute(0, 2, 3, 1).contiguous().numpy()
    row = np.dtype(f"V{3 * crop * pixels.itemsize}")
    count = max(0, n * height * width - crop + 1)
    # Element i is the row of `crop` pixels from pixel i on, counted over all pictures.
    windows: Rows = np.ndarray((count,), row, buffer=pixels, strides=(3 * pixels.itemsize,))
    first = (np.arange(n) * height + top.numpy()) * width + left.numpy()
    rows = windows[first[:, None] + np.arange(crop) * width]
    cut = torch.from_numpy(rows.view(pixels.dtype).reshape(n, crop, crop, 3))
    (selected,) = mirrored.nonzero(as_tuple=True)
    flipped = cut.index_select(0, selected).permute(0, 3, 1, 2).flip(3).permute(0, 2, 3, 1).numpy()
    rows[selected.numpy()] = flipped.reshape(len(selected), crop, 3 * crop).view(row)[:, :, 0]
    return cut


def _light(
    base: int,
    ids: Tensor,
    spread: float,
    eigenvalues: Sequence[float],
    eigenvectors: Sequence[Sequence[float]],
    std: Sequence[float],
) -> Tensor:
    """Return the colour (n, 3) to add to normalised pictures: sum of p_k alpha_k lambda_k, alpha from N(0, spread).

    Krizhevsky et al. 2012, section 4.1, on colours in 0..1; lambda are standard deviations along the principal axes.
    """
    alpha = torch.stack([_normal(base, ids, _LIGHT + 2 * k) for k in range(3)], 1) * spread
    values = torch.tensor([math.sqrt(value) for value in eigenvalues], dtype=torch.float64, device=ids.device)
    vectors = torch.tensor(eigenvectors, dtype=torch.float64, device=ids.device)
    scale = torch.tensor(std, dtype=torch.float64, device=ids.device)
    return ((alpha * values) @ vectors.T / scale).float()


def _base(seed: int, epoch: int) -> int:
    """Return the key of all draws of an epoch; keys of neighbouring seeds and epochs are unrelated."""
    return _scramble(_scramble(seed & _MASK) ^ ((epoch * SPLITMIX64[0]) & _MASK))


def _scramble(value: int) -> int:
    """Return splitmix64's output for one unsigned 64-bit integer."""
    golden, first, second = SPLITMIX64
    value = (value + golden) & _MASK
    value = ((value ^ (value >> 30)) * first) & _MASK
    value = ((value ^ (value >> 27)) * second) & _MASK
    return value ^ (value >> 31)


def _bits(base: int, ids: Tensor, stream: int) -> Tensor:
    """Return 64 hashed bits for each id, as int64: splitmix64 of the id under a key of epoch and stream."""
    golden, first, second = map(_signed, SPLITMIX64)
    value = ids * golden + _signed(_scramble(base ^ (stream + 1)))
    value = (value ^ _shifted(value, 30)) * first
    value = (value ^ _shifted(value, 27)) * second
    return value ^ _shifted(value, 31)


def _signed(value: int) -> int:
    """Return the int64 with the bits of an unsigned number: torch's int64 products wrap."""
    return value - (1 << 64) if value >= 1 << 63 else value


def _shifted(value: Tensor, by: int) -> Tensor:
    """Return a logical shift to the right; torch's is arithmetic."""
    return (value >> by) & ((1 << (64 - by)) - 1)


def _uniform(base: int, ids: Tensor, stream: int) -> Tensor:
    """Return a number in [0, 1) for each id, float64 (n,)."""
    return _shifted(_bits(base, ids, stream), 11).double() * 2.0**-53


def _integers(base: int, ids: Tensor, stream: int, count: int) -> Tensor:
    """Return an integer in 0..count-1 for each id, uniform to 2**-40 for counts up to thousands."""
    return (_uniform(base, ids, stream) * count).long()


def _normal(base: int, ids: Tensor, stream: int) -> Tensor:
    """Return a standard normal number for each id (Box and Muller), float64 (n,), from streams k and k + 1."""
    radius = torch.sqrt(-2.0 * torch.log1p(-_uniform(base, ids, stream)))
    return radius * torch.cos(2 * math.pi * _uniform(base, ids, stream + 1))
