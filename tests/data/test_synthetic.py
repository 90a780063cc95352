"""The embedded pictures: the same for the same arguments, natural in their statistics, and classes one can tell."""

import hashlib
import subprocess
import sys
from collections.abc import Iterable

import numpy as np
import pytest

from crelu_data.synthetic import FAMILIES, class_name, picture


def grey(indices: Iterable[int], label: int | None, size: int, seed: int = 0) -> np.ndarray:
    """Return pictures (n, size, size) as grey float64, of one class or of all in turn."""
    return np.stack(
        [picture(seed, i, i % 10 if label is None else label, size, 10).astype(float).mean(2) for i in indices]
    )


@pytest.mark.parametrize("size", [16, 32, 72, 101])
def test_pictures_are_square_colours_of_the_asked_size(size: int) -> None:
    drawn = picture(0, 5, 3, size, 10)
    assert (drawn.shape, drawn.dtype) == ((size, size, 3), np.uint8)
    assert drawn.std() > 10


def test_another_process_draws_the_same_pictures() -> None:
    code = (
        "import hashlib; from crelu_data.synthetic import picture;"
        "print(hashlib.sha256(b''.join(picture(7, i, i % 12, 32, 12).tobytes() for i in range(12))).hexdigest())"
    )
    other = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip()
    here = hashlib.sha256(b"".join(picture(7, i, i % 12, 32, 12).tobytes() for i in range(12))).hexdigest()
    assert here == other


def test_seed_index_and_label_each_change_the_picture() -> None:
    drawn = {picture(seed, i, label, 32, 10).tobytes() for seed in (0, 1) for i in (0, 1, 1 << 40) for label in (0, 4)}
    assert len(drawn) == 12


@pytest.mark.parametrize(("label", "size"), [(10, 32), (-1, 32), (0, 15)])
def test_impossible_pictures_are_refused(label: int, size: int) -> None:
    with pytest.raises(ValueError, match="label"):
        picture(0, 0, label, size, 10)


def test_statistics_are_those_of_photographs() -> None:
    """Power falls about as frequency**-2 (Field 1987), differences of neighbours have heavy tails, and colour
    varies most along luminance.
    """
    scenes = grey(range(200), None, 64)
    window = np.hanning(64)[:, None] * np.hanning(64)
    power = (np.abs(np.fft.fft2((scenes - scenes.mean((1, 2), keepdims=True)) * window)) ** 2).mean(0)
    frequency = np.hypot(*np.meshgrid(np.fft.fftfreq(64) * 64, np.fft.fftfreq(64) * 64)).round().astype(int)
    radial = np.bincount(frequency.ravel(), power.ravel()) / np.bincount(frequency.ravel())
    k = np.arange(2, 30)
    assert -3 < np.polyfit(np.log(k), np.log(radial[k]), 1)[0] < -1.5
    steps = np.diff(scenes, axis=2).ravel()
    assert ((steps - steps.mean()) ** 4).mean() / steps.var() ** 2 > 6  # 3 for Gaussian noise
    colours = np.stack([picture(0, i, i % 10, 32, 10) for i in range(100)]).reshape(-1, 3) / 255
    values, vectors = np.linalg.eigh(np.cov(colours.T))
    assert values[-1] > 4 * values[-2]
    assert np.abs(vectors[:, -1]).min() > 0.5


def test_lying_and_standing_bars_are_told_apart_by_their_differences() -> None:
    for label, lies in ((0, True), (1, False)):
        scenes = grey(range(60), label, 32)
        down, across = (np.abs(np.diff(scenes, axis=axis)).mean((1, 2)) for axis in (1, 2))
        assert ((down > across) == lies).mean() > 0.9


def test_polarity_is_fair_within_a_class() -> None:
    """Spots are bright on dark as often as dark on bright: the skewness around the local mean has either sign."""
    scenes = grey(range(300), FAMILIES.index("spots"), 64)
    local = np.lib.stride_tricks.sliding_window_view(scenes, (9, 9), axis=(1, 2)).mean((3, 4))
    detail = scenes[:, 4:-4, 4:-4] - local
    skewness = (detail**3).mean((1, 2)) / (detail**2).mean((1, 2)) ** 1.5
    assert 0.4 < (skewness > 0).mean() < 0.6
    assert np.abs(skewness).mean() > 0.2


def test_classes_have_names_of_their_own() -> None:
    assert len({class_name(label) for label in range(35)}) == 35
