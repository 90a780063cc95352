"""The figures of a report as files: each chart and picture as SVG and as PNG, which look right without the page.

A chart is drawn once, for the page. Its file has the light colours of the page's style and a white ground; the PNG is
made of the shapes of that file.
"""

from __future__ import annotations

import base64
import dataclasses
import functools
import re
import struct
import warnings
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Final
from xml.etree import ElementTree

import matplotlib
from markupsafe import Markup
from matplotlib.artist import Artist
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure as Canvas
from matplotlib.patches import Circle, Patch, PathPatch
from matplotlib.path import Path as Outline
from matplotlib.text import Text
from matplotlib.transforms import Affine2D

from sweeps.report.files import write_atomically
from sweeps.report.render.document import Document, Figure, Gallery
from sweeps.report.render.latex import labels
from sweeps.report.render.plots import CHART, PIXELS, png
from sweeps.report.render.svg import draw

FOLDER: Final = "figures"
LONGEST: Final = 120  # characters of a name
EDGE: Final = 8  # pixels around a chart, into which a label may reach
FONT: Final = "text { font-family: system-ui, Arial, sans-serif }"
VARIABLE: Final = re.compile(r"var\((--[a-z]+)\)")
RULE: Final = re.compile(r"([^{};]+)\{([^{}]*)\}")
STEP: Final = re.compile(r"([MLz])([^MLz]*)")
CODES: Final = {"M": Outline.MOVETO, "L": Outline.LINETO, "z": Outline.CLOSEPOLY}
SIDES: Final = {"start": "left", "middle": "center", "end": "right"}
HEAD: Final = re.compile(rb"\x89PNG\r\n\x1a\n....IHDR.{8}", re.DOTALL)  # ends with width and height
RED_GREEN_BLUE: Final = re.compile(r"rgba\((\d+), (\d+), (\d+), ([\d.]+)\)")


def drawn(document: Document) -> Document:
    """Return a document with its charts as SVG, so that page and files need one drawing of each."""
    sections = (
        dataclasses.replace(
            section, parts=tuple(_drawn(part) if isinstance(part, Gallery) else part for part in section.parts)
        )
        for section in document.sections
    )
    return dataclasses.replace(document, sections=tuple(sections))


def _drawn(gallery: Gallery) -> Gallery:
    return gallery._replace(figures=tuple(map(_with_drawing, gallery.figures)))


def _with_drawing(figure: Figure) -> Figure:
    content = figure.content
    return figure if isinstance(content, bytes | Markup) else figure._replace(content=draw(content, figure.alt))


def write(document: Document, folder: Path) -> None:
    """Write the figures of a drawn document into a folder, and delete an earlier report's others.

    A chart that has not changed is left as it is: the PNG is most of the work.
    """
    named = _named(document)
    for old in [*folder.glob("*.svg"), *folder.glob("*.png")]:
        if old.stem not in named:
            old.unlink()
    for name, content in named.items():
        raster = folder / f"{name}.png"
        vector = raster.with_suffix(".svg")
        drawing = (_around(content) if isinstance(content, bytes) else alone(content)).encode()
        if raster.exists() and vector.exists() and vector.read_bytes() == drawing:
            continue
        # The SVG last: where it is there, so is the PNG of it.
        write_atomically(raster, content if isinstance(content, bytes) else rastered(content))
        write_atomically(vector, drawing)


def _named(document: Document) -> dict[str, Markup | bytes]:
    """Return the figures of a drawn document by the names of their files: section, gallery and title.

    A picture of a job that is no PNG is left out.
    """
    titles: list[str] = []
    contents: list[Markup | bytes] = []
    for section in document.sections:
        for part in section.parts:
            for figure in part.figures if isinstance(part, Gallery) else ():
                words = dict.fromkeys((section.short or section.heading, part.title, figure.title))
                if isinstance(figure.content, bytes) and not HEAD.match(figure.content):
                    continue
                titles.append(" ".join(filter(None, words))[:LONGEST])
                assert isinstance(figure.content, bytes | Markup), "the document is not drawn"
                contents.append(figure.content)
    return dict(zip(labels(titles), contents, strict=True))


# SVG ----------------------------------------------------------------------------------------------------------


@functools.cache
def style() -> tuple[tuple[str, Mapping[str, str]], ...]:
    """Return the rules of the page's style that are for charts, in their order, in light colours."""
    text = resources.files("sweeps.report").joinpath("render/page.css").read_text(encoding="utf-8")
    colours = _properties(text[text.index(":root {") + len(":root {") : text.index("}")])
    of_charts = text[text.index("svg {") : text.index("@media (max-width")]
    return tuple(
        (selector.strip(), _properties(VARIABLE.sub(lambda name: colours[name[1]], body)))
        for selector, body in RULE.findall(of_charts)
        if selector.strip() != "img"
    )


def _properties(body: str) -> dict[str, str]:
    pairs = (line.partition(":") for line in body.split(";") if line.strip())
    return {name.strip(): value.strip() for name, _, value in pairs}


