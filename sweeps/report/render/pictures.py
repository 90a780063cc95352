"""Pictures of a page within a number of bytes: fewer colours, then smaller sides; the full ones lie elsewhere."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Final

COLOURS: Final = 64  # of a chart: two hues, their mixtures with white, and grey
QUALITY: Final = 80  # of JPEG, for photographs
SIDES: Final = (1.0, 0.75, 0.5, 0.35, 0.25)  # of the full ones


def fitted(pictures: Sequence[bytes], budget: int) -> list[bytes]:
    """Return pictures, PNG, as PNG or JPEG of `budget` bytes together; those that take little keep all they need."""
    if sum(map(len, pictures)) <= budget:
        return list(pictures)
    reduced = [_least(content, 1.0) for content in pictures]
    share = _share([len(content) for content in reduced], budget)
    return [
        content if len(content) <= share else _within(full, share)
        for full, content in zip(pictures, reduced, strict=True)
    ]


def _share(sizes: Sequence[int], budget: int) -> float:
    """Return the most bytes of a picture so that all pictures, cut to it, take the budget."""
    remaining, share = float(budget), float("inf")
    for place, size in enumerate(sorted(sizes)):
        share = remaining / (len(sizes) - place)
        if size > share:
            return share
        remaining -= size
    return max(share, max(sizes))


def _within(content: bytes, most: float) -> bytes:
    """Return a picture of at most `most` bytes; the smallest where none is."""
    smallest = content
    for side in SIDES[1:]:
        smallest = _least(content, side)
        if len(smallest) <= most:
            break
    return smallest


def _least(content: bytes, side: float) -> bytes:
    """Return a picture with its sides times `side`, as what takes fewer bytes: PNG of few colours, JPEG, or itself."""
    from PIL import Image

    with Image.open(io.BytesIO(content)) as opened:
        picture = opened.convert("RGB")
    if side != 1:
        size = (max(1, round(picture.width * side)), max(1, round(picture.height * side)))
        picture = picture.resize(size, Image.Resampling.LANCZOS)
    png, jpeg = io.BytesIO(), io.BytesIO()
    picture.quantize(COLOURS, dither=Image.Dither.NONE).save(png, "PNG", optimize=True)
    picture.save(jpeg, "JPEG", quality=QUALITY, optimize=True)
    forms = [png.getvalue(), jpeg.getvalue()] + ([content] if side == 1 else [])
    return min(forms, key=len)
