"""Pictures of every mode: scaled or composed by one rule each so that a ramp stays a ramp, or refused by name."""

import struct
import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, PngImagePlugin

from crelu_data.pixels import GROUND, square
from crelu_data.write import prepare

SIDE = 64


def ramp(low: float, high: float, kind: type = np.uint16) -> np.ndarray:
    """Return numbers (SIDE, SIDE) that rise from left to right."""
    return np.tile(np.linspace(low, high, SIDE), (SIDE, 1)).astype(kind)


def grey(path: Path) -> np.ndarray:
    """Return the first row of a stored picture, whose channels have to be equal."""
    pixels = square(str(path), SIDE, upright=True)
    assert pixels.shape == (SIDE, SIDE, 3)
    assert (pixels == pixels[..., :1]).all()
    return pixels[0, :, 0].astype(int)


@pytest.mark.parametrize(
    ("name", "low", "high"),
    [("dark.png", 300, 20_000), ("bright.png", 30_000, 65_000), ("all.tif", 0, 65_535), ("some.pgm", 0, 9_000),
     ("wavelets.jp2", 0, 65_535)],
)  # fmt: skip
def test_16_bits_are_divided_by_257(name: str, low: int, high: int, tmp_path: Path) -> None:
    numbers = ramp(low, high)
    options = {"irreversible": False} if name.endswith("jp2") else {}
    Image.fromarray(numbers).save(tmp_path / name, **options)
    np.testing.assert_allclose(grey(tmp_path / name), numbers[0] / 257, atol=0.5 + 1e-9)


def test_white_of_12_bits_is_4095(tmp_path: Path) -> None:
    (tmp_path / "map.pgm").write_bytes(b"P5 64 64 4095\n" + ramp(0, 4095).astype(">u2").tobytes())
    np.testing.assert_allclose(grey(tmp_path / "map.pgm"), ramp(0, 4095)[0] / 4095 * 255, atol=1)
    numbers = ramp(0, 4095).astype(int)
    first, second = numbers[:, ::2], numbers[:, 1::2]  # two numbers in three bytes
    packed = np.stack([first >> 4, (first & 15) << 4 | second >> 8, second & 255], -1).astype(np.uint8).tobytes()
    size = len(packed)
    entries = ((256, SIDE), (257, SIDE), (258, 12), (259, 1), (262, 1), (273, 8), (277, 1), (278, SIDE), (279, size))
    tags = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in entries)
    head = b"II*\0" + struct.pack("<I", 8 + size)
    (tmp_path / "deep.tif").write_bytes(head + packed + struct.pack("<H", len(entries)) + tags + bytes(4))
    np.testing.assert_allclose(grey(tmp_path / "deep.tif"), ramp(0, 4095)[0] / 4095 * 255, atol=0.5 + 1e-9)


def test_tiff_whose_white_is_zero_is_turned(tmp_path: Path) -> None:
    Image.fromarray(ramp(0, 65_535)).save(tmp_path / "x.tif", tiffinfo={262: 0})
    np.testing.assert_allclose(grey(tmp_path / "x.tif"), 255 - ramp(0, 65_535)[0] / 257, atol=0.5 + 1e-9)


@pytest.mark.parametrize("name", ["x.tif", "x.pfm"])
@pytest.mark.parametrize(("low", "high"), [(0, 1), (0.2, 0.7)])
def test_one_is_white_of_floats(name: str, low: float, high: float, tmp_path: Path) -> None:
    Image.fromarray(ramp(low, high, np.float32)).save(tmp_path / name)
    np.testing.assert_allclose(grey(tmp_path / name), ramp(low, high, np.float32)[0] * 255, atol=0.5 + 1e-4)


