"""A figure of a report as a file: drawn once, as its shapes are on the page, and gone with its figure."""

import base64
import io
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
from markupsafe import Markup
from PIL import Image

from sweeps.report.render import figures
from sweeps.report.render.chart import Forest, Point
from sweeps.report.render.document import Document, Figure, Gallery, Section
from sweeps.results.statistics import Interval

SHAPES = Markup(
    '<svg viewBox="0 0 40 20" width="40" height="20"><path d="M 0 10 L 40 10" class="whisker"/>'
    '<path d="M 5 5 L 15 5 L 15 15 z" class="band"/><circle cx="30" cy="10" r="4" class="ours"/>'
    '<text x="20" y="19" text-anchor="middle">ab</text></svg>'
)


def report(*titles: str, value: float = 1.0) -> Document:
    """Return a document with a chart for each title, and a picture."""
    sink = io.BytesIO()
    Image.new("RGB", (3, 2), "red").save(sink, "PNG")
    chart = Forest([Point(value, "CReLU", "tip", interval=Interval(0.5, 1.5))])
    drawn = tuple(Figure(title, chart, alt=title) for title in titles)
    gallery = Gallery(
        "Table 1", (*drawn, Figure("net: filters", sink.getvalue()), Figure("net: damaged", b"no picture")), "wide"
    )
    return figures.drawn(Document("t", "", "", (), (Section("effects", "Effects", (), (gallery,)),)))


def test_only_a_chart_that_changed_is_drawn_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    figures.write(report("top-1", "top-5"), tmp_path)
    names = ["Effects-Table-1-net-filters", "Effects-Table-1-top-1", "Effects-Table-1-top-5"]
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        f"{name}.{end}" for name in names for end in ("png", "svg")
    ]
    made = []
    monkeypatch.setattr(figures, "rastered", lambda chart: made.append(chart) or b"new")
    figures.write(report("top-1", "top-5"), tmp_path)
    assert made == []
    (tmp_path / f"{names[1]}.png").unlink()
    figures.write(report("top-1", "top-5"), tmp_path)
    assert len(made) == 1
    figures.write(report("top-1", value=2.0), tmp_path)
    assert len(made) == 2
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        f"{name}.{end}" for name in names[:2] for end in ("png", "svg")
    ]


def test_picture_of_pixels_is_whole_in_both(tmp_path: Path) -> None:
    figures.write(report(), tmp_path)
    (vector,) = tmp_path.glob("*.svg")
    (image,) = ElementTree.parse(vector).getroot()
    assert (image.attrib["width"], image.attrib["height"]) == ("3", "2")
    encoded = image.attrib["href"].removeprefix("data:image/png;base64,")
    assert base64.b64decode(encoded) == vector.with_suffix(".png").read_bytes()


def test_png_has_the_shapes_where_and_as_the_page_has_them() -> None:
    with Image.open(io.BytesIO(figures.rastered(SHAPES))) as opened:
        picture = opened.convert("RGB")
    pixels = 150 / 72

    def at(x: float, y: float) -> tuple[int, ...]:
        colour = picture.getpixel((int((x + figures.EDGE) * pixels), int((y + figures.EDGE) * pixels)))
        assert isinstance(colour, tuple)
        return colour

    assert picture.size == (116, 75)
    assert at(30, 8) == (11, 92, 173)
    assert at(13, 7.5) == pytest.approx((216, 229, 242), abs=2)  # 16 % of it over white
    assert at(22, 10) == pytest.approx((72, 133, 194), abs=25)  # 75 %
    assert at(-7, -7) == (255, 255, 255)
    assert any(at(x, y) != (255, 255, 255) for x in range(14, 27) for y in range(12, 19))


def test_dashes_of_a_line_are_those_of_the_page() -> None:
    def pixels(classes: str) -> int:
        """Return how many pixels of a long line are drawn."""
        line = f'<svg viewBox="0 0 400 20" width="400" height="20"><path d="M 0 10 L 400 10" class="{classes}"/></svg>'
        image = np.asarray(Image.open(io.BytesIO(figures.rastered(Markup(line)))).convert("L"))
        return int((image.min(axis=0) < 200).sum())

    # style1 has dashes of 8 pixels, 4 apart.
    assert pixels("line style1") == pytest.approx(pixels("line style0") * 2 / 3, rel=0.15)