def alone(chart: Markup) -> str:
    """Return a chart of a page as a file: with its style, on a white ground, with an edge around it."""
    rules = [f"{selector} {{ {'; '.join(map(': '.join, body.items()))} }}" for selector, body in style()]
    root = ElementTree.fromstring(chart)
    left, top, width, height = _frame(root)
    size = {"viewBox": f"{left:g} {top:g} {width:g} {height:g}", "width": f"{width:g}", "height": f"{height:g}"}
    root.attrib |= size | {"xmlns": "http://www.w3.org/2000/svg"}
    ground = {"x": f"{left:g}", "y": f"{top:g}", "width": f"{width:g}", "height": f"{height:g}", "fill": "#fff"}
    root.insert(0, ElementTree.Element("rect", ground))
    sheet = ElementTree.Element("style")
    sheet.text = "\n".join(["", *rules, FONT, ""])
    root.insert(0, sheet)
    return ElementTree.tostring(root, encoding="unicode")


def _frame(root: ElementTree.Element) -> tuple[float, float, float, float]:
    """Return left, top, width and height of a chart with its edge."""
    left, top, width, height = map(float, root.attrib["viewBox"].split())
    return left - EDGE, top - EDGE, width + 2 * EDGE, height + 2 * EDGE


def _around(picture: bytes) -> str:
    """Return an SVG that holds a PNG as it is: what a job drew as pixels has no shapes."""
    width, height = struct.unpack(">II", picture[16:24])
    data = f"data:image/png;base64,{base64.b64encode(picture).decode()}"
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}">'
        f'<image width="{width}" height="{height}" href="{data}"/></svg>'
    )


# PNG ----------------------------------------------------------------------------------------------------------


def rastered(chart: Markup) -> bytes:
    """Return a chart of a page as PNG, of about two pixels for one of the page."""
    root = ElementTree.fromstring(chart)
    left, top, width, height = _frame(root)
    with matplotlib.rc_context(CHART), warnings.catch_warnings():
        # A box stands for a letter that matplotlib's font lacks.
        warnings.filterwarnings("ignore", "Glyph .* missing", UserWarning)
        canvas = Canvas(figsize=(width / PIXELS, height / PIXELS))
        FigureCanvasAgg(canvas)
        # Without axes, which are a third of the time. From pixels of the page, downwards, to inches.
        inches = Affine2D().translate(-left, -top - height).scale(1 / PIXELS, -1 / PIXELS)
        for order, shape in enumerate(root):
            artist = _artist(shape)
            artist.set(transform=inches + canvas.dpi_scale_trans, zorder=order)
            canvas.add_artist(artist)
        return png(canvas)


def _artist(shape: ElementTree.Element) -> Artist:
    """Return a text, path or circle of a chart, in pixels of the page."""
    place = shape.attrib
    looks = _looks(shape.tag, place.get("class", "").split())
    fill, stroke = (_colour(looks.get(name, "none"), looks.get("opacity", "1")) for name in ("fill", "stroke"))
    if shape.tag == "text":
        side = SIDES[place["text-anchor"]]
        return Text(float(place["x"]), float(place["y"]), shape.text or "", color=fill, ha=side)
    width = float(looks.get("stroke-width", "1"))
    patch: Patch
    if shape.tag == "circle":
        patch = Circle((float(place["cx"]), float(place["cy"])), float(place["r"]))
    else:
        patch = PathPatch(_outline(place["d"]))
    patch.set(facecolor=fill, edgecolor=stroke, linewidth=width)
    if dashes := looks.get("stroke-dasharray"):  # matplotlib counts them in widths of the line
        patch.set_linestyle((0, [float(length) / width for length in dashes.split()]))
    return patch


def _looks(tag: str, classes: Sequence[str]) -> dict[str, str]:
    """Return the properties that the style gives a shape of these classes; a later rule prevails."""
    looks: dict[str, str] = {}
    for selectors, properties in style():
        for selector in selectors.split(","):
            name, *needed = selector.split()[-1].split(".")
            if name in ("", tag) and set(needed) <= set(classes):
                looks |= properties
    return looks


def _colour(css: str, opacity: str) -> tuple[str, float]:
    """Return a colour of the style as matplotlib has it."""
    with_alpha = RED_GREEN_BLUE.fullmatch(css)
    if with_alpha is None:
        return css, float(opacity) if css != "none" else 0.0
    red, green, blue = (int(part) for part in with_alpha.groups()[:3])
    return f"#{red:02x}{green:02x}{blue:02x}", float(with_alpha[4]) * float(opacity)


def _outline(path: str) -> Outline:
    """Return a path of moves and lines."""
    steps = [(CODES[code], [float(number) for number in numbers.split()] or [0.0, 0.0])
             for code, numbers in STEP.findall(path)]  # fmt: skip
    return Outline([place for _, place in steps], [code for code, _ in steps])
