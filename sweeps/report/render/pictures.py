"""Pictures of a page, made small enough for it."""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from typing import Final

from PIL import Image

# Longest side in pixels and WebP's quality, from hardly to clearly worse than the picture on the ledger.
STEPS: Final = ((1000, 70), (800, 60), (640, 50), (480, 40), (360, 30), (240, 20))
PIXELS: Final = 30_000_000  # of a picture that is opened: a small file may say that it has any number


def fitted(pictures: Sequence[bytes], room: int) -> list[bytes | None]:
    """Return pictures of together `room` bytes at most: as they are, else smaller, None in place of the last of them.

    A picture that cannot be read is None too, where it would have to be made smaller.
    """
    if sum(map(len, pictures)) <= room:
        return list(pictures)
    images = [_opened(picture) for picture in pictures]
    smaller: list[bytes | None] = []
    for side, quality in STEPS:
        smaller = [_encoded(image, side, quality) if image is not None else None for image in images]
        if sum(len(picture or b"") for picture in smaller) <= room:
            return smaller
    fitting: list[bytes | None] = []
    for picture in smaller:
        room -= len(picture or b"")
        fitting.append(picture if room >= 0 else None)
    return fitting


def kind(picture: bytes) -> str:
    """Return the type of an encoded picture, as a page names it."""
    return "image/webp" if picture.startswith(b"RIFF") else "image/png"


def _opened(picture: bytes) -> Image.Image | None:
    """Return the pixels of a picture, no larger than the first step."""
    try:
        opened = Image.open(io.BytesIO(picture))
        if math.prod(opened.size) > PIXELS:
            return None
        image = opened.convert("RGB")
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
        return None
    image.thumbnail((STEPS[0][0], STEPS[0][0]))
    return image


def _encoded(image: Image.Image, side: int, quality: int) -> bytes:
    smaller, sink = image.copy(), io.BytesIO()
    smaller.thumbnail((side, side))
    smaller.save(sink, "WEBP", quality=quality, method=2)
    return sink.getvalue()
