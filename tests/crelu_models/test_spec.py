"""Nets as values: verbs, shapes, counts, JSON, and what they refuse."""

import json
import re
from dataclasses import replace
from typing import Any

import pytest

from crelu_models.spec import ALIASES, CHANNEL_FACTOR, Conv, Drop, Linear, Net, Pool, Row, seed_from
from crelu_models.tables import PAPER, S2, S4, S8, S13

NETS = pytest.mark.parametrize("net", PAPER.values(), ids=PAPER.keys())
AVERAGE = Pool("pool", "avg", 0)


def small(*rows: Row, size: int = 8) -> Net:
    return Net("small", rows, size)


CONV1, SCORES = Conv("conv1", 8, 3, pad=1), Conv("conv2", None, 1, act="none")
SMALL = small(CONV1, Pool("pool1", "max", 2, 2), SCORES, AVERAGE)


def hidden(net: Net) -> list[int]:
    return [int(row.name[4:]) for row in net.rows if isinstance(row, Conv) and row.filters]


def test_counts_agree_with_those_by_hand():
    assert SMALL.parameters(5) == (3 * 9 * 8 + 8) + (8 * 5 + 5)
    assert SMALL.macs(5) == 3 * 9 * 8 * 64 + 8 * 5 * 16
    assert SMALL.crelu(1).parameters(5) == (3 * 9 * 8 + 8) + (16 * 5 + 5)
    assert SMALL.activation("prelu", 1).parameters(5) == SMALL.parameters(5) + 8


def test_a_linear_row_reads_the_whole_map():
    flat = small(Conv("conv1", 4, 3), Linear("fc2", None, act="none"))
    assert flat.parameters(2) == 4 * 27 + 4 + 2 * (4 * 6 * 6) + 2
    assert flat.parameters(2, size=5) == 4 * 27 + 4 + 2 * (4 * 3 * 3) + 2
    assert flat.shapes(2) == [("conv1", 4, 6), ("fc2", 2, 1)]


@pytest.mark.parametrize("net", [S2, S4, S8], ids=lambda net: net.name)
def test_half_the_filters_behind_crelu_leave_what_the_next_layer_sees(net: Net):
    for conv in hidden(net):
        assert net.crelu(conv, width=0.5).shapes(7) == net.shapes(7)
        assert net.crelu(conv).shapes(7) != net.shapes(7)
        assert net.crelu(conv, width=0.5).parameters(7) < net.parameters(7) < net.crelu(conv).parameters(7)


@NETS
def test_a_verb_keeps_the_net_it_starts_from(net: Net):
    before = net.to_json()
    last = hidden(net)[-1]
    net.crelu(last, width=0.5), net.avr(last), net.width(2), net.dropout(0.1, "input"), net.final_activation("relu")
    assert net.to_json() == before


def test_convs_may_be_named_in_any_order_and_twice():
    assert S8.crelu(7, 1, 4, 4, width=0.5) == S8.crelu(1, 4, 7, width=0.5) == S8.crelu(1, 4, 7).width(0.5, 1, 4, 7)


def test_width_without_convs_scales_every_layer_but_the_classifier():
    rows = [row for row in S4.width(0.25).rows if isinstance(row, Conv | Linear)]
    assert [row[1] for row in rows] == [16, 16, 32, 32, 64, 64, 64, *[128] * 7, None]


@pytest.mark.parametrize(("factor", "filters"), [(0.5, 48), (1 / 3, 32), (0.1, 10), (0.055, 5), (1.26, 121)])
def test_width_rounds_to_whole_filters(factor: float, filters: int):
    assert S2.width(factor, 1).layers(10)[0].filters == filters


def test_other_papers_names_of_crelu_give_the_same_net():
    for name in ALIASES:
        assert S8.activation(name, 1, 4).to_json() == S8.crelu(1, 4).to_json()


