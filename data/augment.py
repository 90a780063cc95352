"""What a net sees of a stored picture: crops, mirror images, shifts, lighting, normalised, on the training device.

Every draw is a hash of (seed, epoch, sample id), not the state of a generator: a picture looks the same whatever the
batch, the worker or the cell, and a resumed training needs nothing but its position.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

# Splitmix64 (Steele, Lea and Flood 2014), its unsigned constants as signed ones: torch's int64 products wrap.
_GOLDEN, _FIRST, _SECOND = -0x61C8864680B583EB, -0x40A7B892E31B1A47, -0x6B2FB644ECCEEE15
_MASK = (1 << 64) - 1
# One stream of draws for each use.
_ROW, _COLUMN, _FLIP, _LIGHT = range(4)
Rows = np.ndarray[Any, Any]
_PART = 1 << 20  # bytes that stay in a core's cache from one operation on them to the next


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

    A crop at a uniform place of the picture with a border of `shift` pixels (the mean colour: zero once normalised),
    mirrored half of the time, with Krizhevsky's lighting of standard deviation `lighting` (0: none). Colours are on
    0..1; column k of `eigenvectors` belongs to eigenvalue k. ValueError where the crop does not fit.
    """
    side = images.shape[2] + 2 * shift
    _fits(crop, side, images)
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
    _fits(crop, images.shape[2], images)
    at = (images.shape[2] - crop) // 2
    return _normalised(images[:, :, at : at + crop, at : at + crop], mean, std).to(dtype)


def ten_views(
    images: Tensor,
    *,
    crop: int,
    mean: Sequence[float],
    std: Sequence[float],
    dtype: torch.dtype = torch.float32,
) -> Iterator[Tensor]:
    """Yield the ten views of each picture: the four corners and the centre, each with its mirror image."""
    _fits(crop, images.shape[2], images)
    far = images.shape[2] - crop
    whole = _normalised(images, mean, std).to(dtype)
    for top, left in ((0, 0), (0, far), (far, 0), (far, far), (far // 2, far // 2)):
        view = whole[:, :, top : top + crop, left : left + crop].contiguous(memory_format=torch.channels_last)
        yield view
        yield view.flip(3).contiguous(memory_format=torch.channels_last)


def _fits(crop: int, side: int, images: Tensor) -> None:
    if images.shape[2] != images.shape[3] or not 0 < crop <= side:
        raise ValueError(f"no {crop}-pixel crop of pictures {tuple(images.shape[2:])}: they are square and no smaller")


def _normalised(images: Tensor, mean: Sequence[float], std: Sequence[float], border: int = 0) -> Tensor:
    """Return (pixel / 255 - mean) / std of uint8 (n, 3, h, w), as one multiplication and one addition.

    Float32, channels last, with a border of so many zeros.
    """
    n, _, height, width = images.shape
    # One factor for each byte of a row: a broadcast over three channels is nine times slower on the CPU.
    scale = torch.tensor([1 / (255 * s) for s in std], device=images.device).repeat(width)
    offset = torch.tensor([-m / s for m, s in zip(mean, std, strict=True)], device=images.device).repeat(width)
    made = (torch.zeros if border else torch.empty)(n, height + 2 * border, width + 2 * border, 3, device=images.device)
    inside = made[:, border : border + height, border : border + width]
    count = max(1, _PART // max(1, 12 * height * width)) if images.device.type == "cpu" else max(1, n)
    for first in range(0, n, count):
        part = inside[first : first + count].copy_(images[first : first + count].permute(0, 2, 3, 1))
        part.flatten(2).mul_(scale).add_(offset)
    return made.permute(0, 3, 1, 2)


def _cut(images: Tensor, top: Tensor, left: Tensor, crop: int, mirrored: Tensor) -> Tensor:
    """Return each picture's own crop, mirrored where asked: (n, 3, crop, crop), channels last."""
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
    """Return each picture's own crop, mirrored where asked, on the CPU: (n, crop, crop, 3).

    NumPy copies windows of whole rows, 35 times as fast as a slice for each picture; torch mirrors many at once.
    """
    n, _, height, width = images.shape
    pixels = images.permute(0, 2, 3, 1).contiguous().numpy()
    row, many = np.dtype(f"V{3 * crop * pixels.itemsize}"), max(0, n * height * width - crop + 1)
    # Element i is the row of `crop` pixels that begins at pixel i of all pictures in a line.
    windows: Rows = np.ndarray((many,), row, buffer=pixels, strides=(3 * pixels.itemsize,))
    first = (np.arange(n) * height + top.numpy()) * width + left.numpy()
    rows = windows[first[:, None] + np.arange(crop) * width]
    cut = torch.from_numpy(rows.view(pixels.dtype).reshape(n, crop, crop, 3))
    (which,) = mirrored.nonzero(as_tuple=True)
    turned = cut.index_select(0, which).permute(0, 3, 1, 2).flip(3).permute(0, 2, 3, 1).numpy()
    rows[which.numpy()] = turned.reshape(len(which), crop, 3 * crop).view(row)[:, :, 0]
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
    """Return the key of all draws of an epoch; neighbouring seeds and epochs share nothing."""
    return _scramble(_scramble(seed & _MASK) ^ ((epoch * 0x9E3779B97F4A7C15) & _MASK))


def _scramble(value: int) -> int:
    """Return splitmix64's output for one unsigned 64-bit integer."""
    value = (value + 0x9E3779B97F4A7C15) & _MASK
    value = ((value ^ (value >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    value = ((value ^ (value >> 27)) * 0x94D049BB133111EB) & _MASK
    return value ^ (value >> 31)


def _bits(base: int, ids: Tensor, stream: int) -> Tensor:
    """Return 64 hashed bits for each id, as int64: splitmix64 of the id under a key of epoch and stream."""
    key = _scramble(base ^ (stream + 1))
    value = ids * _GOLDEN + (key - (1 << 64) if key >= 1 << 63 else key)
    value = (value ^ _shifted(value, 30)) * _FIRST
    value = (value ^ _shifted(value, 27)) * _SECOND
    return value ^ _shifted(value, 31)


def _shifted(value: Tensor, by: int) -> Tensor:
    """Return a logical shift to the right: torch's own is arithmetic."""
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
