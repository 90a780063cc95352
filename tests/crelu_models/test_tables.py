"""The paper's networks: the supplement's text, and exact counts."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from crelu_models.spec import Net
from crelu_models.tables import PAPER, S2, S8

# {"S2": its table as text}; "value [prints other]" marks what the supplement prints in place of a value.
PRINTED = {
    key: rows.strip()
    for path in sorted((Path(__file__).parent / "paper_tables").glob("S*.txt"))
    for key, rows in re.findall(r"^== (\w+)\n([^=]*)", path.read_text(), re.MULTILINE)
}
KEYS = pytest.mark.parametrize("key", PRINTED)

# Learned numbers for 10 and 100 classes.
CIFAR = {
    "S2": (1_286_698, 1_304_068),
    "S2_avr": (1_286_698, 1_304_068),
    "S3_double": (5_135_434, 5_170_084),
    "S3_crelu": (2_569_642, 2_604_292),
    "S3_half": (644_314, 661_684),
    "S3_half_literal": (519_850, 537_220),
    "convpool_cnn_c": (1_369_738, 1_387_108),
    "convpool_cnn_c_avr": (1_369_738, 1_387_108),
    "convpool_cnn_c_double": (5_467_402, 5_502_052),
    "convpool_cnn_c_crelu": (2_735_626, 2_770_276),
    "convpool_cnn_c_half": (685_834, 703_204),
    "S4": (14_991_946, 15_038_116),
    "S5": (14_990_986, 15_037_156),
    "S6": (14_953_930, 15_000_100),
    "S7": (14_806_090, 14_852_260),
    "S5_literal": (14_990_922, 15_037_092),
    "S6_literal": (14_953_738, 14_999_908),
    "S7_literal": (14_805_642, 14_851_812),
}
IMAGENET = {
    "S8": 9_372_840,
    "S8_avr_1_4": 9_372_840,
    "S8_avr_1_7": 9_372_840,
    "S8_avr_1_9": 9_372_840,
    "S9": 10_144_936,
    "S10": 11_766_952,
    "S11": 16_633_000,
    "S12": 4_686_920,
    "S13": 8_605_480,
}
# 10^9 multiply-accumulates a picture, as far as they were computed.
GMACS = {
    "S2": "0.325",
    "S2_avr": "0.325",
    "S3_double": "1.2945",
    "S3_crelu": "0.647",
    "S3_half": "0.163",
    "S3_half_literal": "0.131",
    "convpool_cnn_c": "0.410",
    "S4": "0.3135",
    "S5": "0.3126",
    "S6": "0.3031",
    "S7": "0.2937",
    "S8": "1.128",
    "S8_avr_1_4": "1.128",
    "S9": "1.670",
    "S10": "1.904",
    "S11": "2.079",
    "S12": "0.564",
    "S13": "0.805",
}


def words(text: str) -> list[list[str]]:
    return [line.split() for line in text.splitlines()]


def said(net: Net) -> str:
    """Return the net's rows, with the classes as a number where the supplement has one."""
    return str(net).replace("classes", "1000") if net.size == 224 else str(net)


def filters(text: str) -> list[list[str]]:
    """Return the words of each row with the inputs, which follow from the rows before, left out of its window."""
    return words(re.sub(r"(\d+x\d+x)\d+x(\w+)", r"\1\2", text))


def test_every_table_of_the_supplement_is_here():
    assert sorted({int(re.findall(r"\d+", key)[0]) for key in PRINTED}) == list(range(2, 14))
    assert set(PRINTED) <= set(PAPER)


@KEYS
def test_a_net_prints_the_table_of_the_supplement(key: str):
    corrected = re.sub(r" \[prints [^]]*\]", "", PRINTED[key])
    assert words(said(PAPER[key])) == words(corrected)


