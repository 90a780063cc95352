"""Pictures of a page keep within their bytes, and stay what they show."""

import io

import numpy as np
from PIL import Image

from sweeps.report.render.pictures import fitted


def png(pixels: np.ndarray) -> bytes:  # type: ignore[type-arg]
    sink = io.BytesIO()
    Image.fromarray(pixels).save(sink, "PNG")
    return sink.getvalue()


def chart(side: int = 200) -> bytes:
    """Return a picture of few colours, as a chart is."""
    pixels = np.full((side, side, 3), 255, np.uint8)
    pixels[20:80, 20:60] = (31, 111, 139)
    return png(pixels)


def photograph(seed: int = 0, side: int = 320) -> bytes:
    """Return a picture of many colours: smooth ones with some noise."""
    rng = np.random.default_rng(seed)
    slope = np.linspace(0, 200, side)[:, None, None] + np.linspace(0, 40, side)[None, :, None]
    return png(np.uint8(np.clip(slope + rng.normal(0, 6, (side, side, 3)), 0, 255)))


def shown(content: bytes) -> np.ndarray:  # type: ignore[type-arg]
    with Image.open(io.BytesIO(content)) as picture:
        return np.asarray(picture.convert("RGB"), np.float64)


def test_what_fits_stays_as_it_is() -> None:
    pictures = [chart(), photograph()]
    assert fitted(pictures, sum(map(len, pictures))) == pictures
    assert fitted([], 10) == []


def test_together_they_keep_to_the_budget_and_small_ones_stay_sharp() -> None:
    pictures = [chart(), photograph(0), photograph(1), photograph(2)]
    budget = len(chart()) + 30_000
    assert sum(map(len, pictures)) > 10 * budget
    small = fitted(pictures, budget)
    assert sum(map(len, small)) <= budget
    # The chart takes little: it keeps its size and its colours.
    assert np.array_equal(shown(small[0]), shown(chart()))
    # The photographs share the rest: as large as they can be, and the same picture.
    assert all(len(content) > 3_000 for content in small[1:])
    for before, after in zip(pictures[1:], small[1:], strict=True):
        assert abs(shown(before).mean() - shown(after).mean()) < 2
        assert shown(after).shape[0] >= 160


def test_equal_pictures_give_equal_bytes() -> None:
    pictures = [photograph(0), photograph(1)]
    assert fitted(pictures, 20_000) == fitted(pictures, 20_000)
