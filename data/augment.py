"""Views of stored pictures on the training device: normalised crops with mirror images, shifts and lighting.

Every draw is a hash of (seed, epoch, sample id), and no generator has a state. A view thus depends neither on the batch
nor on the worker nor on the cell, and a resumed training needs only its position.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache
from typing import Any, Final, NamedTuple

import numpy as np
import torch
from torch import Tensor

from crelu_data.datasets import SPLITMIX64

_MASK = (1 << 64) - 1
# Streams of draws, one for each use.
_ROW, _COLUMN, _FLIP, _LIGHT = range(4)
_CROP, _OPERATION, _MIX = 16, 64, 96  # four for each try at a resized crop, two for each operation
ATTEMPTS = 10  # at a resized crop that fits, as torchvision makes them; then the largest that does
RATIOS = (3 / 4, 4 / 3)  # of width to height of a resized crop
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
    resized_crop: float = 0.0,
    rand_augment: int = 0,
    rand_magnitude: int = 9,
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """Return the training views (n, 3, crop, crop), channels last, of uint8 pictures (n, 3, h, w) with ids (n,).

    A view is a crop at a uniform position of the picture with a border of `shift` pixels in the mean colour, zero after
    normalisation. Half of the crops are mirrored, and all get Krizhevsky's lighting of standard deviation `lighting`
    (0: none). Colours are in 0..1; column k of `eigenvectors` belongs to eigenvalue k.

    With `resized_crop` a view is a part of at least this share of the picture, of another ratio, resized. Then
    `rand_augment` operations of RandAugment change it, each of `rand_magnitude`. ValueError where the crop is larger
    than the picture.
    """
    side = images.shape[2] + 2 * shift
    _check_crop(crop, side, images)
    base = _base(seed, epoch)
    mirrored = (_uniform(base, ids, _FLIP) < 0.5) if flip else torch.zeros_like(ids, dtype=torch.bool)
    light = _light(base, ids, lighting, eigenvalues, eigenvectors, std) if lighting else None
    top = _integers(base, ids, _ROW, side - crop + 1) - shift
    left = _integers(base, ids, _COLUMN, side - crop + 1) - shift
    if shift and rand_augment:
        colour = _constants(tuple(mean), images.device).mul(255).round().to(images.dtype)[:, None, None]
        bordered = colour.expand(len(images), 3, side, side).contiguous(memory_format=torch.channels_last)
        bordered[:, :, shift:-shift, shift:-shift] = images
        images = bordered
        top = top + shift
        left = left + shift
        shift = 0
    if resized_crop or rand_augment:
        cut = _cut(images, top, left, crop, mirrored)
        with _whole_products():
            if resized_crop:
                cut = _resized(images, _boxes(base, ids, images.shape[2], resized_crop), crop, mirrored)
            for number in range(rand_augment):
                cut = _changed(cut, base, ids, number, rand_magnitude)
        cut = _normalised(cut, mean, std)
    elif shift:
        cut = _cut(_normalised(images, mean, std, shift), top + shift, left + shift, crop, mirrored)
    else:
        cut = _normalised(_cut(images, top, left, crop, mirrored), mean, std)
    cut = cut.to(dtype)
    return cut if light is None else cut + light.to(dtype)[:, :, None, None]


@contextmanager
def _whole_products() -> Iterator[None]:
    """Let a GPU round no factor of a product to TF32, as a net may: a view is the same for all nets and at any time."""
    matmul = torch.backends.cuda.matmul
    precision = matmul.fp32_precision
    matmul.allow_tf32 = False
    try:
        yield
    finally:
        matmul.allow_tf32 = precision == "tf32"


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
    scale = _constants(tuple(1 / (255 * s) for s in std), images.device).repeat(width)
    offset = _constants(tuple(-m / s for m, s in zip(mean, std, strict=True)), images.device).repeat(width)
    result = (torch.zeros if border else torch.empty)(
        n, height + 2 * border, width + 2 * border, 3, device=images.device
    )
    inside = result[:, border : border + height, border : border + width]
    count = max(1, _PART // max(1, 12 * height * width)) if images.device.type == "cpu" else max(1, n)
    for first in range(0, n, count):
        part = inside[first : first + count].copy_(images[first : first + count].permute(0, 2, 3, 1))
        part.flatten(2).mul_(scale).add_(offset)
    return result.permute(0, 3, 1, 2)


@lru_cache(maxsize=256)
def _constants(values: tuple[Any, ...], device: torch.device, dtype: torch.dtype = torch.float32) -> Tensor:
    """Return numbers on a device, not to be changed, copied there once: a copy waits until a GPU has done its work."""
    with torch.inference_mode(False):
        return torch.tensor(values, dtype=dtype, device=device)


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


def mixing_shares(ids: Tensor, *, seed: int, epoch: int, alpha: float) -> Tensor:
    """Return each picture's share of its mixture (n,), from Beta(alpha, alpha), float32, for ids on the CPU."""
    from scipy.special import betaincinv

    uniform = _uniform(_base(seed, epoch), ids, _MIX).numpy()
    return torch.from_numpy(betaincinv(alpha, alpha, uniform)).float()


