"""Synthetic pictures with natural statistics, of any size and count, without a download.

A picture is a dead-leaves scene (Lee, Mumford & Huang 2001): opaque shapes with power-law radii that hide each other.
It has the edges, the scale invariance and the falling spectrum of photographs. Its class is the texture of some shapes;
others are plain or have another class's texture. Phase, colours, contrast, scale and polarity (which of two colours is
the figure) are drawn for every shape, so that responses to both signs of a filter, as in CReLU, are of use.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]

# Textures; with more classes than textures the period distinguishes them too.
FAMILIES = ("bars", "posts", "slants", "checks", "spots", "rings", "rays", "mosaic", "hairlines", "ripples")
_LEAVES = 20
_TAU = np.float32(2 * np.pi)
# The colours of photographs vary most along luminance, then blue-yellow, then red-green.
_AXES = np.array([[0.58, 0.58, 0.57], [-0.67, -0.06, 0.74], [0.46, -0.81, 0.36]], np.float32)
_SPREAD = np.array([0.30, 0.10, 0.05], np.float32)


class _Leaves(NamedTuple):
    """Shapes of a picture, nearest first; arrays of `_LEAVES` numbers, lengths in picture sides."""

    x: Floats
    y: Floats
    radius: Floats
    aspect: Floats
    turn: Floats
    kind: NDArray[np.int64]


def picture(
    seed: int, index: int, label: int, size: int, classes: int, clutter: int = 45, contrast: int = 15
) -> NDArray[np.uint8]:
    """Draw picture `index` of a set, uint8 (size, size, 3); equal arguments give equal pictures.

    Up to `clutter` percent of a picture lack its class's texture; `contrast`, in percent, is that of the faintest
    shapes. Less clutter and more contrast make the classes easier to learn.

    Another version of NumPy or another type of processor may round a pixel differently, which changes the fingerprint.
    ValueError for a label outside 0..classes-1 or a side under 16 pixels.
    """
    if not 0 <= label < classes or size < 16:
        raise ValueError(f"label {label} must be in 0..{classes - 1} and side {size} be 16 or more")
    rng = np.random.Generator(np.random.SFC64([seed, index]))
    grid: Floats = (np.arange(size, dtype=np.float32) + np.float32(0.5)) / np.float32(size)
    leaves = _scatter(rng)
    front = _front(leaves, grid)
    role = _roles(rng, front, clutter / 100)
    figure = _texture(rng, leaves, front, grid, label, classes)
    other = _texture(rng, leaves, front, grid, int(rng.integers(classes)), classes)
    tone = np.where((role == 0)[front], figure, np.where((role == 1)[front], other, 0))
    return _paint(rng, front, tone, grid, contrast / 100)


def class_name(label: int) -> str:
    """Return a class's name: its texture, and from the eleventh class on its band of periods."""
    band, family = divmod(label, len(FAMILIES))
    return f"{FAMILIES[family]}-{band + 1}" if band else FAMILIES[family]


def _scatter(rng: np.random.Generator) -> _Leaves:
    """Draw the shapes; their radii have density r**-3, which is scale invariant."""
    share, x, y, turn, aspect = rng.random((5, _LEAVES), np.float32)
    radius = 1 / np.sqrt(share / 0.5**2 + (1 - share) / 0.17**2)
    return _Leaves(x, y, radius, np.exp(aspect - 0.5), turn * _TAU, rng.integers(0, 3, _LEAVES))


def _front(leaves: _Leaves, grid: Floats) -> NDArray[np.intp]:
    """Return the visible shape at each pixel, (h, w): ellipses, boxes and diamonds; the last shape is the ground."""
    dx, dy = grid[None, :] - leaves.x[:, None], grid[None, :] - leaves.y[:, None]
    c, s = np.cos(leaves.turn)[:, None], np.sin(leaves.turn)[:, None]
    a, b = (leaves.radius * leaves.aspect)[:, None], (leaves.radius / leaves.aspect)[:, None]
    u = np.abs((c * dx / a)[:, None, :] + (s * dy / a)[:, :, None])
    v = np.abs((-s * dx / b)[:, None, :] + (c * dy / b)[:, :, None])
    inside = np.empty(u.shape, bool)
    for kind, radius in enumerate((_ellipse, _box, _diamond)):
        selected = leaves.kind == kind
        inside[selected] = radius(u[selected], v[selected]) < 1
    inside[-1] = True
    front: NDArray[np.intp] = inside.argmax(0)
    return front


def _ellipse(u: Floats, v: Floats) -> Floats:
    return u * u + v * v


def _box(u: Floats, v: Floats) -> Floats:
    return np.maximum(u, v) * np.float32(1.13)


