"""The inverse of a conv with CReLU behind it, without its matrix: Algorithm 1 of the paper.

A layer gives y = CReLU(A x + b) with A x = conv2d(x, w, stride, padding). CReLU keeps both phases, so that
z = y[:k] - y[k:] - b = A x exactly, and

    x' = A^+ z      the projection of x on the rows of A (Proposition 2.1):  |x - x'|^2 + |x'|^2 = |x|^2

by conjugate gradients on the normal equations (CGLS) from 0, which needs A and A^T only as convolutions: for conv1 at
224 pixels the matrix would have 279,936 x 150,528 numbers.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

TOLERANCE = 1e-12  # of |A^T r| against |A^T z|, where CGLS has converged


def unrectified(y: Tensor) -> Tensor:
    """Return x of CReLU(x) = y (n, 2k, h, w): y[:k] - y[k:], exact."""
    positive, negative = y.chunk(2, 1)
    return positive - negative


def transposed(z: Tensor, weight: Tensor, stride: int, pad: int, size: int) -> Tensor:
    """Return A^T z for z (n, k, h', w') and A x = conv2d(x, weight, stride, pad) on x (n, c, size, size).

    The output padding gives back the rows and columns beyond the last window, which conv2d never reads.
    """
    kernel = weight.shape[2]
    beyond = size - ((z.shape[2] - 1) * stride - 2 * pad + kernel)
    return functional.conv_transpose2d(z, weight, stride=stride, padding=pad, output_padding=beyond)


def cgls(
    z: Tensor, weight: Tensor, stride: int, pad: int, size: int, limits: Sequence[int], tolerance: float = TOLERANCE
) -> list[Tensor]:
    """Return argmin |A x - z| of least norm, x (n, c, size, size), after each of `limits` iterations (ascending).

    CGLS (Björck 1996) for A x = conv2d(x, weight, stride, pad), z (n, k, h', w'), each picture with its own steps; a
    picture stops where |A^T (z - A x)| <= tolerance |A^T z|. Scalars are float64 whatever the tensors are.
    """
    r = z.clone()
    s = transposed(r, weight, stride, pad, size)
    x = torch.zeros_like(s)
    p = s.clone()
    gamma = squared(s)
    enough = tolerance**2 * gamma
    solutions = []
    for step in range(1, limits[-1] + 1):
        going = gamma > enough
        if not going.any():
            break
        q = functional.conv2d(p, weight, stride=stride, padding=pad)
        along = squared(q)
        alpha = each(torch.where(going & (along > 0), gamma / along, 0.0), x)
        x += alpha * p
        r -= alpha * q
        s = transposed(r, weight, stride, pad, size)
        gamma, before = torch.where(going, squared(s), gamma), gamma
        p = s + each(torch.where(going, gamma / before, 0.0), x) * p
        if step in limits:
            solutions.append(x.clone())
    return solutions + [x] * (len(limits) - len(solutions))


def inverted(z: Tensor, weight: Tensor, stride: int, pad: int, size: int, limits: Sequence[int]) -> list[Tensor]:
    """Return A^+ z (n, c, size, size) as CGLS has it after each of `limits` iterations.

    A 1x1 conv at stride 1 needs no iteration: its pseudoinverse is that of its k x c matrix at every place.
    """
    if weight.shape[2] == stride == 1 and pad == 0:
        exact = torch.einsum("ck,nkhw->nchw", torch.linalg.pinv(weight[:, :, 0, 0]), z)
        return [exact for _ in limits]
    return cgls(z, weight, stride, pad, size, limits)


def ratio(x: Tensor, reconstructed: Tensor) -> Tensor:
    """Return |x - x'| / |x| of each picture (n,), float64."""
    return (squared(x - reconstructed) / squared(x)).sqrt()


def squared(x: Tensor) -> Tensor:
    """Return |x|^2 of each picture (n,), float64."""
    return x.double().square().flatten(1).sum(1)


def each(factor: Tensor, x: Tensor) -> Tensor:
    """Return a factor for each picture (n,) in the shape and type of pictures."""
    return factor.to(x.dtype)[:, None, None, None]


class Step(NamedTuple):
    """One conv with CReLU behind it: weight (k, c, h, w), bias (k,), and the side of the map that it reads."""

    name: str
    weight: Tensor
    bias: Tensor
    stride: int
    pad: int
    size: int


def back(features: Tensor, steps: Sequence[Step], limit: int) -> Tensor:
    """Return the picture reconstructed from `features` (n, c, s, s), the input of the row behind `steps`.

    The paper's plain chain: undo CReLU, subtract the bias, invert the conv by at most `limit` iterations.
    """
    for step in reversed(steps):
        z = unrectified(features) - step.bias[:, None, None]
        features = inverted(z, step.weight, step.stride, step.pad, step.size, [limit])[0]
    return features


class Likeness(NamedTuple):
    """How near x' comes to x (n, c, h, w), each (n,): cosine, the scale that fits it best, PSNR in dB at that scale."""

    cosine: Tensor
    scale: Tensor
    psnr: Tensor


def likeness(x: Tensor, reconstructed: Tensor, std: Tensor) -> Likeness:
    """Compare pictures as a net reads them; `std` (3, 1, 1) brings them to pixels of 0..1 for the PSNR."""
    inner = (x.double() * reconstructed.double()).flatten(1).sum(1)
    size = squared(reconstructed)
    scale = torch.where(size > 0, inner / size, 0.0)
    error = ((x - each(scale, x) * reconstructed) * std.to(x)).double().square().flatten(1).mean(1)
    return Likeness(inner / (size * squared(x)).sqrt(), scale, -10 * error.log10())