def mixed(values: Tensor, shares: Tensor) -> Tensor:
    """Return share x + (1 - share) y for each row x of `values` and y, the other of its pair: rows 0 and 1, 2 and 3.

    A last row without another stays as it is. Zhang et al. 2018, mixup.
    """
    partner = torch.arange(len(values), device=values.device) ^ 1
    partner[partner >= len(values)] -= 1
    share = shares.to(values).view(-1, *[1] * (values.dim() - 1))
    return share * values + (1 - share) * values[partner]


def _boxes(base: int, ids: Tensor, side: int, least: float) -> Tensor:
    """Return a part of a square picture for each id: top, left, height, width (4, n), int64.

    The first of ten tries that fits, each with an area of at least the share `least` and a ratio out of RATIOS, uniform
    in its logarithm; else the whole picture. It is torchvision's RandomResizedCrop.
    """
    box = torch.stack([torch.zeros_like(ids)] * 2 + [torch.full_like(ids, side)] * 2)
    for attempt in reversed(range(ATTEMPTS)):
        area, ratio, row, column = (_uniform(base, ids, _CROP + 4 * attempt + k) for k in range(4))
        area = side**2 * (least + (1 - least) * area)
        low, high = map(math.log, RATIOS)
        ratio = torch.exp(low + (high - low) * ratio)
        width, height = (torch.sqrt(area * ratio).round().long(), torch.sqrt(area / ratio).round().long())
        fits = (width >= 1) & (width <= side) & (height >= 1) & (height <= side)
        top, left = (row * (side - height + 1)).long(), (column * (side - width + 1)).long()
        box = torch.where(fits, torch.stack([top, left, height, width]), box)
    return box


def _resized(images: Tensor, boxes: Tensor, crop: int, mirrored: Tensor) -> Tensor:
    """Return the part of each picture in its box, resized to uint8 (n, 3, crop, crop), mirrored where that is set.

    Bilinear with antialiasing: the weights of rows and columns are matrices. On a CPU all sums are exact, because their
    terms have few bits; so a view depends neither on the order of a sum nor on the batch.
    """
    top, left, height, width = boxes
    rows = _filters(top, height, images.shape[2], crop, bits=14)
    columns = _filters(left, width, images.shape[3], crop, bits=11)
    columns = torch.where(mirrored[:, None, None], columns.flip(1), columns)
    values = _rounded(rows[:, None] @ images.to(rows.dtype), bits=4) @ columns[:, None].transpose(2, 3)
    return values.round_().clamp_(0, 255).to(torch.uint8).contiguous(memory_format=torch.channels_last)


def _filters(first: Tensor, length: Tensor, side: int, crop: int, bits: int) -> Tensor:
    """Return the weights (n, crop, side) by which `crop` points are taken of `length` pixels from `first` on."""
    scale = (length.double() / crop)[:, None, None]
    centre = (torch.arange(crop, device=first.device).double() + 0.5)[None, :, None] * scale
    place = torch.arange(side, device=first.device)[None, None, :] - first[:, None, None]
    weights = (1 - (place + 0.5 - centre).abs() / scale.clamp(min=1)).clamp_(min=0)
    weights *= (place >= 0) & (place < length[:, None, None])
    return _rounded(weights / weights.sum(2, keepdim=True), bits).float()