def _diamond(u: Floats, v: Floats) -> Floats:
    return (u + v) * np.float32(0.8)


def _roles(rng: np.random.Generator, front: NDArray[np.intp], clutter: float) -> NDArray[np.int64]:
    """Return the role of each shape, by visible area: 0 has the class's texture, 1 another one, 2 none."""
    area = np.bincount(front.ravel(), minlength=_LEAVES) / front.size
    shuffled = rng.permutation(_LEAVES)
    before = np.cumsum(area[shuffled]) - area[shuffled]
    other = clutter * 2 / 9
    share = rng.uniform(1 - clutter, 1 - other)
    role = np.empty(_LEAVES, np.int64)
    role[shuffled] = np.searchsorted([share, share + other], before, side="right")
    return role


def _texture(
    rng: np.random.Generator, leaves: _Leaves, front: NDArray[np.intp], grid: Floats, label: int, classes: int
) -> Floats:
    """Return the texture of class `label` in -1..1 at each pixel, (h, w), with new parameters for each shape."""
    family, variant = label % len(FAMILIES), label // len(FAMILIES)
    scale, jitter, side, sign, du, dv = rng.random((6, _LEAVES), np.float32)
    bands = -(-classes // len(FAMILIES))
    period = np.float32(0.11) * np.float32(0.2 / 0.11) ** ((variant + scale) / bands)
    mean, spread = _TURN[family]
    turn = np.where(side < 0.5, 1, -1) * (mean + spread * (jitter - 0.5))
    c, s = (np.cos(turn) / period).astype(np.float32), (np.sin(turn) / period).astype(np.float32)
    u0, v0 = du - c * leaves.x - s * leaves.y, dv + s * leaves.x - c * leaves.y
    x, y = grid[None, :], grid[:, None]
    cos, sin = c[front], s[front]
    value = _wave(FAMILIES[family], cos * x + sin * y + u0[front], cos * y - sin * x + v0[front], rng)
    return value * np.where(sign < 0.5, np.float32(-1), np.float32(1))[front]


# Mean turn and its spread in radians: bars are horizontal, vertical or slanted (to either side, so that a mirrored
# picture keeps its class); all others are turned at random.
_TURN = ((0.0, 0.4), (np.pi / 2, 0.4), (np.pi / 4, 0.4), *((0.0, 2 * np.pi),) * 7)


def _wave(family: str, u: Floats, v: Floats, rng: np.random.Generator) -> Floats:
    """Return a texture in -1..1 at coordinates in periods."""
    value: Floats
    if family == "checks":
        value = np.tanh(4 * np.sin(_TAU * u) * np.sin(_TAU * v))
    elif family == "spots":
        value = np.tanh(3 * (np.cos(_TAU * u) + np.cos(_TAU * v) - 0.7))
    elif family == "rings":
        value = np.sin(_TAU * np.sqrt(u * u + v * v))
    elif family == "rays":
        value = np.sin(9 * np.arctan2(v, u))
    elif family == "mosaic":
        tiles = rng.uniform(-1, 1, (32, 32)).astype(np.float32)
        value = tiles[np.floor(2 * u).astype(np.intp) & 31, np.floor(2 * v).astype(np.intp) & 31]
    elif family == "hairlines":
        value = np.tanh(5 * (np.cos(_TAU * v) - 0.8)) * np.float32(0.6) + np.float32(0.4)
    elif family == "ripples":
        value = np.sin(_TAU * (v + np.float32(0.35) * np.sin(np.float32(np.pi) * u)))
    else:  # bars, posts, slants
        value = np.sin(_TAU * v)
    return value


def _paint(
    rng: np.random.Generator, front: NDArray[np.intp], tone: Floats, grid: Floats, contrast: float
) -> NDArray[np.uint8]:
    """Return the picture uint8 (h, w, 3): coloured shapes, light from one side, camera noise."""
    base = 0.46 + (rng.standard_normal((_LEAVES, 3), np.float32) * _SPREAD) @ _AXES
    swing = (rng.standard_normal((_LEAVES, 3), np.float32) * np.float32(0.35) + [1, 0, 0]) @ _AXES
    depth = contrast * 2.5 ** rng.random((_LEAVES, 1), np.float32)
    colour = base.astype(np.float32)[front]
    colour += (swing * depth).astype(np.float32)[front] * tone[:, :, None]
    slope = rng.uniform(-0.25, 0.25, 2).astype(np.float32)
    light = (1 + slope[0] * (grid - 0.5))[:, None] + slope[1] * (grid - 0.5)
    colour *= light[:, :, None]
    colour += rng.standard_normal(colour.shape, np.float32) * np.float32(0.03)
    return (np.clip(colour, 0, 1) * 255 + 0.5).astype(np.uint8)