@KEYS
def test_a_literal_net_prints_the_supplements_own_values(key: str):
    printed = re.sub(r"\S+ \[prints ([^]]*)\]", r"\1", PRINTED[key])
    literal = PAPER.get(f"{key}_literal", PAPER[key])
    if not key.startswith(("S4", "S5", "S6", "S7")):
        literal = literal.final_activation("avr" if key == "S2_avr" else "relu")
    if key == "S12":  # its last CReLU would give 2000 scores; the rest can be read as it stands
        with pytest.raises(ValueError, match="one score per class"):
            literal.crelu(12)
        literal = literal.crelu(11)
        printed = re.sub(r"(conv12.*)CReLU", r"\1ReLU", printed)
    assert filters(said(literal)) == filters(printed)


def test_every_net_has_an_exact_count_here():
    assert set(CIFAR) | set(IMAGENET) == set(PAPER)


@pytest.mark.parametrize("key", CIFAR)
def test_parameters_of_the_cifar_nets(key: str):
    assert (PAPER[key].parameters(10), PAPER[key].parameters(100)) == CIFAR[key]


@pytest.mark.parametrize("key", IMAGENET)
def test_parameters_of_the_imagenet_nets(key: str):
    assert PAPER[key].parameters(1000) == IMAGENET[key]


@pytest.mark.parametrize("key", GMACS)
def test_multiply_accumulates_a_picture(key: str):
    classes = 1000 if PAPER[key].size == 224 else 10
    decimals = len(GMACS[key].split(".")[1])
    assert f"{PAPER[key].macs(classes) / 1e9:.{decimals}f}" == GMACS[key]


@pytest.mark.parametrize("key", PAPER)
def test_the_average_pool_is_over_the_printed_map(key: str):
    sides = [side for _, _, side in PAPER[key].shapes(10)]
    if "conv13" not in str(PAPER[key]):
        assert sides[-2] == (10 if PAPER[key].size == 32 else 6)


def test_sides_of_the_maps_are_the_papers():
    assert [side for _, _, side in S2.shapes(10)] == [32, 32, 16, 16, 16, 16, 8, 8, 10, 10, 1]
    assert [side for _, _, side in S8.shapes(1000)] == [54, 54, 26, 26, 26, 12, 12, 12, 6, 6, 6, 6, 1]
    # At 227, as AlexNet has it, the last map would not be the printed 6x6.
    assert [side for _, _, side in S8.shapes(1000, 227)] == [55, 55, 27, 27, 27, 13, 13, 13, 7, 7, 7, 7, 1]


@pytest.mark.parametrize("key", [key for key in PAPER if PAPER[key].size == 224])
@pytest.mark.parametrize("size", [56, 64, 72])
def test_the_imagenet_nets_take_small_pictures(key: str, size: int):
    assert PAPER[key].shapes(10, size)[-1] == ("pool", 10, 1)
    assert PAPER[key].parameters(10, size) == PAPER[key].parameters(10)


def test_other_counts_of_s12_do_not_fit_the_papers_4_7_million():
    s12 = PAPER["S12"]
    candidates = [s12.activation("relu", 10), s12, s12.activation("relu", 10).crelu(11), s12.crelu(11)]
    assert [net.parameters(1000) for net in candidates] == [4_424_776, 4_686_920, 4_936_776, 5_198_920]


def test_nets_need_no_torch():
    code = "import sys, crelu_models, crelu_models.tables; print({'torch', 'numpy'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


def test_one_import_gives_nets_and_the_function_build():
    code = (
        "import sys, crelu_models.spec; assert 'torch' not in sys.modules\n"
        "from crelu_models import S8, build, initialise\n"
        "import crelu_models.modules\n"
        "assert build is crelu_models.modules.build is crelu_models.build\n"
        "model = build(S8.width(1 / 16), classes=10); initialise(model, S8.width(1 / 16), 'torch', 0)\n"
        "print(next(model.named_children())[0])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "conv1\n"


def test_names_that_need_torch_load_at_first_use():
    import crelu_models
    from crelu_models import activations, modules

    assert crelu_models.CReLU is activations.CReLU
    assert crelu_models.initialise is modules.initialise
    assert all(hasattr(crelu_models, name) for name in crelu_models.__all__)
    with pytest.raises(AttributeError, match="no attribute 'Trainer'"):
        crelu_models.Trainer  # noqa: B018