def test_dropout_is_set_replaced_and_removed():
    dropped = S8.dropout(0.5, 9).dropout(0.25, "conv9").dropout(0.1, "pool").dropout(0.2, "input")
    assert dropped.dropouts() == {"input": 0.2, "conv9": 0.25, "pool": 0.1}
    assert dropped.rows[0] == Drop("input", 0.2)
    assert dropped.dropout(0, 9).dropout(0.0, "pool").dropout(0, "input") == S8
    assert S8.dropout(0.2, "input").dropout(0.3, 9) == S8.dropout(0.3, 9).dropout(0.2, "input")


@NETS
def test_dropout_counts_nothing(net: Net):
    dropped = net.dropout(0.2, "input").dropout(0.5, hidden(net)[-1])
    assert dropped.shapes(10) == net.shapes(10)
    assert dropped.parameters(10) == net.parameters(10)


@NETS
def test_the_final_activation_is_the_only_thing_its_verb_changes(net: Net):
    literal = net.final_activation("relu")
    assert literal != net
    assert literal.final_activation("none") == net
    assert (literal.parameters(10), literal.macs(10)) == (net.parameters(10), net.macs(10))


@NETS
def test_json_and_back_gives_the_same_net(net: Net):
    parsed = json.loads(json.dumps(net.to_json()))
    assert Net.from_json(parsed) == net
    assert Net.from_json(parsed).to_json() == net.to_json()


def test_the_name_is_no_part_of_a_net():
    assert replace(S13, name="other") == S13
    assert hash(replace(S13, name="other")) == hash(S13)
    assert replace(S13, name="other").to_json() == S13.to_json()


def changed(path: tuple[Any, ...], value: object) -> object:
    """Return S13's JSON with one place of it changed."""
    copy = json.loads(json.dumps(S13.to_json()))
    at = copy
    for step in path[:-1]:
        at = at[step]
    at[path[-1]] = value
    return copy


@pytest.mark.parametrize(
    "value",
    [
        None,
        [],
        {},
        {"rows": [], "size": 224},
        changed(("size",), 224.0),
        changed(("size",), True),
        changed(("size",), 0),
        changed(("more",), 1),
        changed(("rows",), "conv"),
        changed(("rows", 0), []),
        changed(("rows", 0), [["conv"]]),
        changed(("rows", 0, 0), "import"),
        changed(("rows", 0, 1), "conv1.weight"),
        changed(("rows", 0, 1), "conv2"),
        changed(("rows", 0, 2), "48"),
        changed(("rows", 0, 2), 0),
        changed(("rows", 0, 2), True),
        changed(("rows", 0, 2), None),
        changed(("rows", 0, 4), 0),
        changed(("rows", 0, 5), -1),
        changed(("rows", 0, 6), 1),
        changed(("rows", 0, 7), "maxout"),
        changed(("rows", 0), ["conv", "conv1", 48]),
        changed(("rows", 9, 1), "conv8"),
        changed(("rows", 9, 1), "pool1"),
        changed(("rows", 9, 2), 1.0),
        changed(("rows", 9, 2), 0.0),
        changed(("rows", 9, 2), float("nan")),
        changed(("rows", 10), ["drop", "conv9", 0.5]),
        changed(("rows", 12, 2), 10),
        changed(("rows", 12, 7), "crelu"),
        changed(("rows", 13, 2), "min"),
        changed(("rows", 13, 3), 2),
    ],
    ids=str,
)
def test_json_that_is_no_net_is_refused(value: object):
    with pytest.raises(ValueError, match=r"JSON|rule of every net|leave nothing"):
        Net.from_json(value)


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: S8.crelu(13), "conv13.*conv1, conv2,.*conv11"),
        (lambda: S8.crelu(0), "conv0.*conv1, conv2"),
        (lambda: S8.crelu(12), "conv12.*final_activation"),
        (lambda: S8.width(0.5, 1, 12), "conv12.*one score per class"),
        (lambda: S8.avr(), "behind no conv"),
        (lambda: S8.activation("maxout", 1), "'maxout'.*relu.*crelu.*antirectifier.*maxmin"),
        (lambda: S8.width(0.005), "0.005 leaves no filter of the 96 at conv1"),
        (lambda: S8.width(0), "factor above 0"),
        (lambda: S8.width(float("nan")), "factor above 0"),
        (lambda: S8.width(float("inf")), "factor above 0"),
        (lambda: S8.dropout(0.5, 13), "conv13.*input, conv1"),
        (lambda: S8.dropout(0.5, "pool1"), "pool1.*input, conv1.*pool"),
        (lambda: S8.dropout(1, 9), "below 1, not 1"),
        (lambda: S8.dropout(-0.1, 9), "at least 0"),
        (lambda: S8.dropout(float("nan"), 9), "not nan"),
        (lambda: S8.final_activation("crelu"), "none, relu or avr"),
        (lambda: S8.without_bn(13), "conv13"),
        (lambda: S8.parameters(0), "at least 1 class"),
        (lambda: S8.shapes(10, 34), "side 34 leave nothing at conv6: 35 is the least"),
        (lambda: small(CONV1, AVERAGE), "None for its filters"),
        (lambda: small(SCORES, CONV1, AVERAGE), "one score per class"),
        (lambda: small(CONV1, SCORES), "ends in a linear row or a pool"),
        (lambda: small(CONV1, Linear("fc", 3), SCORES, AVERAGE), "only linear rows"),
        (lambda: small(Drop("conv1", 0.5), CONV1, SCORES, AVERAGE), "right behind its layer"),
    ],
)
def test_what_cannot_be_is_refused_with_what_can(make: Any, says: str):
    with pytest.raises(ValueError, match=re.compile(says, re.DOTALL)):
        make()