@pytest.mark.parametrize(
    ("numbers", "why"),
    [
        (ramp(0, 255, np.float32), r"0 to 255 do not lie in 0 to 1\b"),
        (ramp(-1, 1, np.float32), r"-1 to 1 do not lie in 0 to 1\b"),
        (np.full((SIDE, SIDE), np.nan, np.float32), "nan"),
        (ramp(0, 70_000, np.int32), "no stated white"),
        (ramp(0, 100, np.uint16), "0 to 100 of 0 to 65535 are one grey"),
        (ramp(0.5, 0.5001, np.float32), "one grey of 8 bits"),
    ],
)
def test_numbers_without_a_rule_are_refused(numbers: np.ndarray, why: str, tmp_path: Path) -> None:
    Image.fromarray(numbers).save(tmp_path / "x.tif")
    with pytest.raises(ValueError, match=why):
        square(str(tmp_path / "x.tif"), SIDE, upright=True)


@pytest.mark.parametrize("size", [SIDE, 32, 200])
@pytest.mark.parametrize("colour", [0, 255, 40])
def test_shape_in_alpha_is_seen_on_the_ground(colour: int, size: int, tmp_path: Path) -> None:
    alpha = np.zeros((SIDE, SIDE), np.uint8)
    alpha[:, SIDE // 2 :] = 255
    for mode in ("LA", "RGBA"):
        layers = [Image.fromarray(np.full_like(alpha, colour))] * (len(mode) - 1) + [Image.fromarray(alpha)]
        Image.merge(mode, layers).save(tmp_path / f"{mode}.png")
        pixels = square(str(tmp_path / f"{mode}.png"), size, upright=True)
        assert pixels[size // 2, 0].tolist() == list(GROUND)
        assert pixels[size // 2, -1].tolist() == [colour] * 3


def test_ramp_of_alpha_stays_a_ramp(tmp_path: Path) -> None:
    black = np.zeros((SIDE, SIDE, 4), np.uint8)
    black[..., 3] = ramp(0, 255)
    for name in ("x.png", "x.webp", "x.tif"):
        Image.fromarray(black).save(tmp_path / name, lossless=True)
        assert (np.diff(grey(tmp_path / name)) <= -1).all()
    opaque = Image.fromarray(ramp(0, 255, np.uint8)).convert("RGBA")
    opaque.save(tmp_path / "opaque.png")
    assert grey(tmp_path / "opaque.png").tolist() == ramp(0, 255)[0].tolist()


def test_transparent_colour_of_a_palette_or_of_deep_grey_is_the_ground(tmp_path: Path) -> None:
    palette = Image.fromarray(np.repeat([[0, 1]], SIDE, 0).repeat(SIDE // 2, 1).astype(np.uint8))
    palette.putpalette([200, 200, 200, 10, 10, 10])
    palette.save(tmp_path / "p.png", transparency=0)
    palette.save(tmp_path / "p.gif", transparency=0)
    steps = np.repeat([[7, 40_000]], SIDE, 0).repeat(SIDE // 2, 1).astype(np.uint16)
    Image.fromarray(steps).save(tmp_path / "deep.png", transparency=7)
    assert {grey(tmp_path / "p.png")[0], grey(tmp_path / "p.gif")[0], grey(tmp_path / "deep.png")[0]} == {GROUND[0]}
    assert grey(tmp_path / "p.png")[-1] == grey(tmp_path / "p.gif")[-1] == 10
    assert grey(tmp_path / "deep.png")[-1] == round(40_000 / 257)


@pytest.mark.parametrize("kind", ["the ground's own grey", "transparent everywhere", "a grey ramp of no opacity"])
def test_picture_that_vanishes_on_the_ground_is_refused(kind: str, tmp_path: Path) -> None:
    pixels = np.full((SIDE, SIDE, 4), GROUND[0], np.uint8)
    pixels[..., 3] = ramp(0, 255)
    if kind == "transparent everywhere":
        pixels = np.random.default_rng(0).integers(0, 256, (SIDE, SIDE, 4), dtype=np.uint8)
        pixels[..., 3] = 0
    elif kind == "a grey ramp of no opacity":
        pixels[..., :3] = ramp(0, 255)[..., None]
        pixels[..., 3] = 0
    Image.fromarray(pixels).save(tmp_path / "x.png")
    with pytest.raises(ValueError, match="alpha leaves one colour"):
        square(str(tmp_path / "x.png"), SIDE, upright=True)


def test_refused_pictures_are_named_and_leave_no_file(tmp_path: Path) -> None:
    for label in "ab":
        (tmp_path / "pics" / label).mkdir(parents=True)
        for number in range(6):
            Image.fromarray(ramp(0, 255 * (number > 3) + 1, np.float32)).save(tmp_path / f"pics/{label}/{number}.tif")
    with pytest.raises(ValueError, match=r"of 10 unreadable: .*pics/a/4\.tif \(its numbers 0 to 256"):
        prepare(f"folder:{tmp_path / 'pics'}", tmp_path / "out", writer="native")
    assert not list((tmp_path / "out").glob("*.beton"))


def test_colours_of_16_bits_keep_their_upper_8(tmp_path: Path) -> None:
    """Pillow writes no such PNG, so its chunks are written here."""
    numbers = np.repeat(ramp(0, 65_535)[..., None], 3, -1)
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in numbers)
    with (tmp_path / "x.png").open("wb") as file:
        file.write(b"\x89PNG\r\n\x1a\n")
        PngImagePlugin.putchunk(file, b"IHDR", SIDE.to_bytes(4) + SIDE.to_bytes(4) + bytes([16, 2, 0, 0, 0]))
        PngImagePlugin.putchunk(file, b"IDAT", zlib.compress(rows))
        PngImagePlugin.putchunk(file, b"IEND", b"")
    assert grey(tmp_path / "x.png").tolist() == (ramp(0, 65_535)[0] >> 8).tolist()


@pytest.mark.parametrize("shape", [(1, 12_000), (9_000, 1), (2, 30_000), (3, 400)])
def test_thin_picture_takes_little_memory(shape: tuple[int, int], tmp_path: Path) -> None:
    Image.new("RGB", shape, (9, 99, 200)).save(tmp_path / "thin.png")
    code = (
        "import resource, sys\nfrom crelu_data.pixels import square\n"
        "import PIL.Image, PIL.ImageOps, PIL.PngImagePlugin\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "pixels = square(sys.argv[1], 256, upright=True)\n"
        "assert pixels.shape == (256, 256, 3) and (pixels == (9, 99, 200)).all()\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)"
    )
    ran = subprocess.run([sys.executable, "-c", code, str(tmp_path / "thin.png")], capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    assert int(ran.stdout) < 40_000  # KiB; 2.4 GB where 1 x 12,000 pixels are enlarged before they are cut


@pytest.mark.parametrize("shape", [(100, 90), (90, 301), (359, 90)])
def test_pictures_up_to_four_times_as_long_are_resized_as_a_whole(shape: tuple[int, int], tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (shape[1], shape[0], 3), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / "x.png")
    scale = SIDE / min(shape)
    resized = Image.fromarray(noise).resize(
        (max(SIDE, round(shape[0] * scale)), max(SIDE, round(shape[1] * scale))), Image.Resampling.BICUBIC
    )
    left, top = (resized.width - SIDE) // 2, (resized.height - SIDE) // 2
    expected = np.asarray(resized)[top : top + SIDE, left : left + SIDE]
    assert np.array_equal(square(str(tmp_path / "x.png"), SIDE, upright=True), expected)


def test_middle_of_a_thin_picture_is_what_is_kept(tmp_path: Path) -> None:
    thirds = np.zeros((3000, 3, 3), np.uint8)
    thirds[1000:2000] = 200
    Image.fromarray(thirds).save(tmp_path / "x.png")
    assert (square(str(tmp_path / "x.png"), 30, upright=True) == 200).all()
