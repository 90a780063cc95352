"""Pictures in any mode that Pillow opens, as the square of 8-bit colours that is stored.

One rule a mode, so that no picture is stretched by itself and a brighter picture stays the brighter one:

    16 bits    divided by 257: 65,535 is white (of 12 bits in a TIFF 4,095)
    floats     1 is white; numbers outside 0..1 are refused
    32 bits    refused, for they have no stated white
    alpha      composed on GROUND, a grey on which black shapes and white ones are seen

A picture that these rules turn into a single colour is refused too. More than 8 bits a channel of a colour picture are
cut to the upper 8 by Pillow itself.
"""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from PIL import Image

Picture = NDArray[np.uint8]

GROUND = (128, 128, 128)
_LONGEST = 4  # times the shorter side: more is cut off before a picture is resized
_BITS = 258  # tags of TIFF: bits per sample, and whether white is 0
_PHOTOMETRIC = 262


def square(path: str, size: int, upright: bool) -> Picture:
    """Return the centre square of a picture (size, size, 3), after its shorter side is resized to `size` pixels.

    `upright` turns it as its EXIF orientation says. ValueError where no rule of this module applies to its numbers.
    """
    from PIL import Image, ImageOps

    with warnings.catch_warnings(action="ignore"), Image.open(path) as opened:  # unusual EXIF and palettes
        opened.draft("RGB", (2 * size, 2 * size))  # libjpeg skips detail that resizing would average away
        white = _white(opened)
        inverted = _tag(opened, _PHOTOMETRIC) == 0
        picture = _shortened(ImageOps.exif_transpose(opened) if upright else opened)
        if white:
            picture = _eight_bits(picture, white, inverted)
        picture = _composed(picture) if picture.has_transparency_data else picture.convert("RGB")
        wide, high = picture.size
        scale = size / min(wide, high)
        if scale != 1:
            wide, high = max(size, round(wide * scale)), max(size, round(high * scale))
            picture = picture.resize((wide, high), Image.Resampling.BICUBIC)
        left, top = (wide - size) // 2, (high - size) // 2
        return np.asarray(picture.crop((left, top, left + size, top + size)))


def brightest(path: str) -> float:
    """Return the largest number of a grey picture of more than 8 bits as a share of white; 0 for any other picture."""
    from PIL import Image

    try:
        with warnings.catch_warnings(action="ignore"), Image.open(path) as opened:
            white = _white(opened)
            return float(np.asarray(opened).max()) / white if white else 0.0
    except Exception:  # writing will name the unreadable picture
        return 0.0


def _shortened(picture: Image.Image) -> Image.Image:
    """Return the middle of a thin picture, which enlarged as a whole would fill the memory."""
    wide, high = picture.size
    longest = _LONGEST * min(wide, high)
    if max(wide, high) <= longest:
        return picture
    left, top = max(0, wide - longest) // 2, max(0, high - longest) // 2
    return picture.crop((left, top, left + min(wide, longest), top + min(high, longest)))


def _white(picture: Image.Image) -> float:
    """Return the number that is white in a grey picture of more than 8 bits; 0 for any other picture."""
    if picture.mode == "F":
        return 1.0
    if picture.mode.startswith("I;16"):
        bits = _tag(picture, _BITS)
        return float(2 ** (bits[0] if isinstance(bits, tuple) else 16) - 1)
    if picture.mode == "I":
        if picture.format not in ("PPM", "PNG"):  # Pillow brings those to 0..65,535
            raise ValueError("its numbers of 32 bits have no stated white: save it with 8 or 16 bits")
        return 65535.0
    return 0.0


def _tag(picture: Image.Image, number: int) -> object:
    """Return the value of a tag of a TIFF, None for another picture."""
    tags = getattr(picture, "tag_v2", {}) if picture.format == "TIFF" else {}
    return tags.get(number)


def _eight_bits(picture: Image.Image, white: float, inverted: bool) -> Image.Image:
    """Return a grey picture of more than 8 bits with 8, and the colour that it declares transparent as alpha."""
    from PIL import Image

    numbers = np.asarray(picture)
    low, high = float(numbers.min()), float(numbers.max())
    if not 0 <= low <= high <= white:  # nan is refused too
        raise ValueError(f"its numbers {low:g} to {high:g} do not lie in 0 to {white:g}: save it with 8 or 16 bits")
    grey = np.rint(numbers * (255 / white)).astype(np.uint8)
    if low < high and grey.min() == grey.max():
        raise ValueError(f"its numbers {low:g} to {high:g} of 0 to {white:g} are one grey of 8 bits: stretch them")
    result = Image.fromarray(255 - grey if inverted else grey)
    clear = picture.info.get("transparency")
    if isinstance(clear, int):
        result = Image.merge("LA", (result, Image.fromarray(np.where(numbers == clear, 0, 255).astype(np.uint8))))
    return result


def _composed(picture: Image.Image) -> Image.Image:
    """Return a picture with alpha on the ground; ValueError where nothing of it is seen there."""
    from PIL import Image

    layers = picture.convert("RGBA")
    ground = Image.new("RGBA", layers.size, (*GROUND, 255))
    ground.alpha_composite(layers)
    composed = ground.convert("RGB")
    if _is_one_colour(composed) and not _is_one_colour(layers):
        raise ValueError(f"its alpha leaves one colour on the ground {GROUND}: save it without alpha")
    return composed


def _is_one_colour(picture: Image.Image) -> bool:
    pixels = np.asarray(picture)
    return bool((pixels == pixels[0, 0]).all())