@pytest.mark.parametrize("net", [S2, S4, S8], ids=lambda net: net.name)
def test_the_least_side_a_refusal_names_is_the_least_that_works(net: Net):
    with pytest.raises(ValueError, match="leave nothing") as refusal:
        net.shapes(10, 0)
    least = int(re.findall(r"(\d+) is the least", str(refusal.value))[0])
    assert net.shapes(10, least)[-1][2] == 1
    for size in range(least):
        with pytest.raises(ValueError, match="leave nothing"):
            net.shapes(10, size)


def test_every_activation_counts_its_channels():
    for name, factor in CHANNEL_FACTOR.items():
        assert SMALL.activation(name, 1).shapes(5)[0] == ("conv1", 8 * factor, 8)


def test_seed_from_depends_on_every_part_and_fits_63_bits():
    keys = [(), (0,), (1,), ("1",), (0, 0), (0, 1), (1, 0), (12, 3), (1, 23), ("a", "b"), ("ab",), ("b", "a"), (-1,)]
    numbers = [seed_from(*key) for key in keys]
    assert len(set(numbers)) == len(keys)
    assert all(0 <= number < 2**63 for number in numbers)
    # Bits fall evenly: the mean of 4,096 numbers lies within 4 standard errors of the middle.
    mean = sum(seed_from("seed", index) for index in range(4096)) / 4096 / 2**63
    assert abs(mean - 0.5) < 4 * (1 / 12) ** 0.5 / 64


def test_seed_from_takes_numpys_integers_for_the_numbers_they_are():
    numpy = pytest.importorskip("numpy")
    assert seed_from(numpy.int64(5), "a") == seed_from(5, "a")
    with pytest.raises(TypeError):
        seed_from(0.5)  # type: ignore[arg-type]


def test_kernel_no_picture_can_fill_is_refused_at_once() -> None:
    """A stranger's net once sent the search for the least picture on for ever."""
    rows = S8.to_json()["rows"]
    rows[0][3] = 2**70
    with pytest.raises(ValueError, match="not even 4096 would do"):
        Net.from_json({"rows": rows, "size": 224})
