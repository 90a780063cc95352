"""What others wrote is text on the page, the same document is the same page, and a chart has what a page needs."""

import csv
import dataclasses
import io
import itertools
import re
from html.parser import HTMLParser

import numpy as np
import pytest
from jinja2 import UndefinedError

from sweeps.experiment.trial import Trial
from sweeps.imagenet_placement import CELLS
from sweeps.report.render import svg
from sweeps.report.render.chart import Band, Chart, Curves, Forest, Interaction, Line, Point, Responses, Scatter
from sweeps.report.render.document import Document, Entry, Figure, Gallery, Section, Table, Tile
from sweeps.report.render.formats import blocks, comma_separated, markdown, prose
from sweeps.report.render.html import page
from sweeps.report.render.latex import latex
from sweeps.results.evidence import Run
from sweeps.results.statistics import Interval

NASTY = (
    'x"><meta http-equiv="refresh" content="0;url=https://evil.example"><form action=\'//evil.example\'>{{ 1 }}&amp;'
)
PLAIN = "x" * len(NASTY)
EPOCHS = np.arange(10.0)


class Elements(HTMLParser):
    """The tags of a page with the names of their attributes, and its text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, tuple[str, ...]]] = []
        self.values: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, tuple(name for name, _ in attrs)))
        self.values += [value or "" for _, value in attrs]

    def handle_data(self, data: str) -> None:
        self.values.append(data)


def charts(text: str) -> list[Chart]:
    """Return a chart of each kind with points of each kind, `text` at each."""
    points = [
        Point(1.0, text, text, 2.0, Interval(0.5, 1.5), "ours", text),
        Point(2.0, text, text, 3.0, Interval(1.5, 2.5), "open", text),
        Point(3.0, text, text, 4.0, kind="pick", trials=text),
        Point(1.1, text, text, 2.0, kind="paper"),
    ]
    ours = Band(EPOCHS + 1, 90 - EPOCHS, 89 - EPOCHS, 91 - EPOCHS)
    reference = Band(EPOCHS + 1, 95 - EPOCHS, EPOCHS, EPOCHS)
    return [
        Forest(points),
        Curves(ours, reference, 80.0, 88.0, text),
        Scatter(points, text, text),
        Responses(points, 0.5, 2.0, (1.0, 5.0)),
        Interaction((text, text), [Line(text, points[:1]), Line(text, points[1:2])], text, text),
    ]


def filled(text: str) -> Document:
    """Return a document with every part that a page has, and with `text` as each of its texts."""
    trial = Trial(dataclasses.replace(CELLS[0], label=text))
    run = Run(trial, "done", "", None, {}, EPOCHS, None, text, {})
    tones = [Entry(text, text, tone, (text,), (run,) * 9, text, text) for tone in ("", "good", "bad", "open", "muted")]
    rows = (tuple(tones), tuple(tones))
    table = Table(text, text, (text,) * 5, "lrclr", rows, (f"{text}  {text}", text), ((text, 2), ("", 1), (text, 2)))
    judged = table._replace(columns=(text,) * 4 + ("verdict",), title=text + text)
    figures = tuple(Figure(text, chart, text, text) for chart in charts(text))
    tiny, wide = Gallery(text, figures, "tiny", text), Gallery(text, (Figure(text, b"png", text, text),), "wide", text)
    sections = (
        Section("claims", text, (text,), (table, table)),
        Section(text, text, (text,), (table, judged, judged, tiny, wide)),
        Section(text, text, (text,), (table,), folded=True, short=text),
    )
    return Document(text, text, text, (Tile(text, text, text),), sections)


def test_markup_in_any_text_is_text() -> None:
    nasty, plain = Elements(page(filled(NASTY))), Elements(page(filled(PLAIN)))
    assert nasty.tags == plain.tags
    written = [value for value in nasty.values if NASTY in value]
    assert len(written) > 250
    assert len(written) >= 0.9 * sum(PLAIN in value for value in plain.values)


def test_same_document_is_the_same_page() -> None:
    assert page(filled("words")) == page(filled("words"))


def test_policy_forbids_the_page_every_request() -> None:
    text = page(filled("words"))
    policy = "default-src 'none'; style-src 'unsafe-inline'; img-src data:; form-action 'none'; base-uri 'none'"
    assert f'<meta http-equiv="Content-Security-Policy" content="{policy}">' in text[:260]
    assert text.startswith("<!doctype html>")


def test_name_that_the_template_lacks_is_an_error() -> None:
    broken = filled("words")
    object.__setattr__(broken, "tiles", (("value", "label"),))
    with pytest.raises(UndefinedError):
        page(broken)


@pytest.mark.parametrize("chart", charts("words"), ids=lambda chart: type(chart).__name__)
def test_chart_takes_its_colours_from_the_page_and_has_no_ids(chart: Chart) -> None:
    text = svg.draw(chart, "what it shows")
    assert 'aria-label="what it shows"' in text
    assert not re.search(r"#[0-9a-f]{3}|style=|font|url\(|\bid=|xmlns|href", text)
    assert set(re.findall(r'class="([\w ]+)"', text)) <= {
        "grid", "axis", "whisker", "band", "ours line", "base line", "ours", "open", "paper", "pick", "name",
        "beyond pick", "line style0", "line style1", "ours style0", "ours style1", "open style0", "open style1",
        "paper style0", "paper style1", "pick style0", "pick style1", "lead",
    }  # fmt: skip
    assert "grid" in text


def test_points_name_their_trials_and_say_what_they_are() -> None:
    points = [
        Point(float(i), f"row {i}", f"tip {i}", trials=f"key{i}", kind="open" if i % 2 else "ours") for i in range(4)
    ]
    text = svg.draw(Forest(points), "")
    drawn = re.findall(
        r'<circle cx="([\d.]+)" cy="([\d.]+)" r="4" class="(\w+)" data-trials="(\w+)"><title>([\w ]+)<', text
    )
    assert {(kind, trials, tip) for _, _, kind, trials, tip in drawn} == {
        ("ours", "key0", "tip 0"), ("open", "key1", "tip 1"), ("ours", "key2", "tip 2"), ("open", "key3", "tip 3")
    }  # fmt: skip
    # Along one line: each a step to the right and a row below the one before.
    places = sorted((float(x), float(y)) for x, y, *_ in drawn)
    steps = np.diff(np.array(places), axis=0)
    assert np.allclose(steps, steps[0], atol=0.25)
    assert (steps > 15).all()


def test_curve_begins_where_it_enters_the_chart_and_stays_within() -> None:
    mean = np.array([90.0, 60.0, 40.0, 30.0, 55.0])
    text = svg.draw(Curves(Band(np.arange(1.0, 6.0), mean, mean, mean), None, 20.0, 50.0, "k"), "")
    (path,) = re.findall(r'<path d="([^"]+)" class="ours line" data-trials="k"', text)
    points = np.array(re.findall(r"([\d.]+) ([\d.]+)", path), float)
    # Epochs 3 to 5 of 1 to 5 over 180 pixels from 30; 50 percent at the upper edge, 8, and 20 at the lower, 118.
    assert np.allclose(points, [[120, 44.7], [165, 81.3], [210, 8]], atol=0.1)


def test_curve_of_a_metric_whose_larger_values_win_enters_from_below() -> None:
    mean = np.array([0.1, 0.4, 0.6, 0.7, 0.45])
    text = svg.draw(Curves(Band(np.arange(1.0, 6.0), mean, mean - 0.1, mean), None, 0.5, 0.8, "k"), "")
    (path,) = re.findall(r'<path d="([^"]+)" class="ours line" data-trials="k"', text)
    points = np.array(re.findall(r"([\d.]+) ([\d.]+)", path), float)
    # .5 at the lower edge, 118, and .8 at the upper, 8: the last epoch stays at the edge.
    assert np.allclose(points, [[120, 81.3], [165, 44.7], [210, 118]], atol=0.1)
    (band,) = re.findall(r'<path d="([^"]+)" class="band"', text)
    assert max(float(y) for _, y in re.findall(r"([\d.]+) ([\d.]+)", band)) <= 118


def test_label_keeps_clear_of_the_points() -> None:
    points = [Point(10.0 + 0.01 * i, f"name {i}", x=5.0 + 0.01 * i) for i in range(4)] + [Point(20.0, "far", x=9.0)]
    text = svg.draw(Scatter(points, "", ""), "")
    labels = re.findall(r'<text x="([\d.]+)" y="([\d.]+)" text-anchor="\w+">(?:name|far)', text)
    assert len(labels) == 5
    assert len(set(labels)) == 5


# Nine rows of a demo: three of them differ by less than a label's height, and whiskers reach far.
CROWDED = {
    "Baseline": (0.60, 71.3), "AVR conv1-4": (0.60, 74.0), "AVR conv1-7": (0.60, 78.2), "AVR conv1-9": (0.60, 70.9),
    "CReLU conv1,4,7": (0.55, 66.2), "CReLU conv1-4": (0.69, 64.5), "CReLU conv1-7": (0.93, 66.0),
    "CReLU conv1-9": (1.18, 68.3), "CReLU all": (0.31, 72.1),
}  # fmt: skip


def test_each_label_stands_by_its_own_point_and_over_no_other() -> None:
    points = [Point(y, label, label, x, Interval(y - 3.5, y + 3.5)) for label, (x, y) in CROWDED.items()]
    text = str(svg.draw(Scatter(points, "", ""), ""))
    circles = re.findall(r'<circle cx="([\d.]+)" cy="([\d.]+)"[^>]*><title>([^<]+)<', text)
    places = {label: np.array([float(x), float(y)]) for x, y, label in circles}
    written = re.findall(r'<text x="([\d.]+)" y="([\d.]+)" text-anchor="(\w+)">([^<]+)<', text)
    boxes = {}
    for x, y, anchor, label in [words for words in written if words[3] in CROWDED]:
        width = 6.0 * len(label)
        left = float(x) - {"start": 0.0, "middle": 0.5, "end": 1.0}[anchor] * width
        boxes[label] = np.array([left, float(y) - 9, left + width, float(y)])
    assert boxes.keys() == places.keys() == CROWDED.keys()
    for (first, a), (second, b) in itertools.combinations(boxes.items(), 2):
        apart = a[2] <= b[0] or b[2] <= a[0] or a[3] <= b[1] or b[3] <= a[1]
        assert apart, f"{first} and {second} cover each other"
    lines = np.array(re.findall(r'd="M ([\d.]+) ([\d.]+) L [\d. ]+" class="lead"', text), float)
    led = {label for label, place in places.items() if any(np.allclose(start, place, atol=0.2) for start in lines)}
    assert len(led) == len(lines) <= 5
    for label, (left, top, right, bottom) in boxes.items():
        gaps = {
            name: np.hypot(max(left - x, x - right, 0), max(top - y, y - bottom, 0)) for name, (x, y) in places.items()
        }
        assert label in led or min(gaps, key=gaps.__getitem__) == label


WIDE = Interval(-60.0, 118.0)


def drawn_points(text: str) -> np.ndarray:
    """Return the places of the circles of a chart, from the left and from above."""
    return np.array(re.findall(r'<circle cx="([\d.]+)" cy="([\d.]+)"', text), float)


@pytest.mark.parametrize(
    ("values", "interval", "ends", "cut"),
    [
        ((20.0, 31.0, 45.5), WIDE, (0.0, 100.0), 6),
        ((20.0, 31.0, 45.5), WIDE, (-np.inf, np.inf), 6),
        ((43.0, 43.0, 43.0), WIDE, (0.0, 100.0), 6),
        ((20.0, 31.0, 45.5), Interval(15.0, 50.0), (0.0, 100.0), 0),
    ],
)
def test_axis_of_errors_shows_the_points_and_says_where_intervals_go_on(
    values: tuple[float, ...], interval: Interval, ends: tuple[float, float], cut: int
) -> None:
    points = [Point(value, f"row {x}", "", x, interval) for x, value in zip((0.1, 1.0, 9.0), values, strict=True)]
    scatter = Scatter(points, "", "", ends)
    low, high = scatter.frame
    assert max(values) - min(values) >= 0.28 * (high - low) or len(set(values)) == 1
    assert low >= ends[0] - 9
    assert high <= ends[1] + 9
    text = str(svg.draw(scatter, ""))
    assert len(scatter.cut) == text.count('class="beyond ours"') == cut
    # Whiskers and triangles end at the frame, 12 and 214 pixels from above; a triangle stands over its point.
    whiskers = np.array(re.findall(r'd="M ([\d.]+) ([\d.]+) L ([\d.]+) ([\d.]+)" class="whisker"', text), float)
    assert (whiskers[:, [1, 3]] >= 11.9).all()
    assert (whiskers[:, [1, 3]] <= 214.1).all()
    tips = np.array(re.findall(r'd="M [\d.]+ [\d.]+ L ([\d.]+) ([\d.]+)[^"]*" class="beyond ours"', text), float)
    xs = drawn_points(text)[:, 0]
    assert sorted(tips[:, 0] if cut else []) == pytest.approx(sorted([*xs, *xs] if cut else []), abs=0.2)
    assert set(np.round(tips[:, 1]) if cut else []) == ({12.0, 214.0} if cut else set())


@pytest.mark.parametrize(
    "sizes", [(0.102, 0.114, 8.8, 11.2), (0.31, 1.18), (5.0, 9.0), (15.0, 90.0), (0.001, 2000.0), (9.0, 9.3)]
)
def test_axis_of_parameters_has_ticks_among_the_points(sizes: tuple[float, ...]) -> None:
    text = str(svg.draw(Scatter([Point(10.0, x=size) for size in sizes], "", ""), ""))
    ticks = re.findall(r'<text x="([\d.]+)" y="[\d.]+" text-anchor="middle">([\d.e-]+)<', text)
    assert 3 <= len(ticks) <= 7
    named = np.array([[float(x), np.log(float(word))] for x, word in ticks])
    points = drawn_points(text)[:, 0]
    # The names are those of their places: the points lie between them as their logarithms do.
    expected = np.interp(np.log(sizes), named[:, 1], named[:, 0], left=-1, right=-1)
    assert points[expected > 0] == pytest.approx(expected[expected > 0], abs=0.3)
    assert named[-1, 0] - named[0, 0] > (points[-1] - points[0]) / 2
    assert np.diff(named[:, 0]).min() > 6 * max(len(word) for _, word in ticks)


GRID = tuple(f"{act} conv{convs} x1" for act in ("crelu", "crelu_leaky") for convs in ("1,2,3,4", "1,2,3,4,5,6,7,8,9"))


def test_no_two_rows_of_a_forest_have_the_same_label() -> None:
    text = svg.draw(Forest([Point(1.0, f"allcnnb imagenet {label}", label) for label in GRID]), "")
    assert re.findall(r'text-anchor="end">([^<]+)<', text) == [label.replace(" x1", "") for label in GRID]
    assert float(re.findall(r'width="(\d+)"', text)[0]) < 460


@pytest.mark.parametrize("shared", ["", "a long word that all places have "])
def test_each_place_of_an_interaction_has_its_name_over_no_other(shared: str) -> None:
    places = [f"{shared}conv{convs}" for convs in ("1", "2", "4", "1,3", "1,3,5", "1,3,5,8")]
    points = [Point(1.0, x=float(place)) for place in range(6)]
    text = svg.draw(Interaction(places, [Line("width 1", points)], "placement", "error, %"), "")
    names = [place.removeprefix(shared) for place in places]
    ticks = {
        name: (float(x), float(y))
        for x, y, name in re.findall(r'<text x="([\d.]+)" y="([\d.]+)" text-anchor="middle">([^<]+)<', text)
        if name in names
    }
    assert sorted(ticks, key=lambda name: ticks[name][0]) == names
    circles = [float(x) for x in re.findall(r'<circle cx="([\d.]+)"', text)]
    assert [ticks[name][0] for name in names] == pytest.approx(circles, abs=0.2)
    for (first, (x, y)), (second, (x2, y2)) in itertools.combinations(ticks.items(), 2):
        halves = 5.6 * (len(first) + len(second)) / 2
        assert abs(x - x2) >= halves or abs(y - y2) >= 10, f"{first} and {second} cover each other"
    _, bottom = max(ticks.values(), key=lambda place: place[1])
    (axis,) = (float(y) for y in re.findall(r'y="([\d.]+)"[^>]*>placement<', text))
    width, height = (float(re.findall(rf' {side}="(\d+)"', text)[0]) for side in ("width", "height"))
    assert bottom + 8 < axis < height
    assert width < 330  # of a gallery's column, into which a wider chart would be shrunk


ENDS_OF_LINES = {
    "apart": (10.0, 20.0, 30.0), "equal": (30.0, 30.0, 30.0), "highest last": (43.5, 43.0, 45.5),
    "lowest first": (20.0, 20.1, 45.0), "twelve": tuple(40 + 0.1 * k for k in range(12)),
}  # fmt: skip


@pytest.mark.parametrize("ends", ENDS_OF_LINES.values(), ids=ENDS_OF_LINES)
def test_each_line_of_an_interaction_has_its_own_label_look_and_points(ends: tuple[float, ...]) -> None:
    lines = [
        Line(f"act {k}", [Point(20.0 + k, x=0.0), Point(end, x=1.0, tip=f"end {k}")]) for k, end in enumerate(ends)
    ]
    text = str(svg.draw(Interaction(("resnet18", "vit"), lines, "net", "error, %"), ""))
    written = {name: float(y) for y, name in re.findall(r'y="([\d.]+)" text-anchor="\w+">(act \d+)<', text)}
    assert written.keys() == {line.name for line in lines}
    heights = sorted(written.values())
    assert np.diff(heights).min() >= 10
    (height,) = (float(number) for number in re.findall(r' height="(\d+)"', text))
    assert heights[0] > 10
    assert heights[-1] < height - 30  # the places of the axis stand below
    # A line leads from each end to its label, and no two of them cross.
    circles = {
        name: float(y) for y, name in re.findall(r'cy="([\d.]+)" r="4" class="ours style\d"><title>(end \d+)<', text)
    }
    leads = [
        (float(y), float(y2)) for y, y2 in re.findall(r'd="M [\d.]+ ([\d.]+) L [\d.]+ ([\d.]+)" class="lead"', text)
    ]
    assert len(leads) == len(lines)
    for k, (line, (start, end)) in enumerate(zip(lines, leads, strict=True)):
        assert end == pytest.approx(written[line.name] - 4, abs=0.2)
        assert start == pytest.approx(circles[f"end {k}"], abs=0.2)
    assert sorted(leads) == sorted(leads, key=lambda lead: lead[1])
    styles = re.findall(r'class="line (style\d)"', text)
    assert len(set(styles)) == min(len(lines), svg.STYLES)
    assert text.count('r="4" class="ours ') == 2 * len(lines)


def test_each_style_of_a_line_has_a_colour_and_dashes_of_its_own() -> None:
    style = page(filled("words"))
    rules = [
        re.search(rf"\.line\.style{k} \{{ stroke: (.+?)(?:; stroke-dasharray: (.+?))? \}}", style)
        for k in range(svg.STYLES)
    ]
    assert all(rules)
    assert len({rule[1] for rule in rules if rule}) == len({rule[2] for rule in rules if rule}) == svg.STYLES


def test_letters_that_xml_or_the_font_lack_are_left_to_the_browser() -> None:
    text = svg.draw(Forest([Point(1.0, "$x$ 宽\x0b", "tip")]), "alt")
    assert "$x$ 宽<" in text


# The other forms

MARKS = "[click](https://evil.example) ![x](https://evil.example/p.png) <script> --> `a` *b* | c \x1b[2J"


def test_markup_in_any_text_is_text_in_markdown() -> None:
    text = markdown(filled(MARKS))
    assert text.count("click") > 40
    assert not re.search(r"(?<!\\)\]\(", text), "a link"
    assert not re.search(r"(?<!\\)<(?!!-- /?sweeps|/?sup>)", text), "an element of HTML"
    assert not re.search(r"(?<!\\)[`*]", text)
    assert "\x1b" not in text
    # A marker ends where it ends, and each is found again.
    assert len(blocks(text)) == text.count("<!-- /sweeps") == text.count("-->") // 2


def test_words_that_are_plain_stay_as_they_are_in_markdown() -> None:
    for words in (
        "imagenet_placement",
        "CReLU conv1-4 [−1.2, 3.4] (n 5)",
        "± se, p < .001".replace("<", "of"),
        "9.3 %",
    ):
        assert prose(words) == words
    assert prose("# head") == "\\# head"
    assert prose("1. first") == "1\\. first"


@pytest.mark.parametrize(
    "text", ["\\input{/etc/passwd}", "\\write18{ls}", "a\n\nb", "$x$ & y % z #1 {q} ~ ^_", "\x1b[2J", "a\\\\b"]
)
def test_no_text_commands_latex(text: str) -> None:
    plain = "\n".join(latex(filled("words")).values())
    written = "\n".join(latex(filled(text)).values())
    assert "\x1b" not in written
    for sign in ("\\input{/", "\\write", "%1", "\\\\b"):
        assert sign not in written
    for command in ("\\begin{", "\\end{", "\n\n", "\\label{tab:"):
        assert written.count(command) == plain.count(command)


@pytest.mark.parametrize("text", ["=HYPERLINK(1)", "+1+cmd|' /C calc'!A0", "-2+3", "@SUM(A1)", "\t=1", " =1", "\n=1"])
def test_no_text_is_a_formula_in_csv(text: str) -> None:
    (head, line) = list(csv.reader(io.StringIO(comma_separated([{text: text, "n": -1.5, "list": [text]}]).decode())))
    assert head == [f"'{text}", "n", "list"]
    assert line == [f"'{text}", "-1.5", f"'{text}"]
    assert comma_separated([{"a": "CReLU\x1b[2J", "b": "1-4"}]) == b"a,b\nCReLU\\x1b[2J,1-4\n"