def _rounded(values: Tensor, bits: int) -> Tensor:
    """Return values rounded to so many bits behind the point."""
    return values.mul_(1 << bits).round_().div_(1 << bits)


def _changed(images: Tensor, base: int, ids: Tensor, number: int, magnitude: int) -> Tensor:
    """Return uint8 pictures, each changed by an operation of RandAugment, of either sign where it has one."""
    chosen = _integers(base, ids, _OPERATION + 2 * number, len(OPERATIONS))
    negative = _uniform(base, ids, _OPERATION + 2 * number + 1) < 0.5
    result = images.clone()
    for place, (name, operation) in enumerate(OPERATIONS.items()):
        for sign in (1, -1) if operation.is_signed else (0,):
            (rows,) = ((chosen == place) & ((negative == (sign < 0)) | (sign == 0))).nonzero(as_tuple=True)
            if len(rows):
                result[rows] = apply_operation(name, images[rows], (sign or 1) * magnitude)
    return result


class Operation(NamedTuple):
    """Operation of RandAugment: its strongest magnitude, and whether it is taken of either sign."""

    strongest: float
    is_signed: bool


OPERATIONS: Final = {
    "Identity": Operation(0, False),
    "ShearX": Operation(0.3, True),
    "ShearY": Operation(0.3, True),
    "TranslateX": Operation(150 / 331, True),
    "TranslateY": Operation(150 / 331, True),
    "Rotate": Operation(30, True),
    "Brightness": Operation(0.9, True),
    "Color": Operation(0.9, True),
    "Contrast": Operation(0.9, True),
    "Sharpness": Operation(0.9, True),
    "Posterize": Operation(4, False),
    "Solarize": Operation(255, False),
    "AutoContrast": Operation(0, False),
    "Equalize": Operation(0, False),
}


def apply_operation(name: str, images: Tensor, magnitude: int) -> Tensor:
    """Return uint8 pictures (n, 3, h, w) changed by an operation of RandAugment, by torchvision's functions.

    A magnitude is -30 to 30. Corners that a picture leaves are black. Cubuk et al. 2020.
    """
    from torchvision.transforms.v2 import functional  # a second to load: by recipes with RandAugment alone

    value = OPERATIONS[name].strongest * magnitude / 30
    adjustments = {
        "Brightness": functional.adjust_brightness,
        "Color": functional.adjust_saturation,
        "Contrast": functional.adjust_contrast,
        "Sharpness": functional.adjust_sharpness,
    }
    plain = {"AutoContrast": functional.autocontrast, "Equalize": functional.equalize, "Identity": torch.clone}
    if name in adjustments:
        changed = adjustments[name](images, 1 + value)
    elif name in plain:
        changed = plain[name](images)
    elif name == "Posterize":
        changed = functional.posterize(images, 8 - round(value))
    elif name == "Solarize":
        changed = functional.solarize(images, 255 - value)
    elif name == "Rotate":
        changed = functional.rotate(images, value)
    else:
        along = [0, 1] if name.endswith("Y") else [1, 0]
        shears = name.startswith("Shear")
        changed = functional.affine(
            images, angle=0.0, scale=1.0, center=[0, 0] if shears else None,
            translate=[0, 0] if shears else [int(value * images.shape[3]) * part for part in along],
            shear=[math.degrees(math.atan(value)) * part for part in along] if shears else [0.0, 0.0],
        )  # fmt: skip
    result: Tensor = changed
    return result


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
    values = _constants(tuple(math.sqrt(value) for value in eigenvalues), ids.device, torch.float64)
    vectors = _constants(tuple(map(tuple, eigenvectors)), ids.device, torch.float64)
    scale = _constants(tuple(std), ids.device, torch.float64)
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
